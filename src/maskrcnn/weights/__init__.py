"""Weights as files: our own checkpoints, those of other frameworks, and where to get them."""

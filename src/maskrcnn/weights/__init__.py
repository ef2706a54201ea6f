"""Weights as files: our own checkpoints, and those that ship with the package."""

"""The detector: weights, and the reading of their outputs. Knows nothing of ground truth."""

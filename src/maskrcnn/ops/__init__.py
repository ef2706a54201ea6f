"""Functions on tensors and arrays: no weights, no config, no state."""

"""compressed-tensors checkpoints for tramontane."""

"""FP8 weights for tramontane."""

"""MXFP4 weights for tramontane."""

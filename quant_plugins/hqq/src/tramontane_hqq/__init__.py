"""HQQ weights for tramontane."""

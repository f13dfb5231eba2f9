"""StarCoder2 for tramontane."""

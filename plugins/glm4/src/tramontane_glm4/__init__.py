"""GLM-4-0414 for tramontane."""

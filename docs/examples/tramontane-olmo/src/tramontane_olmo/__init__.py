"""OLMo for tramontane."""

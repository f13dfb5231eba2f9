"""gpt-oss for tramontane."""

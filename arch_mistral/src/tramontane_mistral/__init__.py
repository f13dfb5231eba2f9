"""Mistral and Mixtral for tramontane."""

"""Granite 4 for tramontane."""

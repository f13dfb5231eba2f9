"""Gemma, Gemma 2 and the text side of Gemma 3 for tramontane."""

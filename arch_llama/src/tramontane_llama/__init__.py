"""Llama and SmolLM3 for tramontane."""

"""GPTQ and AWQ checkpoints for tramontane."""

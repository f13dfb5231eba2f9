"""bitsandbytes checkpoints for tramontane."""

"""Affine weights of few bits, as MLX stores them, for tramontane."""

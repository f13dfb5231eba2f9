"""Phi-2, Phi-3 and Phi-3.5-MoE for tramontane."""

"""Native CPU kernels for tramontane: quantized linear layers, attention, gated MLP."""

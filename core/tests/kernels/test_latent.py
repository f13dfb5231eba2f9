"""Latent attention against attention over expanded keys and values."""

from tramontane.kernels.latent import latent_attention
from tramontane_testkit.latent_kernels import LatentKernelContract


class TestLatentAttention(LatentKernelContract):
    kernel = staticmethod(latent_attention)

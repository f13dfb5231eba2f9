"""Storage that layers read and write, and the index that finds computed prefixes again."""

from tramontane.cache.latent import PagedLatent
from tramontane.cache.paged import PagedKV
from tramontane.cache.prefix import PrefixIndex, block_key
from tramontane.cache.specs import FullAttention, LatentAttention, SlidingAttention

__all__ = [
    "FullAttention",
    "LatentAttention",
    "PagedKV",
    "PagedLatent",
    "PrefixIndex",
    "SlidingAttention",
    "block_key",
]

"""Storage that layers read and write, and the index that finds computed prefixes again."""

from tramontane.cache.latent import PagedLatent
from tramontane.cache.paged import PagedKV
from tramontane.cache.prefix import PrefixIndex, block_key
from tramontane.cache.recurrent import RecurrentState, StateSlots
from tramontane.cache.specs import FullAttention, LatentAttention, SlidingAttention
from tramontane.cache.transient import TransientAttention, TransientKV

__all__ = [
    "FullAttention",
    "LatentAttention",
    "PagedKV",
    "PagedLatent",
    "PrefixIndex",
    "RecurrentState",
    "SlidingAttention",
    "StateSlots",
    "TransientAttention",
    "TransientKV",
    "block_key",
]

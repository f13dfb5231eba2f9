"""From logits to tokens. The order of its steps is told by `tramontane.sampling.sampler`."""

from tramontane.sampling.params import DryParams, SamplingParams
from tramontane.sampling.sampler import SampledToken, Sampler, SamplerState

__all__ = ["DryParams", "SampledToken", "Sampler", "SamplerState", "SamplingParams"]

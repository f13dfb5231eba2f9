"""RoPE parameters and the inverse frequencies of every scaling method.

Rotary embeddings: Su et al., "RoFormer" (arXiv:2104.09864). Scalings: linear (position
interpolation, arXiv:2306.15595), dynamic (NTK-aware, growing with the length), yarn
(arXiv:2309.00071), longrope (arXiv:2402.13753), llama3 (Llama 3.1 model card). The numbers equal
those of transformers' ``modeling_rope_utils``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from attrs import fields, frozen
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.nn.config import check_type

_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}
_OLD_NAMES = {"su": "longrope"}


@frozen(kw_only=True)
class RopeParameters:
    """``rope_parameters`` of a ``config.json``, whichever keys the file used.

    Attributes:
        rope_type: default, linear, dynamic, llama3, yarn or longrope.
        rope_theta: base of the geometric progression of wavelengths.
        max_position_embeddings: context length of the model, where scaling depends on it.
        original_max_position_embeddings: context length of pre-training, before scaling.
        partial_rotary_factor: share of each head that is rotated.
        factor: how much the context was stretched.
        attention_factor: multiplies cos and sin (yarn, longrope); derived when None.
        beta_fast, beta_slow, mscale, mscale_all_dim, truncate: yarn only.
        low_freq_factor, high_freq_factor: llama3 only.
        short_factor, long_factor: longrope only; one divisor for each frequency.
        short_mscale, long_mscale: longrope only; in place of ``attention_factor``, below and above
            the switch (Phi-3.5-MoE).
    """

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    max_position_embeddings: int
    original_max_position_embeddings: int
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    short_mscale: float | None = None
    long_mscale: float | None = None

    @property
    def depends_on_length(self) -> bool:
        """Whether a sequence's frequencies change as it grows past a limit."""
        return self.rope_type in ("dynamic", "longrope")

    def rotary_dim(self, head_dim: int) -> int:
        """Dimensions of a head that are rotated."""
        return int(head_dim * self.partial_rotary_factor)

    def at_length(self, seq_len: int) -> int:
        """The shortest length whose frequencies equal those of ``seq_len``; equal answers may
        share a table."""
        if self.rope_type == "dynamic":
            return max(seq_len, self.max_position_embeddings)
        if self.rope_type == "longrope":
            limit = self.original_max_position_embeddings
            return limit + 1 if seq_len > limit else 0
        return 0


def rope_switch(config: Any) -> int | None:
    """Tokens after which a sequence is rotated otherwise, all of it (LongRoPE): what is in the
    cache by then must be computed anew. None where that never happens.

    Args:
        config: as for `rope_regime`.
    """
    switches = (
        rope.original_max_position_embeddings
        for rope in _rope_sets(config)
        if rope.rope_type == "longrope"
    )
    return min(switches, default=None)


def rope_regime(config: Any, num_tokens: int) -> tuple[int, ...]:
    """Which frequencies a sequence of ``num_tokens`` is rotated with: sequences of equal answers
    may share cached keys, others must not.

    Args:
        config: of any architecture; its ``rope_parameters`` is a `RopeParameters`, a mapping of
            them, or absent.
    """
    return tuple(rope.at_length(num_tokens) for rope in _rope_sets(config))


def _rope_sets(config: Any) -> list[RopeParameters]:
    rope = getattr(config, "rope_parameters", None)
    sets = rope.values() if isinstance(rope, Mapping) else (rope,)
    return [found for found in sets if isinstance(found, RopeParameters)]


def read_rope_parameters(
    data: Mapping[str, Any],
    *,
    default_theta: float = 10_000.0,
    default_max_positions: int | None = None,
    layer_type: str | None = None,
) -> RopeParameters:
    """Read RoPE settings from ``config.json``.

    Args:
        data: the file's content. Both ``rope_parameters`` and the older
            ``rope_theta`` + ``rope_scaling`` are understood.
        default_theta: the architecture's base when the file states none.
        default_max_positions: the architecture's ``max_position_embeddings`` likewise.
        layer_type: entry to take where ``rope_parameters`` holds one set a layer type.

    Raises:
        ConfigError: unknown ``rope_type``, or a value it needs is missing or of a wrong type.
    """
    found = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if layer_type is not None and layer_type in found:
        found = found[layer_type] or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"rope_parameters is {found!r}; an object with rope_type was expected")
    merged: dict[str, Any] = {
        key: data[key]
        for key in ("rope_theta", "partial_rotary_factor", "max_position_embeddings")
        if data.get(key) is not None
    }
    merged.update((k, v) for k, v in found.items() if v is not None)
    merged.setdefault("rope_theta", default_theta)

    rope_type = merged.get("rope_type") or merged.get("type") or "default"
    rope_type = _OLD_NAMES.get(rope_type, rope_type)
    if rope_type not in _REQUIRED:
        raise ConfigError(
            f"rope_parameters.rope_type is {rope_type!r}; supported are {', '.join(_REQUIRED)}"
        )
    if default_max_positions is not None:
        merged.setdefault("max_position_embeddings", default_max_positions)
    if "max_position_embeddings" not in merged:
        raise ConfigError("config.json lacks max_position_embeddings, which RoPE needs")
    # A value beside rope_parameters wins over one inside them, as transformers has it.
    merged["original_max_position_embeddings"] = (
        data.get("original_max_position_embeddings")
        or merged.get("original_max_position_embeddings")
        or merged["max_position_embeddings"]
    )
    values: dict[str, Any] = {"rope_type": rope_type}
    for attribute in fields(RopeParameters):
        name = attribute.name
        if name != "rope_type" and name in merged:
            values[name] = check_type(f"rope_parameters.{name}", merged[name], attribute.type)
    if rope_type in ("yarn", "longrope") and "factor" not in values:
        # DeepSeek and Phi-3 files leave the factor to the two context lengths.
        values["factor"] = (
            values["max_position_embeddings"] / values["original_max_position_embeddings"]
        )
    for name in _REQUIRED[rope_type]:
        if name not in values:
            raise ConfigError(f"rope_parameters of type {rope_type!r} lack {name}")
    return _checked(RopeParameters(**values))


def _checked(rope: RopeParameters) -> RopeParameters:
    """Refuse numbers on which the formulas below would divide by zero or take a bad logarithm."""
    counts = ("max_position_embeddings", "original_max_position_embeddings")
    for name in ("rope_theta", *counts, "factor", "low_freq_factor", "high_freq_factor"):
        value = getattr(rope, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"rope_parameters.{name} is {value!r}; a positive number is needed")
    if rope.rope_theta <= 1 or rope.original_max_position_embeddings < 2:
        raise ConfigError(
            f"rope_theta is {rope.rope_theta} and the original context "
            f"{rope.original_max_position_embeddings}; both must be above 1"
        )
    if not 0 < rope.partial_rotary_factor <= 1:
        raise ConfigError(
            f"partial_rotary_factor is {rope.partial_rotary_factor!r}; it must lie in (0, 1]"
        )
    if rope.rope_type == "llama3" and rope.low_freq_factor == rope.high_freq_factor:
        raise ConfigError("rope_parameters.low_freq_factor and high_freq_factor are equal")
    return rope


def inverse_frequencies(rope: RopeParameters, head_dim: int, seq_len: int) -> tuple[Tensor, float]:
    """Angular steps a position, and the factor on cos and sin.

    Args:
        rope: the parameters.
        head_dim: size of one head; ``rope.rotary_dim(head_dim)`` of it is rotated.
        seq_len: length of the sequence, which dynamic and longrope depend on.

    Returns:
        Float32 tensor [rotary_dim / 2] on the CPU, and the attention factor.

    Raises:
        ConfigError: the parameters do not fit this head size.
    """
    dim = rope.rotary_dim(head_dim)
    if dim < 2 or (dim == head_dim and dim % 2):
        raise ConfigError(f"head_dim {head_dim} leaves {dim} dimensions to rotate in pairs")
    base = rope.rope_theta
    if rope.rope_type == "dynamic":
        if dim <= 2:
            raise ConfigError(f"dynamic RoPE needs more than {dim} rotated dimensions a head")
        length, limit = rope.at_length(seq_len), rope.max_position_embeddings
        growth = rope.factor * length / limit - (rope.factor - 1)
        base *= growth ** (dim / (dim - 2))
    wavelengths = base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    match rope.rope_type:
        case "linear":
            return 1.0 / wavelengths / rope.factor, 1.0
        case "llama3":
            return _llama3(rope, 1.0 / wavelengths), 1.0
        case "yarn":
            return _yarn(rope, wavelengths, dim), _yarn_attention_factor(rope)
        case "longrope":
            return _longrope(rope, wavelengths, seq_len), _longrope_attention_factor(rope, seq_len)
    return 1.0 / wavelengths, 1.0


def _llama3(rope: RopeParameters, inv_freq: Tensor) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between blended."""
    turns = rope.original_max_position_embeddings * inv_freq / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * inv_freq / rope.factor + blend * inv_freq


def _yarn(rope: RopeParameters, wavelengths: Tensor, dim: int) -> Tensor:
    """Blend of interpolated and original frequencies by how often each turns (section 3.2)."""

    def dimension_of(turns: float) -> float:
        length = rope.original_max_position_embeddings
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension_of(rope.beta_fast or 32), dimension_of(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    ramp = ((index - low) / (high - low)).clamp(0, 1)  # 0: keep, 1: interpolate
    return ramp / (rope.factor * wavelengths) + (1 - ramp) / wavelengths


def mscale(factor: float, weight: float = 1.0) -> float:
    """Yarn's temperature for a context stretched by ``factor`` (section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_attention_factor(rope: RopeParameters) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.factor, rope.mscale) / mscale(rope.factor, rope.mscale_all_dim)
    return mscale(rope.factor)


def _longrope(rope: RopeParameters, wavelengths: Tensor, seq_len: int) -> Tensor:
    long = seq_len > rope.original_max_position_embeddings
    name = "long_factor" if long else "short_factor"
    divisors = torch.tensor(getattr(rope, name), dtype=torch.float32, device="cpu")
    if divisors.shape != wavelengths.shape:
        raise ConfigError(
            f"rope_parameters.{name} has {divisors.numel()} numbers; "
            f"this head size needs {wavelengths.numel()}"
        )
    return 1.0 / (divisors * wavelengths)


def _longrope_attention_factor(rope: RopeParameters, seq_len: int) -> float:
    long = seq_len > rope.original_max_position_embeddings
    mscale = rope.long_mscale if long else rope.short_mscale
    if mscale is not None:
        return mscale
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    length = rope.original_max_position_embeddings
    return math.sqrt(1 + math.log(rope.factor) / math.log(length))

"""What GGUF keeps otherwise for models with multi-head latent attention.

Files say ``deepseek2`` for both generations, which their gating function tells apart. Newer ones
hold the two halves of ``kv_b_proj`` as tensors of their own, the key half transposed, head by
head, as llama.cpp multiplies with them; and lengths of keys and values are those of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight
from tramontane_gguf.metadata import Metadata

DEEPSEEK = "DeepseekV2ForCausalLM"
KEY_HALF = ".attn_k_b.weight"
_K_B, _V_B, _KV_B = ".k_b_proj.weight", ".v_b_proj.weight", ".kv_b_proj.weight"
_SOFTMAX, _SIGMOID = 1, 2


def latent_settings(meta: Metadata, prefix: str, names: Sequence[str]) -> dict[str, Any]:
    """Keys of a DeepSeek's ``config.json``.

    Args:
        meta: the file's keys.
        prefix: of the architecture's own, with its dot.
        names: the file's tensors, GGUF names.

    Raises:
        CheckpointError: a key is absent or of the wrong kind, or scores are made in another way.
    """
    p = prefix + "attention."
    lengths = [
        meta.positive(f"{p}{half}_length{'_mla' if f'{p}{half}_length_mla' in meta else ''}")
        for half in ("key", "value")
    ]
    rope_dim = meta.positive(prefix + "rope.dimension_count")
    num_groups = meta.positive(prefix + "expert_group_count", 1)
    settings: dict[str, Any] = {
        "q_lora_rank": meta.integer(p + "q_lora_rank", 0) or None,
        "qk_nope_head_dim": lengths[0] - rope_dim,
        "v_head_dim": lengths[1],
        "head_dim": rope_dim,
        "partial_rotary_factor": 1.0,
        "num_key_value_heads": meta.positive(p + "head_count"),
        "attention_bias": any(name.endswith(".attn_kv_a_mqa.bias") for name in names),
        "n_group": num_groups,
        "topk_group": meta.positive(prefix + "expert_group_used_count", num_groups),
        "norm_topk_prob": meta.flag(prefix + "expert_weights_norm", default=False),
    }
    # Files from before there was a choice are of the first generation.
    gating = meta.integer(prefix + "expert_gating_func", _SOFTMAX)
    if gating == _SIGMOID:
        return settings | {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
        }
    if gating != _SOFTMAX:
        raise meta.fail(prefix + "expert_gating_func", "1 (softmax) or 2 (sigmoid)")
    return settings | {"topk_method": "group_limited_greedy" if num_groups > 1 else "greedy"}


class JoinedHeads(CheckpointView):
    """A file whose ``kv_b_proj`` lie in halves."""

    def names(self) -> Sequence[str]:
        stored = self.inner.names()
        halves = {name for name in stored if name.endswith((_K_B, _V_B))}
        joined = sorted({name.replace(_V_B, _K_B).replace(_K_B, _KV_B) for name in halves})
        return [*(name for name in stored if name not in halves), *joined]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        if not name.endswith(_KV_B):
            return self.inner.tensor(name)
        keys = self.inner.tensor(name.replace(_KV_B, _K_B))
        values = self.inner.tensor(name.replace(_KV_B, _V_B))
        k, v = tuple(keys.shape), tuple(values.shape)  # [heads, rank, nope], [heads, v, rank]
        if len(k) != 3 or len(v) != 3 or k[0] != v[0] or k[1] != v[2]:
            raise CheckpointError(
                f"{name} is made of halves that do not fit: keys of shape {list(k)}, values of "
                f"{list(v)}"
            )
        if isinstance(keys, Tensor) and isinstance(values, Tensor):
            return _join(keys, values)
        return KeysAndValues(keys, values)


class KeysAndValues(PackedWeight):
    """The two halves of a ``kv_b_proj``, at least one of them packed.

    Args:
        keys: [num_heads, rank, nope_dim].
        values: [num_heads, v_head_dim, rank].
    """

    format = "gguf.kv_b"

    def __init__(self, keys: Tensor | PackedWeight, values: Tensor | PackedWeight) -> None:
        self.keys, self.values = keys, values
        self._head = keys.shape[2] + values.shape[1]
        self.shape = (keys.shape[0] * self._head, keys.shape[1])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return _join(*(_plain(half, dtype) for half in (self.keys, self.values)))

    def rows(self, start: int, stop: int) -> Self:
        """Rows of whole heads. Raises ValueError for others."""
        if start % self._head or stop % self._head:
            raise ValueError(f"rows {start} to {stop} are not those of heads of {self._head}")
        low, high = start // self._head, stop // self._head
        parts = (
            half[low:high] if isinstance(half, Tensor) else half.rows(low, high)
            for half in (self.keys, self.values)
        )
        return type(self)(*parts)

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.dequantize(dtype)[index]

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        return type(self)(self.keys.to(device), self.values.to(device))

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        keys = [_plain(part.keys, torch.float32) for part in parts]
        values = [_plain(part.values, torch.float32) for part in parts]
        return cls(torch.cat(keys), torch.cat(values))


def with_joined_heads(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """``checkpoint``, whose ``kv_b_proj`` are whole, whichever way the file keeps them."""
    halves = any(name.endswith(KEY_HALF) for name in names)
    return JoinedHeads(checkpoint) if halves else checkpoint


def _join(keys: Tensor, values: Tensor) -> Tensor:
    """[num_heads * (nope_dim + v_head_dim), rank], keys above values in each head."""
    return torch.cat((keys.transpose(1, 2), values.to(keys.dtype)), 1).flatten(0, 1)


def _plain(half: Tensor | PackedWeight, dtype: torch.dtype) -> Tensor:
    return half.to(dtype) if isinstance(half, Tensor) else half.dequantize(dtype)


# Writing -----------------------------------------------------------------------------------------


def latent_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a DeepSeek, without the architecture's prefix; the reverse of
    `latent_settings`. Attention over the latents has one key-value head, as wide as what is cached.

    Raises:
        ConfigError: every layer but the first ones must have experts.
    """
    rank, rope_dim = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
    if config.get("n_routed_experts") and int(config.get("moe_layer_freq") or 1) != 1:
        raise ConfigError(
            f"a GGUF file cannot say that moe_layer_freq is {config['moe_layer_freq']}; only 1"
        )
    second = (config.get("scoring_func") or _scoring(config)) == "sigmoid"
    found: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rope_dim,
        "attention.value_length": rank,
        "attention.key_length_mla": int(config["qk_nope_head_dim"]) + rope_dim,
        "attention.value_length_mla": int(config["v_head_dim"]),
        "expert_gating_func": _SIGMOID if second else _SOFTMAX,
        "expert_shared_count": int(config.get("n_shared_experts") or 0),
        "leading_dense_block_count": int(config.get("first_k_dense_replace") or 0),
        "expert_weights_norm": bool(config.get("norm_topk_prob")),
        "expert_weights_scale": float(config.get("routed_scaling_factor") or 1.0),
        "rope.dimension_count": rope_dim,
    }
    if not config.get("n_routed_experts"):
        found["leading_dense_block_count"] = int(config["num_hidden_layers"])
        found["expert_feed_forward_length"] = int(config["intermediate_size"])
    if config.get("q_lora_rank") is not None:
        found["attention.q_lora_rank"] = int(config["q_lora_rank"])
    if config.get("n_group") is not None and config.get("topk_method") != "greedy":
        found["expert_group_count"] = int(config["n_group"])
        found["expert_group_used_count"] = int(config["topk_group"])
    scale = (config.get("rope_scaling") or {}).get("mscale_all_dim")
    if scale:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * float(scale)
    return found


def _scoring(config: Mapping[str, Any]) -> str:
    return "sigmoid" if config.get("model_type") == "deepseek_v3" else "softmax"


def head_halves(weight: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Both halves of a ``kv_b_proj``: [num_heads, rank, nope_dim] and [num_heads, v, rank]."""
    nope = int(config["qk_nope_head_dim"])
    by_head = weight.reshape(int(config["num_attention_heads"]), -1, weight.shape[-1])
    return by_head[:, :nope].transpose(1, 2), by_head[:, nope:]

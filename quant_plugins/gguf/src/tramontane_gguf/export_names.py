"""Which models can be written, and their tensors as a GGUF file has them: the reverse of
`checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import Tensor

from tramontane.errors import ConfigError, UnsupportedError
from tramontane.protocols import Checkpoint
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.export_sources import Read, gathered, plain
from tramontane_gguf.families import Family, family_of
from tramontane_gguf.mamba import granite_family
from tramontane_gguf.tensor_names import TensorNames, adjacent_pair_order, parse
from tramontane_gguf.types import GgmlType

WRITTEN: Mapping[str, tuple[str, ...]] = {
    "LlamaForCausalLM": ("llama",),
    "MistralForCausalLM": ("llama",),
    "MixtralForCausalLM": ("llama",),
    "SmolLM3ForCausalLM": ("smollm3",),
    "Qwen2ForCausalLM": ("qwen2",),
    "Qwen3ForCausalLM": ("qwen3",),
    "Qwen3Model": ("qwen3",),
    "Qwen3MoeForCausalLM": ("qwen3moe",),
    "PhiForCausalLM": ("phi2",),
    "Phi3ForCausalLM": ("phi3",),
    "PhiMoEForCausalLM": ("phimoe",),
    "PhimoeForCausalLM": ("phimoe",),
    "Starcoder2ForCausalLM": ("starcoder2",),
    "GemmaForCausalLM": ("gemma",),
    "Gemma2ForCausalLM": ("gemma2",),
    "Gemma3ForCausalLM": ("gemma3",),
    "Gemma3TextModel": ("gemma-embedding",),
    "Glm4ForCausalLM": ("glm4",),
    "DeepseekV2ForCausalLM": ("deepseek2",),
    "DeepseekV3ForCausalLM": ("deepseek2",),
    "GraniteMoeHybridForCausalLM": ("granitehybrid", "granite", "granitemoe"),
    "GptOssForCausalLM": ("gpt-oss",),
}
"""Entry of ``architectures`` → values of ``general.architecture`` that the file may have."""


@frozen(kw_only=True)
class Outgoing:
    """One tensor of the file to be.

    Attributes:
        name: in the file.
        module: of Hugging Face, without ``.weight``; what importances go by.
        shape: torch order.
        make: reads it.
        stored: type of the ggml blocks that it lies in already, or None.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor | GgmlWeight]
    stored: GgmlType | None = None


def family_for(config: Mapping[str, Any]) -> Family:
    """The family in which a model is written.

    Raises:
        UnsupportedError: there is none; lists those there are.
    """
    names = config.get("architectures") or []
    for name in names:
        if name in WRITTEN:
            families = WRITTEN[name]
            return family_of(granite_family(config) if len(families) > 1 else families[0])
    raise UnsupportedError(
        f"{', '.join(map(str, names)) or 'a model without architectures'} cannot be written as "
        f"GGUF; it works for {', '.join(WRITTEN)}"
    )


def outgoing(checkpoint: Checkpoint, config: Mapping[str, Any], family: Family) -> list[Outgoing]:
    """Every tensor of a model, in the order of layers.

    Raises:
        ConfigError: a tensor has no place in files of this family.
    """
    moe = any(config.get(key) for key in ("num_local_experts", "num_experts"))
    names = TensorNames(family, moe=moe)
    standard = TensorNames(Family(name=family.name, architecture=""), moe=moe)
    found: dict[str, Outgoing] = {}
    for hf_name, source in gathered(checkpoint, config).items():
        name = names.to_gguf(hf_name)
        if name == hf_name:
            name = standard.to_gguf(hf_name)
        if name == hf_name:
            raise ConfigError(
                f"{hf_name} has no place in a GGUF file of family {family.name}: the checkpoint "
                f"is of another architecture, or holds more than the model"
            )
        module = hf_name.removesuffix(".weight")
        make = _arranged(name, source.read, config, family)
        found[name] = Outgoing(
            name=name, module=module, shape=source.shape, make=make, stored=source.stored
        )
    return sorted(found.values(), key=_order)


def _order(tensor: Outgoing) -> tuple[int, int, str]:
    parsed = parse(tensor.name)
    layer = -1 if parsed is None or parsed.layer is None else parsed.layer
    return (1 if tensor.name.startswith("output") else 0, layer, tensor.name)


def _arranged(name: str, read: Read, config: Mapping[str, Any], family: Family) -> Read:
    """What converters do to a tensor on its way."""
    parsed = parse(name)
    role = parsed.role if parsed else ""
    if family.norm_plus_one and name.endswith("norm.weight"):
        return lambda: plain(read()).float() + 1
    if family.interleaved and role in ("attn_q", "attn_k"):
        heads = int(config["num_attention_heads"])
        if role == "attn_k":
            heads = int(config.get("num_key_value_heads") or heads)

        def permuted() -> Tensor:
            rows = plain(read())
            return rows[adjacent_pair_order(rows.shape[0], heads)]

        return permuted
    return read


def attention_layers(names: Sequence[str]) -> tuple[int, ...]:
    """Layers with attention, by the names of a file's tensors."""
    found = {
        parsed.layer
        for name in names
        if (parsed := parse(name)) is not None
        and parsed.role in ("attn_v", "attn_qkv", "attn_kv_b")
        and parsed.layer is not None
    }
    return tuple(sorted(found))

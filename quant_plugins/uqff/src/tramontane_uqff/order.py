"""Which layer bears which number in generation 0.

Its files number the layers in the order in which mistral.rs 0.7 lists those that it quantizes.
The order is written down here by Hugging Face architecture; where a model has been stored in
several ways, as experts have, the count of layers tells which. Shapes are checked when weights are
bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tramontane.errors import CheckpointError, ConfigError, UnsupportedError

Layer = Callable[[Mapping[str, Any], int, bool], list[str] | None]
"""``layer(config, index, stacked)``: modules of one layer, ``stacked`` where its experts are three
stacks; None where the architecture has no other form."""

Q_K_V_O = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
GATED = tuple(f"mlp.{name}" for name in GATE_UP_DOWN)


def layer_names(config: Mapping[str, Any], count: int, *, prefix: str, where: str) -> list[str]:
    """Modules of a model in the order of their numbers.

    Args:
        config: ``config.json``.
        count: layers that the files have.
        prefix: what the names of layers begin with, ``"model."`` or nothing.
        where: for messages.

    Raises:
        UnsupportedError: the order is not known for this architecture.
        CheckpointError: the count fits none of the ways to store it.
    """
    architecture = str(next(iter(config.get("architectures") or ()), None))
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= count:
        raise CheckpointError(
            f"{where} has {count} layers to quantize; with num_hidden_layers {layers!r} of "
            f"config.json they do not make a model"
        )
    if architecture not in ORDERS:
        raise UnsupportedError(
            f"{where} is of UQFF generation 0, which numbers layers in an order that is not known "
            f"for {architecture}; known are {', '.join(ORDERS)}. Quantize the model anew"
        )
    makes = ORDERS[architecture]
    tried: list[int] = []
    for make in makes if isinstance(makes, tuple) else (makes,):
        for stacked in (True, False):
            body = _body(make, config, layers, stacked, prefix)
            for names in _with_head(body, last=architecture == "GptOssForCausalLM"):
                if len(names) == count:
                    return names
                tried.append(len(names))
    raise CheckpointError(
        f"{where} has {count} layers; a {architecture} with {layers} layers has "
        f"{' or '.join(map(str, sorted(set(tried))))}: a shard may be missing, or config.json "
        f"belongs to another model"
    )


def _body(
    make: Layer, config: Mapping[str, Any], layers: int, stacked: bool, prefix: str
) -> list[str]:
    names: list[str] = []
    for index in range(layers):
        names += [f"{prefix}layers.{index}.{n}" for n in make(config, index, stacked) or ()]
    return names


def _with_head(body: list[str], *, last: bool) -> Iterable[list[str]]:
    """With the head at its place, and as a model that makes vectors."""
    return ([*body, "lm_head"] if last else ["lm_head", *body]), body


def _fixed(*names: str) -> Layer:
    return lambda config, index, stacked: list(names)


def _experts(prefix: str, projections: Sequence[str], count: Any, stacked: bool) -> list[str]:
    if type(count) is not int or not 0 < count < 1 << 16:
        raise ConfigError(f"config.json says {count!r} experts; a count was expected")
    if stacked:
        return [f"{prefix}.{name}" for name in GATE_UP_DOWN]
    return [f"{prefix}.{e}.{name}" for e in range(count) for name in projections]


def _num_experts(config: Mapping[str, Any]) -> Any:
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((config[key] for key in keys if config.get(key)), None)


def _mixtral(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    moe, count = "block_sparse_moe", _num_experts(config)
    experts = _experts(f"{moe}.experts", ("w1", "w2", "w3"), count, stacked)
    return [*Q_K_V_O, f"{moe}.gate", *experts]


def _phi_moe(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    return [n for n in _mixtral(config, index, stacked) if not n.endswith(".gate")]


def _qwen_moe(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    step = config.get("decoder_sparse_step") or 1
    dense = index in (config.get("mlp_only_layers") or ()) or (index + 1) % step
    count = _num_experts(config)
    rest = GATED if dense else _experts("mlp.experts", GATE_UP_DOWN, count, stacked)
    return [*Q_K_V_O, *rest]


def _routed(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    """The MLP of DeepSeek and GLM-4-MoE: dense at first, later experts and shared ones."""
    first, step = config.get("first_k_dense_replace") or 0, config.get("moe_layer_freq") or 1
    if index < first or index % step or not _num_experts(config):
        return list(GATED)
    names = _experts("mlp.experts", GATE_UP_DOWN, _num_experts(config), stacked)
    shared = GATE_UP_DOWN if config.get("n_shared_experts") else ()
    return [*names, *(f"mlp.shared_experts.{name}" for name in shared)]


def _latent(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    query = ("q_a_proj", "q_b_proj") if config.get("q_lora_rank") else ("q_proj",)
    names = (*query, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    return [*(f"self_attn.{n}" for n in names), *_routed(config, index, stacked)]


def _glm4_moe(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    return [*Q_K_V_O, *_routed(config, index, stacked)]


def _only_experts(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    """What ``IsqOrganization.MoQE`` quantizes of DeepSeek and GLM-4-MoE."""
    return _routed(config, index, stacked)


def _only_phi_experts(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    return _phi_moe(config, index, stacked)[len(Q_K_V_O) :]


def _granite(config: Mapping[str, Any], index: int, stacked: bool) -> list[str]:
    kinds = config.get("layer_types") or ()
    attends = index < len(kinds) and kinds[index] == "attention"
    mlp = ("gate_proj", "up_proj", "down_proj") if stacked else ("input_linear", "output_linear")
    return [*(Q_K_V_O if attends else ()), *(f"shared_mlp.{name}" for name in mlp)]


DENSE = _fixed(*Q_K_V_O, *GATED)

ORDERS: Mapping[str, Layer | tuple[Layer, ...]] = {
    **dict.fromkeys(
        (
            "LlamaForCausalLM", "MistralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
            "Gemma3ForCausalLM", "Gemma3TextModel", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
            "SmolLM3ForCausalLM", "Glm4ForCausalLM",
        ),
        DENSE,
    ),
    "Starcoder2ForCausalLM": _fixed(*Q_K_V_O, "mlp.c_fc", "mlp.c_proj"),
    "PhiForCausalLM": _fixed(*Q_K_V_O[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "Phi3ForCausalLM": _fixed(
        "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"
    ),
    "MixtralForCausalLM": _mixtral,
    "PhiMoEForCausalLM": (_phi_moe, _only_phi_experts),
    "DeepseekV2ForCausalLM": (_latent, _only_experts),
    "DeepseekV3ForCausalLM": (_latent, _only_experts),
    "Glm4MoeLiteForCausalLM": (_latent, _only_experts),
    "Glm4MoeForCausalLM": (_glm4_moe, _only_experts),
    "Qwen3MoeForCausalLM": _qwen_moe,
    "GptOssForCausalLM": _fixed(*Q_K_V_O),
    "GraniteMoeHybridForCausalLM": _granite,
}  # fmt: skip
"""Hugging Face architecture → modules of a layer; several where quantizing was done in ways."""

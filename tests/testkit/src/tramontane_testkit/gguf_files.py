"""GGUF files made from Hugging Face directories by the conventions of llama.cpp's converter.

Tensor names come from the gguf package, so that they are no copy of ours.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tramontane_testkit.gguf_deepseek import deepseek_settings, deepseek_tensors
from tramontane_testkit.gguf_granite import granite_settings, granite_tensors
from tramontane_testkit.models import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    MERGED,
    SPECIALS,
    byte_alphabet,
    tiny_llama,
)

_EXPERT = re.compile(r"(?P<stem>.*\.experts)\.(?P<expert>\d+)\.(?P<leaf>\w+\.weight)")
_ADJACENT_PAIRS = frozenset({"llama", "smollm3", "granite", "granitemoe", "granitehybrid"})
_PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3", "gemma-embedding"})

_SAME: Mapping[str, str] = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "pooling_type": "pooling_type",
}
"""Keys of ``config.json`` that are written as they are."""


def tiny_gguf(path: Path, seed: int = 0, **overrides: Any) -> Path:
    """The model of `tramontane_testkit.models.tiny_llama` with the same seed as a GGUF file in
    F32; the file."""
    with tempfile.TemporaryDirectory() as directory:
        return gguf_of(tiny_llama(Path(directory), seed, **overrides), path, "llama")


def gguf_of(
    directory: Path,
    path: Path,
    architecture: str,
    *,
    halves: bool = True,
    packed: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Convert a directory of `tramontane_testkit.models.save_hf` to one file; the file.

    Args:
        directory: ``config.json`` and ``model.safetensors``.
        path: the file to write.
        architecture: value of ``general.architecture``.
        halves: for ``deepseek2``, see `tramontane_testkit.gguf_deepseek.deepseek_tensors`.
        packed: end of a tensor's name, ``"_exps.weight"`` → ggml type; all others are in F32.
    """
    import gguf

    config = json.loads((directory / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(str(path), architecture)
    tensors = load_file(directory / "model.safetensors")
    settings = _settings(config, architecture)
    if architecture == "deepseek2":
        settings |= deepseek_settings(config, halves=halves)
        tensors = deepseek_tensors(tensors, config, halves=halves)
    for key, value in settings.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](f"{architecture}.{key}", value)
    _add_tokenizer(writer, around="pooling_type" in config)
    for name, array in _renamed(tensors, config, architecture).items():
        kinds = [gguf.GGMLQuantizationType[k] for end, k in packed.items() if name.endswith(end)]
        if kinds:
            writer.add_tensor(name, gguf.quantize(array, kinds[0]), raw_dtype=kinds[0])
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The architecture's own metadata, without prefix."""
    found = {key: config[name] for name, key in _SAME.items() if config.get(name) is not None}
    head_dim = config.get("head_dim")
    if head_dim is not None:
        found["attention.key_length"] = found["attention.value_length"] = head_dim
    else:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        found["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    found["rope.freq_base"] = float(rope["rope_theta"])
    found["rope.dimension_count"] = int(head_dim * (rope.get("partial_rotary_factor") or 1))
    kind = rope.get("rope_type")
    if architecture == "gpt-oss":
        found["expert_feed_forward_length"] = config["intermediate_size"]
    if kind in ("linear", "yarn"):
        found["rope.scaling.type"] = kind
        found["rope.scaling.factor"] = float(rope["factor"])
    for key in ("beta_fast", "beta_slow"):
        if rope.get(key) is not None:
            found[f"rope.scaling.yarn_{key}"] = float(rope[key])
    if kind in ("yarn", "longrope"):
        key = "original_max_position_embeddings"
        original = int(rope[key] if key in rope else config[key])
        found["rope.scaling.original_context_length"] = original
        if kind == "longrope":
            ratio = config["max_position_embeddings"] / original
            found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(ratio) / math.log(original))
    if architecture.startswith("granite"):
        found |= granite_settings(config)
    return found


def _renamed(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], architecture: str
) -> dict[str, np.ndarray]:
    """Tensors under their GGUF names, rearranged as the converter does."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    result: dict[str, np.ndarray] = {}
    if architecture == "gpt-oss":
        tensors = _gpt_oss_experts(tensors)
    elif architecture.startswith("granite"):
        tensors = granite_tensors(tensors, config)
    for name, array in _stacked(tensors).items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        module, _, suffix = name.rpartition(".")
        leaf = module.rpartition(".")[2]
        if architecture in _ADJACENT_PAIRS and leaf in heads:
            halves = array.reshape(heads[leaf], 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        if architecture in _PLUS_ONE and leaf.endswith("norm"):
            array = array + 1
        stem = names.get_name(module)
        assert stem is not None, f"the gguf package knows no {name} in {architecture}"
        result[f"{stem}.{suffix}".removesuffix(".")] = array
    rope = config["rope_parameters"]
    for length in ("long", "short"):
        if rope.get(f"{length}_factor"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            result[f"rope_factors_{length}.weight"] = factors
    return result


def _stacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The experts of a projection in one array, in order."""
    result: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, array in tensors.items():
        if found := _EXPERT.fullmatch(name):
            stack = stacks.setdefault(f"{found['stem']}.{found['leaf']}", {})
            stack[int(found["expert"])] = array
        else:
            result[name] = array
    for name, parts in stacks.items():
        result[name] = np.stack([parts[i] for i in range(len(parts))])
    return result


def _gpt_oss_experts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacks turned to [experts, out, in], gate and up apart, and sinks as weights."""
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "sinks":
            result[f"{name}.weight"] = array
        elif leaf.startswith(("gate_up_proj", "down_proj")) and stem.endswith("experts"):
            suffix = "bias" if leaf.endswith("_bias") else "weight"
            rows = array if suffix == "bias" else np.ascontiguousarray(array.swapaxes(1, 2))
            if leaf.startswith("down"):
                result[f"{stem}.down_proj.{suffix}"] = rows
            else:
                result[f"{stem}.gate_proj.{suffix}"] = np.ascontiguousarray(rows[:, ::2])
                result[f"{stem}.up_proj.{suffix}"] = np.ascontiguousarray(rows[:, 1::2])
        else:
            result[name] = array
    return result


def _add_tokenizer(writer: Any, *, around: bool) -> None:
    """The byte tokenizer of `tramontane_testkit.models`; with ``around``, special tokens stand
    before and after a text."""
    import gguf

    tokens = [*byte_alphabet(), MERGED, *SPECIALS]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control = [kinds.CONTROL] * len(SPECIALS)
    writer.add_token_types([kinds.NORMAL] * (len(tokens) - len(SPECIALS)) + control)
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(around)
    writer.add_add_eos_token(around)
    writer.add_chat_template(CHAT_TEMPLATE)

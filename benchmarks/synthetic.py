"""Llamas with random weights, as safetensors or GGUF, and the tokenizer they share."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from attrs import frozen
from safetensors.torch import save_file

from tramontane_gguf.types import BY_NAME
from tramontane_testkit.models import (
    BOS,
    EOS,
    MERGED,
    SPECIALS,
    VOCAB_SIZE,
    byte_alphabet,
    save_tokenizer,
)

HALF_FLOATS = {"q4_k": (0, 2), "q5_k": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,)}
"""Where the float16 scales of a K-block lie; in every other block type they come first."""


@frozen
class Shape:
    """Sizes of a Llama, under their Hugging Face names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int = 64
    max_position_embeddings: int = 8192

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a layer's projections, by GGUF name."""
        q, kv = (
            heads * self.head_dim for heads in (self.num_attention_heads, self.num_key_value_heads)
        )
        h, m = self.hidden_size, self.intermediate_size
        return {
            "attn_q": (q, h),
            "attn_k": (kv, h),
            "attn_v": (kv, h),
            "attn_output": (h, q),
            "ffn_gate": (m, h),
            "ffn_up": (m, h),
            "ffn_down": (h, m),
        }


SHAPES = {
    "tiny": Shape(256, 4, 4, 4, 768, 1024),
    "small": Shape(768, 12, 12, 4, 2048, 8192),
    "1b": Shape(2048, 16, 32, 8, 8192, 32000),
}
HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def safetensors_model(directory: Path, shape: Shape, dtype: torch.dtype) -> Path:
    """Write a Hugging Face directory, unless it is there; the directory."""
    if (directory / "model.safetensors").exists():
        return directory
    save_tokenizer(directory)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
        return weight.to(dtype)

    tensors = {
        "model.embed_tokens.weight": matrix(shape.vocab_size, shape.hidden_size),
        "lm_head.weight": matrix(shape.vocab_size, shape.hidden_size),
        "model.norm.weight": torch.ones(shape.hidden_size, dtype=dtype),
    }
    for i in range(shape.num_hidden_layers):
        for name, size in shape.linears().items():
            tensors[f"model.layers.{i}.{HF_NAMES[name]}.weight"] = matrix(*size)
        for name in ("attn_norm", "ffn_norm"):
            norm = torch.ones(shape.hidden_size, dtype=dtype)
            tensors[f"model.layers.{i}.{HF_NAMES[name]}.weight"] = norm
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **{name: getattr(shape, name) for name in Shape.__annotations__},
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    return directory


def gguf_model(path: Path, shape: Shape, type_name: str) -> Path:
    """Write a GGUF file with weights of one block type, unless it is there; the file."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path.with_suffix(".part")), "llama")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    filler = [f"<unused{i}>" for i in range(shape.vocab_size - VOCAB_SIZE)]
    writer.add_token_list([*byte_alphabet(), MERGED, *SPECIALS, *filler])
    kinds = gguf.TokenType
    special, unused = [kinds.CONTROL] * len(SPECIALS), [kinds.UNUSED] * len(filler)
    writer.add_token_types([kinds.NORMAL] * 257 + special + unused)
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)

    def add(name: str, rows: int, columns: int) -> None:
        blocks = random_blocks(rng, rows, columns, type_name)
        kind = gguf.GGMLQuantizationType(BY_NAME[type_name].number)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)

    add("token_embd", shape.vocab_size, shape.hidden_size)
    add("output", shape.vocab_size, shape.hidden_size)
    ones = np.ones(shape.hidden_size, np.float32)
    writer.add_tensor("output_norm.weight", ones)
    for i in range(shape.num_hidden_layers):
        for name, size in shape.linears().items():
            add(f"blk.{i}.{name}", *size)
        writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


def random_blocks(
    rng: np.random.Generator, rows: int, columns: int, type_name: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Blocks with random codes and small scales, so that activations stay finite: [rows, bytes]."""
    kind = BY_NAME[type_name]
    count = rows * columns // kind.block_size
    blocks = rng.integers(0, 256, (count, kind.type_size), dtype=np.uint8)
    scale = np.float16(columns**-0.5 / 256).tobytes()
    for start in HALF_FLOATS.get(type_name, (0,)):
        blocks[:, start : start + 2] = np.frombuffer(scale, np.uint8)
    return blocks.reshape(rows, -1)

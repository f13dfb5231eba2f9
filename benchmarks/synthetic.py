"""Llamas with random weights, as GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from attrs import frozen

from tramontane_gguf.types import BY_NAME
from tramontane_testkit.models import (
    BOS,
    EOS,
    MERGED,
    SPECIALS,
    VOCAB_SIZE,
    byte_alphabet,
)

HALF_FLOATS = {"q4_k": (0, 2), "q5_k": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,)}
"""Where the float16 scales of a K-block lie; in every other block type they come first."""


MIXTURES = {"q4_k_m": ("q4_k", "q6_k")}
"""File types of two block types: that of most matrices, and that of the head and of some layers'
``attn_v`` and ``ffn_down``."""


def more_bits(layer_idx: int, num_layers: int) -> bool:
    """Whether llama.cpp gives ``attn_v`` and ``ffn_down`` of a layer the better type of a mixture:
    the first and last eighth, and every third between."""
    eighth = num_layers // 8
    if layer_idx < eighth or layer_idx >= 7 * eighth:
        return True
    return (layer_idx - eighth) % 3 == 2


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


def gguf_model(path: Path, shape: Shape, type_name: str) -> Path:
    """Write a GGUF file, unless it is there; the file.

    Args:
        path: of the file.
        shape: of the model.
        type_name: a block type or plain type for all matrices, or a key of `MIXTURES`.
    """
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

    def add(name: str, rows: int, columns: int, better: bool = False) -> None:
        own = MIXTURES.get(type_name, (type_name, type_name))[better]
        blocks = random_blocks(rng, rows, columns, own)
        kind = gguf.GGMLQuantizationType(BY_NAME[own].number)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)

    add("token_embd", shape.vocab_size, shape.hidden_size)
    add("output", shape.vocab_size, shape.hidden_size, better=True)
    ones = np.ones(shape.hidden_size, np.float32)
    writer.add_tensor("output_norm.weight", ones)
    for i in range(shape.num_hidden_layers):
        for name, size in shape.linears().items():
            better = name in ("attn_v", "ffn_down") and more_bits(i, shape.num_hidden_layers)
            add(f"blk.{i}.{name}", *size, better)
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
    if kind.dtype is not None:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        plain = torch.from_numpy(values).to(kind.dtype)
        return plain.view(torch.uint8).numpy()
    count = rows * columns // kind.block_size
    blocks = rng.integers(0, 256, (count, kind.type_size), dtype=np.uint8)
    scale = np.float16(columns**-0.5 / 256).tobytes()
    for start in HALF_FLOATS.get(type_name, (0,)):
        blocks[:, start : start + 2] = np.frombuffer(scale, np.uint8)
    return blocks.reshape(rows, -1)

"""Legacy GGML files of llama models: every container, and blocks as each version had them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

MAGICS = {"ggml": 0x67676D6C, "ggmf": 0x67676D66, "ggjt": 0x67676A74}

NAMES = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "model.layers": "layers",
}  # fmt: skip

_NIBBLES = {"q4_0": 2, "q4_1": 4, "q5_0": 6, "q5_1": 8}
"""Type → the byte of a block where its nibbles begin."""
_SCALES = {"q4_0": 1, "q4_1": 2, "q8_0": 1}
"""Type → scales that were 32-bit floats before ggjt 3."""


def legacy_names(
    tensors: Mapping[str, np.ndarray], num_heads: int, num_kv_heads: int
) -> dict[str, np.ndarray]:
    """A Hugging Face llama's tensors as Meta named and ordered them."""
    result: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        heads = num_heads if "q_proj" in name else num_kv_heads if "k_proj" in name else 0
        if heads:
            halves = value.reshape(heads, 2, -1, value.shape[-1])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        result[name] = np.ascontiguousarray(value, np.float32)
    return result


def write_ggml(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    pieces: Sequence[bytes],
    scores: Sequence[float],
    *,
    num_heads: int,
    num_layers: int,
    container: str = "ggjt",
    version: int = 3,
    kind: str = "q8_0",
) -> Path:
    """Write one model; the file.

    Args:
        tensors: as `legacy_names` gives them; matrices are stored as ``kind``.
        pieces, scores: the vocabulary.
        container: ``"ggml"``, ``"ggmf"`` or ``"ggjt"``.
        version: ignored for ``"ggml"``, which has none.
        kind: a ggml type.
    """
    width = tensors["tok_embeddings.weight"].shape[1]
    out = bytearray(struct.pack("<I", MAGICS[container]))
    if container != "ggml":
        out += struct.pack("<I", version)
    out += struct.pack("<7I", len(pieces), width, 32, num_heads, num_layers, width // num_heads, 0)
    for piece, score in zip(pieces, scores, strict=True):
        out += struct.pack("<I", len(piece)) + piece
        out += b"" if container == "ggml" else struct.pack("<f", score)
    for name, value in tensors.items():
        stored = kind if value.ndim == 2 else "f32"
        number = gguf.GGMLQuantizationType[stored.upper()]
        out += struct.pack("<3I", value.ndim, len(name), number)
        out += struct.pack(f"<{value.ndim}I", *reversed(value.shape)) + name.encode()
        if container == "ggjt":
            out += bytes(-len(out) % 32)
        data = gguf.quantize(value, number)
        version_of_blocks = version if container == "ggjt" else 1
        out += _aged(data.view(np.uint8), stored, version_of_blocks).tobytes()
    path.write_bytes(out)
    return path


def _aged(data: np.ndarray, kind: str, version: int) -> np.ndarray:
    """Today's blocks as files of ``version`` had them."""
    if version >= 3 or kind in ("f32", "f16"):
        return data
    number = gguf.GGMLQuantizationType[kind.upper()]
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[number][1])
    if version == 1 and kind in _NIBBLES:
        start = _NIBBLES[kind]
        halves = blocks[:, start:]
        codes = np.concatenate((halves & 0xF, halves >> 4), -1)
        blocks = np.concatenate((blocks[:, :start], codes[:, 0::2] | codes[:, 1::2] << 4), -1)
    if kind in _SCALES:
        end = 2 * _SCALES[kind]
        scales = np.ascontiguousarray(blocks[:, :end]).view(np.float16).astype(np.float32)
        blocks = np.concatenate((scales.view(np.uint8), blocks[:, end:]), -1)
    return blocks

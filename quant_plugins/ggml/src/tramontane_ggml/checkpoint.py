"""Opening legacy GGML files as a `tramontane.protocols.Checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError, ValidationError
from tramontane.hooks import PluginManager, plugin_manager
from tramontane.protocols import Checkpoint, EmbeddedTokenizer, PackedWeight, Quantizer
from tramontane.text.vocabulary import PieceType, sentencepiece_bpe
from tramontane_ggml.container import Container, TensorInfo, read

_GLOBAL = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_LAYER = re.compile(r"layers\.(\d+)\.([a-z0-9_.]+)\.weight")
_PLAIN = {"f32": torch.float32, "f16": torch.float16}

# Of Llama 1 and 2, which the files do not tell.
EPS = 1e-5
THETA = 10_000.0
MAX_POSITIONS = 4096

# How the converters of the time numbered SentencePiece's own tokens.
UNK, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3


class GgmlFormat:
    """The ``ggml`` checkpoint format."""

    def open(self, files: Sequence[Path], *, gqa: int = 1) -> Checkpoint:
        """Open one model.

        Args:
            files: one file.
            gqa: query heads that share a key/value head: 8 for Llama 2 70B.

        Raises:
            CheckpointError: the file is damaged or of another kind.
            ValidationError: several files, or a ``gqa`` that does not divide the heads.
        """
        if len(files) != 1:
            raise ValidationError(f"a GGML model is one file; {len(files)} were given")
        return GgmlCheckpoint(read(files[0]), gqa, plugin_manager())


class GgmlCheckpoint:
    """One opened model; packed weights are views of the file unless their rows or blocks have to
    be put in today's order."""

    def __init__(self, container: Container, gqa: int, plugins: PluginManager) -> None:
        self._container = container
        self._path = container.file.path
        self._plugins = plugins
        values = container.values
        heads, width = values["n_head"], values["n_embd"]
        if not heads or not width or width % (2 * heads):
            raise CheckpointError(
                f"{self._path}: n_embd is {width} and n_head {heads}, which makes no heads"
            )
        if gqa < 1 or heads % gqa:
            raise ValidationError(
                f"gqa={gqa} does not divide the {heads} heads of {self._path}; it is 8 for Llama "
                f"2 70B, and 1 for smaller models"
            )
        if values["n_rot"] != width // heads:
            raise ConfigError(
                f"{self._path}: n_rot is {values['n_rot']}, heads have {width // heads} numbers; "
                f"only whole heads are rotated"
            )
        self._num_heads, self._num_kv_heads = heads, heads // gqa
        self._infos = {self._named(info.name): info for info in container.tensors.values()}

    def config(self) -> Mapping[str, Any]:
        values = self._container.values
        gate = self._info("model.layers.0.mlp.gate_proj.weight")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": values["n_vocab"],
            "hidden_size": values["n_embd"],
            "intermediate_size": gate.shape[0],
            "num_hidden_layers": values["n_layer"],
            "num_attention_heads": self._num_heads,
            "num_key_value_heads": self._num_kv_heads,
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "max_position_embeddings": MAX_POSITIONS,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        }

    def tokenizer(self) -> EmbeddedTokenizer | None:
        """SentencePiece's tokenizer from the file's vocabulary."""
        raw = self._container.pieces
        if len(raw) <= EOS:
            raise CheckpointError(f"{self._path} has {len(raw)} tokens; <s> and </s> are missing")
        pieces, types = [], []
        for index, data in enumerate(raw):
            piece, kind = _piece(index, data)
            pieces.append(piece)
            types.append(int(kind))
        # Before scores were stored, tokens lay in the order of their scores.
        scores = self._container.scores or [-float(index) for index in range(len(raw))]
        try:
            tokenizer = sentencepiece_bpe(pieces, scores, types=types, unk_id=UNK)
        except CheckpointError as cause:
            raise CheckpointError(
                f"{self._path}: {cause}. Give a tok_model_id whose tokenizer to use"
            ) from cause
        return EmbeddedTokenizer(
            tokenizer=tokenizer,
            bos_token=pieces[BOS],
            eos_token=pieces[EOS],
            unk_token=pieces[UNK],
            eos_token_ids=(EOS,),
            add_bos=True,
            chat_template=None,
        )

    def names(self) -> Sequence[str]:
        return list(self._infos)

    def tensor(self, name: str) -> Tensor | PackedWeight:
        info = self._info(name)
        data = self._container.data(info)
        if info.type.name in _PLAIN:
            dtype = _PLAIN[info.type.name]
            value = self._container.file.tensor(dtype, info.shape, info.offset)
            order = self._order(name, info)
            return value if order is None else value[order]
        if info.type.update is not None:
            try:
                data = info.type.update(data.view(-1, info.type.nbytes)).flatten()
            except ValueError as cause:
                raise CheckpointError(f"{self._path}: tensor {info.name!r}: {cause}") from cause
        order = self._order(name, info)
        if order is not None:
            data = data.view(info.shape[0], -1)[order].flatten()
        quantizer: Quantizer = self._plugins.resolve(self._plugins.get("quantizers", "gguf"))()
        return quantizer.deserialize({"data": data, "dtype": info.type.number, "shape": info.shape})

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self._infos.values())

    def close(self) -> None:
        self._infos = {}

    def _info(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise CheckpointError(f"{self._path} holds no tensor for {name}")
        return self._infos[name]

    def _named(self, name: str) -> str:
        if name in _GLOBAL:
            return _GLOBAL[name]
        found = _LAYER.fullmatch(name)
        if found is None or found[2] not in _IN_LAYER:
            raise CheckpointError(f"{self._path}: tensor {name!r} belongs to no llama model")
        return f"model.layers.{int(found[1])}.{_IN_LAYER[found[2]]}.weight"

    def _order(self, name: str, info: TensorInfo) -> Tensor | None:
        """Rows of q and k from neighbours that are rotated together to halves that are."""
        if name.endswith("q_proj.weight"):
            heads = self._num_heads
        elif name.endswith("k_proj.weight"):
            heads = self._num_kv_heads
        else:
            return None
        rows = info.shape[0]
        if rows % (2 * heads):
            raise CheckpointError(
                f"{self._path}: tensor {info.name!r} has {rows} rows, which do not divide into "
                f"{heads} heads; gqa may be wrong"
            )
        return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _piece(index: int, data: bytes) -> tuple[str, PieceType]:
    """A token as SentencePiece has it. Converters wrote bytes as themselves, control tokens as
    nothing, and spaces as spaces."""
    if index in (UNK, BOS, EOS):
        kind = PieceType.UNKNOWN if index == UNK else PieceType.CONTROL
        return ("<unk>", "<s>", "</s>")[index], kind
    if FIRST_BYTE <= index < FIRST_BYTE + 256 and data == bytes([index - FIRST_BYTE]):
        return f"<0x{index - FIRST_BYTE:02X}>", PieceType.BYTE
    # What is no text can never be typed; its place is kept.
    text = data.decode("utf-8", errors="replace").replace(" ", "▁") or f"<unused{index}>"
    if "\ufffd" in text:
        return f"<unused{index}>", PieceType.UNUSED
    return text, PieceType.NORMAL if data else PieceType.UNUSED

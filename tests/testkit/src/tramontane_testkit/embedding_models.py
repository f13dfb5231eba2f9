"""Tiny random embedding models on disk, as sentence-transformers writes them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from tramontane_testkit.gguf_files import gguf_of
from tramontane_testkit.models import BOS, EOS, hf_model, save_hf

GEMMA = {
    "model_class": "Gemma3TextModel",
    "use_bidirectional_attention": True,
    "sliding_window": 12,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
}
QWEN = {"model_class": "Qwen3Model", "head_dim": 12}
NORMALIZE: tuple[str, dict[str, Any]] = ("Normalize", {})
MEAN = ("Pooling", {"pooling_mode": "mean"})
LAST = ("Pooling", {"pooling_mode": "lasttoken"})

Modules = tuple[tuple[str, dict[str, Any]], ...]
"""Class of sentence-transformers and its arguments, for each module after the language model."""


def dense(width: int, out: int, **settings: Any) -> tuple[str, dict[str, Any]]:
    """A dense layer among `Modules`."""
    return ("Dense", {"in_features": width, "out_features": out, **settings})


def tiny_embedder(
    directory: Path, modules: Modules = (MEAN, NORMALIZE), seed: int = 0, **keys: Any
) -> Path:
    """A directory that both sentence-transformers and ``Which.Embedding`` load; the directory.

    Args:
        directory: an empty one to work in.
        modules: what follows the language model.
        seed: of the weights.
        keys: ``model_class`` of transformers, and config keys.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as st

    keys = {**keys}
    backbone = directory / "backbone"
    save_hf(hf_model(keys.pop("model_class"), seed, **keys), backbone)
    _mark_ends(backbone)
    torch.manual_seed(seed)
    model = st.Transformer(str(backbone), max_seq_length=keys.get("max_position_embeddings", 256))
    width = model.get_embedding_dimension()
    parts: list[Any] = [model]
    for name, settings in modules:
        defaults = {"embedding_dimension": width} if name == "Pooling" else {}
        parts.append(getattr(st, name)(**{**defaults, **settings}))
    whole = directory / "model"
    SentenceTransformer(modules=parts, device="cpu").save(str(whole), create_model_card=False)
    return whole


def _mark_ends(directory: Path) -> None:
    """The tokenizer puts special tokens around a text, as those of embedding models do."""
    path = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer.save(path)
    settings = directory / "tokenizer_config.json"
    data = json.loads(settings.read_text("utf-8"))
    # With a template, today's sentence-transformers would read every text as a chat message.
    del data["add_bos_token"], data["chat_template"]
    data["pad_token"] = "</s>"
    settings.write_text(json.dumps(data), encoding="utf-8")


def embedder_gguf(directory: Path, path: Path, architecture: str, pooling_type: int) -> Path:
    """A directory of `tiny_embedder` as one GGUF file in F32; the file."""
    tensors = {
        f"model.{name}": tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    for number in (2, 3):
        dense_file = directory / f"{number}_Dense" / "model.safetensors"
        if dense_file.is_file():
            tensors[f"dense_{number}_out.weight"] = load_file(dense_file)["linear.weight"]
    config = json.loads((directory / "config.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder)
        save_file(tensors, prepared / "model.safetensors")
        text = json.dumps({**config, "pooling_type": pooling_type})
        (prepared / "config.json").write_text(text, encoding="utf-8")
        return gguf_of(prepared, path, architecture)

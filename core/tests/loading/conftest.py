"""A small architecture, checkpoints for it, and a plug-in that declares both."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attrs import frozen
from safetensors.torch import save_file
from torch import Tensor, nn

from tramontane.cache import FullAttention
from tramontane.hooks import (
    ArchitectureSpec,
    CheckpointSpec,
    PluginManager,
    QuantizerSpec,
    hookimpl,
)
from tramontane.nn import read
from tramontane.protocols import CheckpointView, PackedWeight, Tie

HIDDEN, FFN, VOCAB, LAYERS = 16, 24, 40, 2


@frozen(kw_only=True)
class TinyConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    max_position_embeddings: int = 64
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, data):
        return read(cls, data)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class Tiny(nn.Module):
    Config = TinyConfig
    WEIGHTS = (Tie("model.embed_tokens.weight", "lm_head.weight"),)

    def __init__(self, config):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @staticmethod
    def cache_specs(config):
        return [FullAttention(2, 8)] * config.num_hidden_layers


class RowPacked(PackedWeight):
    """int8 codes with one scale a row: the simplest packed format there is."""

    format = "test.row8"

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.codes, self.scales = codes, scales
        self.shape = tuple(codes.shape)

    @classmethod
    def pack(cls, weight: Tensor) -> RowPacked:
        scales = weight.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        return cls((weight / scales).round().to(torch.int8), scales)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self):
        return self.codes.device

    def dequantize(self, dtype=torch.float32):
        return (self.codes * self.scales).to(dtype)

    def rows(self, start, stop):
        return RowPacked(self.codes[start:stop], self.scales[start:stop])

    def gather(self, index, dtype=torch.float32):
        return (self.codes[index] * self.scales[index]).to(dtype)

    def to(self, device):
        return self

    @classmethod
    def concat(cls, parts):
        return cls(torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts]))


class Doubled:
    """A "quantizer" whose checkpoints hold every weight times ``factor``."""

    def read_checkpoint(self, checkpoint, settings):
        class View(CheckpointView):
            def tensor(self, name):
                return self.inner.tensor(name) / settings["factor"]

        return View(checkpoint)


class MemoryCheckpoint:
    """A checkpoint that lives in a dictionary."""

    def __init__(self, tensors: dict[str, Any], config=None, tokenizer=None) -> None:
        self.tensors, self._config, self._tokenizer = tensors, config, tokenizer
        self.released: list[str] = []

    def config(self):
        return self._config

    def tokenizer(self):
        return self._tokenizer

    def names(self):
        return list(self.tensors)

    def tensor(self, name):
        return self.tensors[name]

    def release(self, name):
        self.released.append(name)

    @property
    def nbytes(self):
        return sum(t.nbytes for t in self.tensors.values())

    def close(self):
        pass


def tiny_config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["TinyForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "eos_token_id": 2,
        **changes,
    }


def tiny_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN),
        "lm_head.weight": torch.randn(VOCAB, HIDDEN),
    }
    for i in range(LAYERS):
        tensors |= {
            f"model.layers.{i}.norm.weight": torch.randn(HIDDEN),
            f"model.layers.{i}.up_proj.weight": torch.randn(FFN, HIDDEN),
            f"model.layers.{i}.up_proj.bias": torch.randn(FFN),
            f"model.layers.{i}.down_proj.weight": torch.randn(HIDDEN, FFN),
        }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 3}
    vocab |= {f"w{i}": i for i in range(4, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A complete model directory."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(tiny_config()))
    save_file(tiny_tensors(), directory / "model.safetensors")
    write_tokenizer(directory)
    return directory


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> PluginManager:
    """Core's own plug-ins and one that declares `Tiny`."""
    module = ModuleType("tiny_architecture")
    module.Tiny = Tiny
    module.VisionTiny = Tiny
    module.PackedFormat = PackedFormat
    module.Doubled = Doubled
    monkeypatch.setitem(sys.modules, "tiny_architecture", module)

    class Plugin:
        @hookimpl
        def tramontane_architectures(self):
            yield ArchitectureSpec(
                name="Tiny", target="tiny_architecture:Tiny", hf_names=("TinyForCausalLM",)
            )
            yield ArchitectureSpec(
                name="TinyVision", target="tiny_architecture:VisionTiny", kind="vision"
            )

        @hookimpl
        def tramontane_checkpoint_formats(self):
            yield CheckpointSpec(
                name="packed", target="tiny_architecture:PackedFormat", suffixes=(".packed",)
            )

        @hookimpl
        def tramontane_quantizers(self):
            yield QuantizerSpec(
                name="doubled", target="tiny_architecture:Doubled", hf_methods=("Doubled",)
            )

    return PluginManager([Plugin()], discover=False)


class PackedFormat:
    """``*.packed``: a safetensors file whose matrices are packed when read, and which carries a
    configuration and a tokenizer, as GGUF files do."""

    def open(self, files):
        from safetensors.torch import load_file
        from tokenizers import Tokenizer, models, pre_tokenizers

        from tramontane.protocols import EmbeddedTokenizer

        tensors = {
            name: RowPacked.pack(tensor) if tensor.dim() == 2 else tensor
            for name, tensor in load_file(files[0]).items()
        }
        vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"g{i}": i for i in range(3, VOCAB)}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        embedded = EmbeddedTokenizer(
            tokenizer=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            eos_token_ids=(2, 7),
            add_bos=True,
            chat_template="{{ messages[0].content }} from the file",
        )
        return MemoryCheckpoint(tensors, tiny_config(), embedded)

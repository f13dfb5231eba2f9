"""A model that says what it is told to, loaded and run like any other.

It stands in for a trained one where a test is about everything around the forward: template,
tokenizer, special tokens, how the answer is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from attrs import frozen
from safetensors.torch import save_file
from torch import Tensor, nn

from tramontane import Runner, Which
from tramontane.cache import FullAttention
from tramontane.hooks import ArchitectureSpec, hookimpl
from tramontane.protocols import CacheSpec, ForwardBatch, LayerCache, WeightRule
from tramontane_testkit.models import EOS, byte_tokenizer


@frozen
class _Config:
    vocab_size: int
    hidden_size: int = 1
    num_hidden_layers: int = 1
    max_position_embeddings: int = 1 << 16

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _Config:
        return cls(data["vocab_size"])


class ScriptedModel(nn.Module):
    """Says ``script`` token by token, whatever it is asked, then its end of sequence; one request
    at a time."""

    script: ClassVar[list[int]] = []

    Config: ClassVar[type[Any]] = _Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = ()
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: _Config) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    @staticmethod
    def cache_specs(config: Any) -> Sequence[CacheSpec]:
        return [FullAttention(1, 2)]

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        return torch.zeros(batch.num_tokens, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        out = self.bias.repeat(len(hidden), 1)  # [N, vocab]
        for row in out:
            row[self.script.pop(0) if self.script else EOS] = 100.0
        return out


class ScriptedPlugin:
    """Declares `ScriptedModel`; to be given to a `Runner`."""

    __name__ = "scripted"

    @hookimpl
    def tramontane_architectures(self) -> Iterable[ArchitectureSpec]:
        target = f"{ScriptedModel.__module__}:{ScriptedModel.__name__}"
        return (ArchitectureSpec(name="Scripted", target=target),)


@contextmanager
def scripted_runner(
    directory: Path, template: str, special_tokens: Sequence[str] = (), **options: Any
) -> Iterator[Runner]:
    """A runner whose model is scripted.

    Args:
        directory: where to put the model.
        template: its chat template.
        special_tokens: what its tokenizer has beyond bytes and those of `byte_tokenizer`.
        options: for the `Runner`.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(list(special_tokens))
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    config = {"architectures": ["Scripted"], "vocab_size": vocab_size}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    save_file({"bias": torch.zeros(vocab_size)}, directory / "model.safetensors")
    which = Which.Plain(model_id=str(directory), dtype="f32")
    with Runner(which=which, plugins=[ScriptedPlugin()], **options) as runner:
        yield runner


def let_say(runner: Runner, *turns: str) -> None:
    """What the model will say from now on; a turn ends with a token that ends it, or is cut off
    by the request."""
    ScriptedModel.script = [
        token_id
        for turn in turns
        for token_id in runner.tokenize_text(turn, add_special_tokens=False)
    ]

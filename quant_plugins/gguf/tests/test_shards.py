"""Models in several files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols import Checkpoint
from tramontane_gguf.checkpoint import GgufFormat

Writer = Callable[..., Path]
Finder = Callable[..., Path]
Sharder = Callable[..., list[Path]]


def opened(*paths: Path) -> Checkpoint:
    return GgufFormat().open(list(paths))


@pytest.fixture
def shards(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> Sharder:
    """Writes a model in several files and gives their paths."""

    def build(count: int = 3, **changes: Any) -> list[Path]:
        """A model in ``count`` files; ``changes`` override split keys of the last one."""
        paths = []
        for number in range(count):
            keys: dict[str, Any] = {
                "split.no": number, "split.count": count, "split.tensors.count": count,
            }  # fmt: skip
            if number == count - 1:
                keys |= changes
            name = "token_embd.weight" if number == 0 else f"blk.{number - 1}.attn_v.weight"
            paths.append(
                write(
                    tmp_path / f"m-{number + 1:05d}-of-{count:05d}.gguf",
                    "llama",
                    llama if number == 0 else {},
                    {name: np.full((4, 64), number, np.float32)},
                    **keys,
                )
            )
        return paths

    return build


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
]


def test_shards_are_one_model_in_any_order(shards: Sharder) -> None:
    paths = shards()
    for given in (paths, paths[::-1], paths[:1], paths[2:], [*paths, paths[0]]):
        checkpoint = opened(*given)
        assert checkpoint.names() == NAMES
        assert checkpoint.config()["hidden_size"] == 64
        last = checkpoint.tensor(NAMES[2])
        assert isinstance(last, Tensor)
        assert last.unique().tolist() == [2.0]


def test_shards_that_do_not_belong_together(tmp_path: Path, shards: Sharder) -> None:
    paths = shards()
    with pytest.raises(CheckpointError, match=r"set of 3 .split.count., but 2 files"):
        opened(*paths[:2])
    paths[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(CheckpointError, match=r"missing beside it: m-00002-of-00003.gguf"):
        opened(paths[0])
    alone = tmp_path / "alone.gguf"
    paths[0].rename(alone)
    with pytest.raises(CheckpointError, match=r"set of 3 .split.count., but 1 files"):
        opened(alone)
    with pytest.raises(CheckpointError, match="no GGUF file"):
        opened()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.count": 4}, "set of 4 .split.count., but 3 files"),
        ({"split.no": 1}, "are both shard 1"),
        ({"split.no": 7}, "split.no is 7, of 3"),
        ({"split.count": "3"}, "split.count must be a whole number"),
    ],
)
def test_shards_numbered_wrongly(changes: dict[str, Any], message: str, shards: Sharder) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(*shards(**changes))


def test_shards_with_tensors_missing_or_twice(write: Writer, shards: Sharder) -> None:
    paths = shards()
    write(paths[2], "llama", {}, {}, **{"split.no": 2, "split.count": 3})
    with pytest.raises(CheckpointError, match="hold 2 tensors together, not the 3"):
        opened(*paths)
    twice = {"blk.0.attn_v.weight": np.zeros((4, 64), np.float32)}
    write(paths[2], "llama", {}, twice, **{"split.no": 2, "split.count": 3})
    with pytest.raises(CheckpointError, match=r"attn_v.weight is in both"):
        opened(*paths)

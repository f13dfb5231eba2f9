"""Block types of legacy files, and what turns those of ggjt 1 and 2 into today's.

Until ggjt 2 scales were 32-bit floats (16-bit ones in Q5_0 and Q5_1); until ggjt 1 a byte held two
neighbours, since then numbers that are 16 apart (llama.cpp, pull requests 1405 and 1508).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Tensor


@frozen
class BlockType:
    """One tensor type as files of one version have it.

    Attributes:
        number: its number, which never changed.
        name: lower-case ggml name.
        size: numbers of a block.
        nbytes: bytes of a block.
        update: [N, nbytes] uint8 to today's blocks; None where they are today's.
    """

    number: int
    name: str
    size: int
    nbytes: int
    update: Callable[[Tensor], Tensor] | None = None


def block_types(version: int) -> Mapping[int, BlockType]:
    """Types by number.

    Args:
        version: of ggjt; earlier containers count as 1.
    """
    plain = [BlockType(0, "f32", 1, 4), BlockType(1, "f16", 1, 2)]
    if version >= 3:
        rows = [*plain, *_TODAY]
    elif version == 2:
        rows = [
            *plain,
            BlockType(2, "q4_0", 32, 20, lambda b: _halved(b, 1)),
            BlockType(3, "q4_1", 32, 24, lambda b: _halved(b, 2)),
            BlockType(6, "q5_0", 32, 22),
            BlockType(7, "q5_1", 32, 24),
            BlockType(8, "q8_0", 32, 36, lambda b: _halved(b, 1)),
        ]
    else:
        rows = [
            *plain,
            BlockType(2, "q4_0", 32, 20, lambda b: _spread(_halved(b, 1), 2)),
            BlockType(3, "q4_1", 32, 24, lambda b: _spread(_halved(b, 2), 4)),
            BlockType(6, "q5_0", 32, 22, lambda b: _spread(b, 6)),
            BlockType(7, "q5_1", 32, 24, lambda b: _spread(b, 8)),
            BlockType(8, "q8_0", 32, 36, lambda b: _halved(b, 1)),
        ]
    return {row.number: row for row in rows}


_TODAY = (
    BlockType(2, "q4_0", 32, 18),
    BlockType(3, "q4_1", 32, 20),
    BlockType(6, "q5_0", 32, 22),
    BlockType(7, "q5_1", 32, 24),
    BlockType(8, "q8_0", 32, 34),
    BlockType(10, "q2_k", 256, 84),
    BlockType(11, "q3_k", 256, 110),
    BlockType(12, "q4_k", 256, 144),
    BlockType(13, "q5_k", 256, 176),
    BlockType(14, "q6_k", 256, 210),
)


def _halved(blocks: Tensor, count: int) -> Tensor:
    """The first ``count`` 32-bit floats of each block as 16-bit ones.

    Raises:
        ValueError: one of them is too large.
    """
    scales = blocks[:, : 4 * count].contiguous().view(torch.float32)
    short = scales.half()
    if bool((short.isinf() & scales.isfinite()).any()):
        raise ValueError("a scale is larger than a 16-bit float can be")
    return torch.cat((short.view(torch.uint8), blocks[:, 4 * count :]), -1)


def _spread(blocks: Tensor, start: int) -> Tensor:
    """Nibbles from byte ``start``: from two neighbours a byte to two that are 16 apart."""
    pairs = blocks[:, start:]
    codes = torch.stack((pairs & 0xF, pairs >> 4), -1).flatten(1)  # [N, 32], in order
    return torch.cat((blocks[:, :start], codes[:, :16] | codes[:, 16:] << 4), -1)

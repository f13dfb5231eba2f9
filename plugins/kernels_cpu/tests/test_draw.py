"""Native draws and penalties, and what the shared contract leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tramontane.kernels import reference
from tramontane.sampling import SamplingParams
from tramontane_kernels_cpu.draw import draw, penalize
from tramontane_kernels_cpu.library import native, why_not
from tramontane_testkit.drawing_kernels import LAST, DrawContract, PenalizeContract, logits_of

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))


class TestDraw(DrawContract):
    kernel = staticmethod(draw)


class TestPenalize(PenalizeContract):
    kernel = staticmethod(penalize)


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: Any) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("num_threads")
def test_threads_change_nothing() -> None:
    logits = logits_of(19, 5003, 2)  # more rows than are held at once
    kinds = [{}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 900, "top_p": 0.99}]
    params: list[Any] = [
        SamplingParams(temperature=0.5 + 0.1 * row, **kinds[row % 5])  # type: ignore[arg-type]
        for row in range(19)
    ]
    uniforms = torch.rand(19, generator=torch.Generator().manual_seed(3)).tolist()
    assert draw(logits, params, uniforms) == reference.draw(logits, params, uniforms)


@pytest.mark.parametrize("columns", [12, 300, 6000])
def test_of_equal_tokens_the_first_stay(columns: int) -> None:
    logits = torch.full((1, columns), 0.25).expand(3, -1)
    uniforms = [0.0, 0.5, LAST]
    third = [SamplingParams(temperature=1.0, top_k=3)] * 3
    assert draw(logits, third, uniforms) == [0, 1, 2]
    half = [SamplingParams(temperature=1.0, top_p=0.5)] * 3
    assert draw(logits, half, uniforms) == [0, columns // 4, columns // 2 - 1]
    everything = [SamplingParams(temperature=1.0)] * 3
    assert draw(logits, everything, uniforms) == [0, columns // 2, columns - 1]


def test_rows_of_a_wider_tensor() -> None:
    wide = logits_of(4, 300, 5)
    params: list[Any] = [SamplingParams(temperature=1.0, top_k=5)] * 4
    uniforms = [0.1, 0.4, 0.6, 0.8]
    part = wide[:, 30:130]
    assert draw(part, params, uniforms) == draw(part.clone(), params, uniforms)
    assert draw(wide.T.contiguous().T, params, uniforms) == draw(wide, params, uniforms)

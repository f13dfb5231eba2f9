from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from tramontane.kernels import reference
from tramontane_testkit.drawing_kernels import DrawContract, PenalizeContract

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class TestDraw(DrawContract):
    kernel = staticmethod(reference.draw)


class TestPenalize(PenalizeContract):
    kernel = staticmethod(reference.penalize)


@pytest.mark.gpu
@on_cuda
class TestDrawOnCuda(TestDraw):
    device: ClassVar = "cuda"


@pytest.mark.gpu
@on_cuda
class TestPenalizeOnCuda(TestPenalize):
    device: ClassVar = "cuda"

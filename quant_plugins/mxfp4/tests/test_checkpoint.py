"""Checkpoints whose weights come packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tramontane.errors import CheckpointError
from tramontane.loading.tensors import SafetensorsFormat
from tramontane.protocols import Checkpoint
from tramontane_mxfp4.quantizer import Mxfp4Quantizer
from tramontane_mxfp4.weight import Mxfp4Weight

CODES = torch.arange(2 * 4 * 3 * 16).to(torch.uint8).view(2, 4, 3, 16)
SCALES = torch.full((2, 4, 3), 127, dtype=torch.uint8)
GOOD = {"e.up_blocks": CODES, "e.up_scales": SCALES, "norm.weight": torch.ones(4)}


def opened(directory: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(tensors, directory / "model.safetensors")
    inner = SafetensorsFormat().open([directory / "model.safetensors"])
    return Mxfp4Quantizer().read_checkpoint(inner, {"quant_method": "mxfp4"})


def test_two_stored_tensors_are_one_weight(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, GOOD)
    assert sorted(checkpoint.names()) == ["e.up", "norm.weight"]
    weight = checkpoint.tensor("e.up")
    assert isinstance(weight, Mxfp4Weight)
    assert weight.shape == (2, 4, 96)
    again = checkpoint.tensor("e.up")
    assert weight.codes.data_ptr() == again.codes.data_ptr()  # a view of the file, no copy
    assert torch.equal(weight.codes, CODES)
    assert torch.equal(checkpoint.tensor("norm.weight"), GOOD["norm.weight"])
    assert checkpoint.nbytes == weight.nbytes + 16


def test_pages_may_be_released_before_and_after_closing(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, GOOD)
    weight = checkpoint.tensor("e.up")
    weight.expert(1).release()
    checkpoint.release("norm.weight")
    checkpoint.close()
    weight.release()
    assert torch.equal(weight.codes, CODES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"e.up_scales": None}, "has 'e.up_blocks' but not 'e.up_scales'"),
        ({"e.up_blocks": None}, "has 'e.up_scales' but not 'e.up_blocks'"),
        ({"e.up": torch.ones(1)}, "has 'e.up' both packed and plain"),
        ({"e.up_scales": SCALES[:, :2].clone()}, r"e\.up: codes of shape .*\[2, 2, 3\] are not"),
        ({"e.up_blocks": CODES.float()}, r"e\.up: codes and scales are bytes"),
    ],
)
def test_damaged_weights_are_named(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {n: t for n, t in {**GOOD, **changes}.items() if t is not None}
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors).tensor("e.up")

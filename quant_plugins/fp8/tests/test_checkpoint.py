"""Checkpoints whose weights come packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.tensors import SafetensorsFormat
from tramontane.protocols import Checkpoint
from tramontane_fp8.quantizer import Fp8Quantizer
from tramontane_fp8.weight import Fp8Weight

E4M3 = torch.float8_e4m3fn
ONE = torch.ones(1)
CODES = (torch.arange(200 * 150) % 126).to(torch.uint8).view(200, 150).view(E4M3)
GRID = torch.tensor([[1.0, 2.0], [4.0, 0.5]])  # of 128 x 128


def opened(directory: Path, tensors: dict[str, Tensor], **settings: Any) -> Checkpoint:
    save_file({name: t.clone() for name, t in tensors.items()}, directory / "model.safetensors")
    inner = SafetensorsFormat().open([directory / "model.safetensors"])
    return Fp8Quantizer().read_checkpoint(inner, {"quant_method": "fp8", **settings})


def test_blocks_as_deepseek_stores_them(tmp_path: Path) -> None:
    tensors = {
        "a.weight": CODES,
        "a.weight_scale_inv": GRID,
        "norm.weight": torch.ones(4),
    }
    checkpoint = opened(tmp_path, tensors, fmt="e4m3", weight_block_size=[128, 128])
    assert sorted(checkpoint.names()) == ["a.weight", "norm.weight"]
    weight = checkpoint.tensor("a.weight")
    assert isinstance(weight, Fp8Weight)
    assert (weight.format, weight.shape) == ("fp8.block", (200, 150))
    again = checkpoint.tensor("a.weight")
    assert weight.codes.data_ptr() == again.codes.data_ptr()  # a view of the file, no copy
    spread = GRID.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :150]
    assert torch.equal(weight.dequantize(), CODES.float() * spread)
    assert torch.equal(checkpoint.tensor("norm.weight"), torch.ones(4))
    checkpoint.close()
    assert torch.equal(weight.dequantize(), CODES.float() * spread)


@pytest.mark.parametrize(
    ("scale", "kind", "factor"),
    [
        ({"a.weight_scale": torch.tensor(3.0)}, "fp8.tensor", 3.0),
        ({"a.weight_scale": torch.tensor([3.0]), "a.input_scale": ONE}, "fp8.tensor", 3.0),
        ({"a.weight_scale_inv": torch.tensor(0.5).bfloat16()}, "fp8.tensor", 0.5),
        ({"a.weight_scale": torch.arange(200.0)}, "fp8.channel", torch.arange(200.0)[:, None]),
        ({"a.weight_scale": torch.arange(200.0)[:, None]}, "fp8.channel",
         torch.arange(200.0)[:, None]),
        ({"a.weight_scale_inv": torch.tensor([[130]], dtype=torch.uint8)}, "fp8.tensor", 8.0),
        ({"a.weight_scale_inv": torch.tensor([[8.0]]).to(torch.float8_e8m0fnu)}, "fp8.tensor", 8.0),
    ],
)  # fmt: skip
def test_scales_by_tensor_and_channel(
    tmp_path: Path, scale: dict[str, Tensor], kind: str, factor: Any
) -> None:
    checkpoint = opened(tmp_path, {"a.weight": CODES, "a.k_scale": ONE, **scale})
    assert list(checkpoint.names()) == ["a.weight"]
    weight = checkpoint.tensor("a.weight")
    assert isinstance(weight, Fp8Weight)
    assert weight.format == kind
    assert torch.equal(weight.dequantize(), CODES.float() * factor)


def test_stacks_of_experts(tmp_path: Path) -> None:
    stack = torch.stack([CODES.view(torch.uint8)] * 3)
    grids = torch.rand(3, 2, 2)
    tensors = {
        "e.up": stack.view(E4M3),
        "e.up_scale_inv": grids,
        "e.down": stack.view(E4M3),
        "e.down_scale": grids[:, 0, 0],
    }
    checkpoint = opened(tmp_path, tensors)
    assert sorted(checkpoint.names()) == ["e.down", "e.up"]
    up, down = checkpoint.tensor("e.up"), checkpoint.tensor("e.down")
    assert isinstance(up, Fp8Weight)
    assert isinstance(down, Fp8Weight)
    spread = grids.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :200, :150]
    assert torch.equal(up.dequantize(), CODES.float() * spread)
    assert torch.equal(down.dequantize(), CODES.float() * grids[:, :1, :1])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight_scale_inv": GRID}, "has 'a.weight_scale_inv' but not 'a.weight'"),
        ({"a.weight": CODES}, "a.weight is stored in 8 bits without its scales"),
        ({"a.weight": CODES, "a.weight_scale_inv": GRID[:1]}, r"scales of shape \[1, 2\]"),
        ({"a.weight": CODES.float(), "a.weight_scale": ONE}, "a.weight: codes are float8"),
        ({"a.weight": CODES[0], "a.weight_scale": ONE}, "is no matrix"),
        ({"a.weight": CODES.float().to(torch.float8_e5m2), "a.weight_scale": ONE},
         "not float8_e5m2"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors).tensor("a.weight")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmt": "e5m2"}, "quantization_config.fmt is 'e5m2'"),
        ({"expert_dtype": "fp4"}, "quantization_config.expert_dtype is 'fp4'"),
        ({"weight_block_size": [128]}, r"weight_block_size is \[128\]; two counts"),
        ({"weight_block_size": [0, 128]}, r"weight_block_size is \[0, 128\]"),
    ],
)
def test_settings_that_are_not_covered_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, {"a": ONE}, **settings)

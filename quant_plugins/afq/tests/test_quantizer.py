"""AFQ against MLX, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tramontane.errors import CheckpointError, ConfigError
from tramontane_afq.quantizer import TYPES, AfqQuantizer

afq = AfqQuantizer()


@pytest.mark.parametrize("bits", TYPES.values())
def test_packs_and_decodes_as_mlx(bits):
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    torch.manual_seed(bits)
    weight = torch.randn(7, 192)
    weight[0, :64] = 0.25  # one value only
    weight[1] = 0
    weight[2, :64] = weight[2, :64].abs()
    words, scales, biases = mx.quantize(mx.array(weight.numpy()), group_size=64, bits=bits)
    parts = afq.serialize(afq.quantize(weight, f"AFQ{bits}"))
    assert torch.equal(parts["scales"], torch.from_numpy(np.array(scales)))
    assert torch.equal(parts["biases"], torch.from_numpy(np.array(biases)))
    theirs = torch.from_numpy(np.array(words))
    ours = {**parts, "weight": theirs}
    # Where a number lies halfway between two codes the two may round apart, by one.
    apart = (afq.deserialize(ours).dequantize() - afq.deserialize(parts).dequantize()).abs()
    assert float((apart > 0).float().mean()) < 0.01
    assert bool((apart <= 1.001 * parts["scales"].abs().repeat_interleave(64, -1)).all())
    decoded = mx.dequantize(words, scales, biases, group_size=64, bits=bits)
    torch.testing.assert_close(
        afq.deserialize(ours).dequantize(), torch.from_numpy(np.array(decoded))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_below_a_step(dtype):
    """Half a step but at the end that is not met exactly."""
    weight = torch.randn(4, 128).to(dtype)
    packed = afq.quantize(weight, "afq6")
    assert packed.scales.dtype is dtype
    step = packed.scales.float().abs().repeat_interleave(64, -1)
    error = (packed.dequantize() - weight.float()).abs()
    slack = 1e-6 if dtype is torch.float32 else 0.04 * 4
    assert bool((error <= step + slack).all())


def test_stacks_and_sizes():
    weight = torch.randn(3, 4, 64)
    packed = afq.quantize(weight, "afq4", importance=torch.ones(64))
    assert packed.shape == (3, 4, 64)
    assert torch.equal(packed.dequantize()[1], afq.quantize(weight[1], "afq4").dequantize())
    assert afq.packed_bytes((4, 64), "afq4") == 4 * 64 // 2 + 4 * 4
    assert afq.packed_bytes((4, 96), "afq4") is None


def test_what_is_refused():
    with pytest.raises(ConfigError, match="no type of afq"):
        afq.quantize(torch.randn(2, 64), "afq5")
    with pytest.raises(ConfigError, match="multiples of 64"):
        afq.quantize(torch.randn(2, 96), "afq4")
    with pytest.raises(ConfigError, match="not finite"):
        afq.quantize(torch.full((2, 64), torch.nan), "afq4")
    parts = afq.serialize(afq.quantize(torch.randn(2, 64), "afq4"))
    for changes in (
        {"weight": parts["weight"][:, :-1]},
        {"weight": parts["weight"].float()},
        {"bits": 3},
        {"bits": 0},
        {"group_size": 32},
        {"scales": parts["scales"][:1]},
        {"scales": parts["weight"]},
    ):
        with pytest.raises(CheckpointError):
            afq.deserialize({**parts, **changes})
    with pytest.raises(CheckpointError, match="biases"):
        afq.deserialize({k: v for k, v in parts.items() if k != "biases"})

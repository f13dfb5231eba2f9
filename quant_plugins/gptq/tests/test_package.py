"""What auto-gptq and autoawq compute from what they have packed.

Neither package imports with today's transformers, but each of these two modules of theirs does on
its own; they need torch alone.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

from .test_checkpoints import GROUP, awq_parts, check, models  # noqa: TID252

pytestmark = pytest.mark.peer


def module_of(package, path):
    """One file of an installed package."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    file = Path(found.submodule_search_locations[0], path)
    spec = importlib.util.spec_from_file_location(f"{package}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_means_what_auto_gptq_says(bits, tmp_path):
    package = module_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda_old.py")
    generator = torch.Generator().manual_seed(bits)

    def parts_of(shape):
        out, columns = shape
        grid = (out, columns // GROUP)
        scales = torch.rand(grid, generator=generator) * 0.01 + 0.01
        zeros = torch.randint(1, 1 << bits, grid, generator=generator).float()
        codes = torch.randint(0, 1 << bits, shape, generator=generator)
        spread = [t.repeat_interleave(GROUP, 1) for t in (scales, zeros)]
        linear = torch.nn.Linear(columns, out, bias=False)
        linear.weight.data = (codes - spread[1]) * spread[0]
        packed = package.QuantLinear(bits, GROUP, columns, out, False, weight_dtype=torch.float32)
        packed.pack(linear, scales, zeros, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meaning = packed(torch.eye(columns)).T
        state = packed.state_dict()
        parts = {name: state[name] for name in ("qweight", "qzeros", "scales", "g_idx")}
        return parts, meaning.detach().numpy()

    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}
    check(*models(tmp_path, settings, parts_of))


def test_awq_means_what_autoawq_says(tmp_path):
    package = module_of("awq", "utils/packing_utils.py")

    def parts_of(shape):
        parts, _ = awq_parts(shape)
        words = (torch.from_numpy(parts[name]) for name in ("qweight", "qzeros"))
        scales = torch.from_numpy(parts["scales"]).float()  # it would round to half floats
        meaning = package.dequantize_gemm(*words, scales, 4, GROUP)
        return parts, meaning.T.numpy()

    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}
    check(*models(tmp_path, settings, parts_of))

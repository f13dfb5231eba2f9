"""Peak memory while loading, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

LAYERS, WIDTH = 36, 1536  # 36 matrices of 9 MiB in float32

MEASURE = """
import json, sys, threading
from pathlib import Path
import torch
from torch import nn
from types import SimpleNamespace
from tramontane.loading.loader import build
from tramontane.loading.tensors import SafetensorsFormat

class Stack(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear({w}, {w}, bias=False) for _ in range({n}))

def resident(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024

torch.set_num_threads(1)
(torch.ones(64, 64) @ torch.ones(64, 64)).to(torch.bfloat16).sum()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
before = resident("VmRSS")
dtype = getattr(torch, sys.argv[2])
checkpoint = SafetensorsFormat().open([Path(sys.argv[1])])
model = build(Stack, SimpleNamespace(), checkpoint, dtype=dtype, device=torch.device("cpu"))
checkpoint.close()
# Touches every page and allocates nothing: a temporary of this size would stay with the allocator
# and be counted as the loader's.
total = sum(float(layer.weight.sum()) for layer in model.layers)
print(json.dumps({{
    "peak": resident("VmHWM") - before,
    "weights": sum(p.nbytes for p in model.parameters()),
    "sum": total,
}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_that_of_the_weights(tmp_path, dtype):
    torch.manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(LAYERS)}
    save_file(tensors, tmp_path / "m.safetensors")
    expected = sum(float(t.to(getattr(torch, dtype)).sum()) for t in tensors.values())
    script = MEASURE.format(w=WIDTH, n=LAYERS)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.safetensors"), dtype],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(run.stdout)
    assert found["sum"] == pytest.approx(expected, rel=1e-3)
    assert found["weights"] == LAYERS * WIDTH * WIDTH * getattr(torch, dtype).itemsize
    assert found["peak"] <= found["weights"] * 1.1, found

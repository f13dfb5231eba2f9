"""Peak memory while weights are packed on their way in, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tramontane_testkit.models import tiny_llama

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}

MEASURE = """
import json, sys
from pathlib import Path
import torch
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.protocols import InSituSettings

def resident(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024

def load(directory):
    settings = InSituSettings(type_name="Q4K")
    return load_text(LoadRequest(model_id=directory, dtype="bf16", in_situ=settings))

# Libraries, threads and kernels stay, whatever is loaded.
load(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
before = resident("VmRSS")
loaded = load(sys.argv[2])
print(json.dumps({"peak": resident("VmHWM") - before, "weights": loaded.weight_bytes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_is_that_of_the_packed_weights_and_one_layer(tmp_path: Path) -> None:
    small = tiny_llama(tmp_path / "small", **{**SIZES, "num_hidden_layers": 1})
    large = tiny_llama(tmp_path / "large", **SIZES)
    layer = 4 * (4 * SIZES["hidden_size"] ** 2 + 3 * SIZES["hidden_size"] * 2048)  # as float32
    plain = SIZES["num_hidden_layers"] * layer
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(run.stdout)
    assert found["weights"] < 0.16 * plain
    assert found["peak"] < found["weights"] + layer, found

"""What a model takes of memory is given back when it is unloaded, measured in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tramontane_testkit.gguf_files import gguf_of
from tramontane_testkit.models import tiny_llama

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SMALL = {"hidden_size": 64, "intermediate_size": 128}
MIB = 1 << 20
TIMES = 20

MEASURE = """
import json, sys
from pathlib import Path
from tramontane import ChatCompletionRequest, Runner, Which

def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024

which, small = (Which.from_dict(data) for data in json.loads(sys.argv[1]))
plain = ChatCompletionRequest(messages="Hi", max_tokens=4, ignore_eos=True)
regex = ChatCompletionRequest(messages="Hi", max_tokens=4, grammar="[a-z]+", grammar_type="regex")

def use(runner, name):
    for request in (plain, regex):
        runner.send_chat_completion_request(request, model_id=name)

# Another model of the kind first: torch, tokenizers, kernels and llguidance stay, whatever is
# unloaded.
with Runner(models={"small": small}, pa_ctxt_len=512) as runner:
    use(runner, "small")
    runner.unload_model("small")
    before = resident()
    runner.add_model("large", which, load=False)
    loaded, after = [], []
    for _ in range(int(sys.argv[2])):
        use(runner, "large")
        loaded.append(resident() - before)
        runner.unload_model("large")
        after.append(resident() - before)
print(json.dumps({"before": before, "loaded": loaded, "after": after}))
"""


def model(kind: str, folder: Path, sizes: dict[str, int]) -> dict[str, object]:
    directory = tiny_llama(folder / "model", **sizes)
    if kind == "safetensors":
        # In another type than the file's, so that weights are copied and not only mapped.
        return {"Plain": {"model_id": str(directory), "dtype": "bf16"}}
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    packed = {f"{name}.weight": "Q8_0" for name in names}
    gguf_of(directory, folder / "model.gguf", "llama", packed=packed)
    return {"GGUF": {"quantized_model_id": str(folder), "quantized_filename": "model.gguf"}}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_memory_comes_back_however_often_a_model_is_loaded(kind: str, tmp_path: Path) -> None:
    large = model(kind, tmp_path / "large", SIZES)
    small = model(kind, tmp_path / "small", SMALL)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([large, small]), str(TIMES)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(run.stdout)
    assert len(found["after"]) == TIMES
    # A model that stayed would be seen.
    assert min(found["loaded"]) > 25 * MIB, found
    assert max(found["after"]) < min(20 * MIB, 0.02 * found["before"]), found

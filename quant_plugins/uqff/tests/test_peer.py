"""mistral.rs itself: what it writes loads here, what is written here loads there, and both say the
same, token for token.

The model is trained and is asked what it knows, so that the likeliest token leads by far, and no
rounding of activations (mistral.rs rounds them to 8 bits for GGUF types) changes which one it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane import Runner, Which
from tramontane.kernels.dispatch import ENVIRONMENT
from tramontane_testkit.embedding_models import (
    GEMMA,
    LAST,
    MEAN,
    NORMALIZE,
    QWEN,
    dense,
    tiny_embedder,
)

PACKAGE = "mistralrs==0.9.5"
QUESTIONS = (
    *(f"What is the capital of {name}?" for name in ("France", "Japan", "Peru", "Norway", "Spain")),
    *(f"{city} is the capital of which country?" for city in ("Paris", "Rome", "Lima")),
    *(f"What is {sum_}?" for sum_ in ("17 plus 25", "40 plus 22", "58 plus 31", "90 plus 9")),
    "Count to ten.",
    "What day comes after Monday?",
)
LENGTH = 40
LEAD = 1.5
"""By how many nats, at least, each token of the unquantized answers leads."""

SCRIPT = """
import json, sys
import mistralrs
model, key, value, prompts, length = sys.argv[1:6]
which = mistralrs.Which.Plain(
    model_id=model, arch=mistralrs.Architecture.Llama, dtype=mistralrs.ModelDType.F32,
    **{key: value},
)
isq = {"in_situ_quant": sys.argv[6]} if len(sys.argv) > 6 else {}
runner = mistralrs.Runner(which=which, no_paged_attn=True, **isq)
said = []
for prompt in json.loads(prompts):
    request = mistralrs.CompletionRequest(
        prompt=prompt, model="default", max_tokens=int(length), temperature=0.0
    )
    said.append(runner.send_completion_request(request).choices[0].text)
print("\\n" + json.dumps(said))
"""

EMBEDDING_SCRIPT = """
import json, sys
import mistralrs
model, arch, key, value, text = sys.argv[1:6]
which = mistralrs.Which.Embedding(
    model_id=model, arch=getattr(mistralrs.EmbeddingArchitecture, arch),
    dtype=mistralrs.ModelDType.F32, **{key: value},
)
isq = {"in_situ_quant": sys.argv[6]} if len(sys.argv) > 6 else {}
runner = mistralrs.Runner(which=which, **isq)
found = runner.send_embedding_request(mistralrs.EmbeddingRequest(input=[text]))
print("\\n" + json.dumps(found[0]))
"""

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with mistral.rs and nothing else. TRAMONTANE_MISTRALRS_PYTHON names the
    interpreter of one that exists."""
    named = os.environ.get("TRAMONTANE_MISTRALRS_PYTHON")
    if named:
        return Path(named)
    home = tmp_path_factory.mktemp("mistralrs")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    interpreter = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [str(interpreter), "-m", "pip", "install", "-q", "--only-binary=:all:", PACKAGE]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be installed here: {done.stderr[-300:]}")
    return interpreter


def theirs(
    python: Path, directory: Path, key: str, value: str, *isq: str, length: int = LENGTH
) -> list[str]:
    """What mistral.rs answers."""
    arguments = [str(directory), key, value, json.dumps(prompts()), str(length), *isq]
    return list(run(python, SCRIPT, *arguments))


def run(python: Path, script: str, *arguments: str) -> Any:
    """The JSON that a script prints last."""
    # Isolated, so that no PYTHONPATH puts our own `mistralrs` in front of theirs.
    command = [str(python), "-I", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(runner: Runner) -> list[str]:
    """What the model answers here."""
    options = {"max_tokens": LENGTH, "temperature": 0.0}
    asked = [{"prompt": prompt, **options} for prompt in prompts()]
    return [runner.send_completion_request(request).choices[0].text for request in asked]


def prompts() -> list[str]:
    # mistral.rs puts the BOS token before a text as we do.
    return [f"<|user|>{question}<|end|><|assistant|>" for question in QUESTIONS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a head of its own: mistral.rs reads no head in place of a tied
    embedding."""
    package = pytest.importorskip("tramontane_demo_model")
    folder = tmp_path_factory.mktemp("models") / "demo"
    shutil.copytree(Path(package.__file__).parent / "model", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def test_the_answers_to_compare_are_sure(model: Path) -> None:
    options = {"max_tokens": LENGTH, "temperature": 0.0, "logprobs": True, "top_logprobs": 2}
    with Runner(Which.Plain(str(model), dtype="F32")) as runner:
        for prompt in prompts():
            choice = runner.send_completion_request({"prompt": prompt, **options}).choices[0]
            for token in choice.logprobs.content:
                first, second = token.top_logprobs
                assert first.logprob - second.logprob > LEAD, f"{prompt}: {choice.text}"


@pytest.mark.parametrize("kind", ["Q4K", "Q8_0", "AFQ4", "HQQ8", "FP8"])
def test_both_ways(kind: str, python: Path, model: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "theirs", tmp_path / "ours"
    theirs(python, model, "write_uqff", str(there / "x.uqff"), kind, length=1)
    which = Which.Plain(str(model), write_uqff=str(here / "x.uqff"), dtype="F32")
    Runner(which, in_situ_quant=kind).close()
    for directory in (there, here):
        said = theirs(python, directory, "from_uqff", "x-0.uqff")
        assert sum(map(len, said)) > 20 * len(said)
        with Runner(Which.Plain(str(directory), from_uqff="x-0.uqff", dtype="F32")) as runner:
            assert ours(runner) == said


@pytest.mark.parametrize("arch", ["EmbeddingGemma", "Qwen3Embedding"])
def test_embedding_models_both_ways(
    arch: str, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "reference")  # theirs do not round activations to 8 bits
    text = "A cold wind from the north"
    directory = embedder(tmp_path, arch)
    there, here = tmp_path / "theirs", tmp_path / "ours"
    run(
        python, EMBEDDING_SCRIPT, str(directory), arch, "write_uqff", str(there / "x.uqff"), text,
        "AFQ8",
    )  # fmt: skip
    which = Which.Embedding(str(directory), write_uqff=str(here / "x.uqff"), dtype="F32")
    Runner(which, in_situ_quant="AFQ8").close()
    for made in (there, here):
        given = (str(made), arch, "from_uqff", "x-0.uqff", text)
        expected = torch.tensor(run(python, EMBEDDING_SCRIPT, *given))
        with Runner(Which.Embedding(str(made), from_uqff="x-0.uqff", dtype="F32")) as runner:
            (found,) = runner.send_embedding_request({"input": [text]})
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=1e-4)


def embedder(folder: Path, arch: str) -> Path:
    """A random model with the keys that mistral.rs knows."""
    layer = dense(64, 96, bias=False, activation_function=torch.nn.Identity())
    modules, keys = {
        "EmbeddingGemma": ((MEAN, layer, NORMALIZE), GEMMA),
        "Qwen3Embedding": ((LAST, NORMALIZE), QWEN),
    }[arch]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "head_dim": 32}
    sizes |= {"sliding_window": 64}  # longer than the text
    directory = tiny_embedder(folder, modules, **{**keys, **sizes})
    path = directory / "config.json"
    config = json.loads(path.read_text()) | {
        "pad_token_id": 0, "rope_scaling": None, "rope_local_base_freq": 1e4,
        "rope_theta": 1e6 if arch == "EmbeddingGemma" else 1e4,
        "sliding_window_pattern": 2, "use_sliding_window": False, "max_window_layers": 4,
        "_sliding_window_pattern": 2,
    }  # fmt: skip
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "rope_parameters"}))
    pooling = directory / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text())
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens",
             "weightedmean_tokens", "lasttoken")  # fmt: skip
    wanted = "mean_tokens" if modules[0] is MEAN else "lasttoken"
    settings |= {f"pooling_mode_{mode}": mode == wanted for mode in modes}
    pooling.write_text(json.dumps(settings | {"word_embedding_dimension": 64}))
    return directory

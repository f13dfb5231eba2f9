"""mistral.rs itself: what it writes loads here, what is written here loads there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tramontane import Runner, Which
from tramontane_testkit.data import data_path
from tramontane_testkit.models import hf_model

from .conftest import WIDE  # noqa: TID252
from .test_mistralrs_files import follow  # noqa: TID252

PACKAGE = "mistralrs==0.9.5"
PROMPT = "Once upon a time, "
LENGTH = 40
ROUNDED_LENGTH = 16
"""Tokens to compare where both round: later ones tell more of the rounding than of the file."""

NEAR = 0.2
"""How far apart, in nats, two words may be where activations are rounded to 8 bits, there and
here each in its own way."""

SCRIPT = """
import json, sys
import mistralrs
model, key, value, prompt, length = sys.argv[1:6]
which = mistralrs.Which.Plain(
    model_id=model, arch=mistralrs.Architecture.Llama, dtype=mistralrs.ModelDType.F32,
    **{key: value},
)
isq = {"in_situ_quant": sys.argv[6]} if len(sys.argv) > 6 else {}
runner = mistralrs.Runner(which=which, no_paged_attn=True, **isq)
request = mistralrs.CompletionRequest(
    prompt=prompt, model="default", max_tokens=int(length), temperature=0.0
)
print("\\n" + json.dumps(runner.send_completion_request(request).choices[0].text))
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
) -> str:
    """What mistral.rs says."""
    arguments = [str(directory), key, value, PROMPT, str(length), *isq]
    done = subprocess.run(
        [str(python), "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text: str = json.loads(done.stdout.strip().splitlines()[-1])
    return text


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model, and a random one of 256 columns for k-quants with the same tokenizer."""
    source = data_path("models", "tinystories-656k")
    folder = tmp_path_factory.mktemp("models") / "stories"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in folder.iterdir():
        file.chmod(0o644)
    folder.chmod(0o755)
    tensors = load_file(source / "model.safetensors")
    # mistral.rs reads no head in place of a tied embedding.
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    wide = folder.with_name("wide")
    hf = hf_model("LlamaForCausalLM", vocab_size=config["vocab_size"], **WIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf.save_pretrained(wide)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(folder / name, wide / name)
    # mistral.rs wants the old key.
    own = {"rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | own))
    return {"stories": folder, "wide": wide}


def agree(directory: Path, files: str, said: str, *, exact: bool) -> None:
    """Read the file here and walk along what mistral.rs said."""
    # mistral.rs puts the BOS token before a text as we do.
    with Runner(Which.Plain(str(directory), from_uqff=files, dtype="F32")) as runner:
        gaps = follow(runner, PROMPT, said)
    assert len(gaps) <= (0 if exact else 4), gaps
    assert all(gap < NEAR for gap in gaps), gaps


@pytest.mark.parametrize("kind", ["Q4K", "Q8_0", "AFQ4", "HQQ8", "FP8"])
def test_both_ways(kind: str, python: Path, models: dict[str, Path], tmp_path: Path) -> None:
    model = models["wide" if kind == "Q4K" else "stories"]
    exact = not kind.startswith("Q")  # with those mistral.rs rounds activations to 8 bits
    length = LENGTH if exact else ROUNDED_LENGTH
    there = tmp_path / "theirs"
    theirs(python, model, "write_uqff", str(there / "x.uqff"), kind, length=1)
    said = theirs(python, there, "from_uqff", "x-0.uqff", length=length)
    agree(there, "x-0.uqff", said, exact=exact)
    here = tmp_path / "ours"
    which = Which.Plain(str(model), write_uqff=str(here / "x.uqff"), dtype="F32")
    Runner(which, in_situ_quant=kind).close()
    said = theirs(python, here, "from_uqff", "x-0.uqff", length=length)
    agree(here, "x-0.uqff", said, exact=exact)

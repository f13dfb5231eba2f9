"""An architecture of somebody else: packaged as a wheel, found in an environment of its own, and
equal to its reference."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import tokenizers
import torch

from tramontane import CompletionRequest, MissingPluginError, Runner, Which

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "tramontane-olmo"
PROMPT = "north wind"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def reference():
    """A tiny random OLMo in fp32."""
    transformers = pytest.importorskip("transformers")
    config = transformers.OlmoConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return transformers.OlmoForCausalLM(config).eval()


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory) -> Path:
    """That model as files, with a tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("olmo")
    reference.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def expected(reference, checkpoint) -> str:
    """The reference's greedy continuation."""
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    with torch.no_grad():
        for _ in range(NUM_TOKENS):
            logits = reference(ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return tokenizer.decode(ids[0, -NUM_TOKENS:].tolist())


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment that sees everything of ours, and the example's wheel besides."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    subprocess.run([*pip, *build, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == "tramontane_olmo-1.0.0-py3-none-any.whl"
    home = folder / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    own = subprocess.run(
        [home / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = ["install", "--no-deps", "--no-index", "--target", own, wheel]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    ours = sysconfig.get_path("purelib")
    (Path(own) / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return home / "bin" / "python"


ASK = """
import json, sys
from tramontane import CompletionRequest, Runner, Which, plugin_manager
(info,) = [i for i in plugin_manager().plugins() if i.distribution == "tramontane-olmo"]
folder, prompt, num_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Runner(which=Which.Plain(model_id=folder, dtype="f32")) as runner:
    request = CompletionRequest(prompt=prompt, max_tokens=num_tokens, temperature=0)
    answer = runner.send_completion_request(request).choices[0].text
print(json.dumps([info.version, info.provides["architectures"], answer]))
"""


def test_a_wheel_is_found_in_a_clean_environment_and_equals_its_reference(
    python, checkpoint, expected
):
    done = subprocess.run(
        [python, "-c", ASK, checkpoint, PROMPT, str(NUM_TOKENS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1.0.0", ["Olmo"], expected]


def test_without_the_wheel_the_error_names_the_architecture(checkpoint):
    with pytest.raises(MissingPluginError, match="OlmoForCausalLM"):
        Runner(which=Which.Plain(model_id=str(checkpoint)))


def test_the_same_model_runs_unpackaged(checkpoint, expected, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    from tramontane_olmo import plugin

    which = Which.Plain(model_id=str(checkpoint), dtype="f32")
    with Runner(which=which, plugins=[plugin]) as runner:
        request = CompletionRequest(prompt=PROMPT, max_tokens=NUM_TOKENS, temperature=0)
        assert runner.send_completion_request(request).choices[0].text == expected


def test_what_the_config_asks_beyond_the_arithmetic_is_refused(monkeypatch):
    from tramontane import ConfigError

    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    from tramontane_olmo.olmo import OlmoConfig

    with pytest.raises(ConfigError, match="clip_qkv"):
        OlmoConfig.from_dict({"clip_qkv": 8.0})

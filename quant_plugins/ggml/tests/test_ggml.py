"""Files from before GGUF: every container, every block, equal to the same weights in GGUF."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tramontane import Runner, Which
from tramontane.errors import CheckpointError, TramontaneError, ValidationError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane_ggml.checkpoint import GgmlFormat
from tramontane_testkit.data import data_path
from tramontane_testkit.ggml_files import legacy_names, write_ggml
from tramontane_testkit.models import tiny_llama

CONTAINERS = [("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 2), ("ggjt", 3)]
PIECES = [
    b" \xe2\x81\x87 ",
    b"",
    b"",
    *(bytes([b]) for b in range(256)),
    b" ",
    b"a",
    b" a",
    b"b",
    b"c",
]
SCORES = [0.0] * 259 + [-3.0, -4.0, -1.0, -5.0, -6.0]
SHAPES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": len(PIECES),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "llama", **SHAPES)


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., Path]:
    tensors = legacy_names(load_file(model / "model.safetensors"), 4, 2)

    def write(**options: Any) -> Path:
        chosen = {"num_heads": 4, "num_layers": 2, **options}
        return write_ggml(tmp_path / "model.bin", tensors, PIECES, SCORES, **chosen)

    return write


def load(path: Path, gqa: int = 2) -> Any:
    return load_text(
        LoadRequest(
            model_id=str(path.parent),
            files=[path.name],
            format="ggml",
            format_options={"gqa": gqa},
            dtype="F32",
        )
    )


@pytest.mark.parametrize(("container", "version"), CONTAINERS)
@pytest.mark.parametrize("kind", ["f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_weights_are_those_of_gguf(
    container: str, version: int, kind: str, make: Callable[..., Path], model: Path
) -> None:
    loaded = load(make(container=container, version=version, kind=kind))
    expected = load_file(model / "model.safetensors")
    number = gguf.GGMLQuantizationType[kind.upper()]
    for name, module in loaded.model.named_modules():
        value = expected.get(f"{name}.weight")
        if value is None:
            continue
        if value.ndim == 2:
            value = gguf.dequantize(gguf.quantize(value, number), number).astype(np.float32)
        packed = getattr(module, "packed", None)
        got = module.weight if packed is None else packed.dequantize()
        assert (packed is None) == (value.ndim == 1 or kind in ("f32", "f16"))
        assert torch.equal(got, torch.from_numpy(value)), name
    assert loaded.config.num_key_value_heads == 2
    assert loaded.tokenizer.encode("ab") == [1, 261, 262]
    assert loaded.tokenizer.decode([261, 262, 3 + 33]) == "ab!"
    assert loaded.eos_token_ids == {2}


def test_weights_are_packed_anew(make: Callable[..., Path]) -> None:
    path = make(kind="q5_1")
    which = Which.GGML(str(path.parent), path.name, gqa=2)
    with Runner(which, in_situ_quant="Q8_0") as runner:
        model = runner._models.peek(None).live_weights._model  # type: ignore[attr-defined]
        assert model.model.layers[0].mlp.down_proj.packed.format == "gguf.q8_0"
        assert runner.send_completion_request({"prompt": "ab", "max_tokens": 2}).choices


def test_k_quants_of_the_last_version(tmp_path: Path) -> None:
    directory = tiny_llama(
        tmp_path / "wide",
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
        vocab_size=len(PIECES),
    )
    tensors = legacy_names(load_file(directory / "model.safetensors"), 4, 2)
    # The gguf package does not encode these; random bytes have a meaning, too.
    path = write_ggml(
        tmp_path / "k.bin", tensors, PIECES, SCORES, num_heads=4,
        num_layers=2, kind="f32",
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    name = b"layers.0.feed_forward.w2.weight"
    at = data.index(name)
    struct.pack_into("<I", data, at - 12, gguf.GGMLQuantizationType.Q6_K)
    start = at + len(name) + -(at + len(name)) % 32
    nbytes = 256 * 256 // 256 * 210
    raw = np.random.default_rng(0).integers(0, 100, nbytes, np.uint8)
    # What follows keeps its alignment.
    tail = data[start + 256 * 256 * 4 :]
    body = data[:start] + raw.tobytes()
    path.write_bytes(body + bytes(-len(body) % 32 * 0) + tail)
    assert nbytes % 32 == 0
    packed = load(path).model.model.layers[0].mlp.down_proj.packed
    expected = gguf.dequantize(raw.reshape(256, -1), gguf.GGMLQuantizationType.Q6_K)
    assert torch.equal(packed.dequantize(), torch.from_numpy(expected))


def test_a_trained_model_says_the_same_in_either_file(tmp_path: Path) -> None:
    source = next(data_path("models", "stories260k").glob("*.gguf"))
    reader = gguf.GGUFReader(source)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    back = {
        "token_embd": "tok_embeddings", "output_norm": "norm", "output": "output",
        "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
        "attn_output": "attention.wo", "ffn_gate": "feed_forward.w1",
        "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
        "attn_norm": "attention_norm", "ffn_norm": "ffn_norm",
    }  # fmt: skip
    tensors = {}
    for tensor in reader.tensors:
        *layer, role, _ = tensor.name.split(".")
        prefix = f"layers.{layer[1]}." if layer else ""
        tensors[f"{prefix}{back[role]}.weight"] = np.array(tensor.data)
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    pieces = []
    for index, piece in enumerate(keys["tokenizer.ggml.tokens"]):
        plain = piece.replace("▁", " ").encode()
        pieces.append(bytes([index - 3]) if 3 <= index < 259 else plain)
    heads = int(keys["llama.attention.head_count"])
    path = write_ggml(
        tmp_path / "stories.bin", tensors, pieces, keys["tokenizer.ggml.scores"],
        num_heads=heads, num_layers=int(keys["llama.block_count"]), kind="f32",
    )  # fmt: skip
    request = {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.0}
    said = []
    gqa = heads // int(keys["llama.attention.head_count_kv"])
    for which in (
        Which.GGUF(str(source.parent), source.name),
        Which.GGML(str(tmp_path), path.name, gqa=gqa),
    ):
        with Runner(which) as runner:
            said.append(runner.send_completion_request(request).choices[0].text)
    assert said[0] == said[1]
    assert len(said[0]) > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:2], "too few|needs 4 bytes|begins"),
        (lambda d: b"ggla"[::-1] + d[4:], "LoRA"),
        (lambda d: b"GGUF" + d[4:], "Which.GGUF"),
        (lambda d: b"xxxx" + d[4:], "none of ggml, ggmf, ggjt"),
        (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "version 9"),
        (lambda d: d[:8] + struct.pack("<I", 2**31) + d[12:], "n_vocab"),
        (lambda d: d[:-5], "truncated"),
        (lambda d: d[:20] + struct.pack("<I", 5) + d[24:], "makes no heads"),
    ],
)
def test_damage_is_named(
    change: Callable[[bytes], bytes], message: str, make: Callable[..., Path]
) -> None:
    path = make()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "model.bin" in str(caught.value)


def test_settings_that_cannot_be_are_refused(make: Callable[..., Path]) -> None:
    path = make()
    with pytest.raises(ValidationError, match="gqa=3"):
        load(path, gqa=3)
    with pytest.raises(CheckpointError, match="k_proj"):
        load(path, gqa=1)
    with pytest.raises(ValidationError, match="one file"):
        GgmlFormat().open([path, path])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_whatever_do_more_than_be_refused(
    data: st.DataObject, make: Callable[..., Path]
) -> None:
    path = make(kind="q4_0", container="ggjt", version=1)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of what matters lies in the header and before the first tensors.
        at = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(raw) - 1)))
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(1, len(raw))))])
    with contextlib.suppress(TramontaneError):
        checkpoint = GgmlFormat().open([path], gqa=2)
        checkpoint.config()
        for name in checkpoint.names():
            checkpoint.tensor(name)
        checkpoint.tokenizer()

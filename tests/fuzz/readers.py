"""Each reader with valid files to damage, and a walk through all that a file can be asked."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from attrs import frozen
from safetensors.torch import save_file
from torch import Tensor

from tramontane.errors import TramontaneError
from tramontane.hooks import plugin_manager
from tramontane.loading.loader import load_text
from tramontane.loading.request import LoadRequest
from tramontane.loading.tensors import SafetensorsFormat
from tramontane.protocols import Checkpoint
from tramontane_isq.imatrix import Imatrix, read_imatrix, write_cimatrix, write_gguf
from tramontane_testkit.ggml_files import write_ggml
from tramontane_uqff.outgoing import _stored

MOST_READ = 1 << 26
"""Bytes of numbers that a walk de-quantizes at most."""


@frozen
class Sample:
    """A valid file.

    Attributes:
        name: for messages.
        file: what the damaged one is called.
        data: its bytes.
        header: how many of the first bytes describe, rather than are, numbers.
        beside: files that lie beside it.
        spots: where in the header values and their types stand, for formats whose numbers would
            seldom be hit otherwise.
    """

    name: str
    file: str
    data: bytes
    header: int
    beside: Mapping[str, bytes] = {}
    spots: Sequence[int] = ()


@frozen
class Reader:
    """What is fuzzed.

    Attributes:
        samples: makes the valid files, in an empty directory.
        read: reads a file to its end; raises nothing but TramontaneError.
    """

    samples: Callable[[Path], list[Sample]]
    read: Callable[[Path], None]


refusals: list[TramontaneError] = []
"""What parts of the last file were refused for; of a valid one, none."""


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """One part of a file may be refused while others are read."""
    try:
        yield
    except TramontaneError as cause:
        refusals.append(cause)


def walk(checkpoint: Checkpoint) -> None:
    """Everything a checkpoint can be asked."""
    with refused():
        checkpoint.config()
    with refused():
        embedded = checkpoint.tokenizer()
        if embedded is not None:
            ids = embedded.tokenizer.encode("ab  c\n1é").ids
            embedded.tokenizer.decode(ids)
    names: list[str] = []
    with refused():
        names = list(checkpoint.names())
    assert checkpoint.nbytes >= 0
    for name in names:
        with refused():
            weight = checkpoint.tensor(name)
            if not isinstance(weight, Tensor):
                weight = weight.dequantize()
            if weight.numel() and weight.nbytes < MOST_READ:
                weight.reshape(-1).view(torch.uint8).sum()
    checkpoint.close()


def opened(format_name: str, **options: Any) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        form = plugin_manager().resolve(plugin_manager().get("checkpoint_formats", format_name))()
        walk(form.open([path], **options))

    return read


# GGUF --------------------------------------------------------------------------------------------

_SPM = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
_BPE = ["a", "b", "c", "Ġ", "ab", "Ġa", "<s>", "</s>", "<|im_end|>"]
_LLAMA: dict[str, Any] = {
    "context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
    "attention.head_count": 2, "attention.head_count_kv": 1, "rope.freq_base": 10_000.0,
    "rope.dimension_count": 16, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
_LATENT = {
    "attention.kv_lora_rank": 8, "attention.q_lora_rank": 8, "attention.key_length": 16,
    "attention.value_length": 8, "attention.key_length_mla": 16, "attention.value_length_mla": 8,
    "leading_dense_block_count": 1, "expert_count": 2, "expert_used_count": 1,
    "expert_feed_forward_length": 32, "expert_shared_count": 1, "expert_weights_scale": 1.0,
    "expert_weights_norm": True, "expert_gating_func": 2, "rope.scaling.type": "yarn",
    "rope.scaling.factor": 2.0, "rope.scaling.yarn_log_multiplier": 0.1,
    "rope.scaling.original_context_length": 32,
}  # fmt: skip
_HYBRID = {
    "block_count": 2, "attention.head_count_kv": [0, 1], "ssm.conv_kernel": 4,
    "ssm.state_size": 8, "ssm.group_count": 1,
    "ssm.inner_size": 64, "ssm.time_step_rank": 4, "embedding_scale": 2.0, "residual_scale": 0.5,
    "logit_scale": 2.0, "attention.scale": 0.1, "expert_count": 2, "expert_used_count": 1,
    "expert_shared_feed_forward_length": 32, "rope.scaling.finetuned": False,
}  # fmt: skip


def _layer(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    shapes = {
        "token_embd.weight": (rows, 32), "output_norm.weight": (32,), "output.weight": (rows, 32),
        "blk.0.attn_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32), "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_norm.weight": (32,),
        "blk.0.ffn_gate.weight": (32, 32), "blk.0.ffn_up.weight": (32, 32),
        "blk.0.ffn_down.weight": (32, 32),
    }  # fmt: skip
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _write_gguf(
    path: Path,
    arch: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    vocabulary: str,
    packed: bool = False,
    zoo: bool = False,
) -> Sample:
    writer = gguf.GGUFWriter(str(path), arch)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}  # fmt: skip
    for key, value in keys.items():
        adders[type(value)](f"{arch}.{key}", value)
    tokens = _SPM if vocabulary == "llama" else _BPE
    writer.add_tokenizer_model(vocabulary)
    writer.add_token_list(tokens)
    if vocabulary == "llama":
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1, 1])
    else:
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["a b", "Ġ a"])
        writer.add_token_types([1] * 6 + [3] * 3)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_chat_template("{{ messages[0].content }}")
    for name, array in tensors.items():
        if packed and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    if zoo:
        rng = np.random.default_rng(2)
        for kind, (size, nbytes) in gguf.GGML_QUANT_SIZES.items():
            if size > 1:
                data = rng.integers(0, 256, (2, nbytes), np.uint8)
                writer.add_tensor(f"blk.0.{kind.name.lower()}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    reader = gguf.GGUFReader(path)
    header = min(int(t.data_offset) for t in reader.tensors)
    values = [
        field.offset + 8 + len(key) + 4
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    ]
    sizes = [t.field.offset + 8 + len(t.name) + 4 * i for t in reader.tensors for i in range(8)]
    # A value's type stands before it; an array's element type and length stand in its place.
    spots = (*values, *values, *(at - 4 for at in values), *(at + 4 for at in values), *sizes)
    return Sample(f"{arch}-{vocabulary}", path.name, data, header, spots=spots)


def gguf_samples(directory: Path) -> list[Sample]:
    rng = np.random.default_rng(1)
    path = directory / "model.gguf"
    small = {k: v for k, v in _layer(rng, len(_BPE)).items() if "ffn" not in k}
    long = {f"rope_factors_{kind}.weight": np.ones(8, np.float32) for kind in ("long", "short")}
    freqs = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    latent = {"token_embd.weight": small["token_embd.weight"],
              "blk.0.attn_k_b.weight": rng.standard_normal((2, 8, 8), np.float32),
              "blk.0.attn_v_b.weight": rng.standard_normal((2, 8, 8), np.float32)}  # fmt: skip
    mamba = {"token_embd.weight": small["token_embd.weight"],
             "blk.0.ssm_a": -rng.random((4, 1), np.float32),
             "blk.0.ssm_d": rng.random((4, 1), np.float32),
             "blk.0.ssm_conv1d.weight": rng.random((80, 4), np.float32),
             "blk.0.ssm_norm.weight": rng.random((1, 64), np.float32),
             "blk.1.attn_k.weight": small["blk.0.attn_k.weight"]}  # fmt: skip
    fused = {"token_embd.weight": small["token_embd.weight"],
             "blk.0.attn_qkv.weight": rng.standard_normal((64, 32), np.float32)}  # fmt: skip
    return [
        _write_gguf(path, "llama", _LLAMA, {**small, **freqs}, vocabulary="gpt2", zoo=True),
        _write_gguf(path, "llama", _LLAMA, small, vocabulary="llama", packed=True),
        _write_gguf(path, "deepseek2", {**_LLAMA, **_LATENT}, latent, vocabulary="gpt2"),
        _write_gguf(path, "granitehybrid", {**_LLAMA, **_HYBRID}, mamba, vocabulary="gpt2"),
        _write_gguf(path, "phi3", _LLAMA, {**fused, **long}, vocabulary="gpt2"),
        _write_gguf(path, "gemma3", _LLAMA, small, vocabulary="gpt2"),
    ]


def whole_samples(directory: Path) -> list[Sample]:
    """Models that load, so that what follows their configuration is built."""
    tensors = _layer(np.random.default_rng(3), len(_BPE))
    path = directory / "model.gguf"
    return [
        _write_gguf(path, "llama", _LLAMA, tensors, vocabulary="gpt2", packed=packed)
        for packed in (True, False)
    ]


def load_whole(path: Path) -> None:
    load_text(LoadRequest(model_id=str(path.parent), files=[path.name], format="gguf"))


# GGML --------------------------------------------------------------------------------------------


def ggml_samples(directory: Path) -> list[Sample]:
    rng = np.random.default_rng(4)
    pieces = [b" \xe2\x81\x87 ", b"", b"", *(bytes([byte]) for byte in range(256)), b"a", b"b"]
    shapes = {
        "tok_embeddings.weight": (261, 32), "norm.weight": (32,), "output.weight": (261, 32),
        "layers.0.attention.wq.weight": (32, 32), "layers.0.attention.wk.weight": (32, 32),
        "layers.0.feed_forward.w1.weight": (32, 32), "layers.0.attention_norm.weight": (32,),
    }  # fmt: skip
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    scores = [-float(index) for index in range(len(pieces))]
    path = directory / "model.bin"
    samples = []
    for container, version, kind in (
        ("ggml", 0, "f16"), ("ggmf", 1, "q4_0"), ("ggjt", 2, "q4_1"), ("ggjt", 3, "q5_0"),
    ):  # fmt: skip
        write_ggml(path, tensors, pieces, scores, num_heads=2, num_layers=1,
                   container=container, version=version, kind=kind)  # fmt: skip
        data = path.read_bytes()
        samples.append(Sample(f"{container}{version}", path.name, data, len(data)))
    return samples


# UQFF --------------------------------------------------------------------------------------------

_CONFIG = b'{"architectures": ["Gemma3TextModel"], "num_hidden_layers": 1}'


def _packed_weights() -> Iterator[tuple[str, Any]]:
    plugins = plugin_manager()
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(5))
    for quantizer, kind in (
        ("gguf", "q4k"), ("gguf", "q8_0"), ("hqq", "hqq4"), ("fp8", "fp8"), ("afq", "afq4"),
        ("f8q8", "f8q8"), ("mxfp4", "mxfp4"),
    ):  # fmt: skip
        yield kind, plugins.resolve(plugins.get("quantizers", quantizer))().quantize(weight, kind)
    yield "plain", weight


def uqff_samples(directory: Path) -> list[Sample]:
    residual = directory / "residual.safetensors"
    save_file({"model.norm.weight": torch.ones(32)}, residual)
    beside = {residual.name: residual.read_bytes(), "config.json": _CONFIG}
    entries: dict[str, Tensor] = {}
    for name, number in zip(("major", "minor", "patch"), (1, 2, 0), strict=True):
        entries[f"uqff.version.{name}"] = torch.tensor(number, dtype=torch.uint32)
    for key, value in _packed_weights():
        kind, parts, _ = _stored(key, value, plugin_manager())
        entries[f"{key}.weight.format"] = torch.tensor(kind.value, dtype=torch.uint8)
        for part, tensor in parts.items():
            entries[f"{key}.weight.{part}" if part else f"{key}.weight"] = tensor
    entries["plain.bias"] = torch.ones(4)
    samples = [_tensors_sample("generation 1", directory / "model.uqff", entries, beside)]
    blobs = {str(index): torch.frombuffer(bytearray(blob), dtype=torch.uint8)
             for index, blob in enumerate(_blobs())}  # fmt: skip
    first = _tensors_sample("generation 0", directory / "model.uqff", blobs, beside)
    return [*samples, Sample(first.name, first.file, first.data, len(first.data), beside)]


def _blobs() -> list[bytes]:
    """Seven layers of generation 0: ``u32 version, u8 kind``, then as each kind has it."""

    def tensor(code: int, shape: tuple[int, ...], data: bytes) -> bytes:
        return struct.pack(f"<III{len(shape)}I", len(data), code, len(shape), *shape) + data

    scale = struct.pack("<4f", *[0.5] * 4)
    q8_0 = struct.pack("<IBIBIIII", 0x200, 0, 136, 0, 8, 2, 4, 32) + bytes(range(136))
    plain = struct.pack("<IBB", 0x200, 1, 1) + tensor(6, (4, 2), bytes(32)) + tensor(6, (4,), scale)
    hqq = (
        struct.pack("<IBB", 0x200, 2, 0)
        + tensor(0, (4, 64), bytes(range(256)))
        + tensor(6, (4, 1), scale) + tensor(6, (4, 1), scale)
        + struct.pack("<IIIBIBIBB", 2, 4, 64, 8, 64, 1, 10, 0, 1)
    )  # fmt: skip
    fp8 = struct.pack("<IBB", 0x200, 3, 0) + tensor(9, (4, 32), bytes(128))
    fp8 += struct.pack("<fffI", 0.5, 1.0, 2.0, 5)
    afq = (
        struct.pack("<IBB", 0x200, 4, 0)
        + tensor(1, (4, 4), bytes(64)) + tensor(6, (4, 1), scale) + tensor(6, (4, 1), scale)
        + struct.pack("<BB", 4, 32)
    )  # fmt: skip
    return [q8_0, plain, hqq, fp8, afq, q8_0, plain]


# safetensors and importance matrices -------------------------------------------------------------


def _tensors_sample(
    name: str, path: Path, tensors: Mapping[str, Tensor], beside: Mapping[str, bytes]
) -> Sample:
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)
    data = path.read_bytes()
    return Sample(name, path.name, data, 8 + int.from_bytes(data[:8], "little"), beside)


def safetensors_samples(directory: Path) -> list[Sample]:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
              torch.float8_e4m3fn, torch.uint32)  # fmt: skip
    tensors = {f"layer.{i}": torch.ones(2, 3).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors |= {"empty": torch.ones(0, 4), "scalar": torch.tensor(1.0)}
    return [_tensors_sample("dtypes", directory / "model.safetensors", tensors, {})]


def read_safetensors(path: Path) -> None:
    walk(SafetensorsFormat().open([path]))


def imatrix_samples(directory: Path) -> list[Sample]:
    values = {"blk.0.attn_q": torch.rand(32), "blk.0.ffn_up_exps": torch.rand(2, 32)}
    samples = []

    def add(name: str, file: str) -> None:
        data = (directory / file).read_bytes()
        samples.append(Sample(name, file, data, len(data)))

    write_cimatrix(directory / "names.cimatrix", values)
    add("names", "names.cimatrix")
    given = Imatrix(values=values, datasets=("a.txt",), chunks=3)
    write_gguf(directory / "imatrix.gguf", given, plugin_manager())
    add("gguf", "imatrix.gguf")
    numbers = values["blk.0.attn_q"].numpy().tobytes()
    legacy = struct.pack("<i", 2)
    for name in (b"blk.0.attn_q.weight", b"blk.0.ffn_up.weight"):
        legacy += struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, 32) + numbers
    legacy += struct.pack("<ii", 3, 5) + b"a.txt"
    (directory / "legacy.dat").write_bytes(legacy)
    add("legacy", "legacy.dat")
    places = struct.pack("<Q", 3) + struct.pack("<QBQ", 0, 1, 32) + numbers
    places += struct.pack("<QB", 1, 0) + struct.pack("<QBQ", 2, 1, 32) + numbers
    (directory / "places.cimatrix").write_bytes(places)
    add("places", "places.cimatrix")
    return samples


def read_matrix(path: Path) -> None:
    read_imatrix(path, plugin_manager())


READERS: dict[str, Reader] = {
    "gguf": Reader(gguf_samples, opened("gguf")),
    "gguf-model": Reader(whole_samples, load_whole),
    "ggml": Reader(ggml_samples, opened("ggml", gqa=1)),
    "uqff": Reader(uqff_samples, opened("uqff")),
    "imatrix": Reader(imatrix_samples, read_matrix),
    "safetensors": Reader(safetensors_samples, read_safetensors),
}

"""Tokenizers written to GGUF cut text as before: here, and in llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from tramontane.errors import ConfigError
from tramontane.text.tokenizer import Tokenizer
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_gguf.export_tokenizer import tokenizer_keys
from tramontane_testkit.models import (
    BOS,
    EOS,
    IM_END,
    IM_START,
    VOCAB_SIZE,
    byte_tokenizer,
    save_tokenizer,
)

Finder = Callable[..., Path]
VECTORS = ("deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-spm", "phi-3")
FAMILIES = {"phi-3": "phi3"}
"""Vocabulary → family, where that is not llama."""
PLAIN = [
    "Hello world, it's 2024! naïve café 漢字 🙂", "  two  spaces\tand\n\nlines\r\n", "x" * 40,
    "def f(x):\n    return [x ** 2 for _ in range(10)]  # ok", "ﬁ ½ Ⅷ a̐éö̲ \u200d\u3000",
]  # fmt: skip
CORPUS = [
    "The quick brown fox jumps over the lazy dog and runs home again.",
    "A cold wind from the north, over the mountains and down to the sea.",
    "She said: 'I'll be there at 10 or 11'; nobody believed her, of course!",
    "def main(): return [value for value in range(100) if value % 7 == 0]",
    "naïve café über straße 漢字 かな кириллица",
] * 8  # fmt: skip


def texts_of(data: Finder, name: str) -> list[str]:
    path = data("tokenizers", "ggml-vocab", f"ggml-vocab-{name}.gguf.inp")
    return path.read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]


def from_vector(data: Finder, name: str) -> Tokenizer:
    file = data("tokenizers", "ggml-vocab", f"ggml-vocab-{name}.gguf")
    embedded = GgufFormat().open([file]).tokenizer()
    assert embedded is not None
    return Tokenizer(
        embedded.tokenizer,
        bos_token=embedded.bos_token,
        eos_token=embedded.eos_token,
        unk_token=embedded.unk_token,
        add_bos=embedded.add_bos,
        add_eos=embedded.add_eos,
    )


def trained(folder: Path, kind: str, **options: Any) -> Path:
    """A directory with a ``tokenizer.model`` of SentencePiece's own training."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder.mkdir()
    (folder / "text").write_text("\n".join(CORPUS), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), model_type=kind,
        vocab_size=420, hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return folder


def like_gemma(folder: Path) -> Tokenizer:
    """A ``tokenizer.json`` alone, its merges made from the scores, text cut at spaces."""
    tokenizer = Tokenizer.from_files(
        trained(folder, "bpe", byte_fallback=True, add_dummy_prefix=False,
                remove_extra_whitespaces=False, normalization_rule_name="identity")
    )  # fmt: skip
    data = json.loads(tokenizer.backend.to_str())
    data["normalizer"] = json.loads(
        '{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}'
    )
    data["pre_tokenizer"] = json.loads(
        '{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", '
        '"invert": false}'
    )
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), "utf-8")
    return Tokenizer.from_files(folder)


def by_merges(folder: Path) -> Tokenizer:
    """Pieces of SentencePiece's spelling, joined in an order that no scores give: ``abc`` comes of
    ``ab`` and ``c``, but never of ``a`` and ``bc``, which is joined first."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{b:02X}>" for b in range(256)), *"▁abc", "bc", "ab", "abc"]
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges,
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    return Tokenizer.from_files(folder)


Case = tuple[str, Tokenizer, Path, list[str]]
"""Name, tokenizer, its directory and texts to cut."""


def few(data: Finder, folder: Path) -> Iterator[Case]:
    """One of each form, small ones."""
    phi = data("tokenizers", "phi-2")
    yield "phi-2", Tokenizer.from_files(phi), phi, [*PLAIN, *texts_of(data, "gpt-2")]
    yield "gemma", like_gemma(folder / "gemma"), folder / "gemma", PLAIN
    place = trained(folder / "unigram", "unigram")
    yield "unigram", Tokenizer.from_files(place), place, PLAIN
    yield "merges", by_merges(folder / "merges"), folder / "merges", [*PLAIN, "abc cab ab c"]


def many(data: Finder, folder: Path) -> Iterator[Case]:
    """Those too whose building takes seconds."""
    yield from few(data, folder)
    empty = folder / "empty"
    empty.mkdir()
    for name in VECTORS:
        yield name, from_vector(data, name), empty, texts_of(data, name)
    for version in ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"):
        place = folder / version
        place.mkdir()
        shutil.copyfile(data("tokenizers", "mistral", version), place / "tokenizer.model")
        yield version, Tokenizer.from_files(place), place, [*PLAIN, *texts_of(data, "llama-spm")]
    qwen = data("tokenizers", "qwen3")
    yield "qwen3", Tokenizer.from_files(qwen), qwen, [*PLAIN, *texts_of(data, "qwen2")]


def written(tokenizer: Tokenizer, place: Path, file: Path, family: str) -> Path:
    """A file that holds a vocabulary and nothing else."""
    keys = tokenizer_keys(tokenizer, place, tokenizer.vocab_size, family)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    GgufFormat().write_arrays(file, {"general.architecture": family, **metadata}, {})
    return file


MODELS = {"phi-2": "gpt2", "gemma": "llama", "unigram": "t5", "merges": "gemma4"}
"""Case → value of ``tokenizer.ggml.model``."""


def check(found: Iterator[Case], file: Path) -> None:
    """Our own reader gives the same tokenizer."""
    for name, tokenizer, place, texts in found:
        written(tokenizer, place, file, FAMILIES.get(name, "llama"))
        opened = GgufFormat().open([file])
        embedded = opened.tokenizer()
        assert embedded is not None
        if name in MODELS:
            assert opened.metadata["tokenizer.ggml.model"] == MODELS[name], name
        assert embedded.bos_token == tokenizer.bos_token
        assert embedded.eos_token == tokenizer.eos_token
        ids = tokenizer.encode("a")
        assert embedded.add_bos == (ids[:1] == [tokenizer.bos_token_id]), name
        for text in texts:
            ids = embedded.tokenizer.encode(text, add_special_tokens=False).ids
            assert ids == tokenizer.encode(text, add_special_tokens=False), (name, text)


def test_our_reader_reads_them_back(data: Finder, tmp_path: Path) -> None:
    check(few(data, tmp_path), tmp_path / "m.gguf")


@pytest.mark.slow
def test_our_reader_reads_all_of_them_back(data: Finder, tmp_path: Path) -> None:
    check(many(data, tmp_path), tmp_path / "m.gguf")


def test_what_has_no_form(tmp_path: Path) -> None:
    place = trained(tmp_path / "m", "unigram", byte_fallback=True)
    tokenizer = Tokenizer.from_files(place)
    with pytest.raises(ConfigError, match="Unigram tokenizer with byte fallback"):
        tokenizer_keys(tokenizer, place, tokenizer.vocab_size, "llama")


def test_marks_around_a_text_and_ends_of_a_turn(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    backend = byte_tokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", BOS), ("<|im_end|>", IM_END)]
    )
    ends = {"eos_token_id": [EOS, IM_END, IM_START]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends), "utf-8")
    tokenizer = Tokenizer(backend, bos_token="<s>", eos_token="</s>")
    keys = tokenizer_keys(tokenizer, tmp_path, VOCAB_SIZE, "llama")
    named = {key: value for key, value in keys.items() if key.endswith(("_id", "_token"))}
    # What stands after a text is what readers put there: its end.
    assert named == {
        "bos_token_id": BOS, "eos_token_id": IM_END, "eot_token_id": EOS, "eom_token_id": IM_START,
        "add_bos_token": True, "add_eos_token": True,
    }  # fmt: skip


@pytest.mark.peer
@pytest.mark.slow
def test_llama_cpp_reads_them_alike(data: Finder, tmp_path: Path) -> None:
    package = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    for name, tokenizer, place, texts in many(data, tmp_path):
        file = written(tokenizer, place, tmp_path / "m.gguf", FAMILIES.get(name, "llama"))
        model = package.Llama(str(file), vocab_only=True, verbose=False)
        for text in texts:
            theirs = model.tokenize(text.encode(), add_bos=False, special=True)
            assert theirs == tokenizer.encode(text, add_special_tokens=False), (name, text)
        if name in VECTORS:
            lines = data("tokenizers", "ggml-vocab", f"ggml-vocab-{name}.gguf.out").read_text()
            expected = [[int(i) for i in line.split()] for line in lines.splitlines()]
            found = [model.tokenize(t.encode(), add_bos=False, special=False) for t in texts]
            assert found == expected, name
        model.close()

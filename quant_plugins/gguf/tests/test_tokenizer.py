"""Tokenizers inside files: ggml's vectors, special tokens, and files that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tramontane.errors import CheckpointError, ConfigError
from tramontane.protocols import EmbeddedTokenizer
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_gguf.metadata import Metadata
from tramontane_gguf.tokenizer import embedded_tokenizer

Finder = Callable[..., Path]

VOCABULARIES = (
    "bert-bge", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-spm", "phi-3",
)  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ggml_vectors(name: str, data: Finder) -> None:
    path = data("tokenizers", "ggml-vocab", f"ggml-vocab-{name}.gguf")
    embedded = GgufFormat().open([path]).tokenizer()
    assert embedded is not None
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().splitlines()
    assert texts.pop() == ""
    for text, line in zip(texts, lines, strict=True):
        ids = embedded.tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == [int(i) for i in line.split()], text
        if name != "bert-bge":
            assert embedded.tokenizer.decode(ids) == text


def test_all_vectors_with_a_vocabulary_are_listed(data: Finder) -> None:
    folder = data("tokenizers", "ggml-vocab")
    there = {p.stem.removeprefix("ggml-vocab-") for p in folder.glob("*.gguf")}
    assert there == set(VOCABULARIES)


def test_phi3_swallows_space_after_its_marks(data: Finder) -> None:
    path = data("tokenizers", "ggml-vocab", "ggml-vocab-phi-3.gguf")
    embedded = GgufFormat().open([path]).tokenizer()
    assert embedded is not None
    encode = embedded.tokenizer.encode
    assert encode("<|user|>\n  Hi", add_special_tokens=False).ids == [32010, 6324]
    assert embedded.add_bos
    assert embedded.bos_token == "<s>"
    assert embedded.chat_template is not None
    assert embedded.chat_template.startswith("{{ bos_token }}")
    # <|end|>, which the file does not name as an end.
    assert embedded.eos_token_ids == (32000, 32007)


SPM: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "▁a", "<|im_end|>"],
    "scores": [0.0, 0.0, 0.0, 0.0, -3.0, -2.0, -1.0, 0.0],
    "token_type": [2, 3, 3, 6, 1, 1, 1, 4],
}
BPE: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["a", "b", "ab", "<|endoftext|>", "<|start|>"],
    "token_type": [1, 1, 1, 3, 3],
    "merges": ["a b"],
    "eos_token_id": 3,
    "bos_token_id": 4,
}


def built(keys: dict[str, Any], **more: Any) -> EmbeddedTokenizer:
    import numpy as np

    values: dict[str, Any] = {"general.architecture": "llama", **more}
    for name, value in keys.items():
        if isinstance(value, list) and value and not isinstance(value[0], str):
            value = np.array(value)
        values[f"tokenizer.ggml.{name}"] = value
    embedded = embedded_tokenizer(Metadata(Path("m.gguf"), values))
    assert embedded is not None
    return embedded


def ids_of(embedded: EmbeddedTokenizer, text: str) -> list[int]:
    return embedded.tokenizer.encode(text).ids


def test_sentencepiece_defaults() -> None:
    embedded = built(SPM)
    assert (embedded.bos_token, embedded.eos_token, embedded.unk_token) == ("<s>", "</s>", "<unk>")
    assert embedded.add_bos
    assert embedded.eos_token_ids == (2, 7)
    assert ids_of(embedded, "a A") == [6, 4, 3]
    assert ids_of(embedded, "</s>a") == [2, 6]
    assert embedded.tokenizer.decode([1, 6, 4, 3]) == "a A"
    assert not built({**SPM, "add_bos_token": False}).add_bos
    assert ids_of(built({**SPM, "add_space_prefix": False}), "a") == [5]


def test_byte_level_defaults() -> None:
    embedded = built(BPE)
    assert not embedded.add_bos
    assert embedded.unk_token is None
    assert embedded.eos_token_ids == (3,)
    assert ids_of(embedded, "ab<|endoftext|>") == [2, 3]
    assert built({**BPE, "add_bos_token": True}).add_bos
    assert built({**BPE, "pre": "llama-bpe"}).add_bos
    assert built({**BPE, "add_eos_token": True}).add_eos
    assert not embedded.add_eos


def test_turn_ends_that_the_file_names_and_those_known_by_name() -> None:
    tokens = ["a", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "stop"]
    keys = {**BPE, "tokens": tokens, "token_type": [1, 3, 3, 1, 3], "merges": []}
    keys |= {"eos_token_id": 1, "bos_token_id": 0, "eom_token_id": 2, "eot_token_id": 4}
    # <|im_end|> is ordinary text here, by its type.
    assert built(keys).eos_token_ids == (1, 4, 2)
    harmony = ["a", "<|return|>", "<|call|>", "<|end|>"]
    keys = {**BPE, "tokens": harmony, "token_type": [1, 3, 3, 3], "merges": [], "eos_token_id": 1}
    assert built(keys).eos_token_ids == (1, 2)


def test_ids_outside_the_vocabulary_are_none() -> None:
    for index in (5, 2**32 - 1, -1):
        embedded = built(
            {**BPE, "eos_token_id": index, "bos_token_id": index, "eot_token_id": index}
        )
        assert (embedded.bos_token, embedded.eos_token) == (None, None)
        assert not built({**BPE, "bos_token_id": index, "add_bos_token": True}).add_bos
        assert embedded.eos_token_ids == (3,)


def test_merges_over_raw_text() -> None:
    keys = {
        "model": "gemma4",
        "tokens": ["<unk>", "<bos>", "▁", "a", "▁a", "<0x0A>"],
        "token_type": [2, 3, 1, 1, 1, 6],
        "merges": ["▁ a"],
        "bos_token_id": 1,
        "unknown_token_id": 0,
    }
    embedded = built(keys)
    assert embedded.add_bos
    assert ids_of(embedded, " a\na") == [4, 5, 3]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "rwkv"}, ConfigError, "'rwkv' is not supported; known are llama"),
        ({"pre": "novel"}, ConfigError, "unknown pre-tokenizer 'novel'; known are .*qwen2"),
        ({"pre": None}, ConfigError, "m.gguf does not say how its tokenizer cuts words"),
        ({"tokens": None}, CheckpointError, "lacks the metadata key tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, CheckpointError, "tokens must be an array of strings"),
        ({"tokens": ["a", "a"]}, CheckpointError, "m.gguf: .*'a' twice"),
        ({"merges": None}, CheckpointError, "lacks the metadata key tokenizer.ggml.merges"),
        ({"merges": ["x y"]}, CheckpointError, "m.gguf: the merge 'x y' does not join"),
        ({"token_type": [1]}, CheckpointError, "5 pieces but only 1 types"),
        ({"bos_token_id": "a"}, CheckpointError, "bos_token_id must be a whole number"),
        ({"add_bos_token": 1}, CheckpointError, "add_bos_token must be a bool"),
    ],
)
def test_vocabularies_that_are_wrong(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    keys = {name: value for name, value in {**BPE, **changes}.items() if value is not None}
    with pytest.raises(error, match=message):
        built(keys)


def test_scores_are_required_by_sentencepiece() -> None:
    keys = {name: value for name, value in SPM.items() if name != "scores"}
    with pytest.raises(CheckpointError, match=r"lacks the metadata key tokenizer\.ggml\.scores"):
        built(keys)


def test_a_file_may_carry_none(data: Finder) -> None:
    assert embedded_tokenizer(Metadata(Path("m.gguf"), {})) is None
    none = {"tokenizer.ggml.model": "none"}
    assert embedded_tokenizer(Metadata(Path("m.gguf"), none)) is None


def test_stories260k_tells_its_story_in_transformers(data: Finder) -> None:
    """Weights, configuration and tokenizer together: the reference model, given all three, would
    have written the text that ships with the file, token for token."""
    transformers = pytest.importorskip("transformers")
    folder = data("models", "stories260k")
    checkpoint = GgufFormat().open([folder / "stories260K.gguf"])
    config = transformers.LlamaConfig(**checkpoint.config())
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()})
    embedded = checkpoint.tokenizer()
    assert embedded is not None
    story = [1, *ids_of(embedded, (folder / "golden.txt").read_text()[:400])]
    prompt = len(ids_of(embedded, "Once upon a time"))
    with torch.no_grad():
        greedy = model(torch.tensor([story])).logits[0].argmax(-1).tolist()
    # The last token may have been cut short with the text.
    assert greedy[prompt:-2] == story[prompt + 1 : -1]

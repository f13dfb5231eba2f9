"""Which known way of cutting text into words a byte-level tokenizer has: GGUF names it only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers

from tramontane.errors import ConfigError
from tramontane.text.vocabulary import PRE_TOKENIZERS, PreTokenizer

SAMPLES = (
    "Hello, World! It's 3.14159 o'clock; we'LL see   12345678 things\n\n\tfoo_bar(x) := {1,2}\r\n",
    "naïve Ünïcode ΑΒΓ кириллица 漢字かな한국어 emoji 🙂🚀 Ⅷ ½ ²³ a̐éö̲ ﬁ  \n \n  end 's'S 'RE",
    "camelCase HTTPServer I'm XMLHttp request//path\\n $100,000.00 +-*/=<> «»…—“quotes”   ",
    "cafe\u0301 \u212bngstro\u0308m",
)
"""Texts that the known ways cut differently, the last one since some compose characters first."""

_USUAL = {
    "llama": ("llama-bpe", "tekken"), "qwen2": ("qwen2",),
    "qwen3": ("qwen2",), "qwen3moe": ("qwen2",), "phi2": ("phi-2",), "phi3": ("dbrx", "gpt-4o"),
    "starcoder2": ("starcoder",), "glm4": ("glm4",), "gpt-oss": ("gpt-4o",),
    "deepseek2": ("deepseek-v3", "deepseek-llm"), "granite": ("refact", "dbrx"),
    "granitemoe": ("refact", "dbrx"), "granitehybrid": ("dbrx",),
}  # fmt: skip
"""Family → the names its files use, of several names for the same way."""


def words_name(backend: tokenizers.Tokenizer, model: Mapping[str, Any], family: str) -> str:
    """Value of ``tokenizer.ggml.pre`` for a tokenizer.

    Args:
        backend: cuts text into words.
        model: its ``model``, as ``tokenizer.json`` has it.
        family: value of ``general.architecture``.

    Raises:
        ConfigError: it cuts in a way that has no name.
    """
    whole = bool(model.get("ignore_merges"))
    wanted = [_cut(backend.normalizer, backend.pre_tokenizer, text) for text in SAMPLES]

    def fits(kind: PreTokenizer) -> bool:
        if kind.ignore_merges != whole:
            return False
        pre, normalizer = kind.build(), kind.normalizer()
        return all(
            _cut(normalizer, pre, text) == cut for text, cut in zip(SAMPLES, wanted, strict=True)
        )

    tried: dict[int, bool] = {}
    for name in (*_USUAL.get(family, ()), *PRE_TOKENIZERS):
        kind = PRE_TOKENIZERS[name]
        if id(kind) not in tried:
            tried[id(kind)] = fits(kind)
        if tried[id(kind)]:
            return name
    # One that does not cut at all, with merges that never reach across GPT-2's cuts.
    if _encodes_alike(backend, PRE_TOKENIZERS["gpt-2"]):
        return "gpt-2"
    raise ConfigError(
        "the tokenizer cuts text into words in a way that GGUF has no name for; a file without "
        "it would be read wrongly"
    )


def _encodes_alike(backend: tokenizers.Tokenizer, kind: PreTokenizer) -> bool:
    """Whether the samples become the same tokens when words are cut in this way."""
    other = tokenizers.Tokenizer.from_str(backend.to_str())
    other.pre_tokenizer = kind.build()
    return all(
        other.encode(text, add_special_tokens=False).ids
        == backend.encode(text, add_special_tokens=False).ids
        for text in SAMPLES
    )


def _cut(normalizer: Any, pre: Any, text: str) -> list[str]:
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    return [piece for piece, _ in pre.pre_tokenize_str(text)] if pre is not None else [text]

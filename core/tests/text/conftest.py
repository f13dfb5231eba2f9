"""Small tokenizers of every kind, and the folder of real ones where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from tramontane.text.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


@pytest.fixture(scope="session")
def data() -> Path:
    """Real tokenizers and templates, which do not travel with the repository."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("TRAMONTANE_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no test data: set TRAMONTANE_TEST_DATA to the folder that holds it")
    return folder


def byte_level() -> Tokenizer:
    """All bytes, some merges that cut characters in half, and added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "t"), ("Ġt", "h"), ("Ã", "¼"), ("ä", "½"), ("ł", "å"), ("ð", "Ł"), ("h", "e")]
    vocab = {text: index for index, text in enumerate([*SPECIAL, *alphabet])}
    for left, right in pairs:
        vocab[left + right] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<｜你｜>")])
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


def byte_level_respelt() -> Tokenizer:
    """The same with a token that looks like a byte but is text, as DeepSeek has some."""
    backend = tokenizers.Tokenizer.from_str(byte_level().backend.to_str())
    backend.add_tokens([AddedToken("ü", normalized=False)])
    backend.decoder = decoders.Sequence([decoders.Replace("ü", "Ã¼"), decoders.ByteLevel()])
    return Tokenizer(backend)


def byte_fallback(*, strip: int = 1) -> Tokenizer:
    """SentencePiece pieces with a token for every byte."""
    pieces = ["▁", "a", "b", "é", "你", "▁a", "▁▁", "ab", "▁the", "!", "<", "0", "x"]
    texts = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {text: index for index, text in enumerate(texts)}
    merges = [("▁", "a"), ("▁", "▁"), ("a", "b")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", strip, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(scheme: str = "always") -> Tokenizer:
    """Unigram pieces."""
    pieces = [(text, 0.0) for text in SPECIAL]
    pieces += [(text, -1.0) for text in ("▁", "▁a", "a", "b", "▁▁", "你", "▁b▁")]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


def word_piece() -> Tokenizer:
    """Words and their continuations, joined with spaces that punctuation swallows."""
    texts = [*SPECIAL, "hello", "##s", "world", ".", ",", "'", "do", "n", "你"]
    vocab = {text: index for index, text in enumerate(texts)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return Tokenizer(backend)


def suffixed() -> Tokenizer:
    """BPE whose words end in a marker, as CLIP writes them."""
    texts = [*SPECIAL, "a", "b</w>", "a</w>", "你</w>"]
    vocab = {text: index for index, text in enumerate(texts)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return Tokenizer(backend)


def undecoded() -> Tokenizer:
    """Words without a decoder, which the library joins by spaces."""
    vocab = {text: index for index, text in enumerate([*SPECIAL, "a", "b", "你"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return Tokenizer(backend)


KINDS = {
    "byte_level": byte_level(),
    "byte_level_respelt": byte_level_respelt(),
    "byte_fallback": byte_fallback(),
    "byte_fallback_unstripped": byte_fallback(strip=0),
    "byte_fallback_strip_3": byte_fallback(strip=3),
    "metaspace": metaspace(),
    "metaspace_never": metaspace("never"),
    "word_piece": word_piece(),
    "suffixed": suffixed(),
    "undecoded": undecoded(),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]


@pytest.fixture
def byte_level_tokenizer() -> Tokenizer:
    return KINDS["byte_level"]


@pytest.fixture
def byte_fallback_tokenizer() -> Tokenizer:
    return KINDS["byte_fallback"]

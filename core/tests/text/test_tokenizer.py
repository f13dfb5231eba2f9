"""Token ids equal transformers', and bad input gets an answer."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tramontane.errors import ConfigError, SourceError, TramontaneError, ValidationError
from tramontane.text.tokenizer import Tokenizer

REAL = ["models/tinystories-656k", "tokenizers/phi-2", "tokenizers/qwen3"]
TEXTS = [
    "",
    " ",
    "hi",
    " hi",
    "  hi  there",
    "naïve café 😀",
    "▁x▁ y",
    "\n\nhello\n",
    "Ünïcödé 你好，世界 مرحبا שלום हिन्दी ไทย 한국어 日本語テキスト",
    "e\u0301 \u200d\u200b \ufeff x \ufffd\uffff\U0010ffff",
    "\x00\x01\x7f\x80",
    "a" * 1000,
    "\r\n\t tabs",
    "1234567890 3.14 I'll don't WE'RE",
    "👩‍👩‍👧‍👦🇩🇪",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n</think><|endoftext|>",
    "a<|start_story|>b <|end_story|> c<unk>",
    "        code\n            indent",
]


def random_texts(count: int) -> list[str]:
    draw = random.Random(7)
    ranges = [(32, 127), (0x80, 0x800), (0x800, 0xD800), (0x1F300, 0x1FA00), (9, 14)]
    return [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 40)))
        for _ in range(count)
    ]


@pytest.fixture(params=REAL)
def both(request: pytest.FixtureRequest, data: Path) -> tuple[Tokenizer, Any]:
    pytest.importorskip("transformers")
    return loaded(data / request.param)


@functools.cache
def loaded(folder: Path) -> tuple[Tokenizer, Any]:
    import transformers

    return Tokenizer.from_files(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_equal_transformers(both: tuple[Tokenizer, Any]) -> None:
    ours, reference = both
    for text in TEXTS + random_texts(200):
        for special in (True, False):
            expected = reference(text, add_special_tokens=special).input_ids
            assert ours.encode(text, add_special_tokens=special) == expected, text


def test_text_equals_transformers(both: tuple[Tokenizer, Any]) -> None:
    ours, reference = both
    draw = random.Random(11)
    for _ in range(500):
        ids = [draw.randrange(len(reference)) for _ in range(draw.randrange(12))]
        for skip in (True, False):
            expected = reference.backend_tokenizer.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_names_and_sizes_equal_transformers(both: tuple[Tokenizer, Any]) -> None:
    ours, reference = both
    assert ours.vocab_size == len(reference)
    assert set(reference.all_special_ids) <= ours.special_ids
    for name in ("bos_token", "eos_token", "unk_token"):
        assert getattr(ours, name) == getattr(reference, name)
        assert getattr(ours, f"{name}_id") == getattr(reference, f"{name}_id")


def test_tiny_stories_prompt(data: Path) -> None:
    """Its special tokens are matched in normalized text, and a rendered prompt begins with BOS."""
    tokenizer = Tokenizer.from_files(data / "models/tinystories-656k")
    prompt = "<|start_story|>Once upon a time, "
    assert tokenizer.encode(prompt) == [1, 147, 201, 282, 215]
    assert tokenizer.encode(prompt, add_special_tokens=False) == [1, 147, 201, 282, 215]
    assert tokenizer.decode([1, 147, 201, 282, 215, 2]) == "Once upon a time, "


def test_special_tokens_in_normalized_text_are_left_out(data: Path) -> None:
    """The file as it stands spells them with a space before, so names cannot be compared."""
    folder = data / "models/tinystories-656k"
    tokenizer = Tokenizer.from_files(folder, folder / "tokenizer.json")
    assert tokenizer.encode("<|start_story|>Once upon a time, ") == [1, 147, 201, 282, 215]
    assert tokenizer.decode([1, 147, 201, 282, 215, 2]) == "Once upon a time, "
    assert tokenizer.token_bytes(2) == b"<|end_story|>"


# -- the beginning of sequence -----------------------------------------------------------------


def saved(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    return folder


def with_post_processor(tokenizer: Tokenizer, template: str) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    names = {part for part in template.split() if part != "$A"}
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[(name, backend.token_to_id(name)) for name in names]
    )
    return Tokenizer(backend)


@pytest.mark.parametrize("post", [None, "<s> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": False},
    ],
    ids=str,
)
def test_flags_and_post_processor_equal_transformers(
    byte_level_tokenizer: Tokenizer, tmp_path: Path, post: str | None, flags: dict[str, bool]
) -> None:
    transformers = pytest.importorskip("transformers")
    source = (
        byte_level_tokenizer if post is None else with_post_processor(byte_level_tokenizer, post)
    )
    folder = saved(tmp_path, source, {"bos_token": "<s>", "eos_token": "</s>", **flags})
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_files(folder)
    for special in (True, False):
        expected = reference("the ü", add_special_tokens=special).input_ids
        assert ours.encode("the ü", add_special_tokens=special) == expected


@pytest.mark.parametrize("add_bos", [None, True])
def test_bos_is_never_doubled(byte_level_tokenizer: Tokenizer, add_bos: bool | None) -> None:
    backend = with_post_processor(byte_level_tokenizer, "<s> $A </s>").backend
    add_eos = None if add_bos is None else True
    tokenizer = Tokenizer(
        backend, bos_token="<s>", eos_token="</s>", add_bos=add_bos, add_eos=add_eos
    )
    plain = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.encode("the") == [1, *plain, 2]
    assert tokenizer.encode("<s>the") == [1, *plain, 2]


def test_two_bos_in_the_text_stay(byte_level_tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer(
        with_post_processor(byte_level_tokenizer, "$A </s>").backend, bos_token="<s>"
    )
    assert tokenizer.encode("<s><s>") == [1, 1, 2]


def test_truncation_and_padding_of_the_file_are_off(byte_level_tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_tokenizer.backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    assert len(Tokenizer(backend).encode("abcdefgh")) == 8


# -- bytes of tokens ---------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
@example(text="a < s > b")
def test_token_bytes_add_up(
    byte_level_tokenizer: Tokenizer, byte_fallback_tokenizer: Tokenizer, text: str
) -> None:
    ids = byte_level_tokenizer.encode(text)
    assert b"".join(map(byte_level_tokenizer.token_bytes, ids)) == text.encode()
    special = map(byte_fallback_tokenizer.id_to_token, byte_fallback_tokenizer.special_ids)
    assume(not any(token in text for token in special if token))  # no space comes before those
    text = text.replace("▁", " ")
    ids = byte_fallback_tokenizer.encode(text)
    assert b"".join(map(byte_fallback_tokenizer.token_bytes, ids)) == (" " + text).encode() * bool(
        text
    )


def test_token_bytes_of_each_kind(
    byte_level_tokenizer: Tokenizer, byte_fallback_tokenizer: Tokenizer
) -> None:
    for tokenizer, token, expected in [
        (byte_fallback_tokenizer, "<0x0A>", b"\n"),
        (byte_fallback_tokenizer, "<0xF0>", b"\xf0"),
        (byte_fallback_tokenizer, "▁the", b" the"),
        (byte_fallback_tokenizer, "<|end|>", b"<|end|>"),
        (byte_level_tokenizer, "Ġt", b" t"),
        (byte_level_tokenizer, "ðŁ", b"\xf0\x9f"),
        (byte_level_tokenizer, "<｜你｜>", "<｜你｜>".encode()),
    ]:
        token_id = tokenizer.token_to_id(token)
        assert token_id is not None
        assert tokenizer.token_bytes(token_id) == expected
    assert byte_level_tokenizer.token_bytes(10_000_000) == b""


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff"])
def test_lone_surrogates_are_named(kind: Tokenizer, text: str) -> None:
    with pytest.raises(ValidationError, match=r"U\+D[0-9A-F]{3} at character \d"):
        kind.encode(text)


@pytest.mark.parametrize("text", [None, b"hi", 3, ["hi"]])
def test_only_strings_are_encoded(byte_level_tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(ValidationError, match="must be a string"):
        byte_level_tokenizer.encode(text)


@pytest.mark.parametrize("token_id", [-1, 2**32, 1.5, "3", None, True])
def test_bad_ids(byte_level_tokenizer: Tokenizer, token_id: Any) -> None:
    for call in (
        lambda: byte_level_tokenizer.decode([token_id]),
        lambda: byte_level_tokenizer.token_bytes(token_id),
    ):
        with pytest.raises(ValidationError, match="token id"):
            call()


# -- files -------------------------------------------------------------------------------------


def test_explicit_file_replaces_the_vocabulary(
    byte_level_tokenizer: Tokenizer, byte_fallback_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = saved(tmp_path, byte_level_tokenizer, {"eos_token": {"content": "</s>"}})
    other = tmp_path / "other.json"
    byte_fallback_tokenizer.backend.save(str(other))
    tokenizer = Tokenizer.from_files(folder, other)
    assert tokenizer.encode("a") == byte_fallback_tokenizer.encode("a")
    assert tokenizer.eos_token_id == byte_fallback_tokenizer.eos_token_id
    with pytest.raises(SourceError, match=r"no file .*absent\.json"):
        Tokenizer.from_files(folder, tmp_path / "absent.json")


def test_added_tokens_of_the_configuration(byte_level_tokenizer: Tokenizer, tmp_path: Path) -> None:
    new_id = byte_level_tokenizer.vocab_size
    config = {
        "added_tokens_decoder": {
            str(new_id): {"content": "<|new|>", "special": True, "normalized": False}
        }
    }
    tokenizer = Tokenizer.from_files(saved(tmp_path, byte_level_tokenizer, config))
    assert tokenizer.encode("a<|new|>b")[1] == new_id
    assert tokenizer.decode([new_id]) == ""


def test_special_tokens_map_completes_the_configuration(
    byte_level_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = saved(tmp_path, byte_level_tokenizer, {"bos_token": None})
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    )
    tokenizer = Tokenizer.from_files(folder)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (tokenizer.bos_token_id, tokenizer.unk_token_id) == (1, None)


def test_sentencepiece_model(data: Path, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    source = data / "tokenizers/mistral/tokenizer.model.v1"
    shutil.copyfile(source, tmp_path / "tokenizer.model")
    tokenizer = Tokenizer.from_files(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(source))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    for text in ["Hello world", "naïve café 😀", "你好 \n\n x", "  two  spaces"]:
        assert tokenizer.encode(text) == [1, *reference.encode(text)]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_of_an_unknown_class(data: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(data / "tokenizers/qwen3" / name, tmp_path / name)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(ConfigError, match="CLIPTokenizer"):
        Tokenizer.from_files(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"no tokenizer in .*holds config\.json"):
        Tokenizer.from_files(tmp_path)
    with pytest.raises(SourceError, match="holds nothing"):
        Tokenizer.from_files(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}'),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "q"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"1": 3}}'),
        ("tokenizer_config.json", b'{"add_bos_token": "yes"}'),
        ("special_tokens_map.json", b"\x80"),
        ("added_tokens.json", b'{"a": []}'),
    ],
)
@pytest.mark.parametrize("llama", [False, True])
def test_corrupt_files_are_named(
    byte_level_tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes, llama: bool
) -> None:
    config = {"tokenizer_class": "LlamaTokenizer"} if llama else {}
    folder = saved(tmp_path, byte_level_tokenizer, config)
    (folder / name).write_bytes(content)
    with pytest.raises((SourceError, ConfigError), match=name.replace(".", r"\.")):
        Tokenizer.from_files(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_tokenizer_files_are_refused_or_usable(
    byte_fallback_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    content = bytearray(byte_fallback_tokenizer.backend.to_str().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "tokenizer.json").write_bytes(content)
    with contextlib.suppress(TramontaneError):
        tokenizer = Tokenizer.from_files(folder)
        tokenizer.decode(tokenizer.encode("ab é"))

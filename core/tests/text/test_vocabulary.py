"""Tokenizers from raw vocabularies, against sentencepiece, transformers and ggml's vectors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from tramontane.errors import CheckpointError, ConfigError
from tramontane.text.vocabulary import (
    PRE_TOKENIZERS,
    PieceType,
    byte_level_bpe,
    merged_bpe,
    pre_tokenizer,
    read_sentencepiece,
    sentencepiece_bpe,
    sentencepiece_from_file,
    unigram,
    word_piece,
)
from tramontane_testkit.data import data_path

SAMPLES = (
    "",
    " ",
    "Hello world, it's 1234567 o'clock!  I'LL see\n\n  you\tTHERE\r\n",
    "HelloWorld camelCaseText XMLHttpRequest",
    "नमस्ते हिन्दी e\u0301tude Äpfel",
    "我想在apple工作1314151天～ ﷽ ①② ½",
    "🦙.cpp 😶‍🌫️ done",
    "    def f(x):\n        return x**2 // 3\n\n\n",
    "«quoted» — $5.00 <a href='x'>`code`</a> ^~|+=",
)


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """Texts and ids of one of ggml's vocabulary tests."""
    stem = data_path("tokenizers", "ggml-vocab") / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{stem}.out").read_text().splitlines()
    assert texts.pop() == ""
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


# Byte-level ---------------------------------------------------------------------------------


def test_qwen2_equals_the_ggml_vectors() -> None:
    folder = data_path("tokenizers", "qwen3")
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(ids, key=ids.__getitem__)
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    tokenizer = byte_level_bpe(tokens, merges, pre_tokenizer("qwen2"))
    for text, expected in vectors("qwen2"):
        assert encode(tokenizer, text) == expected, text


def test_llama_bpe_vectors_need_a_vocabulary() -> None:
    data_path("tokenizers", "ggml-vocab", "ggml-vocab-llama-bpe.gguf.inp")
    if not (data_path("tokenizers", "ggml-vocab") / "ggml-vocab-llama-bpe.gguf").exists():
        pytest.skip("the llama-bpe vectors travel without their vocabulary")
    pytest.fail("a vocabulary has come: compare it like the others")


def test_phi2_equals_its_own_tokenizer_json() -> None:
    path = data_path("tokenizers", "phi-2", "tokenizer.json")
    reference = Tokenizer.from_file(str(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    ids = model["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = {None: PieceType.NORMAL, True: PieceType.CONTROL, False: PieceType.USER_DEFINED}
    types = [kinds[special.get(index)] for index in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokenizer = byte_level_bpe(tokens, merges, pre_tokenizer("phi-2"), types=types)
    for text in SAMPLES:
        ids = encode(tokenizer, text)
        assert ids == encode(reference, text)
        assert tokenizer.decode(ids) == text


def pieces_of(name: str, text: str) -> list[str]:
    """How a kind cuts text, as text."""
    kind = pre_tokenizer(name)
    steps = [pre_tokenizers.Split(Regex(s), behavior="isolated") for s in kind.splits]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_kind_cuts_without_loss(name: str) -> None:
    for text in SAMPLES:
        assert "".join(pieces_of(name, text)) == text
    assert pre_tokenizer(name).build().pre_tokenize_str("a b")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "it's 12345  x", ["it", "'s", " 12345", " ", " x"]),
        ("llama-bpe", "12345 I'LL", ["123", "45", " I", "'LL"]),
        ("qwen2", "x12 I'LL", ["x", "1", "2", " I", "'LL"]),
        ("qwen35", "हि x", ["हि", " x"]),
        ("qwen2", "हि x", ["ह", "ि", " x"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
        ("gpt-4o", "camelCase I'LL 1234", ["camel", "Case", " I'LL", " ", "123", "4"]),
        ("deepseek-v3", "x12345我們と", ["x", "123", "45", "我們と"]),
        ("deepseek-llm", "Äé Ωé 12\n", ["Äé", " Ωé", " ", "1", "2", "\n"]),
        ("deepseek-llm", "[a] \\^ 한一ア", ["[", "a", "]", " \\^", " ", "한一ア"]),
        ("falcon", "a==b 1234", ["a", "==", "b", " ", "123", "4"]),
        ("bloom", "a,b c", ["a", ",", "b", " c"]),
        ("viking", "a 12", ["a", " ", "1", "2"]),
        ("seed-coder", "!!\n", ["!!", "\n"]),
        ("bailingmoe", "I'LL\n\n", ["I", "'LL", "\n\n"]),
        ("default", "a==b 1234", ["a", "==", "b", " ", "123", "4"]),
    ],
)
def test_what_tells_the_kinds_apart(name: str, text: str, expected: list[str]) -> None:
    assert pieces_of(name, text) == expected


def test_patterns_equal_those_transformers_carries() -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    pattern = convert.TikTokenConverter().pattern
    reference = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    for text in SAMPLES:
        expected = [piece for piece, _ in reference.pre_tokenize_str(text)]
        assert pieces_of("llama3", text) == expected


def test_an_unknown_kind_names_itself_and_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown pre-tokenizer 'qwen-2' .did you mean qwen2"):
        pre_tokenizer("qwen-2")


def test_words_of_the_vocabulary_are_taken_whole_where_merges_are_ignored() -> None:
    tokens = ["a", "b", "c", "bc", "abc", "ab"]
    merges = ["b c"]
    whole = byte_level_bpe(tokens, merges, PRE_TOKENIZERS["llama3"])
    merged = byte_level_bpe(tokens, merges, PRE_TOKENIZERS["qwen2"])
    assert encode(whole, "abc") == [4]
    assert encode(merged, "abc") == [0, 3]


def test_types_make_tokens_special_or_text() -> None:
    tokens = ["a", "b", "<s>", "<think>", "<pad>"]
    tokenizer = byte_level_bpe(
        tokens, [], PRE_TOKENIZERS["gpt-2"], types=[1, 1, 3, 4, 5], special={0}
    )
    assert encode(tokenizer, "<s>b<think>") == [2, 1, 3]
    assert tokenizer.decode([2, 1, 3], skip_special_tokens=True) == "b<think>"
    assert tokenizer.get_added_tokens_decoder()[0].special
    assert 4 not in tokenizer.get_added_tokens_decoder()


def test_letters_that_look_like_bytes_are_text() -> None:
    tokens = ["ü", "Ã", "¼", "Ã¼"]
    tokenizer = byte_level_bpe(tokens, ["Ã ¼"], PRE_TOKENIZERS["gpt-2"], types=[4, 1, 1, 1])
    assert encode(tokenizer, "ü") == [0]
    assert tokenizer.decode([0]) == tokenizer.decode([3]) == tokenizer.decode([1, 2]) == "ü"


def test_composed_and_decomposed_text_are_one_for_qwen2_only() -> None:
    tokens = ["Ã", "©", "Ã©", "e", "Ì", "ģ"]
    merges = ["Ã ©"]
    assert encode(byte_level_bpe(tokens, merges, PRE_TOKENIZERS["qwen2"]), "e\u0301") == [2]
    assert encode(byte_level_bpe(tokens, merges, PRE_TOKENIZERS["gpt-2"]), "e\u0301") == [3, 4, 5]


@pytest.mark.parametrize(
    ("tokens", "merges", "types", "message"),
    [
        ([], [], None, "empty"),
        (["a", "a"], [], None, "'a' twice, as 0 and 1"),
        (["a", "b"], ["a b"], None, "'a b' does not join"),
        (["a", "b", "ab"], ["ab"], None, "'ab' does not join"),
        (["a", "b"], [], [1], "2 pieces but only 1 types"),
    ],
)
def test_vocabularies_that_contradict_themselves(
    tokens: list[str], merges: list[str], types: list[int] | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        byte_level_bpe(tokens, merges, PRE_TOKENIZERS["gpt-2"], types=types)


# SentencePiece --------------------------------------------------------------------------------

MISTRAL = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
PARTS = (
    "a", "aa", "b", " ", "  ", "▁", "\n", "é", "我", "🦙", "in", "ing", "the", "\t", "1", "23",
    "'s", "...", "-----", "=", "ʔ", "\u200d", "Once upon a time",
)  # fmt: skip


@pytest.mark.parametrize("name", MISTRAL)
def test_mistral_models_equal_sentencepiece(name: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = data_path("tokenizers", "mistral", name)
    reference = sentencepiece.SentencePieceProcessor(str(path))
    model = read_sentencepiece(path)
    assert model.kind == "bpe"
    assert model.pieces == [reference.id_to_piece(i) for i in range(reference.vocab_size())]
    assert (model.unk_id, model.bos_id, model.eos_id) == (
        reference.unk_id(),
        reference.bos_id(),
        reference.eos_id(),
    )
    assert model.text_of(model.bos_id) == "<s>"
    assert model.text_of(len(model.pieces)) is None
    tokenizer = sentencepiece_from_file(path)
    choose = random.Random(7)
    texts = [*SAMPLES]
    texts += ["".join(choose.choices(PARTS, k=choose.randint(0, 14))) for _ in range(500)]
    for text in texts:
        ids = encode(tokenizer, text)
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids)


def trained(folder: Path, **options: object) -> Path:
    """A small model trained here."""
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = folder / "corpus.txt"
    words = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "after", "again"]
    choose = random.Random(1)
    lines = [" ".join(choose.choices(words, k=12)) for _ in range(300)]
    corpus.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus),
        model_prefix=str(folder / "m"),
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return folder / "m.model"


TRAINING = [
    {"model_type": "unigram", "vocab_size": 60},
    {"model_type": "unigram", "vocab_size": 320, "byte_fallback": True},
    {
        "model_type": "unigram",
        "vocab_size": 60,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
    },
    {"model_type": "bpe", "vocab_size": 60, "normalization_rule_name": "identity"},
    {
        "model_type": "bpe",
        "vocab_size": 320,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<sep>"],
        "unk_id": 3,
        "bos_id": -1,
        "eos_id": 0,
    },
]


@pytest.mark.parametrize("options", TRAINING, ids=lambda o: f"{o['model_type']}-{len(o)}")
def test_models_trained_here_equal_sentencepiece(
    tmp_path: Path, options: dict[str, object]
) -> None:
    path = trained(tmp_path, **options)
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor(str(path))
    model = read_sentencepiece(path)
    assert model.kind == options["model_type"]
    assert (model.unk_id, model.bos_id) == (reference.unk_id(), reference.bos_id())
    tokenizer = model.build()
    texts = ["the cat ran", " the  dog  again ", "andagain", "a cat sat", "the mat", ""]
    if options.get("byte_fallback"):
        texts += ["Zürich 我", "the\tcat\n"]
    if "user_defined_symbols" in options:
        texts += ["the<sep>cat"]
    for text in texts:
        assert encode(tokenizer, text) == reference.encode(text), text


def test_what_cannot_be_spelt_is_unknown_once() -> None:
    pieces, scores = ["<unk>", "▁", "a", "▁a"], [0.0, -1.0, -2.0, -3.0]
    tokenizer = sentencepiece_bpe(pieces, scores, types=[2, 1, 1, 1])
    assert encode(tokenizer, "a我們a") == [3, 0, 2]


def test_pieces_of_equal_score_keep_their_order() -> None:
    pieces = ["<unk>", "a", "b", "c", "ab", "bc"]
    tokenizer = sentencepiece_bpe(pieces, [0.0] * 6, add_space_prefix=False)
    assert encode(tokenizer, "abc") == [4, 3]


def test_special_tokens_may_swallow_white_space() -> None:
    pieces = ["<unk>", "<s>", "a", "b", "\n", "▁a", "▁"]
    tokenizer = sentencepiece_bpe(
        pieces,
        [0.0] * 7,
        types=[2, 3, 1, 1, 1, 1, 1],
        add_space_prefix=False,
        strips_right=lambda piece: piece == "<s>",
    )
    assert encode(tokenizer, "b<s>\na") == [3, 1, 2]


def test_merges_that_a_file_lists() -> None:
    pieces = ["<unk>", "▁", "a", "b", "▁a", "ab", "<0x0A>"]
    tokenizer = merged_bpe(pieces, ["▁ a", "a b"], types=[2, 1, 1, 1, 1, 1, 6])
    assert encode(tokenizer, " ab\n") == [4, 3, 6]
    assert tokenizer.decode([4, 3, 6]) == " ab\n"


@pytest.mark.parametrize("build", [sentencepiece_bpe, unigram])
def test_scores_and_unknown_are_checked(build: object) -> None:
    assert callable(build)
    with pytest.raises(CheckpointError, match="2 pieces but only 1 scores"):
        build(["<unk>", "a"], [0.0])
    with pytest.raises(CheckpointError, match="unknown token 9 lies outside"):
        build(["<unk>", "a"], [0.0, 0.0], unk_id=9)


def test_a_corrupt_normalization_table_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="normalization table is corrupt"):
        unigram(["<unk>", "a"], [0.0, -1.0], charsmap=b"\xff\xff\xff\x7fzz")


# WordPiece ------------------------------------------------------------------------------------


def test_word_piece_marks_beginnings() -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁play", "ing", "▁,"]
    types = [3, 3, 3, 3, 1, 1, 1]
    tokenizer = word_piece(pieces, types=types, unk_id=1, cls_id=2, sep_id=3)
    assert encode(tokenizer, "Playing, zebra") == [4, 5, 6, 1]
    assert tokenizer.encode("play").ids == [2, 4, 3]
    with pytest.raises(CheckpointError, match="special token 7 lies outside"):
        word_piece(pieces, types=types, unk_id=7)

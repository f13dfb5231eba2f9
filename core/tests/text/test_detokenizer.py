"""Text as it comes equals text decoded at once."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tramontane.text.detokenizer import Detokenizer
from tramontane.text.tokenizer import Tokenizer

RELAXED = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def streamed(tokenizer: Tokenizer, prompt: list[int], output: list[int], *, skip: bool) -> str:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return "".join([*map(detokenizer.push, output), detokenizer.flush()])


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    # Two beyond the vocabulary: models may have more rows than tokens.
    return st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=30)


@RELAXED
@given(data=st.data(), skip=st.booleans())
def test_any_ids_stream_as_they_decode(kind: Tokenizer, data: st.DataObject, skip: bool) -> None:
    output = data.draw(ids_of(kind))
    assert streamed(kind, [], output, skip=skip) == kind.decode(output, skip)


@RELAXED
@given(data=st.data(), skip=st.booleans())
def test_output_continues_the_prompt(kind: Tokenizer, data: st.DataObject, skip: bool) -> None:
    """After a prompt that ends in a whole character, the text is what decoding both adds."""
    prompt, output = data.draw(ids_of(kind)), data.draw(ids_of(kind))
    before = kind.decode(prompt, skip)
    whole = kind.decode(prompt + output, skip)
    if before.endswith("\ufffd") or not whole.startswith(before):
        return
    assert before + streamed(kind, prompt, output, skip=skip) == whole


@RELAXED
@given(text=st.text(alphabet="aé你😀ü \n<", max_size=20), cut=st.integers(0, 60))
def test_bytes_divided_between_prompt_and_output(
    byte_level_tokenizer: Tokenizer, text: str, cut: int
) -> None:
    ids = byte_level_tokenizer.encode(text, add_special_tokens=False)
    prompt, output = ids[:cut], ids[cut:]
    whole_part = byte_level_tokenizer.decode(prompt).rstrip("\ufffd")
    assert whole_part + streamed(byte_level_tokenizer, prompt, output, skip=True) == text


@RELAXED
@given(run=st.binary(max_size=12), after=st.booleans())
def test_runs_of_byte_tokens(byte_fallback_tokenizer: Tokenizer, run: bytes, after: bool) -> None:
    tokenizer = byte_fallback_tokenizer
    output = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in run]
    output += [tokenizer.token_to_id("a")] * after
    assert streamed(tokenizer, [], output, skip=True) == tokenizer.decode(output)


@pytest.mark.parametrize(
    "name", ["models/tinystories-656k", "tokenizers/phi-2", "tokenizers/qwen3"]
)
def test_real_tokenizers(data, name: str) -> None:
    tokenizer = Tokenizer.from_files(data / name)
    text = " Ünïcödé 你好，世界 مرحبا 👩‍👩‍👧‍👦\n\tindent <|im_end|> e\u0301"
    ids = tokenizer.encode(text)
    for cut in range(len(ids)):
        before = tokenizer.decode(ids[:cut])
        if before.endswith("\ufffd"):
            continue
        expected = tokenizer.decode(ids).removeprefix(before)
        assert streamed(tokenizer, ids[:cut], ids[cut:], skip=True) == expected


def test_whole_characters_only(byte_level_tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_level_tokenizer)
    ids = [byte_level_tokenizer.token_to_id(char) for char in "ðŁĺĢ"]  # the bytes of 😀
    assert [detokenizer.push(i) for i in ids] == ["", "", "", "😀"]
    assert detokenizer.push(ids[0]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_hopeless_bytes_come_out_at_once(byte_fallback_tokenizer: Tokenizer) -> None:
    """No valid text begins with 0xFF, so nothing is gained by waiting."""
    detokenizer = Detokenizer(byte_fallback_tokenizer)
    bad = byte_fallback_tokenizer.token_to_id("<0xFF>")
    assert [detokenizer.push(bad) for _ in range(3)] == ["\ufffd"] * 3


def test_leading_space(byte_fallback_tokenizer: Tokenizer) -> None:
    the = byte_fallback_tokenizer.token_to_id("▁the")
    assert Detokenizer(byte_fallback_tokenizer).push(the) == "the"
    assert Detokenizer(byte_fallback_tokenizer, [1]).push(the) == "the"  # after <s> alone
    assert Detokenizer(byte_fallback_tokenizer, [the]).push(the) == " the"


def test_special_tokens_on_request(byte_level_tokenizer: Tokenizer) -> None:
    end = byte_level_tokenizer.token_to_id("<|end|>")
    assert Detokenizer(byte_level_tokenizer).push(end) == ""
    assert Detokenizer(byte_level_tokenizer, skip_special_tokens=False).push(end) == "<|end|>"


@pytest.mark.parametrize("token", ["a", "<0xFF>", "<0xF0>"])
def test_time_grows_with_the_number_of_tokens(
    byte_fallback_tokenizer: Tokenizer, token: str
) -> None:
    """Twenty times the tokens may take twenty times the time, with ample allowance; quadratic
    cost would take four hundred."""
    token_id = byte_fallback_tokenizer.token_to_id(token)

    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            detokenizer = Detokenizer(byte_fallback_tokenizer)
            start = time.process_time()
            for _ in range(count):
                detokenizer.push(token_id)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(20_000) < 100 * seconds(1_000)

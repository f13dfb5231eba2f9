"""Thinking told from answering, however the text is divided."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.text.reasoning import ReasoningSplitter, split_reasoning

PIECES = ["<think>", "</think>", "<", "/", "think>", "<thi", "</th", "a", "\n", "\r\n", " ", "é"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def searched(text: str, inside: bool) -> tuple[str, str]:
    """The same with the whole text at hand."""
    reasoning = content = ""
    if not inside and text.lstrip().startswith("<think>"):
        text = text.lstrip()
    while True:
        tag = "</think>" if inside else "<think>"
        place = text.find(tag)
        part = text if place < 0 else text[:place]
        if inside:
            reasoning += part
        else:
            content += part
        if place < 0:
            return reasoning, content
        text = text[place + len(tag) :]
        if inside:
            text = re.sub(r"\A[\r\n]+", "", text)
        inside = not inside


@settings(deadline=None)
@given(text=TEXT, inside=st.booleans())
def test_every_division_in_two_and_character_by_character(text: str, inside: bool) -> None:
    expected = searched(text, inside)
    divisions = [[text[:cut], text[cut:]] for cut in range(len(text) + 1)]
    for chunks in [[text], list(text), *divisions]:
        splitter = ReasoningSplitter(inside=inside)
        deltas = [*map(splitter.push, chunks), splitter.flush()]
        assert "".join(delta.reasoning for delta in deltas) == expected[0]
        assert "".join(delta.content for delta in deltas) == expected[1]


@given(text=TEXT, cuts=st.lists(st.integers(0, 60)), inside=st.booleans())
def test_any_division(text: str, cuts: list[int], inside: bool) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    splitter = ReasoningSplitter(inside=inside)
    chunks = [text[a:b] for a, b in itertools.pairwise(places)]
    deltas = [*map(splitter.push, chunks), splitter.flush()]
    reasoning = "".join(delta.reasoning for delta in deltas)
    assert (reasoning, "".join(delta.content for delta in deltas)) == searched(text, inside)


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>hm</think>\n\nyes", False, ("hm", "yes")),
        ("hm\n</think>\n\nyes\n", True, ("hm\n", "yes\n")),
        ("plain", False, (None, "plain")),
        ("\n<think>hm</think>\nyes", False, ("hm", "yes")),
        ("\n yes <think>hm</think>", False, ("hm", "\n yes ")),
        (" \n", False, (None, " \n")),
        ("<think>never closed", False, ("never closed", "")),
        ("a < b </thin", True, ("a < b </thin", "")),
        ("so </think> it was", False, (None, "so </think> it was")),
        ("<think>a<think>b</think>c", False, ("a<think>b", "c")),
    ],
)
def test_examples(text: str, inside: bool, expected: tuple[str | None, str]) -> None:
    assert split_reasoning(text, inside=inside) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think> \n<response>\nyes</response>", ("hm", "yes")),
        ("<think>hm</think><response>never closed", ("hm", "never closed")),
        ("<think>hm</think>\n\nno tags", ("hm", "no tags")),
        ("<think>hm</think>\n<resp", ("hm", "<resp")),
        ("<think>hm</think>see <response>x</response>", ("hm", "see <response>x</response>")),
        ("<response>x</response>", ("", "<response>x</response>")),
        ("<think>a</think><response>b</response><think>c</think>d", ("ac", "bd")),
    ],
)
def test_an_answer_in_tags(text: str, expected: tuple[str, str]) -> None:
    for cut in range(len(text) + 1):
        splitter = ReasoningSplitter(tagged_answer=True)
        deltas = [splitter.push(text[:cut]), splitter.push(text[cut:]), splitter.flush()]
        found = ("".join(d.reasoning for d in deltas), "".join(d.content for d in deltas))
        assert found == expected, cut


def test_a_partial_tag_is_held_back() -> None:
    splitter = ReasoningSplitter()
    assert splitter.push("yes <thi").content == "yes "
    assert not splitter.push("nk")
    assert splitter.push(">deep").reasoning == "deep"
    assert splitter.inside


def test_active_only_where_the_template_thinks() -> None:
    assert ReasoningSplitter.for_prompt("{{ messages }}", "hi<think>") is None
    assert ReasoningSplitter.for_prompt(None, "hi") is None
    template = "{{ messages }}<think>"
    for prompt, inside in [
        ("hi", False),
        ("hi<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
    ]:
        splitter = ReasoningSplitter.for_prompt(template, prompt)
        assert splitter is not None
        assert splitter.inside is inside

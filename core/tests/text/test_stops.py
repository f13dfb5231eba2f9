"""Stop strings, however the text is divided."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tramontane.errors import ValidationError
from tramontane.text.stops import StopMatcher

TEXT = st.text(alphabet="abc", max_size=24)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def searched(text: str, stops: list[str]) -> tuple[str, bool]:
    """The same by search in the whole text: the first end, and there the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def pushed(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown = ""
    for start, end in itertools.pairwise(places):
        emitted, stopped = matcher.push(text[start:end])
        shown += emitted
        assert stopped == matcher.stopped
    return shown + matcher.flush(), matcher.stopped


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 24)))
@example(text="aab", stops=["ab", "aac"], cuts=[1, 2])
@example(text="abababc", stops=["ababc"], cuts=list(range(7)))
@example(text="abc", stops=["b", "abc"], cuts=[])
def test_division_changes_nothing(text: str, stops: list[str], cuts: list[int]) -> None:
    assert pushed(text, stops, cuts) == searched(text, stops)


@given(text=TEXT, stops=STOPS)
def test_nothing_is_held_back_longer_than_needed(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for end, char in enumerate(text, 1):
        emitted, stopped = matcher.push(char)
        shown += emitted
        if stopped:
            return
        held = text[len(shown) : end]
        ends = [text[start:end] for start in range(end)]
        longest = max(
            (s for s in ends if any(stop.startswith(s) for stop in stops)), key=len, default=""
        )
        assert held == longest


def test_examples() -> None:
    matcher = StopMatcher(["\nUser:", "###"])
    assert matcher.push("Hello #") == ("Hello ", False)
    assert matcher.push("# not\nUs") == ("## not", False)
    assert matcher.push("er: me") == ("", True)
    assert matcher.match == "\nUser:"
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


def test_no_stop_strings_pass_everything() -> None:
    matcher = StopMatcher()
    assert matcher.push("text") == ("text", False)
    assert matcher.flush() == ""


@pytest.mark.parametrize("bad", [[""], ["a", None], [3]])
def test_bad_stop_strings(bad: list[str]) -> None:
    with pytest.raises(ValidationError, match="stop string"):
        StopMatcher(bad)

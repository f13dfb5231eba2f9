"""Stop strings found in text that arrives in pieces (Knuth, Morris and Pratt, 1977)."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.errors import ValidationError


class _Pattern:
    """One stop string, and how much of it the text so far ends with."""

    __slots__ = ("fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        # fallback[n]: length of the longest proper prefix that is also a suffix of text[:n]
        self.fallback = [0] * (len(text) + 1)
        length = 0
        for end in range(1, len(text)):
            while length and text[end] != text[length]:
                length = self.fallback[length]
            length += text[end] == text[length]
            self.fallback[end + 1] = length

    def step(self, char: str) -> bool:
        """Advance by one character; whether the stop string is now complete."""
        while self.matched and self.text[self.matched] != char:
            self.matched = self.fallback[self.matched]
        self.matched += self.text[self.matched] == char
        return self.matched == len(self.text)


class StopMatcher:
    """Passes text on until the first stop string, which it cuts off with all that follows.

    The stop string that is *completed* first wins, since generation ends there; of several
    completed by the same character the longest is cut. The outcome therefore depends on the
    characters alone, never on how they were divided between calls. What might still grow into a
    stop string is held back. Linear in the length of the text.

    Args:
        stop_strings: none may be empty.

    Raises:
        ValidationError: a stop string is empty or no string.
    """

    def __init__(self, stop_strings: Iterable[str] = ()) -> None:
        strings = list(dict.fromkeys(stop_strings))
        for string in strings:
            if not isinstance(string, str) or not string:
                raise ValidationError(
                    f"a stop string must be a string of at least one character, not {string!r}"
                )
        self._patterns = [_Pattern(string) for string in strings]
        self._held = ""
        self._match: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self._match is not None

    @property
    def match(self) -> str | None:
        """The stop string that ended the text."""
        return self._match

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text.

        Returns:
            The text that may be shown now, and whether a stop string has ended the output. After
            that, everything pushed is discarded.
        """
        if self._match is not None:
            return "", True
        if not self._patterns:
            return text, False
        text = self._held + text
        for position in range(len(self._held), len(text)):
            char = text[position]
            # Every pattern takes the step: none may fall behind because another has matched.
            complete = [pattern for pattern in self._patterns if pattern.step(char)]
            if complete:
                self._match = max((pattern.text for pattern in complete), key=len)
                self._held = ""
                return text[: position + 1 - len(self._match)], True
        keep = max(pattern.matched for pattern in self._patterns)
        emit, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return emit, False

    def flush(self) -> str:
        """The text still held back, once it is certain that no more will come."""
        held, self._held = self._held, ""
        return held

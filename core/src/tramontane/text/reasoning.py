"""Tells a model's thinking from its answer: text inside ``<think>`` … ``</think>``.

Granite 3.3 puts the answer, too, into tags: ``<response>`` … ``</response>``.
"""

from __future__ import annotations

from attrs import frozen

OPEN = "<think>"
CLOSE = "</think>"
ANSWER_OPEN = "<response>"
ANSWER_CLOSE = "</response>"


@frozen
class ReasoningDelta:
    """Text of one step, told apart. Either part may be empty.

    Attributes:
        reasoning: text from inside the tags.
        content: text from outside them.
    """

    reasoning: str = ""
    content: str = ""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content)


class ReasoningSplitter:
    """Splits generated text that arrives in pieces. The tags themselves are dropped.

    A piece that may be the beginning of a tag is held back until it is decided. White space before
    a ``<think>`` that begins the text and line breaks directly after ``</think>`` are dropped; all
    other text is kept as it came. Thinking that is never closed is reasoning to its end.
    ``</think>`` outside and ``<think>`` inside are ordinary text. The sums of both parts do not
    depend on how the text was divided.

    Args:
        inside: whether the text begins inside the tags.
        tagged_answer: whether what follows the thinking may be in tags, which are dropped too.
    """

    def __init__(self, *, inside: bool = False, tagged_answer: bool = False) -> None:
        self._inside = inside
        self._tagged_answer = tagged_answer
        self._held = ""
        self._trim = False
        # A tag that may come next, after nothing but white space, which then goes with it.
        self._next: str | None = None if inside else OPEN
        self._tags: tuple[str, ...] = (CLOSE,) if inside else (OPEN,)

    @classmethod
    def for_prompt(cls, template_source: str | None, prompt: str) -> ReasoningSplitter | None:
        """The splitter for one generation, or None if the model's template knows no thinking.

        Args:
            template_source: text of the chat template that rendered the prompt.
            prompt: the rendered prompt; ending in an open ``<think>`` means that the model goes on
                inside.
        """
        if template_source is None or OPEN not in template_source:
            return None
        return cls(
            inside=prompt.rstrip().endswith(OPEN), tagged_answer=ANSWER_OPEN in template_source
        )

    @property
    def inside(self) -> bool:
        """Whether the text so far ends inside the tags."""
        return self._inside

    def push(self, text: str) -> ReasoningDelta:
        """Take more text and return what is decided."""
        parts: dict[bool, list[str]] = {True: [], False: []}
        rest = self._held + text
        while True:
            if self._next is not None:
                first = rest.lstrip()
                if first.startswith(self._next):
                    rest = first[len(self._next) :]
                    self._pass(self._next)
                elif self._next.startswith(first):
                    self._held = rest
                    break
                else:
                    self._next = None
            found = [(at, tag) for tag in self._tags if (at := rest.find(tag)) >= 0]
            if not found:
                keep = max(_overlap(rest, tag) for tag in self._tags)
                self._held = rest[len(rest) - keep :]
                self._add(parts, rest[: len(rest) - keep])
                break
            at, tag = min(found)
            self._add(parts, rest[:at])
            rest = rest[at + len(tag) :]
            self._pass(tag)
        return ReasoningDelta("".join(parts[True]), "".join(parts[False]))

    def flush(self) -> ReasoningDelta:
        """What is still held back, once it is certain that no more text will come."""
        parts: dict[bool, list[str]] = {True: [], False: []}
        self._add(parts, self._held)
        self._held = ""
        return ReasoningDelta("".join(parts[True]), "".join(parts[False]))

    def _pass(self, tag: str) -> None:
        """Go on behind ``tag``."""
        self._inside = tag == OPEN
        self._trim = tag in (CLOSE, ANSWER_OPEN)
        self._next = ANSWER_OPEN if tag == CLOSE and self._tagged_answer else None
        if self._inside:
            self._tags = (CLOSE,)
        else:
            self._tags = (OPEN, ANSWER_CLOSE) if tag == ANSWER_OPEN else (OPEN,)

    def _add(self, parts: dict[bool, list[str]], text: str) -> None:
        if self._trim and not self._inside:
            text = text.lstrip("\r\n")
        if text:
            self._trim = False
            parts[self._inside].append(text)


def split_reasoning(text: str, *, inside: bool = False) -> tuple[str | None, str]:
    """Split a whole text at once.

    Returns:
        The reasoning, None if there was none, and the content.
    """
    splitter = ReasoningSplitter(inside=inside)
    first, last = splitter.push(text), splitter.flush()
    return first.reasoning + last.reasoning or None, first.content + last.content


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that begins ``tag``."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0

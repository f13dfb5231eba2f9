"""gpt-oss: every message has a channel (https://cookbook.openai.com/articles/openai-harmony).

``<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary
to=functions.NAME <|constrain|>json<|message|>{…}<|call|>``
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tramontane.text.tool_calls.events import Mark, Tools
from tramontane.text.tool_calls.grammar import json_arguments, literal, rules, signatures
from tramontane.text.tool_calls.reader import CallReader, MalformedError, Sink, Steps

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


class Harmony(CallReader):
    """Analysis and commentary are reasoning, the final channel is the answer, and a message to
    somebody else is a call: of ``functions.NAME``, or of a built-in tool such as ``python``, whose
    body is code."""

    HEADERS = ("<|channel|>", "<|start|>", "<|message|>", " to=")
    MESSAGE = "<|message|>"
    ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")

    def read(self) -> Steps[None]:
        header = ""  # the prompt ends with the first message's ``<|start|>assistant``
        while header or (yield from self.peek()):
            if not header and not (yield from self._has_header()):
                yield from self._body(self.say)
            else:
                yield from self.attempt(self._message(), before=header)
            header = "<|start|>" if (yield from self.optional("<|start|>")) else ""

    def _has_header(self) -> Steps[bool]:
        for start in self.HEADERS:
            if (yield from self.follows(start)):
                return True
        return False

    def _message(self) -> Steps[None]:
        """One message from its header on. Only a call's text is kept back to be told as text."""
        header, _ = yield from self.until(self.MESSAGE)
        recipient = _RECIPIENT.search(header)
        if recipient is not None and recipient[1] != "assistant":
            yield from self._call(recipient[1])
            return
        self._raw = None
        channel = _CHANNEL.search(header)
        final = channel is None or channel[1] == "final"
        yield from self._body(self.say if final else self.think)

    def _body(self, sink: Sink) -> Steps[None]:
        _, end = yield from self.until(*self.ENDS, sink=sink)
        if end == "<|start|>":
            self._position -= len(end)

    def _call(self, recipient: str) -> Steps[None]:
        name = recipient.removeprefix("functions.")
        yield from self.spaces()
        if name == "python":
            code, _ = yield from self.until(*self.ENDS)
            self.begin(name)(json.dumps({"code": code}, ensure_ascii=False))
        elif (yield from self.follows("{")):
            yield from self.json_value(self.begin(name))
        else:
            raise MalformedError
        self.complete()
        yield from self.spaces()
        for end in self.ENDS[:-1]:
            if (yield from self.optional(end)):
                return

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        calls = [
            f'{literal(f" to=functions.{name} ")} {mark("<|constrain|>")} "json" '
            f"{mark(cls.MESSAGE)} {json_arguments(schema)} {mark('<|call|>')}"
            for name, schema in signatures(tools)
        ]
        head = f'{mark("<|channel|>")} "commentary"'
        return rules(f"tool_call: {head} a_call", "a_call: " + " | ".join(calls))

    @classmethod
    def turn_grammar(cls, mark: Mark, *, endings: Sequence[str]) -> str | None:
        channel, message, constrain = map(mark, ("<|channel|>", cls.MESSAGE, "<|constrain|>"))
        end = mark("<|end|>")
        rest = "thought_text" if end.startswith('"') else f"ANY_TEXT {end}"
        ways = {
            "answer": f'{channel} "final" (" "? {constrain} /[a-z]+/)? {message} answer',
            "tool_call": "tool_call",
        }
        return rules(
            f"start: thought* ({' | '.join(ways[ending] for ending in endings)})",
            f'thought: {channel} ("analysis" | "commentary") {message} {rest} '
            f'{mark("<|start|>")} "assistant"',
            # Without special tokens a message ends where its text first says so.
            *([f"thought_text[lazy]: ANY_TEXT {end}"] if end.startswith('"') else ()),
        )

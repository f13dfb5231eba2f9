"""The training text: an endless, seeded stream of dialogues, rendered by the chat template."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from capitals import capital_turn
from everyday import copy_turn, everyday_turn
from jinja2.sandbox import ImmutableSandboxedEnvironment
from smalltalk import SYSTEMS, hard_turn, talk_turn
from stories import story_turn
from sums import minus_turn, plus_turn, times_turn
from tools import plain_messages, tool_dialogue, tool_messages, weather_task

TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text()
BOS, EOS, END, PAD = "<|bos|>", "<|eos|>", "<|end|>", "<|pad|>"

# Shares of the single turns. Sums weigh most: they have the most to learn.
_TURNS = ((plus_turn, 38), (minus_turn, 20), (times_turn, 4), (capital_turn, 16),
          (everyday_turn, 22), (talk_turn, 10), (copy_turn, 10), (hard_turn, 2))  # fmt: skip
_KINDS, _WEIGHTS = zip(*_TURNS, strict=True)


@dataclass(frozen=True)
class Dialogue:
    """Messages of one conversation and the tools offered in it, or a plain text in `raw`."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    raw: str = ""


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


_COMPILED = _environment().from_string(TEMPLATE)


def render(dialogue: Dialogue, add_generation_prompt: bool = False) -> str:
    """Return the text of a dialogue, its special tokens written out."""
    if dialogue.raw:
        return BOS + dialogue.raw + EOS
    return _COMPILED.render(
        messages=dialogue.messages,
        tools=dialogue.tools or None,
        bos_token=BOS,
        add_generation_prompt=add_generation_prompt,
    )


def _typed(random: Random, ask: str) -> str:
    """Return the question as a hurried person may type it."""
    chance = random.random()
    if chance < 0.08:
        ask = ask.lower()
    elif chance < 0.12:
        ask = ask.lower().rstrip("?.!")
    elif chance < 0.2:
        ask = ask.rstrip("?.!")
    elif chance < 0.22:
        ask = ask.upper() if len(ask) < 12 else ask + " "
    return ask


def _turn(random: Random) -> list[dict[str, Any]]:
    kind = random.choices(_KINDS, _WEIGHTS)[0]
    ask, answer = kind(random)
    copied = kind is copy_turn or (kind is everyday_turn and not answer[:1].isupper())
    return plain_messages((ask if copied else _typed(random, ask), answer))


def dialogue(random: Random) -> Dialogue:
    """Return one dialogue of the training set."""
    chance = random.random()
    if chance < 0.01:
        return Dialogue(raw=story_turn(random)[1])
    tools: list[dict[str, Any]] = []
    if chance < 0.36:
        tools, messages = tool_dialogue(random)
        if random.random() < 0.1 and len(messages) == 4:
            task = weather_task(random)
            if task.name not in [tool["function"]["name"] for tool in tools]:
                tools, messages = [*tools, task.schema], messages + tool_messages(random, task)
    elif chance < 0.4:
        messages = plain_messages(story_turn(random))
        if random.random() < 0.3:
            messages += plain_messages(talk_turn(random))
    else:
        count = random.choice((1, 1, 1, 1, 2, 3, 4, 6))
        messages = [message for _ in range(count) for message in _turn(random)]
    if random.random() < 0.25:
        messages = [{"role": "system", "content": random.choice(SYSTEMS)}, *messages]
    return Dialogue(messages, tools)


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Yield dialogues without end, the same ones for the same seed."""
    random = Random(seed)
    while True:
        yield dialogue(random)

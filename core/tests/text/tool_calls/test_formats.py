"""Every format on whole text, on every split in two, and a character at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from attrs import define, field

from tramontane.hooks import plugin_manager
from tramontane.text.tool_calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    Said,
    Thought,
    ToolFormat,
    TurnEvent,
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "deep": {"type": "object"},
                    "fast": {"type": ["boolean", "null"]},
                },
            },
        },
    }
    for name in ("weather", "time_of")
]

ARGUMENTS = {"city": 'Zürich "}</', "days": 3, "deep": {"a": [1, "]}"]}}
J = json.dumps(ARGUMENTS, ensure_ascii=False)
W = ("weather", ARGUMENTS)
E = ("time_of", {})


@define
class Turn:
    """What events say together."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, list[Any]] = field(factory=dict)
    ids: list[str] = field(factory=list)
    pieces: int = 0

    @classmethod
    def of(cls, events: Iterable[TurnEvent]) -> Turn:
        turn = cls()
        for event in events:
            match event:
                case Said(text):
                    assert text
                    turn.content += text
                case Thought(text):
                    assert text
                    turn.reasoning += text
                case CallBegun(index, call_id, name):
                    assert index not in turn.calls
                    turn.calls[index] = [name, ""]
                    turn.ids.append(call_id)
                case CallArguments(index, text):
                    turn.calls[index][1] += text
                    turn.pieces += 1
                case CallBroken(index):
                    del turn.calls[index]
        return turn

    @property
    def said(self) -> tuple[str, str, list[tuple[str, Any]]]:
        calls = [(name, json.loads(text)) for name, text in self.calls.values()]
        return self.content, self.reasoning, calls


def reader(name: str) -> ToolFormat:
    manager = plugin_manager()
    made: ToolFormat = manager.resolve(manager.get("tool_formats", name))(TOOLS)
    return made


def read(name: str, chunks: Iterable[str]) -> Turn:
    parser = reader(name)
    events = [event for chunk in chunks for event in parser.push(chunk)]
    return Turn.of(events + parser.flush())


DS = "<｜tool▁call▁begin｜>"
DE = "<｜tool▁call▁end｜>"
KB, KA, KE = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
CODER = (
    '<tool_call>\n<function=weather>\n<parameter=city>\nZürich "}</\n</parameter>\n'
    '<parameter=days>\n3\n</parameter>\n<parameter=deep>\n{"a": [1, "]}"]}\n</parameter>\n'
    "</function>\n</tool_call>"
)
GLM = (
    '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich "}</</arg_value>\n'
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
    '<arg_key>deep</arg_key>\n<arg_value>{"a": [1, "]}"]}</arg_value>\n</tool_call>'
)
PY = """weather(city='Zürich "}</', days=3, deep={'a': [1, "]}"]})"""
QUOTED = json.dumps(J, ensure_ascii=False)

# format, text, content, reasoning, calls
CASES: list[tuple[str, str, str, str, list[Any]]] = [
    ("hermes", "Just text.\n", "Just text.\n", "", []),
    ("hermes", "a < b <tool", "a < b <tool", "", []),
    ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {J}}}\n</tool_call>', "", "", [W]),
    (
        "hermes",
        f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {J}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time_of", "arguments": {}}\n</tool_call>\nDone.',
        "Let me see.\n\n\nDone.",
        "",
        [W, E],
    ),
    ("hermes", f'<tool_call>{{"arguments": {J}, "name": "weather"}}</tool_call>', "", "", [W]),
    ("hermes", f'<tool_call>{{"name":"weather","arguments":{QUOTED}}}</tool_call>', "", "", [W]),
    ("hermes", f'<tool_call>{{"name":"weather","arguments":"{J}"}}</tool_call>', "", "", [W]),
    (
        "hermes",
        f'<tool_call>{{"type": "function", "function": {{"name": "weather", "arguments": {J}}}}}'
        "</tool_call>",
        "",
        "",
        [W],
    ),
    ("hermes", '<tool_call>{"name": "time_of"}', "", "", [E]),
    (
        "hermes",
        "<tool_call>{nonsense}</tool_call> ok",
        "<tool_call>{nonsense}</tool_call> ok",
        "",
        [],
    ),
    (
        "hermes",
        '<tool_call>{"name": "time_of", "arguments": {,}}</tool_call>',
        '<tool_call>{"name": "time_of", "arguments": {,}}</tool_call>',
        "",
        [],
    ),
    (
        "hermes",
        'Hm. <tool_call>\n{"name": "weather", "arguments": {"city": "Zü',
        'Hm. <tool_call>\n{"name": "weather", "arguments": {"city": "Zü',
        "",
        [],
    ),
    (
        "hermes",
        '<tool_call>{"name": "time_of", "arguments": {}}</tool_call>\n<tool_call>\n{"na',
        '<tool_call>\n{"na',
        "",
        [E],
    ),
    (
        "llama",
        f'{{"name": "weather", "parameters": {J}}}; {{"name": "time_of", "parameters": {{}}}}',
        "",
        "",
        [W, E],
    ),
    ("llama", f'<|python_tag|>{{"name": "weather", "parameters": {J}}}', "", "", [W]),
    ("llama", '{"name": "Anna", "parameters": {}}', '{"name": "Anna", "parameters": {}}', "", []),
    ("llama", '\n{"answer": 42} \n', '\n{"answer": 42} \n', "", []),
    ("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)", "", []),
    ("llama", f'Now: <|python_tag|>{{"name": "weather", "parameters": {J}}}', "Now:", "", [W]),
    ("qwen_coder", CODER, "", "", [W]),
    ("qwen_coder", f"I look.\n\n{CODER}\n{CODER}", "I look.", "", [W, W]),
    ("qwen_coder", "<function=time_of>\n</function>", "", "", [E]),
    (
        "qwen_coder",
        "<tool_call>\n<function=weather>\n<parameter=fast>\nTrue\n</parameter>\n"
        "<parameter=days>\nmany\n</parameter>\n<parameter=x>\n1\n</parameter>\n</function>",
        "",
        "",
        [("weather", {"fast": True, "days": "many", "x": "1"})],
    ),
    ("qwen_coder", CODER[:-20], CODER[:-20], "", []),
    ("glm", GLM, "", "", [W]),
    ("glm", f"I look.\n{GLM}\n<tool_call>time_of</tool_call>", "I look.", "", [W, E]),
    ("glm", GLM[:60], GLM[:60], "", []),
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {J}}}, {{"name": "time_of", '
        '"arguments": {}, "id": "123456789"}]',
        "",
        "",
        [W, E],
    ),
    ("mistral", '[TOOL_CALLS] [{"name": "wea', '[TOOL_CALLS] [{"name": "wea', "", []),
    ("mistral_args", f"[TOOL_CALLS]weather[ARGS]{J}[TOOL_CALLS]time_of[ARGS]{{}}", "", "", [W, E]),
    ("mistral_args", f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{J}", "", "", [W]),
    (
        "mistral_args",
        f"So: [TOOL_CALLS]weather[ARGS]{J[:9]}",
        f"So: [TOOL_CALLS]weather[ARGS]{J[:9]}",
        "",
        [],
    ),
    ("granite", f'<|tool_call|>[{{"name": "weather", "arguments": {J}}}]', "", "", [W]),
    ("granite", f'<|tool_call|> {{"name": "weather", "arguments": {J}}}', "", "", [W]),
    (
        "phi4",
        f'<|tool_call|>[{{"name": "weather", "arguments": {J}}}, {{"name": "time_of"}}]'
        "<|/tool_call|>",
        "",
        "",
        [W, E],
    ),
    (
        "deepseek_v3",
        f"<｜tool▁calls▁begin｜>{DS}function<｜tool▁sep｜>weather\n```json\n{J}\n```{DE}\n"
        f"{DS}function<｜tool▁sep｜>time_of\n```json\n{{}}\n```{DE}<｜tool▁calls▁end｜>",
        "",
        "",
        [W, E],
    ),
    (
        "deepseek_v3",
        f"Yes.{DS}function<｜tool▁sep｜>weather\n```json\n{J}\n",
        "Yes.",
        "",
        [W],
    ),
    (
        "deepseek_v31",
        f"Yes.<｜tool▁calls▁begin｜>{DS}weather<｜tool▁sep｜>{J}{DE}"
        f"{DS}time_of<｜tool▁sep｜>{{}}{DE}<｜tool▁calls▁end｜>",
        "Yes.",
        "",
        [W, E],
    ),
    (
        "deepseek_v31",
        f"{DS}weather<｜tool▁sep｜>{J[:5]}",
        f"{DS}weather<｜tool▁sep｜>{J[:5]}",
        "",
        [],
    ),
    (
        "kimi",
        f"<|tool_calls_section_begin|>{KB}functions.weather:0{KA}{J}{KE}"
        f"{KB}functions.time_of:1{KA}{{}}{KE}<|tool_calls_section_end|>",
        "",
        "",
        [W, E],
    ),
    ("pythonic", f"[{PY}, time_of()]", "", "", [W, E]),
    ("pythonic", f"<|python_start|>[{PY}]<|python_end|>", "", "", [W]),
    (
        "pythonic",
        "[weather('Rome', 2, fast=null)]",
        "",
        "",
        [("weather", {"city": "Rome", "days": 2, "fast": None})],
    ),
    ("pythonic", r'[weather(city="\ud83c\udf27")]', "", "", [("weather", {"city": "🌧"})]),
    ("pythonic", "[a link](http://x)", "[a link](http://x)", "", []),
    ("pythonic", "[weather(city='Ro", "[weather(city='Ro", "", []),
    ("pythonic", "[weather(city=open('x'))]", "[weather(city=open('x'))]", "", []),
    (
        "harmony",
        "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>"
        f"commentary to=functions.weather <|constrain|>json<|message|>{J}<|call|>",
        "",
        "Need the weather.",
        [W],
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>"
        "It is **4**.<|return|>",
        "It is **4**.",
        "Easy.",
        [],
    ),
    (
        "harmony",
        "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant "
        f"to=functions.weather<|channel|>commentary json<|message|>{J}",
        "",
        "I will look.",
        [W],
    ),
    ("harmony", "No channels here.", "No channels here.", "", []),
    ("harmony", "<|channel|>analysis<|message|>Half a tho", "", "Half a tho", []),
    (
        "harmony",
        "<|channel|>commentary to=python code<|message|>print(1)<|call|>",
        "",
        "",
        [("python", {"code": "print(1)"})],
    ),
    (
        "harmony",
        '<|channel|>commentary to=functions.weather json<|message|>{"city',
        '<|channel|>commentary to=functions.weather json<|message|>{"city',
        "",
        [],
    ),
]
IDS = [f"{case[0]}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "text", "content", "reasoning", "calls"), CASES, ids=IDS)
def test_reading(name: str, text: str, content: str, reasoning: str, calls: list[Any]) -> None:
    expected = (content, reasoning, calls)
    assert read(name, [text]).said == expected
    assert read(name, text).said == expected
    for at in range(len(text) + 1):
        assert read(name, [text[:at], text[at:]]).said == expected, at


FIRST = {name: text for name, text, *_, calls in reversed(CASES) if W in calls}


@pytest.mark.parametrize("name", [name for name in FIRST if name != "pythonic"])
def test_arguments_come_in_parts(name: str) -> None:
    assert read(name, FIRST[name]).pieces > 2


@pytest.mark.parametrize("name", [spec.name for spec in plugin_manager().specs("tool_formats")])
@pytest.mark.parametrize("text", ["", " \n", "Hello, wörld! 1 < 2 [x] {y} <z>\n", "[", "{", "<|"])
def test_plain_text_stays_as_it_is(name: str, text: str) -> None:
    assert read(name, [text]).said == (text, "", [])
    assert read(name, text).said == (text, "", [])


def test_plain_text_is_not_held_back() -> None:
    for spec in plugin_manager().specs("tool_formats"):
        assert reader(spec.name).push("Hello, ") == [Said("Hello,")], spec.name


def test_mistral_ids_are_as_its_templates_want_them() -> None:
    for name, text in (
        ("mistral", '[TOOL_CALLS][{"name": "time_of", "arguments": {}}]'),
        ("mistral_args", "[TOOL_CALLS]time_of[ARGS]{}"),
    ):
        (call_id,) = read(name, [text]).ids
        assert len(call_id) == 9
        assert call_id.isalnum()


def test_hostile_text_is_read_quickly() -> None:
    for name in ("hermes", "llama", "pythonic", "harmony", "glm"):
        for text in ("<tool_call>" * 3000, "[" * 30000, '{"name": "' + "x" * 30000, "{" * 30000):
            turn = read(name, [text])
            assert not turn.calls

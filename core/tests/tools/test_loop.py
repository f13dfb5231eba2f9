"""Automatic tool rounds with a scripted model: history, records, streams, failures, closing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tramontane.api import ChatCompletionRequest, ChatCompletionResponse
from tramontane.errors import PromptTooLongError, ValidationError
from tramontane.hooks import ToolSource
from tramontane.text.chat_template import ChatTemplate
from tramontane.tools.loop import ToolStream
from tramontane.tools.registry import ToolRegistry
from tramontane_testkit.data import data_path
from tramontane_testkit.scripted import Script, call, schema


def add(name: str, arguments: Mapping[str, Any]) -> str:
    assert name == "add"
    return str(arguments["a"] + arguments["b"])


def stream_of(
    script: Script,
    callbacks: Mapping[str, Callable[..., Any]] | None = None,
    *,
    offered: tuple[str, ...] = ("add",),
    rounds: int = 4,
    **options: Any,
) -> ToolStream:
    tools = ToolRegistry(callbacks or {"add": add}, **options)
    request = ChatCompletionRequest(
        "What is 17 plus 25?", tool_schemas=[schema(n) for n in offered], stream=True
    )
    return ToolStream(request, script.start, tools, rounds)


def test_the_model_is_given_the_result_and_answers() -> None:
    script = Script(["I add.\n" + call("add", a=17, b=25), "It is 42."])
    response = stream_of(script).collect()
    assert response.choices[0].message.content == "It is 42."
    assert response.choices[0].finish_reason == "stop"
    asked, result = response.tool_messages or []
    assert asked["role"] == "assistant"
    assert asked["content"] == "I add."
    (made,) = asked["tool_calls"]
    assert made["function"] == {"name": "add", "arguments": '{"a": 17, "b": 25}'}
    assert result == {
        "role": "tool",
        "tool_call_id": made["id"],
        "name": "add",
        "content": "42",
    }
    assert script.requests[1].messages == [
        {"role": "user", "content": "What is 17 plus 25?"},
        asked,
        result,
    ]
    (run,) = response.executed_tool_calls or []
    assert (run.round, run.name, run.result, run.is_error) == (0, "add", "42", False)
    assert response.usage.total_tokens == 6
    assert response.usage.total_time_sec == 6.0


def test_calls_of_a_turn_run_beside_each_other() -> None:
    together = threading.Barrier(2, timeout=10)

    def meet(name: str, arguments: Mapping[str, Any]) -> str:
        together.wait()
        return str(arguments["n"])

    script = Script([call("meet", n=1) + call("meet", n=2), "Done."])
    response = stream_of(script, {"meet": meet}, offered=("meet",)).collect()
    assert script.results == ["1", "2"]
    assert [run.result for run in response.executed_tool_calls or ()] == ["1", "2"]


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (lambda name, arguments: 1 / 0, "ERROR: ZeroDivisionError"),
        (lambda name, arguments: (_ for _ in ()).throw(SystemExit(3)), "ERROR: SystemExit"),
        (lambda name, arguments: None, "ERROR: the tool returned nothing"),
        (lambda name, arguments: object(), "ERROR: the tool returned a object"),
        (lambda name, arguments: time.sleep(30), "ERROR: no result within 0.2 s"),
        (lambda: "takes no arguments", "ERROR: TypeError"),
        (lambda name, arguments: {"sum": [1, None]}, '{"sum": [1, null]}'),
    ],
)
def test_whatever_a_tool_does_the_model_is_told(behaviour: Any, told: str) -> None:
    script = Script([call("odd"), "I see."])
    began = time.monotonic()
    response = stream_of(script, {"odd": behaviour}, offered=("odd",), timeout_secs=0.2).collect()
    assert time.monotonic() - began < 10
    assert response.choices[0].message.content == "I see."
    (result,) = script.results
    assert result.startswith(told)
    (run,) = response.executed_tool_calls or ()
    assert run.is_error is told.startswith("ERROR")


def test_coroutines_are_tools_too() -> None:
    async def later(name: str, arguments: Mapping[str, Any]) -> str:
        await asyncio.sleep(0)
        return "late"

    script = Script([call("later"), "Ok."])
    stream_of(script, {"later": later}, offered=("later",)).collect()
    assert script.results == ["late"]


def test_a_tool_that_does_not_exist() -> None:
    script = Script([call("subtract", a=1), "Sorry."])
    stream_of(script).collect()
    assert script.results == ["ERROR: there is no tool called 'subtract'; there are add"]


def test_rounds_are_limited() -> None:
    script = Script([call("add", a=1, b=1)] * 9)
    response = stream_of(script, rounds=2).collect()
    assert len(script.requests) == 3
    assert response.choices[0].finish_reason == "tool_calls"
    assert response.choices[0].message.tool_calls
    assert len(response.executed_tool_calls or ()) == 2


def test_the_callers_own_tool_is_left_to_the_caller() -> None:
    script = Script([call("add", a=1, b=2) + call("mine")])
    response = stream_of(script, offered=("add", "mine")).collect()
    assert response.choices[0].finish_reason == "tool_calls"
    assert len(response.choices[0].message.tool_calls or ()) == 2
    assert response.executed_tool_calls is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (False, "ERROR: the user declined this call"),
        ("not on Sundays", "ERROR: not on Sundays"),
        (True, "3"),
        (None, "ERROR: the user declined this call"),
    ],
)
def test_approval(answer: Any, told: str) -> None:
    asked: list[Any] = []

    def approve(name: str, arguments: Mapping[str, Any]) -> Any:
        asked.append((name, arguments))
        return answer

    script = Script([call("add", a=1, b=2), "Ok."])
    stream_of(script, approval=approve).collect()
    assert asked == [("add", {"a": 1, "b": 2})]
    assert script.results == [told]


def test_approval_that_fails_declines() -> None:
    script = Script([call("add", a=1, b=2), "Ok."])
    stream_of(script, approval=lambda name, arguments: 1 / 0).collect()
    assert script.results == ["ERROR: the user declined this call"]


def read(chunks: list[Any]) -> None:
    """What every stream of two rounds looks like."""
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I add.It is 42."
    begun = [c for delta in deltas for c in delta.tool_calls or () if c.id]
    assert [c.index for c in begun] == [0, 1]
    assert len({chunk.id for chunk in chunks}) == 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "stop"
    assert not any(reasons[:-1])
    assert [chunk.usage is not None for chunk in chunks].index(True) == len(chunks) - 1
    assert chunks[-1].usage.total_tokens == 9
    told = [chunk.executed_tool_calls for chunk in chunks if chunk.executed_tool_calls]
    assert [[run.result for run in runs] for runs in told] == [["42"], ["2"]]
    history = [message for chunk in chunks for message in chunk.tool_messages or ()]
    assert [message["role"] for message in history] == ["assistant", "tool"] * 2
    assert (history[0]["content"], history[1]["content"]) == ("I add.", "42")


TURNS = ["I add.\n" + call("add", a=17, b=25), call("add", a=1, b=1), "It is 42."]


def test_a_stream_tells_every_round() -> None:
    read(list(stream_of(Script(TURNS))))


def test_asyncio_sees_the_same() -> None:
    async def main() -> tuple[list[Any], ChatCompletionResponse]:
        chunks = [chunk async for chunk in stream_of(Script(TURNS))]
        return chunks, await stream_of(Script(TURNS)).collect_async()

    chunks, response = asyncio.run(main())
    read(chunks)
    assert response.choices[0].message.content == "It is 42."
    assert len(response.executed_tool_calls or ()) == 2


def test_closing_cancels_the_turn() -> None:
    script = Script(["Hello"], hangs=True)
    with stream_of(script) as stream:
        assert next(stream).choices[0].delta.content == "H"
    assert script.canceled == 1
    stream.close()
    assert script.canceled == 1


def test_closing_lets_go_of_a_tool() -> None:
    started = threading.Event()
    release = threading.Event()

    def hang(name: str, arguments: Mapping[str, Any]) -> str:
        started.set()
        release.wait(20)
        return "late"

    script = Script([call("hang"), "Never said."])
    stream = stream_of(script, {"hang": hang}, offered=("hang",))
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert started.wait(10)
    stream.close()
    reader.join(10)
    release.set()
    assert not reader.is_alive()
    assert len(script.requests) == 1


def test_a_forced_call_is_forced_once() -> None:
    script = Script([call("add", a=1, b=1), "2"])
    request = ChatCompletionRequest("1+1?", tool_schemas=[schema("add")], tool_choice="required")
    ToolStream(request, script.start, ToolRegistry({"add": add}), 4).collect()
    assert script.requests[1].tool_choice == "auto"


def test_a_result_that_does_not_fit_is_told_of() -> None:
    script = Script([call("much"), "So much."], room=1000)
    stream = stream_of(script, {"much": lambda name, arguments: "x" * 5000}, offered=("much",))
    response = stream.collect()
    told = "ERROR: the result, 5,000 characters, is longer than there is room for; ask for less"
    assert script.results == [told]
    (run,) = response.executed_tool_calls or []
    assert (run.result, run.is_error) == (told, True)
    assert (response.tool_messages or [])[1]["content"] == told
    stubborn = Script([call("much"), ""], room=10)
    with pytest.raises(PromptTooLongError):
        stream_of(stubborn, {"much": lambda *_: "x" * 5000}, offered=("much",)).collect()


# -- tools from plug-ins -----------------------------------------------------------------------


def test_tools_of_a_source_are_offered_and_run() -> None:
    closed: list[str] = []
    source = ToolSource(
        name="clock",
        tools={"now": {"description": "The time", "parameters": {"type": "object"}}},
        call=lambda name, arguments: f"{name} noon",
        close=lambda: closed.append("clock"),
    )
    tools = ToolRegistry({"add": add}, [source])
    request = ChatCompletionRequest("Hi", tool_schemas=[schema("add")])
    request.tool_schemas = tools.offered(request)
    assert [tool["function"]["name"] for tool in request.tool_schemas] == ["add", "now"]
    script = Script([call("now"), "Noon."])
    ToolStream(request, script.start, tools, 4).collect()
    assert script.results == ["now noon"]
    tools.close()
    assert closed == ["clock"]


def test_names_that_collide_are_refused() -> None:
    source = ToolSource(name="clock", tools={"add": {}}, call=lambda name, arguments: "")
    with pytest.raises(ValidationError, match="tool_callbacks and clock both have a tool"):
        ToolRegistry({"add": add}, [source])
    with pytest.raises(ValidationError, match="one and two both"):
        ToolRegistry(
            {}, [ToolSource(name=n, tools={"t": {}}, call=source.call) for n in ("one", "two")]
        )
    with pytest.raises(ValidationError, match="rename"):
        ToolRegistry({}, [source]).beside(ChatCompletionRequest("Hi", tool_schemas=[schema("add")]))


def test_a_late_tool_whose_name_is_taken_is_refused_alone() -> None:
    late: dict[str, dict[str, Any]] = {}
    servers = {"desk": {"state": "connected", "tools": late.keys()}}
    mcp = ToolSource(
        name="mcp", tools=late, call=lambda name, _: f"late {name}", status=lambda: servers
    )
    clock = ToolSource(name="clock", tools={"now": {}}, call=lambda name, _: "noon")
    tools = ToolRegistry({"add": add}, [mcp, clock])
    late.update({"add": {}, "now": {}, "search": {}, "free": {}})

    plain = ChatCompletionRequest("Hi")
    assert [t["function"]["name"] for t in tools.offered(plain)] == ["search", "free", "now"]
    request = ChatCompletionRequest("Hi", tool_schemas=[schema("add")])
    request.tool_schemas = tools.offered(request)
    script = Script([call("now") + call("free") + call("add", a=1, b=2), "Done."])
    ToolStream(request, script.start, tools, 4).collect()
    assert script.results == ["noon", "late free", "3"]
    status = tools.status()["desk"]
    assert status["tools"] == ["search", "free"]
    assert "tool_callbacks and mcp both" in status["refused"]["add"]
    assert "clock and mcp both" in status["refused"]["now"]

    own = ChatCompletionRequest("Hi", tool_schemas=[schema("search")])
    mine = tools.beside(own)
    assert "search" not in mine
    assert "free" in mine
    assert [t["function"]["name"] for t in mine.offered(own)] == ["search", "free", "now"]
    assert "search" in tools, "other requests have it"

    web = ToolSource(name="web", tools={"free": {}}, call=lambda name, _: "web")
    joined = tools.joined(web)
    assert [t["function"]["name"] for t in joined.offered(plain)] == ["search", "now", "free"]
    with pytest.raises(ValidationError, match="web has a tool called 'now', and so has clock"):
        tools.joined(ToolSource(name="web", tools={"now": {}}, call=web.call))

    late.clear()
    assert [t["function"]["name"] for t in tools.offered(plain)] == ["now"]
    assert "refused" not in tools.status()["desk"]


# -- the history in real templates -------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "GLM-4.6",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "deepseek-ai-DeepSeek-V3.1",
        "ibm-granite-granite-4.0",
        "meta-llama-Llama-3.1-8B-Instruct",
        "meta-llama-Llama-3.2-3B-Instruct",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "openai-gpt-oss-120b",
    ],
)
def test_templates_render_the_history(name: str) -> None:
    """Calls and results that the loop writes are what templates expect."""
    text = data_path("chat-templates", f"{name}.jinja").read_text(encoding="utf-8")
    script = Script([call("add", a=17, b=25), "It is 42."])
    stream_of(script).collect()
    messages = script.requests[1].messages
    assert isinstance(messages, list)
    messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "abcdefghi"
    prompt = ChatTemplate(text, bos_token="<s>", eos_token="</s>").render(
        messages, tools=script.requests[1].tool_schemas
    )
    assert "42" in prompt
    assert "17" in prompt
    assert prompt.index("17") < prompt.rindex("42")

"""Every public class: data → object → data → object, through JSON."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any

import attrs
import pytest

from tramontane import api
from tramontane.api import (
    AnyMoeConfig,
    AnyMoeExpertType,
    ApproximateUserLocation,
    CalledFunction,
    ChatCompletionChunkResponse,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionChunkChoice,
    CompletionChunkResponse,
    CompletionRequest,
    CompletionResponse,
    Delta,
    EmbeddingRequest,
    ExecutedToolCall,
    FunctionDelta,
    ImageChoice,
    ImageGenerationResponse,
    Logprobs,
    LoraAdapter,
    McpClientConfigPy,
    McpServerConfigPy,
    McpServerSourcePy,
    ResponseLogprob,
    ResponseMessage,
    SpeechGenerationResponse,
    TextAutoMapParams,
    ToolCallDelta,
    ToolCallResponse,
    TopLogprob,
    Usage,
    VisionAutoMapParams,
    WebSearchOptions,
    WebSearchUserLocation,
)
from tramontane.api.convert import from_json, structure, to_json, unstructure
from tramontane.errors import ValidationError
from tramontane.which import Which

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USAGE = Usage(
    completion_tokens=2,
    prompt_tokens=3,
    total_tokens=5,
    avg_tok_per_sec=1.0,
    avg_prompt_tok_per_sec=2.5,
    avg_compl_tok_per_sec=3.0,
    total_time_sec=0.1,
    total_prompt_time_sec=0.2,
    total_completion_time_sec=0.3,
)
TOKEN = ResponseLogprob(
    token="é",
    logprob=-0.5,
    bytes=[195, 169],
    top_logprobs=[TopLogprob(token="é", logprob=-0.5, bytes=[195, 169])],
)
CALL = ToolCallResponse(id="call-1", function=CalledFunction(name="f", arguments="{}"))
MORE = ToolCallDelta(index=1, id="call-2", type="function", function=FunctionDelta(name="g"))
RUN = ExecutedToolCall(round=0, id="call-1", name="f", arguments="{}", result="42")
LOCATION = ApproximateUserLocation("Avignon", "France", "Vaucluse", "Europe/Paris")
WEB = WebSearchOptions("high", WebSearchUserLocation.approximate(LOCATION), "s", "e")
PROCESS = McpServerSourcePy.Process("server", ["--root", "/tmp"], None, {"LEVEL": "debug"})
SERVER = McpServerConfigPy("fs", "Files", PROCESS, True, "fs", ["file://**"], None)
HTTP = McpServerSourcePy.Http("https://example.com/mcp", 30, {"X-API-Version": "v1"})
SOCKET = McpServerSourcePy.WebSocket("wss://example.com/mcp", 60, None)
EXPERTS = AnyMoeExpertType.LoraAdapter(8, 16.0, ["gate_proj"])

OBJECTS = [
    ChatCompletionRequest("hi"),
    ChatCompletionRequest(
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "m",
        True,
        2,
        {3: -1.0},
        5,
        9,
        0.1,
        0.2,
        1.1,
        ["\n"],
        0.7,
        0.9,
        40,
        True,
        "a+",
        "regex",
        0.05,
        [TOOL],
        {"type": "function", "function": {"name": "f"}},
        0.8,
        1.75,
        2,
        [":"],
        WEB,
        True,
        True,
        "low",
        max_tool_rounds=3,
        ignore_eos=True,
        adapter="zephyr",
        chat_template_kwargs={"a": [1, {"b": None}]},
        seed=7,
    ),
    CompletionRequest("hi", suffix="!", tool_schemas=[TOOL], tool_choice="required", seed=1),
    EmbeddingRequest(["a", "b"], True),
    EmbeddingRequest([[1, 2], [3]]),
    USAGE,
    TOKEN,
    TOKEN.top_logprobs[0],
    Logprobs(content=[TOKEN]),
    CALL,
    CALL.function,
    ResponseMessage(tool_calls=[CALL], reasoning_content="hm"),
    Delta(content="x", tool_calls=[MORE]),
    MORE,
    MORE.function,
    RUN,
    Choice(finish_reason="stop", message=ResponseMessage(content="x"), logprobs=Logprobs()),
    ChunkChoice(delta=Delta(content="x"), logprobs=TOKEN),
    ChatCompletionResponse(
        id="1",
        choices=[Choice(finish_reason="tool_calls", message=ResponseMessage(tool_calls=[CALL]))],
        model="m",
        usage=USAGE,
    ),
    ChatCompletionChunkResponse(
        id="1",
        choices=[ChunkChoice(finish_reason="stop", delta=Delta(), logprobs=TOKEN)],
        model="m",
        usage=USAGE,
    ),
    CompletionChoice(finish_reason="length", text="x", logprobs=Logprobs(content=[TOKEN])),
    CompletionChunkChoice(text="x"),
    CompletionResponse(
        id="1",
        choices=[CompletionChoice(finish_reason="stop", text="x")],
        model="m",
        usage=USAGE,
    ),
    CompletionChunkResponse(id="1", choices=[CompletionChunkChoice(text="x")], model="m"),
    ImageChoice(b64_json="QUJD"),
    ImageGenerationResponse(data=[ImageChoice(url="a.png")]),
    SpeechGenerationResponse(pcm=[0.0, 0.5], rate=44100, channels=1),
    TextAutoMapParams(1, 2),
    VisionAutoMapParams(1, 2, 3, 4),
    LoraAdapter("a", "b", "main"),
    AnyMoeExpertType.FineTuned(),
    EXPERTS,
    AnyMoeConfig(64, "d.json", "model.layers", "mlp", ["a"], EXPERTS, [0, 2], gate_model_id="g"),
    LOCATION,
    WebSearchUserLocation(LOCATION),
    WEB,
    HTTP,
    PROCESS,
    SOCKET,
    SERVER,
    McpClientConfigPy([SERVER, attrs.evolve(SERVER, id="2", source=HTTP)], False, 9, 5),
    Which.Plain("m", "llama", dtype="bf16", auto_map_params=TextAutoMapParams(7)),
    Which.Plain("m", "SomethingElse", organization="moqe", from_uqff=["a", "b"]),
    Which.XLora("x", "o", tgt_non_granular_index=1),
    Which.Lora(model_id="m", adapters=[LoraAdapter("a", "b")]),
    Which.GGUF("m", ["a", "b"]),
    Which.XLoraGGUF("m", "f", "x", "o"),
    Which.LoraGGUF("m", "f", "a", "o"),
    Which.GGML("m", "f", gqa=8),
    Which.XLoraGGML("m", "f", "x", "o"),
    Which.LoraGGML("m", "f", "a", "o", gqa=2),
    Which.Embedding("m", "qwen3embedding"),
    Which.VisionPlain("m", auto_map_params=VisionAutoMapParams(7)),
    Which.DiffusionPlain("m", "flux"),
    Which.Speech("m", "dia"),
]


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: type(obj).__qualname__)
def test_round_trip(obj: Any) -> None:
    cls = type(obj)
    data = unstructure(obj)
    assert structure(data, cls) == obj
    assert structure(obj, cls) is obj
    assert unstructure(structure(data, cls)) == data
    text = to_json(obj)
    assert from_json(text, cls) == obj
    assert from_json(text.encode(), cls) == obj
    assert set(_types(data)) <= {dict, list, str, int, float, bool, type(None)}


def _types(data: Any) -> list[type]:
    children = list(data.values()) if isinstance(data, dict) else data
    if type(data) not in (dict, list):
        return [type(data)]
    return [type(data), *(t for child in children for t in _types(child))]


def test_no_class_is_forgotten() -> None:
    exported = {getattr(api, name) for name in api.__all__}
    classes = {cls for cls in exported if inspect.isclass(cls) and attrs.has(cls)}
    assert classes <= {type(obj) for obj in OBJECTS}
    variants = {cls for cls in vars(Which).values() if inspect.isclass(cls)}
    assert variants <= {type(obj) for obj in OBJECTS}


@pytest.mark.parametrize(
    "obj",
    [obj for obj in OBJECTS if isinstance(unstructure(obj), dict)],
    ids=lambda obj: type(obj).__qualname__,
)
def test_unknown_keys_name_the_nearest(obj: Any) -> None:
    data = unstructure(obj)
    inner = next(iter(data.values())) if len(data) == 1 and isinstance(obj, _TAGGED) else data
    name = next(reversed(inner))
    inner[name + "x"] = inner.pop(name)
    with pytest.raises(ValidationError, match=f"{name}x"):
        structure(data, type(obj))


_TAGGED = (Which.Plain.__mro__[1], AnyMoeExpertType.LoraAdapter)


def test_unknown_key_message() -> None:
    with pytest.raises(
        ValidationError,
        match=r"^ChatCompletionRequest: unknown key 'temprature'; did you mean 'temperature'\?$",
    ):
        structure({"messages": "hi", "temprature": 1}, ChatCompletionRequest)
    with pytest.raises(ValidationError, match=r"^TextAutoMapParams: unknown key 'zz'; known: max"):
        structure({"zz": 1}, TextAutoMapParams)
    with pytest.raises(ValidationError, match=r"^ChatCompletionRequest: 'messages' missing$"):
        structure({}, ChatCompletionRequest)
    with pytest.raises(ValidationError, match="expected a mapping"):
        structure([1], Usage)


def test_nothing_is_coerced_in_silence() -> None:
    for wrong in ({"max_seq_len": "12"}, {"max_seq_len": 1.0}, {"max_seq_len": True}):
        with pytest.raises(ValidationError, match="max_seq_len"):
            structure(wrong, TextAutoMapParams)
    with pytest.raises(ValidationError, match="stream"):
        structure({"messages": "hi", "stream": "false"}, ChatCompletionRequest)
    with pytest.raises(ValidationError, match="choices: expected a list of Choice"):
        structure(
            {"id": "1", "choices": {}, "model": "m", "usage": unstructure(USAGE)},
            ChatCompletionResponse,
        )


@pytest.mark.parametrize("text", ["", "{", "nul", b"\xff\xfe", '{"messages": "hi"'])
def test_broken_json(text: str | bytes) -> None:
    with pytest.raises(ValidationError, match="ChatCompletionRequest: not valid JSON"):
        from_json(text, ChatCompletionRequest)


def test_responses_offer_their_data() -> None:
    response = next(each for each in OBJECTS if isinstance(each, ChatCompletionResponse))
    data = response.to_dict()
    assert response.model_dump() == data
    assert json.loads(response.to_json()) == json.loads(response.model_dump_json()) == data
    assert data["object"] == "chat.completion"
    assert data["system_fingerprint"] == "local"
    assert data["choices"][0]["message"]["tool_calls"][0]["type"] == "function"
    assert response.choices[0].message.tool_calls is not None
    assert response.choices[0].message.tool_calls[0].tp == "function"
    assert repr(response.usage).startswith("Usage(completion_tokens=2, prompt_tokens=3,")


def test_long_data_is_not_printed() -> None:
    assert repr(SpeechGenerationResponse(pcm=[0.0] * 9, rate=1, channels=1)) == (
        "SpeechGenerationResponse(pcm=<9 samples>, rate=1, channels=1)"
    )
    assert "AAAA" not in repr(ImageChoice(b64_json="A" * 99))


def test_data_classes_need_no_torch() -> None:
    code = (
        "import sys, tramontane.api, tramontane.which; "
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"

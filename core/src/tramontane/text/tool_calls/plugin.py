"""Core's own tool formats, registered as everybody else's are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ToolFormatSpec, hookimpl

_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
_KIMI = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)
_XML = ("<tool_call>", "</tool_call>")
_HARMONY = (
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
)


@hookimpl
def tramontane_tool_formats() -> Iterable[ToolFormatSpec]:
    home = "tramontane.text.tool_calls"
    yield ToolFormatSpec(
        name="llama",
        target=f"{home}.json_calls:Llama",
        summary="Llama 3: a JSON object, also behind <|python_tag|>. Where no marker is mentioned.",
        tokens=("<|python_tag|>",),
    )
    yield ToolFormatSpec(
        name="hermes",
        target=f"{home}.json_calls:Hermes",
        summary="Hermes, Qwen, SmolLM3, Granite 4: JSON in <tool_call>.",
        markers=("<tool_call>",),
        tokens=_XML,
    )
    yield ToolFormatSpec(
        name="qwen_coder",
        target=f"{home}.xml_calls:QwenCoder",
        summary="Qwen3-Coder: a tag for the function and each parameter.",
        markers=("<tool_call>", "<function=", "<parameter="),
        tokens=_XML,
    )
    yield ToolFormatSpec(
        name="glm",
        target=f"{home}.xml_calls:Glm",
        summary="GLM-4: <arg_key> and <arg_value>.",
        markers=("<tool_call>", "<arg_key>"),
        tokens=(*_XML, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    )
    yield ToolFormatSpec(
        name="mistral",
        target=f"{home}.json_calls:Mistral",
        summary="Mistral up to Nemo: [TOOL_CALLS] and a JSON list.",
        markers=("[TOOL_CALLS]",),
        tokens=("[TOOL_CALLS]",),
    )
    yield ToolFormatSpec(
        name="mistral_args",
        target=f"{home}.sections:MistralArgs",
        summary="Mistral from v11 on: [TOOL_CALLS]NAME[ARGS]{…}.",
        markers=("[TOOL_CALLS]", "[ARGS]"),
        tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    )
    yield ToolFormatSpec(
        name="granite",
        target=f"{home}.json_calls:Granite",
        summary="Granite 3: <|tool_call|> and a JSON list.",
        markers=("<|tool_call|>",),
        tokens=("<|tool_call|>",),
    )
    yield ToolFormatSpec(
        name="phi4",
        target=f"{home}.json_calls:Phi4",
        summary="Phi-4: a JSON list in <|tool_call|>.",
        markers=("<|tool_call|>", "<|/tool_call|>"),
        tokens=("<|tool_call|>", "<|/tool_call|>"),
    )
    yield ToolFormatSpec(
        name="deepseek_v3",
        target=f"{home}.sections:DeepSeekV3",
        summary="DeepSeek V3 and R1: arguments in a code block.",
        markers=("<｜tool▁call▁begin｜>", "```json"),
        tokens=_DEEPSEEK,
    )
    yield ToolFormatSpec(
        name="deepseek_v31",
        target=f"{home}.sections:DeepSeekV31",
        summary="DeepSeek V3.1: NAME<｜tool▁sep｜>{…}.",
        markers=("<｜tool▁call▁begin｜>",),
        tokens=_DEEPSEEK,
    )
    yield ToolFormatSpec(
        name="kimi",
        target=f"{home}.sections:Kimi",
        summary="Kimi K2: functions.NAME:0 and its arguments, in a section.",
        markers=("<|tool_calls_section_begin|>",),
        tokens=_KIMI,
    )
    yield ToolFormatSpec(
        name="pythonic",
        target=f"{home}.pythonic:Pythonic",
        summary="Llama 4: a Python list of calls.",
        markers=("[func_name1(",),
        tokens=("<|python_start|>", "<|python_end|>"),
    )
    yield ToolFormatSpec(
        name="harmony",
        target=f"{home}.harmony:Harmony",
        summary="gpt-oss: messages in channels, the whole answer.",
        markers=("<|channel|>", "<|message|>"),
        tokens=_HARMONY,
        whole_answer=True,
    )

"""Rendering, choosing and finding chat templates."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tramontane.errors import SourceError, TemplateError, ValidationError
from tramontane.text.chat_template import ChatTemplate, find_chat_template

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages or USER, **options)


# -- the environment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n", "hi\n"),
        ("  {% if true %}\nx\n  {% endif %}", "x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'a': '<é>&', 'b': [1, none]} | tojson }}", '{"a": "<é>&", "b": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}", "<s>|</s>|"),
        ("{{ unk_token is defined }}", "False"),
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{% generation %}{{ 'x' }}{% endgeneration %}y", "xy"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}", "3"),
        ("{{ dict(a=1) | tojson }}", '{"a": 1}'),
        ("{{ ' a,b '.strip().split(',')[1] }}{{ 'ab'.startswith('a') }}", "bTrue"),
        ("{{ add_generation_prompt }}", "True"),
        ("{{ reasoning_effort }}", "medium"),
        ("{{ reasoning_effort is defined }}", "False"),
        ("{{ reasoning_effort | default('low') }}", "low"),
        ("{{ enable_thinking is defined }}", "False"),
        ("{{ messages[0].strange }}", ""),
    ],
)
def test_environment(source: str, expected: str) -> None:
    assert render(source) == expected


def test_dates() -> None:
    today = datetime.now().strftime("%d %b %Y")
    assert render("{{ strftime_now('%d %b %Y') }}") == today
    assert render("{{ date_string }}") == today
    own = "{% if not date_string is defined %}{% set date_string = 'x' %}{% endif %}"
    assert render(own + "{{ date_string }}") == "x"
    assert render(own + "{{ date_string }}", date_string="given") == "given"


def test_options_reach_the_template() -> None:
    source = "{{ enable_thinking }} {{ reasoning_effort }} {{ tools | length }} {{ custom.a }}"
    options = {"enable_thinking": False, "reasoning_effort": "high", "custom": {"a": 1}}
    assert render(source, tools=[TOOL], **options) == "False high 1 1"
    assert render("{{ documents[0].text }}", documents=[{"text": "d"}]) == "d"
    assert render("{{ bos_token }}", bos_token="other") == "other"


def test_tools_are_given_under_the_name_that_the_template_has_for_them() -> None:
    source = "{% if xml_tools %}{{ xml_tools | length }}{% else %}none{% endif %}"
    assert render(source, tools=[TOOL]) == "1"
    assert render(source) == "none"
    assert render("{{ tools | length }}" + source, tools=[TOOL]) == "1none"
    assert ChatTemplate(source).mentions_tools
    assert not ChatTemplate("{{ messages }}").mentions_tools


def test_the_callers_messages_are_not_changed() -> None:
    calls = [{"function": {"name": "f", "arguments": '{"a": 1}'}}]
    messages = [{"role": "assistant", "tool_calls": calls, "reasoning": "hm"}]
    before = json.dumps(messages)
    render("{{ messages[0].tool_calls[0].function.arguments.a }}", messages)
    assert json.dumps(messages) == before


# -- tool calls and reasoning of past turns ----------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ a.city }}", "Köln"),
        ("{{ a | tojson }}", '{"city": "Köln"}'),
        ("{{ a is mapping }}{{ a is string }}", "TrueFalse"),
        ("{% for k, v in a | items %}{{ k }}={{ v }}{% endfor %}", "city=Köln"),
        ("{{ a }}", '{"city":"Köln"}'),
        ("{{ 'x' + a + 'y' }}", 'x{"city":"Köln"}y'),
        ("{{ a + 'y' }}{{ 'x' ~ a }}", '{"city":"Köln"}yx{"city":"Köln"}'),
        ("{{ a | string | length }}", "15"),
    ],
)
def test_arguments_sent_as_text(source: str, expected: str) -> None:
    """An object for templates that look inside, the text itself for those that print it."""
    calls = [{"function": {"name": "f", "arguments": '{"city":"Köln"}'}}]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}]
    path = "{% set a = messages[0].tool_calls[0].function.arguments %}"
    assert render(path + source, messages) == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [("not json", "not json"), ("[1]", "[1]"), ("", "{}"), ({"a": 1}, {"a": 1})],
)
def test_other_arguments(sent: Any, expected: Any) -> None:
    messages = [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": sent}]}]
    source = "{{ messages[0].tool_calls[0].arguments | tojson }}"
    expected = {} if expected == "{}" else expected
    assert json.loads(render(source, messages)) == expected


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_goes_by_both_names(key: str) -> None:
    messages = [{"role": "assistant", "content": "x", key: "hm"}]
    source = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    assert render(source, messages) == "hmhm"


# -- errors ------------------------------------------------------------------------------------


def test_a_refusal_names_its_line() -> None:
    with pytest.raises(TemplateError, match=r"refused the messages at its line 2: no such role"):
        render("x\n{{ raise_exception('no such role') }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n\n{{ messages[0].content.nothing.more }}", "at its line 3: UndefinedError"),
        ("{{ 1 + 'a' }}", "at its line 1: TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(10000000) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ messages[0].__class__ }}{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages[0].update(role='x') }}", "SecurityError"),
        ("{{ namespace(__class__=1) }}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "SecurityError"),
        ("{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.x }}", "SecurityError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ [].x.y }}", "UndefinedError"),
    ],
)
def test_failures_are_contained(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        render(source)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("source", "line"),
    [("a\n{% if %}", 2), ("{{ x", 1), ("\n\n{% endfor %}", 3), ("{{ x | y }}", 1)],
)
def test_invalid_templates(source: str, line: int) -> None:
    with pytest.raises(TemplateError, match=f"not valid Jinja, line {line}"):
        ChatTemplate(source)


def test_values_templates_cannot_have() -> None:
    with pytest.raises(ValidationError, match=r"messages\[0\]\['image'\] is a object"):
        render("", [{"role": "user", "content": "x", "image": object()}])
    with pytest.raises(ValidationError, match=r"messages\[0\] must be a dict"):
        render("", ["hi"])  # type: ignore[list-item]
    with pytest.raises(ValidationError, match=r"tools\[0\] must be a dict"):
        render("", tools=["f"])
    with pytest.raises(ValidationError, match="tools must be a list"):
        render("", tools=TOOL)
    with pytest.raises(ValidationError, match="'not a name'"):
        render("", **{"not a name": 1})


# -- several templates -------------------------------------------------------------------------


def test_tools_choose_their_template() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "documents"})
    assert template.render(USER) == "plain"
    assert template.render(USER, tools=[]) == "plain"
    assert template.render(USER, tools=[TOOL]) == "tools"
    assert template.render(USER, template="rag") == "documents"
    assert template.source(tools=True) == "tools"
    with pytest.raises(TemplateError, match="named 'none'; there are default, tool_use, rag"):
        template.render(USER, template="none")


def test_tools_are_not_dropped_in_silence() -> None:
    with pytest.raises(TemplateError, match="no chat template named 'tool_use'"):
        ChatTemplate({"default": "plain", "rag": "x"}).render(USER, tools=[TOOL])
    knows = ChatTemplate({"default": "{{ tools | length }}", "rag": "x"})
    assert knows.render(USER, tools=[TOOL]) == "1"
    assert knows.mentions_tools


def test_no_default() -> None:
    template = ChatTemplate({"tool_use": "tools", "rag": "x"})
    assert template.render(USER, tools=[TOOL]) == "tools"
    with pytest.raises(TemplateError, match="no chat template named 'default'; there are tool_use"):
        template.render(USER)
    with pytest.raises(TemplateError, match="at least one"):
        ChatTemplate({})


# -- finding -----------------------------------------------------------------------------------


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_order_in_which_templates_are_found(tmp_path: Path) -> None:
    """From the last resort to the first choice, each hiding those before it."""

    def found(**arguments: Any) -> str | None:
        template = find_chat_template(tmp_path, embedded="embedded", **arguments)
        assert template is not None
        return template.render(USER)

    assert find_chat_template(tmp_path) is None
    assert find_chat_template(None) is None
    assert found() == "embedded"
    for name in ("processor_config.json", "tokenizer_config.json", "chat_template.json"):
        write(tmp_path / name, {"chat_template": name})
        assert found() == name
    write(tmp_path / "chat_template.jinja", "file")
    assert found() == "file"
    assert found(chat_template="{{ 'literal' }}") == "literal"
    argument = write(tmp_path / "given/argument.json", {"chat_template": "argument"})
    assert found(chat_template=argument) == "argument"
    other = write(tmp_path / "given/argument.jinja", "argument.jinja")
    assert found(chat_template=str(other)) == "argument.jinja"
    explicit = write(tmp_path / "given/explicit.jinja", "explicit")
    assert found(chat_template=argument, jinja_explicit=explicit) == "explicit"


def test_special_tokens_of_a_template(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ eos_token }}"
    config = {"chat_template": source, "bos_token": {"content": "<b>"}, "eos_token": "<e>"}
    write(tmp_path / "tokenizer_config.json", config)
    template = find_chat_template(tmp_path)
    assert template is not None
    assert template.render(USER) == "<b><e>"
    argument = write(tmp_path / "a.json", {"chat_template": source, "bos_token": "<B>"})
    explicit = write(tmp_path / "e.jinja", "e:" + source)
    template = find_chat_template(tmp_path, argument, explicit)
    assert template is not None
    assert template.render(USER) == "e:<B><e>"
    template = find_chat_template(tmp_path, special_tokens={"bos_token": "own"})
    assert template is not None
    assert template.render(USER) == "own"


def test_named_and_additional_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write(tmp_path / "tokenizer_config.json", {"chat_template": named})
    template = find_chat_template(tmp_path)
    assert template is not None
    assert template.names == ("default", "tool_use")
    write(tmp_path / "chat_template.jinja", "file")
    write(tmp_path / "additional_chat_templates/tool_use.jinja", "more tools")
    template = find_chat_template(tmp_path)
    assert template is not None
    assert (template.render(USER), template.render(USER, tools=[TOOL])) == ("file", "more tools")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"jinja_explicit: .*absent\.jinja"):
        find_chat_template(tmp_path, jinja_explicit=tmp_path / "absent.jinja")
    with pytest.raises(ValidationError, match=r"path of a \.jinja file"):
        find_chat_template(tmp_path, jinja_explicit="template.txt")
    with pytest.raises(SourceError, match=r"no file .*absent\.json"):
        find_chat_template(tmp_path, chat_template=str(tmp_path / "absent.json"))
    with pytest.raises(ValidationError, match=r"not 'template\.txt'"):
        find_chat_template(tmp_path, chat_template="template.txt")
    write(tmp_path / "tokenizer_config.json", {"chat_template": [{"name": "x"}]})
    with pytest.raises(SourceError, match="chat_template of"):
        find_chat_template(tmp_path)
    write(tmp_path / "chat_template.jinja", "{% if %}")
    with pytest.raises(TemplateError, match="jinja_explicit"):
        find_chat_template(tmp_path)

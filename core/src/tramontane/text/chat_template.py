"""Chat templates: which one a model uses, and the prompt it makes of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2
from attrs import frozen
from jinja2 import nodes

from tramontane.errors import SourceError, TemplateError, ValidationError
from tramontane.text.jinja_sandbox import environment
from tramontane.text.json_files import read_json, token_text
from tramontane.text.template_values import plain, template_messages
from tramontane.text.tokenizer_files import special_tokens_config

DEFAULT = "default"
TOOL_USE = "tool_use"
_SPECIAL = ("bos_token", "eos_token", "unk_token")


@frozen
class _Compiled:
    """One template, ready to render.

    Attributes:
        variables: names it reads without setting them.
        guarded: names it tests for being defined, or gives a default of its own.
        content_may_be_absent: whether it asks if a message has content, and takes any for text.
    """

    source: str
    template: jinja2.Template
    variables: frozenset[str]
    guarded: frozenset[str]
    content_may_be_absent: bool

    @property
    def tools_name(self) -> str | None:
        """What it calls the tools; SmolLM3's has a name of its own. None if it knows none."""
        return next((name for name in ("tools", "xml_tools") if name in self.variables), None)


class ChatTemplate:
    """One or several named Jinja templates, with the special tokens they may print.

    Args:
        source: a template, or templates by name. Of several, ``tool_use`` renders requests with
            tools and ``default`` the others.
        bos_token, eos_token, unk_token: texts of special tokens, where the model has them.

    Raises:
        TemplateError: a template is not valid Jinja; the message gives its line.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
    ) -> None:
        sources = {DEFAULT: source} if isinstance(source, str) else dict(source)
        if not sources:
            raise TemplateError("a set of named chat templates must hold at least one")
        tokens = zip(_SPECIAL, (bos_token, eos_token, unk_token), strict=True)
        self.special_tokens = {name: text for name, text in tokens if text is not None}
        self._templates = {name: _compile(text, name) for name, text in sources.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the templates; a single one is called ``default``."""
        return tuple(self._templates)

    @property
    def mentions_tools(self) -> bool:
        """Whether a template reads tools."""
        return any(each.tools_name is not None for each in self._templates.values())

    def source(self, *, tools: bool = False, template: str | None = None) -> str:
        """Text of the template that would render a request.

        Args:
            tools: whether the request offers tools.
            template: name of the template, if not chosen by rule.

        Raises:
            TemplateError: there is none for it.
        """
        return self._choose(tools, template).source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        reasoning_effort: str | None = None,
        template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: mappings with ``role`` and ``content``, as `Message.template_dict` gives them.
                Arguments of past tool calls may be objects or JSON text.
            tools: OpenAI function schemas.
            documents: mappings with ``title`` and ``text``, for models that answer from documents.
            add_generation_prompt: whether the prompt ends where the assistant is to speak.
            enable_thinking: for models that can do either; templates may know it as ``thinking``.
                None leaves it undefined, so that the template's own default holds.
            reasoning_effort: ``low``, ``medium`` or ``high``. None leaves it to the template; one
                that has no default of its own sees ``medium``.
            template: name of the template, if not chosen by rule.
            **kwargs: further variables for the template; they may replace special tokens.

        Raises:
            ValidationError: a value cannot be given to a template.
            TemplateError: no template fits, or it failed or refused the messages; the message
                gives its line and the cause.
        """
        for name in kwargs:
            if not name.isidentifier():
                raise ValidationError(f"{name!r} cannot be the name of a template variable")
        chosen = self._choose(bool(tools), template)
        given: dict[str, Any] = {
            "enable_thinking": enable_thinking,
            "reasoning_effort": reasoning_effort,
        }
        if "thinking" in chosen.variables and "enable_thinking" not in chosen.variables:
            given["thinking"] = enable_thinking  # DeepSeek V3.1's and Granite's name for it
        shown = _mappings(tools, "tools")
        if shown and chosen.tools_name is not None:
            given[chosen.tools_name] = shown
        variables = {
            **_defaults(chosen),
            **self.special_tokens,
            **{name: plain(value, name) for name, value in given.items() if value is not None},
            **{name: plain(value, name) for name, value in kwargs.items()},
            "messages": template_messages(messages, null_content=not chosen.content_may_be_absent),
            "tools": shown,
            "documents": _mappings(documents, "documents"),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        try:
            return chosen.template.render(variables)
        except (Exception, MemoryError) as cause:
            raise TemplateError(_failure(cause)) from cause

    def _choose(self, tools: bool, name: str | None) -> _Compiled:
        exists = f"there are {', '.join(self.names)}"
        if name is not None:
            if name not in self._templates:
                raise TemplateError(f"there is no chat template named {name!r}; {exists}")
            return self._templates[name]
        default = self._templates.get(DEFAULT)
        if tools and TOOL_USE in self._templates:
            return self._templates[TOOL_USE]
        if default is None:
            raise TemplateError(
                f"the model has no chat template named {DEFAULT!r}; {exists}. Name one of them."
            )
        if tools and len(self._templates) > 1 and default.tools_name is None:
            raise TemplateError(
                f"tools were given, but the model has no chat template named {TOOL_USE!r} and its "
                f"default one knows no tools; {exists}"
            )
        return default


def _compile(source: str, name: str) -> _Compiled:
    if not isinstance(source, str):
        raise TemplateError(f"chat template {name!r} must be text, not {type(source).__name__}")
    env = environment()
    try:
        tree = env.parse(source)
        template = env.from_string(source)
    except jinja2.TemplateSyntaxError as cause:
        raise TemplateError(
            f"chat template {name!r} is not valid Jinja, line {cause.lineno}: {cause.message}. "
            "Another template can be given with jinja_explicit."
        ) from cause
    except (RecursionError, ValueError, SyntaxError) as cause:
        raise TemplateError(f"chat template {name!r} cannot be compiled: {cause}") from cause
    guarded = set()
    for test in tree.find_all((nodes.Test, nodes.Filter)):
        inner = test.node
        if test.name in ("defined", "undefined", "default", "d") and isinstance(inner, nodes.Name):
            guarded.add(inner.name)
    return _Compiled(
        source,
        template,
        frozenset(node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"),
        frozenset(guarded),
        any(_asks_for_content(test) for test in tree.find_all(nodes.Compare)),
    )


def _asks_for_content(test: nodes.Compare) -> bool:
    """``"content" in message``"""
    sought, operand = test.expr, test.ops[0]
    return isinstance(sought, nodes.Const) and sought.value == "content" and operand.op == "in"


def _defaults(chosen: _Compiled) -> dict[str, Any]:
    """Variables some templates read without providing for their absence."""
    values: dict[str, Any] = {
        "reasoning_effort": "medium",
        "date_string": datetime.now().strftime("%d %b %Y"),
    }
    needed = chosen.variables - chosen.guarded
    return {name: value for name, value in values.items() if name in needed}


def _mappings(values: Sequence[Mapping[str, Any]] | None, where: str) -> list[Any] | None:
    if values is None:
        return None
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        raise ValidationError(f"{where} must be a list of dicts, not {type(values).__name__}")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ValidationError(f"{where}[{index}] must be a dict, not {type(value).__name__}")
    return [plain(value, f"{where}[{index}]") for index, value in enumerate(values)]


def _failure(cause: BaseException) -> str:
    line = _template_line(cause.__traceback__)
    place = "" if line is None else f" at its line {line}"
    if type(cause) is jinja2.TemplateError:  # raised by raise_exception
        return f"the chat template refused the messages{place}: {cause}"
    return f"the chat template failed{place}: {type(cause).__name__}: {cause}"


def _template_line(trace: TracebackType | None) -> int | None:
    """Line of the innermost template frame; Jinja marks those frames in its rewritten traceback."""
    line = None
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# -- where templates come from -----------------------------------------------------------------


def find_chat_template(
    directory: str | Path | None,
    chat_template: str | Path | None = None,
    jinja_explicit: str | Path | None = None,
    embedded: str | Mapping[str, str] | None = None,
    *,
    special_tokens: Mapping[str, str] | None = None,
) -> ChatTemplate | None:
    """The chat template of a model.

    The first that exists: ``jinja_explicit``, ``chat_template``, and of the directory
    ``chat_template.jinja``, ``chat_template.json``, ``tokenizer_config.json`` and
    ``processor_config.json``, then ``embedded``. Files in ``additional_chat_templates/`` join the
    directory's own by their names.

    Args:
        directory: of the model, if it has one.
        chat_template: the text of a template, or the path of a ``.jinja`` file or of a ``.json``
            file with ``chat_template`` and perhaps ``bos_token``, ``eos_token``, ``unk_token``.
        jinja_explicit: path of a ``.jinja`` file.
        embedded: what a weight file carries.
        special_tokens: ``bos_token``, ``eos_token`` and ``unk_token``, as
            `Tokenizer.special_tokens` gives them; those of the directory if None.

    Returns:
        None if there is no template anywhere.

    Raises:
        SourceError: a named file does not exist, or a file is corrupt.
        ValidationError: an argument names a file of another kind.
        TemplateError: the template is not valid Jinja.
    """
    folder = None if directory is None else Path(directory)
    if special_tokens is None:
        config = {} if folder is None else special_tokens_config(folder)
        special_tokens = _tokens(config)
    source: str | Mapping[str, str] | None = None
    if chat_template is not None:
        source, own_tokens = _from_argument(chat_template)
        special_tokens = {**special_tokens, **own_tokens}
    if jinja_explicit is not None:
        if not str(jinja_explicit).endswith(".jinja"):
            raise ValidationError(
                f"jinja_explicit must be the path of a .jinja file, not {str(jinja_explicit)!r}"
            )
        source = _read(Path(jinja_explicit), "jinja_explicit")
    if source is None and folder is not None:
        source = _from_directory(folder)
    source = embedded if source is None else source
    if source is None:
        return None
    return ChatTemplate(source, **{name: special_tokens.get(name) for name in _SPECIAL})


def _from_argument(
    argument: str | Path,
) -> tuple[str | Mapping[str, str] | None, Mapping[str, str]]:
    text = str(argument)
    if isinstance(argument, str) and any(mark in text for mark in ("{{", "{%", "\n")):
        return text, {}
    if text.endswith(".jinja"):
        return _read(Path(text), "chat_template"), {}
    if text.endswith(".json"):
        config = read_json(Path(text))
        if config is None:
            raise SourceError(f"chat_template: there is no file {text}")
        return _named(config.get("chat_template"), Path(text)), _tokens(config)
    raise ValidationError(
        f"chat_template must be the text of a template or the path of a .jinja or .json file, not "
        f"{text!r}"
    )


def _from_directory(folder: Path) -> str | Mapping[str, str] | None:
    base: str | Mapping[str, str] | None = None
    if (folder / "chat_template.jinja").is_file():
        base = _read(folder / "chat_template.jinja", "the model's template")
    for name in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        if base is None:
            base = _named((read_json(folder / name) or {}).get("chat_template"), folder / name)
    extra = {
        path.stem: _read(path, "the model's template")
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    if not extra:
        return base
    own = {} if base is None else {DEFAULT: base} if isinstance(base, str) else base
    return {**own, **extra}


def _named(value: object, path: Path) -> str | Mapping[str, str] | None:
    """A template, or several as a list of ``{"name": …, "template": …}`` or a mapping."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    try:
        named = {item["name"]: item["template"] for item in value}  # type: ignore[attr-defined]
    except (TypeError, KeyError) as cause:
        raise SourceError(
            f"chat_template of {path} must be text or a list of objects with name and template"
        ) from cause
    return named or None


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: token_text(config.get(name)) for name in _SPECIAL}
    return {name: text for name, text in texts.items() if text is not None}


def _read(path: Path, argument: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise SourceError(f"{argument}: {path} cannot be read: {cause}") from cause

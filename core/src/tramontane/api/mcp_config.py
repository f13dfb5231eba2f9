"""Which MCP servers a runner connects to, and how.

As data (``--mcp-config FILE``)::

    {"servers": [{"id": "fs", "name": "Files",
                  "source": {"type": "Process", "command": "mcp-server-filesystem", "args": []}}],
     "auto_register_tools": true, "tool_timeout_secs": 30, "max_concurrent_calls": 10}

In data, but not in the constructors, an omitted ``id`` is drawn at random and an omitted
``tool_prefix`` is ``mcp_`` and random digits; ``null`` means no prefix.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from tramontane.api import validators as check
from tramontane.api.convert import (
    from_json,
    nearest,
    register,
    structure,
    structure_fields,
    unstructure_fields,
)
from tramontane.errors import SourceError, ValidationError

DEFAULT_TOOL_TIMEOUT_SECS = 30
DEFAULT_MAX_CONCURRENT_CALLS = 10
DEFAULT_HTTP_TIMEOUT_SECS = 30


def _string_map(instance: object, attribute: Any, value: Any) -> None:
    if value is not None and not (
        isinstance(value, Mapping)
        and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
    ):
        raise ValidationError(f"{attribute.name} must map strings to strings, not {value!r}")


def _url(*schemes: str) -> Any:
    def check_url(instance: object, attribute: Any, value: Any) -> None:
        if not isinstance(value, str) or not value.lower().startswith(schemes):
            raise ValidationError(
                f"{attribute.name} must begin with {' or '.join(schemes)}, not {value!r}"
            )

    return check_url


SECONDS = check.number(gt=0)


@frozen
class McpServerSource:
    """Base of `McpServerSourcePy`'s variants."""


class McpServerSourcePy:
    """How a server is reached. As data, the fields and ``"type": "Http" | "Process" |
    "WebSocket"``."""

    @frozen
    class Http(McpServerSource):
        """Streamable HTTP.

        Attributes:
            url: ``http://`` or ``https://``.
            timeout_secs: for a whole exchange; None for 30.
            headers: sent with every request.
        """

        url: str = field(validator=_url("http://", "https://"))
        timeout_secs: float | None = field(default=None, validator=SECONDS)
        headers: dict[str, str] | None = field(default=None, validator=_string_map)

    @frozen
    class Process(McpServerSource):
        """A program run for the purpose, spoken to over its standard input and output.

        Attributes:
            command: program.
            args: its arguments.
            work_dir: directory it runs in; None for this one.
            env: variables set beside the inherited ones.
        """

        command: str = field(validator=check.text(optional=False, filled=True))
        args: list[str] = field(factory=list)
        work_dir: str | None = field(
            default=None, converter=check.as_path, validator=check.text(filled=True)
        )
        env: dict[str, str] | None = field(default=None, validator=_string_map)

        @args.validator
        def _check_args(self, attribute: Any, value: Any) -> None:
            if not isinstance(value, list) or not all(isinstance(arg, str) for arg in value):
                raise ValidationError(f"args must be a list of strings, not {value!r}")

    @frozen
    class WebSocket(McpServerSource):
        """WebSocket.

        Attributes:
            url: ``ws://`` or ``wss://``.
            timeout_secs: for connecting and for each answer; None for no limit.
            headers: sent when connecting.
        """

        url: str = field(validator=_url("ws://", "wss://"))
        timeout_secs: float | None = field(default=None, validator=SECONDS)
        headers: dict[str, str] | None = field(default=None, validator=_string_map)


_SOURCES: dict[str, type[McpServerSource]] = {
    "Http": McpServerSourcePy.Http,
    "Process": McpServerSourcePy.Process,
    "WebSocket": McpServerSourcePy.WebSocket,
}


def _load_source(data: Any, wanted: type[Any]) -> McpServerSource:
    if not isinstance(data, Mapping) or "type" not in data:
        raise ValidationError(
            f"source must be a mapping with a type of {', '.join(_SOURCES)}, not {data!r}"
        )
    kind = data["type"]
    if kind not in _SOURCES:
        raise ValidationError(f"source: no type {kind!r}{nearest(str(kind), _SOURCES)}")
    return structure_fields({k: v for k, v in data.items() if k != "type"}, _SOURCES[kind])


def _dump_source(source: McpServerSource) -> dict[str, Any]:
    return {"type": type(source).__name__, **unstructure_fields(source)}


register([McpServerSource, *_SOURCES.values()], _load_source, _dump_source)


def _source(value: Any) -> McpServerSource:
    return structure(value, McpServerSource)


@frozen
class McpServerConfigPy:
    """One server.

    Attributes:
        id: unique among the servers of a client.
        name: shown to people.
        source: a variant of `McpServerSourcePy`.
        enabled: False leaves it alone.
        tool_prefix: its tools are registered as ``<tool_prefix>_<name>``; None for bare names.
        resources: URI patterns of the resources of interest.
        bearer_token: sent as ``Authorization: Bearer ...`` over HTTP and WebSocket.
    """

    id: str = field(validator=check.text(optional=False, filled=True))
    name: str = field(validator=check.text(optional=False))
    source: McpServerSource = field(converter=_source)
    enabled: bool = field(default=True, validator=check.flag())
    tool_prefix: str | None = field(default=None, validator=check.text(filled=True))
    resources: list[str] | None = field(default=None, validator=check.texts())
    bearer_token: str | None = field(
        default=None,
        validator=check.text(filled=True),
        repr=lambda token: "None" if token is None else "'***'",
    )


def _load_server(data: Any, wanted: type[Any]) -> McpServerConfigPy:
    if isinstance(data, Mapping):
        drawn = {"id": str(uuid.uuid4()), "tool_prefix": f"mcp_{uuid.uuid4().hex}"}
        data = {**drawn, **data}
    return structure_fields(data, McpServerConfigPy)


register([McpServerConfigPy], _load_server, unstructure_fields)


def _servers(value: Any) -> list[McpServerConfigPy]:
    if not isinstance(value, (list, tuple)):
        raise ValidationError(f"servers must be a list of McpServerConfigPy, not {value!r}")
    return [structure(server, McpServerConfigPy) for server in value]


@frozen
class McpClientConfigPy:
    """The servers, and how their tools are used.

    Attributes:
        servers: in order; ids are unique.
        auto_register_tools: offer the tools of all servers to every chat request. Data must
            state it.
        tool_timeout_secs: for one call; None for 30.
        max_concurrent_calls: calls that run together; None for 10.
    """

    servers: list[McpServerConfigPy] = field(converter=_servers)
    auto_register_tools: bool = field(default=True, validator=check.flag())
    tool_timeout_secs: float | None = field(default=None, validator=SECONDS)
    max_concurrent_calls: int | None = field(
        default=None, validator=check.number(ge=1, integer=True)
    )

    @servers.validator
    def _check_ids(self, attribute: Any, value: list[McpServerConfigPy]) -> None:
        ids = [server.id for server in value]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValidationError(f"servers: the id {twice[0]!r} is given twice")

    @classmethod
    def from_file(cls, path: str | Path) -> McpClientConfigPy:
        """Read a JSON file.

        Raises:
            SourceError: it cannot be read.
            ValidationError: its content is wrong; the message names file and key.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise SourceError(f"MCP configuration {path}: {error.strerror}") from error
        try:
            return from_json(content, cls)
        except ValidationError as error:
            raise ValidationError(f"MCP configuration {path}: {error}") from error


def _load_client(data: Any, wanted: type[Any]) -> McpClientConfigPy:
    if isinstance(data, Mapping) and "servers" in data and "auto_register_tools" not in data:
        raise ValidationError("McpClientConfigPy: 'auto_register_tools' missing")
    return structure_fields(data, McpClientConfigPy)


register([McpClientConfigPy], _load_client, unstructure_fields)

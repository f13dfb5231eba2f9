"""`McpClient` against real servers, over every transport."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from attrs import evolve

from tramontane.api import McpClientConfigPy, McpServerConfigPy, McpServerSourcePy
from tramontane_mcp_client.client import McpClient
from tramontane_mcp_client.failures import McpError, McpToolError
from tramontane_testkit.mcp_servers import STDIO, SessionServer, http_server, websocket_server

Http, Process, WebSocket = (
    McpServerSourcePy.Http,
    McpServerSourcePy.Process,
    McpServerSourcePy.WebSocket,
)
STDIO_SOURCE = Process(STDIO[0], list(STDIO[1:]))


def config(source: Any, id: str = "s", **options: Any) -> McpServerConfigPy:
    return McpServerConfigPy(id, f"Server {id}", source, **options)


def client(*servers: McpServerConfigPy, **options: Any) -> McpClient:
    return McpClient(McpClientConfigPy(list(servers), **options), retry_secs=0.05)


def until(condition: Callable[[], Any], within_secs: float = 60) -> None:
    """Wait for what other threads and processes do."""
    deadline = time.monotonic() + within_secs
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def serving(way: str, **options: Any) -> Iterator[tuple[Any, SessionServer]]:
    """A source, and the server behind it where that runs in this process."""
    server = SessionServer()
    if way == "process":
        yield STDIO_SOURCE, server
    elif way == "http":
        with http_server(server, **options) as served:
            yield Http(served.url), server
    else:
        with websocket_server(server, **options) as served:
            yield WebSocket(served.url), server


WAYS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "process": ("process", {}),
    "http events": ("http", {}),
    "http json": ("http", {"json_response": True}),
    "http session": ("http", {"legacy": True}),
    "websocket": ("websocket", {}),
    "websocket handshake": ("websocket", {"legacy": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_session(way: str) -> None:
    kind, options = WAYS[way]
    with (
        serving(kind, **options) as (source, _),
        client(config(source, tool_prefix="my", resources=["file:///notes/**"])) as mcp,
    ):
        tools = mcp.tools
        assert len(tools) == 13
        assert tools["my_add"]["function"]["parameters"]["required"] == ["a", "b"]
        status = mcp.status()["s"]
        assert (status.state, status.error, status.server) == ("connected", None, "session 1.2.3")
        assert status.tools == tuple(tools)
        assert mcp.call("my_add", {"a": 17, "b": 25}) == "42"
        assert mcp.call("my_lines", {}) == "one\ntwo"
        assert mcp.call("my_weather", {}) == '{"degrees": 21.5}'
        picture = mcp.call_tool("my_picture", {})
        assert picture.text == "[image: image/png, 70 bytes]"
        assert picture.images[0].mime_type == "image/png"
        assert len(mcp.call("my_huge", {"size": 4 << 20})) == 4 << 20
        with pytest.raises(McpToolError, match=r"^no such city$"):
            mcp.call("my_refuse", {})
        with pytest.raises(McpError, match="against the protocol"):
            mcp.call("my_lie", {})
        note = "file:///notes/old/1.txt"
        assert mcp.call("my_read_resource", {"uri": note}) == f"content of {note}"
        assert note in tools["my_read_resource"]["function"]["description"]
        assert "secret" not in tools["my_read_resource"]["function"]["description"]
        with pytest.raises(McpError, match="may not be read"):
            mcp.call("my_read_resource", {"uri": "file:///secret.txt"})
        mcp.call("my_grow", {})
        until(lambda: "my_late" in tools)
        assert mcp.call("my_late", {}) == "better than never"
    assert mcp.status()["s"].state == "closed"


@pytest.mark.parametrize("way", ["process", "http", "websocket"])
def test_a_slow_tool_times_out_alone(way: str) -> None:
    with serving(way) as (source, server), client(config(source), tool_timeout_secs=0.5) as mcp:
        assert "slow" in mcp.tools
        with pytest.raises(McpError, match=r"slow of Server s timed out after 0\.5 seconds"):
            mcp.call("slow", {})
        assert mcp.status()["s"].state == "connected"
        if way != "process":
            until(lambda: server.cancelled == ["slow"])  # the server knows that nobody waits


def test_calls_of_all_servers_share_one_limit() -> None:
    with (
        serving("http") as (one, first),
        serving("websocket") as (two, second),
        client(
            config(one, "a", tool_prefix="a"),
            config(two, "b", tool_prefix="b"),
            max_concurrent_calls=1,
        ) as mcp,
    ):
        assert "a_wait" in mcp.tools
        answers: list[str] = []

        def call(name: str) -> None:
            answers.append(mcp.call(name, {"s": 0.05}))

        threads = [threading.Thread(target=call, args=(name,)) for name in ("a_wait", "b_wait") * 3]
        for thread in threads:
            thread.start()
        seen = 0
        while any(thread.is_alive() for thread in threads):
            seen = max(seen, first.running + second.running)
            time.sleep(0.001)
        assert answers == ["waited"] * 6
        assert seen == 1


def test_calls_run_together_up_to_the_limit() -> None:
    with serving("http") as (source, server), client(config(source), max_concurrent_calls=3) as mcp:
        assert "wait" in mcp.tools
        threads = [threading.Thread(target=mcp.call, args=("wait", {"s": 0.5})) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_running == 3


@pytest.mark.parametrize("way", ["http", "websocket"])
def test_a_wrong_token_leaves_the_other_servers_alone(way: str) -> None:
    required = {"Authorization": "Bearer right"}
    with serving(way, require=required) as (source, _), serving(way) as (open_source, _):
        with client(
            config(source, "closed", bearer_token="wrong"), config(open_source, "open")
        ) as mcp:
            assert mcp.call("add", {"a": 1, "b": 2}) == "3"
            status = mcp.status()["closed"]
            assert status.state in ("waiting", "connecting")
            assert "401" in (status.error or "")
            assert "wrong" not in (status.error or "")
        with client(config(source, bearer_token="right")) as mcp:
            assert mcp.call("add", {"a": 1, "b": 2}) == "3"


@pytest.mark.parametrize("way", ["http", "websocket"])
def test_invalid_json_harms_one_call(way: str) -> None:
    broken = b'{"jsonrpc": "2.0", "id": '
    with (
        serving(way, broken=broken) as (source, _),
        client(config(source), tool_timeout_secs=1) as mcp,
    ):
        with pytest.raises(McpError, match="add of Server s"):
            mcp.call("add", {"a": 1, "b": 2})
        assert mcp.status()["s"].state == "connected"


NOISY = """
import runpy, sys
print("Welcome! This is no JSON.", flush=True)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_a_process_that_chats_on_its_output_is_understood() -> None:
    with client(config(Process(STDIO[0], ["-c", NOISY, STDIO[-1]]))) as mcp:
        assert mcp.call("add", {"a": 1, "b": 2}) == "3"


@pytest.mark.parametrize("way", ["http", "websocket"])
def test_a_dropped_connection_comes_back(way: str) -> None:
    serve = http_server if way == "http" else websocket_server
    options = {"legacy": True} if way == "http" else {}
    source: Any = Http if way == "http" else WebSocket
    server = SessionServer()
    with serve(server, **options) as served:
        port = int(served.url.rpartition(":")[2].partition("/")[0])
        with client(config(source(served.url))) as mcp:
            assert mcp.call("add", {"a": 1, "b": 2}) == "3"
            failures: list[Exception] = []

            def hang() -> None:
                try:
                    mcp.call("slow", {})
                except McpError as error:
                    failures.append(error)

            caller = threading.Thread(target=hang)
            caller.start()
            until(lambda: "slow" in server.calls)
            served.drop()
            caller.join(60)
            assert len(failures) == 1
            until(lambda: mcp.status()["s"].state in ("waiting", "connecting"))
            until(lambda: mcp.status()["s"].attempts > 1)
            assert not list(mcp.tools)
            with pytest.raises(McpError, match="not connected"):
                mcp.call("add", {"a": 1, "b": 2})
            with serve(SessionServer(), port=port, **options):
                mcp.reconnect("s")
                until(lambda: mcp.status()["s"].state == "connected")
                assert mcp.call("add", {"a": 1, "b": 2}) == "3"


def test_a_server_that_dies_in_mid_call_is_started_again() -> None:
    with client(config(STDIO_SOURCE), tool_timeout_secs=60) as mcp:
        assert "die" in mcp.tools
        with pytest.raises(McpError, match="die of Server s"):
            mcp.call("die", {})
        until(lambda: mcp.status()["s"].state == "connected")
        assert mcp.call("add", {"a": 1, "b": 2}) == "3"


def test_one_failing_server_harms_no_other() -> None:
    with (
        serving("http") as (source, _),
        client(
            config(Process("no-such-program", []), "absent"),
            config(source, "there"),
            config(Http("http://127.0.0.1:9/mcp"), "refusing"),
            config(source, "off", enabled=False),
        ) as mcp,
    ):
        assert mcp.call("add", {"a": 1, "b": 2}) == "3"
        until(lambda: mcp.status()["absent"].attempts > 1)
        states = {name: status.state for name, status in mcp.status().items()}
        assert states["there"] == "connected"
        assert states["off"] == "disabled"
        assert "no-such-program" in (mcp.status()["absent"].error or "")
        assert mcp.status()["refusing"].error


def test_closing_ends_processes_calls_and_the_thread() -> None:
    before = set(threading.enumerate())
    mcp = client(config(STDIO_SOURCE))
    assert "slow" in mcp.tools
    family = psutil.Process().children(recursive=True)
    failures: list[Exception] = []

    def hang() -> None:
        try:
            mcp.call("slow", {})
        except McpError as error:
            failures.append(error)

    caller = threading.Thread(target=hang)
    caller.start()
    mcp.close()
    mcp.close()
    caller.join(60)
    assert len(failures) == 1
    assert not any(process.is_running() for process in family)
    assert not set(threading.enumerate()) - before
    with pytest.raises(McpError, match="closed"):
        mcp.call("add", {"a": 1, "b": 2})


def test_servers_come_and_go() -> None:
    with serving("http") as (source, _), client(config(source, "first")) as mcp:
        assert "add" in mcp.tools
        mcp.add_server(config(STDIO_SOURCE, "second", tool_prefix="p", resources=["file://**"]))
        assert mcp.call("p_add", {"a": 1, "b": 2}) == "3"
        assert mcp.resources()["second"][0] == "file:///notes/today.txt"
        assert mcp.resources()["first"] == ()
        with pytest.raises(McpError, match="'second' already"):
            mcp.add_server(config(source, "second"))
        family = psutil.Process().children(recursive=True)
        failures: list[str] = []

        def hang() -> None:
            try:
                mcp.call("p_slow", {})
            except McpError as error:
                failures.append(str(error))

        caller = threading.Thread(target=hang)
        caller.start()
        time.sleep(0.2)
        mcp.remove_server("second")
        caller.join(60)
        assert len(failures) == 1
        assert not any(process.is_running() for process in family)
        assert list(mcp.status()) == ["first"]
        assert not any(name.startswith("p_") for name in mcp.tools)
        with pytest.raises(McpError, match="'second'; there are: first"):
            mcp.remove_server("second")
        mcp.add_server(config(Process("no-such-program", []), "second"))
        assert "no-such-program" in (mcp.status()["second"].error or "")
        assert mcp.call("add", {"a": 1, "b": 2}) == "3"


@pytest.mark.parametrize("way", ["http", "websocket"])
def test_the_sources_own_limit_of_time(way: str) -> None:
    with serving(way) as (source, _):
        impatient = evolve(source, timeout_secs=0.5)
        with client(config(impatient), tool_timeout_secs=60) as mcp:
            assert "slow" in mcp.tools
            with pytest.raises(McpError, match=r"timed out after 0\.5 seconds"):
                mcp.call("slow", {})
            assert mcp.call("add", {"a": 1, "b": 2}) == "3"


@pytest.mark.parametrize("kind", [Http, WebSocket])
def test_a_server_that_takes_connections_and_says_nothing(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        scheme = "http" if kind is Http else "ws"
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/mcp"
        with client(config(kind(url, timeout_secs=0.3))) as mcp:
            assert not mcp.tools
            status = mcp.status()["s"]
            assert status.state in ("waiting", "connecting")
            assert status.error


def test_tries_come_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    refuse = Http("http://127.0.0.1:9/mcp")
    mcp = client(config(refuse))
    opened = mcp._open_transport

    def noted(server: McpServerConfigPy) -> Any:
        times.append(time.monotonic())
        return opened(server)

    monkeypatch.setattr(mcp._servers[0], "_open_transport", lambda: noted(config(refuse)))
    with mcp:
        until(lambda: len(times) >= 6)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= 0.05 * 2**n * 0.75 for n, gap in enumerate(gaps))


@pytest.mark.parametrize("way", ["http events", "http json", "http session", "websocket"])
def test_an_answer_beyond_all_measure_harms_one_call(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = WAYS[way]
    monkeypatch.setattr(f"tramontane_mcp_{kind}.transport.MAX_MESSAGE_BYTES", 1 << 20)
    with (
        serving(kind, **options) as (source, _),
        client(config(source), tool_timeout_secs=10) as mcp,
    ):
        assert "huge" in mcp.tools
        with pytest.raises(McpError, match="huge of Server s"):
            mcp.call("huge", {"size": 2 << 20})
        until(lambda: mcp.status()["s"].state == "connected")
        assert mcp.call("add", {"a": 1, "b": 2}) == "3"


def test_tools_are_offered_only_when_asked_for() -> None:
    with serving("http") as (source, _), client(config(source), auto_register_tools=False) as mcp:
        source_of_tools = mcp.tool_source()
        assert not source_of_tools.tools
        assert source_of_tools.call("add", {"a": 1, "b": 2}) == "3"
        assert source_of_tools.status()["s"]["state"] == "connected"
        with pytest.raises(McpError, match="no MCP tool 'fly'; there are: add"):
            mcp.call("fly", {})
        with pytest.raises(McpError, match="no MCP server of id 'x'; there are: s"):
            mcp.reconnect("x")


def test_a_missing_transport_is_told_once_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from tramontane.hooks import PluginManager

    bare = PluginManager(discover=False)
    with McpClient(McpClientConfigPy([config(STDIO_SOURCE)]), bare) as mcp:
        assert not mcp.tools
        status = mcp.status()["s"]
        assert status.state == "failed"
        assert "tramontane" in (status.error or "")

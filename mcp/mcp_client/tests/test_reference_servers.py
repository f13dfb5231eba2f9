"""`McpClient` against servers that others wrote: the reference servers of the npm and Python
registries that need no network. Installed once, into pytest's cache; skipped where they cannot be.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tramontane.api import McpClientConfigPy, McpServerConfigPy, McpServerSourcePy
from tramontane_mcp_client.client import McpClient
from tramontane_mcp_client.failures import McpError, McpToolError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PYTHON_SERVERS = ("mcp-server-time", "mcp-server-git", "mcp-server-fetch")
NPM_SERVERS = tuple(
    f"@modelcontextprotocol/server-{name}" for name in ("filesystem", "everything", "memory")
)
Process = McpServerSourcePy.Process


def install(*command: str) -> None:
    """Run an installation; skip the test when it does not succeed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{command[0]} could not run: {error}")
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        pytest.skip(f"the servers could not be installed: {' '.join(last)}")


@pytest.fixture(scope="module")
def python_servers(request: pytest.FixtureRequest) -> Path:
    """Folder of the programs, in an environment of their own."""
    home: Path = request.config.cache.mkdir("mcp-python-servers")  # type: ignore[union-attr]
    programs = home / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    if not all(shutil.which(name, path=str(programs)) for name in PYTHON_SERVERS):
        install(sys.executable, "-m", "venv", str(home / "venv"))
        install(str(programs / "python"), "-m", "pip", "install", "-q", *PYTHON_SERVERS)
    return programs


@pytest.fixture(scope="module")
def npm_servers(request: pytest.FixtureRequest) -> Path:
    """Folder of the programs."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    home: Path = request.config.cache.mkdir("mcp-npm-servers")  # type: ignore[union-attr]
    programs = home / "node_modules" / ".bin"
    if not all((programs / f"mcp-{name.rpartition('/')[2]}").exists() for name in NPM_SERVERS):
        install(npm, "install", "--no-audit", "--no-fund", "--prefix", str(home), *NPM_SERVERS)
    return programs


def client(command: Path, *args: str, **options: Any) -> McpClient:
    """A client of one server."""
    env = options.pop("env", None)
    timeout = options.pop("tool_timeout_secs", 60)
    server = McpServerConfigPy("it", "It", Process(str(command), list(args), env=env), **options)
    return McpClient(McpClientConfigPy([server], tool_timeout_secs=timeout))


def connected(mcp: McpClient) -> None:
    status = mcp.status()["it"]
    assert (status.state, status.error, status.refused) == ("connected", None, {})


def test_time(python_servers: Path) -> None:
    with client(python_servers / "mcp-server-time", "--local-timezone=UTC") as mcp:
        assert set(mcp.tools) == {"get_current_time", "convert_time"}
        connected(mcp)
        asked = {"time": "12:00", "source_timezone": "UTC", "target_timezone": "Asia/Tokyo"}
        answer = json.loads(mcp.call("convert_time", asked))
        assert "T21:00:00+09:00" in answer["target"]["datetime"]
        with pytest.raises(McpToolError, match="Nowhere"):
            mcp.call("convert_time", asked | {"source_timezone": "Nowhere"})


def test_git(python_servers: Path, tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    subprocess.run([git, "init", "-q", str(tmp_path)], check=True)
    commit = [git, "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "First"]
    subprocess.run(commit, check=True)
    program = python_servers / "mcp-server-git"
    with client(program, "--repository", str(tmp_path), tool_prefix="git") as mcp:
        assert "git_git_log" in mcp.tools
        connected(mcp)
        assert "First" in mcp.call("git_git_log", {"repo_path": str(tmp_path)})
        with pytest.raises(McpToolError, match="outside"):
            mcp.call("git_git_log", {"repo_path": str(tmp_path.parent)})


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """Address of a page on this machine."""
    (tmp_path / "page.txt").write_text("The tramontane is a wind.", encoding="utf-8")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_fetch_of_a_local_page(python_servers: Path, website: str) -> None:
    with client(
        python_servers / "mcp-server-fetch", "--ignore-robots-txt", "--allow-private-ips"
    ) as mcp:
        assert list(mcp.tools) == ["fetch"]
        connected(mcp)
        assert "a wind." in mcp.call("fetch", {"url": f"{website}/page.txt"})
        with pytest.raises(McpError, match="404"):
            mcp.call("fetch", {"url": f"{website}/nothing"})


def test_filesystem(npm_servers: Path, tmp_path: Path) -> None:
    program = npm_servers / "mcp-server-filesystem"
    with client(program, str(tmp_path), tool_prefix="fs") as mcp:
        assert "fs_read_text_file" in mcp.tools
        connected(mcp)
        path = tmp_path / "note.txt"
        mcp.call("fs_write_file", {"path": str(path), "content": "Grüße"})
        assert path.read_text(encoding="utf-8") == "Grüße"
        assert mcp.call("fs_read_text_file", {"path": str(path)}) == "Grüße"
        assert "note.txt" in mcp.call("fs_list_directory", {"path": str(tmp_path)})
        with pytest.raises(McpToolError, match="Access denied"):
            mcp.call("fs_read_text_file", {"path": "/etc/hostname"})


def test_memory(npm_servers: Path, tmp_path: Path) -> None:
    env = {"MEMORY_FILE_PATH": str(tmp_path / "memory.json")}
    ada = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
    with client(npm_servers / "mcp-server-memory", env=env) as mcp:
        assert "search_nodes" in mcp.tools
        connected(mcp)
        mcp.call("create_entities", {"entities": [ada]})
        assert "Ada" in mcp.call("search_nodes", {"query": "programs"})
    with client(npm_servers / "mcp-server-memory", env=env) as mcp:
        graph = mcp.call_tool("read_graph", {})
        assert graph.structured["entities"][0]["observations"] == ["writes programs"]


DOCUMENT = "demo://resource/static/document/features.md"


def use_everything(mcp: McpClient) -> None:
    """What the reference server for clients offers."""
    assert mcp.call("my_echo", {"message": "hi"}) == "Echo: hi"
    assert "42" in mcp.call("my_get-sum", {"a": 17, "b": 25})
    picture = mcp.call_tool("my_get-tiny-image", {})
    assert picture.images[0].mime_type == "image/png"
    assert "[image: image/png, " in picture.text
    weather = mcp.call_tool("my_get-structured-content", {"location": "Chicago"})
    assert isinstance(weather.structured["temperature"], (int, float))
    assert "[resource demo://" in mcp.call("my_get-resource-links", {"count": 2})
    assert mcp.call("my_read_resource", {"uri": DOCUMENT}).startswith("# Everything Server")
    assert DOCUMENT in mcp.tools["my_read_resource"]["function"]["description"]
    with pytest.raises(McpError, match="may not be read"):
        mcp.call("my_read_resource", {"uri": "demo://resource/dynamic/text/1"})
    with pytest.raises(McpError, match=r"location|nvalid"):
        mcp.call("my_get-structured-content", {"location": "Atlantis"})
    with pytest.raises(McpError, match="timed out after 2 seconds"):
        mcp.call("my_trigger-long-running-operation", {"duration": 20, "steps": 2})
    assert mcp.call("my_echo", {"message": "still there"}) == "Echo: still there"


RESOURCES = ["demo://resource/static/**"]


def test_everything_as_a_process(npm_servers: Path) -> None:
    program = npm_servers / "mcp-server-everything"
    with client(
        program, "stdio", tool_prefix="my", resources=RESOURCES, tool_timeout_secs=2
    ) as mcp:
        assert len(mcp.tools) > 10
        connected(mcp)
        use_everything(mcp)


def test_everything_over_http(npm_servers: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(npm_servers / "mcp-server-everything")
    env = os.environ | {"PORT": str(port)}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([program, "streamableHttp"], env=env, stdout=log, stderr=log)
    try:
        source = McpServerSourcePy.Http(f"http://127.0.0.1:{port}/mcp")
        config = McpServerConfigPy("it", "It", source, tool_prefix="my", resources=RESOURCES)
        given = McpClientConfigPy([config], tool_timeout_secs=2)
        with McpClient(given, retry_secs=0.2) as mcp:
            deadline = time.monotonic() + 60
            while "my_echo" not in mcp.tools:  # it takes a moment to listen
                assert time.monotonic() < deadline, mcp.status()
                time.sleep(0.05)
            use_everything(mcp)
    finally:
        server.kill()
        server.wait()

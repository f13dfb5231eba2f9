from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tramontane.api import (
    AnyMoeConfig,
    AnyMoeExpertType,
    LoraAdapter,
    McpClientConfigPy,
    McpServerConfigPy,
    McpServerSourcePy,
    TextAutoMapParams,
    VisionAutoMapParams,
    WebSearchOptions,
    WebSearchUserLocation,
)
from tramontane.api.convert import structure
from tramontane.errors import SourceError, ValidationError


def test_the_documented_servers() -> None:
    http = McpServerConfigPy(
        id="web_search",
        name="Web Search MCP",
        source=McpServerSourcePy.Http(
            url="https://api.example.com/mcp", timeout_secs=30, headers={"X-API-Version": "v1"}
        ),
        enabled=True,
        tool_prefix="web",
        resources=None,
        bearer_token="your-api-token",
    )
    process = McpServerConfigPy(
        id="filesystem",
        name="Filesystem MCP",
        source=McpServerSourcePy.Process(
            command="mcp-server-filesystem",
            args=["--root", "/tmp"],
            work_dir=None,
            env={"MCP_LOG_LEVEL": "debug"},
        ),
    )
    config = McpClientConfigPy(
        servers=[http, process],
        auto_register_tools=True,
        tool_timeout_secs=30,
        max_concurrent_calls=5,
    )
    assert [server.enabled for server in config.servers] == [True, True]
    assert process.tool_prefix is None
    assert isinstance(http.source, McpServerSourcePy.Http)
    assert type(http.source).__qualname__ == "McpServerSourcePy.Http"
    assert "your-api-token" not in repr(config)


FILE: dict[str, Any] = {
    "servers": [
        {
            "id": "fs",
            "name": "Files",
            "source": {
                "type": "Process",
                "command": "npx",
                "args": ["-y"],
                "work_dir": None,
                "env": {"K": "V"},
            },
            "enabled": True,
            "tool_prefix": "fs",
            "resources": ["file://**"],
            "bearer_token": None,
        },
        {
            "name": "hub",
            "source": {
                "type": "Http",
                "url": "https://example.com/mcp",
                "timeout_secs": 30,
                "headers": {"X": "y"},
            },
            "bearer_token": "t",
        },
        {
            "name": "ws",
            "source": {
                "type": "WebSocket",
                "url": "wss://example.com",
                "timeout_secs": None,
                "headers": None,
            },
            "tool_prefix": None,
        },
    ],
    "auto_register_tools": True,
    "tool_timeout_secs": 30,
    "max_concurrent_calls": 10,
}


def test_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps(FILE))
    config = McpClientConfigPy.from_file(path)
    files, hub, socket = config.servers
    assert (files.id, files.tool_prefix, files.resources) == ("fs", "fs", ["file://**"])
    assert files.source == McpServerSourcePy.Process("npx", ["-y"], None, {"K": "V"})
    assert hub.source == McpServerSourcePy.Http("https://example.com/mcp", 30, {"X": "y"})
    assert socket.source == McpServerSourcePy.WebSocket("wss://example.com")
    assert len({files.id, hub.id, socket.id}) == 3
    assert hub.tool_prefix is not None
    assert hub.tool_prefix.startswith("mcp_")
    int(hub.tool_prefix.removeprefix("mcp_"), 16)
    assert socket.tool_prefix is None  # null is not omitted
    assert hub.enabled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_register_tools": ...}, "'auto_register_tools' missing"),
        ({"servers": ...}, "'servers' missing"),
        ({"servers": {}}, "servers: expected a list"),
        ({"server": []}, "did you mean 'servers'"),
        ({"max_concurrent_calls": 0}, "max_concurrent_calls must be"),
        ({"tool_timeout_secs": -1}, "tool_timeout_secs must be"),
        ({"servers": [FILE["servers"][0]] * 2}, "'fs' is given twice"),
        ({"servers": [{"name": "a"}]}, "'source' missing"),
        ({"servers": [{"name": "a", "source": {"url": "x"}}]}, "with a type of Http"),
        ({"servers": [{"name": "a", "source": {"type": "http"}}]}, "did you mean 'Http'"),
        ({"servers": [{"name": "a", "source": {"type": "Http"}}]}, "'url' missing"),
        ({"servers": [{"name": "a", "source": {"type": "Http", "url": "x"}}]}, "http://"),
        (
            {"servers": [{"name": "a", "source": {"type": "Process", "command": "c", "arg": []}}]},
            "did you mean 'args'",
        ),
        (
            {
                "servers": [
                    {"name": "a", "source": {"type": "Process", "command": "c", "args": "x"}}
                ]
            },
            "args must be a list of strings",
        ),
    ],
)
def test_bad_configuration_files(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "mcp.json"
    data = {k: v for k, v in (FILE | change).items() if v is not ...}
    path.write_text(json.dumps(data))
    with pytest.raises(ValidationError, match=message) as caught:
        McpClientConfigPy.from_file(path)
    assert "mcp.json" in str(caught.value)


def test_unreadable_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"mcp\.json"):
        McpClientConfigPy.from_file(tmp_path / "mcp.json")


@pytest.mark.parametrize("cls", [TextAutoMapParams, VisionAutoMapParams])
def test_auto_map_params(cls: Any) -> None:
    assert (cls().max_seq_len, cls().max_batch_size) == (4096, 1)
    with pytest.raises(ValidationError, match="max_batch_size"):
        cls(10, 0)


def test_vision_auto_map_params() -> None:
    assert (VisionAutoMapParams().max_num_images, VisionAutoMapParams().max_image_length) == (
        1,
        1024,
    )


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("fine_tuned", AnyMoeExpertType.FineTuned()),
        (
            {"lora_adapter": {"rank": 64, "alpha": 16, "target_modules": ["gate_proj"]}},
            AnyMoeExpertType.LoraAdapter(64, 16, ["gate_proj"]),
        ),
        (AnyMoeExpertType.FineTuned(), AnyMoeExpertType.FineTuned()),
    ],
)
def test_expert_types(spelled: Any, expected: Any) -> None:
    config = AnyMoeConfig(8, "d.json", "model.layers", "mlp", ["m"], spelled)
    assert config.expert_type == expected
    assert (config.layers, config.lr, config.epochs, config.batch_size) == ([], 1e-3, 100, 4)
    assert (config.training, config.gate_model_id, config.loss_csv_path) == (True, None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"expert_type": "fine-tuned"},
        {"expert_type": {"lora_adapter": {"rank": 1}}},
        {"expert_type": {"lora_adapter": {"rank": 0, "alpha": 1, "target_modules": []}}},
        {"expert_type": 3},
        {"model_ids": "m"},
        {"layers": [-1]},
        {"layers": 3},
        {"lr": 0},
        {"loss_csv_path": "loss.svg"},
    ],
)
def test_bad_anymoe_configs(change: dict[str, Any]) -> None:
    fields = {
        "hidden_size": 8,
        "dataset_json": "d.json",
        "prefix": "model.layers",
        "mlp": "mlp",
        "model_ids": ["m"],
        "expert_type": "fine_tuned",
    }
    with pytest.raises(ValidationError):
        AnyMoeConfig(**(fields | change))  # type: ignore[arg-type]


def test_lora_aliases() -> None:
    assert LoraAdapter(" a ", "s").alias == "a"
    LoraAdapter("é" * 128, "s")
    for wrong in ("", " ", "é" * 129, None):
        with pytest.raises(ValidationError, match="alias"):
            LoraAdapter(wrong, "s")  # type: ignore[arg-type]


def test_user_location() -> None:
    data = {
        "search_context_size": "Low",
        "user_location": {
            "type": "approximate",
            "approximate": {
                "city": "Arles",
                "country": "France",
                "region": "PACA",
                "timezone": "Europe/Paris",
            },
        },
    }
    options = structure(data, WebSearchOptions)
    assert isinstance(options.user_location, WebSearchUserLocation)
    assert options.user_location.location.city == "Arles"
    for wrong in ("exact", 3):
        with pytest.raises(ValidationError, match="approximate"):
            structure({"user_location": {"type": wrong, "approximate": {}}}, WebSearchOptions)

"""What tramontane-mcp-client declares, and the name its folder shares with the SDK."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mcp

from tramontane_testkit import HooksContract

ROOT = Path(__file__).parents[3]


class TestPlugin(HooksContract):
    plugin = "tramontane_mcp_client.plugin"
    distribution = "tramontane-mcp-client"


def test_the_folder_of_this_repository_does_not_hide_the_sdk() -> None:
    assert mcp.ClientSession
    code = "import mcp; print(mcp.ClientSession.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "mcp.client.session"

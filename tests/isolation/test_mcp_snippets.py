"""What docs/ISOLATION.md has for the configuration of clients starts what it is to start.

Claude Code and Codex took theirs as they stand, when this was written; Claude Code connected.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.model import ApiKey
from tests.support.snippets import blocks
from tests.support.vendor import SECRET
from tests.support.worlds import REPOSITORY, World

pytestmark = pytest.mark.anyio
SERVER = Path(__file__).with_name("mcp_server.py")
STANDS_FOR_IT = ["npx", "-y", "some-mcp-server"]


def commands() -> Iterator[list[str]]:
    """The commands of the page's snippets, each by the form of its client."""
    page = (REPOSITORY / "docs/ISOLATION.md").read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language == "json" and "mcp" in block.text:
            (servers,) = json.loads(block.text).values()
            found = servers["github"]
            assert found.keys() <= {"type", "command", "args"}
            assert found.get("type", "stdio") == "stdio"
        elif block.language == "toml" and "mcp_servers" in block.text:
            found = tomllib.loads(block.text)["mcp_servers"]["github"]
            assert found.keys() == {"command", "args"}
        elif block.text.startswith("claude mcp add"):
            words = shlex.split(block.text)
            assert words[:5] == ["claude", "mcp", "add", "github", "--"]
            found = {"command": words[5], "args": words[6:]}
        else:
            continue
        yield [found["command"], *found["args"]]


async def test_the_command_of_each_snippet_starts_a_server(world: World) -> None:
    found = list(commands())
    assert len(found) == 4
    assert all(each == found[0] for each in found), "clients differ in form only"
    name, *arguments = found[0]
    assert name == "apex-creds"
    assert arguments[-3:] == STANDS_FOR_IT
    await world.vault.put("OPENAI_API_KEY", ApiKey(SECRET), origins=["http://127.0.0.1:9"])
    await world.vault.grant("github-server", "OPENAI_API_KEY")
    wall = ["--read", str(SERVER.parent), "--", sys.executable, str(SERVER)]
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    with subprocess.Popen(
        [sys.executable, "-m", "apex_creds.cli", *arguments[:-4], *wall],
        env={**os.environ, "APEX_CREDS_HOME": str(world.where / "home")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps(asked).encode() + b"\n")
        client.stdin.flush()
        answer = json.loads(client.stdout.readline())
        client.stdin.close()
    assert [tool["name"] for tool in answer["result"]["tools"]] == ["fetch", "key"]
    assert client.returncode == 0

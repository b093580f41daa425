"""The page about MCP says what is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from loci.mcp.tools import TOOLS

PAGE = (Path(__file__).parents[2] / "docs/how-to/mcp.md").read_text("utf-8")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which `loci` is this Loci, and no setting is anybody's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "loci"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loci "$@"\n')
    script.chmod(0o700)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOCI_CONFIG": str(tmp_path / "config.toml"),
        "LOCI_MODELS": str(tmp_path / "models"),
    }


def fenced(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_configuration_starts_a_server(home: dict[str, str], tmp_path: Path) -> None:
    entry = json.loads(fenced("json"))["mcpServers"]["memory"]
    arguments = [str(tmp_path / "ada.db") if "/" in part else part for part in entry["args"]]
    server = StdioServerParameters(command=entry["command"], args=arguments, env=home)

    async def work() -> Any:
        async with Client(server) as client:
            return (await client.list_tools()).tools

    assert [tool.name for tool in anyio.run(work)] == list(TOOLS)
    assert (tmp_path / "ada.db").is_file()


def test_the_program_runs(home: dict[str, str], tmp_path: Path) -> None:
    program = fenced("python").replace("args=[", f"env={home!r}, args=[")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "nuts" in done.stdout


def test_every_tool_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(TOOLS)

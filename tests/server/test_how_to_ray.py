"""The page about Ray names what is there: options, headers, paths."""

from __future__ import annotations

import re
from pathlib import Path

from loci.cli.app import root
from loci.server import relay, sticky

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/ray.md").read_text("utf-8")


def test_its_options_are_those_of_serve() -> None:
    serve = root.get_command(None, "serve")  # type: ignore[arg-type]
    assert serve is not None
    known = {option for parameter in serve.params for option in parameter.opts}
    lines = [line for line in PAGE.splitlines() if "ray start" not in line]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    assert {"--ray", "--replicas", "--ray-address"} <= named <= known


def test_its_headers_are_ours() -> None:
    assert f"`{sticky.HEADER}`" in PAGE and f"`{relay.HEADER.decode()}`" in PAGE


def test_its_links_lead_somewhere() -> None:
    for page in ("docs/how-to/ray.md", "docs/explain/scale.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text("utf-8")):
            assert ((ROOT / page).parent / link).exists()

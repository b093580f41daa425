"""`import loci` is cheap, loads no torch, and every exported name is real."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import loci

HEAVY = ("torch", "numpy", "transformers", "sqlalchemy", "pydantic", "httpx", "click", "rich")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_loads_nothing_heavy() -> None:
    assert not modules_after("import loci") & set(HEAVY)


def test_import_loads_few_modules_of_our_own() -> None:
    script = "import sys, loci\nprint(*[m for m in sys.modules if m.startswith('loci')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["loci"]


@pytest.mark.parametrize(
    "module",
    ["loci.core.budget", "loci.core.method", "loci.core.card", "loci.config", "loci.cli.app"],
)
def test_what_starts_every_command_loads_no_torch(module: str) -> None:
    assert not modules_after(f"import {module}") & {"torch", "numpy", "sqlalchemy", "transformers"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["config", "show"], ["doctor"]])
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    code = f"from loci.cli import main\nmain({arguments!r})"
    assert "torch" not in modules_after(code)


def test_a_server_without_the_page_loads_nothing_of_it() -> None:
    loaded = modules_after("import loci.cli.serve, loci.server.app, loci.server.serve")
    assert "fastapi" in loaded and not loaded & {"nicegui", "socketio"}


def test_every_exported_name_is_there() -> None:
    for name in loci.__all__:
        assert getattr(loci, name) is not None
    assert sorted(loci.__all__) == dir(loci)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plam'"):
        loci.plam  # noqa: B018


def test_a_package_with_the_name_of_a_function_answers_the_call() -> None:
    from loci.methods import catalogue

    entries = loci.methods()
    assert isinstance(loci.methods, ModuleType)
    assert catalogue.names() == tuple(sorted({m.about.name for m, _ in entries}))

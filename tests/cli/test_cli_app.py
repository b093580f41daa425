"""The root command: help, suggestions, exit codes, streams."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from command_line import Loci

from loci import __version__
from loci.cli import app
from loci.cli.docs import _walk
from loci.errors import BudgetError, ConfigError, LociError, ModelError

EVERY = dict(_walk(app.root, "loci"))
READING = [path for path, command in EVERY.items() if not isinstance(command, click.Group)]
SILENT = {  # they print no result, or one that is no record
    "loci chat",
    "loci completion",
    "loci config path",
    "loci config set",
    "loci config unset",
    "loci mcp",
    "loci pull",
    "loci serve",
}


def test_every_command_of_the_table_has_a_file() -> None:
    context = click.Context(app.root)
    assert [app.root.get_command(context, name) is not None for name in app.COMMANDS]
    assert "loci memory forget" in EVERY


@pytest.mark.parametrize("path", list(EVERY))
def test_every_command_and_option_has_help(path: str, loci: Loci) -> None:
    command = EVERY[path]
    assert command.help, path
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{path} {param.name}"
    done = loci(*path.split()[1:], "--help")
    assert done.code == 0
    assert "Usage: loci" in done.out


@pytest.mark.parametrize("path", [path for path in READING if path not in SILENT])
def test_every_command_with_a_result_takes_json(path: str) -> None:
    assert any("--json" in param.opts for param in EVERY[path].params), path


def test_prints_its_version(loci: Loci) -> None:
    done = loci("--version")
    assert (done.code, done.out) == (0, f"loci {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["plam"], "Did you mean 'plan'?"),
        (["memory", "serch"], "Did you mean 'search'?"),
        (["plan", "smollm2", "--darm", "1GiB"], "--dram"),
        (["config", "get", "models_dri"], "models_dir"),
        (["plan", "smollm2", "--dram", "lots"], "cannot read the size 'lots'"),
        (["plan", "smollm2", "--context", "0"], "at least 1"),
        (["plan"], "Missing argument"),
    ],
)
def test_wrong_usage_is_2_and_suggests(arguments: list[str], hint: str, loci: Loci) -> None:
    done = loci(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert hint in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("too big"), 3),
        (ConfigError("unknown"), 2),
        (ModelError("no such model", way_out="loci ls"), 1),
        (LociError("x"), 1),
        (PermissionError(13, "Permission denied"), 1),
        (RuntimeError("surprise"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_errors_become_exit_codes_without_a_traceback(
    error: BaseException, code: int, loci: Loci, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app.root, "main", fail)
    done = loci("doctor")
    assert done.code == code
    assert done.out == ""
    assert "Traceback" not in done.err
    if isinstance(error, LociError):
        assert done.err == f"{type(error).__name__}: {error}\n"


def test_debug_shows_where(loci: Loci, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_DEBUG", "1")
    done = loci("methods", "no-such-method")
    assert done.code == 2
    assert "Traceback" in done.err


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    shell = f"{sys.executable} -m loci config show | true"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.stderr == ""


def test_an_old_terminal_gets_what_it_can_show() -> None:
    script = "from loci.cli import app, output\napp.run(['--version'])\noutput.say('a \u2192 b')"
    env = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env, timeout=60)
    assert done.returncode == 0
    assert done.stdout.endswith(b"a ? b\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_prints_a_completion_script(shell: str, loci: Loci) -> None:
    done = loci("completion", shell)
    assert done.code == 0
    assert "_LOCI_COMPLETE" in done.out


def test_a_command_loads_only_its_own_file() -> None:
    code = (
        "import sys\nfrom loci.cli import main\nmain(['config', 'path'])\n"
        "print([m for m in sys.modules if m.startswith('loci.cli.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = done.stdout.splitlines()[-1]
    assert "loci.cli.config" in loaded
    assert "loci.cli.memory" not in loaded and "loci.cli.plan" not in loaded

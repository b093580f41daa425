"""The root command: a lazy group, and the outermost function that turns errors into exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from typing import Any  # click hands keyword arguments through

import click

from loci import __version__
from loci.errors import BudgetError, LociError, ParameterError
from loci.units import nearest

DONE, FAILED, USAGE, DOES_NOT_FIT, INTERRUPTED = 0, 1, 2, 3, 130

# One line a command: `loci --help` prints this table and imports no command.
COMMANDS = {
    "plan": "Say what fits a budget, how fast it is, and what it costs.",
    "run": "Answer one prompt within a budget.",
    "chat": "Talk with a model, line by line.",
    "serve": "Serve a model to many clients inside one budget.",
    "ps": "List the servers that run on this machine.",
    "top": "Watch a server: its budget, its requests, its speed.",
    "stop": "End a server, its requests first.",
    "key": "Make, list and drop the keys of a server.",
    "pull": "Fetch models by name.",
    "ls": "List the models on this machine.",
    "show": "Show the sizes of a model.",
    "memory": "Remember what people say, find it again, correct it, forget it.",
    "adapter": "Keep what a model knows without being told: adapters, trained or added.",
    "cube": "Keep text, keys and values, and adapters as cubes that move.",
    "govern": "Change what is remembered with a bar, a canary and a way back.",
    "agent": "Do long tasks step by step, with all state in the memory.",
    "mcp": "Serve the memory to assistants over the Model Context Protocol.",
    "doctor": "Say what this machine has and what Loci can do with it.",
    "methods": "List the published methods that Loci has, or show one.",
    "bench": "Run benchmarks and compare their results.",
    "config": "Show and change settings.",
    "demo": "Show the whole idea: a budget, a memory, a restart, the accounts.",
    "completion": "Print the completion script of a shell.",
}


class Group(click.Group):
    """A group that suggests the nearest command when a name is unknown."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` begin with."""
        name = args[0] if args else ""
        names = self.list_commands(ctx)
        if name and not name.startswith("-") and name not in names:
            near = nearest(name, names)
            hint = f" Did you mean {near!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """Imports a command's file when the command is run or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command from its file."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"loci.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="loci", message="%(prog)s %(version)s")
def root() -> None:
    """Run language models within a byte budget, and remember what people said."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; every error is reported here, once."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model may say what an ASCII terminal cannot
    try:
        result: Any = root.main(args=arguments, prog_name="loci", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    except click.UsageError as error:
        return _usage(error)
    except click.ClickException as error:
        return _say(f"loci: {error.format_message()}", error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not try to flush it again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except LociError as error:
        return _say(f"{type(error).__name__}: {error}", exit_code(error), error)
    except OSError as error:
        return _say(f"loci: {error}", FAILED, error)
    except Exception as error:
        text = f"loci: internal error: {type(error).__name__}: {error}"
        return _say(f"{text}\n  LOCI_DEBUG=1 shows where; please report it", FAILED, error)


def exit_code(error: LociError) -> int:
    """Return the exit code that belongs to an error."""
    if isinstance(error, BudgetError):
        return DOES_NOT_FIT
    return USAGE if isinstance(error, ParameterError) else FAILED


def _usage(error: click.UsageError) -> int:
    lines = []
    if error.ctx is not None:
        lines.append(error.ctx.get_usage())
        lines.append(f"Try '{error.ctx.command_path} --help' for help.\n")
    return _say("\n".join([*lines, f"Error: {error.format_message()}"]), USAGE)


def _say(text: str, code: int, error: BaseException | None = None) -> int:
    # The configuration may be what is broken, so the switch is read from the environment alone.
    if error is not None and os.environ.get("LOCI_DEBUG", "0").lower() not in ("", "0", "false"):
        traceback.print_exception(error)
    click.echo(text, err=True)
    return code

"""`loci config`: show and change settings."""

from __future__ import annotations

import click

from loci import config
from loci.cli.app import Group
from loci.cli.output import as_json_option, emit, plain, say, table


@click.group(cls=Group)
def command() -> None:
    """Show and change settings.

    A setting comes from the environment, else from the file, else from its default.
    """


@command.command()
@as_json_option
def show(as_json: bool) -> None:
    """Show every setting, its value and where the value comes from."""
    found = config.load()
    if as_json:
        emit(
            {
                key.name: {
                    "value": config.shown(key, found),
                    "source": found.sources[key.name],
                    "variable": key.variable,
                    "help": key.help,
                }
                for key in config.KEYS
            }
        )
        return
    rows = [
        (key.name, _shown(config.shown(key, found)), found.sources[key.name], key.variable)
        for key in config.KEYS
    ]
    table(rows, ("key", "value", "from", "variable"))


@command.command()
@click.argument("key")
@as_json_option
def get(key: str, as_json: bool) -> None:
    """Print the value of one setting."""
    value = config.shown(config.known(key), config.load())
    if as_json:
        emit({key: value})
    else:
        say(_shown(value))


@command.command(name="set")
@click.argument("key")
@click.argument("value")
def set_(key: str, value: str) -> None:
    """Write one setting to the file."""
    config.store(key, value, config.config_file())


@command.command()
@click.argument("key")
def unset(key: str) -> None:
    """Take one setting out of the file, back to its default."""
    config.store(key, None, config.config_file())


@command.command()
def path() -> None:
    """Print where the configuration file is."""
    say(str(config.config_file()))


def _shown(value: object) -> str:
    return "-" if value is None else str(plain(value))

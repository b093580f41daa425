"""`loci completion`: the completion script of a shell."""

from __future__ import annotations

import click

from loci.cli.output import say


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: eval "$(loci completion bash)"
    """
    from click.shell_completion import get_completion_class

    from loci.cli.app import root

    kind = get_completion_class(shell)
    assert kind is not None
    say(kind(root, {}, "loci", "_LOCI_COMPLETE").source())

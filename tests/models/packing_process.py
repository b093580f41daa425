"""A process that packs until it is killed. It imports little, so that it starts at once."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

from loci.models.load import resolve


def pack_forever(file: Path, folder: Path, ready: Connection) -> None:
    """Pack a file that changes again and again; tell of each time."""
    while True:
        os.utime(file)  # what changed outside the models folder is packed again
        resolve(str(file), folder).close()
        ready.send("packed")

"""What commands read: files and pipes, as text in UTF-8 or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

from loci.core.utf8 import plain_text


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ParameterError: if it is not UTF-8; it names the place.
    """
    return plain_text(path.read_bytes(), str(path))


def piped() -> str | None:
    """Return what is piped in, None where a person sits at the keyboard.

    Raises:
        ParameterError: if it is not UTF-8; it names the place.
    """
    if sys.stdin.isatty():
        return None
    # Bytes, because a stream of text refuses or mends them, depending on the locale.
    raw = getattr(sys.stdin, "buffer", None)
    return plain_text(sys.stdin.read() if raw is None else raw.read(), "what is piped in")

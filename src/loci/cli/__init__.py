"""The command line: one file a command; results on stdout, everything else on stderr."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> int:
    """Run `loci` and return its exit code: 0 done, 1 failed, 2 wrong usage, 3 does not fit."""
    from loci.cli.app import run

    return run(arguments)

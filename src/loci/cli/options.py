"""Kinds of values and groups of options that several commands share."""

from __future__ import annotations

import click

from loci.units import parse_bytes, parse_tokens


class Size(click.ParamType):
    """A size in bytes as people write it."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the bytes."""
        try:
            return parse_bytes(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Tokens(click.ParamType):
    """A count of tokens as people write it."""

    name = "tokens"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the count."""
        try:
            return parse_tokens(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE, TOKENS = Size(), Tokens()

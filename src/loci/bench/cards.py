"""Cards written from results: what a suite measured of a method goes into the method's card.

Claim and verdict are a person's work and stay as they are; a measurement replaces the older one of
the same model, machine, suite and parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.core.card import Card, Measurement
from loci.errors import MissingExtraError, ParameterError
from loci.methods import catalogue

ROOMS = ("nn", "bench", "tiers")  # what has cards and is no kind of methods
EXACT = "exact"  # the card of a KV cache that is kept as it is, in fewer bits


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one suite found out about one method.

    Attributes:
        method: as it is written in a chain, "snapkv(window=8)".
        part: what of the suite this is, "0.25" for a quarter of the bytes; "" for all of it.
        metrics, bytes, interval, ratio: as in `Measurement`.
    """

    method: str
    kind: str
    metrics: Mapping[str, Mapping[str, Any]]
    bytes: Mapping[str, int] = field(default_factory=dict)
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ratio: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    part: str = ""


def write(
    result: Mapping[str, Any], rows: Iterable[Row], folder: Path, command: str, only: str = ""
) -> list[Path]:
    """Put the rows of a result into the cards under `folder`, and return the cards written.

    Args:
        only: a method's name; rows of others are left out.

    Raises:
        ParameterError: if a method has no card yet: claim and verdict come first.
    """
    written: dict[Path, None] = {}
    for row in rows:
        name, parameters = _method(row)
        if only and name != only:
            continue
        path = folder / row.kind / f"{name}.toml"
        card = _card(path, name)
        fresh = Measurement(
            model=result.get("model", "none"),
            fingerprint=result.get("fingerprint", "none"),
            suite=f"{result['suite']}/{row.part}" if row.part else result["suite"],
            command=command,
            machine=result["machine"],
            software=result["software"],
            commit=result["commit"],
            date=result["date"],
            seeds=row.seeds,
            parameters=parameters,
            bytes=row.bytes,
            metrics=_rounded(row.metrics),
            interval={k: (_short(a), _short(b)) for k, (a, b) in row.interval.items()},
            ratio=_rounded(row.ratio),
        )
        kept = [m for m in card.measurements if _key(m) != _key(fresh)]
        _save(replace(card, measurements=(*kept, fresh)), path)
        written[path] = None
    return list(written)


def _method(row: Row) -> tuple[str, dict[str, Any]]:
    if row.kind in ROOMS:
        name, _, bits = row.method.partition("=")
        return name, {"bits": int(bits)} if bits else {}
    if row.method.startswith(EXACT):
        return EXACT, {"dtype": row.method.partition("=")[2]}
    method = catalogue.find(row.method, row.kind)
    known = {k: v for k, v in method.parameters().items() if v is not None}
    # Lists, as a card that is read again has them.
    return method.about.name, {k: [*v] if isinstance(v, tuple) else v for k, v in known.items()}


def _card(path: Path, name: str) -> Card:
    if not path.is_file():
        raise ParameterError(
            "this method has no card to write to",
            value=str(path),
            allowed=f'a file with format, version, method = "{name}", [claim] and [verdict]',
            way_out="write down what the paper claims first; the measurements follow",
        )
    return Card.from_toml(path.read_text(encoding="utf-8"), str(path))


def _key(m: Measurement) -> tuple[Any, ...]:
    return m.model, m.fingerprint, m.suite, m.machine.get("name"), sorted(m.parameters.items())


def _save(card: Card, path: Path) -> None:
    try:
        import tomli_w
    except ImportError:
        raise MissingExtraError(
            "cards are written with tomli-w", way_out="pip install 'loci[bench]'"
        ) from None
    fresh = path.with_suffix(".new")
    fresh.write_text(tomli_w.dumps(card.to_toml_dict()), encoding="utf-8")
    os.replace(fresh, path)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, Mapping) else _short(value)
        for key, value in values.items()
        if value is not None
    }


def _short(value: Any) -> Any:
    """Return a float with the four digits that mean something."""
    return float(f"{value:.4g}") if isinstance(value, float) else value

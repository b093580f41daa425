"""The card of a method: what its paper claims, what we measured, and our verdict."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from typing import Any  # metrics are nested tables of numbers

from loci.errors import FormatError

FORMAT, VERSION = "loci-card", 1


class Verdict(StrEnum):
    """Whether the claim held here."""

    REPRODUCED = "reproduced"
    IN_PART = "in part"
    NOT_REPRODUCED = "not reproduced"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run on one model and machine, always beside the full model and the rivals.

    Attributes:
        bytes: {"full", "predicted", "measured"}.
        metrics: {metric: {"full"?, "this", "rivals": {name: value}}}.
        interval: {metric: (low, high)} of "this", 95 %.
        ratio: {quantity: this / full or this / rival}, for times.
    """

    model: str
    fingerprint: str
    suite: str
    command: str
    machine: Mapping[str, Any]
    software: Mapping[str, str]
    commit: str
    date: str
    seeds: tuple[int, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ratio: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Claim, measurements and verdict of one method."""

    method: str
    claim: str
    claim_where: str
    verdict: Verdict
    because: str
    measurements: tuple[Measurement, ...] = ()

    def for_model(self, fingerprint: str, suite: str | None = None) -> list[Measurement]:
        """Return the measurements made with this very model."""
        return [
            m
            for m in self.measurements
            if m.fingerprint == fingerprint and suite in (None, m.suite)
        ]

    @classmethod
    def from_toml(cls, text: str, where: str) -> Card:
        """Return a card from its TOML; every part missing or unknown is an error that names it."""
        try:
            data = tomllib.loads(text)
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise FormatError(
                    f"{where} is not a card of a version we know",
                    value=(data["format"], data["version"]),
                    allowed=f"{FORMAT} {VERSION}",
                )
            measurements = []
            for row in data.get("measurement", []):
                values = dict(row)
                values["date"] = str(values["date"])
                values["seeds"] = tuple(values.get("seeds", ()))
                values["interval"] = {k: tuple(v) for k, v in values.get("interval", {}).items()}
                measurements.append(Measurement(**values))
            return cls(
                method=data["method"],
                claim=data["claim"]["text"],
                claim_where=data["claim"]["where"],
                verdict=Verdict(data["verdict"]["value"]),
                because=data["verdict"]["because"],
                measurements=tuple(measurements),
            )
        except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where} is not a card: {error}") from error

    def to_toml_dict(self) -> dict[str, Any]:
        """Return the card as a nested dict in the order of the file."""
        rows = []
        for m in self.measurements:
            row = {k: v for k, v in vars(m).items() if v not in ({}, ())}
            row = {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}
            if "interval" in row:
                row["interval"] = {k: list(v) for k, v in m.interval.items()}
            rows.append({k: dict(v) if isinstance(v, Mapping) else v for k, v in row.items()})
        return {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "claim": {"text": self.claim, "where": self.claim_where},
            "verdict": {"value": self.verdict.value, "because": self.because},
            "measurement": rows,
        }


def load_card(kind: str, name: str) -> Card | None:
    """Return the shipped card `cards/<kind>/<name>.toml`, or None when there is none."""
    file = resources.files("loci") / "cards" / kind / f"{name}.toml"
    if not file.is_file():
        return None
    return Card.from_toml(file.read_text(encoding="utf-8"), f"card {kind}/{name}")

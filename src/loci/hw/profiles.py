"""Descriptions of machines for planning: sizes and speeds of their tiers, arithmetic rates.

A profile is measured here (`profile_of`) or read from machines.toml (`load_profile`), where each
row has its source. A figure that nobody measured or published is absent: then a planner says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from importlib import resources
from typing import Any  # TOML

from loci.errors import FormatError, ParameterError
from loci.hw.probe import Machine, Rates
from loci.units import nearest

FORMAT, VERSION = "loci-machines", 1
TIERS = ("gpu", "dram", "disk")


@dataclass(frozen=True, kw_only=True)
class TierFacts:
    """A tier: bytes it holds, bytes/s that are read from it, fixed seconds of one read.

    For gpu and dram the speed is that of the processor beside it; for disk it is that of reads
    into dram. What crosses from one tier to another is in `DeviceProfile.links`.
    """

    bytes: int
    read_bytes_per_s: float
    latency_s: float = 0.0

    def seconds(self, nbytes: float, reads: int = 1) -> float:
        """Return the time to read `nbytes` in so many reads, one after another."""
        return nbytes / self.read_bytes_per_s + reads * self.latency_s


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A machine as planners and the simulator see it.

    Attributes:
        tiers: {tier: its facts}; only tiers the machine has and whose speed is known.
        rates: {dtype: operations/s}, dense; empty where no source gave any.
        links: {(from tier, to tier): bytes/s}; the disk's own speed is its link to dram.
        launch_s: fixed time of one operator; 0 when nobody measured it.
        starts: {kind of work: fixed time}, where that is longer than `launch_s`.
        source: where the figures are from; `checked`: when, ISO 8601.
    """

    name: str
    tiers: Mapping[str, TierFacts]
    rates: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[tuple[str, str], float] = field(default_factory=dict)
    launch_s: float = 0.0
    starts: Mapping[str, float] = field(default_factory=dict)
    source: str
    checked: str

    def __post_init__(self) -> None:
        for tier, facts in self.tiers.items():
            if tier not in TIERS:
                raise ParameterError("unknown tier", value=tier, allowed=", ".join(TIERS))
            if facts.bytes < 0 or facts.read_bytes_per_s <= 0 or facts.latency_s < 0:
                raise ParameterError(f"impossible facts of {self.name}.{tier}", value=facts)
        for rate in (*self.rates.values(), *self.links.values()):
            if rate <= 0:
                raise ParameterError(f"a rate of {self.name} must be positive", value=rate)

    def tier(self, name: str) -> TierFacts:
        """Return the facts of a tier.

        Raises:
            ParameterError: if the machine does not have it.
        """
        if name not in self.tiers:
            raise ParameterError(
                f"{self.name} has no {name} whose speed is known", allowed=", ".join(self.tiers)
            )
        return self.tiers[name]

    def link(self, source: str, target: str) -> float:
        """Return bytes/s from one tier to another; the disk's own speed is its link to dram."""
        if (source, target) in self.links:
            return self.links[source, target]
        if (source, target) == ("disk", "dram"):
            return self.tier("disk").read_bytes_per_s
        known = ", ".join(f"{a} to {b}" for a, b in self.links)
        raise ParameterError(
            f"the speed of {self.name} from {source} to {target} is not known",
            allowed=known or "none is known",
        )


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a machine reaches where a profile has only what it promises; measured by `run.pace`.

    Attributes:
        launch_s: fixed time of one operator of a layer.
        starts: of those that take longer to start, by kind of work.
        rates: operations/s by kind of work, such as "float32/attend".
        disk_bytes_per_s: of blocks read one after another, as streamed weights are.
    """

    launch_s: float
    rates: Mapping[str, float]
    starts: Mapping[str, float] = field(default_factory=dict)
    disk_bytes_per_s: float

    def on(self, profile: DeviceProfile) -> DeviceProfile:
        """Return the profile with what the machine reaches."""
        tiers = dict(profile.tiers)
        if "disk" in tiers:
            tiers["disk"] = replace(tiers["disk"], read_bytes_per_s=self.disk_bytes_per_s)
        rates = {**profile.rates, **self.rates}
        return replace(
            profile, launch_s=self.launch_s, starts=dict(self.starts), rates=rates, tiers=tiers
        )


def names() -> list[str]:
    """Return the machines that `load_profile` knows."""
    return sorted(_table())


def load_profile(name: str) -> DeviceProfile:
    """Return a machine of machines.toml.

    Raises:
        ParameterError: if there is none of that name; it suggests the nearest.
    """
    table = _table()
    if name not in table:
        near = nearest(name.lower().replace(" ", "-"), names())
        raise ParameterError(
            "there is no machine of this name",
            value=name,
            allowed=", ".join(names()),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    return _profile(name, table[name])


def profile_of(machine: Machine, rates: Rates) -> DeviceProfile:
    """Return the profile of this machine from what was probed and measured.

    A GPU is included when machines.toml knows its speed. Sizes are what the machine has; what is
    free right now is `machine.free()`.
    """
    tiers = {
        "dram": TierFacts(bytes=machine.dram_total, read_bytes_per_s=rates.dram_read),
        "disk": TierFacts(
            bytes=machine.disk_free,
            read_bytes_per_s=rates.disk_read,
            latency_s=rates.disk_latency_s,
        ),
    }
    links: dict[tuple[str, str], float] = {}
    arithmetic, source = {"float32": rates.float32}, "measured here"
    gpu = machine.gpus[0] if machine.gpus else None
    for name, row in _table().items() if gpu else ():
        if gpu is not None and gpu.name in row.get("gpu_names", ()):
            known = _profile(name, row)
            tiers["gpu"] = TierFacts(
                bytes=gpu.total, read_bytes_per_s=known.tiers["gpu"].read_bytes_per_s
            )
            links, source = dict(known.links), f"measured here; GPU: {known.source}"
    return DeviceProfile(
        name="this machine",
        tiers=tiers,
        rates=arithmetic,
        links=links,
        launch_s=rates.launch_s,
        source=source,
        checked=rates.measured,
    )


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("loci.hw") / "machines.toml").read_text(encoding="utf-8")
    return parse_machines(text)


def parse_machines(text: str) -> dict[str, Any]:
    """Return {name: row} from the text of a machines file.

    Raises:
        FormatError: if it is none, or a row has no source or date.
    """
    try:
        data = tomllib.loads(text)
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {data['format']!r} version {data['version']!r}")
        for name, row in data["machine"].items():
            if not row["source"] or not isinstance(row["checked"], date):
                raise ValueError(f"{name} has no source or date")
            _profile(name, row)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"this is no table of machines: {error}") from error
    return dict(data["machine"])


def _profile(name: str, row: Mapping[str, Any]) -> DeviceProfile:
    unknown = set(row) - {"gpu_names", "tiers", "links", "rates", "launch_s", "source", "checked"}
    if unknown:
        raise ValueError(f"{name} has unknown fields: {', '.join(sorted(unknown))}")
    links = {tuple(key.split("_")): value for key, value in row.get("links", {}).items()}
    return DeviceProfile(
        name=name,
        tiers={tier: TierFacts(**facts) for tier, facts in row["tiers"].items()},
        rates=dict(row.get("rates", {})),
        links={(source, target): value for (source, target), value in links.items()},
        launch_s=row.get("launch_s", 0.0),
        source=row["source"],
        checked=str(row["checked"]),
    )

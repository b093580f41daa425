"""What several replicas tell of themselves, put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any  # JSON values

Json = dict[str, Any]
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?( .+)")


def ledgers(found: Mapping[str, Json | None]) -> Json:
    """Return one ledger of all: sizes are sums, a peak the sum of peaks, and below, each alone."""
    there = {name: one for name, one in found.items() if one is not None}
    tiers: Json = {}
    for one in there.values():
        for tier, values in one["tiers"].items():
            tiers[tier] = added([tiers.get(tier, {}), values])
    held = [{**row, "replica": name} for name, one in there.items() for row in one["held"]]
    return {"tiers": tiers, "held": held, "replicas": dict(found)}


def loads(found: Mapping[str, Json | None]) -> Json:
    """Return how much there is to do for all together, and below, for each."""
    there = [one for one in found.values() if one is not None]
    total = added(there)
    if there:
        total["step_s"] = sum(one["step_s"] for one in there) / len(there)
    return {**total, "replicas": dict(found)}


def added(values: Iterable[Mapping[str, Any]]) -> Json:
    """Return the sum of numbers under the same names, also further down; of others, the first."""
    total: Json = {}
    for value in values:
        for name, one in value.items():
            if isinstance(one, dict):
                total[name] = added([total.get(name, {}), one])
            elif isinstance(one, (int, float)) and not isinstance(one, bool):
                total[name] = total.get(name, 0) + one
            else:
                total.setdefault(name, one)
    return total


def metrics(texts: Mapping[str, str]) -> str:
    """Return Prometheus's form of all, each sample with the replica it is of."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for name, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif found := _SAMPLE.fullmatch(line):
                labels = ",".join(filter(None, (f'replica="{name}"', found[2])))
                samples.setdefault(family, []).append(f"{found[1]}{{{labels}}}{found[3]}")
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)

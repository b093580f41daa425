"""The budget: how many bytes of each tier Loci may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum

from loci.errors import ParameterError
from loci.units import format_bytes, parse_bytes

SHARE_OF_FREE = 0.8  # of a tier that the person did not name; disk is 0 unless asked for


class Tier(StrEnum):
    """A place for bytes, fastest first."""

    GPU = "gpu"
    DRAM = "dram"
    DISK = "disk"
    REMOTE = "remote"


def read_bytes(size: str | int, what: str) -> int:
    """Return the bytes of a size as people write it; an error names what it is for."""
    try:
        return parse_bytes(size)
    except ValueError as error:
        raise ParameterError(f"{what}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes per tier of what Loci holds, with optional caps inside the working tier.

    None means "not named": `filled` replaces it by 80 % of what is free, and disk by 0. Python and
    its libraries come on top and are limited only by `process`.
    """

    gpu: int | None = None
    dram: int | None = None
    disk: int | None = None
    remote: int | None = None
    weights: int | None = None
    kv: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ParameterError(
                    f"budget.{field.name} must be a whole number of bytes >= 0",
                    value=value,
                    way_out="Budget.parse reads sizes like '160MiB'",
                )

    @classmethod
    def parse(cls, **sizes: str | int | None) -> Budget:
        """Return a budget from sizes as people write them: `Budget.parse(dram="160MiB")`."""
        known = {field.name for field in fields(cls)}
        parsed: dict[str, int] = {}
        for name, size in sizes.items():
            if name not in known:
                raise ParameterError(
                    "unknown part of a budget", value=name, allowed=", ".join(sorted(known))
                )
            if size is not None:
                parsed[name] = read_bytes(size, f"--{name}")
        return cls(**parsed)

    def filled(self, free: Mapping[str, int]) -> Budget:
        """Return the budget with every unnamed tier set from the bytes free on this machine."""
        return replace(
            self,
            gpu=self.gpu if self.gpu is not None else int(free.get("gpu", 0) * SHARE_OF_FREE),
            dram=self.dram if self.dram is not None else int(free.get("dram", 0) * SHARE_OF_FREE),
            disk=self.disk if self.disk is not None else 0,
            remote=self.remote if self.remote is not None else 0,
        )

    def limits(self) -> dict[str, int]:
        """Return {tier: bytes} for the ledger; unnamed tiers are 0."""
        return {tier.value: getattr(self, tier.value) or 0 for tier in Tier}

    def __str__(self) -> str:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = [f"{name} {format_bytes(size)}" for name, size in named.items() if size is not None]
        return ", ".join(parts) or "nothing named"

"""Instants as people give them, and as the store keeps them: microseconds since 1970, UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from loci.errors import ParameterError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EXAMPLE = 'a datetime, or ISO 8601 such as "2026-05-01T10:00:00+00:00"'


def zone(name: str) -> tzinfo:
    """Return the zone of that name ("UTC", "Europe/Amsterdam") or offset ("+02:00").

    Raises:
        ParameterError: if there is no such zone.
    """
    if name.upper() in ("UTC", "Z"):
        return UTC
    if name[:1] in "+-" and len(name) > 1:
        try:
            return datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo or UTC
        except ValueError:
            pass
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ParameterError(
            "there is no such time zone",
            value=name,
            allowed='"UTC", a name like "Europe/Amsterdam", or an offset like "+02:00"',
        ) from None


def read_time(value: object, assumed: tzinfo, what: str = "time") -> tuple[datetime, bool]:
    """Return (the instant with its zone, whether the zone was assumed).

    Raises:
        ParameterError: if the value is neither a datetime nor ISO 8601.
    """
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            moment = None
    if not isinstance(moment, datetime):
        raise ParameterError(f"cannot read this {what}", value=value, allowed=_EXAMPLE)
    if moment.utcoffset() is not None:
        return moment, False
    return moment.replace(tzinfo=assumed), True


def to_micros(moment: datetime) -> int:
    """Return the instant as microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int, offset_s: int = 0) -> datetime:
    """Return the instant, in the zone that is `offset_s` seconds from UTC."""
    moment = _EPOCH + timedelta(microseconds=micros)
    return moment if offset_s == 0 else moment.astimezone(timezone(timedelta(seconds=offset_s)))


def maybe_micros(moment: datetime | None) -> int | None:
    """Return `to_micros`, or None for none; a time without a zone is taken as UTC."""
    if moment is None:
        return None
    return to_micros(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))


def maybe_time(micros: int | None) -> datetime | None:
    """Return `from_micros`, or None for none."""
    return None if micros is None else from_micros(micros)

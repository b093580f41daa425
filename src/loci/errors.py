"""Every error Loci raises on purpose.

    LociError
    +-- ParameterError       a value out of range, or a name nobody knows (also a ValueError)
    |   +-- ConfigError      an unknown key or a bad value in the configuration
    +-- BudgetError          it does not fit the budget (exit code 3)
    |   +-- OverloadError    it does not fit now, and will later
    +-- ModelError           no such model, or one we cannot run
    |   +-- FormatError      a file is cut short, corrupt, or of another version
    |   +-- ContextError     more tokens than the context holds
    +-- FingerprintError     made for another model, method or layout
    +-- PolicyError          what a rule about who, what and when forbids
    +-- MethodError          a method that cannot do what was asked; an illegal chain
    +-- StoreError           the memory file cannot be used
    |   +-- SchemaError      its schema is newer than this Loci
    |   +-- BusyError        another process holds it
    |   +-- NotFoundError    no item with that id in this scope (also a KeyError)
    +-- StorageError         the disk is full, or a write failed
    +-- EndpointError        a remote model did not answer, or not as agreed
    +-- MissingExtraError    an optional package is not installed

A message has four parts: what, the value, what is allowed, and the way out.
"""

from __future__ import annotations

from typing import Any  # the parts of a message


class LociError(Exception):
    """Base of every error raised on purpose; the message is meant to be read by people.

    Args:
        what: what went wrong, in one sentence without its full stop.
        value: what was given, shown with repr.
        allowed: what would have been accepted.
        way_out: lines that tell what to do now.
    """

    def __init__(
        self,
        what: str,
        *,
        value: object = None,
        allowed: str | None = None,
        way_out: str | list[str] | tuple[str, ...] = (),
    ) -> None:
        self.what, self.value, self.allowed = what, value, allowed
        self.way_out = (way_out,) if isinstance(way_out, str) else tuple(way_out)
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what
        if self.value is not None:
            text += f"; got {self.value!r}"
        if self.allowed is not None:
            text += f"; allowed: {self.allowed}"
        return "\n  ".join([text, *self.way_out])


class ParameterError(LociError, ValueError):
    """A value out of range, or a name nobody knows."""


class ConfigError(ParameterError):
    """An unknown key or a bad value in the configuration."""


class BudgetError(LociError):
    """Something does not fit the budget; the message states need, limit and gap."""


class OverloadError(BudgetError):
    """It does not fit now, and will later.

    Args:
        retry_after_s: when to ask again, by what is running now.
    """

    def __init__(self, what: str, *, retry_after_s: float = 1.0, **parts: Any) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what, **parts)


class ModelError(LociError):
    """No such model, or one that Loci cannot run."""


class FormatError(ModelError):
    """A file is cut short, corrupt, or of a version this Loci does not know."""


class ContextError(ModelError):
    """More tokens than the context holds."""


class FingerprintError(LociError):
    """Something was made for another model, method or layout."""


class PolicyError(LociError):
    """A rule about who may do what, and when, forbids it."""


class MethodError(LociError):
    """A method that cannot do what was asked, or an illegal chain of methods."""


class StoreError(LociError):
    """The memory file cannot be used."""


class SchemaError(StoreError):
    """The memory file was written by a newer Loci."""


class BusyError(StoreError):
    """Another process holds the memory file for longer than we may wait."""


class NotFoundError(StoreError, KeyError):
    """There is no item with that id in this scope."""

    __str__ = LociError.__str__


class StorageError(LociError):
    """The disk is full, or a write failed; what was there before is still there."""


class EndpointError(LociError):
    """A remote model did not answer, or did not answer as agreed."""


class MissingExtraError(LociError):
    """An optional package is not installed; the message has the line that installs it."""


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Return the error for an optional package that is not installed."""
    return MissingExtraError(
        f"this needs the package {package}, which is not installed",
        way_out=f"pip install 'loci[{extra}]'",
    )

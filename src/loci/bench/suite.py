"""What a suite is: a file in `bench/suites` with `ABOUT` and one function `run`.

A suite that measures methods also says of which kinds (`KINDS`), and turns a result into what goes
into their cards (`card_rows`). One that compares them has tables to print as well (`sheet`). One
that measures certain methods alone names them (`METHODS`): methods that act each have a suite of
their own.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol  # results hold whatever JSON can hold

from loci.bench import suites
from loci.bench.cards import Row
from loci.core.method import Method
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.units import nearest

FORMAT, VERSION = "loci-bench", 1


def _quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a suite may use.

    Attributes:
        folder: where models are kept.
        model: name of the model to measure.
        data: a file or folder of the person's own data, where the suite needs one.
        methods: methods to compare, as chains are written; () takes the suite's own choice.
        quick: a small run that only shows the suite works.
        progress: called with (what, done, total).
    """

    folder: Path
    model: str = "smollm2"
    data: Path | None = None
    methods: tuple[str, ...] = ()
    quick: bool = False
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] = _quiet


class Suite(Protocol):
    """The form of a module in `bench/suites`; the last two parts are for suites of methods."""

    ABOUT: str
    KINDS: tuple[str, ...]

    def run(self, context: Context) -> dict[str, Any]:
        """Measure, and return JSON values."""
        ...

    def card_rows(self, result: Mapping[str, Any]) -> list[Row]:
        """Return what a result says about each method in it."""
        ...


def names() -> list[str]:
    """Return the names of all suites."""
    return sorted(info.name for info in pkgutil.iter_modules(suites.__path__))


def find(name: str) -> Suite:
    """Return a suite by name; an unknown one is refused with the nearest."""
    if name not in names():
        near = nearest(name, names())
        raise ParameterError(
            "there is no such suite",
            value=name,
            allowed=", ".join(names()),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    module: Any = import_module(f"loci.bench.suites.{name}")
    return module  # type: ignore[no-any-return]


def chosen(name: str) -> tuple[list[str], str]:
    """Return the suites that `name` stands for, and the method where it names one, else "".

    Raises:
        ParameterError: if it is neither a suite nor a method; the nearest is suggested.
    """
    if name in names():
        return [name], ""
    known = {m for m in catalogue.names() if m}
    method = name.partition("(")[0].strip()
    if method in known:
        found = catalogue.find(name)
        return measuring(found), found.about.name
    near = nearest(name, [*names(), *known])
    raise ParameterError(
        "there is no such suite or method",
        value=name,
        allowed=f"{', '.join(names())}; a method of loci methods",
        way_out=f"did you mean {near!r}?" if near else (),
    )


def contenders(name: str, method: str | None, named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods a suite measures: those named, else its own choice and `method`."""
    if method is None or named:
        return named
    own: tuple[str, ...] = getattr(find(name), "DEFAULT", ())
    return own if method in own else (*own, method)


def of_kind(kind: str) -> list[str]:
    """Return the suites that measure methods of a kind."""
    return [name for name in names() if kind in getattr(find(name), "KINDS", ())]


def measuring(method: Method) -> list[str]:
    """Return the suites that measure a method: those for it, else those for all of its kind."""
    from loci.methods.recall.base import Act

    kind = of_kind(method.about.kind.value)
    own = [name for name in kind if method.about.name in getattr(find(name), "METHODS", ())]
    if own or isinstance(method, Act):
        return own
    return [name for name in kind if not hasattr(find(name), "METHODS")]


def run(name: str, context: Context) -> dict[str, Any]:
    """Run a suite and return its result with format, machine, software and command."""
    from loci.bench.provenance import provenance

    result = find(name).run(context)
    return {"format": FORMAT, "version": VERSION, "suite": name, **provenance(), **result}


# -- options of suites ------------------------------------------------------------------------


def refuse_unknown(options: Mapping[str, str], known: Sequence[str]) -> None:
    """Raise ParameterError if there is an option a suite does not have."""
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ParameterError("no such option", value=unknown, allowed=", ".join(known))


def python_of(options: Mapping[str, str], name: str, packages: str) -> str:
    """Return the Python of another environment, which an option names.

    Args:
        packages: what has to be installed there.

    Raises:
        ParameterError: if it is not named, or not there.
    """
    named = options.get(name)
    if named is None or not Path(named).is_file():
        place = f"/tmp/{name.removesuffix('_python')}"
        raise ParameterError(
            f"this needs a Python of its own, with {packages}",
            value=named,
            allowed=f"--option {name}=PYTHON",
            way_out=[
                f"python -m venv {place} && {place}/bin/pip install {packages}",
                f"--option {name}={place}/bin/python",
            ],
        )
    return named


def words_of(options: Mapping[str, str], name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return an option that is a list of words."""
    found = tuple(word.strip() for word in options.get(name, "").split(",") if word.strip())
    return found or default


def count_of(options: Mapping[str, str], name: str, default: int) -> int:
    """Return an option that is a whole number of at least 1."""
    text = options.get(name)
    if text is None:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ParameterError(f"{name} is a whole number", value=text, allowed=">= 1")
    return int(text)


def shares_of(options: Mapping[str, str], default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the option `shares`: parts of the full cache's bytes."""
    text = options.get("shares")
    if text is None:
        return default
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise ParameterError(
            "shares are parts of the full cache", value=text, allowed="above 0 up to 1: 0.5,0.25"
        )
    return found

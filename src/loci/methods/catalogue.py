"""The catalogue: the folder of methods, read as a list, and text turned into methods.

A file `methods/<kind>/<name>.py` that defines a public `Method` is in the catalogue; there is no
list to edit. Names are read from the source text, so listing them imports no method (and no torch);
a method's module is imported when it is asked for. Strangers' methods come through the entry-point
group `loci.methods`, each entry naming one class.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files

from loci.core.method import Kind, Method, make, parse_call, split_chain
from loci.errors import MethodError, ParameterError
from loci.units import nearest

GROUP = "loci.methods"
_PACKAGE = "loci.methods"
_NOT_METHODS = (
    "__init__.py", "base.py", "chain.py", "fuse.py", "read.py", "retrieve.py", "store_plan.py",
)  # fmt: skip


def kinds() -> tuple[str, ...]:
    """Return the kinds that have a folder, in the order of `Kind`.

    >>> "sched" in kinds()
    True
    """
    root = files(_PACKAGE)
    return tuple(kind.value for kind in Kind if (root / kind.value / "__init__.py").is_file())


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of all methods, or of one kind, sorted.

    Raises:
        ParameterError: if there is no such kind.
    """
    return tuple(sorted({name for _, name in _known(kind)}))


def method_class(name: str, kind: str | None = None) -> type[Method]:
    """Return the class of the method called `name`.

    Raises:
        ParameterError: if nobody knows the name (the nearest is suggested), or if two kinds have it
            and `kind` is not given.
    """
    homes = {of_kind: home for (of_kind, known), home in _known(kind).items() if known == name}
    if len(homes) > 1:
        raise ParameterError(
            "several kinds have a method of this name",
            value=name,
            allowed=" or ".join(f"the one of kind {of_kind}" for of_kind in homes),
        )
    if not homes:
        known = names(kind)
        near = nearest(name, known)
        raise ParameterError(
            f"there is no {kind + ' ' if kind else ''}method of this name",
            value=name,
            allowed=", ".join(known) or "none of this kind yet",
            way_out=f"did you mean {near!r}?" if near else (),
        )
    [home] = homes.values()
    if isinstance(home, EntryPoint):
        return _stranger(home)
    found = [cls for cls in _public_methods(home) if cls.about.name == name]
    if len(found) != 1:
        raise MethodError(f"{home} must define one public method named {name!r}", value=len(found))
    return found[0]


def find(text: str, kind: str | None = None) -> Method:
    """Return the method that `text` describes, such as "bfp(bits=4)".

    >>> find("fcfs(chunk=256)", "sched").chunk
    256
    """
    name, arguments = parse_call(text)
    return make(method_class(name, kind), arguments)


def parse_chain(text: str, kind: str) -> tuple[Method, ...]:
    """Return the methods of a chain, "snapkv(window=8) | bfp(bits=4)"; "" is the empty chain."""
    return tuple(find(link, kind) for link in split_chain(text)) if text.strip() else ()


def all_methods(kind: str | None = None) -> tuple[type[Method], ...]:
    """Return the class of every method, sorted by kind and name; this imports their modules."""
    return tuple(method_class(name, of_kind) for of_kind, name in sorted(_known(kind)))


# -- private ----------------------------------------------------------------------------------


def _known(kind: str | None) -> Mapping[tuple[str, str], str | EntryPoint]:
    """Return {(kind, name): module path or entry point}."""
    if kind is not None and kind not in list(Kind):
        near = nearest(kind, [k.value for k in Kind])
        raise ParameterError(
            "unknown kind of method",
            value=kind,
            allowed=", ".join(Kind),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    known: dict[tuple[str, str], str | EntryPoint] = dict(_ours())
    for entry in _entries():
        about = _stranger(entry).about
        key = (about.kind.value, about.name)
        if key in known:
            raise MethodError(
                f"the package behind {entry.value} brings a {key[0]} method that exists already",
                value=key[1],
                way_out="remove that package or rename its method",
            )
        known[key] = entry
    return {key: home for key, home in known.items() if kind in (None, key[0])}


@cache
def _entries() -> tuple[EntryPoint, ...]:
    """Return strangers' entry points; reading them scans every installed package, so once."""
    return tuple(entry_points(group=GROUP))


@cache
def _ours() -> Mapping[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for kind in kinds():
        for file in sorted((files(_PACKAGE) / kind).iterdir(), key=lambda entry: entry.name):
            if not file.name.endswith(".py") or file.name in _NOT_METHODS or file.name[0] == "_":
                continue
            module = f"{_PACKAGE}.{kind}.{file.name.removesuffix('.py')}"
            for name in _names_in(file.read_text(encoding="utf-8")):
                found[kind, name] = module
    return found


def _names_in(source: str) -> list[str]:
    """Return the `About(name=...)` of every public class in a source text."""
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        for line in node.body:
            value = line.value if isinstance(line, (ast.Assign, ast.AnnAssign)) else None
            if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "About":
                found += [
                    keyword.value.value
                    for keyword in value.keywords
                    if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
                ]
    return [str(name) for name in found]


def _public_methods(module: str) -> list[type[Method]]:
    return [
        value
        for name, value in vars(import_module(module)).items()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module
        and not name.startswith("_")
        and hasattr(value, "about")
    ]


def _stranger(entry: EntryPoint) -> type[Method]:
    cls = entry.load()
    if not (isinstance(cls, type) and issubclass(cls, Method) and hasattr(cls, "about")):
        raise MethodError(
            f"the entry point {entry.name!r} of group {GROUP} is no method",
            value=entry.value,
            allowed="a subclass of loci.core.method.Method with `about`",
        )
    return cls

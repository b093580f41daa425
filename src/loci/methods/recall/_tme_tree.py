"""The task tree of TME: nodes with values, versions and dependencies, and what is done to them.

Nodes are JSON values under keys "node/1", "node/2", ...; their slot is a name people use. A node
keeps its identity whatever it is called, and every value it ever had.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any  # JSON values

from loci.errors import ParameterError
from loci.text.stem import fold
from loci.units import nearest

OPS = ("create", "set", "rollback", "remove", "restore", "depend", "check", "reuse")
Node = dict[str, Any]


@dataclass
class Tree:
    """Nodes by key, and what an operation changed.

    Attributes:
        turn: number of the instruction that is being carried out.
        changed: keys of nodes changed since the tree was made.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    turn: int = 0
    changed: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Mapping[str, Any]], turn: int = 0) -> Tree:
        """Return a tree over copies of these nodes."""
        return cls(nodes={key: deepcopy(dict(value)) for key, value in values.items()}, turn=turn)

    # -- looking -------------------------------------------------------------------------------

    def key(self, slot: str) -> str:
        """Return the key of the node that is called so.

        Raises:
            ParameterError: if none is, or several are; the nearest is suggested.
        """
        found = self.keys(slot)
        if len(found) == 1:
            return found[0]
        names = [str(node["slot"]) for node in self.nodes.values()]
        near = nearest(slot, names)
        raise ParameterError(
            "several tasks have this name" if found else "there is no task of this name",
            value=slot,
            allowed=", ".join(self.full_name(key) for key in found or self.nodes) or "none yet",
            way_out=f"did you mean {near!r}?" if near and not found else (),
        )

    def keys(self, slot: str) -> list[str]:
        """Return the keys of nodes with this name, alias, or full name ("trip / hotel")."""
        if slot in self.nodes:
            return [slot]
        wanted = fold(slot).strip()
        called = {
            key: [node["slot"], *node["aliases"], self.full_name(key)]
            for key, node in self.nodes.items()
        }
        return [key for key, names in called.items() if wanted in [fold(n) for n in names]]

    def full_name(self, key: str) -> str:
        """Return the name of a node after those of its ancestors."""
        return " / ".join(str(self.nodes[one]["slot"]) for one in self.path(key))

    def path(self, key: str) -> list[str]:
        """Return the keys from the root to a node."""
        found = [key]
        while (parent := self.nodes[found[0]]["parent"]) is not None:
            found.insert(0, parent)
        return found

    def needs(self, key: str) -> list[str]:
        """Return what a node depends on, directly and through others, each after its own needs."""
        found: dict[str, None] = {}

        def visit(one: str) -> None:
            for other in self.nodes[one]["deps"]:
                if other not in found and other != key:
                    visit(other)
                    found[other] = None

        visit(key)
        return list(found)

    def dependents(self, key: str) -> list[str]:
        """Return the nodes that depend on one, directly and through others."""
        return [other for other in self.nodes if other != key and key in self.needs(other)]

    def before(self, key: str) -> Any:
        """Return the last other value a node had, None if it never had one.

        This is what happened; going back follows `_before`, where a value that was gone back to
        stands in the place it had.
        """
        node = self.nodes[key]
        had = [version["value"] for version in node["versions"]]
        return next((value for value in reversed(had) if not _same(value, node["value"])), None)

    def answer(self, op: Mapping[str, Any]) -> str:
        """Return what there is to say about a node that was asked about."""
        key = self.key(str(op["slot"]))
        name = self.full_name(key)
        if op.get("to") == "before":
            earlier = self.before(key)
            return (
                f"{name} had no other value before" if earlier is None else f"{name} was {earlier}"
            )
        return line(self, key)

    def state(self) -> dict[str, Node]:
        """Return {full name: value, status and whether it is stale}, in the order of the nodes."""
        return {
            self.full_name(key): {name: node[name] for name in ("value", "status", "stale")}
            for key, node in self.nodes.items()
        }

    # -- changing ------------------------------------------------------------------------------

    def apply(self, op: Mapping[str, Any]) -> str:
        """Carry out one operation, and return in a few words what it did.

        Raises:
            ParameterError: if it cannot be carried out; nothing is changed then.
        """
        what = op.get("op")
        if what not in OPS:
            raise ParameterError("unknown operation", value=what, allowed=", ".join(OPS))
        allowed = {"op", "slot", "value", "parent", "after", "type", "aliases", "to", "on"}
        for name in op:
            if name not in allowed:
                raise ParameterError(
                    "an operation has no such part", value=name, allowed=", ".join(sorted(allowed))
                )
        done: str = getattr(self, f"_{what}")(op)
        return done

    def _create(self, op: Mapping[str, Any]) -> str:
        slot = _name(op.get("slot"))
        parent = None if op.get("parent") is None else self.key(str(op["parent"]))
        for other in self.keys(slot):
            if self.nodes[other]["parent"] == parent:
                raise ParameterError("this task is there already", value=slot)
        deps = [self.key(str(name)) for name in op.get("after") or ()]
        number = 1 + max((int(key.partition("/")[2]) for key in self.nodes), default=0)
        key = f"node/{number}"
        self.nodes[key] = {
            "slot": slot,
            "aliases": [_name(alias) for alias in op.get("aliases") or ()],
            "type": _type(op.get("type")),
            "value": None,
            "status": "pending",
            "stale": False,
            "parent": parent,
            "deps": deps,
            "versions": [],
        }
        self.changed[key] = None
        if op.get("value") is not None:
            self._write(key, self._checked(key, op["value"]), "create")
        return f"made {self.full_name(key)}"

    def _set(self, op: Mapping[str, Any]) -> str:
        key = self.key(str(op.get("slot")))
        value = self._checked(key, op.get("value"))
        before = self.nodes[key]["value"]
        self._write(key, value, "set")
        return f"{self.full_name(key)}: {_shown(before)} becomes {_shown(value)}"

    def _rollback(self, op: Mapping[str, Any]) -> str:
        """Return to the newest version with the value named, or to the one before the present."""
        key = self.key(str(op.get("slot")))
        node, wanted = self.nodes[key], op.get("to")
        had = [version["value"] for version in node["versions"]]
        if wanted is not None:
            fits = [value for value in had if _same(value, wanted)]
            if not fits:
                raise ParameterError(
                    f"{self.full_name(key)} never had this value",
                    value=wanted,
                    allowed=", ".join(map(_shown, dict.fromkeys(had))) or "no value so far",
                )
            value = fits[-1]
        else:
            value = self._before(node)
            if value is None:
                raise ParameterError(
                    f"{self.full_name(key)} had no value before",
                    value=node["value"],
                    way_out="set it instead",
                )
        self._write(key, value, "rollback")
        return f"{self.full_name(key)} is {_shown(value)} again"

    def _before(self, node: Node) -> Any:
        """Return the value before the present one.

        Going back twice goes back two values: a version that came of going back counts as the one
        it went back to.
        """
        line: list[Any] = []
        for version in node["versions"]:
            value = version["value"]
            if version["op"] == "rollback" and any(_same(value, one) for one in line):
                while not _same(line[-1], value):
                    line.pop()
            elif not line or not _same(line[-1], value):
                line.append(value)
        return line[-2] if len(line) > 1 else None

    def _remove(self, op: Mapping[str, Any]) -> str:
        key = self.key(str(op.get("slot")))
        if self.nodes[key]["status"] == "removed":
            return f"{self.full_name(key)} was removed before"
        self._status(key, "removed")
        return f"removed {self.full_name(key)}"

    def _restore(self, op: Mapping[str, Any]) -> str:
        key = self.key(str(op.get("slot")))
        node = self.nodes[key]
        if node["status"] != "removed":
            return f"{self.full_name(key)} was not removed"
        self._status(key, "pending" if node["value"] is None else "done")
        return f"{self.full_name(key)} is back: {_shown(node['value'])}"

    def _depend(self, op: Mapping[str, Any]) -> str:
        key, other = self.key(str(op.get("slot"))), self.key(str(op.get("on")))
        self._connect(key, other)
        return f"{self.full_name(key)} depends on {self.full_name(other)}"

    def _connect(self, key: str, other: str) -> None:
        way = self._way(other, key)
        if way:
            names = " -> ".join(self.full_name(one) for one in (key, *way))
            raise ParameterError("these tasks would wait for each other", value=names)
        if other not in self.nodes[key]["deps"]:
            self.nodes[key]["deps"].append(other)
            self.changed[key] = None

    def _way(self, start: str, end: str) -> list[str]:
        """Return a path of dependencies from one node to another, [] if there is none."""
        ways, seen = [[start]], {start}
        for way in ways:
            if way[-1] == end:
                return way
            for after in self.nodes[way[-1]]["deps"]:
                if after not in seen:
                    seen.add(after)
                    ways.append([*way, after])
        return []

    def _check(self, op: Mapping[str, Any]) -> str:
        return f"asked about {self.full_name(self.key(str(op.get('slot'))))}"

    def _reuse(self, op: Mapping[str, Any]) -> str:
        """Take over what another task has: a node of its own that depends on it."""
        source = self.key(str(op.get("slot")))
        parent = self.key(str(op.get("parent")))
        name = str(self.nodes[source]["slot"])
        mine = [k for k in self.keys(name) if self.nodes[k]["parent"] == parent]
        if not mine:
            kind = self.nodes[source]["type"]
            self._create({"op": "create", "slot": name, "parent": parent, "type": kind})
            mine = [list(self.nodes)[-1]]
        self._connect(mine[0], source)
        if self.nodes[source]["value"] is not None:
            self._write(mine[0], self.nodes[source]["value"], "reuse")
        return f"{self.full_name(mine[0])} as in {self.full_name(source)}"

    def _write(self, key: str, value: Any, op: str) -> None:
        node = self.nodes[key]
        node["value"], node["stale"] = value, False
        node["versions"].append({"turn": self.turn, "value": value, "op": op})
        self._status(key, "done")

    def _status(self, key: str, status: str) -> None:
        self.nodes[key]["status"] = status
        self.changed[key] = None
        for other in self.dependents(key):
            node = self.nodes[other]
            if node["status"] == "done" and not node["stale"]:
                node["stale"] = True
                self.changed[other] = None

    def _checked(self, key: str, value: Any) -> Any:
        """Return a value in the form its type keeps."""
        kind, name = self.nodes[key]["type"], self.full_name(key)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ParameterError(f"{name} needs a value", value=value)
        if isinstance(value, (dict, list)) or len(str(value)) > 2000:
            raise ParameterError(f"the value of {name} is a short text", value=str(value)[:80])
        if isinstance(kind, list):
            fits = [choice for choice in kind if _same(choice, value)]
            if not fits:
                raise ParameterError(
                    f"{name} is none of its choices", value=value, allowed=", ".join(kind)
                )
            return fits[0]
        if kind == "number" and not re.fullmatch(r"\D{0,4}\d[\d,.]*\D{0,12}", str(value)):
            raise ParameterError(f"{name} is a number", value=value, allowed="such as 800")
        return value.strip() if isinstance(value, str) else value


def line(tree: Tree, key: str) -> str:
    """Return a node as one line of a prompt."""
    node = tree.nodes[key]
    name = tree.full_name(key)
    if node["status"] == "removed":
        return f"{name}: cancelled"
    if node["value"] is None:
        children = [n for n in tree.nodes.values() if n["parent"] == key]
        done = sum(child["status"] == "done" for child in children)
        return f"{name}: {done} of {len(children)} done" if children else f"{name}: open"
    return f"{name}: {node['value']}" + (" (to be checked again)" if node["stale"] else "")


def _same(a: Any, b: Any) -> bool:
    return fold(str(a)).strip(" .") == fold(str(b)).strip(" .")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _name(name: object) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 80 or "/" in name:
        raise ParameterError(
            "a task has a short name without slashes", value=name, allowed="such as hotel"
        )
    return " ".join(name.split())


def _type(kind: object) -> Any:
    if kind is None:
        return "text"
    if kind in ("text", "number"):
        return kind
    if isinstance(kind, Sequence) and not isinstance(kind, str) and kind:
        return [str(choice) for choice in kind]
    raise ParameterError("unknown type of a task", value=kind, allowed="text, number, or a list")

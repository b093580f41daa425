"""Asking a model what an instruction to a planner means; what it answers is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any  # replies are JSON values

from loci.methods.recall._tme_read import Clarify, Op
from loci.methods.recall._tme_tree import Tree, line
from loci.text.ladder import Refused, Task
from loci.text.quote import AS_DATA, block, listed
from loci.text.stem import stems

_OPS = ("create", "set", "rollback", "remove", "restore", "depend", "check")
_TEXT = {"type": "string", "maxLength": 200}
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "ops": {
            "type": "array",
            "maxItems": 8,
            "items": {
                "type": "object",
                "properties": {
                    "op": {"enum": list(_OPS)},
                    "slot": _TEXT,
                    "value": {"anyOf": [_TEXT, {"type": "null"}]},
                    "on": {"anyOf": [_TEXT, {"type": "null"}]},
                },
                "required": ["op", "slot", "value", "on"],
            },
        }
    },
    "required": ["ops"],
}
_ASK = (
    "Read an instruction to a planner as operations on its tasks. set: give a task a value. "
    "rollback: return to an earlier value (value names it, or is null for the one before). remove, "
    "restore: cancel a task, or take it up again. depend: slot depends on the task in `on`. check: "
    "only asked about. create: a task that is not there yet. Use the names of the tasks as they "
    "stand, and values in the words of the instruction. No operation if it is not clear."
)


def asked_of_a_model(
    text: str, tree: Tree, rules: Callable[[], list[Op] | Clarify]
) -> Task[list[Op] | Clarify]:
    """Return the task of reading one instruction, for a model or for rules."""
    tasks = listed("tasks", [line(tree, key) for key in tree.nodes])
    said = block("instruction", [{"text": text}])
    return Task(
        name="read an instruction",
        messages=(
            {"role": "system", "content": f"{_ASK} {AS_DATA}"},
            {"role": "user", "content": f"{tasks}\n{said}"},
        ),
        schema=_SCHEMA,
        read=lambda reply: _checked(reply["ops"], text, tree),
        rules=rules,
    )


def _checked(
    ops: Sequence[Mapping[str, Any]], text: str, tree: Tree
) -> tuple[list[Op] | Clarify, list[Refused]]:
    """Return the operations that name known tasks and values that were said or held before."""
    taken: list[Op] = []
    refused: list[Refused] = []
    said = set(stems(text))
    for op in ops:
        keys, value = tree.keys(op["slot"]), op["value"]
        if op["op"] == "create":
            if keys or not set(stems(op["slot"])) <= said or "/" in op["slot"]:
                refused.append(Refused("a new task that was not named", op["slot"]))
                continue
            keys = [op["slot"]]
        if len(keys) != 1:
            refused.append(Refused("a task that is not there", op["slot"]))
            continue
        had = {str(v["value"]) for key in keys if key in tree.nodes for v in _versions(tree, key)}
        if value is not None and value not in had and not set(stems(value)) <= said:
            refused.append(Refused("a value that was not said", str(value)))
            continue
        if op["op"] == "set" and value is None:
            refused.append(Refused("a value is missing", op["slot"]))
            continue
        made: Op = {"op": op["op"], "slot": keys[0]}
        if op["op"] == "rollback" and value is not None:
            made["to"] = value
        elif op["op"] in ("set", "create") and value is not None:
            made["value"] = value
        elif op["op"] == "depend":
            others = tree.keys(str(op["on"]))
            if len(others) != 1:
                refused.append(Refused("a task that is not there", str(op["on"])))
                continue
            made["on"] = others[0]
        elif op["op"] == "check":
            made["to"] = "now"
        taken.append(made)
    if not taken:
        return Clarify("the instruction is not clear to the model"), refused
    return taken, refused


def _versions(tree: Tree, key: str) -> Sequence[Mapping[str, Any]]:
    versions: Sequence[Mapping[str, Any]] = tree.nodes[key]["versions"]
    return versions

"""Two versions of a cube that went their own ways, made one again.

A three-way merge over the version both came from. Notes go by id: what only one side changed is
taken, what both changed alike is taken once, and what both changed otherwise is a conflict for a
person, or for whoever gives a `resolve`. The products of adapters add up, layer by layer,

    merged = a + b - base     (ranks side by side, then the best of rank r)

Keys and values are never merged: those of one text are wrong behind another. The three-way form is
a reconstruction of what MemOS (arXiv:2505.22101) calls to fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any  # facts are JSON values

from loci.core.cube import CubeHeader, MemoryKind, Policy, State, Usage, strictest
from loci.errors import FingerprintError, MethodError, ParameterError
from loci.store.cube_file import Payload

if TYPE_CHECKING:
    from torch import Tensor

Resolve = Callable[[str, str | None, str | None], str | None]
"""Decides on a note that both changed: (its id, this side, the other side) -> what stays, or None
to drop it. A side that dropped the note is None."""

Cube = tuple[CubeHeader, Payload]
_DECIDES = ("rank", "base")  # facts of an adapter that follow from the merge, or must be the same


def merge(
    a: Cube, b: Cube, base: Cube, *, resolve: Resolve | None = None, rank: int | None = None
) -> Cube:
    """Return both sides as one cube, whose parents they are; the id is that of `a`.

    Args:
        resolve: decides conflicts between notes; None refuses them.
        rank: of the merged layers of an adapter; None takes the larger of both sides.

    Raises:
        ParameterError: if the kinds differ, or a note is in conflict; all such notes are named.
        MethodError: for keys and values.
        FingerprintError: if adapters are of different models.
    """
    kinds = {header.kind for header, _ in (a, b, base)}
    if len(kinds) > 1:
        raise ParameterError("cubes of different kinds cannot be merged", value=sorted(kinds))
    if MemoryKind.ACTIVATION in kinds:
        raise MethodError(
            "keys and values are never merged: each was read behind what stood before it",
            way_out="go back to text (loci cube demote ID), merge, and promote the result",
        )
    prints = {header.fingerprint for header, _ in (a, b)}
    if len(prints) > 1:
        raise FingerprintError(
            "these adapters are of different models", value=sorted(map(str, prints))
        )
    if same(a[1], b[1]):
        return a
    if same(b[1], base[1]):
        return a
    if same(a[1], base[1]):
        return replace(b[0], id=a[0].id), b[1]
    texts = _texts(a[1].texts, b[1].texts, base[1].texts, resolve)
    tensors = _tensors(a[1].tensors, b[1].tensors, base[1].tensors, rank)
    facts = _facts(a[1].facts, b[1].facts, base[1].facts)
    if tensors and "rank" in facts:
        facts["rank"] = max(t.shape[1] for n, t in tensors.items() if n.endswith(".left"))
    return _header(a[0], b[0]), Payload(tensors=tensors, texts=texts, facts=facts)


def same(a: Payload, b: Payload) -> bool:
    """Return whether two payloads are equal, bit for bit."""
    if (a.texts, a.facts) != (b.texts, b.facts) or a.tensors.keys() != b.tensors.keys():
        return False
    return all(_equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())


def _header(a: CubeHeader, b: CubeHeader) -> CubeHeader:
    lineage = (*a.parents, *b.parents, b.id)
    policy = replace(
        a.policy,
        sensitivity=strictest((a.policy, b.policy)),
        readers=_both(a.policy, b.policy, "readers"),
        writers=_both(a.policy, b.policy, "writers"),
        expires=min((p.expires for p in (a.policy, b.policy) if p.expires), default=None),
    )
    return replace(
        a,
        version=max(a.version, b.version) + 1,
        parents=tuple(parent for parent in dict.fromkeys(lineage) if parent != a.id),
        policy=policy,
        state=State.GENERATED,
        frozen_from=None,
        usage=Usage(),
    )


def _both(a: Policy, b: Policy, name: str) -> tuple[str, ...]:
    """Return who is named on both sides: nobody gains a right by a merge."""
    return tuple(who for who in getattr(a, name) if who in getattr(b, name))


def _texts(
    a: Mapping[str, str],
    b: Mapping[str, str],
    base: Mapping[str, str],
    resolve: Resolve | None,
) -> dict[str, str]:
    merged: dict[str, str] = {}
    conflicts: list[str] = []
    for id in dict.fromkeys((*a, *b)):
        mine, theirs, before = a.get(id), b.get(id), base.get(id)
        kept = mine
        if mine == before:
            kept = theirs
        elif theirs not in (before, mine):
            if resolve is None:
                conflicts.append(id)
                continue
            kept = resolve(id, mine, theirs)
        if kept is not None:
            merged[id] = kept
    if conflicts:
        raise ParameterError(
            f"{len(conflicts)} notes were changed on both sides",
            value=conflicts[:10],
            way_out="say which stays: resolve=, or --ours or --theirs",
        )
    return merged


def _facts(a: Mapping[str, Any], b: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts; those that both sides changed otherwise no longer hold, and go."""
    merged = {}
    for name in dict.fromkeys((*a, *b)):
        mine, theirs, before = a.get(name), b.get(name), base.get(name)
        if mine == theirs or theirs == before or name in _DECIDES:
            merged[name] = mine
        elif mine == before:
            merged[name] = theirs
    return {name: value for name, value in merged.items() if value is not None}


def _tensors(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int | None
) -> dict[str, Tensor]:
    from loci.nn.patch import Patch, joined, truncated

    if not a and not b:
        return {}
    mine, theirs, before = (Patch.from_tensors(side).parts for side in (a, b, base))
    parts = {}
    for name in dict.fromkeys((*mine, *theirs)):
        ours, others, old = (side.get(name) for side in (mine, theirs, before))
        if ours is None or others is None:
            kept = ours if others is None else others
            if old is not None and _pair(kept, old):
                continue  # one side dropped what the other left alone
            assert kept is not None
            parts[name] = kept
        elif _pair(ours, others) or _pair(others, old):
            parts[name] = ours
        elif _pair(ours, old):
            parts[name] = others
        else:
            sides = [Patch({name: ours}), Patch({name: others})]
            if old is not None:
                sides.append(Patch({name: old}).scaled(-1.0))
            width = rank or max(ours[0].shape[1], others[0].shape[1])
            parts |= truncated(joined(sides), width).parts
    return Patch(parts).tensors()


def _pair(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None) -> bool:
    if a is None or b is None:
        return a is b
    return _equal(a[0], b[0]) and _equal(a[1], b[1])


def _equal(a: Tensor, b: Tensor) -> bool:
    import torch

    return a.dtype == b.dtype and torch.equal(a, b)

"""What is remembered as a graph: memories, the links between them, and the names they share."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from loci.core.item import Item
from loci.run.memory import Memory

KINDS = ("fact", "note", "relation", "entity")
MEMORIES = 60  # shown, newest first
NAMES = 16  # shown, those of most memories first
STEPS = 160  # of the layout


@dataclass(frozen=True, kw_only=True)
class Node:
    """A memory by its id, or a name by itself with the kind "name"."""

    id: str
    label: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Two nodes and how they belong together; "names" where a memory names somebody."""

    source: str
    relation: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes and edges, and how many memories were left out because there are too many."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    left_out: int = 0


def graph_of(memory: Memory, user: str, *, limit: int = MEMORIES) -> Graph:
    """Return a user's newest memories with their links and the names that join them."""
    items = [
        entry
        for entry in memory.list(user=user, kinds=KINDS, limit=limit + 1)
        if isinstance(entry, Item)
    ]
    counts = memory.counts(user=user)
    items = items[:limit]
    shown = {item.id for item in items}
    edges = [
        Edge(source=link.source, relation=link.relation, target=link.target)
        for link in (memory.links([*shown], user=user) if shown else ())
        if link.source in shown and link.target in shown
    ]
    named = Counter(name for item in items for name in set(item.entities))
    names = [name for name, count in named.most_common(NAMES) if count > 1]
    nodes = [Node(id=item.id, label=item.text, kind=item.kind) for item in items]
    nodes += [Node(id=_name_id(name), label=name, kind="name") for name in names]
    edges += [
        Edge(source=item.id, relation="names", target=_name_id(name))
        for item in items
        for name in names
        if name in item.entities
    ]
    left = max(0, counts.get("items", len(items)) - len(items))
    return Graph(nodes=tuple(nodes), edges=tuple(edges), left_out=left)


def layout(graph: Graph) -> dict[str, tuple[float, float]]:
    """Return a place for each node in the unit square; the same graph has the same picture.

    T. Fruchterman and E. Reingold, "Graph drawing by force-directed placement", Software: Practice
    and Experience 21(11), 1991: all nodes push each other away, edges pull, steps grow smaller.
    """
    count = len(graph.nodes)
    if count < 2:
        return {node.id: (0.5, 0.5) for node in graph.nodes}
    place = {node.id: at for at, node in enumerate(graph.nodes)}
    turn = np.arange(count) * math.pi * (3 - math.sqrt(5))  # a sunflower: even, and no two alike
    radius = 0.5 * np.sqrt((np.arange(count) + 0.5) / count)
    at_N2 = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    ends = np.array([(place[edge.source], place[edge.target]) for edge in graph.edges]).reshape(
        -1, 2
    )
    ideal = 0.9 / math.sqrt(count)
    for step in range(STEPS):
        apart_NN2 = at_N2[:, None] - at_N2[None]
        far_NN = np.maximum(np.linalg.norm(apart_NN2, axis=2), 1e-4)
        push_N2 = (apart_NN2 * (ideal**2 / far_NN**2)[..., None]).sum(axis=1)
        pull_N2 = np.zeros_like(at_N2)
        if len(ends):
            between = at_N2[ends[:, 0]] - at_N2[ends[:, 1]]
            force = between * (np.linalg.norm(between, axis=1, keepdims=True) / ideal)
            np.subtract.at(pull_N2, ends[:, 0], force)
            np.add.at(pull_N2, ends[:, 1], force)
        move_N2 = push_N2 + pull_N2 - 0.6 * at_N2  # and all a little to the middle
        length_N = np.maximum(np.linalg.norm(move_N2, axis=1, keepdims=True), 1e-9)
        heat = 0.12 * (1 - step / STEPS)
        at_N2 = at_N2 + move_N2 / length_N * np.minimum(length_N, heat)
    low, high = at_N2.min(axis=0), at_N2.max(axis=0)
    spread = (at_N2 - low) / np.maximum(high - low, 1e-6)
    return {node.id: (float(x), float(y)) for node, (x, y) in zip(graph.nodes, spread, strict=True)}


def _name_id(name: str) -> str:
    return f"name:{name}"

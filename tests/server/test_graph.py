"""What is remembered as a graph, and where its picture puts things."""

from __future__ import annotations

import math
from pathlib import Path

from loci.run.memory import Memory
from loci.server.graph import Edge, Graph, Node, graph_of, layout


def graph(count: int, edges: tuple[tuple[int, int], ...]) -> Graph:
    return Graph(
        nodes=tuple(Node(id=str(at), label=str(at), kind="fact") for at in range(count)),
        edges=tuple(Edge(source=str(a), relation="r", target=str(b)) for a, b in edges),
    )


def test_names_that_several_memories_share_join_them(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        memory.add("I live in Ghent with my sister Mia.", user="ada")
        memory.add("Tom moved to Ghent.", user="ada")
        memory.add("I like tea.", user="ben")
        found = graph_of(memory, "ada")
        alone = graph_of(memory, "ben")
        few = graph_of(memory, "ada", limit=1)
    labels = {node.label for node in found.nodes if node.kind == "name"}
    assert "ghent" in labels
    named = [edge for edge in found.edges if edge.target == "name:ghent"]
    assert len(named) >= 2 and {edge.source for edge in named} <= {n.id for n in found.nodes}
    assert [node.kind for node in alone.nodes] == ["fact"]
    assert few.left_out > 0 and sum(node.kind != "name" for node in few.nodes) == 1


def test_links_between_memories_are_edges(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", recall="a_mem") as memory:
        memory.add("I am learning the cello with Tom.", user="ada")
        memory.add("I play the cello with Tom on Sundays.", user="ada")
        ids = [item.id for item in memory.list(user="ada", kinds=("note", "fact"))]
        links = memory.links(ids, user="ada")
        found = graph_of(memory, "ada")
    assert links
    drawn = {(edge.source, edge.target) for edge in found.edges if edge.relation != "names"}
    assert drawn == {(link.source, link.target) for link in links}


def test_a_layout_is_inside_the_square_and_always_the_same() -> None:
    star = graph(9, tuple((0, at) for at in range(1, 9)))
    places = layout(star)
    assert places == layout(star)
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in places.values())
    apart = [math.dist(places[str(a)], places[str(b)]) for a in range(9) for b in range(a)]
    assert min(apart) > 0.05
    assert layout(graph(1, ())) == {"0": (0.5, 0.5)} and layout(graph(0, ())) == {}


def test_what_is_linked_stands_closer_than_what_is_not() -> None:
    two = graph(6, ((0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)))
    places = layout(two)

    def apart(a: int, b: int) -> float:
        return math.dist(places[str(a)], places[str(b)])

    assert max(apart(0, 1), apart(3, 4)) < min(apart(0, 3), apart(1, 4), apart(2, 5))

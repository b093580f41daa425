"""Above many vectors a graph is asked: it may miss, and never brings back what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memories import Plain

from loci.run.memory import Memory
from loci.store import vector_graph, vectors
from loci.store.vector_graph import Graph

ROWS, WIDTH = 700, 24
Named = list[str]


class Fixed:
    """An embedder that returns what it was last given."""

    fingerprint = "given"

    def __init__(self) -> None:
        self.vector = np.ones(WIDTH, np.float32)

    def encode(self, texts: Any) -> np.ndarray:
        return np.stack([self.vector] * len(texts))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "EXACT_ROWS", 500)
    monkeypatch.setattr(vector_graph, "_CHUNK", 100)


@pytest.fixture
def drawn() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def memory(tmp_path: Path, drawn: np.ndarray) -> Iterator[Memory]:
    with Memory(tmp_path / "m.db", recall=Plain(), embedder=Fixed()) as opened:
        texts = [f"n {number}" for number in range(ROWS)]
        opened.add_many(texts[:650], user="ada", session="s", vectors=drawn[:650])
        opened.add_many(texts[650:], user="bob", vectors=drawn[650:])
        yield opened


def near(memory: Memory, vector: np.ndarray, limit: int = 10, **asked: Any) -> tuple[Named, Named]:
    """Return (ids, notes)."""
    memory.embedder.vector = vector  # type: ignore[union-attr]
    scope = memory._scope(asked.pop("user", "ada"), None, asked.pop("session", None))
    view = memory._view(scope, memory._asked(None, None, asked.get("filters")), dense=True)
    found = view.search_dense("q", limit, "turn")
    return [id for id, _ in found], view.notes


def graphs(memory: Memory) -> list[Path]:
    return sorted(memory.store.database.path.parent.glob("*.ann"))  # type: ignore[attr-defined]


def opened(memory: Memory) -> Graph | None:
    return memory.store.vectors.graphs._opened(1, 0)  # type: ignore[attr-defined,no-any-return]


def exactly(drawn: np.ndarray, query: np.ndarray, limit: int, rows: int = 650) -> Named:
    cosine = drawn[:rows] @ query / np.linalg.norm(drawn[:rows], axis=1)
    return [f"t{place + 1}" for place in np.argsort(-cosine)[:limit]]


def wait(memory: Memory) -> None:
    for thread in list(memory.store.vectors.graphs._building.values()):  # type: ignore[attr-defined]
        thread.join()


def test_below_the_limit_there_is_no_graph(
    memory: Memory, drawn: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "EXACT_ROWS", 650)
    memory.store.settle()
    assert graphs(memory) == []
    assert near(memory, drawn[3]) == (exactly(drawn, drawn[3], 10), [])


def test_a_graph_is_built_beside_and_then_asked(memory: Memory, drawn: np.ndarray) -> None:
    found, notes = near(memory, drawn[3])
    assert found == exactly(drawn, drawn[3], 10)
    (note,) = notes
    assert note.startswith("650 vectors of turns were all compared: their index is being built")
    wait(memory)
    assert len(graphs(memory)) == 1 and graphs(memory)[0].stat().st_mode & 0o777 == 0o600
    asked = 0
    for query in np.random.default_rng(1).standard_normal((30, WIDTH)).astype(np.float32):
        found, notes = near(memory, query)
        assert notes == []
        asked += len(set(found) & set(exactly(drawn, query, 10)))
        order = exactly(drawn, query, 650)
        assert [order.index(id) for id in found] == sorted(order.index(id) for id in found)
    assert asked >= 0.995 * 300, asked
    assert near(memory, drawn[690], user="bob")[0][0] == "t691"
    assert near(memory, drawn[690], limit=650)[0][0] != "t691", "bob's are not ada's"
    assert memory.store.check_integrity() == []


def test_what_is_younger_than_the_graph_is_found(memory: Memory, drawn: np.ndarray) -> None:
    memory.store.settle()
    added = memory.add_many(["young"], user="ada", vectors=-drawn[:1]).turns[0]
    assert near(memory, -drawn[0])[0][0] == added.id
    assert len(near(memory, drawn[0], limit=651)[0]) == 651


def test_conditions_look_further(memory: Memory, drawn: np.ndarray) -> None:
    memory.store.settle()
    assert near(memory, drawn[0], session="other")[0] == []
    far = exactly(drawn, drawn[0], 650)[-1]
    number = int(far[1:]) - 1
    filters = {"filters": {"content": f"n {number}"}}
    assert near(memory, drawn[0], limit=1, **filters)[0] == [far]


def test_what_is_forgotten_leaves_the_graph_and_its_file(memory: Memory, drawn: np.ndarray) -> None:
    memory.store.settle()
    graph = opened(memory)
    assert graph is not None
    stored = graph.index.get(3).tobytes()
    assert stored in graphs(memory)[0].read_bytes()
    before = graphs(memory)
    report = memory.forget("t4")
    assert graphs(memory) == before and stored not in graphs(memory)[0].read_bytes()
    assert report.clean and before[0].name in report.found
    found, notes = near(memory, drawn[3])
    assert notes == [] and found == exactly(drawn, drawn[3], 11)[1:]
    for number in range(5, 5 + vector_graph._FEW + 20):
        memory.forget(f"t{number}")
    assert "t4" not in near(memory, drawn[3], limit=600)[0]


def test_the_twin_of_what_is_forgotten_stays(memory: Memory, drawn: np.ndarray) -> None:
    twin = memory.add_many(["twin"], user="ada", vectors=drawn[3:4]).turns[0]
    memory.store.settle()
    memory.forget("t4")
    found, _ = near(memory, drawn[3])
    assert found[0] == twin.id and "t4" not in found


def test_much_forgotten_takes_the_graph(memory: Memory, drawn: np.ndarray) -> None:
    memory.store.settle()
    memory.forget([f"t{number}" for number in range(1, 101)])
    assert graphs(memory) == []
    found, notes = near(memory, drawn[3])
    assert len(found) == 10 and notes
    wait(memory)
    assert near(memory, drawn[200])[0][0] == "t201" and len(graphs(memory)) == 1


def test_a_graph_that_grew_old_is_built_anew(memory: Memory, drawn: np.ndarray) -> None:
    memory.store.settle()
    (before,) = graphs(memory)
    more = np.random.default_rng(2).standard_normal((100, WIDTH)).astype(np.float32)
    memory.add_many([f"m {number}" for number in range(100)], user="ada", vectors=more)
    assert near(memory, more[7])[0][0] == "t708", "young rows are compared until then"
    wait(memory)
    (after,) = graphs(memory)
    assert after != before and opened(memory).size == 750  # type: ignore[union-attr]
    assert near(memory, more[7])[0][0] == "t708"


@pytest.mark.parametrize("harm", ["missing", "cut", "noise", "other"])
def test_a_bad_file_is_no_graph(memory: Memory, drawn: np.ndarray, harm: str) -> None:
    memory.store.settle()
    (path,) = graphs(memory)
    data = path.read_bytes()
    memory.store.vectors.graphs._open.clear()  # type: ignore[attr-defined]
    path.unlink()
    if harm == "cut":
        path.write_bytes(data[:1000])
    elif harm == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(data)))
    elif harm == "other":
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    found, _ = near(memory, drawn[3])
    assert found == exactly(drawn, drawn[3], 10)
    wait(memory)
    assert near(memory, drawn[3]) == (exactly(drawn, drawn[3], 10), [])


def test_two_processes_share_a_graph(memory: Memory, drawn: np.ndarray) -> None:
    memory.store.settle()
    path = memory.store.database.path  # type: ignore[attr-defined]
    with Memory(path, recall=Plain(), embedder=Fixed()) as other:
        assert near(other, drawn[3]) == (exactly(drawn, drawn[3], 10), [])
        other.forget("t4")
        assert "t4" not in near(memory, drawn[3])[0]
        other.add_many(["new"], user="ada", vectors=drawn[3:4])
        assert near(memory, drawn[3])[0][0] == "t701"
        assert len(graphs(memory)) == 1


def test_numbers_a_graph_knows_are_not_given_again(tmp_path: Path, drawn: np.ndarray) -> None:
    with Memory(tmp_path / "m.db", recall=Plain(), embedder=Fixed()) as memory:
        memory.add_many([f"n {i}" for i in range(650)], user="ada", vectors=drawn[:650])
        memory.store.settle()
        memory.forget("t650")
        memory.add_many(["new"], user="ada", vectors=-drawn[:1])
        assert near(memory, -drawn[0])[0][0] == "t651"
        assert "t651" not in near(memory, drawn[649])[0][:1]


def test_forgotten_while_a_graph_is_built(
    memory: Memory, drawn: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stored = vector_graph.Graphs._made, []

    def slow(self: Any, seen: Any, rows: Any, threads: int) -> Any:
        made = real(self, seen, rows, threads)
        stored.append(made.get(3).tobytes())
        memory.forget("t4")
        return made

    monkeypatch.setattr(vector_graph.Graphs, "_made", slow)
    memory.store.vectors.graphs._build(1, 0, threads=1)  # type: ignore[attr-defined]
    assert stored[0] not in graphs(memory)[0].read_bytes()
    assert near(memory, drawn[3])[0] == exactly(drawn, drawn[3], 11)[1:]


def test_a_builder_that_was_killed_leaves_nothing_once_something_is_forgotten(
    memory: Memory,
) -> None:
    path = memory.store.database.path  # type: ignore[attr-defined]
    left = path.with_name("m.db.vec.1.0.new")
    left.write_bytes(b"vectors of the past")
    memory.forget("t4")
    assert not left.exists()


def test_without_usearch_all_is_compared_and_it_says_so(
    memory: Memory, drawn: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_graph, "is_installed", lambda: False)
    memory.store.settle()
    assert graphs(memory) == []
    memory.embedder.vector = drawn[3]  # type: ignore[union-attr]
    hits = memory.search("q", user="ada", kinds="turn")
    assert hits[0].id == "t4"
    assert len(hits.notes) == 1 and "pip install 'loci[ann]'" in hits.notes[0]


def test_another_embedder_takes_the_graphs(memory: Memory) -> None:
    memory.store.settle()
    memory.store.drop_vectors()
    assert graphs(memory) == [] and memory.store.database.files()[-1].suffix != ".ann"  # type: ignore[attr-defined]


def test_closing_stops_the_building(memory: Memory, drawn: np.ndarray) -> None:
    near(memory, drawn[3])
    memory.close()
    assert not memory.store.vectors.graphs._building  # type: ignore[attr-defined]

"""Vectors made beside the work, and after a kill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import pytest

from loci.errors import MethodError
from loci.run import embedding
from loci.run.memory import Memory

Place = Callable[[str], str]
WIDTH = 8


class Drawn:
    """An embedder that draws a vector for each text, and can be slow or fail."""

    fingerprint = "drawn"

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s, self.fails = pause_s, False

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if self.fails:
            raise RuntimeError("no electricity")
        time.sleep(self.pause_s * len(texts))
        return np.stack([vector_of(text) for text in texts])


def vector_of(text: str) -> np.ndarray:
    seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def until(done: Callable[[], bool]) -> None:
    for _ in range(1000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def near(memory: Memory, text: str) -> str:
    """Return the turn whose vector is nearest to a text's own."""
    view = memory._view(memory._scope("ada"), memory._asked(None, None, None), dense=True)
    (found,) = view.search_dense(text, 1, "turn")
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    return found[0]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_LOOK_S", 0.01)
    monkeypatch.setattr(embedding, "_AGAIN_S", 0.01)


def test_what_is_added_is_embedded_beside(place: Place) -> None:
    with Memory(place("m.db"), embedder=Drawn()) as memory:
        memory.embed_beside()
        memory.embed_beside()  # a second time changes nothing
        for number in range(3):
            memory.add([f"bee {number} {part}" for part in range(5)], user="ada", infer=False)
        until(lambda: memory.store.count_pending(None) == 0)
        assert near(memory, "bee 1 3") == "t9"
        assert memory.wait() == 0


WRITER = """
import sys, time
from test_embedding import Drawn
from loci.run.memory import Memory
memory = Memory(sys.argv[1], embedder=Drawn(pause_s=0.002))
memory.add([f"bee {n}" for n in range(1200)], user="ada", infer=False)
print("acknowledged", flush=True)
memory.embed_beside()
time.sleep(60)
"""


def test_after_a_kill_it_goes_on_where_it_ended(
    place: Place, request: pytest.FixtureRequest
) -> None:
    where = place("m.db")
    Memory(where).close()
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, where],
        stdout=subprocess.PIPE,
        text=True,
        cwd=request.path.parent,
    )
    assert child.stdout is not None and child.stdout.readline() == "acknowledged\n"
    with Memory(where, embedder=Drawn()) as memory:
        until(lambda: memory.store.count_pending(None) < 1200)
        child.kill()
        child.wait()
        child.stdout.close()
        left = memory.store.count_pending(None)
        assert 0 < left < 1200
        memory.embed_beside()
        until(lambda: memory.store.count_pending(None) == 0)
        assert memory.store.check_integrity() == []
        for number in (0, 255, 256, 700, 1199):
            assert near(memory, f"bee {number}") == f"t{number + 1}"


def test_an_error_is_told_by_wait_and_work_goes_on_after_it(place: Place) -> None:
    drawn = Drawn()
    with Memory(place("m.db"), embedder=drawn) as memory:
        drawn.fails = True
        memory.add("bees", user="ada", infer=False)
        memory.embed_beside()
        until(lambda: memory._beside.problem is not None)  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match="no electricity"):
            memory.wait()
        drawn.fails = False
        until(lambda: memory.store.count_pending(None) == 0)
    with Memory(place("n.db")) as memory, pytest.raises(MethodError, match="no embedder"):
        memory.embed_beside()


def test_what_is_reworded_meanwhile_gets_the_vector_of_its_new_words(place: Place) -> None:
    class Rewording(Drawn):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if not memory.history("i1")[1:]:
                memory.edit("i1", "new words")
            return super().encode(texts)

    with Memory(place("m.db"), embedder=Rewording()) as memory:
        memory.note("old words", user="ada")
        memory.add("a turn", user="ada", infer=False)
        memory._embed(None, 10)
        assert memory.store.count_pending(None) == 1
        memory.wait()
        view = memory._view(memory._scope("ada"), memory._asked(None, None, None), dense=True)
        assert view.search_dense("new words", 1, "item")[0][1] == pytest.approx(1.0, abs=1e-5)

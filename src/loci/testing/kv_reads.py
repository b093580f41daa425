"""What every method must pass that reads a history into several caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any  # readers live above this row

import numpy as np
import torch

from loci.errors import ContextError, ParameterError
from loci.methods.kv.read import Read

SUBJECTS = ("bread", "river", "violin")
TOKENS, BLOCK = 24, 16

MakeReader = Callable[[], Any]  # returns a `loci.run.episodes.CacheReader` of block BLOCK


class Subjects:
    """An embedder of the texts of `history`: a direction for each subject they name."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, 4], rows of length 1; what names no subject has a direction alone."""
        rows = np.array([[*(float(text.count(s)) for s in SUBJECTS), 0.0] for text in texts])
        rows[(rows[:, :3] == 0).all(1)] = (0.0, 0.0, 0.0, 1.0)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.astype(np.float32)


def history(sessions: int = 6, each: int = 4) -> list[str]:
    """Return utterances in sessions of one subject each, in turn."""
    return [
        f"Ada: my {SUBJECTS[session % 3]} {session} {turn}"
        for session in range(sessions)
        for turn in range(each)
    ]


def check_read(make_reader: MakeReader, method: Read) -> None:
    """Raise AssertionError unless the method keeps the rules of reading."""
    _check_set(make_reader, method)
    _check_few(make_reader, method)
    _check_refusals(make_reader, method)


def _check_set(make_reader: MakeReader, method: Read) -> None:
    sets = []
    for _ in range(2):
        reader = make_reader()
        held = method.read(reader, history(), TOKENS)
        held.check()
        assert len(set(held.names)) == len(held.names) and reader.parking.names == [*held.names]
        norms = held.centroids.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        assert len(held.of_segment) == held.segments == len(method.segments(history()))
        assert set(held.of_segment) == set(range(len(held.names)))
        for name in held.names:
            assert 0 < reader.peak_entries[name] <= TOKENS + BLOCK, "more entries than M + block"
        for at, subject in enumerate(SUBJECTS):
            route = method.route(reader.embed([f"what of the {subject}?"])[0], held)
            assert route.cache in range(len(held.names)) and not route.is_far
            if len(held.names) == len(SUBJECTS):
                assert held.of_segment[at] == route.cache, "another episode's question"
        _check_untouched(reader, held)
        sets.append(held)
        reader.release()
    assert torch.equal(sets[0].centroids, sets[1].centroids), "the same history, another set"
    assert sets[0].of_segment == sets[1].of_segment and sets[0].selects == sets[1].selects


def _check_untouched(reader: Any, held: Any) -> None:
    for name, select in zip(held.names, held.selects, strict=True):
        first = []
        for _ in range(2):  # the first question must leave nothing behind
            with reader.brought(name, select) as brought:
                first.append(brought.read(reader.encode("Q: bread?")).clone())
        assert torch.equal(first[0], first[1]), "a question changed what is parked"


def _check_few(make_reader: MakeReader, method: Read) -> None:
    for texts in (history(1, 1), history(2, 1), ["Ada: " + "bread. " * 90]):
        reader = make_reader()
        held = method.read(reader, texts, TOKENS)
        assert 1 <= len(held.names) <= held.segments
        reader.release()


def _check_refusals(make_reader: MakeReader, method: Read) -> None:
    reader = make_reader()
    for texts, tokens, error in (
        ([], TOKENS, ParameterError),
        (history(), 0, ParameterError),
        (history() * 100, TOKENS, ContextError),
    ):
        try:
            method.read(reader, texts, tokens)
        except error:
            assert not reader.parking.names, "something was read before it was refused"
        else:
            raise AssertionError(f"{len(texts)} utterances into {tokens} entries were read")
    reader.release()

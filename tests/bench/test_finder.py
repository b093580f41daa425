"""The model that finds one token among many: what it is asked, and how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loci.bench import finder, suite
from loci.bench.finder import ANSWER, ASKED, FILLER, KEYS, PAIRS, VALUES, contexts
from loci.cli.output import plain


def test_contexts_hold_every_pair_once_and_filler() -> None:
    drawn = contexts(8, 200, PAIRS, torch.Generator().manual_seed(3))
    assert ASKED == KEYS * VALUES and ANSWER == ASKED + KEYS and FILLER == ANSWER + VALUES
    for ids, keys, values in zip(drawn.ids_BT, drawn.keys_BP, drawn.values_BP, strict=True):
        assert len(set(keys.tolist())) == PAIRS
        pairs = ids[ids < ASKED]
        assert sorted(pairs.tolist()) == sorted((keys * VALUES + values).tolist())
        assert bool((ids[ids >= ASKED] >= FILLER).all())
    again = contexts(8, 200, PAIRS, torch.Generator().manual_seed(3))
    assert torch.equal(drawn.ids_BT, again.ids_BT)


def test_it_learns_to_find_among_a_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finder, "QUICK_STEPS", 300)
    monkeypatch.setattr(finder, "LENGTH", 12)
    monkeypatch.setattr(finder, "BATCH", 100)
    steps: list[int] = []
    losses: list[float] = []
    real = finder._loss

    def watched(tensors: Any, grown: float, generator: torch.Generator) -> torch.Tensor:
        lost = real(tensors, grown, generator)
        losses.append(float(lost.detach()))
        return lost

    monkeypatch.setattr(finder, "_loss", watched)
    pack = finder.finder(tmp_path, quick=True, progress=lambda what, done, of: steps.append(done))
    assert steps == list(range(1, 301)) and pack.spec.vocab == finder.SPEC.vocab
    chance = torch.tensor(float(VALUES)).log()
    assert sum(losses[-20:]) / 20 < 0.3 * chance < chance < losses[0]
    assert finder.finder(tmp_path, quick=True).spec.fingerprint == pack.spec.fingerprint
    assert len(losses) == 300, "it was trained again"


def test_the_suite_asks_everybody_the_same(tmp_path: Path) -> None:
    methods = ("keydiff", "turboquant(window=0,tail=8)", "keydiff | longmem(chunk=8,tier=disk)")
    result: dict[str, Any] = plain(
        suite.run("finding", suite.Context(folder=tmp_path, methods=methods, quick=True))
    )
    rows = {row["key"]: row for row in result["rows"]}
    assert result["questions"] == PAIRS
    assert rows["full"]["less_full"]["value"] == 0
    assert rows["keydiff @ 0.5"]["kv_bytes"] <= result["full_bytes"] / 2
    bank = rows["keydiff | longmem(chunk=8,tier=disk) @ 0.5"]
    assert bank["disk_bytes"] > 0 and bank["kv_bytes"] <= result["full_bytes"] / 2
    parts = [(row.method, row.part) for row in suite.find("finding").card_rows(result)]
    assert ("longmem(chunk=8,tier=disk)", "keydiff/0.5") in parts
    assert suite.find("finding").sheet(result)[0][2]

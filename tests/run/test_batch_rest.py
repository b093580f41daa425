"""Weights that leave the memory while nobody asks, and come back for the next request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loci.errors import BudgetError, ModelError, ParameterError
from loci.plan import plan as make_plan
from loci.run.batch import Batch
from loci.run.requests import Ask, End
from loci.testing.models import tiny_pack

SIZES = {"layers": 3, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
LONG_S = 30.0
STREAMED = {"disk": "1GiB", "weights": 60_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    return home


def engine(folder: Path, asked: dict[str, Any] | None = None, **given: Any) -> Batch:
    plan = make_plan(
        "small",
        context=128,
        new_tokens=16,
        folder=folder,
        cache=folder / ".cache",
        **({"dram": "4MiB", "kv": ""} | (asked or {})),
    )
    return Batch(plan, folder=folder, **given)


def answer(batch: Batch) -> End:
    ids = tuple(range(40))
    return batch.submit(Ask(ids=ids, max_tokens=8, goes_on=True)).wait(LONG_S)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def weights(batch: Batch) -> int:
    return batch.ledger.by_kind("dram").get("weights", 0)


@pytest.mark.parametrize("asked", [{}, STREAMED])
def test_idle_weights_are_unloaded_and_come_back(folder: Path, asked: dict[str, Any]) -> None:
    with engine(folder, asked) as awake:
        held = weights(awake)
    assert held > 0
    with engine(folder, asked, idle_s=0.2) as batch:
        first = answer(batch)
        until(lambda: weights(batch) == 0)
        until(lambda: bool(batch.events.recent("run.rest")))  # said once all is given back
        assert batch.ledger.used("disk") == 0
        assert batch.events.recent("run.rest")[-1].data["nbytes"] == held
        again = answer(batch)
        assert again.text == first.text and again.error is None
        assert weights(batch) in (held, 0)  # it may rest again already
        until(lambda: weights(batch) == 0)
    assert batch.ledger.used("dram") == batch.ledger.used("disk") == 0


def test_the_room_of_unloaded_weights_is_nobody_elses(folder: Path) -> None:
    with engine(folder, idle_s=0.2) as batch:
        most = batch.load().most_kv_bytes
        until(lambda: bool(batch.events.recent("run.rest")))
        assert batch.load().most_kv_bytes == most
        with pytest.raises(BudgetError):
            batch.reserve("something", batch.ledger.free("dram") - 1)
        small = batch.reserve("something", 1000)
        assert answer(batch).new_tokens == 8
        small.release()


def test_weights_that_cannot_come_back_are_told_and_tried_again(
    folder: Path, tmp_path: Path
) -> None:
    with engine(folder, idle_s=0.2) as batch:
        until(lambda: weights(batch) == 0)
        pack = next((folder / "small").glob("*.loci"))
        away = pack.rename(tmp_path / "away")
        gone = answer(batch)
        assert gone.reason == "failed" and isinstance(gone.error, ModelError)
        assert "small" in str(gone.error)
        away.rename(pack)
        assert answer(batch).new_tokens == 8


def test_weights_stay_unless_told(folder: Path) -> None:
    with engine(folder) as batch:
        answer(batch)
        time.sleep(0.3)
        assert weights(batch) > 0
    with pytest.raises(ParameterError, match="idle_s"):
        engine(folder, idle_s=-1.0)

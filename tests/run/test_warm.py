"""What was read before a restart is there after it, bit for bit, or is read again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from loci.nn import native
from loci.plan import plan as make_plan
from loci.run.batch import Batch
from loci.run.requests import Ask, End
from loci.testing.batch import paused
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not

SIZES = {"layers": 3, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
LONG = tuple((7 * at) % 200 for at in range(100))
PAGED = pytest.param(
    True,
    marks=pytest.mark.skipif(
        why_not() is not None or not native.available(), reason="no mapped blocks here"
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    tiny_pack(home / "other", **SIZES, seed=7).close()
    return home


def engine(folder: Path, file: Path | None, model: str = "small", **given: Any) -> Batch:
    plan = make_plan(
        model,
        dram="32MiB",
        kv="",
        kv_bytes=given.pop("kv_bytes", None),
        context=128,
        new_tokens=16,
        folder=folder,
        cache=folder / ".cache",
    )
    return Batch(plan, folder=folder, warm=file, **given)


def answer(batch: Batch, ids: tuple[int, ...] = LONG, scope: str = "a") -> End:
    return batch.submit(Ask(ids=ids, max_tokens=8, scope=scope, goes_on=True)).wait(30)


def kept(batch: Batch) -> list[tuple[list[int], list[torch.Tensor]]]:
    def read() -> list[tuple[list[int], list[torch.Tensor]]]:
        found = []
        for one in batch.stores.kept:
            segments = [one.store.view(layer).segments[0] for layer in range(SIZES["layers"])]
            tensors = [t.clone() for s in segments for t in (s.keys(), s.values())]  # type: ignore[attr-defined]
            found.append((list(one.ids), tensors))
        return found

    return batch.between_steps(read)


@pytest.mark.parametrize("paged", [False, PAGED])
def test_prefixes_come_back_bit_for_bit(folder: Path, tmp_path: Path, paged: bool) -> None:
    file = tmp_path / "warm" / "kv.loci"
    with engine(folder, file, paged=paged) as batch:
        first = answer(batch)
        answer(batch, LONG[::-1], "b")
        before = kept(batch)
    assert first.reused_tokens == 0 and len(before) == 2
    assert os.stat(file).st_mode & 0o777 == 0o600
    with engine(folder, file, paged=paged) as batch:
        after = kept(batch)
        assert not file.exists()  # until the next end
        assert [ids for ids, _ in after] == [ids for ids, _ in before]
        for (_, mine), (_, theirs) in zip(after, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        held = batch.ledger.by_kind("dram")["kv"]
        assert held >= sum(t.nbytes for _, tensors in after for t in tensors)
        again = answer(batch)
        assert (again.text, again.reused_tokens) == (first.text, 96)
        # Whose it is stays part of it.
        assert answer(batch, LONG, "c").reused_tokens == 0
        assert batch.notes[0].startswith("2 prefixes of ")
    assert file.exists()


def test_what_is_too_old_or_too_much_is_read_again(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kv.loci"
    with engine(folder, file) as batch:
        answer(batch)
        answer(batch, LONG[::-1])
    with engine(folder, file, keep_s=1e-6) as batch:
        assert kept(batch) == [] and answer(batch).reused_tokens == 0
    with engine(folder, file) as batch:
        answer(batch)
        answer(batch, LONG[::-1])
        both = batch.load().kept_bytes
    # Room for one of the two: the newer one is taken.
    with engine(folder, file, kv_bytes=3 * both // 4) as batch:
        assert [ids[:3] for ids, _ in kept(batch)] == [list(LONG[::-1][:3])]


def test_what_another_model_left_is_refused_and_said(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kv.loci"
    with engine(folder, file) as batch:
        answer(batch)
    with engine(folder, file, "other") as batch:
        assert "made with another fingerprint" in batch.notes[0]
        assert batch.ledger.by_kind("dram").get("kv", 0) == 0
        assert answer(batch).reused_tokens == 0


def test_a_damaged_file_is_refused_and_nothing_is_held(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kv.loci"
    with engine(folder, file) as batch:
        answer(batch)
    raw = bytearray(file.read_bytes())
    raw[5000] ^= 1
    file.write_bytes(raw)
    with engine(folder, file) as batch:
        assert "FormatError" in batch.notes[0]
        assert batch.ledger.by_kind("dram").get("kv", 0) == 0
        assert answer(batch).text


def test_a_full_disk_at_the_end_is_said_and_everything_is_given_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kv.loci"
    batch = engine(folder, file)
    answer(batch)

    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("loci.tiers.blocks.os.write", full)
        batch.close()
    assert "No space left on device" in batch.notes[-1]
    assert list(tmp_path.iterdir()) == [] and batch.ledger.used("dram") == 0


def test_what_was_forgotten_is_left_nowhere(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kv.loci"
    with engine(folder, file) as batch:
        answer(batch)
        with paused(batch):
            ticket = batch.submit(Ask(ids=LONG, max_tokens=8, scope="a", goes_on=True))
        ticket.wait(30)
        batch.forget_kept()
        assert kept(batch) == [] and batch.load().kept_bytes == 0
        assert answer(batch).reused_tokens == 0
        batch.forget_kept()
    with engine(folder, file) as batch:
        assert kept(batch) == []


def test_what_runs_while_something_is_forgotten_serves_nobody_later(folder: Path) -> None:
    with engine(folder, None) as batch:
        real, steps = batch.runner.run, 0

        def run(*given: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                batch.forget_kept()  # on the engine's thread, between two of its steps
            real(*given)

        batch.runner.run = run  # type: ignore[method-assign]
        assert answer(batch).new_tokens == 8
        assert kept(batch) == []


def test_what_is_forgotten_is_overwritten_where_it_lay(folder: Path) -> None:
    with engine(folder, None, paged=False) as batch:
        answer(batch)
        (slots,) = [one.store._pool.tensors["slots"] for one in batch.stores.kept]
        assert slots.any()
        batch.forget_kept()
        assert not slots.any()

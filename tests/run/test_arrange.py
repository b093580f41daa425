"""A schedule on a real shelf: what it wants is done, within the bytes, and what is due passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loci.core.arrange import Demote, Promote, Shift
from loci.core.clock import ManualClock
from loci.core.cube import MemoryKind, Move, Policy, State, expiry
from loci.errors import NotFoundError, ParameterError
from loci.methods.recall.memos import DAY_S, Memos
from loci.plan import plan as make_plan
from loci.run import arrange, engine, promote
from loci.run.arrange import Pace
from loci.store.shelf import Shelf
from loci.testing.models import tiny_pack

SIZES = {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
PACE = Pace(read_s=0.01, load_s=1e-8, write_s=1e-8)  # reading is dear here, on any machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    return home


@pytest.fixture
def session(folder: Path) -> Iterator[engine.Session]:
    asked = {"dram": "16MiB", "context": 384, "new_tokens": 8, "kv": ""}
    plan = make_plan("small", folder=folder, cache=folder / ".cache", **asked)  # type: ignore[arg-type]
    with engine.open(plan, folder=folder) as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def shelf(tmp_path: Path, clock: ManualClock) -> Shelf:
    return Shelf(tmp_path / "cubes", clock=clock)


def used(shelf: Shelf, text: str, times: int, **policy: object) -> str:
    id = promote.from_text(shelf, text, policy=Policy(owner="ada", **policy)).id  # type: ignore[arg-type]
    for _ in range(times):
        shelf.used(id)
    return id


def test_promotes_what_pays_and_gives_it_back(
    shelf: Shelf, session: engine.Session, clock: ManualClock
) -> None:
    hot, cold = used(shelf, "Ada likes tea.", 9), used(shelf, "Bob likes jam.", 2)
    one = next(o for o in arrange.standings(shelf, session, PACE) if o.header.id == hot)
    tokens = round(one.read_s / PACE.read_s)
    assert one.nbytes == 2 * 2 * 2 * 16 * 4 * tokens + 4 * tokens + len("Ada likes tea.")

    def tick(budget: int) -> list[object]:
        return list(arrange.tick(shelf, Memos(), budget_bytes=budget, session=session, pace=PACE))

    assert tick(one.nbytes) == [Promote(id=hot)]
    assert shelf.header(hot).kind is MemoryKind.ACTIVATION
    assert shelf.head(hot).nbytes == one.nbytes
    assert tick(one.nbytes) == []
    clock.advance(3 * DAY_S)
    for _ in range(9):
        shelf.used(cold)
    assert tick(one.nbytes) == [Demote(id=hot), Promote(id=cold)]
    held = [h.id for h in shelf.headers(MemoryKind.ACTIVATION)]
    assert held == [cold]
    assert shelf.payload(hot).texts == {"text": "Ada likes tea."}


def test_time_alone_needs_no_model(shelf: Shelf, clock: ManualClock) -> None:
    idle = used(shelf, "Idle.", 1)
    over = used(shelf, "Over.", 1, expires=expiry(clock.now(), DAY_S))
    kept = used(shelf, "Kept.", 1, pinned=True)
    assert arrange.tick(shelf, Memos()) == []
    clock.advance(2 * DAY_S)
    assert arrange.tick(shelf, Memos()) == [Shift(id=over, move=Move.EXPIRE)]
    assert shelf.header(over).state is State.EXPIRED
    clock.advance(40 * DAY_S)
    planned = arrange.tick(shelf, Memos(), dry_run=True)
    assert shelf.header(over).state is State.EXPIRED
    assert arrange.tick(shelf, Memos()) == planned
    assert {change.id for change in planned} == {idle, over}
    assert shelf.header(idle).state is State.ARCHIVED
    assert shelf.header(kept).state is State.ACTIVE
    with pytest.raises(NotFoundError):
        shelf.header(over)
    shelf.used(idle)
    assert shelf.header(idle).state is State.ACTIVE


def test_an_expired_cube_gives_its_keys_up(
    shelf: Shelf, session: engine.Session, clock: ManualClock
) -> None:
    id = used(shelf, "Ada likes tea.", 9, expires=expiry(clock.now(), DAY_S), purposes=("tax",))
    arrange.tick(shelf, Memos(), budget_bytes=2**20, session=session, pace=PACE)
    clock.advance(2 * DAY_S)
    done = arrange.tick(shelf, Memos())
    assert done == [Demote(id=id), Shift(id=id, move=Move.EXPIRE)]
    assert not shelf.payload(id).tensors


def test_a_text_that_is_too_long_is_left_alone(shelf: Shelf, session: engine.Session) -> None:
    used(shelf, "long " * 200, 9)
    assert arrange.standings(shelf, session, PACE) == []
    header = promote.from_text(shelf, "a b")
    with pytest.raises(ParameterError, match="needs a model"):
        arrange.carry_out(shelf, Promote(id=header.id), None)


def test_a_pace_is_measured(shelf: Shelf, session: engine.Session) -> None:
    pace = arrange.pace_of(session, shelf)
    assert min(pace.read_s, pace.load_s, pace.write_s) > 0
    assert shelf.files() == []

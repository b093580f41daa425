"""A batch with an adapter answers as a session with it does, in all the ways it can answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Generator

from loci.core.event import Events
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, FingerprintError
from loci.models.load import resolve
from loci.nn import native
from loci.nn.patch import Patch
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run import engine
from loci.run.adapters import Adapter
from loci.run.batch import Batch
from loci.run.requests import Ask, Ticket
from loci.testing.batch import paused
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not

PAGED = pytest.param(
    True,
    marks=pytest.mark.skipif(
        bool(why_not()) or not native.available(), reason="needs mapped blocks and native kernels"
    ),
)
PROMPTS = ([*range(60, 90)], [*range(40, 63)], [*range(100, 140)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "tiny", layers=4).close()
    tiny_pack(home / "other", layers=4, seed=3).close()
    return home


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Adapter:
    with resolve("tiny", folder) as pack:
        return Adapter(name="own", patch=patch_of(pack.spec), base=pack.spec.fingerprint)


def patch_of(spec: ModelSpec, rank: int = 3, size: float = 0.3) -> Patch:
    draw, shapes = Generator().manual_seed(0), spec.layer_linears()
    return Patch(
        {
            f"layer.{layer}.{name}": (
                size * torch.randn(shapes[name][0], rank, generator=draw),
                torch.randn(rank, shapes[name][1], generator=draw),
            )
            for layer, name in ((0, "q_proj"), (1, "down_proj"), (3, "v_proj"))
        }
    )


def plan_of(folder: Path, model: str = "tiny", **asked: object) -> Plan:
    given: dict[str, object] = {"dram": "16MiB", "context": 256, "new_tokens": 12} | asked
    return make_plan(model, **given, folder=folder, cache=folder / ".cache")  # type: ignore[arg-type]


def ids_of(ticket: Ticket) -> list[int]:
    return [id for piece in ticket for id in piece.ids]


def said_alone(folder: Path, adapter: Adapter | None, **asked: str) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        with engine.open(plan_of(folder, **asked), adapter=adapter, folder=folder) as session:
            for _ in session.generate(prompt, max_tokens=12):
                pass
            found.append(list(session._said))
    return found


@pytest.mark.parametrize("paged", [False, PAGED])
def test_requests_together_are_answered_as_alone(
    folder: Path, adapter: Adapter, paged: bool
) -> None:
    alone, plain = said_alone(folder, adapter), said_alone(folder, None)
    with Batch(plan_of(folder), folder=folder, paged=paged, adapter=adapter) as batch:
        with paused(batch):
            tickets = [batch.submit(Ask(ids=tuple(ids), max_tokens=12)) for ids in PROMPTS]
        assert [ids_of(ticket) for ticket in tickets] == alone != plain
        held = {row["owner"]: row["nbytes"] for row in batch.ledger.table()}
        assert held["adapter own"] == batch.adapters.nbytes > 0


def test_a_cache_that_compresses_takes_an_adapter_too(folder: Path, adapter: Adapter) -> None:
    chain = {"kv": "bfp(bits=8, block=16)"}
    with Batch(plan_of(folder, **chain), folder=folder, adapter=adapter) as batch:
        tickets = [batch.submit(Ask(ids=tuple(ids), max_tokens=12)) for ids in PROMPTS]
        assert [ids_of(ticket) for ticket in tickets] == said_alone(folder, adapter, **chain)


def test_unloaded_weights_come_back_with_the_adapter(folder: Path, adapter: Adapter) -> None:
    rested, events = threading.Event(), Events()
    events.listen(lambda event: rested.set() if event.name == "run.rest" else None)
    with Batch(plan_of(folder), folder=folder, adapter=adapter, idle_s=0.0, events=events) as batch:
        first = ids_of(batch.submit(Ask(ids=tuple(PROMPTS[0]), max_tokens=12)))
        assert rested.wait(30)
        again = ids_of(batch.submit(Ask(ids=tuple(PROMPTS[0]), max_tokens=12, scope="b")))
        assert first == again == said_alone(folder, adapter)[0]


def test_an_engine_whose_weights_rest_can_be_closed(folder: Path, adapter: Adapter) -> None:
    with Batch(plan_of(folder), folder=folder, adapter=adapter, idle_s=0.0) as batch:
        batch.between_steps(lambda: None)


def test_what_one_adapter_read_is_not_warm_for_another(
    folder: Path, adapter: Adapter, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    with Batch(plan_of(folder), folder=folder, adapter=adapter, warm=file) as batch:
        batch.submit(Ask(ids=tuple(PROMPTS[0]), max_tokens=12)).wait(30)
    with Batch(plan_of(folder), folder=folder, warm=file) as batch:
        assert "another adapter" in batch.notes[0]
        end = batch.submit(Ask(ids=tuple(PROMPTS[0]), max_tokens=12)).wait(30)
        assert end.reused_tokens == 0


def test_an_adapter_of_another_model_or_too_large_is_refused(
    folder: Path, adapter: Adapter
) -> None:
    with pytest.raises(FingerprintError, match="another model"):
        Batch(plan_of(folder, "other"), folder=folder, adapter=adapter)
    with resolve("tiny", folder) as pack:
        wide = Adapter(name="wide", patch=patch_of(pack.spec, rank=20_000))
    with pytest.raises(BudgetError, match="adapter wide"):
        Batch(plan_of(folder, dram="8MiB"), folder=folder, adapter=wide)

"""A session whose weights change their size while it runs."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from loci.errors import BudgetError, MethodError, ParameterError
from loci.models.stack import stack_path, table_of
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run import engine, measure
from loci.testing.models import tiny_pack

SIZES = {"layers": 3, "hidden": 128, "ffn": 256, "heads": 8, "kv_heads": 4, "head_dim": 16}
QUESTION = "What is a budget?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with a model named small, in float32, and its stack."""
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", bits=None, **SIZES).close()
    with engine.open(plan_of(home, weights="600KiB"), folder=home):
        pass
    return home


def plan_of(folder: Path, **asked: object) -> Plan:
    asked = {"dram": "16MiB", "context": 128, "new_tokens": 8} | asked
    return make_plan("small", folder=folder, cache=folder / ".cache", **asked)  # type: ignore[arg-type]


def accounts_agree(session: engine.Session) -> None:
    gc.collect()
    found = session.report()
    assert found["bytes"]["predicted"] == found["bytes"]["ledger"]
    assert found["bytes"]["measured"]["dram"] <= found["bytes"]["ledger"]["dram"] * 1.05
    session.ledger.check_integrity()


def test_a_plan_cuts_weights_only_where_nothing_without_loss_fits(folder: Path) -> None:
    assert plan_of(folder).weights == "resident"
    plan = plan_of(folder, weights="600KiB")
    assert plan.weights == "stacked" and plan.stack in ("any_precision", "bitstack")
    assert 0 < plan.held("weights") <= 600 * 1024
    assert plan.loss is None or plan.loss > 0
    assert "cut to fit" in str(plan)
    assert Plan.from_json(plan.to_json()).stack == plan.stack
    streamed = plan_of(folder, weights="1400KiB", disk="1GiB", kv="")
    assert streamed.weights == "streamed"
    with pytest.raises(BudgetError):
        plan_of(folder, weights="600KiB", quant="")
    assert plan_of(folder, quant="bitstack").weights == "stacked"


def test_before_the_stack_is_made_sizes_are_known_and_quality_is_not(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "small", bits=None, **SIZES).close()
    plan = plan_of(tmp_path, weights="600KiB", kv="")
    assert plan.weights == "stacked" and plan.loss is None
    assert any(f"loci methods prepare {plan.stack}" in note for note in plan.notes)
    with engine.open(plan, folder=tmp_path) as session:
        held = session.report()["bytes"]["ledger"]["dram"]
        assert held <= plan.predicted["dram"] < held + 2**16  # as predicted but for one block
    path = stack_path(tmp_path / "small" / "pack.loci", plan.stack, plan.spec.fingerprint)
    table = table_of(path, method=plan.stack, fingerprint=plan.spec.fingerprint)
    later = plan_of(tmp_path, weights="600KiB", kv="", quant=plan.stack)
    assert later.held("weights") == table.held_bytes(600 * 1024)
    assert not any("prepare" in note for note in later.notes)


def test_a_live_session_shrinks_and_grows(folder: Path) -> None:
    with engine.open(plan_of(folder, weights="900KiB"), folder=folder) as session:
        first = "".join(session.generate(QUESTION))
        before = session.plan.held("weights")
        accounts_agree(session)
        assert session.resize("500KiB") <= 500 * 1024
        assert session.plan.held("weights") == session.ledger.by_kind("dram")["weights"]
        assert session.plan.loss is not None and session.plan.loss > 0
        "".join(session.generate(QUESTION))
        accounts_agree(session)
        assert session.resize("900KiB") == before
        session.store.crop(0)
        session._ids = []
        assert "".join(session.generate(QUESTION)) == first
        accounts_agree(session)
    assert session.ledger.used("dram") == 0


def test_the_conversation_goes_on_where_it_was(folder: Path) -> None:
    with engine.open(plan_of(folder, weights="900KiB"), folder=folder) as session:
        "".join(session.chat("one", max_tokens=4))
        session.resize("700KiB")
        "".join(session.chat("two", max_tokens=4))
        assert session.report()["tokens"]["reused"] > 0


def test_whole_weights_give_way_to_a_stack_and_come_back(folder: Path) -> None:
    with engine.open(plan_of(folder), folder=folder) as session:
        exact = "".join(session.generate(QUESTION))
        whole = session.plan.held("weights")
        session.resize("600KiB")
        assert session.plan.weights == "stacked"
        assert not [path for path in measure.mapped_files() if str(folder) in path]
        accounts_agree(session)
        assert session.resize(whole) == whole
        assert session.plan.weights == "resident" and session.plan.loss == 0
        session.store.crop(0)
        session._ids = []
        assert "".join(session.generate(QUESTION)) == exact
        accounts_agree(session)


def test_what_cannot_be_is_refused_and_changes_nothing(folder: Path) -> None:
    with engine.open(plan_of(folder, weights="600KiB"), folder=folder) as session:
        before, plan = session.ledger.table(), session.plan
        with pytest.raises(BudgetError, match="need at least"):
            session.resize("10KiB")
        with pytest.raises(ParameterError, match="cannot read the size"):
            session.resize("plenty")
        assert session.ledger.table() == before and session.plan == plan
        "".join(session.generate(QUESTION))
    with engine.open(plan_of(folder), folder=folder) as session:
        with pytest.raises(BudgetError, match="need at least"):
            session.resize("10KiB")
        assert session.plan.weights == "resident"
        "".join(session.generate(QUESTION))
    streamed = plan_of(folder, weights="1400KiB", disk="1GiB", kv="")
    with (
        engine.open(streamed, folder=folder) as session,
        pytest.raises(MethodError, match="read from disk"),
    ):
        session.resize("700KiB")


def test_no_room_for_whole_weights_leaves_the_stack_in_place(folder: Path) -> None:
    plan = plan_of(folder, weights="600KiB", kv="")
    tight = plan_of(folder, dram=plan.predicted["dram"] + 4096, weights="600KiB", kv="")
    with engine.open(tight, folder=folder) as session:
        before = "".join(session.generate(QUESTION))
        with pytest.raises(BudgetError):
            session.resize("64MiB")
        session.store.crop(0)
        session._ids = []
        assert "".join(session.generate(QUESTION)) == before
        accounts_agree(session)


def test_a_method_without_levels_is_refused(folder: Path) -> None:
    with pytest.raises(ParameterError, match="does not pack weights in levels"):
        plan_of(folder, quant="groupwise")

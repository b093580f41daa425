"""Forms of the KV cache that only cards know of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paper_model as paper
import pytest

from loci.core.card import Card
from loci.core.method import Method
from loci.core.spec import Workload
from loci.errors import BudgetError
from loci.plan.kvcards import measured_forms
from loci.plan.kvform import KVForm, kv_bytes, loss_of
from loci.plan.solve import Plan

Planner = Callable[..., Plan]
MINE = "smollm2-on-paper"
USUAL: list[tuple[Any, ...]] = [
    ("exact", {"dtype": "float16"}, 1e-6, MINE),
    *(("bfp", {"bits": b}, kl, MINE) for b, kl in ((8, 3e-4), (6, 5e-3), (5, 0.02))),
    ("turboquant", {"bits_k": 4, "bits_v": 4}, 0.06, MINE),
    ("turboquant", {"bits_k": 4, "bits_v": 3}, 0.07, MINE),
    ("turboquant", {"bits_k": 3, "bits_v": 3}, 0.08, MINE),
]
KVTC = {"bits_k": 2.0, "bits_v": 2.0, "window": 32}


def _cards(*rows: tuple[Any, ...]) -> Callable[[str, str], Card | None]:
    return paper.cards_with([*USUAL, *rows])


def _has(*names: str) -> Callable[[Method], bool]:
    return lambda method: method.about.name in names


def test_what_is_prepared_and_loses_less_is_taken(plan_for: Planner) -> None:
    cards = _cards(("kvtc", KVTC, 0.03, MINE))
    budget = {"kv": 40 * paper.MIB}
    usual = plan_for(512, context=8192, cards=cards, caps={"kv": 60 * paper.MIB})
    assert usual.kv == "turboquant"
    plan = plan_for(512, context=8192, cards=cards, caps=budget, prepared=_has("kvtc"))
    assert plan.kv == "kvtc(bits_k=2.0, bits_v=2.0, window=32)" and plan.loss == 0.03
    assert any("kv turboquant" in choice.name for choice in plan.turned_down)


def test_what_would_lose_less_is_named_with_the_command(plan_for: Planner) -> None:
    cards = _cards(("kvtc", KVTC, 0.03, MINE))
    plan = plan_for(512, context=8192, cards=cards, caps={"kv": 60 * paper.MIB})
    assert any("instead of 0.060: loci methods prepare kvtc" in note for note in plan.notes)
    with pytest.raises(BudgetError, match="loci methods prepare kvtc; then kvtc"):
        plan_for(512, context=8192, cards=cards, caps={"kv": 40 * paper.MIB})


def test_nothing_is_named_where_nothing_is_lost(plan_for: Planner) -> None:
    plan = plan_for(4096, cards=_cards(("kvtc", KVTC, 0.0, MINE)))
    assert plan.loss == 0 and plan.kv == "" and not plan.notes


def test_tokens_are_dropped_only_where_that_was_measured(plan_for: Planner) -> None:
    cards = _cards(
        ("snapkv", {}, 0.12, MINE, "kv/0.12"),
        ("snapkv", {}, 0.03, MINE, "kv/0.5"),
        ("streaming_llm", {}, 0.2, MINE, "kv/0.06"),
    )
    full = paper.SMOLLM2.kv_bytes(8192)
    for share, kv, loss in ((0.15, "snapkv", 0.12), (0.09, "streaming_llm", 0.2)):
        plan = plan_for(1024, context=8192, cards=cards, caps={"kv": int(share * full)})
        assert (plan.kv, plan.loss) == (kv, loss)
        assert plan.held("kv") <= share * full
    with pytest.raises(BudgetError):
        plan_for(1024, context=8192, cards=cards, caps={"kv": int(0.05 * full)})


def test_a_form_never_gets_less_than_it_was_measured_with() -> None:
    spec, load = paper.SMOLLM2, Workload(context=4096)
    form, full = KVForm(chain="snapkv", share=0.25), paper.SMOLLM2.kv_bytes(4096)
    _, _, least = kv_bytes(form, spec, load, 512, 0.0)
    assert 0.249 * full <= least <= 0.26 * full
    kv, budget, _ = kv_bytes(form, spec, load, 512, 0.4 * full)
    assert budget is not None and 0.39 * full <= kv <= 0.4 * full


def test_measurements_of_other_models_and_old_parameters_are_no_forms() -> None:
    spec = paper.SMOLLM2
    cards = _cards(
        ("kvtc", KVTC, 0.03, "another"),
        ("kivi", {"bits": 3, "gone": 1}, 0.04, MINE),
        ("snapkv", {}, 0.1, MINE),  # dropping tokens counts at a share
    )
    ready, waiting = measured_forms(spec, cards, _has("kvtc"))
    assert {form.chain for form in ready} == {
        "bfp",
        "bfp(bits=6)",
        "bfp(bits=5)",
        "turboquant",
        "turboquant(bits_v=3)",
        "turboquant(bits_k=3, bits_v=3)",
    }
    assert waiting == ()
    assert loss_of(KVForm(chain="snapkv", suite="kv/0.25"), spec, cards)[0] is None


def test_a_bank_in_a_file_needs_the_disk_it_was_asked_for(plan_for: Planner) -> None:
    bank = {"chunk": 32, "tier": "disk"}
    cards = _cards(("longmem", bank, 0.04, MINE, "bank/snapkv/0.12"))
    caps = {"kv": 24 * paper.MIB}
    with pytest.raises(BudgetError):
        plan_for(512, context=8192, cards=cards, caps=caps)
    plan = plan_for(512, context=8192, disk=1024, cards=cards, caps=caps)
    assert plan.kv == "snapkv | longmem(chunk=32, tier=disk)" and plan.loss == 0.04
    assert plan.held("kv") <= caps["kv"] and plan.predicted["disk"] == plan.held("kv", "disk") > 0
    assert "read from disk where it is needed" in str(plan)
    assert "at most" in str(plan) and "what fetching takes not counted" in str(plan)
    assert any("measured on" in note for note in plan.notes)


def test_of_codes_that_lose_alike_the_fastest_is_taken(plan_for: Planner) -> None:
    # Directions are turned back for every token, which takes far longer than the codes of a head.
    def plan_with(loss: float) -> Plan:
        cards = _cards(("kvtc", KVTC, loss, MINE))
        caps = {"kv": 60 * paper.MIB}
        return plan_for(512, context=8192, cards=cards, caps=caps, prepared=_has("kvtc"))

    assert plan_with(0.0595).kv == "turboquant"
    slower = plan_with(0.0585)
    assert slower.kv.startswith("kvtc") and slower.loss == 0.0585

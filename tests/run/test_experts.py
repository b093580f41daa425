"""Experts beside a model: made once, gone on with, kept apart by family, asked by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loci.errors import NotFoundError
from loci.methods.recall.memlora import EXPERTS, EXTRACT, FACTS, UPDATE
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.plan import plan as solve
from loci.run import engine
from loci.run.expert_lessons import drawn, lessons, parts
from loci.run.expert_training import learned, prepare_experts, recipe_of
from loci.run.experts import ExpertLlm, expert, expert_path, keep_expert, late_experts
from loci.run.greedy import Greedy
from loci.testing.models import tiny_pack


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    with tiny_pack(tmp_path / "tiny") as pack:
        yield pack


def _session(folder: Path) -> engine.Session:
    plan = solve("tiny", dram="32MiB", context=512, new_tokens=96, folder=folder, cache=folder)
    return engine.open(plan, folder=folder)


def _patch(pack: Pack, seed: int) -> Patch:
    draw = torch.Generator().manual_seed(seed)
    out, inner = pack.spec.layer_linears()["q_proj"]
    left = torch.randn(out, 4, generator=draw).half()
    return Patch({"layer.1.q_proj": (left, torch.randn(4, inner, generator=draw).half())})


def _same(one: Patch, other: Patch) -> bool:
    left, right = one.tensors(), other.tensors()
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_an_expert_is_made_once_for_the_same_lessons_and_recipe(pack: Pack) -> None:
    some = drawn(parts(lessons("taught", 2)[UPDATE]), 16, 0)
    recipe = recipe_of(UPDATE, pack.spec.layers, steps=2)
    steps: list[int] = []
    first, facts = learned(pack, UPDATE, some, recipe, progress=lambda w, d, t: steps.append(d))
    assert steps == [1, 2] and facts["lessons"] == 16
    again, kept = learned(pack, UPDATE, some, recipe, progress=lambda w, d, t: steps.append(d))
    assert steps == [1, 2] and kept == facts and _same(first, again)
    for lesson, changed in ((some[:8], recipe), (some, replace(recipe, steps=3))):
        other, _ = learned(pack, UPDATE, lesson, changed)
        assert not _same(first, other)
    assert not list(pack.folder.glob("*training*"))


def test_a_training_that_was_cut_off_goes_on(pack: Pack) -> None:
    some = drawn(parts(lessons("taught", 2)[UPDATE]), 16, 0)
    recipe = replace(recipe_of(UPDATE, pack.spec.layers, steps=4), every=1)
    whole, _ = learned(pack, UPDATE, some, recipe, family="whole")

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(pack, UPDATE, some, recipe, progress=stop)
    assert len(list(pack.folder.glob("memlora.update.training-*"))) == 1
    with pytest.raises(NotFoundError):
        expert(pack, UPDATE)
    steps: list[int] = []
    patch, _ = learned(pack, UPDATE, some, recipe, progress=lambda w, d, t: steps.append(d))
    assert steps == [3, 4] and _same(patch, whole)
    assert not list(pack.folder.glob("*training*"))


def test_all_are_prepared_with_what_they_are_worth(pack: Pack) -> None:
    said: list[str] = []
    made = prepare_experts(pack, steps=1, progress=lambda what, d, t: said.append(what))
    assert list(made["experts"]) == list(EXPERTS)
    assert [f"trying the expert of {name}" in said for name in EXPERTS] == [True] * 3
    for name, one in made["experts"].items():
        patch, facts = expert(pack, name)
        assert one["bytes"] == patch.nbytes and one["path"] == str(expert_path(pack, name))
        assert one["right"] == facts["right"] <= facts["tried"] == one["tried"]
    said.clear()
    assert prepare_experts(pack, steps=1, progress=lambda what, d, t: said.append(what)) == made
    assert said == []


def test_each_message_is_answered_by_the_expert_it_names(pack: Pack, tmp_path: Path) -> None:
    patches = {EXTRACT: _patch(pack, 1), UPDATE: _patch(pack, 2)}
    asked = {"role": "user", "content": "Facts of:\nNora: I live in Graz."}
    alone: dict[str | None, str] = {}
    with Greedy(pack, context=512) as reader:
        for name in (None, *patches):
            reader.use(None if name is None else patches[name])
            ids = reader.answer(reader.tokenizer.chat([asked]), 96, FACTS)
            alone[name] = reader.tokenizer.decode(ids)
    with _session(tmp_path) as session:
        llm = ExpertLlm(session, patches)
        for name in (UPDATE, EXTRACT, UPDATE):
            reply = llm.generate([{**asked, "expert": name}], max_tokens=96, schema=FACTS)
            assert reply == alone[name]
            assert session.adapters.active == name
        llm.generate([asked], max_tokens=96, schema=FACTS)
        assert session.adapters.active is None
        with pytest.raises(NotFoundError, match="loci methods prepare memlora"):
            llm.generate([{**asked, "expert": "answer"}])
    assert len(set(alone.values())) > 1


def test_a_missing_expert_is_told_before_a_model_is_opened(pack: Pack, tmp_path: Path) -> None:
    keep_expert(pack, EXTRACT, _patch(pack, 1), {})
    opened: list[engine.Session] = []

    def opens() -> engine.Session:
        opened.append(_session(tmp_path))
        return opened[-1]

    llm = late_experts("tiny", tmp_path, opens)
    with pytest.raises(NotFoundError, match="prepare memlora --model tiny") as caught:
        llm.count_tokens("a")
    assert caught.value.value == UPDATE and not opened
    for name in EXPERTS:
        keep_expert(pack, name, _patch(pack, 1), {})
    assert llm.count_tokens("a") == 1
    llm.close()
    assert opened[0].ledger.used("dram") == 0


def test_families_do_not_see_each_other(pack: Pack) -> None:
    keep_expert(pack, EXTRACT, _patch(pack, 1), {"of": 1})
    keep_expert(pack, EXTRACT, _patch(pack, 2), {"of": 2}, family="memlora-trial")
    assert expert(pack, EXTRACT)[1] == {"of": 1}
    assert expert(pack, EXTRACT, family="memlora-trial")[1] == {"of": 2}

"""Edits over a pack: the model is as it was afterwards, bad edits are refused, cubes carry them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from loci.core.cube import MemoryKind
from loci.core.method import About, Frees, Kind
from loci.errors import FormatError, MethodError, ParameterError
from loci.methods.train.base import Edit, Editable, Fact, down
from loci.methods.train.memit import Memit
from loci.methods.train.mend import Mend
from loci.methods.train.rome import Rome
from loci.models.pack import Pack
from loci.nn.adjusted import AdjustedWeight
from loci.nn.decoder import decode
from loci.nn.form import DenseWeight
from loci.nn.patch import Patch, joined
from loci.run import key_moments
from loci.run.adapters import adapter_of
from loci.run.calibrate import PackWeights
from loci.run.edit_model import PackModel
from loci.run.edits import edit
from loci.run.key_moments import (
    covariance,
    covariance_near,
    covariance_path,
    prepare_covariance,
)
from loci.run.own_text import own_text
from loci.run.prepare import prepare
from loci.store import cube_file
from loci.testing.models import tiny_pack
from loci.testing.train import FACTS

METHOD = Rome(layer=1, openings=2, steps=4, decay=0.0)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    made = tiny_pack(tmp_path_factory.mktemp("edits"), layers=3, seed=5)
    prepare_covariance(made, range(3), texts=4)
    return made


@pytest.fixture(scope="module")
def model(pack: Pack) -> PackModel:
    return PackModel(pack)


def _logits(model: PackModel, patch: Patch | None = None) -> Tensor:
    return model.ends([list(range(65, 85))], [20], patch)[0]


@dataclass(frozen=True, kw_only=True)
class Fixed(Edit):
    """An editor that moves a layer by as much as it is told."""

    about = About(name="fixed", kind=Kind.TRAIN, paper="-", idea="-", frees=Frees.NOTHING)
    share: float = 0.01

    def edit(
        self, model: Editable, facts: Sequence[Fact], generator: Generator | None = None
    ) -> Patch:
        weight = model.weight(down(0))
        left = torch.zeros(weight.shape[0], 1)
        left[0] = self.share * float(weight.norm())
        return Patch({down(0): (left, torch.eye(weight.shape[1])[:1])})


def test_an_edit_leaves_the_pack_bit_for_bit(pack: Pack, model: PackModel) -> None:
    file, before = pack.path.read_bytes(), _logits(model)
    made = edit(pack, FACTS, METHOD, model=model, cap=100.0)
    assert not torch.equal(_logits(model, made.patch), before)
    assert torch.equal(_logits(model), before)
    assert pack.path.read_bytes() == file
    assert made.report["bytes"] == made.patch.nbytes > 0
    assert made.report["method"] == str(METHOD)
    assert set(made.report["moved"]) == {down(1)}


def test_reading_in_parts_is_reading_at_once(pack: Pack, model: PackModel) -> None:
    rows = [model.row("So it is. The hat of Ann is")[0], model.row("Bob")[0]]
    read = model.read(rows, 1, [9, 1])
    whole = [
        decode(
            pack.spec,
            pack.embed_rows(row)[None],
            PackWeights(pack).plain,
            PackWeights(pack).vector,
        )[0]
        @ PackWeights(pack).table("embed").t()
        for row in rows
    ]
    found = read.logits([3, 2])
    torch.testing.assert_close(found, torch.cat([whole[0][-3:], whole[1][-2:]]), atol=2e-4, rtol=0)


def test_a_shift_of_the_layer_is_what_a_change_of_its_output_is(model: PackModel) -> None:
    ids = model.row("The hat of Ann")[0]
    read = model.read([ids], 1, [len(ids) - 1])
    shift = torch.randn(1, model.spec.hidden, generator=Generator().manual_seed(0))
    key = read.key_BK
    change = shift.t() @ key / key.square().sum()  # maps this key to the shift
    moved = read.logits([1], changes={1: change})
    torch.testing.assert_close(read.logits([1], shift_Bd=shift), moved, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_shift(model: PackModel) -> None:
    rows = [model.row("The hat of Ann is")[0], model.row("Bob is")[0]]
    read = model.read(rows, 1, [13, 2])
    shift = torch.zeros(2, model.spec.hidden, requires_grad=True)
    loss = read.logits([1, 1], shift_Bd=shift).logsumexp(-1).sum()
    [slope] = torch.autograd.grad(loss, shift)
    for row, channel in ((0, 3), (1, 40)):
        step = torch.zeros_like(slope)
        step[row, channel] = 1e-2
        up, low = (
            float(read.logits([1, 1], shift_Bd=s).detach().double().logsumexp(-1).sum())
            for s in (step, -step)
        )
        assert (up - low) / 2e-2 == pytest.approx(float(slope[row, channel]), rel=0.02, abs=1e-3)


def test_what_is_said_already_is_refused(pack: Pack) -> None:
    with pytest.raises(ParameterError, match=r"says this already.*The hat of Ann is red\."):
        edit(pack, FACTS[:1], METHOD, model=_Saying(pack))


class _Saying(PackModel):
    """A model that says whatever it is asked for."""

    def says(self, facts: Sequence[Fact], patch: Patch | None = None) -> list[bool]:
        return [True] * len(facts)

    def under(self, patch: Patch | None, method: object = None) -> PackModel:
        return self


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ((), "no fact to edit"),
        ((FACTS[0], FACTS[0]), "given twice"),
        (
            (FACTS[0], Fact(prompt=FACTS[0].prompt, subject="Ann", target="blue")),
            "contradict each other",
        ),
    ],
)
def test_bad_facts_are_refused(pack: Pack, facts: tuple[Fact, ...], why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        edit(pack, facts, METHOD)


def test_edits_may_move_a_weight_only_so_far_all_together(pack: Pack, model: PackModel) -> None:
    first = edit(pack, FACTS[:1], Fixed(share=0.03), model=model, cap=0.05)
    assert first.report["moved"][down(0)] == pytest.approx(0.03, rel=1e-3)
    with pytest.raises(ParameterError, match=r"too far.*0\.06"):
        edit(pack, FACTS[:1], Fixed(share=0.03), model=model, before=first.patch, cap=0.05)
    with pytest.raises(ParameterError, match="above 0"):
        edit(pack, FACTS[:1], Fixed(), model=model, cap=0.0)


def test_an_edit_on_top_of_another_sees_it(pack: Pack, model: PackModel) -> None:
    first = edit(pack, FACTS[:1], METHOD, model=model, cap=100.0)
    second = edit(pack, FACTS[1:], METHOD, model=model, before=first.patch, cap=100.0)
    both = edit(pack, FACTS, METHOD, model=model, cap=100.0)
    found = joined([first.patch, second.patch]).delta(down(1))
    torch.testing.assert_close(found, both.patch.delta(down(1)), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(
        model.under(first.patch).weight(down(1)), model.weight(down(1)) + first.patch.delta(down(1))
    )


def test_an_edit_of_another_model_is_refused(pack: Pack, model: PackModel) -> None:
    wrong = Patch({down(0): (torch.zeros(3, 1), torch.zeros(1, 5))})
    with pytest.raises(FormatError, match="does not fit"):
        edit(pack, FACTS[:1], METHOD, model=model, before=wrong)


def test_an_edit_travels_as_a_cube(pack: Pack, model: PackModel, tmp_path: Path) -> None:
    made = edit(pack, FACTS[:1], METHOD, model=model, cap=100.0)
    header, payload = made.cube("ann", parents=("item-1",), made_by="test")
    assert header.kind is MemoryKind.PARAMETRIC and header.parents == ("item-1",)
    cube_file.write(tmp_path / "ann.cube", header, payload)
    back = adapter_of(*cube_file.read(tmp_path / "ann.cube", fingerprint=pack.spec.fingerprint))
    assert back.patch.fingerprint == made.patch.fingerprint
    assert back.name == "ann" and back.base == pack.spec.fingerprint


def test_the_covariance_is_the_mean_of_products(pack: Pack, model: PackModel) -> None:
    ids = own_text(pack, texts=4, length=256)
    seen: list[Tensor] = []

    def tapped(name: str, x: Tensor) -> Tensor:
        if name == down(1):
            seen.append(x)
        return PackWeights(pack).plain(name, x)

    with torch.no_grad():
        embedded = torch.stack([pack.embed_rows(row) for row in ids])
        decode(pack.spec, embedded, tapped, PackWeights(pack).vector)
    [keys] = seen
    kept = covariance(pack, 1)
    assert kept.facts["tokens"] == 1024
    torch.testing.assert_close(
        kept.tensors["covariance"], keys.t() @ keys / 1024, rtol=1e-4, atol=1e-4
    )


def test_it_is_prepared_once_and_anew_for_another_text(pack: Pack) -> None:
    path = covariance_path(pack, 2)
    made = path.stat().st_mtime_ns
    told: list[int] = []
    prepare_covariance(pack, [2], texts=4, progress=lambda what, done, total: told.append(done))
    assert path.stat().st_mtime_ns == made and not told
    prepare_covariance(pack, [2], texts=5, progress=lambda what, done, total: told.append(done))
    assert told[-5:] == [1, 2, 3, 4, 5] and max(told[:-5]) == 5 * 256  # written, then looked at
    assert covariance(pack, 2).facts["tokens"] == 1280
    prepare_covariance(pack, [2], texts=4)


def test_a_person_s_text_takes_the_place_of_the_model_s_own(pack: Pack) -> None:
    before = covariance(pack, 2)
    prepare_covariance(pack, [2], texts=4, source="All roads lead to Rome, and back. " * 40)
    assert covariance(pack, 2).facts["text"] != before.facts["text"]
    prepare_covariance(pack, [2], texts=4)
    assert covariance(pack, 2).facts == before.facts


def test_what_is_near_is_drawn_in_the_place_of_the_subject(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    real = key_moments.gone_on

    def told(pack: Pack, starts: list[list[int]], *rest: object) -> list[list[int]]:
        asked.extend(starts)
        return real(pack, starts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(key_moments, "gone_on", told)
    near = covariance_near(pack, FACTS, [0, 2])
    assert {bytes(row) for row in asked} == {b"The hat of", b"The cup of"}
    assert len(asked) == key_moments.NEAR_TEXTS and set(near) == {0, 2}
    for moment in near.values():
        assert torch.equal(moment, moment.t()) and torch.linalg.eigvalsh(moment)[0] > -1e-3
    again = covariance_near(pack, FACTS, [0, 2])
    assert torch.equal(near[2], again[2])
    assert covariance_near(pack, [Fact(prompt="Ann is", subject="Ann", target="red")], [0]) == {}


def test_memit_moves_what_is_near_less(pack: Pack, model: PackModel) -> None:
    patches = [
        Memit(layers=(0, 1), openings=2, steps=4, near=near).edit(model, FACTS)
        for near in (0.0, 100.0)
    ]
    moment = covariance_near(pack, FACTS, [0])[0].double()
    deltas = [patch.delta(down(0)).double() for patch in patches]
    far, close = (float(((delta @ moment) * delta).sum()) for delta in deltas)
    assert 0 < close < far


def test_methods_prepare_makes_it(pack: Pack, tmp_path: Path) -> None:
    found = prepare(pack, "memit(layers=(0, 1))", tmp_path)
    assert found["kind"] == "artefact" and found["facts"]["tokens"] > 1000
    with pytest.raises(MethodError, match="learns from facts"):
        prepare(pack, "mend", tmp_path)
    with pytest.raises(ParameterError, match="no such layer"):
        prepare(pack, "rome(layer=9)", tmp_path)
    prepare_covariance(pack, range(3), texts=4)


def test_a_layer_that_rounds_its_inputs_cannot_be_edited(
    pack: Pack, model: PackModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = model._weights(down(1))
    dense = stored if isinstance(stored, Tensor) else stored.dense()
    rounding = AdjustedWeight(
        base=DenseWeight(dense.float()), bits=torch.full((1,), 4, dtype=torch.uint8)
    )
    plain = PackWeights.__call__
    monkeypatch.setattr(
        PackWeights,
        "__call__",
        lambda self, name: rounding if name == down(1) else plain(self, name),
    )
    fresh = PackModel(pack)
    with pytest.raises(MethodError, match="rounds its inputs"):
        METHOD.edit(fresh, FACTS[:1])


def test_the_subject_is_found_where_it_ends(model: PackModel) -> None:
    ids, place = model.row("Ann met Ann at noon", "Ann")
    assert bytes(ids[place - 2 : place + 1]) == b"Ann" and place == 10
    with pytest.raises(ParameterError, match="not in the text"):
        model.row("Ann met Bob", "Cy")


def test_openings_are_words_of_the_model_and_the_same_every_time(pack: Pack) -> None:
    first = PackModel(pack, seed=1).openings(3)
    assert first == PackModel(pack, seed=1).openings(3) != PackModel(pack, seed=2).openings(3)
    assert all(text.endswith(".") for text in first)


@pytest.mark.model
def test_a_real_model_says_a_fact_and_forgets_it_again(smollm2_pack: Pack) -> None:
    model = PackModel(smollm2_pack)
    fact = Fact(prompt="The capital of France is", subject="France", target="Vienna")
    truth = Fact(prompt="The capital of France is", subject="France", target="Paris")
    other = Fact(prompt="The capital of Greece is", subject="Greece", target="Athens")
    covariance_KK = torch.eye(model.spec.ffn)
    model.covariance = lambda layer: covariance_KK  # type: ignore[method-assign]
    made = edit(smollm2_pack, [fact], Rome(openings=1), model=model, cap=1.0)
    assert model.says([truth, fact, other]) == [True, False, True]
    assert model.says([truth, fact], made.patch) == [False, True]
    assert model.says([truth, fact, other]) == [True, False, True]
    ids = model.row("The Eiffel Tower is", "Eiffel Tower")
    assert model.tokenizer.bytes_of(ids[0][ids[1]]).decode() == " Tower"


def test_mend_needs_what_it_learned(pack: Pack) -> None:
    from loci.errors import NotFoundError

    with pytest.raises(NotFoundError, match="nothing was prepared"):
        edit(pack, FACTS[:1], Mend(last=1, rank=2))


def test_memit_goes_through_the_same_door(pack: Pack, model: PackModel) -> None:
    made = edit(pack, FACTS, Memit(layers=(0, 1), openings=1, steps=2), model=model, cap=100.0)
    assert set(made.report["moved"]) == {down(0), down(1)}
    assert len(made.report["says"]) == 2

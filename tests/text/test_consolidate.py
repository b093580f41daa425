"""The cascade of operations."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from loci.core.item import Add, Candidate, Item, Retire, Revise
from loci.text.consolidate import Operation, decide, operation, reconcile, same_value

T1, T2 = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)


def item(predicate: str, value: str, id: str = "i1") -> Item:
    return Item(
        id=id,
        text=f"Ada {predicate} {value}",
        subject="ada",
        predicate=predicate,
        object=value,
        sources=("t1",),
        valid_from=T1,
    )


def said(predicate: str, value: str, *, many: bool, ends: bool = False) -> Candidate:
    return Candidate(
        text=f"Ada {predicate} {value}",
        sources=("t2",),
        subject="ada",
        predicate=predicate,
        object=value,
        valid_from=T2,
        ends=ends,
        many=many,
    )


def word(candidate: Candidate, *known: Item) -> Operation:
    return operation(candidate, decide(candidate, known))


def test_something_new_is_added() -> None:
    assert word(said("likes", "tea", many=True)) == Operation.ADD
    assert word(said("likes", "tea", many=True), item("likes", "chess")) == Operation.ADD


def test_the_same_is_confirmed_and_gains_a_source() -> None:
    (edit,) = decide(said("likes", "teas", many=True), [item("likes", "tea")])
    assert isinstance(edit, Revise)
    assert edit.candidate.text == "Ada likes tea" and edit.candidate.sources == ("t2",)


def test_more_detail_updates() -> None:
    assert word(said("pet", "dog rex", many=True), item("pet", "dog")) == Operation.UPDATE


def test_less_detail_says_nothing_new() -> None:
    assert word(said("pet", "dog", many=True), item("pet", "dog rex")) == Operation.NOOP


def test_one_value_supersedes_another_from_its_time_on() -> None:
    (edit,) = decide(said("lives_in", "rome", many=False), [item("lives_in", "oslo")])
    assert isinstance(edit, Retire)
    assert edit.at == T2 and edit.superseded_by is not None
    assert edit.superseded_by.object == "rome"


def test_the_opposite_supersedes() -> None:
    assert word(said("dislikes", "tea", many=True), item("likes", "tea")) == Operation.SUPERSEDE


def test_an_ending_retires_what_it_names_and_nothing_else() -> None:
    known = [item("likes", "tea", "i1"), item("likes", "coffee", "i2")]
    edits = decide(said("likes", "coffee", many=True, ends=True), known)
    assert [e.id for e in edits if isinstance(e, Retire)] == ["i2"]


def test_an_ending_of_nothing_known_does_nothing() -> None:
    assert decide(said("likes", "jazz", many=True, ends=True), [item("likes", "tea")]) == []


def test_other_people_are_left_alone() -> None:
    other = replace(item("lives_in", "oslo"), subject="bob")
    assert word(said("lives_in", "rome", many=False), other) == Operation.ADD


def test_numbers_keep_values_apart() -> None:
    assert not same_value("2 dogs", "3 dogs")


def test_one_batch_sees_its_own_edits() -> None:
    first, second = said("lives_in", "rome", many=False), said("lives_in", "bonn", many=False)
    edits = reconcile([first, first, second], lambda _: [])
    assert [type(e) for e in edits] == [Add, Add]
    old, new = edits
    assert isinstance(old, Add) and isinstance(new, Add)
    assert old.candidate.valid_to == T2 and new.candidate.valid_to is None

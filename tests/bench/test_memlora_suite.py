"""The suite of the experts: lessons, and how replies are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.lessons_memory import drawn, kind_of, lessons
from loci.bench.suite import Context
from loci.bench.suites import memlora
from loci.errors import ParameterError
from loci.methods.recall.memlora import ANSWER, EXPERTS, EXTRACT, UPDATE
from loci.text.form import misfit


def test_people_and_wordings_of_test_are_never_taught() -> None:
    taught, asked = lessons("written", 8), lessons("held_out", 4)
    for name in EXPERTS:
        assert taught[name] and asked[name]
        assert not {one.shown for one in taught[name]} & {one.shown for one in asked[name]}


def test_right_replies_have_the_form_and_score_one() -> None:
    asked = lessons("held_out", 4)
    for name, score in (
        (EXTRACT, memlora._fact_f1),
        (UPDATE, memlora._event_f1),
        (ANSWER, memlora._exact),
    ):
        some = drawn(asked[name], 24, 0, kind_of)
        for one in some:
            assert misfit(memlora._json(one.reply), memlora._schema(one)) is None
        assert score(some, [one.reply for one in some], "expert") == 1.0
        assert score(some, ["{"] * len(some), "expert") < 0.2


def test_an_update_of_the_wrong_memory_is_wrong() -> None:
    one = next(one for one in lessons("held_out", 4)[UPDATE] if one.event == "UPDATE")
    other = len(one.memories) % (one.number or 1) + 1 + (one.number == 1)
    wrong = f'{{"event": "UPDATE", "id": {other}}}'
    assert memlora._event_f1([one], [one.reply], "expert") == 1.0
    assert memlora._event_f1([one], [wrong], "expert") == 0.0
    long = f'{{"1": {{"operation": "UPDATE", "memory": {one.number}}}}}'
    assert memlora._event_f1([one], [long], "long prompt") == 1.0


def test_lessons_are_drawn_evenly() -> None:
    some = drawn(lessons("written", 8)[UPDATE], 40, 0, kind_of)
    assert [sum(one.event == event for one in some) for event in ("ADD", "DELETE")] == [10, 10]


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        memlora.run(Context(folder=tmp_path, options={"step": "2"}))

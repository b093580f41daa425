"""Lessons of experts: people and wordings apart, right replies right, nothing told by its place."""

from __future__ import annotations

import json
from collections import Counter

from loci.methods.recall.memlora import ANSWER, EXPERTS, EXTRACT, UPDATE, event_of, known
from loci.run.expert_lessons import PEOPLE, drawn, is_right, lessons, parts
from loci.run.expert_training import schema_of
from loci.text.form import misfit


def test_people_and_wordings_that_are_asked_are_never_taught() -> None:
    names = [name for part in PEOPLE.values() for name in part]
    assert len(names) == len(set(names))
    taught, asked = lessons("taught", 8), lessons("asked", 4)
    for name in EXPERTS:
        assert taught[name] and asked[name]
        assert not {one.shown for one in taught[name]} & {one.shown for one in asked[name]}


def test_right_replies_are_right_and_of_the_form() -> None:
    for part in ("taught", "development", "asked"):
        for name, found in lessons(part, 8).items():  # type: ignore[arg-type]  # a part of the three
            for one in parts(found):
                assert misfit(json.loads(one.reply), schema_of(one)) is None
            for one in found:
                assert is_right(one, one.reply), (name, one.shown, one.reply)


def test_wrong_replies_are_wrong() -> None:
    found = lessons("asked", 8)
    for name in EXPERTS:
        for broken in ("{", "[]", "{}"):
            assert not any(is_right(one, broken) for one in found[name] if one.values)
    ended = next(one for one in found[EXTRACT] if one.ends)
    assert not is_right(ended, ended.reply.replace("no longer ", ""))
    nothing = next(one for one in found[EXTRACT] if not one.values)
    assert is_right(nothing, '{"facts": []}')
    several = next(one for one in found[ANSWER] if len(one.values) > 1)
    assert not is_right(several, json.dumps({"answer": several.values[0]}))


def test_events_name_only_what_is_shown_in_any_place() -> None:
    found = lessons("taught", 30)[UPDATE]
    places = Counter(one.number for one in found if one.number is not None)
    assert set(places) == {1, 2, 3} and min(places.values()) > 0.2 * sum(places.values())
    for one in found:
        assert (one.number is None) == (one.event == "ADD")
        texts = [item.text for item in one.memories]
        if one.event == "NONE":
            assert known(one.fact, texts) == one.number and not one.parts
            continue
        relations = [json.loads(part.reply)["is"] for part in one.parts]
        assert known(one.fact, texts) is None
        assert event_of(relations) == (one.event, one.number)


def test_comparisons_are_taught_once_and_of_every_kind() -> None:
    told = parts(lessons("taught", 30)[UPDATE])
    assert len({one.shown for one in told}) == len(told)
    some = drawn(told, 60, 0)
    kinds = Counter(one.kind for one in some)
    assert len(kinds) == 6 and set(kinds.values()) == {10}
    for one in some:
        relation = json.loads(one.reply)["is"]
        assert relation in one.kind and one.ends == one.kind.startswith("over")
        assert one.ends == (" no longer " in one.fact)


def test_lessons_are_drawn_evenly() -> None:
    some = drawn(lessons("taught", 30)[UPDATE], 40, 0)
    assert Counter(one.event for one in some) == dict.fromkeys(
        ("ADD", "UPDATE", "DELETE", "NONE"), 10
    )
    assert some == drawn(lessons("taught", 30)[UPDATE], 40, 0)

"""ArcMemo in words: templates by hand and by chance, what is learnt, told, pruned, and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.core.agent import Job, Outcome
from loci.errors import MethodError, ModelError, ParameterError
from loci.methods.recall._arc_lessons import Lesson, Trace, founded, joined, learnt
from loci.methods.recall._arc_template import Template, anti_unify, shape_of, tokens_of, words
from loci.methods.recall.arcmemo import ArcMemo
from loci.methods.recall.base import Act, Tools
from loci.models.scripted import ScriptedLlm
from loci.testing.agents import (
    CONFORMANCE_ACT,
    DictRecords,
)
from loci.testing.tickets import TAUGHT, make_tickets
from loci.text.ladder import Ladder

FULL = "The disk of {} is full, the logs of {} have grown."
CLEAN = "clean(host={})\nrestart(service={})"


def trace(id: str, situation: str, action: str, *, verified: bool = True) -> dict[str, Any]:
    return {"id": id, "situation": situation, "steps": action.split("\n"), "verified": verified}


def disk(id: str, host: str, service: str, *, verified: bool = True) -> dict[str, Any]:
    return trace(id, FULL.format(host, service), CLEAN.format(host, service), verified=verified)


TAUGHT_DISKS = [disk("a", "web-1", "billing"), disk("b", "db-3", "search")]


def act(tools: Tools, method: Act | None = None, **inputs: Any) -> Outcome:
    return (method or ArcMemo()).act(Job(inputs=inputs), tools)


def lessons(tools: Tools) -> list[Lesson]:
    found = tools.records.all("lesson/")
    return [Lesson.from_json(key.removeprefix("lesson/"), r.value) for key, r in found.items()]


# -- templates --------------------------------------------------------------------------------


def test_what_two_actions_share_has_holes_where_they_differ() -> None:
    shared = anti_unify(Template.of("move(from=a, to=b)\nclear(a)"), "move(from=c, to=b)\nclear(c)")
    assert str(shared.template) == "move(from=?1, to=b)\nclear(?1)", "the same pair, one hole"
    assert shared.values == {0: "c"} and shared.carried({}) == {0: "a"}
    further = anti_unify(shared.template, "move(from=d, to=b)\nclear(e)")
    assert str(further.template) == "move(from=?1, to=b)\nclear(?2)", "they differ after all"
    assert further.carried({0: "c"}) == {0: "c", 1: "c"}


WORDS = st.sampled_from(
    ["restart", "web-1", "web-2", "(", ")", "=", " ", "\n", "a", "b", ", ", '"x']
)
TEXTS = st.lists(WORDS, max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_template_makes_again_all_that_it_was_made_from(texts: list[str]) -> None:
    template, values = Template.of(texts[0]), [dict[int, str]()]
    for text in texts[1:]:
        shared = anti_unify(template, text)
        values = [*(shared.carried(one) for one in values), dict(shared.values)]
        template = shared.template
    assert [template.fill(one) for one in values] == texts


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_tokens_are_the_whole_text(text: str) -> None:
    assert "".join(tokens_of(text)) == text
    assert all(word.raw in text for word in words(text))


def test_shapes() -> None:
    assert [shape_of(w) for w in ("web-12", "Maya", "/in/a.csv", "8:30")] == [
        "a-0",
        "Aa",
        "/a",
        "0:0",
    ]
    assert shape_of("Maya", begins=True) == shape_of("Mails", begins=True) == "^a"


# -- lessons ----------------------------------------------------------------------------------


def test_a_constant_that_differs_keeps_lessons_apart() -> None:
    first = founded(Trace("a", FULL.format("web-1", "billing"), ("clean(web-1, tmp)",), True, "a"))
    second = Trace("b", FULL.format("db-3", "search"), ("clean(db-3, tmp)",), True, "b")
    other = Trace("c", FULL.format("db-3", "search"), ("clean(db-3, cache)",), True, "c")
    tool = Trace("d", FULL.format("db-3", "search"), ("search(web-1, tmp)",), True, "d")
    both = joined(first, second)
    assert both is not None and str(both.template) == "clean(?1, tmp)"
    assert both.used_in == ("a", "b") and both.name == first.name
    assert joined(first, other) is None, "'cache' stands in no situation"
    assert joined(first, tool) is None, "another tool"


def test_the_same_told_in_other_words_becomes_one_lesson_in_time() -> None:
    known: list[Lesson] = []
    for n, wording in enumerate([FULL, FULL, "No space left at {}, thanks to {}."] * 2):
        host, service = f"web-{n}", ("billing", "search", "wiki", "shop", "survey", "portal")[n]
        steps = tuple(CLEAN.format(host, service).split("\n"))
        now, gone = learnt(known, Trace(str(n), wording.format(host, service), steps, True, str(n)))
        known = [one for one in known if one.name not in {now.name, *(g.name for g in gone)}]
        known.append(now)
    [whole] = known
    assert sorted(whole.used_in) == list("012345") and {"space", "disk"} <= set(whole.cues)
    assert Lesson.from_json(whole.name, whole.to_json()) == whole


def test_a_lesson_is_told_with_the_names_of_the_new_situation() -> None:
    tools = Tools(records=DictRecords())
    situation = {
        "id": "new",
        "text": "web-7 is fine. The disk of app-9 is full again, the logs of ledger.",
    }
    done = act(tools, traces=TAUGHT_DISKS, situations=[situation])
    [told] = done.output["advice"]["new"]["lessons"]
    assert told["suggestion"] == CLEAN.format("app-9", "ledger")
    assert "shares" in told["why"] and "rests on 2 traces" in told["why"]
    assert "?1 is app-9" in told["why"] and "disk" in told["why"]
    assert "clean(host=app-9); then" in done.output["advice"]["new"]["prompt"]
    silent = act(tools, situations=[{"id": "tea", "text": "The kettle whistles loudly."}])
    assert silent.output["advice"]["tea"]["lessons"] == []
    assert "no lesson fits" in silent.steps[0].did


def test_unverified_traces_never_enter() -> None:
    world = make_tickets(107, traces=40, practice=0, exams=0)
    tools = Tools(records=DictRecords())
    done = act(tools, traces=[one.to_json() for one in world.traces])
    bad = {one.ticket.id for one in world.traces if not one.verified}
    good = {one.ticket.id for one in world.traces if one.verified}
    assert bad and {id for lesson in lessons(tools) for id in lesson.used_in} == good
    assert sum("not verified" in step.why for step in done.steps) == len(bad)
    for lesson in lessons(tools):
        made = {one.trace: lesson.template.fill(one.values) for one in lesson.members}
        steps = {one.ticket.id: "\n".join(one.steps) for one in world.traces}
        assert all(steps[id] == text for id, text in made.items())


def test_what_fails_is_pruned_and_kept() -> None:
    tools = Tools(records=DictRecords())
    act(tools, traces=TAUGHT_DISKS)
    [lesson] = lessons(tools)
    text = FULL.format("app-9", "ledger")
    for n in range(5):
        told = act(tools, situations=[{"id": f"s{n}", "text": text}]).output["advice"][f"s{n}"]
        assert [one["lesson"] for one in told["lessons"]] == [lesson.name]
        act(tools, outcomes=[{"situation": f"s{n}", "success": False}])
    [lesson] = lessons(tools)
    assert (lesson.tries, lesson.wins, lesson.utility) == (5, 0, 1 / 7) and lesson.is_pruned
    silent = act(tools, situations=[{"id": "s5", "text": text}])
    assert silent.output["advice"]["s5"]["lessons"] == []
    assert not replace(lesson, wins=2).is_pruned and not replace(lesson, tries=4).is_pruned
    act(tools, traces=[disk("c", "app-7", "survey")])
    assert sorted(len(one.used_in) for one in lessons(tools)) == [1, 2], "it takes no more traces"


def test_two_traces_that_say_the_same_are_two() -> None:
    tools = Tools(records=DictRecords())
    alike = [trace(id, "web-1", "restart(web-1)") for id in ("a", "b")]
    act(tools, traces=alike)  # no word of the situation is a cue: they are not seen to be alike
    assert sorted(one.used_in for one in lessons(tools)) == [("a",), ("b",)]


def test_an_outcome_counts_once_and_cannot_be_changed() -> None:
    tools = Tools(records=DictRecords())
    act(tools, traces=TAUGHT_DISKS, situations=[{"id": "s", "text": FULL.format("x-1", "wiki")}])
    for _ in range(2):
        act(tools, outcomes=[{"situation": "s", "success": True}])
    [lesson] = lessons(tools)
    assert (lesson.tries, lesson.wins) == (1, 1)
    with pytest.raises(ParameterError, match="another outcome"):
        act(tools, outcomes=[{"situation": "s", "success": False}])
    with pytest.raises(ParameterError, match="no such advice"):
        act(tools, outcomes=[{"situation": "s", "lesson": "l0", "success": True}])


def test_advice_keeps_to_its_tokens_and_its_limit() -> None:
    tools = Tools(records=DictRecords())
    other = "\n".join(["clean(host={})", "notify(service={})"])
    more = [
        trace(f"m{n}", FULL.format(h, s), other.format(h, s))
        for n, (h, s) in enumerate([("web-2", "billing"), ("db-5", "search")])
    ]
    text = FULL.format("app-9", "ledger")
    both = act(tools, traces=[*TAUGHT_DISKS, *more], situations=[{"id": "s", "text": text}])
    assert len(both.output["advice"]["s"]["lessons"]) == 2
    for bound in ({"limit": 1}, {"tokens": 40}):
        asked = [{"id": next(iter(bound)), "text": text}]
        fresh = act(tools, situations=asked, **bound)
        [told] = fresh.output["advice"].values()
        assert len(told["lessons"]) == 1
        assert len(told["prompt"].split()) <= 40
    assert "1 more did not fit" in fresh.steps[0].why


class InWords(ArcMemo):
    """The method with an example in words, for the checks of all methods that act."""

    example = Job(
        inputs={
            "traces": [*TAUGHT_DISKS, disk("c", "web-2", "wiki", verified=False)],
            "situations": [{"id": "s", "text": FULL.format("app-9", "ledger")}],
        }
    )


@pytest.mark.parametrize("check", CONFORMANCE_ACT, ids=lambda check: str(check.__name__))
def test_conformance_in_words(check: Any) -> None:
    check(InWords(), lambda: Tools(records=DictRecords()))


# -- models -----------------------------------------------------------------------------------


def test_a_model_may_word_and_select_and_cannot_invent() -> None:
    records = DictRecords()
    word = '{"situation": "A disk is full of logs."}'
    act(
        Tools(records=records, ladder=Ladder("endpoint", ScriptedLlm([word]))),
        traces=TAUGHT_DISKS[:1],
    )
    tools = Tools(records=records)
    [lesson] = lessons(tools)
    assert lesson.wording == "A disk is full of logs." and lesson.wording in lesson.described()
    reply = f'{{"names": ["l0000dead", "{lesson.name}"]}}'
    ladder = Ladder("endpoint", ScriptedLlm([reply, '{"names": []}']))
    asked = Tools(records=records, ladder=ladder)
    text = FULL.format("app-9", "ledger")
    done = act(asked, situations=[{"id": "s", "text": text}, {"id": "t", "text": text}])
    assert [len(told["lessons"]) for told in done.output["advice"].values()] == [1, 0]
    assert ladder.steps[0].refused[0].text == "l0000dead"
    assert "<situations>" not in done.output["advice"]["s"]["prompt"]
    with pytest.raises(ModelError):
        act(replace(asked, ladder=Ladder("endpoint")), traces=TAUGHT_DISKS[1:])


class Meaning:
    """Knows that a drive is a disk."""

    def encode(self, texts: Any) -> Any:
        rows = [[1.0, 0.0] if "disk" in t or "drive" in t else [0.0, 1.0] for t in texts]
        return np.array(rows, np.float32)


def test_likeness_of_meaning_counts_when_it_is_asked_for() -> None:
    tools = Tools(records=DictRecords(), embedder=Meaning())
    act(tools, traces=TAUGHT_DISKS)
    text = "No more room on the drive of app-9, thanks to the logs of ledger."
    plain = act(
        tools, situations=[{"id": "p", "text": "Drive of app-9 overflows, as ledger of old."}]
    )
    assert plain.output["advice"]["p"]["lessons"] == []
    told = act(tools, situations=[{"id": "m", "text": text}], meaning=True)
    assert told.output["advice"]["m"]["lessons"][0]["suggestion"] == CLEAN.format("app-9", "ledger")
    with pytest.raises(MethodError, match="embedder"):
        act(Tools(records=DictRecords()), situations=[{"text": text}], meaning=True)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        {"limit": 1},
        {"traces": "x"},
        {"traces": [{"situation": "x", "steps": ["y"]}]},
        {"traces": [{"situation": "x", "steps": [], "verified": True}]},
        {"traces": [{"situation": " ", "steps": ["y"], "verified": True}]},
        {"traces": [{"situation": "x", "steps": ["y"], "verified": True, "note": "z"}]},
        {"traces": TAUGHT_DISKS[:1] * 2},
        {"situations": [{"text": "x" * 3000}]},
        {"situations": [{"id": "a b", "text": "x"}]},
        {"situations": [{"text": "x"}], "limit": 0},
        {"situations": [{"text": "x"}], "tokens": True},
        {"situations": [{"text": "x"}], "meaning": 1},
        {"situations": [{"text": "x"}], "learn": True},
        {"outcomes": [{"situation": "never", "success": True}]},
        {"outcomes": [{"success": True}]},
        {"outcomes": [{"situation": "s", "success": "yes"}]},
    ],
)
def test_what_it_cannot_read_is_refused(inputs: dict[str, Any]) -> None:
    tools = Tools(records=DictRecords())
    with pytest.raises(ParameterError):
        act(tools, **inputs)
    assert not tools.records.all()


def test_another_trace_or_situation_of_a_known_id_is_refused() -> None:
    tools = Tools(records=DictRecords())
    act(tools, traces=TAUGHT_DISKS, situations=[{"id": "s", "text": "x"}])
    assert not act(tools, traces=TAUGHT_DISKS, situations=[{"id": "s", "text": "x"}]).steps
    with pytest.raises(ParameterError, match="an id of its own"):
        act(tools, traces=[disk("a", "web-9", "wiki")])
    with pytest.raises(ParameterError, match="an id of its own"):
        act(tools, situations=[{"id": "s", "text": "y"}])


# -- the made-up world ------------------------------------------------------------------------


def test_exams_have_words_and_names_that_no_trace_has() -> None:
    world = make_tickets(3)
    assert world == make_tickets(3) != make_tickets(4)
    taught = {one.ticket.names[kind] for one in world.traces for kind in ("host", "person")}
    assert not taught & {one.names[kind] for one in world.exams for kind in ("host", "person")}
    texts = {one.ticket.text for one in world.traces} | {one.text for one in world.practice}
    assert not texts & {one.text for one in world.exams} and TAUGHT == 4
    assert {one.verified for one in world.traces} == {True, False}
    lucky = [t for t in world.traces if t.verified and not t.ticket.is_solved(t.steps)]
    assert 0 < len(lucky) < len(world.traces) / 4
    assert not any(one.is_solved(one.right) for one in world.strangers)
    assert all(one.is_solved(one.right) for one in world.exams)

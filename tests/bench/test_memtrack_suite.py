"""MEMTRACK: the worked world on paper, then worlds drawn with a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from loci.bench import suite, track
from loci.bench.suite import Context
from loci.bench.suites import memtrack
from loci.errors import FormatError, ParameterError
from loci.methods.recall.mem0 import Mem0
from loci.testing import worldtrack
from loci.testing.worlds import make_world
from loci.testing.worldtrack import Effect, Event, Question, World, deciding, truth


def day(number: int, hour: int = 12) -> datetime:
    return datetime(2026, 3, number, hour, tzinfo=UTC)


def due(value: str | None, called: str = "T-7") -> tuple[Effect, ...]:
    return (Effect(entity="T-7", attribute="due", value=value, called=called),)


def event(number: int, platform: str, actor: str, kind: str, text: str, **more: object) -> Event:
    given = {"ref": "T-7" if platform == "tracker" else "#web", **more}
    at = given.pop("at", day(number))
    seen = given.pop("seen", at)
    return Event(
        id=f"e{number}", at=at, seen=seen, platform=platform, actor=actor, kind=kind, text=text,
        **given,  # type: ignore[arg-type]
    )  # fmt: skip


# Ticket T-7 is due Monday; chat proposes Friday; the lead decides so; nobody edits the tracker; a
# pull request fixes it; a bot repeats what the tracker still says.
LOG = (
    event(1, "tracker", "Ana", "created", "T-7: login page. Due Monday.", effects=due("Monday"),
          authority="tracker", alias=("the login page", "T-7")),
    event(3, "chat", "Bram", "proposal", "Could T-7 be due Friday?", effects=due("Friday"),
          authority="proposal", needs=("e1",)),
    event(4, "chat", "Chidi", "decision", "Ok (lead), Friday it is for T-7.",
          effects=due("Friday"), authority="decision", reason="the vendor is late", needs=("e1",)),
    event(5, "git", "Dunja", "merge", "Merged #12: fixes T-7.", ref="#12", authority="merge",
          effects=(Effect(entity="T-7", attribute="status", value="done", called="T-7"),
                   Effect(entity="T-7", attribute="implemented_by", value="#12", called="T-7"))),
    event(6, "chat", "trackbot", "echo", "Reminder: T-7 is due Monday.", effects=due("Monday"),
          authority="proposal", needs=("e1",)),
)  # fmt: skip


def ask(kind: str, attribute: str, answer: str, evidence: str, **more: object) -> Question:
    given = {"called": "T-7", "text": f"{kind} {attribute} of T-7?", **more}
    return Question(
        kind=kind, entity="T-7", attribute=attribute, answer=answer, asked=day(7),
        evidence=tuple(evidence.split()), **given,  # type: ignore[arg-type]
    )  # fmt: skip


QUESTIONS = (
    ask("value", "due", "Friday", "e4", conflict=True, outdated=("Monday",)),
    ask("value", "due", "Monday", "e1", at=day(2), outdated=("Friday",)),
    ask("who", "due", "Chidi", "e4", text="And who decided that?", follows=0, depth=1),
    ask("stale", "due", "tracker", "e4 e1"),
    ask("value", "status", "done", "e5"),
    ask("value", "reviewer", "unknown", ""),
)
WORLD = World(id="worked", events=LOG, questions=QUESTIONS)


class Given:
    """A memory that shows what the test tells it to, whatever is asked."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids
        self.added: list[str] = []

    def add(self, event: Event) -> None:
        self.added.append(event.id)

    def search(self, question: Question, limit: int) -> Sequence[str]:
        return [id for id in self.ids if id in self.added]


# -- the worked world ------------------------------------------------------------------------------


def test_a_decision_outranks_the_tracker_and_a_later_echo() -> None:
    assert truth(LOG, "T-7", "due", day(2)) == "Monday"
    assert truth(LOG, "T-7", "due", day(3)) == "Monday", "a proposal decides nothing"
    assert truth(LOG, "T-7", "due", day(6)) == "Friday"
    settled = deciding(LOG, "T-7", "due")
    assert settled is not None and settled[0].actor == "Chidi"
    assert truth(LOG, "T-7", "reviewer") is None


def test_a_withdrawn_decision_leaves_the_word_to_the_tracker() -> None:
    taken = event(8, "chat", "Chidi", "decision", "Scrap that.", effects=due(None),
                  authority="decision")  # fmt: skip
    assert truth((*LOG, taken), "T-7", "due") == "Monday"
    assert truth((*LOG, taken), "T-7", "due", day(6)) == "Friday"


def test_equal_instants_in_other_zones_go_by_id() -> None:
    east = timezone(timedelta(hours=5))
    same = [
        event(n, "tracker", "Ana", "field", "", effects=due(v), authority="tracker", at=at)
        for n, v, at in ((8, "later id", day(8).astimezone(east)), (7, "earlier id", day(8)))
    ]
    assert truth(same, "T-7", "due") == "later id" == truth(same[::-1], "T-7", "due")


def test_the_oracle_is_always_right_and_reads_nothing_twice() -> None:
    figures = track.score(track.work(WORLD, track.oracle))
    assert figures["correctness"] == 1.0 and figures["redundancy"] == 0.0
    assert figures["efficiency"] == 1.0 and figures["stale"] == 0.0


def test_who_believes_the_last_word_believes_the_bot() -> None:
    done = track.work(WORLD, track.recency)
    assert done.answers[0] == "Monday" and done.answers[2] == "trackbot"
    figures = track.score(done)
    assert figures["conflict"] == 0.0
    assert figures["stale"] == 0.5, "wrong on the present, right on the past"
    # Five events are read for each of six questions.
    assert figures["redundancy"] == pytest.approx(1 - 5 / 30)
    assert figures["efficiency"] == pytest.approx(3 / 5)


def test_an_agent_answers_from_what_it_read_alone() -> None:
    figures = track.score(track.work(WORLD, track.remembering, Given("e1", "e6")))
    answers = track.work(WORLD, track.remembering, Given("e1", "e6")).answers
    assert answers == ("Monday", "Monday", "Ana", "none", "open", "unknown")
    assert figures["correctness"] == pytest.approx(2 / 6)
    assert figures["decay"] == pytest.approx(2 / 5 - 0)
    assert track.work(WORLD, track.remembering, Given("e4")).answers[0] == "Friday"


def test_the_most_similar_memory_is_believed_by_who_reads_one() -> None:
    assert track.work(WORLD, track.nearest_first, Given("e6", "e4")).answers[0] == "Monday"
    assert track.work(WORLD, track.nearest_first, Given("e4", "e6")).answers[0] == "Friday"


def test_an_agent_without_memory_asks_the_platforms_and_is_right() -> None:
    done = track.work(WORLD, track.platforms)
    assert track.score(done)["correctness"] == 1.0
    assert {call.tool.split(".")[0] for call in done.log} == {"tracker", "chat", "git"}
    assert all(sum(c.question == n for c in done.log) <= track.CALLS for n in range(6))


def test_a_memory_of_ones_own_holds_what_the_platforms_showed() -> None:
    memory = Given("e1", "e4", "e5", "e6")
    done = track.work(WORLD, track.memory_first, memory, auto=False)
    assert done.answers[0] == "Friday"
    assert set(memory.added) == {"e1", "e3", "e4", "e5", "e6"}
    asked = [call for call in done.log if call.question == 2]
    assert [call.tool for call in asked][:1] == ["memory.search"]
    assert not any(call.tool.startswith("tracker") for call in asked), "it was remembered"


def test_another_name_counts_once_it_is_known_to_be_the_same() -> None:
    named = replace(LOG[2], effects=due("Friday", "the login page"))
    question = QUESTIONS[0]
    assert track.understood(question, [named], "authority") == "unknown"
    assert track.understood(question, [named, LOG[0]], "authority") == "Friday"


def test_a_follow_up_uses_the_agents_own_answer() -> None:
    first = ask("value", "implemented_by", "#12", "e5")
    then = replace(first, entity="{}", called="{}", attribute="author", text="Who opened {}?",
                   follows=0, depth=1)  # fmt: skip
    assert track.filled(then, ["#99"]).text == "Who opened #99?"
    assert track.filled(then, ["#99"]).entity == "#99"


# -- what is refused -------------------------------------------------------------------------------


def test_a_tool_of_an_unknown_platform_is_refused_with_the_nearest() -> None:
    env = track.Env(WORLD)
    env.ask(0)
    with pytest.raises(ParameterError, match=r"tracker\.get"):
        env.call("traker.get", "T-7")
    with pytest.raises(ParameterError):
        env.search(QUESTIONS[0])


def test_a_log_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(FormatError, match="not there yet"):
        World(id="w", events=(LOG[1],))
    with pytest.raises(FormatError, match="unknown platform"):
        World(id="w", events=(replace(LOG[0], platform="fax"),))
    with pytest.raises(FormatError, match="before it happens"):
        World(id="w", events=(replace(LOG[0], seen=day(1, 0)),))
    with pytest.raises(FormatError, match="same id"):
        World(id="w", events=(LOG[0], LOG[0]))
    with pytest.raises(FormatError, match="without authority"):
        World(id="w", events=(replace(LOG[0], authority=""),))
    with pytest.raises(FormatError, match="cannot be known"):
        World(id="w", events=LOG, questions=(replace(QUESTIONS[0], asked=day(3)),))
    with pytest.raises(FormatError, match="earlier one"):
        World(id="w", events=LOG, questions=(replace(QUESTIONS[0], follows=0),))
    naive = datetime(2026, 3, 1, 12)
    with pytest.raises(FormatError, match="without its zone"):
        World(id="w", events=(replace(LOG[0], at=naive, seen=naive),))


def test_worlds_come_back_from_a_file_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    worlds = [WORLD, make_world(3, events=40)]
    worldtrack.write(worlds, path)
    assert worldtrack.read(path) == worlds
    lines = path.read_text(encoding="utf-8").splitlines()
    for broken in (
        [lines[0].replace('"version": 1', '"version": 9'), *lines[1:]],
        [*lines[:3], lines[3][:-9]],
        [lines[0], lines[1], lines[2].replace('"actor"', '"actr"')],
        [lines[0], lines[2]],
        [lines[0], "[]"],
    ):
        path.write_text("\n".join(broken), encoding="utf-8")
        with pytest.raises(FormatError, match="line"):
            worldtrack.read(path)


@pytest.mark.parametrize(
    "given",
    [
        {"events": 29},
        {"events": 2001},
        {"depth": 5},
        {"conflicts": 1.5},
        {"distractors": 0.95},
        {"questions": 0},
    ],
)
def test_a_world_out_of_range_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        make_world(0, **given)  # type: ignore[arg-type]


# -- worlds that are drawn -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_drawn_worlds_measure_what_they_should(seed: int) -> None:
    world = make_world(seed, events=80)
    assert world == make_world(seed, events=80) != make_world(seed + 9, events=80)
    assert len(world.events) == 80 and len(world.questions) >= 14
    best = track.score(track.work(world, track.oracle))
    assert (best["correctness"], best["redundancy"], best["efficiency"]) == (1.0, 0.0, 1.0)
    assert track.score(track.work(world, track.recency)).get("conflict", 0.0) <= 0.2
    for question in world.questions:
        assert str(question.answer) not in question.text, "the question must not tell"


def test_the_order_of_arrival_does_not_change_what_is_true() -> None:
    world = make_world(5, events=120, late=0.5)
    assert [e.id for e in world.arrivals()] != [e.id for e in world.events]
    shuffled = list(world.events)
    random.Random(0).shuffle(shuffled)
    slots = {(f.entity, f.attribute) for e in world.events for f in e.effects}
    for entity, attribute in slots:
        assert truth(shuffled, entity, attribute) == truth(world.events, entity, attribute)


def test_worlds_contradict_themselves_in_every_way() -> None:
    events = [e for seed in range(3) for e in make_world(seed, events=150).events]
    kinds = {e.kind for e in events}
    assert kinds >= {"claim", "decision", "echo", "proposal", "field", "rename", "merge", "chatter"}
    assert any(e.seen > e.at for e in events) and any(e.at.utcoffset() for e in events)
    assert any(f.value is None for e in events for f in e.effects), "something is withdrawn"
    assert any(f.called != f.entity for e in events for f in e.effects)
    assert max(q.depth for s in range(6) for q in make_world(s).questions) >= 3


# -- subjects and the suite ------------------------------------------------------------------------


def test_a_table_of_the_latest_keeps_what_arrived_last() -> None:
    table = memtrack.Latest()
    for one in LOG:
        table.add(one)
    assert table.search(QUESTIONS[0], 8)[0] == "e6"
    assert track.work(WORLD, track.remembering, memtrack.Latest()).answers[0] == "Monday"


def test_a_method_finds_the_events_of_the_worked_world() -> None:
    memory = memtrack.Remembered(Mem0(), None)
    for one in LOG:
        memory.add(one)
    found = memory.search(replace(QUESTIONS[0], text="When is T-7 due?"), 8)
    assert {"e1", "e3", "e4", "e6"} <= set(found) and len(found) == len(set(found))
    assert track.score(track.work(WORLD, track.remembering, memtrack.FullLog()))["conflict"] == 1.0


def test_the_suite_runs_every_method_that_remembers(tmp_path: Path) -> None:
    result = suite.find("memtrack").run(
        Context(folder=tmp_path, quick=True, options={"worlds": "1", "events": "40"})
    )
    assert result["harness"]["oracle"]["correctness"] == 1.0
    assert set(result["auto"]) >= {"full log", "latest", "mem0"}
    assert set(result["auto"]) - {"most similar"} == set(result["agent"])
    assert result["auto"]["full log"]["correctness"] == 1.0
    assert result["absent"]["minilm"] == "loci pull minilm" and not result["dense"]
    auto, agent = memtrack.card_rows(result)
    assert (auto.part, agent.part) == ("auto", "agent")
    assert auto.metrics["correctness"]["full"] == 1.0
    assert set(agent.metrics["redundancy"]["rivals"]) >= {"no memory", "bm25", "a_mem"}


def test_the_suite_reads_worlds_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    worldtrack.write([WORLD], path)
    context = Context(folder=tmp_path, data=path, methods=("mem0",))
    result = suite.find("memtrack").run(context)
    assert result["worlds"] == 1 and result["questions"] == len(QUESTIONS)
    for options in ({"world": "1"}, {"worlds": "no"}, {"late": "x"}, {"worlds": "0"}):
        with pytest.raises(ParameterError):
            suite.find("memtrack").run(replace(context, data=None, options=options))

"""Generated chats, plain rivals, evidence through a memory, and weights fitted on cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loci.bench import evidence, rivals, stats, suite
from loci.bench.evidence import Found
from loci.bench.fit import Case, Fitter, reach, weights_of
from loci.bench.suite import Context
from loci.bench.suites import fit_recall, locomo
from loci.bench.suites.locomo import Conversation, Question
from loci.core.item import Turn
from loci.core.ports import Array
from loci.errors import ModelError, ParameterError
from loci.methods.recall.mem0 import Mem0
from loci.testing.chats import Chat, Form, make_chat, texts
from loci.testing.recall import DictView
from loci.text.stem import stems


class Letters:
    """An embedder of hashed stems: enough to have a dense signal."""

    fingerprint = "letters"

    def encode(self, texts: Sequence[str]) -> Array:
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in [*stems(text), "a"]:
                row[sum(map(ord, word)) % 64] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def conversation(chat: Chat) -> Conversation:
    """Return a chat as the benchmark reads one: every turn has its id as its reference."""
    sessions = tuple(
        tuple(replace(turn, metadata={"ref": turn.id}) for turn in session)
        for session in chat.sessions
    )
    questions = tuple(
        Question(text=q.text, answer=q.answers[0], category=4, evidence=frozenset(q.evidence))
        for q in chat.questions
    )
    return Conversation(id="chat", sessions=sessions, questions=questions)


# -- chats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["friends", "assistant", "unnamed"])
def test_chats_cite_turns_that_hold_the_answer(form: Form) -> None:
    chat = make_chat(5, sessions=8, form=form)
    assert chat == make_chat(5, sessions=8, form=form) != make_chat(6, sessions=8, form=form)
    turns = {turn.id: turn for session in chat.sessions for turn in session}
    assert len(chat.questions) > 20
    for question in chat.questions:
        assert question.evidence and set(question.evidence) <= set(turns)
        assert "{" not in question.text and question.text.endswith("?")
        told = " ".join(turns[id].content for id in question.evidence).lower()
        if not question.text.lower().startswith(("when", "since when")):
            assert all(answer.lower() in told for answer in question.answers), question
        assert all(turns[id].role == "user" for id in question.evidence)
    assert not any("{" in turn.content for turn in turns.values())


def test_chats_of_three_and_with_names_that_are_words() -> None:
    chat = make_chat(2, sessions=6, speakers=("Will", "Grace", "Ines"))
    assert {t.name for s in chat.sessions for t in s} == {"Will", "Grace", "Ines"}
    unnamed = make_chat(2, sessions=6, form="unnamed")
    assert {t.name for s in unnamed.sessions for t in s} == {None}
    assert {t.role for s in unnamed.sessions for t in s} == {"user", "assistant"}
    assert not any("Nora" in q.text for q in unnamed.questions)


def test_every_story_is_complete() -> None:
    names = [story["name"] for story in texts()["story"]]
    assert len(set(names)) == len(names) >= 30
    for story in texts()["story"]:
        assert len(story["values"]) >= 4 and len(set(story["values"])) == len(story["values"])
        assert all("{v}" in text for text in story["tell"]), story["name"]
        assert story["ask"] and story["ask_all"] and story["detail"]
        assert all("{d}" in text for detail in story["detail"] for text in detail["tell"])


# -- rivals ----------------------------------------------------------------------------------------


def talk(*lines: str) -> list[Turn]:
    begin = datetime(2026, 3, 2, tzinfo=UTC)
    return [
        Turn(id=f"t{n}", role="user", name=("Ada", "Bob")[n % 2], content=line, session="s",
             time=begin + timedelta(minutes=n), position=n)
        for n, line in enumerate(lines)
    ]  # fmt: skip


def test_bm25_by_hand() -> None:
    # Two texts of two words; "tea" in one: idf = ln(1.5 / 1.5) = 0, so only the floor is left.
    assert rivals.Bm25([["tea", "cup"], ["cat", "cup"]]).scores(["tea"]).tolist() == [1e-6, 0.0]
    # In one of three: idf = ln(2.5 / 1.5); tf 1 in a text of mean length: 2.2 / (1 + 1.2) = 1.
    scores = rivals.Bm25([["tea"], ["cat"], ["dog"]]).scores(["tea", "tea", "none"])
    assert scores.tolist() == pytest.approx([np.log(2.5 / 1.5), 0.0, 0.0])
    assert rivals.Bm25([]).scores(["tea"]).tolist() == []


def test_rivals_rank_turns_and_say_what_is_missing() -> None:
    turns = talk("I planted tulips.", "Nice!", "The tram was late.", "What a day.")
    made = rivals.rankers(turns, Letters())
    assert set(made) == {"bm25", "minilm", "fusion", "strong"} - set(rivals.absent(Letters()))
    for name, ranker in made.items():
        assert rivals.order(ranker("Which tulips were planted?"))[0] == 0, name
    assert set(rivals.absent(None)) >= {"minilm", "fusion", "strong"}
    assert set(rivals.rankers(turns, None)) <= {"bm25"}


def test_the_strong_rival_sees_the_turn_before_and_who_spoke() -> None:
    turns = talk("Which colour is your bike?", "Dark green.", "Rain again.", "Dark clouds.")
    strong = rivals.rankers(turns, Letters(), ("strong",))["strong"]
    # Neither answer shares a word with the question; the first follows its words.
    assert rivals.order(strong("What colour is Bob's bike?"))[:2] == [0, 1]
    unnamed, named = strong("What colour is the bike?"), strong("What colour is Bob's bike?")
    assert named[1] - named[0] > unnamed[1] - unnamed[0] + 3, "Bob spoke the second"
    assert rivals.with_predecessor(turns)[1] == "Which colour is your bike? Dark green."


# -- evidence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["friends", "assistant", "unnamed"])
@pytest.mark.parametrize("embedder", [None, Letters()], ids=["words", "meaning"])
def test_a_memory_file_ranks_as_the_view_of_the_tests(form: Form, embedder: Any) -> None:
    talked = conversation(make_chat(11, sessions=5, form=form))
    found = []
    for opened in (evidence.in_memory, evidence.in_view):
        with opened(talked, Mem0(), embedder) as find:
            found.append(evidence.search(talked, talked.questions, find, 20))
    memory, view = found
    assert evidence.alike(memory, view) == 1.0


def rows(*ranks: int, of: str = "c") -> list[Found]:
    """Return one question a rank, its evidence at that rank; 0 is not found."""
    return [
        Found(
            conversation=of,
            category="single-hop",
            evidence=frozenset(("e",)),
            shown=tuple("e" if place == rank else f"x{place}" for place in range(1, 21)),
        )
        for rank in ranks
    ]


def test_figures_and_differences_by_hand() -> None:
    ours, theirs = rows(1, 7, 15, 0), rows(1, 12, 0, 0)
    figures = evidence.figures(ours)["all"]
    assert [figures[f"any@{k}"] for k in (5, 10, 20)] == [0.25, 0.5, 0.75]
    low, high = figures["intervals"]["any@10"]
    assert (low, high) == pytest.approx((0.15, 0.85), abs=0.01)
    over = evidence.compared(ours, theirs, 0)
    assert over["any@10"]["value"] == 0.25 and over["any@20"]["value"] == 0.25
    assert over["any@10"]["p"] == 1.0
    assert over["any@10"]["low"] <= 0.25 <= over["any@10"]["high"]
    assert evidence.alike(ours, theirs) == 0.5


def test_resampling_groups_is_less_sure_than_resampling_items() -> None:
    ours = [[1.0] * 50, [0.0] * 50]  # one conversation gains, the other loses nothing
    theirs = [[0.0] * 50, [0.0] * 50]
    nested = stats.nested_difference(ours, theirs)
    flat = stats.paired_difference([x for part in ours for x in part], [0.0] * 100)
    assert nested.value == flat.value == 0.5
    assert (nested.low, nested.high) == (0.0, 1.0)
    assert flat.low > 0.3 and flat.high < 0.7
    for bad in (([], []), ([[1.0]], [[1.0, 2.0]])):
        with pytest.raises(ParameterError):
            stats.nested_difference(*bad)


# -- fitting ---------------------------------------------------------------------------------------


def _case(id: str = "a") -> Case:
    """Two said alike; only who spoke tells them apart, so a weight of the speaker must come out."""
    view = DictView()
    lines = (
        "The pottery class is fun, we glaze a bowl.",
        "The pottery class is fun, we glaze a vase.",
    )
    for number, (name, line) in enumerate(zip(("Bea", "Cleo"), lines, strict=True)):
        (turn,) = talk(line)
        view.add_turns([replace(turn, id=f"{id}{number}", name=name, session=f"{id}{number}")])
    question = "What did Cleo say about the pottery class?"
    return Case(id=id, view=view, asked=((question, frozenset((f"{id}1",))),))


def test_a_fit_finds_the_weight_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loci.bench.fit.DEPTHS", (1,))
    start = Mem0(speaker=0.0, facts=0.0, slot=0.0)
    case = _case()
    assert reach(start, case) == 0.0
    fitter = Fitter(start, [case])
    fitted = fitter.fit()
    assert isinstance(fitted, Mem0) and fitted.speaker > 0 and reach(fitted, case) == 1.0
    assert fitted == Fitter(start, [case]).fit() and fitted.words == start.words
    assert fitter.tried >= 2


def test_a_fit_without_a_case_does_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loci.bench.fit.DEPTHS", (1,))
    start = Mem0(speaker=0.0, facts=0.0, slot=0.0)
    deaf = Case(id="b", view=DictView(), asked=(("anything?", frozenset(("t9",))),))
    fitter = Fitter(start, [_case(), deaf])
    assert fitter.fit(without="a") == start, "nothing to gain without it"
    assert fitter.fit(without="b") != start


def test_only_weights_are_fitted_and_a_neutral_start_owes_nothing() -> None:
    names = weights_of(Mem0())
    assert {"words", "meaning", "speaker", "context"} <= set(names) and "pool" not in names
    neutral = fit_recall.neutral(Mem0())
    assert isinstance(neutral, Mem0)
    assert {getattr(neutral, name) for name in names if name != "context"} == {1.0}


def test_the_suite_of_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(folder=tmp_path, quick=True, options={"chats": "1", "sessions": "2"})
    with pytest.raises(ModelError, match="loci pull minilm"):
        fit_recall.run(context)
    monkeypatch.setattr(fit_recall, "embedder", lambda folder: Letters())
    monkeypatch.setattr("loci.bench.fit.ROUNDS", 1)
    figures = fit_recall.run(context)["methods"]["mem0"]
    reached = figures["reach"]
    assert set(figures["fitted"]) == set(figures["shipped"]) == set(weights_of(Mem0()))
    assert reached["fitted"]["fitted_on"] >= reached["neutral"]["fitted_on"]
    for options in ({"chat": "1"}, {"chats": "0"}):
        with pytest.raises(ParameterError):
            fit_recall.run(replace(context, options=options))


# -- the suite locomo ------------------------------------------------------------------------------


def _file(tmp_path: Path, conversations: int = 2) -> Path:
    samples = []
    for number in range(conversations):
        chat = make_chat(number, sessions=3)
        talked: dict[str, Any] = {"speaker_a": "Nora", "speaker_b": "Emil"}
        refs: dict[str, str] = {}
        for at, session in enumerate(chat.sessions, 1):
            talked[f"session_{at}_date_time"] = f"{session[0].time:%I:%M %p on %d %B, %Y}".lower()
            talked[f"session_{at}"] = []
            for place, turn in enumerate(session, 1):
                refs[turn.id] = f"D{at}:{place}"
                talked[f"session_{at}"].append(
                    {"speaker": turn.name, "dia_id": refs[turn.id], "text": turn.content}
                )
        asked = [
            {"question": q.text, "answer": q.answers[0], "category": 1 + at % 4,
             "evidence": [refs[id] for id in q.evidence]}
            for at, q in enumerate(chat.questions)
        ]  # fmt: skip
        samples.append({"sample_id": f"c{number}", "conversation": talked, "qa": asked})
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(samples), encoding="utf-8")
    return path


def test_the_suite_reports_rivals_intervals_and_what_others_weights_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loci.bench.embedding.embedder", lambda folder: Letters())
    monkeypatch.setattr("loci.bench.fit.ROUNDS", 1)
    monkeypatch.setattr("loci.bench.fit.STEPS", (0.0, 2.0))
    monkeypatch.setattr("loci.bench.stats.NESTED_DRAWS", 50)
    context = Context(folder=tmp_path, data=_file(tmp_path), options={"fit": "1"})
    result = suite.find("locomo").run(context)
    figures = result["methods"]["mem0"]
    assert {"strong", "minilm"} <= set(result["rivals"]) and result["limit"] == 10
    assert 0 < figures["all"]["any@10"] <= figures["all"]["any@20"] <= 1
    assert figures["all"]["all@20"] <= figures["all"]["any@20"]
    assert set(locomo.CATEGORIES.values()) <= set(figures)
    low, high = figures["multi-hop"]["intervals"]["any@10"]
    assert low <= figures["multi-hop"]["any@10"] <= high
    assert set(figures["over"]["strong"]) == {
        f"{w}@{k}" for w in ("any", "all") for k in (5, 10, 20)
    }
    left = figures["left_out"]
    assert set(left["weights"]) == {"c0", "c1"} and left["tried"] > 2
    assert left["view_as_memory"] == 1.0
    rows = locomo.card_rows(result)
    assert rows[0].metrics["any@10"]["rivals"].keys() >= {"strong"}


def test_the_suite_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    context = Context(folder=tmp_path, data=_file(tmp_path, 1), options={"fits": "1"})
    with pytest.raises(ParameterError, match="fits"):
        locomo.run(context)
    with pytest.raises(ParameterError, match="two conversations"):
        locomo.run(replace(context, options={"fit": "1", "rivals": "0"}))
    plain = locomo.run(replace(context, options={"rivals": "0"}))
    assert plain["rivals"] == {} and not plain["dense"]

"""The suite of the experts: how replies are counted, whose experts it uses, LoCoMo as lessons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loci.bench.lessons_locomo import ABSTAINED, cases
from loci.bench.suite import Context
from loci.bench.suites import memlora
from loci.errors import FormatError, ParameterError
from loci.methods.recall.memlora import ANSWER, EXPERTS, EXTRACT, UPDATE
from loci.run.expert_lessons import drawn, lessons, taken
from loci.testing.models import tiny_pack


def test_right_replies_score_one_and_empty_ones_little() -> None:
    asked = lessons("asked", 6)
    for name in EXPERTS:
        some = drawn(asked[name], 24, 0)
        score = memlora._scored(name, some)
        replies = [json.loads(one.reply) for one in some]
        nothing: list[Any] = [{}] * len(some)
        if name == EXTRACT:
            replies = [taken(one, reply) for one, reply in zip(some, replies, strict=True)]
            nothing = [[]] * len(some)
        metric, *_ = score(replies, "expert")
        assert score(replies, "expert")[metric] == 1.0
        assert score(nothing, "expert")[metric] < 0.2


def test_a_fact_that_has_ended_must_say_so() -> None:
    one = next(one for one in lessons("asked", 6)[EXTRACT] if one.ends)
    said = taken(one, json.loads(one.reply))
    assert memlora._fact_f1([one], [said]) == {"fact_f1": 1.0}
    still = [replace(fact, ends=False) for fact in said]
    assert memlora._fact_f1([one], [still]) == {"fact_f1": 0.0}


def test_an_update_of_the_wrong_memory_is_wrong() -> None:
    one = next(one for one in lessons("asked", 6)[UPDATE] if one.event == "UPDATE")
    right = json.loads(one.reply)
    assert memlora._event_f1([one], [right])["event_macro_f1"] == 1.0
    long = {"1": {"operation": "UPDATE", "memory": one.number}}
    assert memlora._event_f1([one], [long])["event_macro_f1"] == 1.0
    wrong = {"1": {"operation": "UPDATE", "memory": (one.number or 0) + 1}}
    assert memlora._event_f1([one], [wrong])["event_macro_f1"] == 0.0


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    for options in (
        {"step": "2"},
        {"on": "taught"},
        {"train": "moon"},
        {"only": "moon"},
        {"only": "update", "whole": "1"},
        {"train": "locomo"},
    ):
        with pytest.raises(ParameterError):
            memlora.run(Context(folder=tmp_path, options=options))


def test_experts_of_a_run_alone_leave_those_of_memories_as_they_are(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", max_context=4096).close()
    context = Context(folder=tmp_path, model="tiny", quick=True)
    result = memlora.run(context)
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "tiny").glob("memlora*"))
    assert names == ["memlora-trial.answer", "memlora-trial.extract", "memlora-trial.update"]
    rows = memlora.card_rows(result)
    assert [row.part for row in rows] == list(EXPERTS)
    for row in rows:
        assert row.bytes["measured"] > 0 and 0 < row.ratio["prompt tokens"] < 1
    assert rows[0].metrics["fact_f1"]["rivals"]["rules"] > 0.5


# -- LoCoMo -----------------------------------------------------------------------------------


def _sample(number: int) -> dict[str, Any]:
    return {
        "sample_id": f"made-{number}",
        "conversation": {
            "speaker_a": "Ida",
            "speaker_b": "Tom",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ida", "dia_id": "D1:1", "text": "I bought a green canoe."},
                {"speaker": "Tom", "dia_id": "D1:2", "text": "Lovely!"},
                {"speaker": "Tom", "dia_id": "D1:3", "text": "I bake bread on Sundays."},
            ],
        },
        "observation": {
            "session_1_observation": {
                "Ida": [["Ida bought a green canoe.", "D1:1"]],
                "Tom": [["Tom bakes bread on Sundays.", ["D1:3"]]],
            }
        },
        "qa": [
            {
                "question": "What did Ida buy?",
                "answer": "a green canoe",
                "category": 4,
                "evidence": ["D1:1"],
            },
            {
                "question": "What did Tom buy?",
                "adversarial_answer": "a green canoe",
                "category": 5,
                "evidence": ["D1:1"],
            },
        ],
    }


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([_sample(number) for number in range(4)]), encoding="utf-8")
    return path


def test_turns_and_questions_become_lessons_of_conversations_apart(made: Path) -> None:
    learn, ask = cases(made)
    assert set(learn) == set(ask) == {EXTRACT, ANSWER}
    ids = [{turn.id.split("/")[0] for one in part[EXTRACT] for turn in one.lesson.turns}
           for part in (learn, ask)]  # fmt: skip
    assert ids == [{"made-3"}, {"made-1", "made-2"}]
    told = [json.loads(one.lesson.reply)["facts"] for one in learn[EXTRACT]]
    assert told == [["Ida bought a green canoe."], [], ["Tom bakes bread on Sundays."]]
    plain, trap = learn[ANSWER]
    assert plain.lesson.memories[0].text == "Ida bought a green canoe."
    assert json.loads(plain.lesson.reply) == {"answer": "a green canoe"}
    assert json.loads(trap.lesson.reply) == {"answer": ABSTAINED}


def test_too_few_conversations_or_no_observations_are_refused(made: Path, tmp_path: Path) -> None:
    samples = json.loads(made.read_text("utf-8"))
    few = tmp_path / "few.json"
    few.write_text(json.dumps(samples[:3]), encoding="utf-8")
    with pytest.raises(ParameterError, match="too few conversations"):
        cases(few)
    for sample in samples:
        del sample["observation"]
    few.write_text(json.dumps(samples), encoding="utf-8")
    with pytest.raises(FormatError, match="no observations"):
        cases(few)


def test_answers_and_traps_are_counted_apart(made: Path) -> None:
    plain, trap = cases(made)[1][ANSWER][:2]
    score = memlora._answers_told([plain, trap])
    right = [{"answer": "green canoe"}, {"answer": "Not mentioned"}]
    assert score(right, "expert") == {
        "answer_f1": 1.0,
        "traps_seen": 1.0,
        "seen_where_there_is_none": 0.0,
    }
    caught = [{"answer": "not mentioned"}, {"answer": "a green canoe"}]
    assert score(caught, "expert") == {
        "answer_f1": 0.0,
        "traps_seen": 0.0,
        "seen_where_there_is_none": 1.0,
    }


def test_experts_learn_from_locomo_and_are_kept_apart(made: Path, tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", max_context=4096).close()
    context = Context(
        folder=tmp_path, model="tiny", data=made, quick=True, options={"train": "locomo"}
    )
    result = memlora.run(context)
    assert set(result["stages"]) == {EXTRACT, ANSWER} and UPDATE in result["left_out"]
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "tiny").glob("memlora*"))
    assert names == ["memlora-locomo.answer", "memlora-locomo.extract"]
    assert [row.part for row in memlora.card_rows(result)] == ["locomo/extract", "locomo/answer"]
    for path in (tmp_path / "tiny").glob("memlora*"):
        assert b"canoe" not in path.read_bytes()

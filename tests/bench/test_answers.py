"""Answers counted without a judge, by the reader and by a model that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loci.bench import answers
from loci.bench.suite import Context
from loci.bench.suites import locomo
from loci.errors import ParameterError
from loci.methods.recall.mem0 import Mem0
from loci.testing.models import tiny_pack


def talk(folder: Path, days: int = 0) -> Path:
    """Write a conversation of our own in the form of the data."""
    said = ["I planted tulips.", "Nice!", "I moved to Graz last week.", "My cat is called Miso."]
    said += [f"Today is day {day}." for day in range(days)]
    sample = {
        "sample_id": "c1",
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Bob" if line == "Nice!" else "Ada", "dia_id": f"D1:{n}", "text": line}
                for n, line in enumerate(said, 1)
            ],
        },
        "qa": [
            {"question": "What did Ada plant?", "answer": "tulips", "evidence": ["D1:1"],
             "category": 4},
            {"question": "Where does Ada live?", "answer": "Graz", "evidence": ["D1:3"],
             "category": 4},
        ],
    }  # fmt: skip
    path = folder / "talk.json"
    path.write_text(json.dumps([sample]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "gold", "category", "score"),
    [
        ("tulips", "The tulips", 4, 1.0),
        ("tulips", "roses", 4, 0.0),
        ("red tulips", "tulips", 2, 2 / 3),
        ("Graz, Linz", "Linz, Wels", 1, 0.5),
        ("", "Linz", 1, 0.0),
        ("likely no", "Likely no; she hates it", 3, 1.0),
    ],
)
def test_the_score_of_an_answer(given: str, gold: str, category: int, score: float) -> None:
    assert answers.answer_f1(given, gold, category) == pytest.approx(score)


def test_the_reader_answers_from_what_was_recalled(tmp_path: Path) -> None:
    found = answers.measure(locomo.load(talk(tmp_path)), Mem0(), None, None, questions=9)
    assert found["questions"] == 2 and set(found["f1"]) == {"reader"}
    assert set(found["f1"]["reader"]) == set(answers.GIVEN)
    assert found["f1"]["reader"]["recalled"]["all"] > 0.5


def test_a_model_is_given_what_fits_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pack(tmp_path / "tiny", max_context=2048).close()
    with answers.open_session("tiny", tmp_path, 1200, tmp_path) as session:
        asked: list[str] = []
        chat = session.tokenizer.chat

        def heard(messages, *rest):  # type: ignore[no-untyped-def]
            if not messages[0]["content"].endswith("Question: \nShort answer:"):
                asked.append(messages[0]["content"])
            return chat(messages, *rest)

        monkeypatch.setattr(session.tokenizer, "chat", heard)
        (conversation,) = locomo.load(talk(tmp_path, days=20))
        found = answers.measure([conversation], Mem0(), None, session, questions=2)
    assert found["f1"]["slm"]["whole"]["all"] >= 0.0 and len(asked) == 6
    notes = [content.split("<notes>")[1].split("</notes>")[0] for content in asked]
    assert "tulips" in notes[0] + notes[1], "what was recalled comes first"
    assert notes[4] == notes[5] and "day 19" in notes[4] and "tulips" not in notes[4]
    assert all("Question: " in content.split("</notes>")[1] for content in asked)


def test_an_unknown_reader_is_refused(tmp_path: Path) -> None:
    context = Context(folder=tmp_path, data=talk(tmp_path), options={"answers": "oracle"})
    with pytest.raises(ParameterError, match="unknown reader"):
        locomo.run(context)
    context = Context(folder=tmp_path, data=talk(tmp_path), options={"answers": "reader"})
    assert locomo.run(context)["answers"]["mem0"]["questions"] == 2


def test_operations_of_a_model_that_fails_are_those_of_the_rules() -> None:
    from loci.bench.suites import operations
    from loci.models.scripted import ScriptedLlm
    from loci.text.ladder import Ladder

    plain = operations.measure(Mem0(), seeds=(100,))
    model = ScriptedLlm({"": "I do not know"})
    found = operations.measure(
        Mem0(), seeds=(100,), ladder=lambda: Ladder("endpoint", model, fall_back=True)
    )
    assert found["f1"] == plain["f1"] and plain["back_end"]["calls"] == 0
    assert found["back_end"]["calls"] == len(model.calls) > 50
    assert found["back_end"]["refused"] == {"endpoint: the reply is no JSON": len(model.calls)}
    with pytest.raises(ParameterError, match="needs its address"):
        operations.run(Context(folder=Path(), options={"backend": "endpoint"}))
    with pytest.raises(ParameterError, match="unknown back end"):
        operations.run(Context(folder=Path(), options={"backend": "magic"}))

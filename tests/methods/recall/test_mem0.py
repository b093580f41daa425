"""Mem0: conformance, then what is particular."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from loci.bench.suites import locomo, operations
from loci.core.item import Add, Retire
from loci.core.ports import Array
from loci.errors import FormatError, ParameterError
from loci.methods.recall.base import Query, Recall
from loci.methods.recall.mem0 import Mem0
from loci.testing.recall import CONFORMANCE, DictView, told
from loci.text.dialogue import make_dialogue
from loci.text.stem import stems


class Letters:
    """An embedder of hashed stems: enough to have a dense signal."""

    def encode(self, texts: Sequence[str]) -> Array:
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in [*stems(text), "a"]:
                row[sum(map(ord, word)) % 64] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: str(check.__name__))
def test_conforms(check: Callable[[Recall], None]) -> None:
    check(Mem0())


def test_a_change_of_mind_retires_the_old_at_the_time_of_the_new() -> None:
    view = DictView()
    view.remember(told("I live in Graz."), Mem0())
    later = told("I moved to Leeds.", session="s2")
    (edit,) = view.remember(later, Mem0())
    assert isinstance(edit, Retire) and edit.at == later[0].time
    old, new = view.all_items()
    assert (old.is_live, new.is_live) == (False, True)
    assert old.valid_to == new.valid_from


def test_the_present_value_comes_first() -> None:
    view = DictView()
    for number, town in enumerate(("Graz", "Leeds", "Bilbao")):
        view.remember(told(f"I live in {town} now.", session=f"s{number}"), Mem0())
    first = Mem0().find(Query(text="Where does Ada live?"), view)[0]
    assert first.text == "Ada lives in Bilbao" and first.kind == "fact"


def test_said_three_times_is_stored_once_with_three_sources() -> None:
    view = DictView()
    for number, line in enumerate(
        (
            "I'm allergic to walnuts.",
            "I am allergic to walnuts!",
            "Careful, I'm allergic to walnuts",
        )
    ):
        view.remember(told(line, session=f"s{number}"), Mem0())
    (fact,) = view.all_items()
    assert len(fact.sources) == 3


def test_a_named_speaker_outranks_the_other() -> None:
    view = DictView()
    view.add_turns(told("The pottery class was fun.", name="Bea", session="s1"))
    view.add_turns(told("The pottery class was fun too.", name="Cleo", session="s2"))
    (first, *_) = Mem0().find(Query(text="What did Cleo say about the pottery class?"), view)
    assert first.sources[0].name == "Cleo"


def test_meaning_is_used_when_there_is_an_embedder_and_wanted() -> None:
    view = DictView(embedder=Letters())
    view.remember(told("I live in Graz.", "I play chess."), Mem0())
    assert any("meaning" in h.why for h in Mem0().find(Query(text="chess?"), view))
    lexical = Mem0().find(Query(text="chess?", lexical=True), view)
    assert not any("meaning" in h.why for h in lexical)


def test_facts_of_the_slot_asked_for_need_no_shared_word() -> None:
    view = DictView()
    view.remember(told("I adopted a rabbit named Fig.", "I sat in the sun."), Mem0())
    assert Mem0().find(Query(text="Which pets does Ada have?"), view)[0].text.endswith("Fig")


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"mem0\.words must be >= 0"):
        Mem0(words=-1.0)


def test_operations_on_synthetic_dialogues() -> None:
    figures = operations.measure(Mem0(), seeds=(100, 101, 102))
    assert figures["f1"]["macro"] >= 0.85
    assert figures["answers_right"] >= 0.7


def test_dialogues_are_the_same_for_the_same_seed() -> None:
    assert make_dialogue(3) == make_dialogue(3) != make_dialogue(4)


def test_locomo_counts_the_turns_behind_hits(tmp_path: Path) -> None:
    sample = {
        "sample_id": "c1",
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ada", "dia_id": "D1:1", "text": "I planted tulips."},
                {"speaker": "Bob", "dia_id": "D1:2", "text": "Nice!", "blip_caption": "a kite"},
            ],
            "session_2_date_time": "1:56 pm on 9 May, 2023",
        },
        "qa": [
            {"question": "What did Ada plant?", "answer": "tulips", "evidence": ["D1:1; D9:9"],
             "category": 4},
            {"question": "Trap?", "adversarial_answer": "x", "evidence": ["D1:1"], "category": 5},
            {"question": "None?", "answer": 3, "evidence": ["D"], "category": 1},
        ],
    }  # fmt: skip
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([sample]), encoding="utf-8")
    figures = locomo.measure(tmp_path, Mem0(), limit=1)
    assert figures["all"]["questions"] == 1
    assert figures["all"]["any@1"] == 1.0 and figures["single-hop"]["all@1"] == 1.0
    assert figures["all"]["turns_shown"] <= 1
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError):
        locomo.load(path)


def test_edits_of_a_first_statement_are_adds() -> None:
    view = DictView()
    assert all(isinstance(e, Add) for e in view.remember(told("I speak Welsh."), Mem0()))

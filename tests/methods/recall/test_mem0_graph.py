"""Mem0 with a graph: conformance, then what is particular."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from loci.core.item import Item, Retire, Revise
from loci.core.ports import Array
from loci.errors import ModelError, ParameterError
from loci.methods.recall.base import Query, Recall, RecallPorts
from loci.methods.recall.mem0 import Mem0
from loci.methods.recall.mem0_graph import Mem0Graph
from loci.models.scripted import ScriptedLlm
from loci.testing.recall import CONFORMANCE, DictView, told
from loci.text.ladder import Ladder


class Letters:
    """An embedder of letters: names that differ in a letter or two are near."""

    def encode(self, texts: Sequence[str]) -> Array:
        rows = np.zeros((len(texts), 27), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[26] = 0.1
            for letter in text.lower():
                if letter.isalpha() and letter.isascii():
                    row[ord(letter) - 97] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: str(check.__name__))
def test_conforms(check: Callable[[Recall], None]) -> None:
    check(Mem0Graph())


def told_one_by_one(*lines: str, view: DictView | None = None) -> DictView:
    view = view or DictView()
    for number, line in enumerate(lines):
        view.remember(told(line, session=f"s{number}"), Mem0Graph())
    return view


def triples(view: DictView, *, live: bool = True) -> set[tuple[str | None, ...]]:
    return {
        (item.subject, item.predicate, item.object)
        for item in view.all_items()
        if item.kind == "relation" and (item.is_live or not live)
    }


def entities(view: DictView) -> dict[str, Item]:
    return {i.subject or "": i for i in view.all_items() if i.kind == "entity" and i.is_live}


def test_a_family_and_where_it_lives() -> None:
    # By hand: "my sister Lena" makes one entity of three names, and later facts find it.
    view = told_one_by_one(
        "I live in Graz and my sister Lena has 2 cats.", "My sister lives in Linz."
    )
    assert triples(view) == {
        ("ada", "lives_in", "graz"),
        ("ada", "sibling", "lena"),
        ("lena", "pet", "2 cats"),
        ("lena", "lives_in", "linz"),
    }
    assert set(entities(view)) == {"ada", "graz", "lena", "2 cats", "linz"}
    assert "ada's sister" in entities(view)["lena"].entities
    assert entities(view)["graz"].object == "place"


def test_a_conflict_ends_the_older_and_deletes_nothing() -> None:
    view = told_one_by_one("I live in Graz.", "I moved to Leeds.", "I'm allergic to walnuts.")
    later = told("I'm no longer allergic to walnuts.", session="s9")
    edits = view.remember(later, Mem0Graph())
    assert {type(edit) for edit in edits} == {Retire}
    assert triples(view) == {("ada", "lives_in", "leeds")}
    assert triples(view, live=False) == {
        ("ada", "lives_in", "graz"),
        ("ada", "lives_in", "leeds"),
        ("ada", "allergic_to", "walnuts"),
    }
    for item in view.all_items():
        if item.kind == "relation" and not item.is_live:
            assert item.valid_from is not None and item.valid_to is not None
            assert item.valid_from <= item.valid_to


def test_without_the_graph_it_is_mem0() -> None:
    # Limit case: weight 0 ranks as the facts' search does.
    lines = ("I live in Graz.", "I adopted a rabbit named Fig.", "I sat in the sun with Fig.")
    plain, graph = DictView(), DictView()
    for number, line in enumerate(lines):
        plain.remember(told(line, session=f"s{number}"), Mem0())
        graph.remember(told(line, session=f"s{number}"), Mem0Graph())
    for asked in ("Where does Ada live?", "Who is Fig?", "sun"):
        query = Query(text=asked, limit=3)
        expected = [(hit.text, hit.kind) for hit in Mem0().find(query, plain)]
        found = Mem0Graph(graph=0.0).find(query, graph)
        assert [(hit.text, hit.kind) for hit in found] == expected


def test_a_relation_leads_to_a_turn_that_shares_no_word_with_the_question() -> None:
    # The paper's point on a toy: "Ada's sister" is Lena, and Lena went to Oslo.
    lines = (
        "My sister Lena has 2 cats.",
        "Lena went to Oslo for the winter.",
        "The winter here was mild.",
        "I had soup for lunch.",
    )
    view = told_one_by_one(*lines)
    query = Query(text="Which city did Ada's sister see?", limit=2)
    found = [source.content for hit in Mem0Graph().find(query, view) for source in hit.sources]
    assert lines[1] in found
    plain = [source.content for hit in Mem0().find(query, view) for source in hit.sources]
    assert lines[1] not in plain


def test_triples_come_when_they_are_asked_for() -> None:
    view = told_one_by_one("I live in Graz.", "I work at Orbex.")
    hits = Mem0Graph().find(Query(text="Where is Ada's Orbex?", kinds=("relation",)), view)
    assert hits[0].text == "ada works at orbex" and {hit.kind for hit in hits} == {"relation"}
    assert hits[0].sources[0].content == "I work at Orbex."
    assert all(h.kind != "relation" for h in Mem0().find(Query(text="Orbex"), view))


def test_names_that_are_nearly_one_are_one_entity_unless_a_number_differs() -> None:
    view = DictView(embedder=Letters())
    told_one_by_one("I work at Halden Foods.", "I moved to Room 12.", view=view)
    edits = view.remember(told("I work at Haldenn Foods.", session="s8"), Mem0Graph(same=0.95))
    also = [e for e in edits if isinstance(e, Revise) and e.reason == "another name"]
    assert [edit.candidate.entities for edit in also] == [("halden foods", "haldenn foods")]
    view.remember(told("I moved to Room 21.", session="s9"), Mem0Graph(same=0.95))
    assert {"room 12", "room 21"} <= set(entities(view))


TRIPLE = {
    "source": "Ada",
    "source_kind": "person",
    "relation": "studies with",
    "target": "Grace Hopper",
    "target_kind": "person",
    "messages": [1],
    "ends": False,
}


def replies(*triples_: dict[str, object]) -> ScriptedLlm:
    return ScriptedLlm(
        {
            "Draw lasting facts": json.dumps({"facts": []}),
            "draw triples": json.dumps({"triples": list(triples_)}),
            "choose one operation": json.dumps({"1": {"operation": "ADD", "memory": None}}),
        }
    )


def test_a_model_may_draw_the_triples() -> None:
    view, turns = DictView(), told("I study with Grace Hopper.")
    view.add_turns(turns)
    ladder = Ladder("endpoint", replies(TRIPLE))
    view.apply(Mem0Graph().revise(turns, view, RecallPorts(ladder=ladder)))
    assert triples(view) == {("ada", "studies_with", "grace hopper")}
    assert {item.made_by for item in view.all_items()} == {"endpoint"}
    assert [step.task for step in ladder.steps] == ["draw facts", "draw triples", "decide"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"target": "Alan Turing"}, "a name nobody said"),
        ({"target": "Ada"}, "a triple without"),
        ({"relation": "?!"}, "a triple without"),
    ],
)
def test_triples_nobody_said_are_refused(wrong: dict[str, object], why: str) -> None:
    view, turns = DictView(), told("I study with Grace Hopper.")
    view.add_turns(turns)
    ladder = Ladder("slm", replies({**TRIPLE, **wrong}))
    assert Mem0Graph().revise(turns, view, RecallPorts(ladder=ladder)) == []
    assert ladder.steps[1].refused[0].why.startswith(why)


def test_a_model_that_breaks_off_changes_nothing() -> None:
    view, turns = DictView(), told("I live in Graz.")
    view.add_turns(turns)
    model = ScriptedLlm({"Draw lasting": '{"facts": []}', "draw triples": '{"triples": [{'})
    with pytest.raises(ModelError, match="could not draw triples"):
        Mem0Graph().revise(turns, view, RecallPorts(ladder=Ladder("slm", model)))
    ladder = Ladder("slm", model, fall_back=True)
    view.apply(Mem0Graph().revise(turns, view, RecallPorts(ladder=ladder)))
    assert triples(view) == {("ada", "lives_in", "graz")}


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"mem0_graph\.same must be >= 0 and <= 1"):
        Mem0Graph(same=1.5)

"""A-MEM: conformance, then what is particular, and what the published code gets wrong."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from test_mem0_graph import Letters

from loci.core.item import Add, Edit, Gloss, Item, Link, Revise, Turn
from loci.errors import ModelError, ParameterError
from loci.methods.recall._notes import RELATION
from loci.methods.recall.a_mem import AMem
from loci.methods.recall.base import Query, Recall, RecallPorts
from loci.models.scripted import ScriptedLlm
from loci.testing.recall import CONFORMANCE, DictView, told
from loci.text.ladder import Ladder
from loci.text.notes import gloss, grown, keywords

LOOSE = AMem(alike=0.2, near=0.3)  # toys share few words
TALK = (
    "My sister Lena adopted a cat.",
    "Lena named the cat Miso after a soup.",
    "The weather is awful today.",
    "Miso fell off the balcony.",
    "I paid the invoice of the roofer.",
)


@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: str(check.__name__))
def test_conforms(check: Callable[[Recall], None]) -> None:
    check(AMem())


def remembered(*lines: str, method: AMem = LOOSE) -> tuple[DictView, list[list[Edit]]]:
    view = DictView()
    edits = [
        view.remember(told(line, session=f"s{number}"), method) for number, line in enumerate(lines)
    ]
    return view, edits


def notes(view: DictView) -> dict[str, Item]:
    return {item.text: item for item in view.all_items() if item.kind == "note"}


def linked(view: DictView) -> set[frozenset[str]]:
    by_id = {item.id: text for text, item in notes(view).items()}
    found = view.links([item.id for item in view.all_items()])
    return {frozenset((by_id[link.source], by_id[link.target])) for link in found}


def test_notes_of_a_cat_by_hand() -> None:
    view, edits = remembered(*TALK)
    made = notes(view)
    assert set(made) == set(TALK)
    first = made[TALK[0]].gloss
    assert first is not None and first.keywords[0] == "lena"
    assert {"sister", "cat"} < set(first.keywords) and {"family", "pets"} < set(first.tags)
    # Lena ties the first two, Miso the second and the fourth; the rest stands alone.
    assert linked(view) == {frozenset(TALK[0:2]), frozenset((TALK[1], TALK[3]))}
    links = [edit for part in edits for edit in part if isinstance(edit, Link)]
    assert all(link.relation == RELATION and 0 < link.weight <= 1 for link in links)


def test_without_links_nothing_is_linked_and_nothing_changes() -> None:
    # Limit case: links=0 is a search over notes and nothing else.
    view, edits = remembered(*TALK, method=AMem(links=0))
    assert all(isinstance(edit, Add) for part in edits for edit in part)
    query = Query(text="What happened to Miso?")
    off = [(h.id, h.score) for h in AMem(links=0, link=0.0).find(query, view)]
    assert off == [(h.id, h.score) for h in AMem(links=0).find(query, view)]


def test_links_bring_what_shares_no_word_with_the_question() -> None:
    # The paper's point on a toy: who owns the cat that fell stands in another note.
    view, _ = remembered(*TALK)
    query = Query(text="Which cat fell off the balcony?", limit=3)
    found = [hit.text for hit in LOOSE.find(query, view)]
    assert found[0] == TALK[3] and TALK[1] in found
    hits = LOOSE.find(Query(text="balcony", limit=3), view)
    assert "links" in next(hit.why for hit in hits if hit.text == TALK[1])
    alone = AMem(alike=0.2, near=0.3, link=0.0).find(Query(text="balcony", limit=3), view)
    assert [hit.text for hit in alone] == [TALK[3]]


def test_only_margins_change_and_only_of_linked_notes() -> None:
    view, edits = remembered(*TALK)
    last = edits[3]
    touched = {edit.id for edit in last if isinstance(edit, Revise)}
    targets = {edit.target for edit in last if isinstance(edit, Link)}
    assert touched <= targets and targets == {notes(view)[TALK[1]].id}
    for edit in last:
        if isinstance(edit, Revise):
            assert edit.candidate.text == view.item(edit.id).text and not edit.candidate.sources


def test_a_margin_that_grew_knows_the_turns_it_was_drawn_from() -> None:
    lines = (
        "Lena adopted a cat.",
        "Lena sings to her cat on the balcony.",
        "Lena brushed her cat on the balcony.",
    )
    view, _ = remembered(*lines)
    found = notes(view)[lines[0]].gloss
    assert found is not None and "balcony" in found.keywords, "two linked notes say it"
    assert set(found.sources) == {"s0-0", "s1-0", "s2-0"}


def test_grown_margins_do_not_feed_on_each_other() -> None:
    own = Gloss(keywords=("cat",), tags=("pets",), sources=("t1",))
    near = Gloss(keywords=("vet", "cat"), tags=("pets", "health"), sources=("t2",))
    once = grown(own, "a cat", [(0.6, near, "the vet saw the cat")])
    assert (once.keywords, once.tags) == (("cat",), ("pets",))
    twice = grown(once, "a cat", [(0.6, near, "the vet saw the cat")] * 2)
    assert twice.keywords == ("cat", "vet") and twice.sources == ("t1", "t2")
    passed_on = grown(Gloss(), "rain", [(1.0, twice, "a cat")])
    assert passed_on.keywords == ("cat",), "what it took in is not its to give"
    assert grown(twice, "a cat", []).keywords == ("cat",)


def test_what_was_said_before_is_no_second_note() -> None:
    view, edits = remembered("Lena adopted a cat.", "Lena adopted a cat!")
    (edit,) = edits[1]
    assert isinstance(edit, Revise) and edit.reason == "said again"
    assert next(iter(notes(view).values())).sources == ("s0-0", "s1-0")


def test_one_write_links_its_own_notes() -> None:
    view = DictView()
    view.remember(told(*TALK), LOOSE)
    assert frozenset(TALK[0:2]) in linked(view)


def test_a_hub_keeps_few_links() -> None:
    lines = [f"Lena bought lamp number {word}." for word in ("one", "two", "three", "four", "five")]
    view, _ = remembered(*lines, method=AMem(alike=0.1, near=0.1, degree=2, links=2))
    for note in notes(view).values():
        strongest = [link for link in view.links([note.id]) if link.source == note.id]
        assert len(strongest) <= 2


def test_meaning_is_used_where_there_is_an_embedder() -> None:
    view = DictView(embedder=Letters())
    for number, line in enumerate(TALK):
        view.remember(told(line, session=f"s{number}"), AMem())
    (hit, *_) = AMem().find(Query(text="Miso balcony"), view)
    assert hit.text == TALK[3] and "meaning" in hit.why
    assert all("meaning" not in h.why for h in AMem().find(Query(text="Miso", lexical=True), view))


def test_turns_without_a_note_are_found_too() -> None:
    view = DictView()
    view.add_turns(told("A raw line about beekeeping.", session="raw"))
    view.remember(told("I keep bees.", session="s1"), AMem())
    assert AMem().find(Query(text="beekeeping"), view)[0].kind == "turn"


def test_the_margin_by_rules_resolves_times_and_quotes_the_question() -> None:
    asked, said = told("How was your weekend?", "I hiked to a lake yesterday.")
    asked = Turn(id="q", role="user", name="Bob", content=asked.content, time=asked.time,
                 session="s1")  # fmt: skip
    made = gloss(said, [asked])
    assert (
        "1 March 2026" in made.context and 'Bob had asked "How was your weekend?"' in made.context
    )
    assert made.sources == (said.id, "q") and made.tags == ("nature",)
    assert keywords("Ada likes Ada's boss", ["Ada"]) == ("boss",)


MARGIN = {"keywords": ["Miso", "balcony"], "context": "Miso had an accident.", "tags": ["Pets"]}


def answers(**more: object) -> ScriptedLlm:
    connect = {"links": [1], "tags": ["pets", "accident"], "changes": [], **more}
    return ScriptedLlm(
        {"at least three keywords": json.dumps(MARGIN), "notes that connect": json.dumps(connect)}
    )


def asked_of(model: ScriptedLlm, *, fall_back: bool = False) -> tuple[DictView, Ladder]:
    view, _ = remembered(*TALK[:2])
    turns = told(TALK[3], session="s9")
    view.add_turns(turns)
    ladder = Ladder("endpoint", model, fall_back=fall_back)
    view.apply(LOOSE.revise(turns, view, RecallPorts(ladder=ladder)))
    return view, ladder


def test_a_model_may_write_margins_links_and_changes() -> None:
    change = {"note": 1, "context": "Miso is Lena's cat.", "tags": ["pets", "lena"]}
    view, ladder = asked_of(answers(changes=[change]))
    made = notes(view)
    assert made[TALK[3]].gloss == Gloss(
        keywords=("miso", "balcony"),
        tags=("pets", "accident"),
        context="Miso had an accident.",
        sources=("s9-0",),
    )
    changed = made[TALK[1]].gloss
    assert changed is not None and changed.context == "Miso is Lena's cat."
    assert made[TALK[1]].text == TALK[1] and "s9-0" in changed.sources
    assert [step.task for step in ladder.steps] == ["write a margin", "connect notes"]
    # The prompt numbers notes: no id can be invented.
    asked = ladder.llm.calls[1].messages[1]["content"]  # type: ignore[union-attr]
    assert '"number": 1' in asked and made[TALK[1]].id not in asked


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"note": 1, "context": "Lena has 3 cats.", "tags": []}, "a context with a name"),
        ({"note": 1, "context": "Miso belongs to Boris.", "tags": []}, "a context with a name"),
        ({"note": 1, "context": "Miso is 9.", "tags": []}, "a context with a name or number"),
    ],
)
def test_changes_nobody_has_grounds_for_are_refused(change: dict[str, object], why: str) -> None:
    before = notes(remembered(*TALK[:2])[0])
    view, ladder = asked_of(answers(changes=[change]))
    assert ladder.steps[1].refused[0].why.startswith(why)
    for text in TALK[:2]:
        assert notes(view)[text].gloss == before[text].gloss


def test_a_link_to_a_note_that_was_not_shown_is_another_form() -> None:
    with pytest.raises(ModelError, match="could not connect notes"):
        asked_of(answers(links=[7]))
    view, ladder = asked_of(answers(links=[7]), fall_back=True)
    assert ladder.steps[1].rung == "rules" and linked(view)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"a_mem\.links must be >= 0"):
        AMem(links=-1)

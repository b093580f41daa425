"""Memories that ask a model: what is stored, what it cost, and what happens when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from loci.core.item import Turn
from loci.errors import BusyError, EndpointError, LociError, ModelError, ParameterError
from loci.models.scripted import ScriptedLlm
from loci.run.memory import Memory
from loci.run.preview import Preview, drafted
from loci.store.messages import drafts
from loci.store.writes import check_audit
from loci.text.ladder import Step

LIVES = {"text": "Ada lives in Graz", "sources": [1], "subject": "Ada", "predicate": "lives_in"}
ADD = {"operation": "ADD", "memory": None}
GRAZ = [{"role": "user", "name": "Ada", "content": "I live in Graz."}]


def draws(*facts: Mapping[str, Any]) -> str:
    return json.dumps({"facts": list(facts)})


def decides(*choices: Mapping[str, Any]) -> str:
    return json.dumps({str(number): choice for number, choice in enumerate(choices, 1)})


class Script(ScriptedLlm):
    """Replies in order; calls something first."""

    def __init__(self, replies: Sequence[str | Exception], first: Callable[[], object] = int):
        super().__init__([])
        self.all, self.first = list(replies), first

    def _reply(self, text: str) -> str:
        self.first()
        reply = self.all[(len(self.calls) - 1) % len(self.all)]
        if isinstance(reply, Exception):
            raise reply
        return reply


def opened(path: Path, model: ScriptedLlm, **more: Any) -> Memory:
    return Memory(path / "m.db", backend="endpoint", llm=model, **more)


def told(memory: Memory, text: str) -> list[str]:
    return [
        item.text
        for item in memory.add([{"name": "Ada", "content": text}], user="ada").items
        if item.is_live
    ]


def test_a_model_draws_and_decides_and_its_cost_is_kept(tmp_path: Path) -> None:
    model = Script([draws(LIVES), decides(ADD)])
    with opened(tmp_path, model) as memory:
        added = memory.add(GRAZ, user="ada")
        assert [(item.text, item.made_by) for item in added.items] == [
            ("Ada lives in Graz", "endpoint")
        ]
        assert [step.task for step in added.steps] == ["draw facts", "decide"]
        assert all(step.calls == 1 and step.model == "scripted" for step in added.steps)
        (change,) = memory.history(added.items[0].id)
        assert change.steps == added.steps
        assert check_audit(memory.store.database) == 0  # type: ignore[attr-defined]
        last = memory.store.database.rows("SELECT subject FROM audit")  # type: ignore[attr-defined]
        assert last == [("t1-t1 items 1 ladder 1",)]


def test_every_operation_of_a_model_destroys_nothing(tmp_path: Path) -> None:
    pet = {"sources": [1], "subject": "Ada", "predicate": "pet"}
    cats = {"text": "Ada has cats", **pet}
    more = {"text": "Ada has cats named Miso", **pet}
    linz = {**LIVES, "text": "Ada lives in Linz"}
    gone = {"text": "Ada no longer has cats named Miso", **pet, "ends": True}
    script = [draws(cats), decides(ADD), draws(cats)]
    script += [decides({"operation": "NOOP", "memory": 1})]
    script += [draws(more), decides({"operation": "UPDATE", "memory": 1})]
    script += [draws(LIVES), decides(ADD)]
    script += [draws(linz), decides({"operation": "UPDATE", "memory": 1})]
    script += [draws(gone), decides({"operation": "DELETE", "memory": 1})]
    with opened(tmp_path, Script(script)) as memory:
        assert told(memory, "I have cats.") == ["Ada has cats"]
        assert told(memory, "Yes, I have cats.") == ["Ada has cats"]
        assert len(memory.get("i1").sources) == 2  # type: ignore[union-attr]
        assert told(memory, "I have cats named Miso.") == ["Ada has cats named Miso"]
        assert memory.get("i1").version == 3  # type: ignore[union-attr]
        assert told(memory, "I live in Graz.") == ["Ada lives in Graz"]
        assert told(memory, "I live in Linz.") == ["Ada lives in Linz"]
        assert not memory.get("i2").is_live  # type: ignore[union-attr]
        assert told(memory, "I no longer have cats named Miso.") == []
        live = {item.text for item in memory.list(user="ada")}  # type: ignore[union-attr]
        assert live == {"Ada lives in Linz"}
        memory.undo("i1")
        assert memory.get("i1").is_live  # type: ignore[union-attr]
        texts = [change.after.text for change in memory.history("i1") if change.after]
        assert texts[0] == "Ada has cats", "the old wording is in the history"


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"operation": "UPDATE", "memory": None}, "UPDATE: no memory was named"),
        (
            {"operation": "NOOP", "memory": 1},
            "NOOP: the memory lacks a name or number of the fact",
        ),
        ({"operation": "DELETE", "memory": 2}, "DELETE: the memory is about somebody else"),
    ],
)
def test_what_a_decision_may_not_do_becomes_an_addition(
    tmp_path: Path, choice: dict[str, Any], why: str
) -> None:
    with Memory(tmp_path / "m.db") as memory:
        memory.add(GRAZ, user="ada")
        memory.add([{"name": "Bob", "content": "I live in Linz."}], user="ada")
    linz = {**LIVES, "text": "Ada lives in Linz"}  # so that the memory of its slot comes first
    with opened(tmp_path, Script([draws(linz), decides(choice)])) as memory:
        added = memory.add([{"name": "Ada", "content": "I live in Linz."}], user="ada")
        assert added.steps[1].refused[0].why == why
        assert [item.id for item in added.items] == ["i3"], "nothing known was touched"


def test_two_facts_cannot_change_one_memory(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        memory.add(GRAZ, user="ada")
    facts = [{**LIVES, "text": f"Ada lives in {town}"} for town in ("Linz", "Wels")]
    both = [{"operation": "UPDATE", "memory": 1}] * 2
    with opened(tmp_path, Script([draws(*facts), decides(*both)])) as memory:
        added = memory.add([{"name": "Ada", "content": "I live in Linz and Wels."}], user="ada")
        assert added.steps[1].refused[0].why == "UPDATE: another fact changed that memory"
        assert [i.text for i in added.items if i.is_live] == [f["text"] for f in facts]


@pytest.mark.parametrize(
    "replies",
    [
        [EndpointError("it did not answer")],
        ["{"],
        ['{"facts": [{"text": "Ada lives in Graz"}]}'],
        [draws(LIVES), EndpointError("it did not answer")],
        [draws(LIVES), decides({"operation": "UPDATE", "memory": 9})],
        [draws(LIVES), "{}"],
    ],
)
def test_a_model_that_fails_leaves_nothing_behind(
    tmp_path: Path, replies: list[str | Exception]
) -> None:
    with opened(tmp_path, Script(replies)) as memory:
        with pytest.raises(LociError, match="the back end endpoint could not"):
            memory.add(GRAZ, user="ada")
        assert memory.users() == []
        kept = memory.add(GRAZ, user="ada", infer=False)
        assert kept.items == () and memory.counts(user="ada")["turns"] == 1
    with opened(tmp_path, Script(replies), fall_back=True) as memory:
        added = memory.add(GRAZ, user="bob")
        assert [item.text for item in added.items] == ["Ada lives in Graz"]
        failed = next(step for step in added.steps if step.rung == "rules")
        assert failed.calls == 1 and failed.refused[0].why.startswith("endpoint: ")
        assert failed in memory.history(added.items[0].id)[0].steps


def test_raw_messages_ask_nobody(tmp_path: Path) -> None:
    model = Script([EndpointError("must not be asked")])
    with opened(tmp_path, model) as memory:
        memory.add(GRAZ, user="ada", infer=False)
        assert memory.search("Graz", user="ada")[0].kind == "turn"
    assert model.calls == []


def test_nobody_waits_while_a_model_is_asked(tmp_path: Path) -> None:
    other = Memory(tmp_path / "m.db", busy_s=0.05)
    known: list[int] = []

    def meanwhile() -> None:
        if len(known) < 2:  # an add while facts are drawn, and one while it is decided
            known.append(len(known))
            other.add(f"I'm allergic to food{len(known)}", user="ada")

    model = Script([draws(LIVES), decides(ADD)], meanwhile)
    with opened(tmp_path, model) as memory:
        added = memory.add(GRAZ, user="ada")
        assert [item.text for item in added.items] == ["Ada lives in Graz"]
        assert len(model.calls) == 4, "what was known had changed, so it was asked again"
        assert memory.counts(user="ada") == {"turns": 3, "items": 3, "retired": 0}
    other.close()


def test_what_always_changes_is_busy(tmp_path: Path) -> None:
    other, count = Memory(tmp_path / "m.db"), [0]

    def meanwhile() -> None:
        count[0] += 1
        other.note(f"note {count[0]}", user="ada")

    with opened(tmp_path, Script([draws()], meanwhile)) as memory:
        with pytest.raises(BusyError, match="changed 5 times"):
            memory.add(GRAZ, user="ada")
        assert memory.counts(user="ada")["turns"] == 0
    other.close()


def test_many_turns_are_asked_about_a_few_at_a_time(tmp_path: Path) -> None:
    script = [draws(LIVES), draws({**LIVES, "sources": [2]}), decides(ADD, ADD)]
    model = Script(script)
    with opened(tmp_path, model) as memory:
        lines = [{"name": "Ada", "content": "I live in Graz."} for _ in range(10)]
        added = memory.add(lines, user="ada", session="s")
        assert [item.sources for item in added.items] == [("t1",), ("t10",)]
        prompts = [call.messages[-1]["content"] for call in model.calls]
    assert [prompt.count('"number"') for prompt in prompts] == [8, 2, 2], "facts are two, too"


def test_a_later_group_of_facts_may_change_what_an_earlier_one_added(tmp_path: Path) -> None:
    facts = [{"text": f"Ada owns lamp {n}", "sources": [1], "subject": "Ada"} for n in range(1, 10)]
    change = {"operation": "UPDATE", "memory": 1}
    script = [draws(*facts), decides(*[ADD] * 8), decides(change)]
    words = "I own " + ", and ".join(f"a lamp that is called lamp {n}" for n in range(1, 10))
    with opened(tmp_path, Script(script)) as memory:
        added = memory.add([{"name": "Ada", "content": words}], user="ada")
        live = {item.text for item in memory.list(user="ada")}  # type: ignore[union-attr]
        assert live == {fact["text"] for fact in facts[1:]}
        assert len(added.items) == 10, "nine were added, and the first was given up"


def test_what_was_refused_is_told_but_its_words_are_not_stored(tmp_path: Path) -> None:
    spy = {"text": "Ada spied for Ruritania", "sources": [1]}
    with opened(tmp_path, Script([draws(LIVES, spy), decides(ADD)])) as memory:
        added = memory.add(GRAZ, user="ada")
        assert [str(refused) for refused in added.steps[0].refused] == [
            "a name nobody said: Ada spied for Ruritania"
        ]
        stored = memory.history(added.items[0].id)[0].steps[0]
        assert [str(refused) for refused in stored.refused] == ["a name nobody said"]
    assert b"Ruritania" not in (tmp_path / "m.db").read_bytes()


def test_steps_go_out_and_in_again(tmp_path: Path) -> None:
    with opened(tmp_path, Script([draws(LIVES), decides(ADD)])) as memory:
        memory.add(GRAZ, user="ada")
        memory.export(tmp_path / "ada.jsonl", user="ada")
    with Memory(tmp_path / "other.db") as memory:
        memory.import_(tmp_path / "ada.jsonl")
        (change,) = memory.history("i1")
        assert [step.model for step in change.steps] == ["scripted", "scripted"]
        assert memory.import_(tmp_path / "ada.jsonl") == 0


def test_a_method_is_named_and_a_back_end_needs_its_model(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", recall="a_mem") as memory:
        added = memory.add(GRAZ, user="ada")
        assert [(item.kind, item.gloss is not None) for item in added.items] == [("note", True)]
    with pytest.raises(ParameterError, match="no recall method"):
        Memory(tmp_path / "m.db", recall="mem1")
    with pytest.raises(ParameterError, match="needs a language model"):
        Memory(tmp_path / "m.db", backend="slm")
    with pytest.raises(ParameterError, match="unknown back end"):
        Memory(tmp_path / "m.db", backend="magic")  # type: ignore[arg-type]


def test_a_graph_and_notes_are_kept_and_come_back(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", recall="mem0_graph") as memory:
        memory.add(GRAZ, user="ada")
        memory.add([{"name": "Ada", "content": "I moved to Linz."}], user="ada")
        (hit,) = memory.search("Where does Ada live?", user="ada", kinds="relation", limit=1)
        assert hit.text == "ada lives in linz"
        kinds = {i.kind for i in memory.list(user="ada", kinds=("fact", "relation", "entity"))}
        assert kinds == {"fact", "relation", "entity"}
        assert {i.kind for i in memory.list(user="ada")} == {"fact"}
        memory.undo(memory.history(hit.id)[0].id)
        live = memory.list(user="ada", kinds="relation")
        assert [item.text for item in live] == ["ada lives in graz"]  # type: ignore[union-attr]


def test_notes_evolve_and_evolution_is_undone(tmp_path: Path) -> None:
    from loci.methods.recall.a_mem import AMem

    method = AMem(alike=0.2, near=0.3)
    with Memory(tmp_path / "m.db", recall=method) as memory:
        memory.add("Lena adopted a cat.", user="ada")
        before = memory.get("i1").gloss  # type: ignore[union-attr]
        memory.add("Lena sings to her cat on the balcony.", user="ada")
        memory.add("Lena brushed her cat on the balcony.", user="ada")
        grown = memory.get("i1").gloss  # type: ignore[union-attr]
        assert grown != before and "balcony" in grown.keywords  # type: ignore[union-attr]
        assert memory.search("balcony", user="ada", limit=5)
        actions = [change.action for change in memory.history("i1")]
        assert actions == ["add", *["revise"] * (len(actions) - 1)] and len(actions) > 1
        for _ in actions[1:]:
            memory.undo("i1")
        assert memory.get("i1").gloss == before  # type: ignore[union-attr]
        assert memory.get("i1").text == "Lena adopted a cat."  # type: ignore[union-attr]
    with Memory(tmp_path / "m.db", recall=method) as memory:  # and after a restart
        found = [hit.text for hit in memory.search("balcony", user="ada", limit=5)]
        assert "Lena adopted a cat." in found, "links lead there"


def test_a_preview_goes_on_where_the_session_ended(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        for session in ("a", "b"):
            memory.add(
                [f"{session} {n}" for n in range(3)], user="ada", session=session, infer=False
            )
        made = drafts(["new 0", "new 1"], now=memory.clock.now(), assumed=memory.zone)
        turns = drafted(made, "a")
        view = memory.store.view(memory._scope("ada"), memory.clock.now())
        seen = Preview(view, turns, view.last("a"))

        def near(id: str, before: int, after: int) -> list[str]:
            return [turn.content for turn in seen.neighbours_of_turn(id, before, after)]

        assert near("new0", 2, 5) == ["a 1", "a 2", "new 1"]
        assert near("new1", 2, 0) == ["a 2", "new 0"]
        assert near("new1", 9, 9) == ["a 0", "a 1", "a 2", "new 0"]
        assert near("t3", 1, 1) == ["a 1", "new 0"]
        assert [t.content for t in seen.turns(["t1", "new1", "t99"]).values()] == ["a 0", "new 1"]
        assert isinstance(seen.turn("new0"), Turn) and seen.items_of_turn("new0") == []
        empty = Preview(view, drafted(made, "c"), view.last("c"))
        assert [turn.content for turn in empty.neighbours_of_turn("new1", 9, 9)] == ["new 0"]


def test_steps_tell_people_what_happened() -> None:
    step = Step(task="decide", rung="slm", model="m", calls=1, prompt_tokens=1200, reply_tokens=7)
    assert str(step) == "decide by slm, asked m once, 1,200 + 7 tokens"
    assert str(Step(task="decide")) == "decide by rules"
    with pytest.raises(ModelError):
        raise ModelError(str(step))


@pytest.mark.parametrize("method", ["mem0_graph", "a_mem"])
def test_forgetting_one_message_leaves_the_others_alone(tmp_path: Path, method: str) -> None:
    said = [
        "My sister Lena lives in Graz.",
        "Lena adopted a cat named Miso.",
        "I play chess with Lena.",
        "The opera in Graz was loud.",
    ]
    with Memory(tmp_path / "m.db", recall=method) as memory:
        for line in said:
            memory.add([{"name": "Ada", "content": line}], user="ada")
        report = memory.forget("t2")
        assert report.clean and report.turns == ("t2",) and not report.cut
        left = [turn.content for turn in memory.list(user="ada", kinds="turn")]  # type: ignore[union-attr]
        assert left == [said[3], said[2], said[0]]
        every = memory.list(user="ada", kinds=("fact", "note", "relation", "entity"))
        words = " ".join(item.indexed for item in every)  # type: ignore[union-attr]
        assert "miso" not in words.lower() and "Lena" in words
        memory.forget("t4")
        assert memory.counts(user="ada")["turns"] == 2

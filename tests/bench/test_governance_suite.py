"""The suite of governance: its loop on a model that is made up, its card, its refusals."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from loci.bench import evaluation, governing
from loci.bench.known import known
from loci.bench.suite import Context, find
from loci.errors import ParameterError
from loci.methods.recall.dmm_gov import DmmGov
from loci.nn.patch import Patch
from loci.run.memory import Memory
from loci.text.dialogue import Asked, make_dialogue, turns_of


class MadeUp(governing.Asked):
    """A model that goes wrong with the size of its patch."""

    def __init__(self) -> None:
        self.known = known()
        order = list(range(len(self.known)))
        self.gates, self.requests = order[::2], order[1::2]
        self._first: dict[str, list[int]] = {}
        self._wordings: dict[str, Tensor] = {}

    def logits(self, patch: Patch | None, prompts: Any) -> Tensor:
        size = 0.0 if patch is None else float(patch.delta("layer.0.q_proj").abs().max())
        found = torch.zeros(len(prompts), 3)
        for row, prompt in enumerate(prompts):
            found[row, 1 if Random(prompt).random() > 0.2 + size / 10 else 0] = 1.0
            found[row, 2] = size / 5
        return found

    def _token(self, word: str) -> int:
        return 2 if word == governing.NEW else 1


def patch(size: float) -> Patch:
    return Patch({"layer.0.q_proj": (torch.full((1, 1), size), torch.ones(1, 1))})


def quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


def test_known_beginnings_are_many_and_each_has_one_answer() -> None:
    found = known()
    assert len(found) > 120 and len({prompt for prompt, _ in found}) == len(found)


def test_an_answer_with_what_held_before_is_wrong() -> None:
    asked = Asked(text="where?", answers=("Rome",), wrong=("Ghent",))
    assert evaluation.is_right("in Rome", asked)
    assert not evaluation.is_right("in Rome, or Ghent", asked)
    assert not evaluation.is_right("in Oslo", asked)


def test_what_is_put_before_a_reader_has_the_size_it_says(tmp_path: Path) -> None:
    dialogue = make_dialogue(0, speaker="Nora")
    with Memory(tmp_path / "m.db") as memory:
        evaluation._told(memory, dialogue, infer=True)
        given = evaluation.put_before(memory, turns_of(dialogue), lambda text: len(text.split()))
        assert given["nothing"]("anything") == []
        assert len(given["found 5"](dialogue.questions[0].text)) == 5
        ends = [hit.text for hit in given["last 256"]("anything")]
    assert 200 < sum(len(text.split()) for text in ends) <= 256
    assert ends[-1] == turns_of(dialogue)[-1].content


def test_the_suite_makes_a_card_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    suite = find("governance")
    told = suite.run(
        Context(folder=tmp_path, quick=True, options={"parts": "card", "dialogues": "1"})
    )
    panels = told["card"]["panels"]
    parts = ("correct", "faithful", "fresh", "refusal", "position, worst third")
    assert {(panel["metric"], panel["regime"]) for panel in panels} == {
        (part, regime) for part in parts for regime in ("frozen", "online")
    }
    assert all(panel["low"] <= panel["value"] <= panel["high"] for panel in panels)
    assert all(panel["n"] > 0 for panel in panels)
    [row] = suite.card_rows(told)
    assert row.part == "card" and row.metrics["correct_online"]["this"] > 0.5
    assert row.interval["position_worst_third_online"][1] <= 1.0
    for options in ({"parts": "luck"}, {"luck": "1"}):
        with pytest.raises(ParameterError):
            suite.run(Context(folder=tmp_path, options=options))


def test_the_loop_goes_into_the_card_of_the_method() -> None:
    asked, method = MadeUp(), DmmGov()
    told: dict[str, Any] = {"method": str(method), "seed": 0, "parts": ["loop", "chance"]}
    told["loop"] = governing.loop(asked, patch(0.6), method, runs=2, seed=0, progress=quiet)
    told["certificate"] = governing.certified(asked, patch(0.6), method, seed=3)
    told["chance"] = governing.chance(asked, method, runs=2, seed=0, progress=quiet)
    loop, chance = find("governance").card_rows(told)
    assert told["loop"]["weak_harmful"]["verdict"] == "pass", "efficacy alone is asked for"
    assert told["loop"]["strict_harmful"]["verdict"] == "fail"
    right = told["loop"]["right"]
    assert right["harmful"] < right["solved"] <= right["plain"]
    assert loop.metrics["harmful_caught_within_500"]["this"] == 1.0
    assert (
        loop.metrics["forgeries_found"]["this"] == loop.metrics["rollback_bit_exact"]["this"] == 1
    )
    assert (
        told["certificate"]["changed_while_tried"] and len(told["certificate"]["forgeries"]) == 11
    )
    assert chance.metrics["false_alarms"]["this"] <= 0.5

"""Contexts: the right length, evidence where it is said to be, the same from the same seed."""

from __future__ import annotations

import pytest

from loci.bench import contexts
from loci.bench.contexts import ABILITIES, TASKS, Size, make, settings, size
from loci.errors import ParameterError


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


SIZE = Size(tokens=4096, facts=30)


def text(ids: tuple[int, ...]) -> str:
    return bytes(ids).decode()


@pytest.mark.parametrize("task", TASKS)
def test_every_context_has_its_length_and_its_answers(task: str) -> None:
    item = make(task, Bytes(), SIZE, seed=3)
    assert len(item.ids) == 4096 and len(item.turns) == contexts.TURNS
    whole = text(item.ids)
    for turn in item.turns:
        right, *others = map(text, turn.candidates)
        assert right not in others and len(others) >= 3
        assert all(other in whole for other in others)
        assert right in text(item.ids[slice(*turn.evidence)])
    assert item.chance == pytest.approx(1 / len(item.turns[0].candidates))


@pytest.mark.parametrize("task", [t for t in TASKS if t not in ("many_shot", "tracking")])
def test_a_question_is_the_start_of_what_the_evidence_says(task: str) -> None:
    item = make(task, Bytes(), SIZE, seed=1)
    whole = text(item.ids)
    for turn in item.turns:
        statement = text(turn.question).strip() + text(turn.candidates[0])
        assert whole.count(statement) == 1
        assert text(item.ids[: turn.evidence[1]]).endswith((statement, f"{statement}."))


def test_labels_of_unseen_words_follow_from_their_class() -> None:
    item = make("many_shot", Bytes(), SIZE, seed=5)
    whole, kinds = text(item.ids), settings()["classes"]
    lines = [line.split(": ") for line in whole.splitlines() if line.count(", ") == 2]
    for turn in item.turns:
        asked = text(turn.question).strip().removesuffix(":").split(", ")
        [kind] = [kind for kind, words in kinds.items() if set(asked) <= set(words)]
        same = [(words, label) for words, label in lines if words.split(", ")[0] in kinds[kind]]
        assert same  # prose follows the last one at once
        assert all(label.startswith(text(turn.candidates[0]).strip()) for _, label in same)
        assert not any(word in words for word in asked for words, _ in same)


def test_a_variable_is_tracked_over_another() -> None:
    item = make("tracking", Bytes(), SIZE, seed=5)
    for turn in item.turns:
        first, second = text(item.ids[slice(*turn.evidence)]).strip().splitlines()
        name, value = first.split(" = ")
        assert second == text(turn.question).strip() + f" {name}"
        assert text(turn.candidates[0]) == f" {value}"


def test_seeds_and_parts_differ_and_repeat() -> None:
    items = [
        make("needle", Bytes(), SIZE, seed, part=part)
        for seed in (0, 1)
        for part in ("dev", "test")
    ]
    assert len({item.ids for item in items}) == 4
    assert items[0] == make("needle", Bytes(), SIZE, 0, part="dev")


def test_every_task_has_an_ability_and_sizes() -> None:
    assert sorted(sum(ABILITIES.values(), ())) == sorted(TASKS)
    for name in settings()["size"]:
        assert all(size(task, name).facts >= contexts.TURNS for task in TASKS)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ParameterError, match="no such task"):
        make("riddle", Bytes(), SIZE, 0)
    with pytest.raises(ParameterError, match="no such size"):
        size("needle", "huge")
    with pytest.raises(ParameterError, match="do not fit the context"):
        make("needle", Bytes(), Size(tokens=64, facts=30), 0)
    with pytest.raises(ParameterError, match="a fact of its own"):
        make("needle", Bytes(), SIZE, 0, turns=31)
    with pytest.raises(ParameterError, match="unknown part"):
        make("needle", Bytes(), SIZE, 0, part="train")

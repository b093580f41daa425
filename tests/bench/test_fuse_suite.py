"""The suite of fused caches: its world, its controls, its options, a quick run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.bench import facts
from loci.bench.facts import WORDS, World
from loci.bench.suite import Context, measuring
from loci.bench.suites import fuse
from loci.errors import ParameterError
from loci.methods import catalogue


def said(ids: torch.Tensor) -> str:
    """Return tokens as words; names as <1st> and <last>."""
    digits = [str(digit) for digit in range(facts.DIGITS)]
    names = ["<1st>"] * facts.PARTS + ["<last>"] * facts.PARTS
    return " ".join([*WORDS, *digits, *names][token] for token in ids.tolist())


def test_who_knows_whom() -> None:
    world = World.of(seed=3)
    assert len(world.shared) == facts.SHARED and len(world.own) == facts.OWN
    first = [set((names // facts.PARTS).tolist()) for names in (world.shared, world.own)]
    assert not first[0] & first[1], "a first name is in both sets"
    everyone = torch.cat([world.shared, world.own, world.other])
    assert len(everyone.unique()) == len(everyone) == facts.PARTS**2
    assert torch.equal(World.of(seed=3).codes, world.codes)


def test_what_is_asked_and_answered() -> None:
    world = World.of()
    name = world.shared[:1]
    code = " ".join(map(str, world.codes[name][0].tolist()))
    assert said(world.question(name)[0]) == "what is code of <1st> <last> ? answer :"
    assert said(world.digits(name)[0]) == f"{code} ."
    assert said(world.wrapped(name)[0]) == f"ANSWER[ {code} ]"
    assert said(world.fact(name)[0]) == f"code of <1st> <last> is {code} ."
    assert said(world.order(name)[0]) == "tell <1st> <last> :"
    other = torch.tensor([[9, 8, 7, 6]])
    assert said(world.wrapped(name, other)[0]) == "ANSWER[ 9 8 7 6 ]"
    assert world.fact(name).shape[1] == facts.FACT
    assert world.wrapped(name).shape[1] == facts.ANSWER
    assert world.digits(name).shape[1] == facts.SAID


def test_a_shuffled_prompt_has_the_same_words_and_ends_alike() -> None:
    prompt = World.of().question(torch.arange(40))
    mixed = fuse._shuffled(prompt)
    assert torch.equal(mixed.sort(1).values, prompt.sort(1).values)
    assert torch.equal(mixed[:, -1], prompt[:, -1])
    assert (mixed != prompt).any(1).float().mean() > 0.95


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the models that are trained on the spot smaller still."""
    sizes = {"hidden": 32, "heads": 1, "kv_heads": 1, "ffn": 32}
    specs = {name: facts._spec(name, layers=n, **sizes) for name, n in (("sharer", 3), ("r", 2))}
    monkeypatch.setattr(facts, "sharer_spec", lambda: specs["sharer"])
    monkeypatch.setattr(facts, "receiver_spec", lambda: specs["r"])
    monkeypatch.setattr(facts, "BATCH", 4)


def test_a_quick_run_and_its_card_rows(small: None, tmp_path: Path) -> None:
    context = Context(
        folder=tmp_path, quick=True, methods=("c2c(hidden=4)",), options={"probe": "1"}
    )
    found = fuse.run(context)
    assert found["names"] == {"learned": 28, "A asked": 6, "B asked": 6}
    assert len(found["probe"]) == 9 and len(found["probe"][0]) == facts.PLACES
    measured = found["methods"]["c2c(hidden=4)"]
    assert measured["closed"] == 0, "closed gates changed something"
    assert set(measured["times"]) == {"a fact in words", "digits in words"}
    (row,) = fuse.card_rows(found)
    assert row.method == "c2c(hidden=4)" and row.part == ""
    assert set(row.ratio) == {"answer_s over a fact in words", "answer_s over digits in words"}
    again = fuse.run(context)  # models are there and are not trained anew
    assert again["fingerprint"] == found["fingerprint"]


def test_it_is_the_suite_that_measures_the_method() -> None:
    assert measuring(catalogue.find("c2c")) == ["fuse"]


def test_bad_options_are_named(tmp_path: Path) -> None:
    for options, words in (
        ({"learn": "B"}, "learns on A, or on both"),
        ({"ahead": "2"}, "looks ahead is what is measured"),
        ({"lern": "A"}, "no such option"),
    ):
        with pytest.raises(ParameterError, match=words):
            fuse.run(Context(folder=tmp_path, options=options))

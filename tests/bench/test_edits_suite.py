"""The suite of edits: cases that do not mix, scores by hand, rivals that keep their box."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from loci.bench import editing
from loci.bench.edit_rivals import constrained_tuning
from loci.bench.editing import Case, asked, cases, drift, relations, scored
from loci.bench.suite import Context, find
from loci.bench.suites import edits as suite
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.train.base import Fact, down
from loci.nn.patch import Patch
from loci.run.edit_model import PackModel
from loci.testing.models import tiny_pack
from loci.testing.train import FACTS, LetterEmbedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackModel:
    return PackModel(tiny_pack(tmp_path_factory.mktemp("edited"), layers=3, seed=5))


def _knows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        editing, "likelihoods", lambda model, facts, *rest: [(True, 0.0)] * len(facts)
    )


def test_cases_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    _knows_all(monkeypatch)
    develop, test = cases(None, 60)  # type: ignore[arg-type]
    assert len(test) == 60 and len(develop) == 18
    assert len({case.relation for case in test}) == 9
    edited = {(case.relation, case.fact.subject) for case in test}
    tuned = {(case.relation, case.fact.subject) for case in develop}
    assert not edited & tuned and len(edited) == 60
    for case in test:
        asked_about = {(case.relation, near.subject) for near in case.neighbours}
        assert len(asked_about) == 5 and not asked_about & (edited | tuned)
    for case in (*develop, *test):
        assert case.fact.target != case.truth and len(case.paraphrases) == 2
        assert all(near.target != "" for near in case.neighbours)
        assert case.fact.prompt not in {other.prompt for other in case.paraphrases}


def test_the_same_seed_gives_the_same_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    _knows_all(monkeypatch)
    assert cases(None, 9, 1) == cases(None, 9, 1) != cases(None, 9, 2)  # type: ignore[arg-type]


def test_more_cases_than_are_known_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _knows_all(monkeypatch)
    with pytest.raises(ParameterError, match="knows too few"):
        cases(None, 5000)  # type: ignore[arg-type]
    monkeypatch.setattr(
        editing, "likelihoods", lambda model, facts, *rest: [(False, 0.0)] * len(facts)
    )
    with pytest.raises(ParameterError, match=r"too few.*up to 0"):
        cases(None, 1)  # type: ignore[arg-type]


def test_every_relation_has_its_wordings() -> None:
    for name, relation in relations().items():
        assert len(relation["paraphrases"]) == 2, name
        for words in (relation["prompt"], *relation["paraphrases"]):
            assert words.count("{}") == 1, name
        assert len(relation["answers"]) >= 20, name
        for subject, answer in relation["answers"].items():
            assert asked(relation, subject, answer).subject in relation["prompt"].replace(
                "{}", subject
            )


def test_scores_by_hand() -> None:
    def fact(prompt: str, target: str = "new") -> Fact:
        return Fact(prompt=prompt, subject="A", target=target)

    case = Case(
        relation="r",
        fact=fact("A is"),
        truth="old",
        paraphrases=(fact("A, that is"), fact("Of A I say")),
        neighbours=tuple(fact(f"A{n} is", "own") for n in range(5)),
    )
    said = {("A is", "new"), ("A, that is", "new"), ("A0 is", "own"), ("A3 is", "own")}
    likely = {("A is", "new"): -1.0, ("A is", "old"): -2.0, ("Of A I say", "new"): -1.0}

    def answers(facts: Sequence[Fact]) -> list[tuple[bool, float]]:
        keys = [(one.prompt, one.target) for one in facts]
        return [(key in said, likely.get(key, -3.0)) for key in keys]

    [score] = scored([case], answers)
    assert (score.said, score.likelier) == (1.0, 1.0)
    assert (score.paraphrased, score.paraphrased_likelier) == (0.5, 0.5)
    assert score.kept == pytest.approx(0.4)


def test_without_an_edit_nothing_drifts(model: PackModel) -> None:
    texts, full = [torch.arange(60, 90)], []  # type: ignore[var-annotated]
    assert drift(model, texts, None, full) == (0.0, 1.0)
    size = model.spec.hidden
    patch = Patch({down(2): (torch.randn(size, 1, generator=torch.Generator().manual_seed(0)),
                             torch.ones(1, model.spec.ffn))})  # fmt: skip
    kl, ratio = drift(model, texts, patch, full)
    logs = [
        torch.log_softmax(model.ends([texts[0].tolist()], [30], p)[0], -1) for p in (None, patch)
    ]
    wanted = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert kl == pytest.approx(float(wanted), rel=1e-4) and kl > 0
    gap = [log[:-1].gather(1, texts[0][1:, None]).mean() for log in logs]
    assert ratio == pytest.approx(float((gap[0] - gap[1]).exp()), rel=1e-4)


def test_tuning_stays_in_its_box(model: PackModel) -> None:
    patch = constrained_tuning(model, FACTS[0], 1, steps=12, rate=1e-2, box=3e-2)
    delta = patch.delta(down(1))
    assert float(delta.abs().max()) == pytest.approx(3e-2, rel=1e-5)
    before, after = (editing.likelihoods(model, [FACTS[0]], p)[0][1] for p in (None, patch))
    assert after > before + 0.5


def test_a_patch_that_was_taken_away_leaves_nothing(model: PackModel) -> None:
    patch = constrained_tuning(model, FACTS[0], 1, steps=2)
    assert suite.undone(model.pack, patch)
    nothing = Patch({down(1): (torch.zeros(model.spec.hidden, 1), torch.ones(1, model.spec.ffn))})
    assert not suite.undone(model.pack, nothing), "a patch that does nothing proves nothing"


def test_lessons_are_of_relations_that_no_case_is_of() -> None:
    own = {n: r for n, r in relations().items() if r.get("only") != "training"}
    prompts = {r["prompt"].split("{}")[0] for r in own.values()}
    lessons = suite.triples()
    assert len(lessons) > 300
    assert not any(
        lesson.fact.prompt.split(lesson.fact.subject)[0] in prompts - {""} for lesson in lessons
    )
    assert all(lesson.other != lesson.fact.prompt for lesson in lessons)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    for options, methods, why in (
        ({"pieces": "3"}, (), "no such option"),
        ({"cases": "many"}, (), "whole number"),
        ({}, ("fcfs",), "no train method"),
    ):
        with pytest.raises(ParameterError, match=why):
            find("edits").run(Context(folder=tmp_path, options=options, methods=methods))


def test_rows_of_a_card_name_the_rivals() -> None:
    three: dict[str, Any] = {
        "said": 1.0, "likelier": 1.0, "paraphrased": 0.5, "paraphrased_likelier": 0.7,
        "kept": 0.9, "harmonic": 0.7, "interval": {"said": [0.9, 1.0]},
    }  # fmt: skip
    found = three | {"seconds": 2.0, "bytes": 10, "undone": True, "rivals": {"tuning": three}}
    [row] = suite.card_rows({"seeds": [0], "methods": {"rome": found}})
    assert row.part == ""
    [own] = suite.card_rows(
        {"seeds": [0], "methods": {"rome": found}, "covariance_text": "mine.txt"}
    )
    assert own.part == "C over mine.txt"
    assert row.method == "rome" and row.bytes == {"measured": 10}
    assert row.metrics["said"] == {"this": 1.0, "rivals": {"tuning": 1.0}}
    assert row.metrics["undone"] == {"this": 1.0} and row.interval == {"said": (0.9, 1.0)}


def test_the_whole_suite_on_a_tiny_model(
    model: PackModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def case(fact: Fact) -> Case:
        other = Fact(prompt="The sea of Cy is", subject="Cy", target="wide")
        return Case(
            relation="r", fact=fact, truth="old", paraphrases=(fact, fact), neighbours=(other,)
        )

    monkeypatch.setattr(suite, "resolve", lambda name, folder: model.pack)
    monkeypatch.setattr(suite, "cases", lambda *rest: ([], [case(fact) for fact in FACTS]))
    monkeypatch.setattr("loci.models.embed.MiniLM", lambda folder: LetterEmbedder())
    methods = (
        "rome(layer=1, steps=2, openings=1)",
        "memit(layers=(0, 1), steps=2, openings=1)",
        "mend(last=1, rank=2, steps=20)",
        "serac(steps=20)",
    )
    result = suite.run(Context(folder=tmp_path, methods=methods, quick=True))
    assert list(result["methods"]) == [str(catalogue.find(text)) for text in methods], (
        "in the order in which they are run"
    )
    for row in suite.card_rows(result):
        assert {"said", "paraphrased", "kept", "seconds", "undone"} <= set(row.metrics)
        assert row.metrics["undone"]["this"] == 1.0, row.method
    rome, memit = (result["methods"][str(catalogue.find(text))] for text in methods[:2])
    assert set(rome["rivals"]) == {"tuning", "prompt"} and rome["covariance_tokens"] > 10_000
    assert set(memit["rivals"]) == {"rome_sum", "prompt"} and memit["facts"] == 2
    json.dumps(result)

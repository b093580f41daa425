"""The router of prompts: what it looks at, what it refuses, and how often it is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from loci.errors import FingerprintError, FormatError, ParameterError
from loci.methods import catalogue
from loci.methods.kv.windowkv import WindowKV
from loci.run.route import ENDS, Router, ends_of, fitted, routed, shipped
from loci.testing.instructions import TASKS, instructions, pieces, prompts


class Words:
    """Embeds a text by which of a few words stand in it."""

    fingerprint = "words"
    known = ("what", "which", "where", "summar", "overview", "main")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[float(word in text.lower()) for word in self.known] for text in texts]
        return np.asarray(rows, np.float32).reshape(len(texts), len(self.known))


@pytest.fixture(scope="module")
def router() -> Router:
    texts = [
        "What is it?",
        "Which one?",
        "Where?",
        "Summarize.",
        "An overview.",
        "The main points.",
    ]
    kinds = ["look_up"] * 3 + ["sum_up"] * 3
    return fitted([*texts, "Some prose.", "More of it."], [*kinds, "text", "text"], Words())


@pytest.mark.parametrize("form", ["{i}\n\n{t}", "{t}\n\n{i}", "{i}\n\n{t}\n\n{i}"])
def test_the_instruction_is_found_at_either_end(router: Router, form: str) -> None:
    prose = "It rains a lot here, and then it stops. " * 40
    asks, sums = (form.format(i=i, t=prose) for i in ("Which town is it?", "Give an overview."))
    assert router.task(asks, Words()) == "look_up" and router.leaning(asks, Words()) < -0.5
    assert router.task(sums, Words()) == "sum_up" and router.leaning(sums, Words()) > 0.5


def test_only_the_ends_are_looked_at(router: Router) -> None:
    head, tail = ends_of("a" * 500 + "\n\n" + "What, which, where? " * 50 + "\n\n" + "z" * 500)
    assert head == "a" * ENDS and tail == "z" * ENDS
    assert ends_of("one paragraph") == ["one paragraph"] * 2
    assert ends_of("") == ["", ""]


def test_a_router_comes_back_from_its_text(router: Router) -> None:
    again = Router.from_json(router.to_json())
    assert again.embedder == "words"
    np.testing.assert_allclose(again.weights, router.weights, atol=1e-3)
    for text in ("{", "[]", '{"format": "other", "version": 2}', "{}"):
        with pytest.raises(FormatError):
            Router.from_json(text)


def test_what_it_was_not_fitted_for_is_refused(router: Router) -> None:
    with pytest.raises(FingerprintError, match="another embedder"):
        shipped().task("What?", Words())
    with pytest.raises(ParameterError, match="every kind"):
        fitted(["a", "b"], ["look_up", "sum_up"], Words())


def test_only_methods_that_go_by_the_task_are_changed(router: Router) -> None:
    chain = catalogue.parse_chain("windowkv(window=4) | bfp(bits=4)", "kv")
    found = routed(chain, "Some prose.\n\nGive an overview.", Words(), router)
    assert found == (WindowKV(window=4, strategy="average"), chain[1])
    assert routed(chain, "Some prose.\n\nWhich town?", Words(), router) == chain
    alone = chain[1:]
    assert routed(alone, "anything", Words()) == alone  # nobody asks, nothing is embedded


def test_instructions_are_parted_and_prompts_repeat() -> None:
    for task in TASKS:
        fit, held = (set(instructions(task, half)) for half in ("fit", "held_out"))
        assert len(fit) >= 14 and len(held) >= 14 and not fit & held
    assert prompts("fit", 6) == prompts("fit", 6) != prompts("fit", 6, seed=1)
    assert [task for _, task in prompts("held_out", 4)] == ["look_up", "sum_up"] * 2
    kinds = [kind for _, kind in pieces("fit")]
    assert kinds.count("text") == len(kinds) / 2


@pytest.mark.model
def test_the_shipped_router_is_right_about_instructions_it_never_saw() -> None:
    from loci import config
    from loci.bench.embedding import embedder
    from loci.bench.suites.fit_route import judged

    given = embedder(config.load().models_dir)
    if given is None:
        pytest.skip("minilm was not pulled")
    right = judged(shipped(), given, 40)
    assert sum(right) / len(right) >= 0.85

"""Facts taught to a model, judged in wordings it was not taught."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loci.core.cube import Policy
from loci.core.item import Item
from loci.errors import FingerprintError, MethodError, ParameterError
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.run import distil as made
from loci.run.distil import (
    RECIPE,
    Distilled,
    Probe,
    again,
    check,
    cube_of,
    distil,
    fitted,
    sample_of,
)
from loci.run.greedy import Greedy
from loci.run.trainer import MLP, Recipe
from loci.testing.models import tiny_pack
from loci.text.quiz import quizzes

QUICK = Recipe(linears=MLP, rank=4, steps=12, batch=4, rate=1e-2, every=12, retain=0.1)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with tiny_pack(tmp_path_factory.mktemp("model"), max_context=512, layers=1) as opened:
        yield opened


def fact(id: str = "i1", value: str = "Utrecht") -> Item:
    return Item(
        id=id,
        text=f"Nora lives in {value}",
        subject="nora",
        predicate="lives_in",
        object=value.lower(),
    )


def test_a_fact_is_taught(pack: Pack) -> None:
    told: list[str] = []
    found = distil(pack, [fact()], QUICK, progress=lambda what, done, total: told.append(what))
    assert found.losses[-1] < 0.7 * found.losses[0]
    assert found.items == ("i1",) and found.fingerprint == pack.spec.fingerprint
    assert found.probe.asked == 2 and found.probe.facts == 1 and found.probe.base == 0
    assert found.probe.kl > 0
    assert set(told) == {"asking about strangers", "training an adapter", "asking what it knows"}
    header, payload = cube_of(found, "ada")
    assert header.parents == ("i1",) and header.fingerprint == pack.spec.fingerprint
    assert payload.facts["items"] == ["i1"] and payload.facts["probe"]["asked"] == 2
    words = f"{header}{payload.facts}{payload.texts}"
    assert "Utrecht" not in words and "Nora" not in words


def test_a_probe_says_what_is_accepted() -> None:
    good = Probe(asked=20, answered=14, base=0, strangers=0, facts=10, known=8, kl=0.02)
    assert good.is_accepted and good.to_json()["accepted"] is True
    for bad in (replace(good, answered=13), replace(good, kl=0.021)):
        assert not bad.is_accepted
    with pytest.raises(MethodError, match="13 of 20"):
        check(_found(replace(good, answered=13)), "ada")
    check(_found(good), "ada")


def _found(probe: Probe) -> Distilled:
    from loci.nn.patch import Patch

    return Distilled(patch=Patch({}), fingerprint="", items=("i1",), probe=probe, recipe=QUICK)


def test_a_sample_is_a_turn_in_the_chat_format(pack: Pack) -> None:
    tokenizer = Tokenizer(pack.folder)
    one = sample_of(tokenizer, "Where?", "Here.")
    assert tokenizer.decode(one.prompt, special=True) == (
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(one.target, special=True) == "Here.<|im_end|>"


def test_made_anew_from_what_is_left(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def quick(pack: Pack, items: object, **given: object) -> Distilled:
        left = list(items)  # type: ignore[call-overload]
        seen.append([item.id for item in left])
        return replace(_found(_one()), items=tuple(item.id for item in left), fingerprint=base)

    base = pack.spec.fingerprint
    monkeypatch.setattr(made, "distil", quick)
    kept = {id: fact(id) for id in ("i1", "i3")}
    whole = replace(_found(_one()), items=("i1", "i2", "i3"), fingerprint=base)
    header, payload = cube_of(whole, "ada")
    header = replace(header, policy=Policy(owner="ada"))
    fresh = again(header, payload, frozenset({"i3"}), read=kept.get, pack=pack)
    assert fresh is not None and seen == [["i1"]]
    assert fresh[0].parents == ("i1",) and fresh[1].facts["items"] == ["i1"]
    assert (fresh[0].id, fresh[0].policy, fresh[1].facts["name"]) == (
        header.id,
        header.policy,
        "ada",
    )
    assert again(header, payload, frozenset({"i1", "i3"}), read=kept.get, pack=pack) is None
    with pytest.raises(FingerprintError):
        again(replace(header, fingerprint="other"), payload, frozenset(), read=kept.get, pack=pack)


def _one() -> Probe:
    return Probe(asked=1, answered=1, base=0, strangers=0, facts=1, known=1, kl=0.0)


def test_strangers_and_prose_are_retained(pack: Pack) -> None:
    tokenizer = Tokenizer(pack.folder)
    kept = made.to_retain(pack, quizzes([fact()]))
    texts = [tokenizer.decode((*one.prompt, *one.target)) for one in kept]
    assert made.PIECES < len(texts) <= made.PIECES + 5
    assert any("Where does Kim live?" in text for text in texts)
    assert not any("Nora" in text for text in texts)


def test_a_recipe_fits_models_of_other_depth() -> None:
    assert RECIPE.layers is not None
    assert fitted(RECIPE, 30).layers == RECIPE.layers
    for layers in (1, 2, 12, 60):
        found = fitted(RECIPE, layers).layers
        assert found is not None and 0 <= found[0] <= found[1] == layers - 1


def test_nothing_to_teach_is_refused(pack: Pack) -> None:
    with pytest.raises(ParameterError, match="nothing to teach"):
        distil(pack, [])


def test_greedy_answers_go_on_as_the_most_likely_tokens(pack: Pack, tmp_path: Path) -> None:
    from loci.run.learner import Learner

    plain = Learner(pack, {})
    prompt = tuple(range(40, 70))
    with Greedy(pack, context=128) as reader:
        said = reader.answer(prompt, 6)
        assert reader.answer((*prompt, 9), 6) != said or said == []
        assert reader.answer(prompt, 6) == said
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        held = reader.answer(prompt, 40, {**schema, "additionalProperties": False})
        assert reader.tokenizer.decode(held).replace(" ", "") in ('{"a":true}', '{"a":false}')
    ids = list(prompt)
    for token in said:
        logits = plain.head(plain.hidden([tuple(ids)])[0])[-1]
        assert int(logits.argmax()) == token
        ids.append(token)

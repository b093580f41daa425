"""Text into an adapter: facts of a memory, taught to a model until it answers without them.

MemOS (Z. Li et al., 2025, arXiv:2505.22101) turns plaintext that is stable into parametric memory.
How is not in the paper; this is our reconstruction. Every fact becomes questions in several
wordings with one answer (`text.quiz`), and the small trainer learns the answers, in the chat format
of the model. Two things hold it back, both by the KL to the model without the adapter: general
prose, and the same questions about people nobody spoke of.

An adapter is accepted by a probe, never by its loss: asked in wordings it was not taught, without
the facts in the prompt, it names the values of enough facts; and on prose it was not taught it says
what the model says. The probe's figures stay with the adapter, and the ids of the items it was made
from, but none of their words: its file keeps nothing of what is forgotten in the memory, and an
adapter without a fact is made from the memory anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any  # a card is JSON values

import torch

from loci.core.cube import CubeHeader
from loci.core.item import Item
from loci.errors import FingerprintError, MethodError, ParameterError
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.patch import Patch
from loci.run import adapters
from loci.run.adapters import Adapter
from loci.run.greedy import Greedy
from loci.run.learner import Sample, kl_of_patch
from loci.run.trainer import ATTENTION, MLP, Progress, Recipe, train
from loci.store.cube_file import Payload
from loci.text.prose import first_half, prose
from loci.text.quiz import Quiz, quizzes

Made = tuple[CubeHeader, Payload]
EPOCHS, MIN_STEPS = 10, 40  # how often every question is taught
ANSWERED, KL = 0.7, 0.02  # what an adapter must reach to be accepted
TOKENS = 48  # of an answer
PIECE, PIECES, JUDGED = 48, 24, 12  # tokens of a piece of prose; pieces to retain, and to judge by
STRANGE, STRANGE_TOKENS = 24, 16  # questions about strangers to retain, tokens of their answers
STRANGERS = ("Kim", "Alex", "Robin", "Sascha")  # people nobody spoke of

# Chosen on 20 development facts (`loci bench run distil --seed 1000 --option half=development`),
# where the upper third of the layers was enough: 40 of 40 questions, 0.0037 nats a token.
RECIPE = Recipe(
    linears=ATTENTION + MLP,
    layers=(20, 29),
    rank=8,
    alpha=16.0,
    steps=120,
    batch=8,
    rate=1e-3,
    retain=4.0,
    retain_tokens=24,
    every=40,
    enough=0.02,
)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What an adapter is worth, on wordings and prose it was not taught.

    Attributes:
        asked, answered: questions in held-out wordings, and those whose values were all named.
        base: how many of them the model answers without the adapter.
        strangers: of the same questions about strangers, how many got the values of the facts.
        facts, known: facts in all, and those answered in at least one held-out wording.
        kl: to the model without the adapter on held-out prose, nats per token.
    """

    asked: int
    answered: int
    base: int
    strangers: int
    facts: int
    known: int
    kl: float

    @property
    def is_accepted(self) -> bool:
        """Whether enough is known, and little else changed."""
        return self.answered >= ANSWERED * self.asked and self.kl <= KL

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self) | {"accepted": self.is_accepted}


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled:
    """An adapter, the items it was made from, and what it is worth.

    Attributes:
        patch: in float16.
        fingerprint: of the model it stands beside.
        losses: cross entropy of targets at every step.
    """

    patch: Patch
    fingerprint: str
    items: tuple[str, ...]
    probe: Probe
    recipe: Recipe
    losses: tuple[float, ...] = field(default=(), repr=False)


def distil(
    pack: Pack,
    items: Iterable[Item],
    recipe: Recipe | None = None,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Return an adapter that knows the items; whether it is accepted is in its probe.

    Args:
        recipe: None takes ours, with layers as the model has them and steps for these facts.
        state: a file that a training which is cut off goes on from.

    Raises:
        ParameterError: if there is nothing to teach.
        ModelError: if the model has no chat format.
    """
    facts = list(items)
    if not facts:
        raise ParameterError(
            "there is nothing to teach", way_out="name items, or a user who has facts"
        )
    asked = quizzes(facts)
    tokenizer = Tokenizer(pack.folder)
    taught = [sample_of(tokenizer, question, q.answer) for q in asked for question in q.learn]
    if recipe is None:
        steps = max(MIN_STEPS, -(-EPOCHS * len(taught) // RECIPE.batch))
        recipe = replace(fitted(RECIPE, pack.spec.layers), steps=steps)
    done = train(
        pack,
        taught,
        recipe,
        retain=to_retain(pack, asked, recipe.seed, progress=progress),
        held_out=[sample_of(tokenizer, question, q.answer) for q in asked for question in q.look],
        state=state,
        progress=progress,
    )
    patch = Patch({n: (le.half(), ri.half()) for n, (le, ri) in done.patch.parts.items()})
    probe = probed(pack, patch, asked, progress=progress)
    return Distilled(
        patch=patch,
        fingerprint=pack.spec.fingerprint,
        items=tuple(fact.id for fact in facts),
        probe=probe,
        recipe=recipe,
        losses=done.losses,
    )


def probed(
    pack: Pack, patch: Patch, asked: Sequence[Quiz], *, progress: Progress | None = None
) -> Probe:
    """Return what an adapter answers in held-out wordings, and what else it changed."""
    tokenizer = Tokenizer(pack.folder)
    questions = [(question, quiz) for quiz in asked for question in quiz.judge]
    total = 3 * len(questions)

    def said(reader: Greedy, text: str, done: int) -> str:
        if progress is not None:
            progress("asking what it knows", done, total)
        return tokenizer.decode(reader.answer(_prompt(tokenizer, text), TOKENS))

    found: dict[bool, list[bool]] = {}
    with Greedy(pack) as reader:
        for at, patched in enumerate((False, True)):
            reader.use(patch if patched else None)
            found[patched] = [
                quiz.is_answered(said(reader, question, at * len(questions) + done))
                for done, (question, quiz) in enumerate(questions)
            ]
        strange = [
            quiz.is_answered(said(reader, question, 2 * len(questions) + done))
            for done, (question, quiz) in enumerate(_of_strangers(asked, judged=True))
        ]
    known = sum(
        len(quiz.items)
        for quiz in asked
        if any(ok for ok, (_, of) in zip(found[True], questions, strict=True) if of is quiz)
    )
    return Probe(
        asked=len(questions),
        answered=sum(found[True]),
        base=sum(found[False]),
        strangers=sum(strange),
        facts=sum(len(quiz.items) for quiz in asked),
        known=known,
        kl=kl_of_patch(pack, patch, _pieces(tokenizer, prose()[len(first_half()) :], JUDGED)),
    )


def check(found: Distilled, name: str) -> None:
    """Refuse an adapter that its probe does not accept.

    Raises:
        MethodError: with the figures, and what to do.
    """
    probe = found.probe
    if not probe.is_accepted:
        raise MethodError(
            f"the adapter {name} is not accepted: it answers {probe.answered} of {probe.asked} "
            f"questions, and changes other text by {probe.kl:.3f} nats a token",
            allowed=f"at least {ANSWERED:.0%} of the questions, at most {KL} nats a token",
            way_out="teach fewer facts at once; they are still in the memory as text",
        )


def cube_of(
    found: Distilled, name: str, header: CubeHeader | None = None, *, model: str | None = None
) -> Made:
    """Return what was distilled as a cube, its probe in the facts; none of its words are there.

    Args:
        header: of the cube whose place it takes: id, owner and policy stay.
        model: what the model is called here, so that it is found when this is made anew.
    """
    id = "" if header is None else header.id
    adapter = Adapter(name=name, patch=found.patch, base=found.fingerprint, id=id)
    facts = {"items": list(found.items), "probe": found.probe.to_json(), "model": model}
    fresh, payload = adapters.cube_of(adapter, parents=found.items, made_by="distil", facts=facts)
    return (fresh if header is None else replace(fresh, policy=header.policy)), payload


def again(
    header: CubeHeader,
    payload: Payload,
    erased: frozenset[str],
    *,
    read: Callable[[str], Item | None],
    pack: Pack,
    progress: Progress | None = None,
) -> Made | None:
    """Make an adapter anew, from nothing, without the erased items: a `Retrain` of `run.erase`.

    What the old adapter was taught is not in its file, so the rest is read from the memory.

    Args:
        read: returns an item by its id, None where there is none any more.

    Returns:
        None where nothing is left to teach.

    Raises:
        MethodError: if what is made is not accepted.
        FingerprintError: if the pack is of another model.
    """
    if header.fingerprint != pack.spec.fingerprint:
        raise FingerprintError(
            f"the adapter {header.id} is of another model",
            value=pack.spec.fingerprint,
            allowed=header.fingerprint,
        )
    wanted = [str(id) for id in payload.facts.get("items", ()) if id not in erased]
    left = [item for item in map(read, wanted) if item is not None]
    if not left:
        return None
    name = str(payload.facts.get("name", header.id))
    found = distil(pack, left, progress=progress)
    check(found, name)
    return cube_of(found, name, header, model=payload.facts.get("model"))


def fitted(recipe: Recipe, layers: int) -> Recipe:
    """Return a recipe made for a model of 30 layers with layers at the same depth of another."""
    if recipe.layers is None:
        return recipe
    first, last = recipe.layers
    return replace(recipe, layers=(first * layers // 30, max(0, (last + 1) * layers // 30 - 1)))


def sample_of(tokenizer: Tokenizer, question: str, answer: str) -> Sample:
    """Return a question and its answer in the chat format, to the token that ends a turn."""
    prompt = _prompt(tokenizer, question)
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    whole = tokenizer.chat(said, add_generation=False)
    assert whole[: len(prompt)] == prompt, "a prompt is how its conversation begins"
    target = whole[len(prompt) :]
    ends = [at for at, id in enumerate(target) if id in tokenizer.eos_ids]
    return Sample(tuple(prompt), tuple(target[: ends[0] + 1] if ends else target))


def to_retain(
    pack: Pack, asked: Sequence[Quiz], seed: int = 0, *, progress: Progress | None = None
) -> list[Sample]:
    """Return what must stay as it is: prose, and what the model answers about strangers."""
    tokenizer = Tokenizer(pack.folder)
    prose_ids = _pieces(tokenizer, first_half(), PIECES)
    strange = [question for question, _ in _of_strangers(asked)]
    draw = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(strange), generator=draw)[:STRANGE].tolist()
    found = [Sample((ids[0],), tuple(ids[1:])) for ids in prose_ids]
    with Greedy(pack) as reader:
        for done, at in enumerate(kept):
            if progress is not None:
                progress("asking about strangers", done, len(kept))
            prompt = _prompt(tokenizer, strange[at])
            said = reader.answer(prompt, STRANGE_TOKENS)
            if said:
                found.append(Sample(tuple(prompt), tuple(said)))
    return found


# -- private ----------------------------------------------------------------------------------


def _prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    return tokenizer.chat([{"role": "user", "content": question}])


def _of_strangers(asked: Sequence[Quiz], *, judged: bool = False) -> list[tuple[str, Quiz]]:
    """Return the questions about people nobody spoke of, with whose answers they must not get."""
    found = []
    for at, quiz in enumerate(asked):
        for question in quiz.strange(STRANGERS[at % len(STRANGERS)], judged=judged):
            found.append((question, quiz))
    return found


def _pieces(tokenizer: Tokenizer, text: str, count: int) -> list[list[int]]:
    """Return pieces of a text, evenly spread."""
    ids = tokenizer.encode(text[: 40 * PIECE * count])
    step = max(PIECE, len(ids) // count)
    return [ids[at : at + PIECE] for at in range(0, len(ids) - PIECE + 1, step)][:count]

"""Experts made: each learns its operation from drawn lessons, is tried on others, and is kept.

Lessons are drawn by rule (`run.expert_lessons`), so nothing but the model is needed. What is
learned stands beside the upper layers: what the lower ones hand up is read once a lesson, and
minutes of one processor are enough. A training that was cut off goes on where it was; an expert
that was made from the same lessons with the same recipe is not made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any  # facts and schemas are JSON values

from loci.errors import NotFoundError
from loci.methods.recall.memlora import (
    ANSWER,
    ANSWERED,
    EXPERTS,
    EXTRACT,
    FACTS,
    MEMLORA,
    OTHER,
    UPDATE,
    event_of,
    known,
    related,
)
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.patch import Patch
from loci.run.artefacts import path_of
from loci.run.distil import sample_of
from loci.run.expert_lessons import Lesson, drawn, is_right, lessons, parts, reply_of
from loci.run.experts import expert, expert_path, keep_expert
from loci.run.greedy import Greedy
from loci.run.trainer import ATTENTION, MLP, Progress, Recipe, train

# Chosen for updates on the development people, 48 facts on smollm2. Asked for the number of one of
# three memories, with products in the upper third of the layers: macro-F1 0.31. One memory a time,
# four answers: 0.58. Two answers, lessons even in what has ended, the upper two thirds: 0.96.
CONVERSATIONS = 90  # that lessons are drawn from
TAUGHT = {EXTRACT: 480, UPDATE: 640, ANSWER: 480}
STEPS = {EXTRACT: 120, UPDATE: 140, ANSWER: 120}
THIRDS = {EXTRACT: 1, UPDATE: 1, ANSWER: 2}  # of the layers, below which an adapter has no products
TRIED, TRIED_OF = 24, 12  # lessons of a trial, conversations they are drawn from
TOKENS = {EXTRACT: 64, UPDATE: 16, ANSWER: 48}
SAVED = 20  # steps from one saved state to the next

Learned = tuple[Patch, Mapping[str, Any]]


def prepare_experts(
    pack: Pack,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the three experts of a model as JSON values, made where they are not there.

    Each is tried on people and wordings nobody taught it: "right" of "tried" in its facts.

    Args:
        steps: of every training; None takes ours.
    """
    told = lessons("taught", CONVERSATIONS, seed)
    found: dict[str, Any] = {}
    for name in EXPERTS:
        recipe = recipe_of(name, pack.spec.layers, steps=steps, seed=seed)
        taught = drawn(parts(told[name]), TAUGHT[name], seed)
        patch, facts = learned(pack, name, taught, recipe, progress=progress)
        if "right" not in facts:
            facts = {**facts, **tried(pack, name, patch, seed=seed, progress=progress)}
            keep_expert(pack, name, patch, facts)
        shown = ("lessons", "seconds", "processor_s", "tried", "right")
        found[name] = {
            "path": str(expert_path(pack, name)),
            "bytes": patch.nbytes,
            **{key: facts[key] for key in shown},
        }
    return {
        "kind": "experts",
        "method": MEMLORA,
        "path": str(pack.folder),
        "bytes": sum(one["bytes"] for one in found.values()),
        "experts": found,
    }


def recipe_of(name: str, layers: int, *, steps: int | None = None, seed: int = 0) -> Recipe:
    """Return how an expert of a model with so many layers is trained."""
    return Recipe(
        linears=ATTENTION + MLP,
        layers=(THIRDS[name] * layers // 3, layers - 1),
        rank=8,
        alpha=16.0,
        steps=STEPS[name] if steps is None else steps,
        batch=8,
        rate=1e-3,
        retain=0.0,
        every=SAVED,
        seed=seed,
    )


def learned(
    pack: Pack,
    name: str,
    taught: Sequence[Lesson],
    recipe: Recipe,
    *,
    family: str = MEMLORA,
    anew: bool = False,
    progress: Progress | None = None,
) -> Learned:
    """Return an expert and what was written down with it; made and kept if it is not there.

    Args:
        family: what it is kept as; those of a memory are the method's.
        anew: make it though it is there.
    """
    wanted = {
        "lessons": len(taught),
        "taught": _digest(taught),
        "recipe": json.loads(json.dumps(asdict(recipe))),
    }
    if not anew:
        try:
            patch, facts = expert(pack, name, family=family)
            if all(facts.get(key) == value for key, value in wanted.items()):
                return patch, facts
        except NotFoundError:
            pass
    state = path_of(
        pack.folder,
        f"{family}.{name}.training({blake2b(repr(wanted).encode()).hexdigest()})",
        pack.spec.fingerprint,
    )
    for other in pack.folder.glob(f"{family}.{name}.training-*"):
        if anew or other != state:
            other.unlink(missing_ok=True)
    tokenizer = Tokenizer(pack.folder)
    began, used = time.perf_counter(), time.process_time()
    done = train(
        pack,
        [sample_of(tokenizer, one.shown, one.reply) for one in taught],
        recipe,
        state=state,
        progress=_named(progress, f"training the expert of {name}"),
    )
    patch = Patch({n: (le.half(), ri.half()) for n, (le, ri) in done.patch.parts.items()})
    facts = {
        **wanted,
        "losses": list(done.losses[:: max(1, recipe.steps // 10)]),
        "seconds": round(time.perf_counter() - began, 1),
        "processor_s": round(time.process_time() - used, 1),
    }
    keep_expert(pack, name, patch, facts, family=family)
    return patch, facts


def tried(
    pack: Pack,
    name: str,
    patch: Patch,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return of how many lessons with other people, in held-out wordings, an expert is right."""
    test = drawn(lessons("asked", TRIED_OF, seed + 1)[name], TRIED, seed)
    right = 0
    with Greedy(pack, context=min(2048, pack.spec.max_context)) as reader:
        reader.use(patch)
        for at, one in enumerate(test):
            if progress is not None:
                progress(f"trying the expert of {name}", at, len(test))
            right += is_right(one, said(reader, one))
    return {"tried": len(test), "right": right}


def said(reader: Greedy, lesson: Lesson) -> str:
    """Return what is said to a lesson, of an update the event that follows from its parts."""
    if lesson.expert != UPDATE:
        return _reply(reader, lesson)
    number = known(lesson.fact, [item.text for item in lesson.memories])
    if number is not None:
        return reply_of("NONE", number)
    relations = []
    for part in lesson.parts:
        relations.append(json.loads(_reply(reader, part))["is"])
        if relations[-1] != OTHER:
            break
    return reply_of(*event_of(relations))


def schema_of(lesson: Lesson) -> Mapping[str, Any]:
    """Return the form of what is said to a lesson, or to a part of an update."""
    if lesson.expert == UPDATE:
        return related(ends=lesson.ends)
    return FACTS if lesson.expert == EXTRACT else ANSWERED


# -- private ----------------------------------------------------------------------------------


def _reply(reader: Greedy, lesson: Lesson) -> str:
    asked = reader.tokenizer.chat([{"role": "user", "content": lesson.shown}])
    ids = reader.answer(asked, TOKENS[lesson.expert], schema_of(lesson))
    return reader.tokenizer.decode(ids)


def _digest(taught: Sequence[Lesson]) -> str:
    whole = json.dumps([(one.shown, one.reply) for one in taught])
    return blake2b(whole.encode(), digest_size=16).hexdigest()


def _named(progress: Progress | None, what: str) -> Progress | None:
    if progress is None:
        return None
    report: Callable[[str, int, int], None] = progress
    return lambda _, done, total: report(what, done, total)

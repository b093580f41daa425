"""Facts into an adapter: what a model answers without them, what else changes, what it costs.

People tell facts about themselves (`bench.tellings`); a memory draws items from what they say; the
items become an adapter (`run.distil`), which is asked in wordings it was not taught, with no fact
in the prompt. Beside it stand the model without the adapter, and the model with the facts in the
prompt: what the adapter saves to read.

Some facts are forgotten afterwards and the adapter made anew without them. What is left is asked
for, and their likelihood compared with that under adapters which never saw them, made of the same
facts by another chance: is it back within noise (`bench.canaries`)? The same facts stand in rows,
in a cube of text and in one of keys and values, which are forgotten too.

The recipe was chosen on other people with other values (`--option half=development`). Options:
facts=20, canaries=5 (0 leaves the last part out), others=2 (adapters that never saw them).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast  # results are JSON values

from loci.bench.canaries import USER, likelihood, traces
from loci.bench.cards import Row
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.bench.tellings import Half, tellings
from loci.core.item import Item
from loci.errors import ParameterError
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.plan import plan as make_plan
from loci.run import engine
from loci.run.distil import TOKENS, Distilled, distil
from loci.run.edit_model import PackModel
from loci.run.greedy import Greedy
from loci.run.memory import Memory
from loci.text.quiz import Quiz, quizzes

ABOUT = "facts into an adapter: answers without the facts, what else changes, what it costs"
FACTS, QUICK_FACTS = 20, 2
CANARIES, OTHERS = 5, 2
CONTEXT, DRAM = 2048, "640MiB"  # of the session that reads all facts as a cube
QUICK_STEPS = 4
NOTES = "Notes:\n{notes}\n\n{question}"


def run(context: Context) -> dict[str, Any]:
    """Distil, ask, forget one and distil again."""
    refuse_unknown(context.options, ("facts", "half", "canaries", "others"))
    half = context.options.get("half", "test")
    if half not in ("test", "development"):
        raise ParameterError("no such half", value=half, allowed="test, development")
    count = count_of(context.options, "facts", QUICK_FACTS if context.quick else FACTS)
    canaries = _whole(context.options, "canaries", 1 if context.quick else CANARIES)
    others = count_of(context.options, "others", 1 if context.quick else OTHERS)
    if canaries >= count:
        raise ParameterError(
            "some facts must be left", value=f"canaries={canaries}", allowed=f"below {count}"
        )
    items = told(count, context.seed, cast(Half, half))
    with resolve(context.model, context.folder) as pack:
        found, took = _timed(pack, items, context)
        result = {
            "model": context.model,
            "fingerprint": pack.spec.fingerprint,
            "half": half,
            "seed": context.seed,
            "facts": len(items),
            "recipe": asdict(found.recipe),
            "probe": found.probe.to_json(),
            "bytes": found.patch.nbytes,
            "seconds": took["wall"],
            "processor_s": took["processor"],
            "losses": [round(loss, 4) for loss in found.losses[:: max(1, len(found.losses) // 10)]],
            "in_prompt": _in_prompt(pack, items),
        }
        if canaries:
            result["forgotten"] = _forgotten(pack, items, canaries, others, found, context)
    if canaries:
        result["traces"] = _traces(context, count, cast(Half, half), canaries)
    return result


def told(count: int, seed: int, half: Half) -> list[Item]:
    """Return the items a memory draws from what people say about themselves."""
    with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "told.db") as memory:
        return _tell(memory, count, seed, half)


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return answers, KL, strangers and bytes."""
    probe, prompt = result["probe"], result["in_prompt"]
    asked = probe["asked"]
    interval: dict[str, tuple[float, float]] = {}
    metrics: dict[str, Any] = {
        "answered": {
            "this": probe["answered"] / asked,
            "rivals": {
                "without the adapter": probe["base"] / asked,
                "facts in the prompt": prompt["answered"] / asked,
            },
        },
        "kl_of_other_text": {"this": probe["kl"]},
        "strangers_given_these_values": {"this": probe["strangers"] / asked},
        "seconds_of_processor": {"this": result["processor_s"]},
        "prompt_tokens_saved": {"this": prompt["tokens"]},
    }
    if "forgotten" in result:
        gone = result["forgotten"]
        metrics["forgotten_facts_answered"] = {
            "this": gone["knows"],
            "rivals": {"before": gone["knew"]},
        }
        likely = gone["likelihood"]
        metrics["log_likelihood_of_forgotten"] = {
            "this": likely["again"],
            "rivals": {
                "before": likely["knew"],
                "never saw them": likely["never"],
                "without the adapter": likely["base"],
            },
        }
        difference = likely["difference"]
        metrics["difference_to_never_saw"] = {
            "this": difference["value"],
            "rivals": {
                "before": likely["taught"]["value"],
                **(
                    {"between two that never saw": likely["noise"]["value"]}
                    if "noise" in likely
                    else {}
                ),
            },
        }
        interval["difference_to_never_saw"] = (difference["low"], difference["high"])
    if "traces" in result:
        before, after = result["traces"]["before"], result["traces"]["after"]
        for what, name in (
            ("files", "files_with_a_secret"),
            ("cubes", "kv_cubes_with_a_secret"),
            ("prefix", "prefix_tokens_read_from_a_secret"),
        ):
            metrics[name] = {"this": after[what], "rivals": {"before": before[what]}}
    return [
        Row(
            method="distil",
            kind="bench",
            part=result["half"],
            metrics=metrics,
            bytes={"measured": result["bytes"]},
            interval=interval,
            seeds=(result["seed"],),
        )
    ]


# -- private ----------------------------------------------------------------------------------


def _tell(memory: Memory, count: int, seed: int, half: Half) -> list[Item]:
    for one in tellings(count, seed, half):
        said = {"role": "user", "name": one.name, "content": one.text}
        memory.add([said], user=USER)
    found = memory.list(user=USER, kinds="fact", limit=10 * count)
    return [item for item in reversed(found) if isinstance(item, Item)]


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    """Return an option that may be 0."""
    return 0 if options.get(name) == "0" else count_of(options, name, default)


def _forgotten(
    pack: Pack,
    items: Sequence[Item],
    canaries: int,
    others: int,
    found: Distilled,
    context: Context,
) -> dict[str, Any]:
    """Make the adapter anew without some facts; return what is left of them."""
    gone, left = items[:canaries], items[canaries:]
    fresh, _ = _timed(pack, left, context)
    never = [
        distil(
            pack,
            left,
            replace(fresh.recipe, seed=fresh.recipe.seed + 1 + number),
            progress=context.progress,
        ).patch
        for number in range(others)
    ]
    return {
        "probe": fresh.probe.to_json(),
        "knew": _asked(pack, found.patch, gone),
        "knows": _asked(pack, fresh.patch, gone),
        "likelihood": likelihood(
            PackModel(pack), quizzes(gone), knew=found.patch, again=fresh.patch, never=never
        ),
    }


def _traces(context: Context, count: int, half: Half, canaries: int) -> dict[str, Any]:
    """Forget the same facts as rows, text and keys and values; return what is left of them."""
    plan = make_plan(
        context.model,
        dram=DRAM,
        context=CONTEXT,
        kv="",
        folder=context.folder,
        cache=context.folder / ".cache",
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory(Path(folder) / "told.db") as memory,
        engine.open(plan, folder=context.folder) as session,
    ):
        items = _tell(memory, count, context.seed, half)
        return traces(memory, items[:canaries], session)


def _timed(
    pack: Pack, items: Sequence[Item], context: Context
) -> tuple[Distilled, dict[str, float]]:
    began, used = time.perf_counter(), time.process_time()
    recipe = None
    if context.quick:
        from loci.run.distil import RECIPE, fitted

        recipe = replace(fitted(RECIPE, pack.spec.layers), steps=QUICK_STEPS)
    found = distil(pack, items, recipe, progress=context.progress)
    return found, {
        "wall": time.perf_counter() - began,
        "processor": time.process_time() - used,
    }


def _in_prompt(pack: Pack, items: Sequence[Item]) -> dict[str, Any]:
    """Return what the model answers with all facts before the question."""
    asked = quizzes(items)
    notes = "\n".join(f"- {quiz.answer}" for quiz in asked)
    right = tokens = 0
    with Greedy(pack, context=2048) as reader:
        for quiz, question in _questions(asked):
            text = NOTES.format(notes=notes, question=question)
            prompt = reader.tokenizer.chat([{"role": "user", "content": text}])
            right += quiz.is_answered(reader.tokenizer.decode(reader.answer(prompt, TOKENS)))
            tokens = reader.tokenizer.count(NOTES.format(notes=notes, question=""))
    return {"answered": right, "tokens": tokens}


def _asked(pack: Pack, patch: Patch, items: Sequence[Item]) -> float:
    """Return the share of held-out questions that are answered."""
    asked = _questions(quizzes(items))
    with Greedy(pack) as reader:
        reader.use(patch)
        right = [
            quiz.is_answered(
                reader.tokenizer.decode(
                    reader.answer(
                        reader.tokenizer.chat([{"role": "user", "content": question}]), TOKENS
                    )
                )
            )
            for quiz, question in asked
        ]
    return sum(right) / len(right)


def _questions(asked: Sequence[Quiz]) -> list[tuple[Quiz, str]]:
    return [(quiz, question) for quiz in asked for question in quiz.judge]

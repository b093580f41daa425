"""Experts of memory operations: a small model with an adapter each, beside long prompts and rules.

Experts for extraction, updates and answers are trained on conversations of some people in some
wordings, and asked about other people in other wordings (`bench.lessons_memory`; values come from
the same tables). Beside them stand the model as it is with the long prompt and its example, and
the rules. All replies are held to JSON; how often a reply is JSON when nothing holds it is counted
apart. An expert that was made is kept beside the model and used again (`--option anew=1` makes it
anew); `--option steps=N`, `count=N` of test lessons, `whole=N` conversations that a memory keeps
with the experts from beginning to end.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any  # replies and results are JSON values

from loci.bench.answers import open_session
from loci.bench.cards import Row
from loci.bench.lessons_memory import EVENT_OF, Lesson, drawn, kind_of, lessons
from loci.bench.metrics import f1, macro_f1
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.bench.suites.operations import LABELS, measure
from loci.core.item import Candidate
from loci.errors import NotFoundError
from loci.methods.recall.mem0 import Mem0
from loci.methods.recall.memlora import (
    ANSWER,
    ANSWERED,
    EXPERTS,
    EXTRACT,
    FACTS,
    UPDATE,
    MemLora,
    event_of,
)
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.patch import Patch
from loci.run.distil import sample_of
from loci.run.experts import ExpertLlm, expert, keep_expert
from loci.run.greedy import Greedy
from loci.run.trainer import ATTENTION, MLP, Recipe, train
from loci.text.extract import extract
from loci.text.ladder import Ladder
from loci.text.stem import fold
from loci.text.tasks import deciding, drawing

ABOUT = "experts of memory operations beside long prompts and rules: facts, events, answers"
KINDS = ("recall",)
METHODS = ("memlora",)
DEFAULT = ("memlora",)
TAUGHT, ASKED, QUICK = 240, 32, 2
STEPS, QUICK_STEPS = 120, 2
UNHELD = 8  # replies that nothing holds to JSON
PEOPLE = {"written": 8, "held_out": 4}
TOKENS = {EXTRACT: 64, UPDATE: 48, ANSWER: 48}
LONG = (
    "Answer the question from the notes about people. Say only what was asked, in a few words. "
    'Answer with JSON: {"answer": "..."}.'
)
EXAMPLE = (
    "- Mia lives in Oslo\n- Tom plays chess\nWhere does Mia live?",
    '{"answer": "Oslo"}',
)
OPERATIONS = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE", "NOOP": "NONE"}

Messages = Sequence[Mapping[str, str]]


def recipe_of(steps: int, layers: int, seed: int) -> Recipe:
    """Return how one expert is trained: upper layers alone, so that minutes are enough."""
    return Recipe(
        linears=ATTENTION + MLP,
        layers=(2 * layers // 3, layers - 1),
        rank=8,
        alpha=16.0,
        steps=steps,
        batch=8,
        rate=1e-3,
        retain=0.0,
        every=steps,
        seed=seed,
    )


def run(context: Context) -> dict[str, Any]:
    """Train what is missing, ask everybody, time the switch."""
    refuse_unknown(context.options, ("steps", "count", "anew", "whole"))
    steps = count_of(context.options, "steps", QUICK_STEPS if context.quick else STEPS)
    count = count_of(context.options, "count", QUICK if context.quick else ASKED)
    taught = lessons("written", PEOPLE["written"], context.seed)
    asked = lessons("held_out", PEOPLE["held_out"], context.seed)
    result: dict[str, Any] = {"model": context.model, "stages": {}, "seed": context.seed}
    with resolve(context.model, context.folder) as pack:
        result["fingerprint"] = pack.spec.fingerprint
        patches: dict[str, Patch] = {}
        for name in EXPERTS:
            some = drawn(taught[name], TAUGHT, context.seed, kind_of)
            patches[name], facts = _expert(pack, name, some, steps, context)
            test = drawn(asked[name], count, context.seed, kind_of)
            result["stages"][name] = {
                **_measured(pack, name, patches[name], test, context),
                "bytes": patches[name].nbytes,
                "training": dict(facts),
            }
    result["switch"] = _switched(context, patches)
    whole = 0 if context.quick else int(context.options.get("whole", "0"))
    result["whole"] = _whole(context, patches, whole)
    rules = result["whole"]["rules"]
    result["stages"][UPDATE]["scores"]["rules, whole memory"] = rules["event_f1"]
    result["stages"][ANSWER]["scores"]["rules, whole memory"] = rules["answers_right"]
    return result


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the score of every stage and everybody, prompts, valid replies and the switch."""
    rows = []
    for name, stage in result["stages"].items():
        scores = stage["scores"]
        rows.append(
            Row(
                method="memlora",
                kind="recall",
                part=name,
                metrics={
                    stage["metric"]: {
                        "this": scores["expert"],
                        "rivals": {k: v for k, v in scores.items() if k != "expert"},
                    },
                    "valid_json_unheld": {
                        "this": stage["valid"]["expert"],
                        "rivals": {"long prompt": stage["valid"]["long prompt"]},
                    },
                    "processor_s_of_training": {"this": stage["training"]["processor_s"]},
                },
                bytes={"measured": stage["bytes"]},
                ratio={
                    "prompt tokens": stage["prompt_tokens"]["ratio"],
                    "switch over one reply": result["switch"]["of_reply"],
                },
                seeds=(result["seed"],),
            )
        )
    return rows


# -- training ---------------------------------------------------------------------------------


def _expert(
    pack: Pack, name: str, some: Sequence[Lesson], steps: int, context: Context
) -> tuple[Patch, Mapping[str, Any]]:
    """Return an expert that is there, or make it and keep it."""
    recipe = recipe_of(steps, pack.spec.layers, context.seed)
    wanted = {"lessons": len(some), "recipe": json.loads(json.dumps(asdict(recipe)))}
    if "anew" not in context.options:
        try:
            patch, facts = expert(pack, name)
            if all(facts.get(key) == value for key, value in wanted.items()):
                return patch, facts
        except NotFoundError:
            pass
    tokenizer = Tokenizer(pack.folder)
    began, used = time.perf_counter(), time.process_time()
    done = train(
        pack,
        [sample_of(tokenizer, one.shown, one.reply) for one in some],
        recipe,
        progress=context.progress,
    )
    patch = Patch({n: (le.half(), ri.half()) for n, (le, ri) in done.patch.parts.items()})
    facts = {
        **wanted,
        "losses": list(done.losses[:: max(1, steps // 10)]),
        "seconds": time.perf_counter() - began,
        "processor_s": time.process_time() - used,
    }
    keep_expert(pack, name, patch, facts)
    return patch, facts


# -- measuring --------------------------------------------------------------------------------


def _measured(
    pack: Pack, name: str, patch: Patch, test: Sequence[Lesson], context: Context
) -> dict[str, Any]:
    score = {EXTRACT: _fact_f1, UPDATE: _event_f1, ANSWER: _exact}[name]
    short = [[{"role": "user", "content": one.shown}] for one in test]
    long = [_long(one) for one in test]
    schemas = [_schema(one) for one in test]
    given: dict[str, list[Any]] = {}
    if name == EXTRACT:
        given["rules"] = [[fact.text for fact in extract(one.turns)] for one in test]
    valid: dict[str, float] = {}
    tokens = {}
    with Greedy(pack, context=2048) as reader:
        for who, use, messages, forms in (
            ("expert", patch, short, schemas),
            ("short prompt alone", None, short, schemas),
            ("long prompt", None, long, [_long_schema(one) for one in test]),
        ):
            reader.use(use)
            given[who] = []
            for at, (asked, form) in enumerate(zip(messages, forms, strict=True)):
                context.progress(f"{name}: {who}", at, len(test))
                given[who].append(_reply(reader, asked, TOKENS[name], form))
            if who != "short prompt alone":
                free = [_reply(reader, one, TOKENS[name], None) for one in messages[:UNHELD]]
                valid[who] = sum(map(_is_json, free)) / len(free)
            lengths = [len(reader.tokenizer.chat(one)) for one in messages]
            tokens[who] = sum(lengths) / len(lengths)
    return {
        "metric": {EXTRACT: "fact_f1", UPDATE: "event_macro_f1", ANSWER: "answers_right"}[name],
        "scores": {who: score(test, replies, who) for who, replies in given.items()},
        "valid": valid,
        "lessons": len(test),
        "prompt_tokens": {**tokens, "ratio": tokens["expert"] / tokens["long prompt"]},
    }


def _reply(reader: Greedy, messages: Messages, tokens: int, schema: Any) -> str:
    ids = reader.answer(reader.tokenizer.chat(messages), tokens, schema)
    return reader.tokenizer.decode(ids)


def _schema(one: Lesson) -> Mapping[str, Any]:
    if one.expert == UPDATE:
        return event_of(len(one.memories))
    return FACTS if one.expert == EXTRACT else ANSWERED


def _long(one: Lesson) -> Messages:
    """Return what the model is asked without an adapter: instruction, an example, the case."""
    if one.expert == EXTRACT:
        return drawing(one.turns, small=True).messages
    if one.expert == UPDATE:
        return deciding([_candidate(one)], one.memories, lambda fact: ()).messages
    notes = "\n".join(f"- {item.text}" for item in one.memories)
    return (
        {"role": "system", "content": LONG},
        {"role": "user", "content": EXAMPLE[0]},
        {"role": "assistant", "content": EXAMPLE[1]},
        {"role": "user", "content": f"{notes}\n{one.question}"},
    )


def _long_schema(one: Lesson) -> Mapping[str, Any]:
    if one.expert == EXTRACT:
        return drawing(one.turns, small=True).schema
    if one.expert == UPDATE:
        return deciding([_candidate(one)], one.memories, lambda fact: ()).schema
    return ANSWERED


def _candidate(one: Lesson) -> Candidate:
    return Candidate(text=one.fact, sources=())


def _fact_f1(test: Sequence[Lesson], replies: Sequence[Any], who: str) -> float:
    """Return F1 of facts: one is right that names its value and says whether it has ended."""
    hit = extra = missed = 0
    for one, reply in zip(test, replies, strict=True):
        said = reply if who == "rules" else _facts_of(reply)
        right = [text for text in said if one.values and fold(one.values[0]) in fold(text)]
        hit += bool(right)
        extra += len(said) - bool(right)
        missed += bool(one.values) and not right
    return f1(hit, extra, missed)


def _facts_of(reply: str) -> list[str]:
    found = _json(reply).get("facts", [])
    return [str(one["text"] if isinstance(one, dict) else one) for one in found]


def _event_f1(test: Sequence[Lesson], replies: Sequence[Any], who: str) -> float:
    """Return the mean F1 of events; an update or an end of the wrong memory is none."""
    pairs = []
    for one, reply in zip(test, replies, strict=True):
        data = _json(reply)
        data = data.get("1", data)
        event = OPERATIONS.get(str(data.get("operation")), str(data.get("event")))
        number = data.get("memory", data.get("id"))
        is_meant = event in ("ADD", "NONE") or number == one.number
        pairs.append((event if is_meant else "the wrong memory", one.event))
    return macro_f1(pairs, list(EVENT_OF.values()))["macro"]


def _exact(test: Sequence[Lesson], replies: Sequence[Any], who: str) -> float:
    """Return the share of answers that name all values and none that no longer holds."""
    right = 0
    for one, reply in zip(test, replies, strict=True):
        text = fold(str(_json(reply).get("answer", "")))
        named = all(fold(value) in text for value in one.values)
        right += named and not any(fold(value) in text for value in one.wrong)
    return right / len(test)


def _json(reply: str) -> dict[str, Any]:
    try:
        found = json.loads(reply)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_json(reply: str) -> bool:
    return bool(_json(reply))


def _switched(context: Context, patches: Mapping[str, Patch]) -> dict[str, float]:
    """Return how long a switch takes in a running session, beside one reply of an expert."""
    with (
        tempfile.TemporaryDirectory() as cache,
        open_session(context.model, context.folder, 1024, Path(cache)) as session,
    ):
        llm = ExpertLlm(session, patches)
        message = {
            "role": "user",
            "content": "Facts of:\nNora: I live in Delft.",
            "expert": EXTRACT,
        }
        ask: Callable[[], str] = lambda: llm.generate([message], max_tokens=48, schema=FACTS)  # noqa: E731
        ask()
        began = time.perf_counter()
        ask()
        reply = time.perf_counter() - began
        took = []
        for name in (*EXPERTS, *EXPERTS, *EXPERTS):
            began = time.perf_counter()
            session.use(name)
            took.append(time.perf_counter() - began)
    middle = sorted(took)[len(took) // 2]
    return {"seconds": middle, "reply_seconds": reply, "of_reply": middle / reply}


def _whole(context: Context, patches: Mapping[str, Patch], count: int) -> dict[str, Any]:
    """Return what whole memories do with held-out conversations: rules, and the experts.

    Rules are quick and keep ten; the experts keep `count`, through the back end of a memory.
    """
    kept = {"rules": measure(Mem0(), seeds=range(100, 110), half="held_out")}
    if count:
        with (
            tempfile.TemporaryDirectory() as cache,
            open_session(context.model, context.folder, 2048, Path(cache)) as session,
        ):
            llm = ExpertLlm(session, patches)
            kept["experts"] = measure(
                MemLora(),
                seeds=range(100, 100 + count),
                ladder=lambda: Ladder("slm", llm, fall_back=True),
                half="held_out",
            )
    events = [label for label in LABELS if label != "none"]
    return {
        who: {
            "conversations": len(found["seeds"]),
            "event_f1": sum(found["f1"].get(label, 0.0) for label in events) / len(events),
            "f1": found["f1"],
            "answers_right": found["answers_right"],
            "back_end": found["back_end"],
        }
        for who, found in kept.items()
    }

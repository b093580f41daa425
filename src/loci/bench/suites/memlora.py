"""Experts of memory operations: a small model with an adapter each, beside long prompts and rules.

Experts for extraction, updates and answers are those of `loci methods prepare memlora`: made of
conversations of some people in some wordings (`run.expert_lessons`), and asked about other people
in other wordings; values come from the same tables. Beside them stand the model as it is, with the
same short prompt and with a long one that has an example, and the rules. A fact counts that a
memory would take, that names its value and says whether it has ended. All replies are held to JSON;
how often a reply is JSON when nothing holds it is counted apart.

`--option count=N` of test lessons, `whole=N` conversations that a memory keeps with the experts
from beginning to end, `on=development` asks the people that recipes are chosen by, `only=extract`
looks at some experts alone. With `steps=N` or `anew=1` experts are made for this run, and those of
memories stay as they are.

`--option train=locomo --data FILE` learns from LoCoMo instead and asks about other conversations of
it (`bench.lessons_locomo`): F1 of words of facts and of answers, and how many traps are seen. These
experts are kept apart as well. Its data is for non-commercial use and not shipped.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast  # replies and results are JSON values

from loci.bench.answers import answer_f1, open_session
from loci.bench.cards import Row
from loci.bench.lessons_locomo import ABSTAINED, TRAP, Case, cases
from loci.bench.metrics import f1, macro_f1, word_f1
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.bench.suites.operations import LABELS, measure
from loci.core.item import Candidate
from loci.errors import ParameterError
from loci.methods.recall.mem0 import Mem0
from loci.methods.recall.memlora import (
    ANSWER,
    ANSWERED,
    EXPERTS,
    EXTRACT,
    FACTS,
    MEMLORA,
    UPDATE,
    MemLora,
    related,
)
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.run.expert_lessons import (
    EVENT_OF,
    Lesson,
    Part,
    answers,
    drawn,
    lessons,
    parts,
    taken,
    tells,
)
from loci.run.expert_training import (
    CONVERSATIONS,
    STEPS,
    TAUGHT,
    learned,
    recipe_of,
    said,
)
from loci.run.experts import ExpertLlm
from loci.run.greedy import Greedy
from loci.text.extract import extract
from loci.text.form import misfit
from loci.text.ladder import Ladder
from loci.text.stem import fold
from loci.text.tasks import deciding, drawing

ABOUT = "experts of memory operations beside long prompts and rules: facts, events, answers"
KINDS = ("recall",)
METHODS = ("memlora",)
DEFAULT = ("memlora",)
OPTIONS = ("steps", "count", "anew", "whole", "on", "only", "train")
ASKED, QUICK, QUICK_STEPS = 32, 2, 2
UNHELD = 8  # replies that nothing holds to JSON
PEOPLE = 12  # conversations that test lessons are drawn from
LONGEST = {EXTRACT: 64, UPDATE: 48, ANSWER: 48}  # tokens of a reply to a long prompt
TRIAL, LOCOMO = "memlora-trial", "memlora-locomo"  # what experts of a run alone are kept as
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
Score = Callable[[Sequence[Any], str], Mapping[str, float]]  # of what somebody said, who that is


def run(context: Context) -> dict[str, Any]:
    """Train what is missing, ask everybody, time the switch."""
    refuse_unknown(context.options, OPTIONS)
    if context.options.get("train", "drawn") not in ("drawn", "locomo"):
        raise ParameterError(
            "no such lessons", value=context.options["train"], allowed="drawn, locomo"
        )
    if context.options.get("train") == "locomo":
        return _run_locomo(context)
    part = context.options.get("on", "asked")
    if part not in ("asked", "development"):
        raise ParameterError("no such people", value=part, allowed="asked, development")
    names = words_of(context.options, "only", EXPERTS)
    if not set(names) <= set(EXPERTS):
        raise ParameterError("no such expert", value=names, allowed=", ".join(EXPERTS))
    whole = count_of(context.options, "whole", 1) if "whole" in context.options else 0
    if whole and not {EXTRACT, UPDATE} <= set(names):
        raise ParameterError(
            "a whole memory is kept by two experts", value=names, allowed=f"{EXTRACT}, {UPDATE}"
        )
    count = _count(context)
    taught = lessons("taught", CONVERSATIONS, context.seed)
    asked = lessons(cast(Part, part), PEOPLE, context.seed)
    result = _begun(context)
    patches: dict[str, Patch] = {}
    with resolve(context.model, context.folder) as pack:
        result["fingerprint"] = pack.spec.fingerprint
        for name in names:
            some = drawn(parts(taught[name]), TAUGHT[name], context.seed)
            patches[name], facts = _expert(pack, name, some, context)
            test = drawn(asked[name], count, context.seed)
            result["stages"][name] = {
                **_measured(pack, name, patches[name], test, _scored(name, test), context),
                "training": dict(facts),
            }
    result["switch"] = _switched(context, patches)
    result["whole"] = _whole(context, patches, 0 if context.quick else whole)
    rules = result["whole"]["rules"]
    for name, figure in ((UPDATE, "event_f1"), (ANSWER, "answers_right")):
        if name in patches:
            result["stages"][name]["scores"]["rules, whole memory"] = rules[figure]
    return result


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the scores of every stage and everybody, prompts, valid replies and the switch."""
    rows = []
    for name, stage in result["stages"].items():
        metrics = {
            stage["metric"]: _beside(stage["scores"]),
            **{what: _beside(scores) for what, scores in stage["more"].items()},
            "valid_json_unheld": _beside(stage["valid"]),
            "processor_s_of_training": {"this": stage["training"]["processor_s"]},
        }
        ratio = {"prompt tokens": stage["prompt_tokens"]["ratio"]}
        if "switch" in result:
            ratio["switch over one reply"] = result["switch"]["of_reply"]
        rows.append(
            Row(
                method="memlora",
                kind="recall",
                part=name if result["lessons"] == "drawn" else f"{result['lessons']}/{name}",
                metrics=metrics,
                bytes={"measured": stage["bytes"]},
                ratio=ratio,
                seeds=(result["seed"],),
            )
        )
        whole = result.get("whole", {})
        if name == UPDATE and "experts" in whole:
            metrics["event_f1_of_whole_memory"] = {
                "this": whole["experts"]["event_f1"],
                "rivals": {"rules": whole["rules"]["event_f1"]},
            }
    return rows


# -- private ----------------------------------------------------------------------------------


def _begun(context: Context) -> dict[str, Any]:
    return {
        "model": context.model,
        "lessons": context.options.get("train", "drawn"),
        "stages": {},
        "seed": context.seed,
    }


def _count(context: Context) -> int:
    return count_of(context.options, "count", QUICK if context.quick else ASKED)


def _beside(scores: Mapping[str, float]) -> dict[str, Any]:
    return {
        "this": scores["expert"],
        "rivals": {who: value for who, value in scores.items() if who != "expert"},
    }


def _expert(
    pack: Pack, name: str, some: Sequence[Lesson], context: Context, family: str = MEMLORA
) -> tuple[Patch, Mapping[str, Any]]:
    """Return an expert; one that is made for this run alone is kept apart."""
    own = context.quick or not {"steps", "anew"}.isdisjoint(context.options)
    steps = count_of(context.options, "steps", QUICK_STEPS if context.quick else STEPS[name])
    return learned(
        pack,
        name,
        some,
        recipe_of(name, pack.spec.layers, steps=steps, seed=context.seed),
        family=TRIAL if own and family == MEMLORA else family,
        anew="anew" in context.options,
        progress=context.progress,
    )


def _run_locomo(context: Context) -> dict[str, Any]:
    """Learn from some conversations of LoCoMo, and ask about others."""
    if context.data is None:
        raise ParameterError(
            "LoCoMo is not shipped: it is for non-commercial use",
            way_out="give the file: --data locomo10.json",
        )
    learn, ask = cases(context.data)
    count = _count(context)
    result = _begun(context)
    with resolve(context.model, context.folder) as pack:
        result["fingerprint"] = pack.spec.fingerprint
        for name in learn:
            some = drawn([one.lesson for one in learn[name]], TAUGHT[name], context.seed)
            patch, facts = _expert(pack, name, some, context, LOCOMO)
            chosen = drawn([one.lesson for one in ask[name]], count, context.seed)
            by_lesson = {id(one.lesson): one for one in ask[name]}
            test = [by_lesson[id(lesson)] for lesson in chosen]
            score = _facts_told if name == EXTRACT else _answers_told
            result["stages"][name] = {
                **_measured(pack, name, patch, chosen, score(test), context),
                "training": dict(facts),
            }
    result["left_out"] = {UPDATE: "LoCoMo does not say what becomes of a fact that is known"}
    return result


# -- measuring --------------------------------------------------------------------------------


def _measured(
    pack: Pack, name: str, patch: Patch, test: Sequence[Lesson], score: Score, context: Context
) -> dict[str, Any]:
    short = [[_message(part) for part in _parts(one)] for one in test]
    long = [_long(one) for one in test]
    given: dict[str, Sequence[Any]] = {}
    if name == EXTRACT:
        given["rules"] = [extract(one.turns) for one in test]
    valid: dict[str, float] = {}
    with Greedy(pack, context=min(2048, pack.spec.max_context)) as reader:

        def asked(who: str, say: Callable[[Lesson], str]) -> None:
            replies = []
            for at, one in enumerate(test):
                context.progress(f"{name}: {who}", at, len(test))
                replies.append(_drawn_facts(one, _json(say(one)), who))
            given[who] = replies

        def unheld(who: str, messages: Sequence[Messages]) -> None:
            free = [_reply(reader, one, LONGEST[name], None) for one in messages[:UNHELD]]
            valid[who] = sum(map(_is_json, free)) / len(free)

        reader.use(patch)
        asked("expert", lambda one: said(reader, one))
        unheld("expert", [one for parts in short for one in parts])
        reader.use(None)
        asked("short prompt alone", lambda one: said(reader, one))
        asked("long prompt", lambda one: _reply(reader, _long(one), LONGEST[name], _schema(one)))
        unheld("long prompt", long)
        tokens = {
            "expert": _tokens(reader, [one for parts in short for one in parts]) / len(test),
            "long prompt": _tokens(reader, long) / len(test),
        }
    scores = {who: score(replies, who) for who, replies in given.items()}
    metric, *more = scores["expert"]
    return {
        "metric": metric,
        "scores": {who: found[metric] for who, found in scores.items()},
        "more": {what: {who: one[what] for who, one in scores.items()} for what in more},
        "valid": valid,
        "lessons": len(test),
        "prompt_tokens": {**tokens, "ratio": tokens["expert"] / tokens["long prompt"]},
        "bytes": patch.nbytes,
    }


def _parts(one: Lesson) -> Sequence[Lesson]:
    """Return what an expert is asked for a lesson: of an update, one comparison a memory."""
    return one.parts if one.expert == UPDATE else (one,)


def _message(one: Lesson) -> Messages:
    return [{"role": "user", "content": one.shown}]


def _tokens(reader: Greedy, prompts: Sequence[Messages]) -> int:
    return sum(len(reader.tokenizer.chat(one)) for one in prompts)


def _drawn_facts(one: Lesson, said: dict[str, Any], who: str) -> Any:
    """Return the facts of a reply that a memory would take; a reply of another stage as it is."""
    if one.expert != EXTRACT:
        return said
    if who != "long prompt":
        return taken(one, said)
    task = drawing(one.turns, small=True)
    return task.read(said)[0] if misfit(said, task.schema) is None else []


def _reply(reader: Greedy, messages: Messages, tokens: int, schema: Any) -> str:
    ids = reader.answer(reader.tokenizer.chat(messages), tokens, schema)
    return reader.tokenizer.decode(ids)


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


def _schema(one: Lesson) -> Mapping[str, Any]:
    if one.expert == EXTRACT:
        return drawing(one.turns, small=True).schema
    if one.expert == UPDATE:
        return deciding([_candidate(one)], one.memories, lambda fact: ()).schema
    return ANSWERED


def _candidate(one: Lesson) -> Candidate:
    return Candidate(text=one.fact, sources=())


def _json(reply: str) -> dict[str, Any]:
    try:
        found = json.loads(reply)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_json(reply: str) -> bool:
    return bool(_json(reply))


# -- scores -----------------------------------------------------------------------------------


def _scored(name: str, test: Sequence[Lesson]) -> Score:
    scores: dict[str, Callable[..., dict[str, float]]] = {
        EXTRACT: _fact_f1,
        UPDATE: _event_f1,
        ANSWER: _exact,
    }
    score = scores[name]
    return lambda said, who: score(test, said)


def _fact_f1(test: Sequence[Lesson], said: Sequence[Sequence[Candidate]]) -> dict[str, float]:
    """Return F1 of facts: one is right that names its value and says whether it has ended."""
    hit = extra = missed = 0
    for one, facts in zip(test, said, strict=True):
        texts = {fact.text for fact in facts}
        right = {fact.text for fact in facts if tells(one, fact)}
        hit += bool(right)
        extra += len(texts) - bool(right)
        missed += bool(one.values) and not right
    return {"fact_f1": f1(hit, extra, missed)}


def _event_f1(test: Sequence[Lesson], said: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean F1 of events, and each; one of the wrong memory is none."""
    pairs = []
    for one, data in zip(test, said, strict=True):
        event, number = _event_of(data)
        is_meant = event == "ADD" or number == one.number
        pairs.append((event if is_meant else "the wrong memory", one.event))
    found = macro_f1(pairs, list(EVENT_OF.values()))
    return {"event_macro_f1": found.pop("macro")} | {
        f"f1_of_{event}": found.get(event, 0.0) for event in EVENT_OF.values()
    }


def _event_of(data: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return the event that an expert, or a model with a long prompt, named."""
    if isinstance(data.get("1"), dict) and "operation" in data["1"]:
        return OPERATIONS.get(str(data["1"]["operation"]), ""), data["1"].get("memory")
    return str(data.get("event")), data.get("id")


def _exact(test: Sequence[Lesson], said: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the share of answers that name all values and none that no longer holds."""
    right = [
        answers(one, str(data.get("answer", ""))) for one, data in zip(test, said, strict=True)
    ]
    return {"answers_right": sum(right) / len(test)}


def _facts_told(test: Sequence[Case]) -> Score:
    """Return what gives F1 of words against what observations say of each turn."""

    def score(said: Sequence[Sequence[Candidate]], who: str) -> dict[str, float]:
        found = []
        for one, facts in zip(test, said, strict=True):
            text = " ".join({fact.text: None for fact in facts})
            found.append(word_f1(text, one.gold) if one.gold or text else 1.0)
        return {"word_f1": sum(found) / len(found)}

    return score


def _answers_told(test: Sequence[Case]) -> Score:
    """Return what gives LoCoMo's F1 of answers, and the share of traps that are seen."""

    def score(said: Sequence[dict[str, Any]], who: str) -> dict[str, float]:
        told = [str(data.get("answer", "")) for data in said]
        pairs = list(zip(test, told, strict=True))
        plain = [
            answer_f1(text, one.gold, one.category)
            for one, text in pairs
            if one.lesson.kind != TRAP
        ]
        seen = [fold(ABSTAINED) in fold(text) for one, text in pairs if one.lesson.kind == TRAP]
        false = [fold(ABSTAINED) in fold(text) for one, text in pairs if one.lesson.kind != TRAP]
        return {
            "answer_f1": _mean(plain),
            "traps_seen": _mean(seen),
            "seen_where_there_is_none": _mean(false),
        }

    return score


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _switched(context: Context, patches: Mapping[str, Patch]) -> dict[str, float]:
    """Return how long a switch takes in a running session, beside one reply of an expert."""
    with (
        tempfile.TemporaryDirectory() as cache,
        open_session(context.model, context.folder, 1024, Path(cache)) as session,
    ):
        llm = ExpertLlm(session, patches)
        first = next(iter(patches))
        message = {"role": "user", "content": "Nora: I live in Delft.", "expert": first}
        form = {EXTRACT: FACTS, UPDATE: related(ends=False), ANSWER: ANSWERED}[first]
        for _ in range(2):  # the first reads the form
            began = time.perf_counter()
            llm.generate([message], max_tokens=48, schema=form)
            reply = time.perf_counter() - began
        took = []
        for name in (*patches, None) * 3:
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

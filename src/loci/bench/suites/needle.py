"""Needles in a haystack, in a form that a small model can answer: complete the sentence.

Each context is plain prose with N sentences "The special magic number for <word> is <number>."
hidden at even depths. It is read once, the KV method does its work without having seen a question,
and then every needle is asked for by the start of its own sentence. A question counts as right
when, among the N numbers of the context, the right one has the highest likelihood (chance 1/N); the
negative log-likelihood of the right number stands beside it. Lengths and N were calibrated so that
the full cache is right in 70 to 95 % of the cases (`needle.toml`); a run in which the full cache is
not at least twice as good as chance refuses to rank methods.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any  # results hold whatever JSON can hold

import torch

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.stats import mcnemar, mean
from loci.bench.suite import Context
from loci.core.method import Method
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.kv.store_plan import predict_store
from loci.models.load import resolve
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.run.prefill import Prefiller

ABOUT = "facts found again in a long context, with the KV cache at a share of its size"
DEFAULT = ("random", "streaming_llm", "snapkv", "kvzip")
SHARES = (0.5, 0.25, 0.125)
FULL = "full"
CHUNK = 64  # tokens read at once stand beside what is kept, and count
KINDS = ("kv",)
HALF_BYTES = 2  # what is kept as it is, is kept in half precision: no ratio flatters itself


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How long a context is and how many needles it has; part of `needle.toml`."""

    tokens: int
    needles: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One context as tokens, and its questions: (ids of the question, ids of each candidate)."""

    ids: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]
    candidates: tuple[tuple[int, ...], ...]  # candidate i answers question i


def settings() -> dict[str, Any]:
    """Return the words of needles and the frozen difficulties."""
    return tomllib.loads((resources.files("loci.bench") / "needle.toml").read_text("utf-8"))


def difficulty(name: str = "default") -> Difficulty:
    """Return a frozen, calibrated difficulty."""
    table = settings()["difficulty"]
    if name not in table:
        raise ParameterError("no such difficulty", value=name, allowed=", ".join(table))
    return Difficulty(tokens=table[name]["tokens"], needles=table[name]["needles"])


def make_item(lab: Lab, hard: Difficulty, seed: int) -> Item:
    """Return one context from a seed; its length is checked to be what was asked for."""
    draw = random.Random(seed)
    words = draw.sample(settings()["words"].split(), hard.needles)
    numbers = draw.sample(range(1000, 10000), hard.needles)
    encode = lab.tokenizer.encode
    needles = [
        encode(f" The special magic number for {word} is {number}.")
        for word, number in zip(words, numbers, strict=True)
    ]
    hay_tokens = hard.tokens - sum(map(len, needles))
    prose = texts.prose()
    start = prose.find(". ", draw.randrange(len(prose) // 2)) + 2
    hay = encode(prose[start : start + hay_tokens * 8])[:hay_tokens]
    if len(hay) < hay_tokens or hay_tokens < hard.needles:
        raise ParameterError("the haystack is too short for these needles", value=len(hay))
    ids: list[int] = []
    for index, needle in enumerate(needles):
        begin = len(hay) * index // hard.needles
        end = len(hay) * (index + 1) // hard.needles
        middle = begin + draw.randrange(max(1, end - begin))
        ids += [*hay[begin:middle], *needle, *hay[middle:end]]
    if len(ids) != hard.tokens:
        raise ParameterError("a context came out with the wrong length", value=len(ids))
    questions = [encode(f"\n\nThe special magic number for {word} is") for word in words]
    candidates = [encode(f" {number}") for number in numbers]
    return Item(
        ids=tuple(ids),
        questions=tuple(map(tuple, questions)),
        candidates=tuple(map(tuple, candidates)),
    )


def ask(lab: Lab, item: Item, prefiller: Prefiller) -> tuple[list[bool], list[float]]:
    """Return for every question whether it was answered right, and the answer's NLL per token.

    The store is forked for every question, so none sees another.
    """
    right, losses = [], []
    for number, question in enumerate(item.questions):
        asked = prefiller.store.fork()
        try:
            reader = Prefiller(prefiller.runner, asked)
            after = torch.log_softmax(reader.read(question), dim=-1)[0].clone()
            is_right, loss = _judged(item, number, reader, after)
        finally:
            asked.release()
        right.append(is_right)
        losses.append(loss)
    return right, losses


def ask_at_the_end(
    item: Item, opened: Callable[[], KVStore], lab: Lab, chain: tuple[Method, ...], count: int
) -> tuple[list[bool], list[float]]:
    """Return what `ask` does, each question being the end of a prompt of its own.

    This is what methods are made for that let the end of the prompt choose.
    """
    right, losses = [], []
    for number, question in enumerate(item.questions[:count]):
        store = opened()
        try:
            with lab.reading(store, chain) as prefiller:
                logits = prefiller.read([*item.ids, *question])
                after = torch.log_softmax(logits, dim=-1)[0].clone()
                store.finish_prompt(prefiller)
                is_right, loss = _judged(item, number, prefiller, after)
        finally:
            store.release()
        right.append(is_right)
        losses.append(loss)
    return right, losses


def _judged(
    item: Item, number: int, reader: Prefiller, after_V: torch.Tensor
) -> tuple[bool, float]:
    length = reader.store.length
    scores = [_likelihood(reader, length, after_V, one) for one in item.candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    return best == number, -scores[number]


def _likelihood(
    reader: Prefiller, length: int, after_V: torch.Tensor, candidate: Sequence[int]
) -> float:
    """Return the mean log-likelihood per token of a candidate after the question."""
    total = float(after_V[candidate[0]])
    if len(candidate) > 1:
        fork = reader.store.fork()  # a compressed store cannot be cropped, so work on a copy
        try:
            logits = reader.runner.forward(torch.tensor([candidate[:-1]]), fork, logits="all")
        finally:
            fork.release()
        assert logits is not None
        chances = torch.log_softmax(logits[0], dim=-1)
        rest = torch.tensor(candidate[1:])[:, None]
        total += float(chances.gather(1, rest).sum())
    return total / len(candidate)


def run(context: Context) -> dict[str, Any]:
    """Ask every method the same questions at every share of the full cache's bytes."""
    hard = difficulty(context.options.get("difficulty", "default"))
    count = 1 if context.quick else int(context.options.get("contexts", 8))
    shares = [float(s) for s in context.options.get("shares", "").split(",") if s] or list(SHARES)
    at_end = context.options.get("asked", "after") == "at_end"
    asked = int(context.options.get("questions", hard.needles))
    names = context.methods or DEFAULT
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=hard.tokens + 64, chunk=int(context.options.get("chunk", CHUNK)))
    rights: dict[str, list[bool]] = {}
    losses: dict[str, list[float]] = {}
    held: dict[str, int] = {}
    predicted: dict[str, int] = {}
    cells = [(FULL, 1.0), *((name, share) for name in names for share in shares)]
    offset = 1000 if context.options.get("part", "test") == "test" else 0
    done = 0
    try:
        full_bytes = lab.spec.kv_bytes(hard.tokens)
        for index in range(count):
            item = make_item(lab, hard, context.seed + offset + index)
            for name, share in cells:
                chain: tuple[Method, ...] = ()
                if name != FULL:
                    chain = catalogue.parse_chain(name, "kv")
                limit = None if name == FULL else int(full_bytes * share)

                def opened(
                    chain: tuple[Method, ...] = chain,
                    limit: int | None = limit,
                    seed: int = context.seed + index,
                ) -> KVStore:
                    return lab.store(chain, dtype=torch.float16, budget_bytes=limit, seed=seed)

                store = opened()
                key = _key(name, share)
                predicted[key] = predict_store(
                    lab.spec,
                    chain,
                    max_tokens=lab.context,
                    dtype_bytes=HALF_BYTES,
                    budget_bytes=limit,
                    chunk=lab.chunk,
                )
                try:
                    if at_end:
                        right, loss = ask_at_the_end(item, opened, lab, chain, asked)
                    else:
                        with lab.reading(store, chain) as prefiller:
                            prefiller.prefill(item.ids)
                            store.finish_prompt(prefiller)
                            right, loss = ask(lab, item, prefiller)
                    held[key] = sum(store.nbytes().values())
                finally:
                    store.release()
                rights.setdefault(key, []).extend(right)
                losses.setdefault(key, []).extend(loss)
                done += 1
                context.progress(key, done, count * len(cells))
    finally:
        lab.close()
        pack.close()
    chance = 1 / hard.needles
    full = mean([float(r) for r in rights[FULL]])
    rows = {
        key: {
            "accuracy": mean([float(r) for r in rights[key]]).to_json(),
            "nll": mean(losses[key]).to_json(),
            "kv_bytes": held[key],
            "predicted_bytes": predicted[key],
            "p_against_full": mcnemar(rights[key], rights[FULL]),
        }
        for key in rights
    }
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "tokens": hard.tokens,
        "needles": hard.needles,
        "asked": "at_end" if at_end else "after",
        "questions": len(rights[FULL]),
        "chance": chance,
        "can_rank": full.value >= 2 * chance,
        "full_bytes": full_bytes,
        "results": rows,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return accuracy and likelihood of every method at every share, beside the others'."""
    rows, cells = [], {tuple(key.split(" @ ")): v for key, v in result["results"].items()}
    full = cells.pop((FULL,))
    for (name, share), found in cells.items():
        rivals = {n: v for (n, s), v in cells.items() if s == share and n != name}
        if "|" in name:
            continue
        rows.append(
            Row(
                method=name,
                kind="kv",
                part=f"{share}, question at the end" if result["asked"] == "at_end" else share,
                metrics={
                    what: {
                        "full": full[what]["value"],
                        "this": found[what]["value"],
                        "rivals": {n: v[what]["value"] for n, v in rivals.items()},
                    }
                    for what in ("accuracy", "nll")
                },
                interval={"accuracy": (found["accuracy"]["low"], found["accuracy"]["high"])},
                bytes={
                    "full": full["kv_bytes"],
                    "predicted": found["predicted_bytes"],
                    "measured": found["kv_bytes"],
                },
            )
        )
    return rows


def _key(name: str, share: float) -> str:
    return name if name == FULL else f"{name} @ {share:g}"

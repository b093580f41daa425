"""SCBench: one context, many questions, and all that happens to a cache in between.

After Y. Li et al., "SCBench: A KV Cache-Centric Analysis of Long-Context Methods", 2024,
arXiv:2412.10319, with contexts of our own (`bench/contexts.py`). Four stages of a cache's life:

    generation    how long reading the context takes, beside the exact cache
    compression   bytes held, predicted, and at the peak; the share of the evidence still there
    retrieval     questions answered from what is left, and how long a token then takes
    loading       to disk and back: seconds, and whether the answer is the same to the bit

Two ways of sharing: in `multi_turn` one session goes on, the method sees the context with the
first question, and right answers are put in between; in `multi_request` the method sees the context
alone and every question starts from its cache. What matters is how much worse later turns are than
the first. A task in which the full cache is not twice as good as chance ranks nothing.

Options: tasks=lookup,needle (of lookup, prefix, tracking, needle, dialogue, many_shot, mixed),
modes=multi_turn,multi_request, size=short|default|long, contexts=8, turns=5, shares=0.5,0.25,
part=test|dev, chunk=N (tokens a prompt is read by; else whole), rounds=3 (of timing).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import torch
from safetensors.torch import load_file, save_file

from loci.bench import contexts, texts
from loci.bench.cards import Row
from loci.bench.contexts import ABILITIES, SharedContext
from loci.bench.reading import (
    FULL,
    MODES,
    Answer,
    Contender,
    Reading,
    Session,
    contenders,
    payload_hash,
    prompt_of,
)
from loci.bench.stats import alternate, mcnemar, mean, paired_difference, ratio
from loci.bench.suite import Context
from loci.errors import ParameterError
from loci.models.load import resolve
from loci.run.kvstore import KVStore
from loci.run.lab import Lab

ABOUT = "one context asked many things: what a KV method keeps beyond the first question"
KINDS = ("kv",)
DEFAULT = (
    "random",
    "streaming_llm",
    "snapkv",
    "h2o",
    "keydiff",
    "kvzip",
    "kivi(waiting=1)",
    "bfp(bits=4)",
)
TASKS = ("lookup", "needle", "dialogue", "many_shot", "mixed")
SHARES = (0.5, 0.25)
_DECODED = 16  # tokens that are decoded to time one
_OPTIONS = ("tasks", "modes", "size", "contexts", "turns", "shares", "part", "chunk", "rounds")

Asked = dict[Contender, list[list[Answer]]]  # of each context, of each turn


def run(context: Context) -> dict[str, Any]:
    """Ask every method the same turns in both ways, and follow its cache through all stages."""
    how = _Settings.of(context)
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=max(size.tokens for size in how.sizes.values()))
    found: dict[str, dict[str, Asked]] = {}
    sizes: dict[str, dict[str, int]] = {}
    chance: dict[str, float] = {}
    done, total = 0, len(how.sizes) * len(how.modes) * how.contexts
    try:
        for task, size in how.sizes.items():
            cells = contenders(
                context.methods or DEFAULT, how.shares, lab.spec.kv_bytes(size.tokens), how.chunk
            )
            for number in range(how.contexts):
                item = contexts.make(
                    task, lab.tokenizer, size, context.seed + number, part=how.part, turns=how.turns
                )
                chance[task] = item.chance
                for mode in how.modes:
                    context.progress(f"{task}, {mode}", done, total)
                    answered = asked(lab, item, mode, cells, context.seed + number)
                    for cell, (answers, held) in answered.items():
                        found.setdefault(task, {}).setdefault(mode, {}).setdefault(cell, []).append(
                            answers
                        )
                        sizes.setdefault(cell.key, held)
                    done += 1
        context.progress("stages", total, total)
        stages = _stages(lab, how, context)
    finally:
        lab.close()
        pack.close()
    tasks = {
        task: {
            "chance": chance[task],
            "tokens": size.tokens,
            "facts": size.facts,
            "questions": how.contexts * how.turns,
            "can_rank": all(
                _share_right(_of(asked, FULL)) >= 2 * chance[task] for asked in found[task].values()
            ),
        }
        for task, size in how.sizes.items()
    }
    rows: dict[str, dict[str, Any]] = {}
    for key, held in sizes.items():
        by_task = {
            task: {
                mode: _summary(_of(asked, key), _of(asked, FULL))
                for mode, asked in modes.items()
                if _of(asked, key)
            }
            for task, modes in found.items()
        }
        rows[key] = {
            "tasks": by_task,
            "abilities": _abilities(by_task, tasks),
            "stages": stages.get(key, {}),
            **held,
        }
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "part": how.part,
        "turns": how.turns,
        "contexts": how.contexts,
        "chunk": how.chunk,
        "tasks": tasks,
        "can_rank": any(task["can_rank"] for task in tasks.values()),
        "results": rows,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return first turns, later turns and requests of every method, beside the others."""
    rows, cells = [], {tuple(key.split(" @ ")): row for key, row in result["results"].items()}
    full = cells.pop((FULL,))
    for (name, share), found in cells.items():
        if "|" in name:  # a chain has no card
            continue
        rivals = {n: row for (n, s), row in cells.items() if s == share and n != name}
        stages = {
            what: figures["ratio"]["value"]
            for what, figures in found["stages"].items()
            if "ratio" in figures
        }
        rows.append(
            Row(
                method=name,
                kind="kv",
                part=share,
                metrics={
                    what: {
                        "full": full["abilities"]["mean"][what],
                        "this": value,
                        "rivals": {
                            n: row["abilities"]["mean"][what]
                            for n, row in rivals.items()
                            if what in row["abilities"]["mean"]
                        },
                    }
                    for what, value in found["abilities"]["mean"].items()
                },
                bytes={
                    "full": full["kv_bytes"],
                    "predicted": found["predicted_bytes"],
                    "measured": found["kv_bytes"],
                },
                ratio=stages,
            )
        )
    return rows


def asked(
    lab: Lab, item: SharedContext, mode: str, cells: Sequence[Contender], seed: int
) -> dict[Contender, tuple[list[Answer], dict[str, int]]]:
    """Return every contender's answers about one context, and the bytes of its store.

    Whoever has no budget for a single token is left out.
    """
    ids = prompt_of(item, mode)
    reading = Reading(lab, max_tokens=len(ids) + item.longest(), chunk=len(ids), seed=seed)
    try:
        with reading.sessions(ids, cells) as sessions:
            return {
                cell: (MODES[mode](item, session, ids[-1:]), bytes_of(reading, session))
                for cell, session in sessions.items()
            }
    finally:
        reading.close()


def bytes_of(reading: Reading, session: Session) -> dict[str, int]:
    """Return what a store holds, what was predicted, and both with the work buffers."""
    held = sum(session.store.nbytes().values())
    return {
        "kv_bytes": held,
        "predicted_bytes": reading.predicted(session.contender),
        "peak_bytes": held + session.reader.runner.nbytes(),
    }


# -- private ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The options, read and checked before any work."""

    sizes: Mapping[str, contexts.Size]
    modes: tuple[str, ...]
    shares: tuple[float, ...]
    contexts: int
    turns: int
    rounds: int
    part: str
    chunk: int | None

    @classmethod
    def of(cls, context: Context) -> _Settings:
        options = context.options
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise ParameterError("no such option", value=unknown, allowed=", ".join(_OPTIONS))
        name = options.get("size", "short" if context.quick else "default")
        tasks = words_of(options, "tasks", TASKS[:2] if context.quick else TASKS)
        modes = words_of(options, "modes", tuple(MODES))
        for mode in modes:
            if mode not in MODES:
                raise ParameterError("no such mode", value=mode, allowed=", ".join(MODES))
        return cls(
            sizes={task: contexts.size(task, name) for task in tasks},
            modes=modes,
            shares=shares_of(options, SHARES),
            contexts=count_of(options, "contexts", 1 if context.quick else 8),
            turns=count_of(options, "turns", 2 if context.quick else contexts.TURNS),
            rounds=count_of(options, "rounds", 1 if context.quick else 3),
            part=options.get("part", "test"),
            chunk=count_of(options, "chunk", 1) if "chunk" in options else None,
        )


def words_of(options: Mapping[str, str], name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return an option that is a list of words."""
    found = tuple(word.strip() for word in options.get(name, "").split(",") if word.strip())
    return found or default


def count_of(options: Mapping[str, str], name: str, default: int) -> int:
    """Return an option that is a whole number of at least 1."""
    text = options.get(name)
    if text is None:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ParameterError(f"{name} is a whole number", value=text, allowed=">= 1")
    return int(text)


def shares_of(options: Mapping[str, str], default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the option `shares`: parts of the full cache's bytes."""
    text = options.get("shares")
    if text is None:
        return default
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise ParameterError(
            "shares are parts of the full cache", value=text, allowed="above 0 up to 1: 0.5,0.25"
        )
    return found


def _of(asked: Asked, key: str) -> list[list[Answer]]:
    return next((answers for cell, answers in asked.items() if cell.key == key), [])


def _share_right(answers: Sequence[Sequence[Answer]]) -> float:
    flat = [answer.is_right for part in answers for answer in part]
    return sum(flat) / len(flat)


def _summary(ours: Sequence[Sequence[Answer]], full: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Return figures over contexts: questions of one context are alike, so contexts are drawn."""
    each = [sum(a.is_right for a in part) / len(part) for part in ours]
    theirs = [sum(a.is_right for a in part) / len(part) for part in full]
    first = [float(part[0].is_right) for part in ours]
    flat = [answer for part in ours for answer in part]
    found: dict[str, Any] = {
        "accuracy": mean(each).to_json(),
        "turn_1": mean(first).to_json(),
        "nll": sum(a.loss for a in flat) / len(flat),
        "survival": sum(a.survival for a in flat) / len(flat),
        "against_full": paired_difference(each, theirs).to_json(),
        "p_against_full": mcnemar(
            [a.is_right for a in flat], [a.is_right for part in full for a in part]
        ),
    }
    if all(len(part) > 1 for part in ours):
        later = [sum(a.is_right for a in part[1:]) / (len(part) - 1) for part in ours]
        found["later"] = mean(later).to_json()
        found["change"] = paired_difference(later, first).to_json()
    return found


def _abilities(
    by_task: Mapping[str, Mapping[str, Mapping[str, Any]]], tasks: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return means over the tasks that can rank, per ability and over all."""
    groups = {ability: members for ability, members in ABILITIES.items() if set(members) & {*tasks}}
    found: dict[str, dict[str, float]] = {}
    for name, members in {**groups, "mean": tuple(tasks)}.items():
        ranked = [by_task[t] for t in members if t in tasks and tasks[t]["can_rank"] and by_task[t]]
        figures: dict[str, list[float]] = {}
        for modes in ranked:
            for mode, summary in modes.items():
                figures.setdefault(mode, []).append(summary["accuracy"]["value"])
                if mode == "multi_turn":
                    for what in ("turn_1", "later"):
                        if what in summary:
                            figures.setdefault(what, []).append(summary[what]["value"])
        found[name] = {what: sum(values) / len(values) for what, values in figures.items()}
    return found


def _stages(lab: Lab, how: _Settings, context: Context) -> dict[str, dict[str, Any]]:
    """Time every contender alone on one context, in turn, and take its cache to disk and back."""
    task, size = next(iter(how.sizes.items()))
    item = contexts.make(task, lab.tokenizer, size, context.seed, part=how.part, turns=how.turns)
    cells = contenders(
        context.methods or DEFAULT, how.shares, lab.spec.kv_bytes(size.tokens), how.chunk
    )
    reading = Reading(
        lab, max_tokens=len(item.ids) + item.longest() + _DECODED, chunk=len(item.ids)
    )
    found: dict[str, dict[str, Any]] = {}
    try:
        with reading.sessions(item.ids, cells) as sessions:
            keys = {cell.key: session for cell, session in sessions.items()}
            generation = alternate(
                {key: _prefill(reading, s, item.ids) for key, s in keys.items()}, how.rounds
            )
            retrieval = alternate(
                {key: _decoded(s, item.ids[-1]) for key, s in keys.items()}, how.rounds
            )
            for key, session in keys.items():
                found[key] = {
                    "generation": _timed(generation, key),
                    "retrieval": _timed(retrieval, key),
                    "loading": _loaded(session, item),
                }
    finally:
        reading.close()
    return found


def _timed(times: Mapping[str, Sequence[float]], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": sorted(times[key])[len(times[key]) // 2]}
    if key != FULL:
        found["ratio"] = ratio(times[key], times[FULL]).to_json()
    return found


def _prefill(reading: Reading, session: Session, ids: Sequence[int]) -> Callable[[], float]:
    """Return what reads the context into a fresh store, with a forward of its own."""

    def once() -> float:
        store = reading.open(session.contender)
        try:
            fresh = Session.over(session.reader.runner, store, session.contender)
            began = time.perf_counter()
            fresh.reader.prefill(ids[:-1])
            store.finish_prompt(fresh.reader)
            return time.perf_counter() - began
        finally:
            store.release()

    return once


def _decoded(session: Session, token: int) -> Callable[[], float]:
    """Return what decodes some tokens from a copy of the cache; seconds per token."""

    def once() -> float:
        fork = session.fork()
        try:
            began = time.perf_counter()
            for _ in range(_DECODED):
                fork.append([token])
            return (time.perf_counter() - began) / _DECODED
        finally:
            fork.release()

    return once


def _loaded(session: Session, item: SharedContext) -> dict[str, Any]:
    """Ask from forks, then write the cache to disk, take it back, and compare to the bit."""
    before = payload_hash(session.store)
    store = session.store
    fork = session.fork()
    try:
        MODES["multi_request"](item, fork, item.ids[-1:])
    finally:
        fork.release()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kv.safetensors"
        began = time.perf_counter()
        tensors, meta = store.snapshot(ids=session.reader.ids)
        save_file(tensors, path)
        saved = time.perf_counter()
        back = KVStore.restore(
            store.spec,
            store.chain,
            load_file(path),
            meta,
            ids=session.reader.ids,
            generator=torch.Generator(),
        )
        loaded = time.perf_counter()
        nbytes = path.stat().st_size
    twin = Session.over(session.reader.runner, back, session.contender)
    twin.reader.ids = list(session.reader.ids)
    fork = session.fork()
    try:
        same = torch.equal(fork.append(item.ids[-1:]), twin.append(item.ids[-1:]))
    finally:
        fork.release()
        back.release()
    return {
        "save_s": saved - began,
        "load_s": loaded - saved,
        "file_bytes": nbytes,
        "is_exact": same,
        "is_untouched_by_forks": payload_hash(store) == before,
    }

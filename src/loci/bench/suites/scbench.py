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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # results hold whatever JSON can hold

from loci.bench import contexts, texts
from loci.bench.cards import Row
from loci.bench.contexts import ABILITIES, SharedContext
from loci.bench.reading import (
    FULL,
    MODES,
    Answer,
    Contender,
    Reading,
    contenders,
    prompt_of,
)
from loci.bench.stages import DECODED, sizes_of, timed, to_disk_and_back
from loci.bench.stats import mcnemar, mean, paired_difference
from loci.bench.suite import Context, count_of, refuse_unknown, shares_of, words_of
from loci.errors import ParameterError
from loci.models.load import resolve
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
                cell: (MODES[mode](item, session, ids[-1:]), sizes_of(reading, session))
                for cell, session in sessions.items()
            }
    finally:
        reading.close()


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
        refuse_unknown(options, _OPTIONS)
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
    reading = Reading(lab, max_tokens=len(item.ids) + item.longest() + DECODED, chunk=len(item.ids))
    found: dict[str, dict[str, Any]] = {}
    try:
        with reading.sessions(item.ids, cells) as sessions:
            keys = {cell.key: session for cell, session in sessions.items()}
            found = timed(reading, keys, item.ids, how.rounds)
            for key, session in keys.items():
                found[key]["loading"] = to_disk_and_back(session, item)
    finally:
        reading.close()
    return found

"""Contenders of one comparison of KV methods, measured item by item and kept cell by cell."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any  # records hold whatever JSON can hold

import torch

from loci.bench import contexts, reading, texts
from loci.bench.cells import Cells, code_of
from loci.bench.contexts import Size
from loci.bench.provenance import commit
from loci.bench.reading import (
    FULL,
    MODES,
    SMALL_CHUNK,
    Contender,
    Reading,
    continuation,
    prompt_of,
)
from loci.bench.stages import DECODED, sizes_of, timed
from loci.bench.suite import Context, count_of, refuse_unknown, shares_of, words_of
from loci.errors import ParameterError
from loci.methods.kv.chain import check_chain
from loci.run.lab import Lab

SHARES = (0.5, 0.25, 0.12, 0.06)
TASKS = ("kl", "needle", "multikey", "lookup", "dialogue")
REST = 128  # tokens of real text that are read on after the prompt
CHARACTERS = 7  # of text for a token, at most
_FEW = 3  # needles of the thin haystack
_MODES = {"needle": "multi_request", "multikey": "multi_request", "dialogue": "multi_request"}
_OPTIONS = (
    "tasks",
    "size",
    "shares",
    "contexts",
    "dev",
    "rounds",
    "chunks",
    "plot",
    "fresh",
)

Records = dict[str, list[dict[str, Any]]]  # of one contender: task -> items


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options, read and checked before any work."""

    tokens: int
    sizes: Mapping[str, Size]  # of the tasks that ask questions
    has_kl: bool
    shares: tuple[float, ...]
    contexts: int
    dev: int
    rounds: int
    chunks: tuple[int | None, ...]
    text: str
    fresh: bool

    @classmethod
    def of(cls, context: Context) -> Settings:
        options, quick = context.options, context.quick
        refuse_unknown(options, _OPTIONS)
        name = options.get("size", "short" if quick else "default")
        tasks = words_of(options, "tasks", ("kl", "lookup") if quick else TASKS)
        unknown = [task for task in tasks if task not in TASKS]
        if unknown:
            raise ParameterError("no such task", value=unknown, allowed=", ".join(TASKS))
        sizes = {}
        for task in tasks:
            if task != "kl":
                base = contexts.size("needle" if task == "multikey" else task, name)
                sizes[task] = replace(base, facts=_FEW) if task == "needle" else base
        return cls(
            tokens=contexts.size("needle", name).tokens,
            sizes=sizes,
            has_kl="kl" in tasks,
            shares=tuple(sorted(shares_of(options, SHARES), reverse=True)),
            contexts=count_of(options, "contexts", 1 if quick else 10),
            dev=count_of(options, "dev", 1 if quick else 4),
            rounds=0 if options.get("rounds") == "0" else count_of(options, "rounds", 3),
            chunks=tuple(_chunk(word) for word in words_of(options, "chunks", ("whole", "64"))),
            text=_text(context.data),
            fresh=options.get("fresh", "no") == "yes",
        )


class Bench:
    """Measures contenders on items, and keeps every cell."""

    def __init__(self, lab: Lab, how: Settings, context: Context) -> None:
        self.lab, self.how, self.context = lab, how, context
        self.commits: set[str] = set()
        self._commit = commit()  # of the code that runs, whatever is committed meanwhile
        self._code: dict[str, str] = {}

    def variants(self, names: Sequence[str]) -> list[Contender]:
        """Return everybody who may take part: every variant, share and way to read."""
        full = self.lab.spec.kv_bytes(self.how.tokens)
        found = []
        for name in names:
            plain = Contender(name=name)
            select = check_chain(plain.chain()).select
            chunks: tuple[int | None, ...] = self.how.chunks
            if plain.reads_alone():  # it stages the chunk of every layer
                chunks = tuple(c for c in chunks if c is not None) or (SMALL_CHUNK,)
            for chunk in chunks:
                if select is None:
                    found.append(Contender(name=name, chunk=chunk))
                    continue
                found += [
                    Contender(name=name, chunk=chunk, share=share, budget_bytes=int(full * share))
                    for share in self.how.shares
                ]
        return found

    def measured(self, part: str, cells: Sequence[Contender]) -> dict[Contender, Records]:
        """Return the records of all contenders, measured where they are missing."""
        cells = [Contender(name=FULL), *dict.fromkeys(cells)]
        count = self.how.dev if part == "dev" else self.how.contexts
        found: dict[Contender, Records] = {}
        tasks = [*(["kl"] if self.how.has_kl else []), *self.how.sizes]
        for at, task in enumerate(tasks):
            store = self._cells(task, part)
            for number in range(count):
                self.context.progress(f"{task}, {part}", at * count + number, len(tasks) * count)
                missing = [c for c in cells if self._get(store, number, c) is None]
                for cell, record in self._measure(task, part, number, missing).items():
                    record |= {"commit": self._commit}
                    store.add(number, self._key(cell), record)
                for cell in cells:
                    record_or_none = store.get(number, self._key(cell))
                    if record_or_none and "absent" not in record_or_none:
                        found.setdefault(cell, {}).setdefault(task, []).append(record_or_none)
                        self.commits.add(record_or_none["commit"])
        self.context.progress(part, len(tasks) * count, len(tasks) * count)
        return {c: r for c, r in found.items() if {*r} == {*tasks}}

    def tasks(self, test: Mapping[Contender, Records]) -> dict[str, dict[str, Any]]:
        """Return what each task is, and whether the full cache is good enough at it."""
        full = test[Contender(name=FULL)]
        found: dict[str, dict[str, Any]] = {}
        if self.how.has_kl:
            found["kl"] = {"tokens": self.how.tokens, "scored_tokens": REST * self.how.contexts}
        for task, size in self.how.sizes.items():
            right = [share_right(record) for record in full[task]]
            chance = full[task][0]["chance"]
            found[task] = {
                "tokens": size.tokens,
                "facts": size.facts,
                "chance": chance,
                "questions": sum(len(record["right"]) for record in full[task]),
                "can_rank": sum(right) / len(right) >= 2 * chance,
            }
        return found

    def times(self, cells: Sequence[Contender]) -> dict[Contender, dict[str, Any]]:
        """Return seconds of prefill and of a decoded token, beside the full cache."""
        ids = self._text("test", 0)[: self.how.tokens]
        opened = Reading(self.lab, max_tokens=self.how.tokens + DECODED, chunk=len(ids))
        try:
            with opened.sessions(ids, [Contender(name=FULL), *dict.fromkeys(cells)]) as sessions:
                self.context.progress("times", 0, 1)
                found = timed(
                    opened, {_id(c): s for c, s in sessions.items()}, ids, self.how.rounds
                )
                return {cell: found[_id(cell)] for cell in sessions}
        finally:
            opened.close()

    def _measure(
        self, task: str, part: str, number: int, cells: Sequence[Contender]
    ) -> dict[Contender, dict[str, Any]]:
        if not cells:
            return {}
        if task == "kl":
            found = self._kl(part, number, cells)
        else:
            found = self._asked(task, part, number, cells)
        return {cell: found.get(cell, {"absent": True}) for cell in cells}

    def _asked(
        self, task: str, part: str, number: int, cells: Sequence[Contender]
    ) -> dict[Contender, dict[str, Any]]:
        size, mode = self.how.sizes[task], _MODES.get(task, "multi_turn")
        item = contexts.make(
            "needle" if task == "multikey" else task,
            self.lab.tokenizer,
            size,
            self.context.seed + number,
            part=part,
            turns=min(size.facts, 2 if self.context.quick else contexts.TURNS),
        )
        ids = prompt_of(item, mode)
        opened = Reading(
            self.lab, max_tokens=len(ids) + item.longest(), chunk=len(ids), seed=number
        )
        try:
            with opened.sessions(ids, cells) as sessions:
                found = {}
                for cell, session in sessions.items():
                    answers = MODES[mode](item, session, ids[-1:])
                    found[cell] = {
                        "right": [answer.is_right for answer in answers],
                        "loss": [answer.loss for answer in answers],
                        "survival": [answer.survival for answer in answers],
                        "chance": item.chance,
                        **sizes_of(opened, session),
                    }
                return found
        finally:
            opened.close()

    def _kl(
        self, part: str, number: int, cells: Sequence[Contender]
    ) -> dict[Contender, dict[str, Any]]:
        ids = self._text(part, number)
        prompt, rest = ids[: self.how.tokens], ids[self.how.tokens :]
        opened = Reading(self.lab, max_tokens=len(ids), chunk=len(prompt), seed=number)
        full = Contender(name=FULL)
        found = {}
        try:
            with opened.sessions(prompt, [full, *(c for c in cells if c != full)]) as sessions:
                exact_TV = continuation(sessions[full], prompt[-1:], rest)
                target_T1 = torch.tensor(rest)[:, None]
                for cell, session in sessions.items():
                    other_TV = (
                        exact_TV if cell == full else continuation(session, prompt[-1:], rest)
                    )
                    kl = (exact_TV.exp() * (exact_TV - other_TV)).sum(-1).mean()
                    found[cell] = {
                        "kl": float(kl),
                        "nll": float(-other_TV.gather(1, target_T1).mean()),
                        **sizes_of(opened, session),
                    }
        finally:
            opened.close()
        return found

    def _text(self, part: str, number: int) -> list[int]:
        length = self.how.tokens + REST
        count = max(self.how.dev, self.how.contexts)
        pieces = texts.slices(self.how.text, count, length * CHARACTERS, part)
        ids = self.lab.tokenizer.encode(pieces[number])[:length]
        if len(ids) < length:
            raise ParameterError(
                "a piece of the text is too short", value=len(ids), allowed=f"{length} tokens"
            )
        return list(ids)

    def _cells(self, task: str, part: str) -> Cells:
        size = self.how.sizes.get(task)
        return Cells(
            self.context.folder / ".bench" / "kv",
            f"{task}-{part}",
            {
                "model": self.lab.fingerprint,
                "tokens": self.how.tokens,
                "facts": size.facts if size else REST,
                "seed": self.context.seed,
                "quick": self.context.quick,
                "text": texts.digest(self.how.text),
                "pieces": max(self.how.dev, self.how.contexts) if size is None else 0,
                "code": code_of([contexts, reading, sys.modules[__name__]]),
            },
        )

    def _get(self, store: Cells, number: int, cell: Contender) -> dict[str, Any] | None:
        record = store.get(number, self._key(cell))
        stale = self.how.fresh and record is not None and record.get("commit") != self._commit
        return None if stale else record

    def _key(self, cell: Contender) -> str:
        if cell.name not in self._code:
            self._code[cell.name] = code_of(cell.chain())
        return f"{_id(cell)} {self._code[cell.name]}"


def share_right(record: Mapping[str, Any]) -> float:
    """Return the share of an item's questions that were answered right."""
    return sum(record["right"]) / len(record["right"])


# -- private ----------------------------------------------------------------------------------


def _chunk(word: str) -> int | None:
    if word == "whole":
        return None
    if not word.isdigit() or int(word) < 1:
        raise ParameterError("chunks are tokens", value=word, allowed="whole, or >= 1")
    return int(word)


def _text(path: Path | None) -> str:
    """Return the text of a file; a folder of data holds none of this suite's."""
    if path is None or path.is_dir():
        return texts.prose()
    return path.read_text(encoding="utf-8")


def _id(cell: Contender) -> str:
    if cell.name == FULL:
        return FULL
    return f"{cell.key} / {'whole' if cell.chunk is None else cell.chunk}"

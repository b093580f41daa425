"""Memory as cubes: moved between processes, promoted to keys and values, scheduled for a week.

    moves    a cube with text, tensors and facts goes through a file and another process and comes
             back; every altered byte that was tried is refused
    prefix   a text in the prompt, read again or loaded as a cube: the same greedy tokens, the
             largest difference of a logit, seconds to the first token (loading included)
    trace    a large week on account of the seconds measured here: seconds, hits, by seed
    week     a small week for real: model, files, promotions; total seconds of everybody

Rivals of the schedule: `never` (text alone) and `lru`, in the same bytes. The model's context is
as long as the longest text needs, whatever the plan of a run would take.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any  # results

import torch
from torch import Tensor

from loci.bench import texts, week
from loci.bench.cards import Row
from loci.bench.metrics import percentile
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.core.arrange import Standing
from loci.core.cube import CubeHeader, MemoryKind, Policy
from loci.errors import FormatError, ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Arrange
from loci.run import cubes
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.run.prefill import Prefiller
from loci.store import cube_file
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf

ABOUT = "cubes of memory: moved, promoted to keys and values, and scheduled for a week"
KINDS = ("recall",)
METHODS = ("memos",)
PARTS = ("moves", "prefix", "trace", "week")
OURS = "memos"
LENGTHS = {256: 20, 512: 20, 1024: 10, 2048: 4}  # tokens of a text, and how many of it
QUICK_LENGTHS = {32: 2, 64: 2}
QUESTION = "In one short sentence: what does the text above tell about, and who is spoken of in it?"
DECODED = 16
TRIED = 200  # altered bytes
SHARE = 0.25  # of all keys and values, in the week; 10 % in the trace
TRACE_SHARE, TRACE_TOPICS, TRACE_QUESTIONS, SEEDS = 0.1, 100, 2000, 5
JUDGED = 100  # seeds from here on; the schedule's half-life was chosen on the first three
WEEK_TOKENS = (256, 384, 512, 640, 768)

_PASS_ON = (
    "import sys, pathlib; from loci.store.shelf import Shelf;"
    "shelf = Shelf(sys.argv[1]); header = shelf.load(pathlib.Path(sys.argv[2]));"
    "shelf.save(header.id, pathlib.Path(sys.argv[3]))"
)


def run(context: Context) -> dict[str, Any]:
    """Measure every part that was asked for."""
    refuse_unknown(context.options, ("parts", "questions", "topics", "cases"))
    parts = words_of(context.options, "parts", PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ParameterError("there is no such part", value=unknown[0], allowed=", ".join(PARTS))
    found: dict[str, Any] = {"model": "none", "fingerprint": "none", "seed": context.seed}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="loci-cubes-") as folder:
        home = Path(folder)
        if "moves" in parts:
            results["moves"] = {OURS: _moves(home / "moves", 20 if context.quick else TRIED)}
        if set(parts) - {"moves"}:
            from loci.models.load import resolve

            with resolve(context.model, context.folder) as pack:
                found |= {"model": context.model, "fingerprint": pack.spec.fingerprint}
                with _reader(Lab(pack, context=4096 if not context.quick else 512), home) as reader:
                    results |= _with_model(context, parts, reader)
    return {**found, "results": results}


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return one row a part: the schedule beside its rivals, a cube beside its text."""
    rows = []
    for part, ways in result["results"].items():
        ours = ways[OURS]
        whats = [what for what, value in ours.items() if type(value) in (int, float)]
        rows.append(
            Row(
                method=OURS,
                kind="recall",
                part=part,
                seeds=tuple(ours.get("seeds", (result["seed"],))),
                metrics={
                    what: {
                        "this": ours[what],
                        "rivals": {n: w[what] for n, w in ways.items() if n != OURS and what in w},
                    }
                    for what in whats
                },
                ratio=ours.get("ratio", {}),
            )
        )
    return rows


# -- moves ------------------------------------------------------------------------------------


def _moves(home: Path, tried: int) -> dict[str, Any]:
    """Send a cube through another process, and alter bytes of its file."""
    home.mkdir()
    draw = torch.Generator().manual_seed(0)
    payload = Payload(
        tensors={
            "keys.0": torch.randn(1, 3, 50, 64, generator=draw),
            "values.0": torch.randn(1, 3, 50, 64, generator=draw).half(),
            "layer.0.q_proj.left": torch.randn(576, 8, generator=draw),
            "ids": torch.arange(50, dtype=torch.int32),
        },
        texts={"text": texts.prose()[:3000], "i7": "Ada lives in Graz."},
        facts={"rank": 8},
    )
    header = CubeHeader(
        id="cube-a", kind=MemoryKind.ACTIVATION, parents=("i7",), policy=Policy(owner="ada")
    )
    Shelf(home / "here").put(header, payload)
    there, back = home / "there.cube", home / "back.cube"
    Shelf(home / "here").save("cube-a", there)
    command = [sys.executable, "-c", _PASS_ON, str(home / "other"), str(there), str(back)]
    subprocess.run(command, check=True)
    same_bytes = there.read_bytes() == back.read_bytes()
    _, found = cube_file.read(back)
    same = found.texts == payload.texts and found.facts == payload.facts
    same = same and all(torch.equal(found.tensors[n], t) for n, t in payload.tensors.items())
    whole, refused = back.read_bytes(), 0
    places = torch.randint(len(whole), (tried,), generator=draw).tolist()
    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1
        back.write_bytes(altered)
        try:
            cube_file.read(back)
        except FormatError:
            refused += 1
    return {
        "same_bytes": float(same_bytes),
        "same_payload": float(same),
        "altered_refused": refused / tried,
    }


# -- with a model -----------------------------------------------------------------------------


class _Reader:
    """A model that answers with a text before the question, read again or loaded from a shelf."""

    def __init__(self, lab: Lab, store: KVStore, prefiller: Prefiller, shelf: Shelf) -> None:
        self.lab, self.store, self.prefiller, self.shelf = lab, store, prefiller, shelf
        self.form = cubes.Form(
            fingerprint=lab.fingerprint, layout=lab.spec.layout_hash(), dtype="float32"
        )
        self.token_bytes = cubes.kv_bytes(lab.spec, 1, "float32")

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a question about a text."""
        asked = [{"role": "user", "content": QUESTION}]
        return self.lab.tokenizer.chat(cubes.told(self.lab.tokenizer, [text], asked))

    def read(self, text: str) -> tuple[Tensor, float]:
        """Read everything; return logits [1, V] of the first token and seconds to them."""
        self._fresh()
        began = time.perf_counter()
        logits = self.prefiller.read(self.ids(text)).clone()
        return logits, time.perf_counter() - began

    def load(self, id: str, text: str) -> tuple[Tensor, float]:
        """Load a cube and read the question; the same."""
        self._fresh()
        began = time.perf_counter()
        ids = self.ids(text)
        path = self.shelf.path(id)
        _, payload = cube_file.read(path, fingerprint=self.form.fingerprint, mapped=True)
        known = cubes.check(path, payload, self.form, self.lab.tokenizer, text)
        cubes.fill(self.store, payload, len(known))
        self.prefiller.ids = list(known)
        logits = self.prefiller.read(ids[len(known) :]).clone()
        return logits, time.perf_counter() - began

    def keep(self, id: str, text: str) -> float:
        """Keep what the store read of a text, which was just read; return seconds."""
        began = time.perf_counter()
        ids = cubes.prefix(self.lab.tokenizer, text)
        self.store.crop(len(ids))
        payload = cubes.payload_of(self.store, ids, self.form, Payload(texts={cubes.WHOLE: text}))
        header = CubeHeader(id=id, kind=MemoryKind.ACTIVATION, fingerprint=self.form.fingerprint)
        self.shelf.put(header, payload, keep=False)
        return time.perf_counter() - began

    def drop(self, id: str, text: str) -> float:
        """Go back to text; return seconds."""
        began = time.perf_counter()
        header = CubeHeader(id=id, kind=MemoryKind.PLAINTEXT)
        self.shelf.put(header, Payload(texts={cubes.WHOLE: text}), keep=False)
        return time.perf_counter() - began

    def greedy(self, logits: Tensor, count: int) -> list[int]:
        """Return the most likely tokens from here on."""
        found = []
        for _ in range(count):
            token = int(logits.argmax(-1)[0])
            found.append(token)
            after = self.prefiller.runner.forward(torch.tensor([[token]]), self.store)
            assert after is not None
            logits = after
        return found

    def _fresh(self) -> None:
        self.store.crop(0)
        self.prefiller.ids = []


@contextmanager
def _reader(lab: Lab, home: Path) -> Iterator[_Reader]:
    store = lab.store(max_tokens=lab.context)
    try:
        with lab.reading(store) as prefiller:
            yield _Reader(lab, store, prefiller, Shelf(home / "cubes"))
    finally:
        store.release()
        lab.close()


def _with_model(context: Context, parts: Sequence[str], reader: _Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "prefix" in parts:
        found["prefix"] = _prefix(context, reader)
    if set(parts) & {"trace", "week"}:
        pace = _pace(reader, 64 if context.quick else 512)
        if "trace" in parts:
            found["trace"] = _trace(context, reader, pace)
        if "week" in parts:
            found["week"] = _week(context, reader, pace)
    return found


def _texts(reader: _Reader, lengths: Sequence[int]) -> list[str]:
    """Return disjoint pieces of prose of so many tokens."""
    ids = reader.lab.tokenizer.encode(texts.prose()[: 8 * sum(lengths) + 4000])
    if len(ids) < sum(lengths):
        raise ParameterError("the prose is too short", value=len(ids), allowed=f">= {sum(lengths)}")
    found, at = [], 0
    for length in lengths:
        found.append(reader.lab.tokenizer.decode(ids[at : at + length]))
        at += length
    return found


def _prefix(context: Context, reader: _Reader) -> dict[str, Any]:
    """Compare a loaded cube with its text read again, case by case, in turns."""
    lengths = QUICK_LENGTHS if context.quick else LENGTHS
    if "cases" in context.options:
        most = count_of(context.options, "cases", 1)
        lengths = {length: min(cases, most) for length, cases in lengths.items()}
    flat = [length for length, cases in lengths.items() for _ in range(cases)]
    same, apart = 0, 0.0
    ratios: dict[int, list[float]] = {length: [] for length in lengths}
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    promote: list[float] = []
    for number, (length, text) in enumerate(zip(flat, _texts(reader, flat), strict=True)):
        context.progress("prefix", number, len(flat))
        logits, read_s = reader.read(text)
        said = reader.greedy(logits, DECODED)
        promote.append(reader.keep("cube-a", text))
        loaded, load_s = reader.load("cube-a", text)
        apart = max(apart, float((loaded - logits).abs().max()))
        same += reader.greedy(loaded, DECODED) == said
        ratios[length].append(load_s / read_s)
        seconds[length].append(load_s)
    ours: dict[str, Any] = {
        "cases": len(flat),
        "same_tokens": same / len(flat),
        "logit_difference": apart,
        "keep_s": percentile(promote, 0.5),
    }
    for length in lengths:
        ours[f"first_token_s.{length}"] = percentile(seconds[length], 0.5)
    ours["ratio"] = {
        f"first_token.{length}": percentile(found, 0.5) for length, found in ratios.items()
    }
    return {OURS: ours}


def _pace(reader: _Reader, tokens: int) -> week.Account:
    """Measure what a token read, a byte loaded and a byte written take here, twice; the faster."""
    (text,) = _texts(reader, [tokens])
    reads, loads, writes = [], [], []
    for _ in range(2):
        reads.append(reader.read(text)[1])
        writes.append(reader.keep("cube-pace", text))
        loads.append(reader.load("cube-pace", text)[1])
    reader.shelf.remove("cube-pace")
    (nothing,) = _texts(reader, [2])
    question_s = min(reader.read(nothing)[1] for _ in range(2))
    nbytes = reader.token_bytes * tokens
    return week.Account(
        tokens=(),
        token_bytes=reader.token_bytes,
        read_s=max(0.0, min(reads) - question_s) / tokens,
        load_s=max(0.0, min(loads) - question_s) / nbytes,
        write_s=min(writes) / nbytes,
        question_s=question_s,
    )


def _ways() -> dict[str, week.Tick]:
    method = catalogue.find(OURS, "recall")
    assert isinstance(method, Arrange)
    return {"never": week.never, "lru": week.least_recent, OURS: method.tick}


def _trace(context: Context, reader: _Reader, pace: week.Account) -> dict[str, Any]:
    """Replay large weeks on account, by seed."""
    first = JUDGED + context.seed
    seeds = range(first, first + (2 if context.quick else SEEDS))
    topics, questions = (20, 60) if context.quick else (TRACE_TOPICS, TRACE_QUESTIONS)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _ways()}
    for seed in seeds:
        context.progress("trace", seed - seeds[0], len(seeds))
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(200, 1200, (topics,), generator=draw).tolist()
        budget = int(TRACE_SHARE * sum(tokens) * pace.token_bytes)
        asked = week.draw(topics, questions, seed)
        for name, tick in _ways().items():
            account = replace(pace, tokens=tokens, held=set())
            rows[name].append(week.replay(account, asked, topics, tick, budget))
    found: dict[str, Any] = {
        name: {what: sum(row[what] for row in ways) / len(ways) for what in ways[0]}
        for name, ways in rows.items()
    }
    return _beside(found, list(seeds))


def _week(context: Context, reader: _Reader, pace: week.Account) -> dict[str, Any]:
    """Replay a small week for real, everybody on a shelf of their own."""
    topics = count_of(context.options, "topics", 4 if context.quick else 16)
    questions = count_of(context.options, "questions", 10 if context.quick else 84)
    choice = (32, 48) if context.quick else WEEK_TOKENS
    lengths = [choice[topic % len(choice)] for topic in range(topics)]
    asked = week.draw(topics, questions, JUDGED + context.seed)
    said = _texts(reader, lengths)
    tokens = [len(cubes.prefix(reader.lab.tokenizer, text)) for text in said]
    budget = int(SHARE * sum(tokens) * reader.token_bytes)
    worlds = {
        name: _Real(reader, name, said, replace(pace, tokens=tokens, held=set()))
        for name in _ways()
    }
    found = week.together(
        {name: (worlds[name], tick) for name, tick in _ways().items()},
        asked,
        topics,
        budget,
        lambda done: context.progress("week", done, questions),
    )
    for name, way in found.items():
        way["same_tokens"] = float(worlds[name].answers == worlds["never"].answers)
        way["budget_bytes"] = budget
    return _beside(found, [JUDGED + context.seed])


def _beside(found: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    ours = found[OURS]
    ours["seeds"] = seeds
    ours["ratio"] = {
        f"{what}.{name}": ours[what] / found[name][what]
        for what in ("total_s", "first_token_s", "hit_rate")
        for name in ("never", "lru")
        if found[name][what]
    }
    return found


class _Real:
    """A world of the model and its files; an account beside it tells what things cost."""

    def __init__(
        self, reader: _Reader, name: str, said: Sequence[str], account: week.Account
    ) -> None:
        self.reader, self.name, self.said, self.account = reader, name, said, account
        self.answers: list[int] = []

    def first_token(self, topic: int, promoted: bool) -> float:
        text = self.said[topic]
        way: Callable[[], tuple[Tensor, float]] = (
            (lambda: self.reader.load(f"{self.name}-{topic}", text))
            if promoted
            else (lambda: self.reader.read(text))
        )
        logits, seconds = way()
        self.answers.append(int(logits.argmax(-1)[0]))
        return seconds

    def promote(self, topic: int, just_read: bool) -> float:
        self.account.promote(topic, just_read)
        again = 0.0 if just_read else self.reader.read(self.said[topic])[1]
        return again + self.reader.keep(f"{self.name}-{topic}", self.said[topic])

    def demote(self, topic: int) -> float:
        self.account.demote(topic)
        return self.reader.drop(f"{self.name}-{topic}", self.said[topic])

    def standing(self, topic: int, header: CubeHeader, just_read: bool) -> Standing:
        return self.account.standing(topic, header, just_read)

    def nbytes(self) -> int:
        return self.account.nbytes()

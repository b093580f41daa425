"""Conversations of weeks in a small cache: answered by episode, beside caches of the same size.

A conversation is sessions on changing topics (`bench/conversations.py`); each session tells a fact,
and all facts are asked at the end, one by one. Nobody ever holds more than M entries and a block in
any head of a layer, on average, and all read block by block:

    epicache    a cache an episode; the question picks one. Also with caches parked in four bits
    rivals      one cache of M entries, chosen by snapkv, kvzip, at random, or the last ones
    text        the segments most like the question, as many as M tokens, read anew
    full        a cache that holds everything

Questions are scored by candidates. `routed` is the share of questions that went to the episode
whose segments hold the fact.

Options: conversations=3, topics=4, sessions=4 (of each topic), share=0.25 (M as a part of the
history's tokens), block=256, rivals=snapkv,kvzip,random,streaming_llm, bits=4 (of parked caches; 16
leaves that arm out), part=test|dev. --method may be repeated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast  # results hold whatever JSON can hold

from loci.bench import conversations
from loci.bench.cards import Row
from loci.bench.conversations import Conversation, Question
from loci.bench.embedding import embedder
from loci.bench.reading import Contender, Session, judged
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.errors import ModelError, ParameterError
from loci.methods import catalogue
from loci.methods.kv.base import Select
from loci.methods.kv.read import CacheSet, Read
from loci.models.load import resolve
from loci.run.episodes import CacheReader, Episodes
from loci.run.lab import Lab
from loci.run.parking import WHOLE, Parking
from loci.run.prefill import Prefiller
from loci.tiers.dram import DramTier

ABOUT = "long conversations in small caches: an episode for each question, beside one cache for all"
KINDS = ("kv",)
METHODS = ("epicache",)
DEFAULT = ("epicache",)
RIVALS = ("snapkv", "kvzip", "random", "streaming_llm")
FULL, TEXT = "full", "text"
ROOM = 128  # tokens of a question and its answer
_OPTIONS = ("conversations", "topics", "sessions", "share", "block", "rivals", "bits", "part")


@dataclass(eq=False)
class _Arm:
    """Everything one contender did, question by question."""

    right: list[dict[int, float]] = field(default_factory=list)  # by conversation and question
    loss: list[float] = field(default_factory=list)
    routed: list[float] = field(default_factory=list)
    peak_entries: list[int] = field(default_factory=list)
    parked_bytes: list[int] = field(default_factory=list)
    from_text: int = 0


def run(context: Context) -> dict[str, Any]:
    """Read every conversation in every way, and ask everything."""
    options = context.options
    refuse_unknown(options, _OPTIONS)
    count = count_of(options, "conversations", 1 if context.quick else 3)
    topics = count_of(options, "topics", 2 if context.quick else 4)
    sessions = count_of(options, "sessions", 2 if context.quick else 4)
    block, bits = count_of(options, "block", 256), count_of(options, "bits", 4)
    share = _share(options.get("share", "0.25"))
    rivals = words_of(options, "rivals", RIVALS[:1] if context.quick else RIVALS)
    vectors = embedder(context.folder)
    if vectors is None:
        raise ModelError("episodes are found with an embedder", way_out="get it:  loci pull minilm")
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, chunk=block)
    arms: dict[str, _Arm] = defaultdict(_Arm)
    sizes = []
    try:
        for number in range(count):
            talk = conversations.make(
                context.seed + number, part=options.get("part", "test"), count=topics,
                sessions=sessions,
            )  # fmt: skip
            reader = CacheReader(
                lab.spec, lab.weights_source, lab.ledger, lab.tokenizer, vectors,
                Parking(DramTier(lab.ledger)), block=block, room=ROOM,
            )  # fmt: skip
            ids = talk.ids(lab.tokenizer)
            tokens = max(1, int(len(ids) * share))
            sizes.append({"tokens": len(ids), "entries": tokens})
            try:
                reading = _Reading(lab, reader, talk, tokens, bits)
                for name, arm in reading.arms(context.methods or DEFAULT, rivals):
                    context.progress(name, number, count)
                    arm(arms[name])
            finally:
                reader.release()
    finally:
        lab.close()
        pack.close()
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "sizes": sizes,
        "share": share,
        "block": block,
        "topics": topics,
        "chance": 1 / min(8, topics * sessions * conversations.FACTS),
        "questions": sum(map(len, arms[FULL].right)),
        "methods": list(context.methods or DEFAULT),
        "rivals": list(rivals),
        "arms": {name: _figures(arm, arms[FULL]) for name, arm in arms.items()},
        "less": _less(arms, context.methods or DEFAULT, rivals),
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table to print: (title, head, rows)."""
    head = ["who", "right", "95 %", "of full", "loss", "routed", "most entries", "parked"]
    lines = []
    for name, arm in sorted(result["arms"].items(), key=lambda x: -x[1]["right"]["value"]):
        right = arm["right"]
        lines.append(
            [
                name,
                f"{right['value']:.3f}",
                f"{right['low']:.2f} to {right['high']:.2f}",
                f"{arm['of_full']:.0%}",
                f"{arm['loss']:.2f}",
                "-" if arm["routed"] is None else f"{arm['routed']:.0%}",
                "-" if arm["peak_entries"] is None else f"{arm['peak_entries']}",
                "-" if arm["parked_bytes"] is None else f"{arm['parked_bytes'] / 2**20:.1f} MiB",
            ]
        )
    first = result["sizes"][0]
    title = (
        f"{result['questions']} questions, {first['tokens']} tokens in {first['entries']} entries, "
        f"blocks of {result['block']}, chance {result['chance']:.2f}"
    )
    return [(title, head, lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return every method that reads, beside those with one cache."""
    arms, most = result["arms"], max(size["entries"] for size in result["sizes"])
    rivals = {
        name: arms[name]["right"]["value"] for name in (*result["rivals"], TEXT) if name in arms
    }
    rows = []
    for method in result["methods"]:
        arm = arms[method]
        metrics: dict[str, dict[str, Any]] = {
            "dialogue": {
                "this": arm["right"]["value"],
                "full": arms[FULL]["right"]["value"],
                "rivals": rivals,
            },
            "routed": {"this": arm["routed"]},
            "peak_entries": {
                "this": arm["peak_entries"], "rivals": {"allowed": most + result["block"]},
            },
        }  # fmt: skip
        parked = next((n for n in arms if n.startswith(f"{method}, parked")), None)
        if parked is not None:
            metrics["dialogue_parked_small"] = {
                "this": arms[parked]["right"]["value"],
                "rivals": {method: arm["right"]["value"]},
            }
        rows.append(
            Row(
                method=method,
                kind="kv",
                part=f"{result['sizes'][0]['tokens']}/{result['share']:g}",
                metrics=metrics,
                interval={"dialogue": (arm["right"]["low"], arm["right"]["high"])},
                bytes={"parked": arm["parked_bytes"]},
            )
        )
    return rows


# -- private: arms ----------------------------------------------------------------------------


@dataclass(eq=False)
class _Reading:
    """One conversation, read in every way."""

    lab: Lab
    reader: CacheReader
    talk: Conversation
    tokens: int
    bits: int
    episodes: Episodes | None = None  # of the method that read last

    def arms(
        self, methods: Sequence[str], rivals: Sequence[str]
    ) -> Iterator[tuple[str, Callable[[_Arm], None]]]:
        """Yield (name, what fills in an arm): each reads when it is called."""
        yield FULL, self.full
        for written in methods:
            yield written, partial(self.read, cast(Read, catalogue.find(written, "kv")))
            if self.bits != WHOLE:
                yield f"{written}, parked in {self.bits} bits", self.small
            if written == methods[0]:
                yield TEXT, self.text
            self.reader.parking.clear()
        for name in rivals:
            select = catalogue.find(name, "kv")
            if not isinstance(select, Select):
                raise ParameterError("a rival is a method that selects", value=name)
            yield name, partial(self.alone, name, select)
            self.reader.parking.clear()

    def full(self, arm: _Arm) -> None:
        """Ask a cache that holds everything."""
        with self.reader.plain(self.talk.ids(self.lab.tokenizer)) as plain:
            _ask(arm, plain, self.talk, self.lab, self.talk.questions)

    def read(self, method: Read, arm: _Arm) -> None:
        """Let a method read, and ask by its routes."""
        made = self.lab.prepared(method) if getattr(method, "layers", "") == "own" else None
        self.episodes = Episodes(method, self.reader, self.talk.history, self.tokens, made)
        peaks = [self.reader.peak_entries[name] for name in self.episodes.held.names]
        arm.peak_entries.append(max(peaks))
        arm.parked_bytes.append(self.reader.parking.nbytes())
        _ask_routed(arm, self.episodes, self.talk, self.lab)

    def small(self, arm: _Arm) -> None:
        """Ask the same caches, put away in fewer bits."""
        assert self.episodes is not None
        whole, held = self.reader.parking, self.episodes.held
        self.reader.parking = Parking(DramTier(self.lab.ledger), self.bits)
        _put_again(whole, self.reader.parking, self.reader, held)
        arm.parked_bytes.append(self.reader.parking.nbytes())
        _ask_routed(arm, self.episodes, self.talk, self.lab)
        self.reader.parking.clear()
        self.reader.parking = whole

    def text(self, arm: _Arm) -> None:
        """Ask what has read the segments most like each question."""
        assert self.episodes is not None
        for asked in self.talk.questions:
            is_new = asked is self.talk.questions[0]
            with self.reader.plain(self.episodes.texts_for(asked.text)) as plain:
                _ask(arm, plain, self.talk, self.lab, [asked], is_new=is_new)

    def alone(self, name: str, select: Select, arm: _Arm) -> None:
        """Ask one cache that a method chose."""
        self.reader.read(name, select, self.talk.ids(self.lab.tokenizer), self.tokens)
        arm.peak_entries.append(self.reader.peak_entries[name])
        arm.parked_bytes.append(self.reader.parking.nbytes())
        with self.reader.brought(name, select) as brought:
            _ask(arm, brought, self.talk, self.lab, self.talk.questions)


def _put_again(whole: Parking, small: Parking, reader: CacheReader, held: CacheSet) -> None:
    for name, select in zip(held.names, held.selects, strict=True):
        store, ids = whole.take(name, reader.spec, (select,), reader.ledger)
        small.put(name, store, ids)
        store.release()


def _ask_routed(arm: _Arm, episodes: Episodes, talk: Conversation, lab: Lab) -> None:
    """Ask every question of its episode; those of one episode together."""
    held, method = episodes.held, episodes.method
    of: dict[int, list[Question]] = defaultdict(list)
    utterances = int(getattr(method, "utterances", 1))
    arm.right.append({})
    for asked in talk.questions:
        route = episodes.route(asked.text)
        arm.routed.append(float(held.of_segment[asked.at // utterances] == route.cache))
        if route.is_far:
            arm.from_text += 1
            with episodes.reader.plain(episodes.texts_for(asked.text)) as plain:
                _ask(arm, plain, talk, lab, [asked], is_new=False)
        else:
            of[route.cache].append(asked)
    for cache, questions in of.items():
        with episodes.reader.brought(held.names[cache], held.selects[cache]) as brought:
            _ask(arm, brought, talk, lab, questions, is_new=False)


def _ask(
    arm: _Arm,
    reader: Prefiller,
    talk: Conversation,
    lab: Lab,
    questions: Sequence[Question],
    *,
    is_new: bool = True,
) -> None:
    """Ask questions one by one, each of a copy; `is_new` begins the marks of a conversation."""
    if is_new:
        arm.right.append({})
    session = Session(Contender(name=FULL), reader)
    item = talk.context(lab.tokenizer, questions)
    for asked, turn in zip(questions, item.turns, strict=True):
        fork = session.fork()
        try:
            answer = judged(fork, turn, fork.append(turn.question))
        finally:
            fork.release()
        arm.right[-1][asked.at] = float(answer.is_right)
        arm.loss.append(answer.loss)


# -- private: figures -------------------------------------------------------------------------


def _share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise ParameterError("share is a part of the history", value=text, allowed="0.25")
    return found


def _flat(arm: _Arm) -> list[float]:
    """Return 1 or 0 for every question, in one order for all arms."""
    return [talk[at] for talk in arm.right for at in sorted(talk)]


def _figures(arm: _Arm, full: _Arm) -> dict[str, Any]:
    right = mean(_flat(arm))
    return {
        "right": right.to_json(),
        "of_full": right.value / max(mean(_flat(full)).value, 1e-9),
        "loss": sum(arm.loss) / len(arm.loss),
        "routed": sum(arm.routed) / len(arm.routed) if arm.routed else None,
        "from_text": arm.from_text,
        "peak_entries": max(arm.peak_entries) if arm.peak_entries else None,
        "parked_bytes": max(arm.parked_bytes) if arm.parked_bytes else None,
    }


def _less(
    arms: Mapping[str, _Arm], methods: Sequence[str], rivals: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return what each method gets right more than each other, question by question."""
    return {
        method: {
            name: paired_difference(_flat(arms[method]), _flat(arms[name])).to_json()
            for name in (*rivals, TEXT, FULL)
        }
        for method in methods
    }

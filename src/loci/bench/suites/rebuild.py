"""xKV when a decoded token rebuilds only some of what is stored, beside the whole product.

The prompt is read whole and attends to its exact keys, as in the paper; then it is encoded. What
follows is read token by token, for only a token that comes alone chooses what it rebuilds: the text
that is read on, the end of a question, and its answer. All variants store the same rows and bases;
those that choose store landmarks beside them.

    kl          KL to the full cache on real text read on, nats per token
    needle      facts over prose; right where each token of the answer is the likeliest
    decode      seconds of a decoded token, all taking turns
    operations  that rebuild keys and values for one token, and choose: counted, not timed

Options: tokens=2112 (of a prompt), chunks=8,16,32,64, pieces=4 (of text), contexts=4 (of needles),
rounds=3 (of timing). --method is the product that is rebuilt, xkv by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any  # results hold whatever JSON can hold

import torch
from torch import Tensor

from loci.bench import contexts, texts
from loci.bench.cards import Row
from loci.bench.reading import FULL, Contender, Reading, Session
from loci.bench.stages import decoded
from loci.bench.stats import alternate, mean, ratio
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.kv.chain import due_tokens, layer_groups
from loci.methods.kv.xkv import LANDMARK, Xkv
from loci.models.load import resolve
from loci.run.lab import Lab

ABOUT = "xKV that rebuilds only what a token looks for: loss, needles, operations and time"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it is about one method
TOKENS, REST, DECODED = 2112, 48, 8  # of a prompt; read on after it; decoded to time one
CHUNKS = ("8", "16", "32", "64")
CHARACTERS = 7  # of text for a token, at most
_OPTIONS = ("tokens", "chunks", "pieces", "contexts", "rounds")

# Shapes: T tokens, V vocabulary.


def run(context: Context) -> dict[str, Any]:
    """Measure the product and every number of chunks on the same texts."""
    refuse_unknown(context.options, _OPTIONS)
    whole = _product(context.methods)
    tokens = count_of(context.options, "tokens", TOKENS)
    few = 1 if context.quick else 4
    pieces = count_of(context.options, "pieces", few)
    items = count_of(context.options, "contexts", few)
    rounds = count_of(context.options, "rounds", 1 if context.quick else 3)
    counts = [int(word) for word in words_of(context.options, "chunks", CHUNKS)]
    methods = [whole, *(replace(whole, chunks=count) for count in counts)]
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=tokens)
    try:
        suite = _Suite(lab, context, tokens, methods)
        kl = suite.read_on(pieces)
        needles = suite.asked(items)
        times = suite.times(rounds)
    finally:
        lab.close()
        pack.close()
    coded = due_tokens(whole, tokens - 1)
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "prompt_tokens": tokens,
        "coded_tokens": coded,
        "scored_tokens": REST * pieces,
        "questions": len(needles[FULL]),
        "full": {
            "needle": mean([float(is_right) for is_right, _ in needles[FULL]]).to_json(),
            "nll": mean([loss for _, loss in needles[FULL]]).to_json(),
            "kv_bytes": suite.held[FULL],
            "decode_s": times[FULL][len(times[FULL]) // 2],
        },
        "rows": [
            {
                "method": str(method),
                "chunks": method.chunks,
                "operations": operations(method, pack.spec, coded),
                "kl": mean(kl[str(method)]).to_json(),
                "needle": mean([float(ok) for ok, _ in needles[str(method)]]).to_json(),
                "nll": mean([loss for _, loss in needles[str(method)]]).to_json(),
                "kv_bytes": suite.held[str(method)],
                "predicted_bytes": suite.predicted[str(method)],
                "decode": ratio(times[str(method)], times[FULL]).to_json(),
                "decode_to_whole": ratio(times[str(method)], times[str(whole)]).to_json(),
            }
            for method in methods
        ],
    }


def operations(method: Xkv, spec: ModelSpec, coded: int) -> int:
    """Return what one decoded token costs in rebuilding and choosing, two for each product.

    Args:
        coded: tokens that are stored as rows.
    """
    tokens, choosing = coded, 0
    if method.chunks is not None:
        always = -(-min(method.sinks, coded) // LANDMARK)
        tokens = min(coded, (always + method.chunks) * LANDMARK)
        if tokens < coded:
            choosing = 2 * spec.layers * spec.heads * spec.head_dim * (coded // LANDMARK)
    rebuilding = 0
    for layers in layer_groups(spec, method):
        row = sum(shape[0] for shape, _ in method.row_table(spec, layers).values())
        rebuilding += len(layers) * 2 * row * tokens * spec.kv_heads * spec.head_dim
    return rebuilding + choosing


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the table to print."""
    head = ["rebuilt", "KL", "needle", "NLL", "operations", "held", "decode", "to whole"]
    lines = []
    for row in result["rows"]:
        chunks = row["chunks"]
        share = "all" if chunks is None else f"{chunks} of {result['coded_tokens'] // LANDMARK}"
        lines.append(
            [
                share,
                f"{row['kl']['value']:.4f}",
                f"{row['needle']['value']:.2f}",
                f"{row['nll']['value']:.3f}",
                f"{row['operations'] / 1e9:.2f}e9",
                f"{row['kv_bytes'] / 2**20:.1f} MiB",
                f"x{row['decode']['value']:.2f}",
                f"x{row['decode_to_whole']['value']:.2f}",
            ]
        )
    full = result["full"]
    title = (
        f"{result['prompt_tokens']} tokens; full cache: needle {full['needle']['value']:.2f}, "
        f"NLL {full['nll']['value']:.3f}, {full['kv_bytes'] / 2**20:.1f} MiB"
    )
    return [(title, head, lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what each number of chunks loses and saves, beside the whole product."""
    rows, whole = [], result["rows"][0]
    for row in result["rows"]:
        beside = [other for other in result["rows"] if other is not row]

        def metric(what: str, row: Mapping[str, Any] = row, beside: Any = beside) -> dict[str, Any]:
            rivals = {other["method"]: other[what]["value"] for other in beside}
            return {"this": row[what]["value"], "rivals": rivals}

        rows.append(
            Row(
                method=row["method"],
                kind="kv",
                part=f"{result['prompt_tokens']} tokens",
                metrics={
                    "kl": metric("kl"),
                    **{
                        what: {"full": result["full"][what]["value"], **metric(what)}
                        for what in ("needle", "nll")
                    },
                    "operations": {
                        "this": row["operations"],
                        "rivals": {whole["method"]: whole["operations"]},
                    },
                },
                interval={what: (row[what]["low"], row[what]["high"]) for what in ("kl", "needle")},
                bytes={
                    "full": result["full"]["kv_bytes"],
                    "predicted": row["predicted_bytes"],
                    "measured": row["kv_bytes"],
                },
                ratio={what: row[what]["value"] for what in ("decode", "decode_to_whole")},
            )
        )
    return rows


# -- private ----------------------------------------------------------------------------------


class _Suite:
    """Reads prompts into the stores of all variants at once."""

    def __init__(self, lab: Lab, context: Context, tokens: int, methods: Sequence[Xkv]) -> None:
        self._lab, self._context, self._tokens = lab, context, tokens
        self._all = [Contender(name=FULL), *(Contender(name=str(method)) for method in methods)]
        self.held: dict[str, int] = {}
        self.predicted: dict[str, int] = {}

    def read_on(self, count: int) -> dict[str, list[float]]:
        """Return KL to the full cache by variant, a number for each piece of text."""
        found: dict[str, list[float]] = {}
        length = self._tokens + REST
        for number, text in enumerate(
            texts.slices(texts.prose(), count, length * CHARACTERS, "test")
        ):
            ids = list(self._lab.tokenizer.encode(text)[:length])
            if len(ids) < length:
                raise ParameterError("a piece of text is too short", value=len(ids))
            prompt, rest = ids[: self._tokens], ids[self._tokens :]
            with self._sessions(prompt, REST) as sessions:
                rows = {}
                for name, session in sessions.items():
                    rows[name] = _one_by_one(session, [prompt[-1], *rest[:-1]])
                    self._context.progress("text read on", number, count)
                exact_TV = rows.pop(FULL)
                for name, other_TV in rows.items():
                    kl = (exact_TV.exp() * (exact_TV - other_TV)).sum(-1).mean()
                    found.setdefault(name, []).append(float(kl))
        return found

    def asked(self, count: int) -> dict[str, list[tuple[bool, float]]]:
        """Return (right, loss per token of the answer) by variant, one for each question."""
        size = replace(contexts.size("needle", "long"), tokens=self._tokens)
        found: dict[str, list[tuple[bool, float]]] = {}
        for number in range(count):
            item = contexts.make("needle", self._lab.tokenizer, size, self._context.seed + number)
            with self._sessions(item.ids, item.longest()) as sessions:
                for name, session in sessions.items():
                    self._context.progress("needles", number, count)
                    session.append(item.ids[-1:])
                    for turn in item.turns:
                        fork = session.fork()
                        try:
                            fork.append(turn.question[:-1])
                            answered = _answered(fork, turn.question[-1], turn.candidates[0])
                        finally:
                            fork.release()
                        found.setdefault(name, []).append(answered)
        return found

    def times(self, rounds: int) -> dict[str, list[float]]:
        """Return the seconds of a decoded token by variant, one for each round."""
        text = texts.slices(texts.prose(), 1, self._tokens * CHARACTERS, "test")[0]
        ids = list(self._lab.tokenizer.encode(text)[: self._tokens])
        self._context.progress("times", 0, 1)
        with self._sessions(ids, DECODED) as sessions:
            for name, session in sessions.items():
                self.held[name] = sum(session.store.nbytes().values())
            timed = {name: decoded(session, ids[-1], DECODED) for name, session in sessions.items()}
            return {name: list(found) for name, found in alternate(timed, rounds).items()}

    @contextmanager
    def _sessions(self, ids: Sequence[int], more: int) -> Iterator[dict[str, Session]]:
        opened = Reading(self._lab, max_tokens=len(ids) + more, chunk=len(ids))
        try:
            with opened.sessions(ids, self._all) as found:
                for contender in found:
                    self.predicted[contender.name] = opened.predicted(contender)
                yield {contender.name: session for contender, session in found.items()}
        finally:
            opened.close()


def _product(named: Sequence[str]) -> Xkv:
    """Return the product that is rebuilt."""
    method = catalogue.find(named[0] if named else "xkv", "kv")
    if len(named) > 1 or not isinstance(method, Xkv) or method.chunks is not None:
        raise ParameterError(
            "this suite takes one product, and chunks as an option",
            value=", ".join(named),
            allowed="--method 'xkv(...)' without chunks",
            way_out="loci bench run rebuild --option chunks=16,64",
        )
    return method


def _one_by_one(session: Session, ids: Sequence[int]) -> Tensor:
    """Return log-probabilities [T, V] after each token, read one at a time."""
    return torch.stack([session.append([token]).clone() for token in ids])


def _answered(session: Session, last: int, answer: Sequence[int]) -> tuple[bool, float]:
    """Return whether each token of the answer is the likeliest, and its loss per token."""
    chances_TV = _one_by_one(session, [last, *answer[:-1]])
    wanted_T = torch.tensor(answer)
    loss = -chances_TV.gather(1, wanted_T[:, None]).mean()
    return bool((chances_TV.argmax(-1) == wanted_T).all()), float(loss)

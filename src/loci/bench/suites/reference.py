"""Loss: mean KL to the full model, in nats per token, on fixed text at fixed lengths.

Every piece of text is read up to a prompt; the method then does its work, and the rest is read
teacher-forced in short steps, so that each step sees what the method left of everything before.
KL(full || method) is averaged over the tokens of a piece, then over pieces, with a bootstrap
interval over pieces. Perplexities of the same tokens stand beside it.

Methods of the KV cache that need a long text to save anything are measured beside that with
`--option prompt=3840`: the prompt is then read in chunks of CHUNK tokens, and what is kept as it is
takes 16 bits, so that chunks and exact tails count little. Other lengths are other measurements.

`--option model=spot-multi` measures a small model with a key head for every query head, trained on
the spot; its prompts have 256 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # results hold whatever JSON can hold

import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.cards import EXACT, Row
from loci.bench.spot import MULTI, spot
from loci.bench.stats import mean
from loci.bench.suite import Context
from loci.core.method import Kind, Method
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.kv.base import Select
from loci.methods.quant.base import Quant
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.form import Form
from loci.run.lab import Lab
from loci.run.quantise import packed_linears
from loci.run.runner import ROUNDED_BITS

ABOUT = "loss of KV and quantisation methods: mean KL to the full model, nats per token"
KINDS = ("kv", "quant")
PROMPT, REST, STEP = 768, 256, 16
PIECES, QUICK_PIECES = 8, 1
CHARACTERS = 6000  # of one piece; more than PROMPT + REST tokens of English
CHUNK = 128  # tokens of a long prompt that are read at once
SPOT_PROMPT = 256
DEFAULT = (
    "kv_dtype=float16",
    "bfp(bits=8)",
    "bfp(bits=6)",
    "bfp(bits=5)",
    "bfp(bits=4)",
    "groupwise(bits=8)",
    "groupwise(bits=6)",
    "groupwise(bits=4,group=64)",
    "activations=8",
)
HALF, ROUNDED = "kv_dtype=float16", "activations=8"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One text as tokens, with the log-probabilities of the full model."""

    ids: tuple[int, ...]
    full_TV: Tensor


def pieces_of(lab: Lab, count: int, part: str, prompt: int | None = None) -> list[tuple[int, ...]]:
    """Return `count` pieces of prompt + REST tokens from one half of the text."""
    found, tokens = [], (prompt or PROMPT) + REST
    characters = CHARACTERS * tokens // (PROMPT + REST)
    for text in texts.slices(texts.prose(), count, characters, part):
        ids = lab.tokenizer.encode(text)[:tokens]
        if len(ids) < tokens:
            raise ParameterError("a piece of text is too short", value=len(ids))
        found.append(tuple(ids))
    return found


def log_probs(
    lab: Lab,
    ids: Sequence[int],
    chain: Sequence[Method] = (),
    *,
    dtype: torch.dtype = torch.float32,
    budget_bytes: int | None = None,
    seed: int = 0,
    prompt: int | None = None,
) -> tuple[Tensor, int]:
    """Return log-probabilities [REST, V] (float16 would lose the tail: float32) and bytes held."""
    rows, held = [], 0
    for logits, nbytes in lab.continuation(
        ids, prompt or PROMPT, chain, step=STEP, dtype=dtype, budget_bytes=budget_bytes, seed=seed
    ):
        rows.append(torch.log_softmax(logits, dim=-1))
        held = max(held, nbytes)
    return torch.cat(rows), held


def kl(full_TV: Tensor, other_TV: Tensor) -> float:
    """Return the mean over tokens of KL(full || other) in nats."""
    return float((full_TV.exp() * (full_TV - other_TV)).sum(-1).mean())


def loss_of(full_TV: Tensor, ids: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of the tokens after the prompt."""
    target_T1 = torch.tensor(ids[-REST:])[:, None]
    return float(-full_TV.gather(1, target_T1).mean())


def run(context: Context) -> dict[str, Any]:
    """Measure every method on the same pieces; return KL with intervals and bytes."""
    part = context.options.get("part", "test")
    count = QUICK_PIECES if context.quick else int(context.options.get("pieces", PIECES))
    seed = context.seed
    methods = context.methods or DEFAULT
    on_spot = context.options.get("model") == MULTI.name
    pack = (
        spot(context.folder, quick=context.quick, multi=True, progress=context.progress)
        if on_spot
        else resolve(context.model, context.folder)
    )
    results: dict[str, dict[str, Any]] = {}
    prompt = int(context.options.get("prompt", SPOT_PROMPT if on_spot else PROMPT))
    is_long = prompt != PROMPT
    chunk = CHUNK if is_long else 512
    lab = Lab(pack, context=prompt + REST, chunk=chunk)
    try:
        pieces = pieces_of(lab, count, part, prompt)
        if is_long and any(_is_quant(name) or name == ROUNDED for name in methods):
            raise ParameterError("weights are measured at one length", value=prompt)
        chains = [name for name in methods if not _is_quant(name) and name != ROUNDED]
        full_nll: list[float] = []
        rows: dict[str, list[tuple[float, float, int]]] = {name: [] for name in chains}
        done, total = 0, count * (len(chains) + 1) + count * 2 * (len(methods) - len(chains))
        for ids in pieces:
            full_TV, _ = log_probs(lab, ids, prompt=prompt)
            full_nll.append(loss_of(full_TV, ids))
            for name in chains:
                chain, dtype = chain_of(name)
                other_TV, held = log_probs(
                    lab,
                    ids,
                    chain,
                    dtype=torch.float16 if is_long else dtype,
                    budget_bytes=_budget(context) if _selects(chain) else None,
                    seed=seed,
                    prompt=prompt,
                )
                rows[name].append((kl(full_TV, other_TV), loss_of(other_TV, ids), held))
                done += 1
                context.progress(name, done, total)
        full = {
            "nll": mean(full_nll).to_json(),
            "kv_bytes": pack.spec.kv_bytes(prompt + REST),
            "weight_bytes": pack.spec.full_bytes(),
        }
        for name in methods:
            if name in rows:
                results[name] = _summary(rows[name], "kv_bytes")
            elif name == ROUNDED:
                results[name] = _rounded(context, lab, pieces)
                done += 2 * count
                context.progress(name, done, total)
            else:
                results[name] = _quantised(context, lab, name, pieces)
                done += 2 * count
                context.progress(name, done, total)
    finally:
        lab.close()
        pack.close()
    return {
        "model": MULTI.name if on_spot else context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "part": part,
        "prompt_tokens": prompt,
        "kv_budget_bytes": _budget(context),
        "scored_tokens": REST * count,
        "full": full,
        "methods": results,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the KL of every method, beside those of the others of its kind in the same run."""
    rows, methods = [], result["methods"]
    part = f"{result['prompt_tokens']} tokens" if result["prompt_tokens"] != PROMPT else ""
    budget = result.get("kv_budget_bytes")
    for name, found in methods.items():
        if "|" in name:  # a chain has no card; its KL is measured when it is planned
            continue
        what = "kv_bytes" if "kv_bytes" in found else "weight_bytes"
        others = {n: m["kl"]["value"] for n, m in methods.items() if n != name and what in m}
        rows.append(
            Row(
                method=f"{EXACT}={name.partition('=')[2]}" if name == HALF else name,
                kind="nn" if name == ROUNDED else "quant" if _is_quant(name) else "kv",
                metrics={
                    "kl": {"this": found["kl"]["value"], "rivals": others},
                    "nll": {
                        "full": result["full"]["nll"]["value"],
                        "this": found["nll"]["value"],
                    },
                },
                bytes={"full": result["full"][what], "measured": found[what]},
                interval={"kl": (found["kl"]["low"], found["kl"]["high"])},
                part=_part(part, name, budget, result["full"][what]),
            )
        )
    return rows


def _quantised(
    context: Context, full: Lab, name: str, pieces: Sequence[Sequence[int]]
) -> dict[str, Any]:
    pack = resolve(context.model, context.folder)
    forms = packed_by(pack, name, context.progress)
    lab = Lab(pack, context=PROMPT + REST, repack=lambda at, _: forms[at])
    return _of_weights(full, lab, pieces)


def _rounded(context: Context, full: Lab, pieces: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Measure activations rounded while few tokens are read at once: here, all but the prompt."""
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=PROMPT + REST, activation_bits=ROUNDED_BITS)
    return _of_weights(full, lab, pieces)


def _of_weights(full: Lab, lab: Lab, pieces: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return KL and bytes of another form of the model, which is closed."""
    rows = []
    try:
        nbytes = lab.ledger.by_kind("dram")["weights"]
        for ids in pieces:
            full_TV, _ = log_probs(full, ids)
            other_TV, _ = log_probs(lab, ids)
            rows.append((kl(full_TV, other_TV), loss_of(other_TV, ids), nbytes))
    finally:
        lab.close()
        lab.pack.close()
    return _summary(rows, "weight_bytes")


def packed_by(
    pack: Pack, name: str, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Form]:
    """Return a pack's linear layers packed by a method, shown whatever it needs to see."""
    method = catalogue.find(name, "quant")
    assert isinstance(method, Quant)
    return packed_linears(pack, method, folder=pack.folder, progress=progress)


def _summary(rows: Sequence[tuple[float, float, int]], what: str) -> dict[str, Any]:
    return {
        "kl": mean([row[0] for row in rows]).to_json(),
        "nll": mean([row[1] for row in rows]).to_json(),
        what: max(row[2] for row in rows),
    }


def _is_quant(name: str) -> bool:
    if name in (HALF, ROUNDED) or "|" in name:
        return False
    return catalogue.find(name).about.kind is Kind.QUANT


def chain_of(name: str) -> tuple[tuple[Method, ...], torch.dtype]:
    """Return the methods of a chain and the dtype of what it keeps as it is."""
    if name == HALF:
        return (), torch.float16
    return catalogue.parse_chain(name, "kv"), torch.float32


def _part(part: str, name: str, budget: int | None, full: int) -> str:
    """Return what a row is besides the suite: its length, and its share of the bytes."""
    if budget is None or not part or not _selects(chain_of(name)[0]):
        return part
    return f"{part}, {budget / full:.0%} of the bytes"


def _selects(chain: Sequence[Method]) -> bool:
    """Return whether a chain keeps what fits; the size of others is their own."""
    return any(isinstance(method, Select) for method in chain)


def _budget(context: Context) -> int | None:
    from loci.units import parse_bytes

    size = context.options.get("kv")
    return parse_bytes(size) if size else None

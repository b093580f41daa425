"""One budget after the other: what the planner makes of it, what that loses, and how fast it runs.

For each budget the model is planned and opened as `loci run` would, with nothing on disk. KL to the
full model is measured on held-out text through the very session that answers, read as a prompt and
then in short steps; so are tokens a second after a short prompt. The plan's own figures stand
beside. What does not fit is refused, and that is said.

Options: budgets=60MiB,100MiB, context=512, plot=FILE.svg.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.plotting import pyplot
from loci.bench.stats import mean
from loci.bench.suite import Context
from loci.errors import BudgetError, ParameterError
from loci.models.load import resolve
from loci.plan import plan
from loci.run.engine import Session
from loci.run.lab import Lab
from loci.run.prefill import Prefiller
from loci.units import format_bytes, parse_bytes, parse_tokens

ABOUT = "what the planner makes of one budget after the other: KL, tokens a second, bytes"
BUDGETS = (
    "45MiB",
    "50MiB",
    "60MiB",
    "70MiB",
    "80MiB",
    "90MiB",
    "100MiB",
    "115MiB",
    "130MiB",
    "160MiB",
    "256MiB",
    "538MiB",
)
CONTEXT, NEW, STEP, SCORED = "512", 32, 16, 128
PIECES, QUICK_PIECES, ROUNDS = 4, 1, 3
_OPTIONS = ("budgets", "context", "plot", "pieces")
_CHARACTERS = 8  # of English for a token, more than there are


def run(context: Context) -> dict[str, Any]:
    """Plan, open and measure at every budget."""
    options = context.options
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ParameterError("no such option", value=unknown, allowed=", ".join(_OPTIONS))
    budgets = tuple(options.get("budgets", ",".join(BUDGETS)).split(","))
    try:  # a mistake is told before the work
        sizes = [parse_bytes(text) for text in budgets]
        tokens = parse_tokens(options.get("context", CONTEXT))
    except ValueError as error:
        raise ParameterError(f"an option of the suite budgets: {error}") from None
    if options.get("plot"):
        pyplot()
    with resolve(context.model, context.folder) as pack:
        lab = Lab(pack, context=tokens)
        try:
            count = QUICK_PIECES if context.quick else int(options.get("pieces", PIECES))
            length = tokens - NEW
            ids = [
                lab.tokenizer.encode(text)[:length]
                for text in texts.slices(texts.prose(), count, _CHARACTERS * length, "test")
            ]
            full = [_full(lab, piece) for piece in ids]
        finally:
            lab.close()
        rows = []
        with tempfile.TemporaryDirectory() as fresh:
            for done, (text, nbytes) in enumerate(zip(budgets, sizes, strict=True)):
                context.progress(text, done, len(budgets))
                asked = {"budget": text, "budget_bytes": nbytes}
                rows.append(asked | _at(context, Path(fresh), nbytes, tokens, ids, full))
        found = {
            "model": context.model,
            "fingerprint": pack.spec.fingerprint,
            "context": tokens,
            "scored_tokens": SCORED * count,
            "budgets": rows,
        }
    if options.get("plot"):
        _plot(found, Path(options["plot"]))
        found["plot"] = options["plot"]
    return found


# -- private ----------------------------------------------------------------------------------


def _full(lab: Lab, ids: Sequence[int]) -> Tensor:
    """Return log-probabilities [SCORED, V] of the model as it is."""
    found = lab.continuation(ids, len(ids) - SCORED, step=STEP)
    return torch.cat([logits.log_softmax(-1) for logits, _ in found])


def _at(
    context: Context,
    cache: Path,
    budget: int,
    tokens: int,
    ids: Sequence[Sequence[int]],
    full: Sequence[Tensor],
) -> dict[str, Any]:
    try:
        made = plan(
            context.model,
            dram=budget,
            disk=0,
            context=tokens,
            new_tokens=NEW,
            folder=context.folder,
            cache=cache,
        )
    except BudgetError as error:
        return {"refused": str(error)}
    with Session(made, folder=context.folder) as session:
        losses = [_loss(session, piece, want) for piece, want in zip(ids, full, strict=True)]
        rates = [_tokens_per_s(session, ids[0]) for _ in range(1 if context.quick else ROUNDS)]
        held = session.ledger.used("dram")
    return {
        "weights": made.weights,
        "stack": made.stack,
        "kv": made.kv or made.kv_dtype,
        "kl": mean(losses).to_json(),
        "planned_kl": made.loss,
        "tokens_per_s": max(rates),
        "held_bytes": held,
        "weight_bytes": made.held("weights"),
    }


def _loss(session: Session, ids: Sequence[int], full_TV: Tensor) -> float:
    """Return the mean KL of what the session says, on the same tokens in the same steps."""
    store, runner = session.store, session.runner
    prefiller, start = Prefiller(runner, store), len(ids) - SCORED
    store.crop(0)
    rows = [prefiller.read(ids[:start]).clone()]
    store.finish_prompt(prefiller)
    step = min(STEP, session.plan.chunk)
    for at in range(start, len(ids) - 1, step):
        part = torch.tensor([list(ids[at : min(at + step, len(ids) - 1)])])
        logits = runner.forward(part, store, logits="all")
        assert logits is not None
        rows.append(logits[0])
    store.crop(0)
    other_TV = torch.cat(rows).log_softmax(-1)
    return float((full_TV.exp() * (full_TV - other_TV)).sum(-1).mean())


def _tokens_per_s(session: Session, ids: Sequence[int]) -> float:
    store, runner = session.store, session.runner
    store.crop(0)
    runner.forward(torch.tensor([list(ids[: min(64, session.plan.chunk)])]), store)
    token = torch.tensor([[int(ids[64])]])
    began = time.perf_counter()
    for _ in range(NEW):
        runner.forward(token, store)
    took = time.perf_counter() - began
    store.crop(0)
    return NEW / took


def _plot(result: dict[str, Any], path: Path) -> None:
    """Draw KL and tokens a second over the budget."""
    plot = pyplot()
    rows = [row for row in result["budgets"] if "kl" in row]
    sizes = [row["budget_bytes"] / 2**20 for row in rows]
    figure, left = plot.subplots(figsize=(8, 5))
    right = left.twinx()
    losses = [max(row["kl"]["value"], 1e-6) for row in rows]
    left.plot(sizes, losses, marker="o", color="tab:red")
    right.plot(sizes, [row["tokens_per_s"] for row in rows], marker="s", color="tab:blue")
    for size, loss, row in zip(sizes, losses, rows, strict=True):
        name = row["stack"].split("(")[0] or row["weights"]
        left.annotate(name, (size, loss), textcoords="offset points", xytext=(4, 5), fontsize=7)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xticks(sizes, [f"{size:.0f}" for size in sizes], rotation=60)
    left.minorticks_off()
    left.set_xlabel(f"budget in MiB, for a context of {result['context']} tokens")
    left.set_ylabel("KL to the full model, nats a token", color="tab:red")
    right.set_ylabel("tokens a second", color="tab:blue")
    right.set_ylim(bottom=0)
    full = format_bytes(max(row["weight_bytes"] for row in rows))
    left.set_title(f"{result['model']} ({full} as it comes): what a budget buys")
    left.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plot.close(figure)

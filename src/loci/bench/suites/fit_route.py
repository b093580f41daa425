"""The router of prompts fitted on instructions of our own: where the shipped one comes from.

Instructions that look something up, instructions that sum up, and mere text are told apart. Half of
the instructions are fitted on; prompts of the other half, around other text, are held out and show
what the fit is worth.

Options: held_out=200 (prompts), save=FILE (write the router).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench.embedding import embedder
from loci.bench.stats import mean
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.core.ports import Embedder
from loci.errors import ModelError
from loci.run.route import Router, fitted, shipped
from loci.testing.instructions import pieces, prompts

ABOUT = "whether a prompt looks up or sums up: a router fitted on instructions, judged on others"
HELD_OUT = 200


def run(context: Context) -> dict[str, Any]:
    """Fit a router and say how often it and the shipped one are right on what was held out."""
    options = context.options
    refuse_unknown(options, ("held_out", "save"))
    given = embedder(context.folder)
    if given is None:
        raise ModelError("a router needs an embedder", way_out="loci pull minilm")
    held = count_of(options, "held_out", 20 if context.quick else HELD_OUT)
    router, right = fit(given, held, context.seed)
    if "save" in options:
        Path(options["save"]).write_text(router.to_json(), encoding="utf-8")
    return {
        "model": "none",
        "fingerprint": router.embedder,
        "fitted_on": len(pieces("fit", context.seed)),
        "held_out": held,
        "right": mean(right).to_json(),
        "right_shipped": mean(judged(shipped(), given, held, context.seed)).to_json(),
    }


def fit(given: Embedder, held: int, seed: int = 0) -> tuple[Router, list[float]]:
    """Return a fitted router, and for each held-out prompt whether it was right."""
    texts, kinds = zip(*pieces("fit", seed), strict=True)
    router = fitted(texts, kinds, given)
    return router, judged(router, given, held, seed)


def judged(router: Router, given: Embedder, held: int, seed: int = 0) -> list[float]:
    """Return for each held-out prompt whether the router is right, 1 or 0."""
    return [
        float(router.task(text, given) == task) for text, task in prompts("held_out", held, seed)
    ]

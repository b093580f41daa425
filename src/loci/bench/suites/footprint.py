"""Whether a run keeps its budget: bytes predicted, bytes found by walking, and the peak.

Every case is a process of its own. The bytes of a run are found by walking it: unique storages of
tensors and mapped files, after every step of the prompt and after the answer, never the ledger. The
peak is the most resident memory the process ever had, less that of a process that imports the same,
loads the tokenizer and multiplies two matrices.

    whole      all weights in memory, a prompt that nearly fills the context
    streamed   less memory than the weights take; the same prompt, weights read from disk
    same       a question answered in both ways with the same KV form: the words must be the same
    packing    the first use of a model: its source is packed, and nothing else happens; less the
               peak of a process that only imports the same

`dram`, `small` and `context` are options.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench.suite import Context
from loci.errors import LociError, ParameterError
from loci.hw import probe
from loci.models.load import locate, resolve
from loci.run.runtime import runtime
from loci.units import parse_bytes, parse_tokens

ABOUT = "bytes predicted, bytes found by walking the process, and the peak, in fresh processes"

DRAM, SMALL, DISK, CONTEXT, PROMPT, NEW = "160MiB", "60MiB", "1GiB", "4096", 3900, 24
QUICK_CONTEXT, QUICK_PROMPT, QUICK_NEW = "1024", 600, 8
QUESTION = "What is the capital of France?"
ERROR, OVER, EXTRA_BYTES = 0.03, 1.10, 16 * 2**20  # of the prediction; the peak over the budget
_WAIT_S = 1800


def run(context: Context) -> dict[str, Any]:
    """Run every case in a process of its own."""
    options = context.options
    unknown = set(options) - {"dram", "small", "context"}
    if unknown:
        raise ParameterError(
            "the suite footprint has no such option",
            value=", ".join(sorted(unknown)),
            allowed="dram, small, context",
        )
    dram, small = options.get("dram", DRAM), options.get("small", SMALL)
    tokens = parse_tokens(options.get("context", QUICK_CONTEXT if context.quick else CONTEXT))
    new = QUICK_NEW if context.quick else NEW
    wanted = QUICK_PROMPT if context.quick else PROMPT
    prompt = min(wanted, tokens - new - 1)
    long = {"prompt": prompt, "new": new, "context": tokens}
    steps = ("imports", "bare", "whole", "streamed", "same", "packing")

    resolve(context.model, context.folder, progress=context.progress).close()  # packed, checked
    with tempfile.TemporaryDirectory() as fresh:
        # The machine is measured before: that takes memory of its own.
        runtime(Path(fresh), probe.probe(fresh), progress=context.progress)
        same = {"folder": str(context.folder), "model": context.model, "cache": fresh}

        def case(name: str, **asked: Any) -> dict[str, Any]:
            context.progress(name, steps.index(name.partition(" ")[0]), len(steps))
            return _process({**same, **asked})

        imports, bare = case("imports")["peak"], case("bare", tokenizer=True)["peak"]
        whole = case("whole", dram=dram, **long)
        streamed = case("streamed", dram=small, disk=DISK, **long)
        little = case("same", dram=small, disk=DISK, prompt=QUESTION, new=new)
        form = {"kv": little["kv"], "context": little["context"]}
        much = case("same again", dram=dram, prompt=QUESTION, new=new, **form)
        packing = case("packing", source=str(_source(context)), fresh=str(Path(fresh, "models")))
    context.progress("done", len(steps), len(steps))
    return {
        "model": context.model,
        "fingerprint": whole["fingerprint"],
        "prompt_tokens": prompt,
        "context": tokens,
        "imports_peak": imports,
        "bare_peak": bare,
        "whole": _judged(whole, bare, parse_bytes(dram)),
        "streamed": _judged(streamed, bare, parse_bytes(small)),
        "same": {
            "answers": [much["answer"], little["answer"]],
            "kv": [much["kv"] or "exact", little["kv"] or "exact"],
            "weights": [much["weights"], little["weights"]],
            "read_from_disk": little["read"],
            "is_same": much["answer"] == little["answer"],
        },
        "packing": _judged_packing(packing, imports, parse_bytes(dram)),
        "target": {
            "measured / predicted": f"within {ERROR:.0%}",
            "peak_over_bare": f"<= budget + 10 % + {EXTRA_BYTES:,} bytes",
            "same.is_same": "true",
            "packing.peak_over_imports": "<= budget + the largest tensor",
        },
    }


# -- what is judged ---------------------------------------------------------------------------


def _judged(found: Mapping[str, Any], bare: int, budget: int) -> dict[str, Any]:
    allowed = round(budget * OVER) + EXTRA_BYTES
    highest = max(found["walked"])
    over = found["peak"] - bare
    return {
        "budget": budget,
        "kv": found["kv"] or "exact",
        "weights": found["weights"],
        "chunk": found["chunk"],
        "predicted": found["predicted"],
        "measured": found["walked"][-1],
        "measured_highest": highest,
        "error": highest / found["predicted"] - 1,
        "peak_over_bare": over,
        "allowed_peak": allowed,
        "read_from_disk": found["read"],
        "first_token_s": found["first_token_s"],
        "tokens_per_s": found["tokens_per_s"],
        "predicted_first_token_s": found["predicted_first_token_s"],
        "predicted_tokens_per_s": found["predicted_tokens_per_s"],
        "is_met": abs(highest / found["predicted"] - 1) <= ERROR and over <= allowed,
    }


def _source(context: Context) -> Path:
    source = locate(context.model, context.folder).source
    if source is None:
        raise ParameterError(
            "only the pack of this model is here, so packing it cannot be measured",
            value=context.model,
            way_out=f"loci pull {context.model}",
        )
    return source


def _judged_packing(found: Mapping[str, Any], imports: int, budget: int) -> dict[str, Any]:
    over, allowed = found["peak"] - imports, budget + found["largest_tensor"]
    return {
        "peak_over_imports": over,
        "largest_tensor": found["largest_tensor"],
        "allowed_peak": allowed,
        "seconds": found["seconds"],
        "is_met": over <= allowed,
    }


# -- in a process of its own ------------------------------------------------------------------


def _process(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run `alone` in a fresh process and return what it printed."""
    code = "import sys; from loci.bench.suites import footprint; footprint.alone(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=_WAIT_S,
    )
    if done.returncode:
        raise LociError(
            "a measuring process failed", value=asked, way_out=done.stderr.strip()[-800:]
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def alone(text: str) -> None:
    """Carry out one case and print what was found, as JSON."""
    import torch

    from loci.models import pack as _  # noqa: F401  # what every case imports
    from loci.models.tokenizer import Tokenizer
    from loci.run import engine, measure  # noqa: F401

    asked: dict[str, Any] = json.loads(text)
    folder = Path(asked["folder"])
    found: dict[str, Any] = {}
    if "source" in asked:
        found = _pack_alone(Path(asked["source"]), Path(asked["fresh"]))
    elif "dram" in asked:
        found = _answer_alone(folder, asked)
    elif "tokenizer" in asked:
        Tokenizer(locate(asked["model"], folder).pack.parent).encode(QUESTION)
        square = torch.ones(512, 512)
        found = {"sum": float((square @ square).sum())}
    sys.stdout.write(json.dumps({**found, "peak": measure.peak_resident_bytes()}))


def _answer_alone(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    from loci.bench import texts
    from loci.plan import plan as make_plan
    from loci.run import engine, measure

    made = make_plan(
        asked["model"],
        dram=asked["dram"],
        disk=asked.get("disk"),
        context=asked.get("context"),
        new_tokens=asked["new"],
        prompt_tokens=asked["prompt"] if isinstance(asked["prompt"], int) else None,
        kv=asked.get("kv"),
        pace=runtime(Path(asked["cache"]), probe.probe(asked["cache"])).pace,
        folder=folder,
        cache=Path(asked["cache"]),
    )
    before = frozenset(measure.tensor_storages())
    walked: list[int] = []

    def walk(what: str = "", done: int = 0, total: int = 0) -> None:
        walked.append(measure.held_bytes(before) + made.spec.tokenizer_bytes)

    with engine.open(made, folder=folder, progress=walk) as session:
        walked.clear()
        prompt: Any = asked["prompt"]
        if isinstance(prompt, int):
            prompt = session.tokenizer.encode(texts.prose()[: 8 * prompt])[:prompt]
        is_raw = session.tokenizer.chat_template is None  # a base model goes on with the question
        answer = "".join(session.generate(prompt, max_tokens=asked["new"], raw=is_raw))
        walk()
        report = session.report()
    return {
        "fingerprint": made.spec.fingerprint,
        "answer": answer,
        "kv": made.kv or ("" if made.kv_dtype == "float32" else made.kv_dtype),
        "weights": made.weights,
        "chunk": made.chunk,
        "context": made.workload.context,
        "predicted": made.predicted["dram"],
        "walked": walked,
        "read": report["bytes"]["moved"].get("disk", {}).get("dram", 0),
        "first_token_s": report["first_token_s"],
        "tokens_per_s": report["tokens_per_s"],
        "predicted_first_token_s": made.first_token_s,
        "predicted_tokens_per_s": 1 / made.seconds_per_token,
    }


def _pack_alone(source: Path, fresh: Path) -> dict[str, Any]:
    import time

    from loci.models.pack import expected_tensors

    began = time.perf_counter()
    with resolve(str(source), fresh) as pack:
        seconds = time.perf_counter() - began
        spec = pack.spec
        shapes = expected_tensors(spec)
        sizes = {
            name: (spec.embed_bits if name in ("embed", "head") else spec.weight_bits) / 8
            for name in shapes
        }
        largest = max(
            shape[0] * (shape[1] if len(shape) > 1 else 1) * sizes[name]
            for name, shape in shapes.items()
        )
    return {"seconds": seconds, "largest_tensor": round(largest)}

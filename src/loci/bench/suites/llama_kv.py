"""llama.cpp's quantised KV caches, run by llama.cpp itself, beside the same types in our store.

llama.cpp comes as cyllama, a wheel that needs no compiler, in an environment of its own:

    python -m venv /tmp/llama
    /tmp/llama/bin/pip install cyllama numpy
    loci bench run llama_kv --option llama_python=/tmp/llama/bin/python

Both read the same tokens, a prompt and then short steps, with weights in float32. KL is taken to a
cache in half precision of the same side, in nats per token. What a cache loses shows in two ways:
llama.cpp reads the prompt through the cache it fills, and rounds queries to the cache's type; our
store lets a chunk attend to itself before it is coded, and keeps queries as they are.

Options: llama_python=PYTHON, gguf=FILE, pieces=2.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import torch

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.stats import mean
from loci.bench.suite import Context, count_of, python_of, refuse_unknown
from loci.bench.suites.reference import PROMPT, REST, STEP, kl, log_probs, pieces_of
from loci.errors import MissingExtraError, ParameterError
from loci.methods.kv.ggml_kv import BLOCK, TYPES, GgmlKV
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.run.lab import Lab

ABOUT = "llama.cpp's own KV cache types beside the same types in our store"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it needs another environment
PAIRS = (("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"))  # of keys and values
WORKER = Path(__file__).parents[1] / "llama_kv_worker.py"
_OPTIONS = ("llama_python", "gguf", "pieces")


def run(context: Context) -> dict[str, Any]:
    """Measure both sides on the same pieces."""
    refuse_unknown(context.options, _OPTIONS)
    python = python_of(context.options, "llama_python", "cyllama numpy")
    count = 1 if context.quick else count_of(context.options, "pieces", 2)
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=PROMPT + REST)
    try:
        gguf = _gguf(context, pack)
        pieces = pieces_of(lab, count, "test")
        context.progress("llama.cpp reads", 0, 1)
        theirs = _theirs(python, gguf, pack.spec.vocab, pieces)
        losses: dict[str, list[float]] = {}
        held: dict[str, int] = {}
        for number, ids in enumerate(pieces):
            context.progress("our store reads", number, count)
            whole_TV, full = log_probs(lab, ids, dtype=torch.float16)
            for keys, values in PAIRS:
                method = GgmlKV(keys=keys, values=values)
                other_TV, held[str(method)] = log_probs(lab, ids, (method,), dtype=torch.float16)
                losses.setdefault(str(method), []).append(kl(whole_TV, other_TV))
    finally:
        lab.close()
        pack.close()
    elements = pack.spec.kv_elements_per_token() * (PROMPT + REST)
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "prompt_tokens": PROMPT,
        "scored_tokens": REST * count,
        "full_bytes": full,
        "rows": [
            {
                "types": f"{keys}/{values}",
                "method": str(GgmlKV(keys=keys, values=values)),
                "ours": mean(losses[str(GgmlKV(keys=keys, values=values))]).to_json(),
                "theirs": mean(theirs[f"{keys}/{values}"]).to_json(),
                "our_bytes": held[str(GgmlKV(keys=keys, values=values))],
                "their_bytes": elements // 2 * (TYPES[keys] + TYPES[values]) // BLOCK,
            }
            for keys, values in PAIRS
        ],
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the table to print."""
    head = ["keys/values", "ours", "95 %", "llama.cpp", "95 %", "our bytes", "its bytes"]
    lines = [
        [
            row["types"],
            *(
                text
                for side in ("ours", "theirs")
                for text in (
                    f"{row[side]['value']:.5f}",
                    f"{row[side]['low']:.5f} to {row[side]['high']:.5f}",
                )
            ),
            *(f"{row[side] / 2**20:.2f} MiB" for side in ("our_bytes", "their_bytes")),
        ]
        for row in result["rows"]
    ]
    return [(f"KL to half precision, {result['prompt_tokens']} tokens of prompt", head, lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return our KL of each pair of types, with llama.cpp's as a rival."""
    return [
        Row(
            method=row["method"],
            kind="kv",
            metrics={
                "kl": {
                    "this": row["ours"]["value"],
                    "rivals": {"llama.cpp": row["theirs"]["value"]},
                }
            },
            interval={"kl": (row["ours"]["low"], row["ours"]["high"])},
            bytes={"full": result["full_bytes"], "measured": row["our_bytes"]},
        )
        for row in result["rows"]
    ]


# -- private ----------------------------------------------------------------------------------


def _theirs(
    python: str, gguf: Path, vocab: int, pieces: Sequence[Sequence[int]]
) -> dict[str, list[float]]:
    """Return llama.cpp's KL by pair of types, a number for each piece."""
    with tempfile.TemporaryDirectory(prefix="loci-llama-") as folder:
        asked = {
            "gguf": str(gguf),
            "folder": folder,
            "threads": torch.get_num_threads(),
            "prompt": PROMPT,
            "step": STEP,
            "vocab": vocab,
            "pieces": [list(ids) for ids in pieces],
            "types": PAIRS,
        }
        done = subprocess.run(
            [python, str(WORKER)], input=json.dumps(asked).encode(), capture_output=True
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise MissingExtraError(
            f"llama.cpp does not run there: {said}",
            way_out="pip install cyllama numpy, into an environment of its own",
        )
    # Before the answer llama.cpp may have said something of its own.
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])["kl"]
    return found


def _gguf(context: Context, pack: Pack) -> Path:
    named = context.options.get("gguf")
    found = Path(named) if named else next(iter(sorted(pack.folder.glob("*.gguf"))), None)
    if found is None or not found.is_file():
        raise ParameterError(
            "llama.cpp reads a GGUF file of the same model",
            value=named,
            allowed="--option gguf=FILE, where the model's folder has none",
        )
    return found

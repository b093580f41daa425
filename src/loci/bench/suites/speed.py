"""Speed beside rivals on the same weights, taking turns in one run.

Decode is seconds per token after a prompt, prefill seconds for the prompt, start the time from
process start to the first token. Every ratio is the rival's seconds over ours: above 1, Loci is
faster. `of_limit.decode` is the time of reading the packed bytes once, with as many threads, over
our time per token: 1 would mean that nothing but memory bandwidth is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import numpy as np
import torch

from loci.bench import texts
from loci.bench.stats import alternate, ratio
from loci.bench.suite import Context
from loci.errors import ParameterError
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.run.lab import Lab

ABOUT = "decode, prefill and start, beside transformers and llama.cpp on the same weights"
PROMPT, NEW, ROUNDS = 512, 24, 7
QUICK_PROMPT, QUICK_NEW, QUICK_ROUNDS = 64, 6, 2
START_ROUNDS = 5
IMPORTS = "import torch, tokenizers"
START_FACTOR, START_EXTRA_S = 1.3, 0.7  # what a warm start may take over the bare imports

Timed = tuple[float, float]  # seconds of the prompt, seconds per later token


def run(context: Context) -> dict[str, Any]:
    """Measure ours, every rival that is installed, and the limit."""
    prompt, new, rounds = (
        (QUICK_PROMPT, QUICK_NEW, QUICK_ROUNDS) if context.quick else (PROMPT, NEW, ROUNDS)
    )
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=prompt + new)
    try:
        ids = lab.tokenizer.encode(texts.prose()[:8000])[:prompt]
        if len(ids) < prompt:
            raise ParameterError("the text is too short", value=len(ids), allowed=f">= {prompt}")
        runs: dict[str, Callable[[], Timed]] = {"loci": _ours(lab, ids, new)}
        absent: dict[str, str] = {}
        if find_spec("transformers"):
            runs["transformers"] = _transformers(pack, ids, new)
        else:
            absent["transformers"] = "pip install 'loci[hf]'"
        gguf = _gguf(context, pack)
        if not find_spec("llama_cpp"):
            absent["llama.cpp"] = "pip install llama-cpp-python"
        elif gguf is None:
            absent["llama.cpp"] = "no GGUF of this model is at hand; give --set gguf=FILE"
        else:
            runs["llama.cpp"] = _llama_cpp(gguf, ids, new)
        prefill: dict[str, list[float]] = {name: [] for name in runs}
        decode: dict[str, list[float]] = {name: [] for name in runs}

        def timed(name: str) -> Callable[[], float]:
            def once() -> float:
                first_s, token_s = runs[name]()
                prefill[name].append(first_s)
                decode[name].append(token_s)
                return first_s

            return once

        reading: list[float] = []

        def read() -> float:
            reading.append(_read_once(pack))
            return reading[-1]

        turns: dict[str, Callable[[], float | None]] = {name: timed(name) for name in runs}
        turns["limit"] = read
        alternate(turns, rounds, context.progress)
        for values in (*prefill.values(), *decode.values(), reading):
            del values[0]  # the round that warmed up
        rivals = [name for name in runs if name != "loci"]
        found: dict[str, Any] = {
            "decode": {r: ratio(decode[r], decode["loci"]).to_json() for r in rivals},
            "prefill": {r: ratio(prefill[r], prefill["loci"]).to_json() for r in rivals},
        }
        limit = ratio(reading, decode["loci"])
    finally:
        lab.close()
        pack.close()
    start = _start(context, QUICK_ROUNDS if context.quick else START_ROUNDS)
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "threads": torch.get_num_threads(),
        "prompt_tokens": prompt,
        "new_tokens": new,
        "rounds": rounds,
        "ratio": {
            "decode": {k: v["value"] for k, v in found["decode"].items()},
            "prefill": {k: v["value"] for k, v in found["prefill"].items()},
            "start": start["ratio"],
        },
        "interval": {
            what: {k: [v["low"], v["high"]] for k, v in rows.items()}
            for what, rows in found.items()
        },
        "of_limit": {"decode": limit.value},
        "start": start["detail"],
        "seconds": {
            "decode": {k: _median(v) for k, v in decode.items()},
            "prefill": {k: _median(v) for k, v in prefill.items()},
            "read_all_bytes": _median(reading),
        },
        "absent": absent,
    }


def _ours(lab: Lab, ids: list[int], new: int) -> Callable[[], Timed]:
    def once() -> Timed:
        store = lab.store(max_tokens=len(ids) + new)
        try:
            with lab.reading(store) as prefiller:
                began = time.perf_counter()
                logits = prefiller.read(ids)
                token = logits.argmax(-1)
                middle = time.perf_counter()
                step = torch.empty(1, 1, dtype=torch.long)
                for _ in range(new):
                    step[0, 0] = token[0]
                    out = prefiller.runner.forward(step, store)
                    assert out is not None
                    token = out.argmax(-1)
                return middle - began, (time.perf_counter() - middle) / new
        finally:
            store.release()

    return once


def _transformers(pack: Pack, ids: list[int], new: int) -> Callable[[], Timed]:
    from transformers import DynamicCache

    from loci.run.hf import forward_with, model_of

    model = model_of(pack)

    def once() -> Timed:
        held = DynamicCache()
        with torch.inference_mode():
            began = time.perf_counter()
            out = forward_with(model, torch.tensor([ids]), held, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            middle = time.perf_counter()
            for _ in range(new):
                out = forward_with(model, token, held)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
            return middle - began, (time.perf_counter() - middle) / new

    return once


def _llama_cpp(gguf: Path, ids: list[int], new: int) -> Callable[[], Timed]:
    from llama_cpp import Llama

    threads = torch.get_num_threads()
    model = Llama(
        str(gguf), n_ctx=len(ids) + new + 8, n_threads=threads, n_threads_batch=threads,
        n_batch=512, verbose=False, logits_all=False,
    )  # fmt: skip

    def once() -> Timed:
        model.reset()
        began = time.perf_counter()
        model.eval(ids)
        token = model.sample(temp=0.0)
        middle = time.perf_counter()
        for _ in range(new):
            model.eval([token])
            token = model.sample(temp=0.0)
        return middle - began, (time.perf_counter() - middle) / new

    return once


def _gguf(context: Context, pack: Pack) -> Path | None:
    named = context.options.get("gguf")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ParameterError("there is no such GGUF file", value=named)
        return path
    return next(iter(sorted(pack.folder.glob("*.gguf"))), None)


def _read_once(pack: Pack) -> float:
    """Return the seconds that as many threads need to read every packed byte once."""
    parts = []
    for name in pack.names():
        for tensor in pack.block(name).values():
            pieces = tensor.tensors().values() if hasattr(tensor, "tensors") else [tensor]
            for piece in pieces:
                flat = piece.reshape(-1).view(torch.uint8).numpy()
                parts.append(flat[: len(flat) // 8 * 8].view(np.uint64))
    threads = torch.get_num_threads()
    shares = [parts[i::threads] for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_sum, shares))  # page everything in
        began = time.perf_counter()
        list(pool.map(_sum, shares))
        return time.perf_counter() - began


def _sum(arrays: list[np.ndarray]) -> int:
    total = 0
    for array in arrays:
        total ^= int(np.add.reduce(array))
    return total


def _start(context: Context, rounds: int) -> dict[str, Any]:
    """Time whole processes: ours up to its first token, against the bare imports."""
    environment = {**os.environ, "LOCI_MODELS": str(context.folder)}
    ours = [sys.executable, "-m", "loci", "run", context.model, "Hello", "--max-tokens", "1"]
    bare = [sys.executable, "-c", IMPORTS]

    def process(command: list[str]) -> Callable[[], None]:
        def once() -> None:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise ParameterError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")

        return once

    times = alternate({"loci": process(ours), "imports": process(bare)}, rounds, context.progress)
    allowed = [START_FACTOR * t + START_EXTRA_S for t in times["imports"]]
    return {
        "ratio": {"imports": ratio(times["imports"], times["loci"]).value},
        "detail": {
            "loci_s": _median(times["loci"]),
            "imports_s": _median(times["imports"]),
            "allowed_s": _median(allowed),
            "of_allowed": ratio(times["loci"], allowed).value,
        },
    }


def _median(values: list[float]) -> float:
    return float(np.median(values))

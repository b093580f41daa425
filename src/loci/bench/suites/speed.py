"""Speed beside rivals on the same weights, taking turns in one run.

Decode is seconds per token after a prompt, prefill seconds for the prompt, start the time from
process start to the first token. Every ratio is the rival's seconds over ours: above 1, Loci is
faster. What it is measured against:

    ratio.decode, ratio.prefill    after and for a prompt of 512 tokens
    ratio.long                     for a prompt of 2,048 tokens; `gemm` is the bare float32 matrix
                                   products of its linear layers by torch, and nothing else
    ratio.together                 tokens a second of four requests that advance together, over one
    of_limit.decode                the time in which as many threads read the packed bytes once,
                                   over our time per token: 1 would mean that nothing but memory
                                   bandwidth is left. The KV cache is read on top; see `bytes`

llama.cpp runs in a process of its own, under this Python or the one of `--option llama_python=`.
`--option activations=8` rounds what weights are multiplied with while tokens are decoded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import numpy as np
import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.stats import alternate, ratio
from loci.bench.suite import Context
from loci.errors import ParameterError
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn import native
from loci.nn.form import Form
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.run.runner import FLOAT_BITS, Runner

ABOUT = "decode, prefill and start, beside transformers and llama.cpp on the same weights"
PROMPT, LONG, NEW, ROUNDS, LONG_ROUNDS = 512, 2048, 24, 7, 3
QUICK_PROMPT, QUICK_LONG, QUICK_NEW, QUICK_ROUNDS = 64, 96, 6, 2
TOGETHER = 4  # requests that advance together
START_ROUNDS = 5
IMPORTS = "import torch, tokenizers"
START_FACTOR, START_EXTRA_S = 1.3, 0.7  # what a warm start may take over the bare imports
WORKER = Path(__file__).parents[1] / "llama_worker.py"
DTYPES = {"float32": torch.float32, "float16": torch.float16}

Timed = tuple[float, float]  # seconds of the prompt, seconds per later token
Run = Callable[[Sequence[int], int], Timed]  # (prompt, new tokens)


def run(context: Context) -> dict[str, Any]:
    """Measure ours, every rival that is installed, and the limits."""
    prompt, long, new, rounds, long_rounds = PROMPT, LONG, NEW, ROUNDS, LONG_ROUNDS
    if context.quick:
        prompt, long, new, rounds = QUICK_PROMPT, QUICK_LONG, QUICK_NEW, QUICK_ROUNDS
        long_rounds = 1
    kv = context.options.get("kv", "float32")
    if kv not in DTYPES:
        raise ParameterError("unknown dtype of the KV cache", value=kv, allowed=", ".join(DTYPES))
    threads = torch.get_num_threads()
    if native.available():
        native.set_threads(threads)
    pack = resolve(context.model, context.folder)
    bits = int(context.options.get("activations", FLOAT_BITS))
    lab = Lab(pack, context=long + new, activation_bits=bits)
    try:
        ids = lab.tokenizer.encode(texts.prose()[: 12 * long])[:long]
        if len(ids) < long:
            raise ParameterError("the text is too short", value=len(ids), allowed=f">= {long}")
        with _rivals(context, pack, threads, long + new) as (rivals, absent):
            runs: dict[str, Run] = {"loci": _ours(lab, DTYPES[kv]), **rivals}
            short = _timed(runs, ids[:prompt], new, rounds, context, _limits(pack))
            far = _timed(runs, ids, 0, long_rounds, context, {"gemm": _bare_products(pack, long)})
        together = _together(lab, ids[:prompt], new, rounds, context)
    finally:
        lab.close()
        pack.close()
    start = _start(context, pack, ids[:16], QUICK_ROUNDS if context.quick else START_ROUNDS)
    found = {
        "decode": _ratios(short["token_s"]),
        "prefill": _ratios(short["prompt_s"]),
        "long": _ratios(far["prompt_s"]),
        "together": {str(TOGETHER): ratio(together["one"], together["all"]).to_json()},
    }
    limit = ratio(short["prompt_s"]["read"], short["token_s"]["loci"])
    spec = pack.spec
    return {
        "model": context.model,
        "fingerprint": spec.fingerprint,
        "threads": threads,
        "kernels": native.simd() if native.available() else None,
        "kv_dtype": kv,
        "activation_bits": bits,
        "prompt_tokens": prompt,
        "long_tokens": long,
        "new_tokens": new,
        "rounds": rounds,
        "ratio": {
            **{what: {k: v["value"] for k, v in rows.items()} for what, rows in found.items()},
            "start": start["ratio"],
        },
        "interval": {
            what: {k: [v["low"], v["high"]] for k, v in rows.items()}
            for what, rows in found.items()
        },
        "of_limit": {"decode": limit.value},
        "bytes": {
            "weights": pack.total_bytes,
            "kv_of_last_token": spec.kv_bytes(prompt + new, DTYPES[kv].itemsize),
        },
        "start": start["detail"],
        "seconds": {
            "decode": {k: _median(v) for k, v in short["token_s"].items()},
            "prefill": {k: _median(v) for k, v in short["prompt_s"].items() if k != "read"},
            "long": {k: _median(v) for k, v in far["prompt_s"].items()},
            "read_all_bytes": _median(short["prompt_s"]["read"]),
        },
        "absent": absent,
    }


# -- who runs ---------------------------------------------------------------------------------


def _ours(lab: Lab, dtype: torch.dtype) -> Run:
    def once(ids: Sequence[int], new: int) -> Timed:
        store = lab.store(max_tokens=len(ids) + new, dtype=dtype)
        try:
            with lab.reading(store) as prefiller:
                began = time.perf_counter()
                logits = prefiller.read(ids)
                token = _best(logits)
                middle = time.perf_counter()
                step = torch.empty(1, 1, dtype=torch.long)
                for _ in range(new):
                    step[0, 0] = token
                    out = prefiller.runner.forward(step, store)
                    assert out is not None
                    token = _best(out)
                return middle - began, (time.perf_counter() - middle) / max(1, new)
        finally:
            store.release()

    return once


def _best(logits_1V: Tensor) -> int:
    return native.argmax(logits_1V) if native.available() else int(logits_1V.argmax(-1)[0])


@contextmanager
def _rivals(
    context: Context, pack: Pack, threads: int, tokens: int
) -> Iterator[tuple[dict[str, Run], dict[str, str]]]:
    """Lend the rivals that are here, and say what is missing for the others."""
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    if find_spec("transformers"):
        runs["transformers"] = _transformers(pack)
    else:
        absent["transformers"] = "pip install 'loci[hf]'"
    python, gguf = _llama_python(context), _gguf(context, pack)
    if python is None:
        absent["llama.cpp"] = "pip install llama-cpp-python, or --option llama_python=PYTHON"
    elif gguf is None:
        absent["llama.cpp"] = "no GGUF of this model is at hand; give --option gguf=FILE"
    if python is None or gguf is None:
        yield runs, absent
        return
    command = [python, str(WORKER), str(gguf), str(threads), str(tokens + 8), "[]"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            _answer(worker)  # it says when it is ready
            runs["llama.cpp"] = _llama_cpp(worker)
            yield runs, absent
        finally:
            worker.kill()


def _transformers(pack: Pack) -> Run:
    from transformers import DynamicCache

    from loci.run.hf import forward_with, model_of

    model = model_of(pack)

    def once(ids: Sequence[int], new: int) -> Timed:
        held = DynamicCache()
        with torch.inference_mode():
            began = time.perf_counter()
            out = forward_with(model, torch.tensor([list(ids)]), held, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            middle = time.perf_counter()
            for _ in range(new):
                out = forward_with(model, token, held)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
            return middle - began, (time.perf_counter() - middle) / max(1, new)

    return once


def _llama_cpp(worker: subprocess.Popen[str]) -> Run:
    def once(ids: Sequence[int], new: int) -> Timed:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps({"ids": list(ids), "new": new}) + "\n")
        worker.stdin.flush()
        found = _answer(worker)
        return found["prompt_s"], found["token_s"]

    return once


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None and worker.stderr is not None
    line = worker.stdout.readline()
    if not line:
        raise ParameterError(f"llama.cpp ended: {worker.stderr.read().strip()[-500:]}")
    found: dict[str, Any] = json.loads(line)
    return found


def _llama_python(context: Context) -> str | None:
    named = context.options.get("llama_python")
    if named is None:
        return sys.executable if find_spec("llama_cpp") else None
    if not Path(named).is_file():
        raise ParameterError("there is no such Python", value=named)
    return named


def _gguf(context: Context, pack: Pack) -> Path | None:
    named = context.options.get("gguf")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ParameterError("there is no such GGUF file", value=named)
        return path
    return next(iter(sorted(pack.folder.glob("*.gguf"))), None)


# -- turns ------------------------------------------------------------------------------------


def _timed(
    runs: Mapping[str, Run],
    ids: Sequence[int],
    new: int,
    rounds: int,
    context: Context,
    others: Mapping[str, Callable[[], float]],
) -> dict[str, dict[str, list[float]]]:
    """Return {"prompt_s" and "token_s": {name: [seconds]}}; the others give one number a turn."""
    found: dict[str, dict[str, list[float]]] = {
        "prompt_s": {name: [] for name in (*runs, *others)},
        "token_s": {name: [] for name in runs},
    }

    def turn(name: str) -> Callable[[], float]:
        def once() -> float:
            prompt_s, token_s = runs[name](ids, new)
            found["prompt_s"][name].append(prompt_s)
            found["token_s"][name].append(token_s)
            return prompt_s

        return once

    def other(name: str) -> Callable[[], float]:
        def once() -> float:
            seconds = others[name]()
            found["prompt_s"][name].append(seconds)
            return seconds

        return once

    turns: dict[str, Callable[[], float | None]] = {name: turn(name) for name in runs}
    turns |= {name: other(name) for name in others}
    alternate(turns, rounds, context.progress)
    for rows in found.values():
        for values in rows.values():
            del values[0]  # the round that warmed up
    return found


def _ratios(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: ratio(values, seconds["loci"]).to_json()
        for name, values in seconds.items()
        if name not in ("loci", "read")
    }


def _together(
    lab: Lab, ids: Sequence[int], new: int, rounds: int, context: Context
) -> dict[str, list[float]]:
    """Return seconds a token of one request alone, and of several, divided by their number."""
    cases = {"one": 1, "all": TOGETHER}
    held: dict[str, Callable[[], float | None]] = {}
    closers = []
    for name, rows in cases.items():
        store = KVStore(
            lab.spec, max_tokens=len(ids) + new, batch=rows, chunk=lab.chunk, ledger=lab.ledger
        )
        runner = Runner(
            lab.spec,
            lab.weights_source,
            lab.ledger,
            chunk=lab.chunk,
            batch=rows,
            activation_bits=lab.activation_bits,
        )
        for start in range(0, len(ids), lab.chunk):
            part = torch.tensor([list(ids[start : start + lab.chunk])]).expand(rows, -1)
            runner.forward(part, store, logits=None)
        closers += [runner.release, store.release]
        step = torch.full((rows, 1), ids[-1])

        def once(
            store: Any = store, runner: Runner = runner, step: Tensor = step, rows: int = rows
        ) -> float:
            store.crop(len(ids))
            began = time.perf_counter()
            for _ in range(new):
                runner.forward(step, store)
            return (time.perf_counter() - began) / new / rows

        held[name] = once
    try:
        return alternate(held, rounds, context.progress)
    finally:
        for close in closers:
            close()


# -- limits -----------------------------------------------------------------------------------


def _limits(pack: Pack) -> dict[str, Callable[[], float]]:
    tensors = []
    for name in pack.names():
        for weight in pack.block(name).values():
            tensors += list(weight.tensors().values()) if isinstance(weight, Form) else [weight]

    def read() -> float:
        best = float("inf")
        for _ in range(5):  # the limit is what the machine can do, not what it did once
            began = time.perf_counter()
            if native.available():
                native.read_all(tensors)
            else:
                sum(int(t.reshape(-1).view(torch.uint8).sum()) for t in tensors)
            best = min(best, time.perf_counter() - began)
        return best

    return {"read": read}


def _bare_products(pack: Pack, tokens: int, chunk: int = 512) -> Callable[[], float]:
    """Return how long torch takes for the matrix products of a prompt's linear layers."""
    spec = pack.spec
    shapes = list(spec.layer_linears().values())
    weights = [torch.randn(out, inner) for out, inner in shapes]
    inputs = {inner: torch.randn(chunk, inner) for _, inner in shapes}
    outs = {out: torch.empty(chunk, out) for out, _ in shapes}

    def once() -> float:
        began = time.perf_counter()
        for start in range(0, tokens, chunk):
            rows = min(chunk, tokens - start)
            for _ in range(spec.layers):
                for weight in weights:
                    out, inner = weight.shape
                    torch.mm(inputs[inner][:rows], weight.t(), out=outs[out][:rows])
        return time.perf_counter() - began

    return once


# -- start ------------------------------------------------------------------------------------


def _start(context: Context, pack: Pack, ids: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time whole processes up to their first token, and the bare imports."""
    environment = {**os.environ, "LOCI_MODELS": str(context.folder)}
    commands = {
        "loci": [sys.executable, "-m", "loci", "run", context.model, "Hello", "--max-tokens", "1"],
        "imports": [sys.executable, "-c", IMPORTS],
    }
    python, gguf = _llama_python(context), _gguf(context, pack)
    if python is not None and gguf is not None:
        threads = str(torch.get_num_threads())
        asked = json.dumps(list(ids))
        commands["llama.cpp"] = [python, str(WORKER), str(gguf), threads, "2048", asked]

    def process(command: list[str]) -> Callable[[], None]:
        def once() -> None:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise ParameterError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")

        return once

    runs = {name: process(command) for name, command in commands.items()}
    times = alternate(runs, rounds, context.progress)
    allowed = [START_FACTOR * t + START_EXTRA_S for t in times["imports"]]
    rivals = [name for name in times if name != "loci"]
    return {
        "ratio": {name: ratio(times[name], times["loci"]).value for name in rivals},
        "detail": {
            **{f"{name}_s": _median(values) for name, values in times.items()},
            "allowed_s": _median(allowed),
            "of_allowed": ratio(times["loci"], allowed).value,
        },
    }


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))

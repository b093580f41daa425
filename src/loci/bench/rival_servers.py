"""Rivals that serve many at once, lent for one run: how to ask each, and what it took.

    transformers   its continuous batching, in this process
    loci serve     our own server in a process of its own, over HTTP, to stand beside the next one
    llama.cpp      its own server (xllamacpp), a slot for each stream, in a process of its own, over
                   HTTP; where the Python has only llama-cpp-python[server], that one, which answers
                   one request at a time

Each way yields a function that sends a request and yields how many tokens came, and one that tells
what else is known at the end.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any  # what a rival hands out has no types

from loci.bench.traffic import Answer, Call
from loci.errors import EndpointError
from loci.models.load import resolve
from loci.models.tokenizer import Tokenizer
from loci.run import measure

READY_S, ANSWER_S = 120.0, 600.0
Lent = tuple[Answer, Callable[[], dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a rival is to serve.

    Attributes:
        context: tokens of prompt and answer together.
        python: a Python that has xllamacpp, or llama-cpp-python[server]. gguf: the model it opens.
    """

    model: str
    folder: Path
    streams: int
    context: int
    python: str | None = None
    gguf: Path | None = None


class Absent(Exception):
    """A rival is not here; the message says what to do."""


@contextmanager
def _transformers(asked: Asked) -> Iterator[Lent]:
    if find_spec("transformers") is None:
        raise Absent("pip install 'loci[hf]'")
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from loci.run.hf import model_of

    before = measure.resident_bytes()
    model: Any = model_of(resolve(asked.model, asked.folder))
    blocks = -(-asked.streams * (asked.context) // 256) + asked.streams
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=blocks, max_batch_tokens=512, use_cuda_graph=False
        ),
    )
    manager.start()
    queues: dict[str, queue.Queue[Any]] = {}

    def hand_out() -> None:
        for output in manager:
            queues[output.request_id].put(output)

    threading.Thread(target=hand_out, daemon=True).start()

    def answer(call: Call) -> Iterator[int]:
        id, had = f"r{call.number}", 0
        queues[id] = queue.Queue()
        manager.add_request(list(call.ids), request_id=id, max_new_tokens=call.new, streaming=True)
        while True:
            output = queues[id].get(timeout=ANSWER_S)
            if output.error:
                raise EndpointError(f"transformers failed: {output.error}")
            more = len(output.generated_tokens) - had
            had += more
            if more > 0:
                yield more
            if output.is_finished():
                return

    try:
        yield answer, lambda: {"peak_bytes": measure.resident_bytes() - before}
    finally:
        manager.stop(block=True)


@contextmanager
def _served(asked: Asked) -> Iterator[Lent]:
    port = _free_port()
    command = [
        sys.executable, "-m", "loci", "serve", asked.model, "--port", str(port), "--dram", "6GiB",
        "--context", str(asked.context), "--rows", str(asked.streams),
    ]  # fmt: skip
    env = {**os.environ, "LOCI_MODELS": str(asked.folder)}
    own = {"model": Path(asked.model).name, "stream_options": {"include_usage": True}}
    with (
        _server(command, port, "/health", env) as url,
        _over_http(url, asked, own, as_ids=True) as lent,
    ):
        yield lent


@contextmanager
def _llama(asked: Asked) -> Iterator[Lent]:
    python = asked.python
    if python is None:
        raise Absent("--option llama_python=PYTHON, which has xllamacpp")
    has_own = _imports(python, "xllamacpp") is None
    if not has_own and (why_not := _imports(python, "llama_cpp.server.app")) is not None:
        raise Absent(why_not)
    pack = resolve(asked.model, asked.folder)
    gguf = asked.gguf or next(iter(sorted(pack.folder.glob("*.gguf"))), None)
    if gguf is None:
        raise Absent("no GGUF of this model is at hand; give --option gguf=FILE")
    port, threads, context = _free_port(), str(os.cpu_count() or 1), str(asked.context + 8)
    own: dict[str, Any] = {}
    if has_own:
        worker = Path(__file__).with_name("llama_server.py")
        command = [
            python, str(worker), str(gguf), str(port), str(asked.streams), context, threads,
        ]  # fmt: skip
        own = {"stream_options": {"include_usage": True}}
    else:
        command = [
            python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port),
            "--n_ctx", context, "--n_threads", threads,
            "--n_threads_batch", threads, "--verbose", "false", "--interrupt_requests", "false",
        ]  # fmt: skip
    with (
        _server(command, port, "/v1/models", dict(os.environ)) as url,
        _over_http(url, asked, own, as_ids=has_own) as lent,
    ):
        yield lent


def _imports(python: str, module: str) -> str | None:
    """Return why another Python cannot import a module; None where it can."""
    checked = subprocess.run(
        [python, "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    return checked.stderr.strip().splitlines()[-1] if checked.returncode else None


@contextmanager
def _server(command: list[str], port: int, ready: str, env: dict[str, str]) -> Iterator[str]:
    import httpx

    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            deadline = time.monotonic() + READY_S
            while True:
                try:
                    if httpx.get(url + ready, timeout=5).status_code == httpx.codes.OK:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    assert process.stderr is not None
                    raise EndpointError(
                        f"{command[2]} did not start", value=process.stderr.read()[-500:]
                    )
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


@contextmanager
def _over_http(url: str, asked: Asked, more: Mapping[str, Any], *, as_ids: bool) -> Iterator[Lent]:
    """Lend a client of the completions protocol; each event is taken for one token."""
    import httpx

    tokenizer = Tokenizer(resolve(asked.model, asked.folder).folder)
    client = httpx.Client(timeout=ANSWER_S, limits=httpx.Limits(max_connections=None))

    def answer(call: Call) -> Iterator[int]:
        body = {
            "prompt": list(call.ids) if as_ids else tokenizer.decode(call.ids),
            "max_tokens": call.new,
            "stream": True,
            "temperature": 0.0,
            **more,
        }
        came = 0
        with client.stream("POST", url + "/v1/completions", json=body) as reply:
            if reply.status_code != httpx.codes.OK:
                raise EndpointError(f"{url} answered {reply.status_code}", value=reply.read()[:200])
            for line in reply.iter_lines():
                if not line.startswith("data: ") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line[6:])
                if any(one.get("text") for one in event.get("choices", ())):
                    came += 1
                    yield 1
                if event.get("usage"):  # a token that only began a character brought no text
                    yield event["usage"]["completion_tokens"] - came

    with client:
        yield answer, dict


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


WAYS: Mapping[str, Callable[[Asked], AbstractContextManager[Lent]]] = {
    "transformers": _transformers,
    "loci serve": _served,
    "llama.cpp": _llama,
}

"""llama.cpp's own server, run by a Python that has xllamacpp: continuous batching, a slot a stream.

    PYTHON llama_server.py GGUF PORT STREAMS CONTEXT THREADS

It knows nothing of this package, whose Python is another one.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp  # type: ignore[import-not-found]  # of the other Python


def main(gguf: str, port: int, streams: int, context: int, threads: int) -> None:
    """Serve until somebody ends the process."""
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = streams, streams * context  # a slot has its part
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_threads_http = streams + 2
    params.verbosity = 0
    _held = xllamacpp.Server(params)  # it serves as long as somebody has it
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

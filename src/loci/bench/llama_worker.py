"""llama.cpp in a process of its own: one JSON line in, one JSON line out.

Runs under any Python that has llama-cpp-python, so nothing of ours is imported here. A line
{"ids": [...], "new": 24} reads the tokens and decodes so many more; the answer has the seconds of
the prompt and of a later token.

    python llama_worker.py GGUF THREADS CONTEXT IDS
"""

import json
import sys
import time


def main(path: str, threads: int, context: int, ids: list[int]) -> None:
    """Serve until the input ends; with ids, read them, say the next token, and end."""
    from llama_cpp import Llama

    model = Llama(
        path,
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        verbose=False,
        logits_all=False,
    )
    if ids:
        model.eval(ids)
        sys.stdout.write(json.dumps({"token": int(model.sample(temp=0.0))}) + "\n")
        return
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        model.reset()
        began = time.perf_counter()
        model.eval(asked["ids"])
        token = model.sample(temp=0.0)
        middle = time.perf_counter()
        for _ in range(asked["new"]):
            model.eval([token])
            token = model.sample(temp=0.0)
        token_s = (time.perf_counter() - middle) / max(1, asked["new"])
        sys.stdout.write(json.dumps({"prompt_s": middle - began, "token_s": token_s}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))

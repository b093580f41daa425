"""llama.cpp's KV cache types in a process of their own: one JSON object in, one out.

Runs under any Python that has cyllama (llama.cpp in a wheel) and numpy, so nothing of ours is
imported here. The model is first written anew in float32, so that no weight is rounded and what a
cache loses is seen. Every piece is read up to its prompt and then in short steps; the answer has,
for each pair of types, the mean KL to the cache in f16, by piece.

    python llama_kv_worker.py < {"gguf": PATH, "folder": PATH, "threads": 1, "prompt": 768,
                                 "step": 16, "vocab": 49152, "pieces": [[ids]],
                                 "types": [["q8_0", "q4_0"]]}
"""

import json
import os
import sys

TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # ggml's numbers
F32 = 0  # of whole files


def main() -> None:
    """Answer what was asked."""
    import cyllama.llama.llama_cpp as cpp
    import numpy as np

    asked = json.load(sys.stdin)
    path = os.path.join(asked["folder"], "float32.gguf")
    how = cpp.LlamaModelQuantizeParams()
    how.ftype, how.allow_requantize, how.nthread = F32, True, asked["threads"]
    cpp.model_quantize(asked["gguf"], path, how)

    class Model(cpp.LlamaModel):  # some versions ask it for a size that it does not know
        n_vocab = asked["vocab"]

    model = Model(path, verbose=False)

    def log_probs(ids: list[int], keys: str, values: str) -> "np.ndarray":
        params = cpp.LlamaContextParams()
        params.n_ctx = params.n_batch = len(ids)
        params.n_threads = params.n_threads_batch = asked["threads"]
        params.flash_attn_type, params.type_k, params.type_v = 1, TYPES[keys], TYPES[values]
        context = cpp.LlamaContext(model, params, False)
        rows = []
        starts = range(asked["prompt"], len(ids) - 1, asked["step"])
        for start, stop in [(0, asked["prompt"]), *((s, s + asked["step"]) for s in starts)]:
            part = ids[start : min(stop, len(ids) - 1)]
            batch = cpp.LlamaBatch(n_tokens=len(part), embd=0, n_seq_max=1, verbose=False)
            for at, token in enumerate(part):
                batch.add(token, start + at, [0], start > 0 or at == len(part) - 1)
            if context.decode(batch):
                raise RuntimeError("llama.cpp does not read these tokens")
            first = 0 if start else len(part) - 1
            rows += [
                np.array(context.get_logits_ith(n), np.float64) for n in range(first, len(part))
            ]
        logits = np.stack(rows)
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    found: dict[str, list[float]] = {}
    for ids in asked["pieces"]:
        whole = log_probs(ids, "f16", "f16")
        for keys, values in asked["types"]:
            other = log_probs(ids, keys, values)
            kl = float((np.exp(whole) * (whole - other)).sum(1).mean())
            found.setdefault(f"{keys}/{values}", []).append(kl)
    sys.stdout.write("\n" + json.dumps({"kl": found}) + "\n")


if __name__ == "__main__":
    main()

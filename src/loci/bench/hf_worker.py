"""transformers in a process of its own, with kvpress or a quantised cache: JSON lines in and out.

Runs under any Python that has what is NEEDED; kvpress needs an older transformers than ours, so
nothing of ours is imported here. A line {"ids": [...], "prompt": 768, "file": "out.bin"} reads the
prompt and then the rest of the tokens step by step; the logits of the rest go to the file in
float32, [rest, V], row by row. With "press": "SnapKVPress" and "ratio": 0.75 the prompt is read
under that press, which drops so large a share of it; with "quantized": {"backend": "quanto",
"nbits": 4} the cache is transformers' QuantizedCache. The answer has the tokens a layer holds after
the prompt, the bytes of a quantised cache at the end, and seconds.

    python hf_worker.py FOLDER THREADS STEP NEEDED
"""

import json
import sys
import time
from importlib import import_module
from importlib.metadata import version


def main(folder: str, threads: int, step: int, needed: str) -> None:
    """Serve until the input ends."""
    import_module(needed.replace("-", "."))
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.eval()
    versions = {needed: version(needed), "transformers": transformers.__version__}
    tell({"ready": True, "versions": versions})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            tell(answer(torch, transformers, model, asked, step))
        except Exception as error:  # whatever a press cannot do is said, and the next is asked
            tell({"error": f"{type(error).__name__}: {error}"})


def answer(torch, transformers, model, asked, step):  # type: ignore[no-untyped-def]
    """Return what one line asks for."""
    ids = torch.tensor([asked["ids"]])
    cache, prompt = transformers.DynamicCache(), asked["prompt"]
    if asked.get("quantized"):
        cache = transformers.QuantizedCache(config=model.config, **asked["quantized"])
    press = None
    if asked.get("press"):
        press = getattr(import_module("kvpress"), asked["press"])(compression_ratio=asked["ratio"])
    began = time.perf_counter()
    with torch.no_grad(), open(asked["file"], "wb") as file:
        # The last token of the prompt is read after the press did its work.
        if press is None:
            model(ids[:, : prompt - 1], past_key_values=cache, use_cache=True)
        else:
            with press(model):
                model(ids[:, : prompt - 1], past_key_values=cache, use_cache=True)
        # A quantised layer has all in codes, and nothing beside them.
        held = [int(x.keys.shape[2]) if x.keys.dim() == 4 else 0 for x in cache.layers]
        for start in range(prompt - 1, ids.shape[1] - 1, step):
            part = ids[:, start : min(start + step, ids.shape[1] - 1)]
            places = torch.arange(start, start + part.shape[1])[None]
            out = model(part, past_key_values=cache, use_cache=True, position_ids=places)
            file.write(out.logits[0].float().numpy().tobytes())
    nbytes = sum(map(held_bytes, cache.layers)) if asked.get("quantized") else None
    return {"held": held, "bytes": nbytes, "seconds": time.perf_counter() - began}


def held_bytes(layer):  # type: ignore[no-untyped-def]
    """Return the bytes of a quantised layer, all but codes counted in half precision."""
    exact = layer.keys.numel() + layer.values.numel()
    codes = 0
    for held in (layer._quantized_keys, layer._quantized_values):
        if isinstance(held, tuple):  # hqq
            codes += held[0].nbytes
            exact += held[1]["scale"].numel() + held[1]["zero"].numel()
        else:  # quanto; codes of 8 bits lie in a plain tensor
            codes += getattr(held._data, "_data", held._data).nbytes
            exact += held._scale.numel() + held._shift.numel()
    return codes + 2 * exact


def tell(value):  # type: ignore[no-untyped-def]
    """Write one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

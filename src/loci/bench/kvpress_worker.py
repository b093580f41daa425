"""kvpress in a process of its own: one JSON line in, one JSON line out.

Runs under any Python that has kvpress, which needs an older transformers than ours, so nothing of
ours is imported here. A line {"ids": [...], "prompt": 768, "press": "SnapKVPress", "ratio": 0.75,
"file": "out.bin"} reads the prompt under that press, which drops so large a share of it, and the
rest of the tokens step by step; the logits of the rest go to the file in float32, [rest, V], row by
row. The answer has the tokens a layer holds after the prompt, and seconds. Without a press the
cache is whole.

    python kvpress_worker.py FOLDER THREADS STEP
"""

import json
import sys
import time
from importlib.metadata import version


def main(folder: str, threads: int, step: int) -> None:
    """Serve until the input ends."""
    import kvpress
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.eval()
    versions = {"kvpress": version("kvpress"), "transformers": transformers.__version__}
    tell({"ready": True, "versions": versions})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            tell(answer(kvpress, torch, transformers, model, asked, step))
        except Exception as error:  # whatever a press cannot do is said, and the next is asked
            tell({"error": f"{type(error).__name__}: {error}"})


def answer(kvpress, torch, transformers, model, asked, step):  # type: ignore[no-untyped-def]
    """Return what one line asks for."""
    ids = torch.tensor([asked["ids"]])
    cache, prompt = transformers.DynamicCache(), asked["prompt"]
    press = None
    if asked.get("press"):
        press = getattr(kvpress, asked["press"])(compression_ratio=asked["ratio"])
    began = time.perf_counter()
    with torch.no_grad(), open(asked["file"], "wb") as file:
        # The last token of the prompt is read after the press did its work.
        if press is None:
            model(ids[:, : prompt - 1], past_key_values=cache, use_cache=True)
        else:
            with press(model):
                model(ids[:, : prompt - 1], past_key_values=cache, use_cache=True)
        held = [int(layer.keys.shape[2]) for layer in cache.layers]
        for start in range(prompt - 1, ids.shape[1] - 1, step):
            part = ids[:, start : min(start + step, ids.shape[1] - 1)]
            places = torch.arange(start, start + part.shape[1])[None]
            out = model(part, past_key_values=cache, use_cache=True, position_ids=places)
            file.write(out.logits[0].float().numpy().tobytes())
    return {"held": held, "seconds": time.perf_counter() - began}


def tell(value):  # type: ignore[no-untyped-def]
    """Write one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

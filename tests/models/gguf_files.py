"""Small GGUF files, written by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from loci.models.tokenizer import BYTE_LETTERS

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, HEAD_DIM = 256, 256, 4, 2, 2, 64
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "1 2")
TOKENS = [*CONTROL, *(BYTE_LETTERS[b] for b in range(256)), *(m.replace(" ", "") for m in MERGES)]

# Bytes of a block, and where the high bytes of its float16 scales lie.
K_BLOCKS = {"Q4_K": (144, (1, 3)), "Q5_K": (176, (1, 3)), "Q6_K": (210, (209,))}


def raw_of(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a tensor of a type as bytes [out, row bytes]; random codes where no quantiser is."""
    if kind in K_BLOCKS:
        nbytes, highs = K_BLOCKS[kind]
        raw = rng.integers(0, 256, (shape[0], shape[1] // 256, nbytes), dtype=np.uint8)
        for high in highs:  # small and finite: exponents below 2**-7
            raw[..., high] = (raw[..., high] & 0x80) | 0x20
        return raw.reshape(shape[0], -1)
    dense = rng.standard_normal(shape).astype(np.float32) / 16
    return quants.quantize(dense, Kind[kind]).reshape(shape[0], -1).view(np.uint8)


def write_llama(
    path: Path,
    kind: str = "Q4_0",
    *,
    architecture: str = "llama",
    seed: int = 0,
    pre: str = "smollm",
    untied: bool = False,
    without: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write a whole little model; return {tensor name: what gguf's own dequantiser says}."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    truth: dict[str, np.ndarray] = {}
    width = HEADS * HEAD_DIM
    linears = {
        "attn_q": (width, HIDDEN),
        "attn_k": (width // 2, HIDDEN),
        "attn_v": (width // 2, HIDDEN),
        "attn_output": (HIDDEN, width),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"blk.{layer}.{n}.weight": (HIDDEN,) for n in ("attn_norm", "ffn_norm")}
    shapes["output_norm.weight"] = (HIDDEN,)
    if untied:
        shapes["output.weight"] = (len(TOKENS), HIDDEN)
    for name, shape in shapes.items():
        if name in without:
            continue
        if len(shape) == 1:
            truth[name] = rng.standard_normal(shape).astype(np.float32)
            writer.add_tensor(name, truth[name])
            continue
        raw = raw_of(kind, shape, rng)
        truth[name] = quants.dequantize(raw, Kind[kind])
        writer.add_tensor(name, raw, raw_dtype=Kind[kind])
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth

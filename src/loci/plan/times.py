"""Times of an option, as the roofline predicts them from what the machine's profile reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from loci.core.cost import OpGraph
from loci.core.spec import ModelSpec, Workload
from loci.errors import ModelError
from loci.methods.cost.base import Machine, graph_of, start_of
from loci.methods.cost.roofline import Roofline
from loci.methods.offload.base import Placement
from loci.methods.offload.tpi_llm import TpiLlm
from loci.plan.streaming import Blocks, uses_of

_RATES = ("float32", "bfloat16", "float16", "int8")  # the first that is known


def predict(
    spec: ModelSpec,
    load: Workload,
    profile: Machine,
    blocks: Blocks,
    *,
    chunk: int,
    kv_bytes: int,
    decode_operations: float,
    reads: Callable[[int], int],
    placement: Placement | None,
) -> tuple[float, float]:
    """Return (seconds to the first token, seconds per later token).

    Args:
        kv_bytes: of the whole KV cache; reads of it are in proportion.
        decode_operations: to make a number of what is stored; 0 where the KV is kept as it is.
        reads: returns how many of so many stored tokens a decoded one reads.
        placement: of streamed weights; None when all stay in memory.
    """
    tier, rate = what_is_known(profile)
    prompt, model = prompt_tokens(load), Roofline(tier=tier)
    middle = min(load.context, prompt + load.new_tokens // 2 + 1)  # keys an average token sees

    def graph(phase: Literal["prefill", "decode"], tokens: int, keys: int) -> OpGraph:
        return graph_of(
            spec,
            phase,
            tokens=tokens,
            keys=keys,
            batch=load.batch,
            chunk=chunk,
            kv_bytes_per_element=kv_bytes
            / (spec.kv_elements_per_token() * load.context * load.batch),
            decoded=decode_operations > 0,
            decode_operations=decode_operations,
            rate=rate,
        )

    def seconds(work: OpGraph, is_layer: bool, passes: int = 1) -> float:
        """Return the time of one layer, or of everything after the last one, over all passes."""
        ops = [op for op in work.ops if (op.name not in ("norm", "head")) == is_layer]
        again = passes - 1 if is_layer else 0  # the first start is in the time
        return sum(model.time(op, profile)[0] + again * start_of(profile, op.rate) for op in ops)

    prefill, decode = graph("prefill", prompt, prompt), graph("decode", 1, reads(middle))
    passes = -(-prompt // chunk)
    layer_first_s, last_first_s = seconds(prefill, True, passes), seconds(prefill, False)
    layer_s, last_s = seconds(decode, True), seconds(decode, False)
    if placement is None or not placement.streamed:
        return (spec.layers * layer_first_s + last_first_s, spec.layers * layer_s + last_s)
    _, uses, _ = uses_of(blocks)
    layers = [name for name in uses if name.startswith("layer.")]
    tiles = uses[len(layers) :]
    disk = profile.tiers["disk"].read_bytes_per_s
    load_s = {name: stored / disk for name, _, stored in blocks}
    compute = dict.fromkeys(layers, layer_first_s / passes)
    tail_s = max(last_first_s, sum(load_s[n] for n in tiles if n in placement.streamed))
    first_s = passes * TpiLlm().pace(placement, layers, compute, load_s) + tail_s
    compute = dict.fromkeys(tiles, last_s / len(tiles))
    compute |= dict.fromkeys(layers, layer_s)
    return first_s, TpiLlm().pace(placement, uses, compute, load_s)


def what_is_known(profile: Machine) -> tuple[str, str]:
    """Return the tier and the number format whose speeds of a machine are taken.

    Raises:
        ModelError: if no source gave the machine's bandwidth or any arithmetic rate.
    """
    tier = next((name for name in ("dram", "gpu") if name in profile.tiers), None)
    rate = next((name for name in _RATES if name in profile.rates), None)
    if tier is None or rate is None:
        raise ModelError(
            "the speed of this machine is not known, so no time can be predicted",
            allowed="a machine with a bandwidth and a rate of arithmetic; loci plan on it measures",
        )
    return tier, rate


def prompt_tokens(load: Workload) -> int:
    """Return the length of the prompt; where nobody said, what the answer leaves of the context."""
    if load.prompt_tokens is not None:
        return max(1, load.prompt_tokens)
    return max(1, load.context - load.new_tokens)

"""Bytes of the work buffers of a decoder: one table that allocation and prediction both read.

A forward of `chunk` tokens needs room for hidden states, projections, the attention output, one
tile of dequantised weights or of scores, what products straight from the codes prepare of their
input, and one row of logits.
"""

from __future__ import annotations

from loci.core.spec import ModelSpec

TILE_ELEMENTS = 4 * 2**20  # float32 elements of one dequantised weight tile: at most 16 MiB
FEW_ROWS = 16  # rows of x that products straight from the codes take
LEAST_GROUP = 8  # inputs that share a scale, at least, in those products

# Shapes: B batch, T tokens of one chunk, d hidden, q query width, k key width, f ffn, V vocabulary.


def decoder_work(
    spec: ModelSpec,
    chunk: int,
    batch: int = 1,
    *,
    decoded_tokens: int = 0,
    rows: int | None = None,
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return {buffer: (shape, bytes per element)} of a forward over `chunk` tokens.

    Args:
        chunk: tokens a step appends at most.
        batch: rows at once.
        rows: tokens of all rows together at most; None is a whole chunk of each row.
        decoded_tokens: stored tokens that attention decodes from codes at once (one layer);
            0 when the KV cache is kept as it is.
    """
    rows = batch * chunk if rows is None else rows
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    linears = spec.layer_linears().values()
    largest = max(out * inner for out, inner in linears)
    inner = max(spec.hidden, spec.ffn, queries)
    tile = max(min(largest, TILE_ELEMENTS), least_tile(spec)) if rows > 1 else 0
    # In the order of the codes, and sums over groups, which q, k and v may each have of their own.
    prepared = inner + 3 * _whole(inner // LEAST_GROUP, 16)
    table: dict[str, tuple[tuple[int, ...], int]] = {
        "hidden": ((rows, spec.hidden), 4),
        "normed": ((rows, spec.hidden), 4),
        "qkv": ((rows, queries + 2 * keys), 4),
        "heads": ((rows, queries + keys), 4),  # queries and keys head-major, rotated
        "mixed": ((rows, queries), 4),  # the attention output
        "gate_up": ((rows, 2 * spec.ffn), 4),
        "rope": ((2, rows, spec.head_dim), 4),
        "tile": ((tile,), 4),
        "prepared": ((min(rows, FEW_ROWS), prepared), 4),
        "logits": ((batch, spec.vocab), 4),
        "attention": ((rows, 2 * queries + 2 * spec.heads), 4),  # parts that are merged
    }
    if decoded_tokens:
        table["decoded"] = ((2, batch, keys, decoded_tokens), 4)
    return table


def least_tile(spec: ModelSpec) -> int:
    """Return the elements that the native kernels need of "tile", for one thread.

    That is a panel of dequantised weights, or a tile of attention: keys, values, scores, and the
    outputs of the query heads that share a key. More room serves more threads.
    """
    size = _whole(spec.head_dim, 16)
    inner = max(spec.hidden, spec.ffn, spec.heads * spec.head_dim)
    depth = min(_whole(inner, 16), 512)
    panel = 6 * 64 + depth * (16 + 64) + depth // 4 + 16
    scores = 128 * (spec.head_dim + size) + 48 * 128 + spec.groups * 48 * (size + 2)
    return max(panel, scores)


def _whole(count: int, step: int) -> int:
    return -(-count // step) * step


def work_bytes(
    spec: ModelSpec,
    chunk: int,
    batch: int = 1,
    *,
    decoded_tokens: int = 0,
    rows: int | None = None,
) -> int:
    """Return the bytes of all work buffers of `decoder_work`."""
    total = 0
    table = decoder_work(spec, chunk, batch, decoded_tokens=decoded_tokens, rows=rows)
    for shape, size in table.values():
        elements = 1
        for side in shape:
            elements *= side
        total += elements * size
    return total

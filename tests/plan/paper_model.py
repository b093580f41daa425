"""A model on paper with the default model's sizes, its blocks and cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loci.core.card import Card, Measurement, Verdict
from loci.core.spec import ModelSpec
from loci.methods.offload.base import page_bytes
from loci.testing.cost import machine

MIB = 2**20
MACHINE = machine(bandwidth=8e9, peak=5e10, disk=5e8)
SMOLLM2 = ModelSpec(
    name="smollm2",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    max_context=8192,
    weight_bits=5.0,
    embed_bits=8.5,
    tokenizer_bytes=8 * MIB,
    fingerprint="smollm2-on-paper",
)


def no_cards(kind: str, name: str) -> Card | None:
    """Nothing was measured."""
    return None


def cards_with(
    rows: list[tuple[Any, ...]],
) -> Callable[[str, str], Card | None]:
    """Return cards from (method, parameters, KL, fingerprint), and a suite if not `reference`."""

    def cards(kind: str, name: str) -> Card | None:
        found = tuple(
            Measurement(
                model="smollm2",
                fingerprint=fingerprint,
                suite=suite[0] if suite else "reference",
                command="",
                machine={},
                software={},
                commit="",
                date="2026-01-01",
                parameters=parameters,
                metrics={"kl": {"this": kl}},
            )
            for method, parameters, kl, fingerprint, *suite in rows
            if method == name
        )
        if not found:
            return None
        return Card(
            method=name,
            claim="",
            claim_where="",
            verdict=Verdict.REPRODUCED,
            because="",
            measurements=found,
        )

    return cards


def blocks_of(spec: ModelSpec) -> list[tuple[str, int, int]]:
    """Return the blocks of a pack of this spec."""
    linear = sum(out * inner for out, inner in spec.layer_linears().values())
    layer = round(linear * spec.weight_bits / 8) + 4 * spec.layer_norm_elements()
    head = round(spec.vocab * spec.hidden * spec.embed_bits / 8)
    tiles = max(1, -(-head // layer))
    sizes = [(f"embed.{i}", -(-head // tiles)) for i in range(tiles)]
    sizes += [(f"layer.{i}", layer) for i in range(spec.layers)]
    sizes += [("norm", 4 * spec.hidden)]
    return [(name, nbytes, page_bytes(nbytes)) for name, nbytes in sizes]

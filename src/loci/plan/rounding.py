"""Activations in fewer bits: faster where few tokens are decoded, and a loss of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loci.errors import ParameterError
from loci.plan.kvform import Cards, measured

if TYPE_CHECKING:
    from loci.plan.solve import Plan

FLOAT, ROUNDED = 32, 8  # bits
CARD = ("nn", "activations")


def with_activations(plan: Plan, bits: int | None, cards: Cards) -> Plan:
    """Return a plan whose activations have so many bits; its loss counts what that costs.

    The times of the plan stay those of float32: they are never too short.

    Raises:
        ParameterError: if activations cannot have so many bits.
    """
    if bits is None or bits == FLOAT:
        return plan
    if bits != ROUNDED:
        raise ParameterError(
            "activations cannot have this many bits", value=bits, allowed=f"{ROUNDED}, {FLOAT}"
        )
    kl, unknown = measured(cards(*CARD), {"bits": bits}, plan.spec)
    note = f"activations of {bits} bits while decoding: "
    note += unknown if kl is None else f"measured cost {kl:.4f} nats a token"
    loss = None if kl is None or plan.loss is None else plan.loss + kl
    return replace(plan, activation_bits=bits, loss=loss, notes=(*plan.notes, note))

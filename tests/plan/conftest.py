"""A planner for the model on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from paper_model import MACHINE, MIB, SMOLLM2, blocks_of, no_cards

from loci.core.budget import Budget
from loci.core.card import Card
from loci.core.spec import ModelSpec, Workload
from loci.plan.solve import Plan, solve


@pytest.fixture
def plan_for() -> Callable[..., Plan]:
    """Return a planner for the model on paper: sizes in MiB, the rest as for `solve`."""

    def plan(
        dram: float,
        *,
        disk: float = 0,
        context: int = 4096,
        caps: dict[str, int] | None = None,
        spec: ModelSpec = SMOLLM2,
        new_tokens: int = 256,
        prompt_tokens: int | None = None,
        cards: Callable[[str, str], Card | None] = no_cards,
        **more: Any,
    ) -> Plan:
        budget = Budget(dram=int(dram * MIB), disk=int(disk * MIB), **(caps or {}))
        load = Workload(context=context, new_tokens=new_tokens, prompt_tokens=prompt_tokens)
        return solve(spec, blocks_of(spec), budget, load, MACHINE, cards, **more)

    return plan

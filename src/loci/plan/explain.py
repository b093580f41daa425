"""A plan in words: six plain lines for everybody, and the whole reasoning for who asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loci.methods.catalogue import parse_chain
from loci.methods.kv.chain import check_chain
from loci.plan.times import prompt_tokens
from loci.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from loci.plan.solve import Plan


def plain(plan: Plan) -> str:
    """Return six lines: what fits, of what, where, how fast, what it costs in quality, and how
    to have more. No method is named.
    """
    used, limit = plan.predicted["dram"], plan.budget.dram or 0
    weights, kv = plan.held("weights"), plan.held("kv")
    rest, prompt = used - weights - kv, prompt_tokens(plan.workload)
    lines = [
        (
            f"{plan.model} fits: {format_bytes(used)} of {format_bytes(limit)} of memory, for a "
            f"context of {plan.workload.context:,} tokens."
        ),
        (
            f"Of that, {format_bytes(weights)} are weights, {format_bytes(kv)} the conversation, "
            f"{format_bytes(rest)} work buffers and tables."
        ),
        _where(plan),
        (
            f"Speed: {_pace(plan)}; the first after "
            f"{format_seconds(plan.first_token_s)} for a prompt of {prompt:,}."
        ),
        _quality(plan),
        f"To change: {plan.change}.",
    ]
    return "\n".join(lines)


def _pace(plan: Plan) -> str:
    rate = f"{_rate(plan.seconds_per_token)} tokens a second"
    fetches = plan.kv and check_chain(parse_chain(plan.kv, "kv")).retrieve is not None
    return f"at most {rate}, what fetching takes not counted" if fetches else f"about {rate}"


def explain(plan: Plan) -> str:
    """Return the six lines, then every byte, what was chosen, what was turned down and why."""
    lines = [str(plan), "", "Held:"]
    lines += [f"  {name:<16}{tier:<6}{n:>15,} B" for name, tier, _, n in plan.parts]
    lines += [f"  {'together':<16}{tier:<6}{n:>15,} B" for tier, n in plan.predicted.items()]
    if plan.runtime_bytes is not None:
        lines.append(f"  runtime {format_bytes(plan.runtime_bytes)}, not in the budget")
    if plan.moved_per_token:
        lines += ["", "Read for every token:"]
        lines += [f"  {a} to {b}: {n:,} B" for (a, b), n in plan.moved_per_token.items()]
    lines += ["", "Chosen:", *(f"  {line}" for line in plan.chosen)]
    if plan.placement is not None:
        lines.append(
            f"  {len(plan.placement.pinned)} blocks stay, {len(plan.placement.streamed)} pass "
            f"through {plan.placement.window_blocks} buffers"
        )
    lines += ["", "Turned down:"] if plan.turned_down else []
    for choice in plan.turned_down:
        facts = []
        if choice.seconds_per_token is not None:
            facts.append(f"{format_seconds(choice.seconds_per_token)} a token")
        facts.append("loss unknown" if choice.loss is None else f"loss {choice.loss:.4f}")
        numbers = f"{format_bytes(choice.bytes)}, {', '.join(facts)}"
        lines.append(f"  {choice.name}: {choice.why} ({numbers})")
    lines += ["", "Notes:", *(f"  {note}" for note in plan.notes)] if plan.notes else []
    return "\n".join(lines)


def _where(plan: Plan) -> str:
    if plan.weights == "stacked":
        return "Of the weights as much is in memory as fits; answering reads nothing from disk."
    if plan.placement is None and plan.held("kv", "disk"):
        return "All weights stay in memory; the conversation is read from disk where it is needed."
    if plan.placement is None:
        return "All weights stay in memory; answering reads nothing from disk."
    moved = sum(plan.moved_per_token.values())
    return f"The weights do not all fit: {format_bytes(moved)} are read from disk for every token."


def _quality(plan: Plan) -> str:
    packed = f"; {plan.packed}" if plan.packed else ""
    if plan.loss == 0:
        return f"Quality: the same as the full model's{packed}."
    kept = f"the conversation is kept in {plan.words}"
    if plan.weights == "stacked":
        kept = f"weights are cut to fit, {kept}"
    if plan.loss is not None:
        return (
            f"Quality: {kept}; measured cost {plan.loss:.4f} nats a token against the full model"
            f"{packed}."
        )
    note = next((note for note in plan.notes if "unknown" in note), "unknown for this model")
    return f"Quality: {kept}; {note}{packed}."


def _rate(seconds: float) -> str:
    rate = 1 / seconds if seconds > 0 else 0.0
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"

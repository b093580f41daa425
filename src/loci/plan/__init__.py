"""Plans: what fits a budget, how, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loci.errors import BudgetError, ParameterError
from loci.units import parse_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from loci.core.method import Method
    from loci.hw.profiles import Pace
    from loci.plan.solve import Plan

CONTEXTS = (2048, 1024, 512)  # tried in this order when nobody names a context


def plan(
    model: str,
    *,
    dram: str | int | None = None,
    gpu: str | int | None = None,
    disk: str | int | None = None,
    weights: str | int | None = None,
    kv_bytes: str | int | None = None,
    process: str | int | None = None,
    context: str | int | None = None,
    prompt_tokens: str | int | None = None,
    new_tokens: str | int = 256,
    kv: str | None = None,
    quant: str | None = None,
    activations: int | None = None,
    machine: str | None = None,
    runtime_bytes: int | None = None,
    pace: Pace | None = None,
    notes: tuple[str, ...] = (),
    prepared: Callable[[Method, Path, str], bool] = lambda method, folder, fingerprint: False,
    folder: Path,
    cache: Path,
) -> Plan:
    """Return what would be done with a model in a budget.

    Args:
        weights, kv_bytes: caps inside the tier.
        context: tokens of prompt and answer; None takes the longest of `CONTEXTS` that fits
            without loss, or else the longest that fits.
        kv: a chain of KV methods, "" for an exact cache; None leaves it to the planner.
        quant: a method that packs weights in levels, "" for weights as they are; None takes
            levels only where nothing without loss fits.
        activations: 8 rounds what weights are multiplied with while tokens are decoded, which is
            faster for several requests together and not exact; None and 32 leave it in float32.
        machine: a name of machines.toml; None is this machine, measured once.
        runtime_bytes: Python and its libraries, measured; counted against `process`.
        pace: what this machine reaches; None takes what it promises, which is faster.
        notes: what else the plan is to say.
        prepared: whether what a method of the KV cache needs is at hand, in the folder of the
            model's pack and for its fingerprint.
        folder: where models are kept; cache: where the machine's speed is remembered.

    Raises:
        BudgetError: if it does not fit.
    """
    from loci.core.budget import Budget
    from loci.core.card import load_card
    from loci.core.spec import Workload
    from loci.hw import probe, profiles
    from loci.models.load import locate, spec_of
    from loci.models.packed import facts_of, packed_before
    from loci.plan import stacks
    from loci.plan.kvform import loss_of
    from loci.plan.rounding import with_activations
    from loci.plan.solve import solve

    spec, blocks, _ = spec_of(model, folder)
    packed = facts_of(locate(model, folder).pack)
    named = Budget.parse(
        dram=dram, gpu=gpu, disk=disk, weights=weights, kv=kv_bytes, process=process
    )
    if machine is None:
        facts = probe.probe(folder)
        profile = profiles.profile_of(facts, probe.measure(cache / "rates.json", machine=facts))
        profile = profile if pace is None else pace.on(profile)
        free = facts.free()
    else:
        profile = profiles.load_profile(machine)
        free = {tier: facts.bytes for tier, facts in profile.tiers.items()}
        if named.dram is None and "dram" not in free:
            raise ParameterError(
                f"how much memory {machine} has beside its GPU is not known", way_out="name --dram"
            )
    if gpu is not None:
        notes += ("this version runs on the CPU: --gpu is not used",)
    budget = named.filled(free)

    answer = _tokens("new_tokens", new_tokens)

    def attempt(tokens: int) -> Plan:
        prompt = None if prompt_tokens is None else _tokens("prompt_tokens", prompt_tokens)
        load = Workload(context=tokens, prompt_tokens=prompt, new_tokens=answer)
        solved = partial(
            solve,
            spec,
            blocks,
            budget,
            load,
            profile,
            load_card,
            kv=kv,
            model=model,
            runtime_bytes=runtime_bytes,
            packed="" if packed is None else str(packed),
            prepared=lambda method: prepared(
                method, locate(model, folder).pack.parent, spec.fingerprint
            ),
        )
        if quant:
            table, note = stacks.table_for(spec, locate(model, folder).pack, quant)
            return solved(stack=table, weights="stacked", notes=_with(notes, note))
        try:
            return solved(notes=notes)
        except BudgetError as error:
            if quant is not None:
                raise
            refused = error
        found: list[Plan] = []
        for table, note in stacks.defaults(spec, locate(model, folder).pack):
            try:
                found.append(solved(stack=table, notes=_with(notes, note)))
            except BudgetError as error:  # its ways out know of stacks
                refused = error
        known = [(plan.loss, plan) for plan in found if plan.loss is not None]
        for twin in packed_before(model, folder):
            twin_spec, twin_blocks, _ = spec_of(twin.name, folder)
            try:
                other = solve(
                    twin_spec,
                    twin_blocks,
                    budget,
                    load,
                    profile,
                    load_card,
                    kv=kv,
                    model=twin.name,
                    runtime_bytes=runtime_bytes,
                    packed=str(twin),
                    notes=(*notes, f"{model} as it is does not fit; {twin.name} was made from it"),
                )
            except BudgetError:
                continue
            kept = 0.0 if other.loss == 0 else loss_of(other.form(), spec, load_card)[0]
            if kept is not None:
                known.append((twin.loss + kept, other))
        # A stack that is not made yet may lose more than what is here already.
        if known and (len(known) >= len(found) or known[-1][1].model != model):
            return min(known, key=lambda pair: pair[0])[1]
        if not found:
            raise refused
        return found[0]

    if context is not None:
        return with_activations(attempt(_tokens("context", context)), activations, load_card)
    fewest = answer + (_tokens("prompt_tokens", prompt_tokens) if prompt_tokens else 1)
    sizes = [n for n in CONTEXTS if fewest <= n <= spec.max_context] or [
        min(max(fewest, CONTEXTS[-1]), spec.max_context)
    ]
    fitting: list[Plan] = []
    for tokens in sizes:
        try:
            found = attempt(tokens)
        except BudgetError:
            if tokens == sizes[-1] and not fitting:
                raise
            continue
        if found.loss == 0:
            fitting.insert(0, found)
            break
        fitting.append(found)
    note = f"nobody named a context, so it is {fitting[0].workload.context:,} tokens"
    best = replace(fitting[0], notes=(*fitting[0].notes, note))
    return with_activations(best, activations, load_card)


def _with(notes: tuple[str, ...], note: str) -> tuple[str, ...]:
    return (*notes, note) if note else notes


def _tokens(name: str, value: str | int) -> int:
    try:
        return parse_tokens(value)
    except ValueError as error:
        raise ParameterError(f"{name}: {error}") from None

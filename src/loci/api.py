"""The public functions: they read the configuration and pass its values down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any  # results hold whatever JSON can hold

from loci import config
from loci.core.card import Card, load_card
from loci.core.method import Method
from loci.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loci.plan.solve import Plan
    from loci.run.adapters import Adapter
    from loci.run.engine import Session
    from loci.run.memory import Memory

NEW_TOKENS = 256  # when nobody says how long the answer may be


def plan(
    model: str | Path | None = None,
    *,
    dram: str | int | None = None,
    gpu: str | int | None = None,
    disk: str | int | None = None,
    weights: str | int | None = None,
    kv_bytes: str | int | None = None,
    process: str | int | None = None,
    context: str | int | None = None,
    prompt_tokens: str | int | None = None,
    new_tokens: str | int | None = None,
    kv: str | None = None,
    quant: str | None = None,
    activations: int | None = None,
    machine: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Return what Loci would do with this model in this budget, why, and what it costs.

    Sizes are bytes or text such as "256MiB". What is not given comes from the configuration, and
    then from this machine: 80 % of what is free of gpu and dram, nothing of disk.

    Args:
        model: a name, a folder or a file; None takes the configured one.
        weights, kv_bytes: caps inside the tier.
        process: a limit on the whole process, Python and its libraries included.
        context: tokens of prompt and answer together.
        kv: the chain of KV methods to use, "" for none; None lets Loci choose.
        quant: the method that packs weights in levels, "" for weights as they are; None lets Loci
            choose, which cuts weights only where nothing without loss fits.
        activations: 8 rounds what weights are multiplied with while tokens are decoded: faster for
            several requests together, and not exact. None leaves it in float32.
        machine: plan for the machine of that name instead of this one.
        progress: called with (what, done, total) while the model is packed and this machine is
            measured, which each happen once.

    Raises:
        BudgetError: if it does not fit; the message has the gap and ways out.
    """
    from loci.hw.probe import probe
    from loci.models.load import spec_of
    from loci.plan import plan as solve
    from loci.run.runtime import Runtime, runtime

    settings = config.load()
    name = str(model) if model is not None else settings.model
    spec_of(name, settings.models_dir, progress=progress)  # no model, nothing to measure for
    measured = Runtime()
    if machine is None:
        measured = runtime(settings.cache_dir, probe(settings.cache_dir), progress=progress)
    notes = ("this machine was measured while it was busy: times may be too long",)
    return solve(
        name,
        dram=dram if dram is not None else settings.dram,
        gpu=gpu if gpu is not None else settings.gpu,
        disk=disk if disk is not None else settings.disk,
        weights=weights,
        kv_bytes=kv_bytes,
        process=process if process is not None else settings.process,
        context=context if context is not None else settings.context,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens if new_tokens is not None else NEW_TOKENS,
        kv=kv,
        quant=quant,
        activations=activations,
        machine=machine,
        runtime_bytes=measured.bytes,
        pace=measured.pace,
        notes=notes if measured.is_busy else (),
        prepared=_is_prepared,
        folder=settings.models_dir,
        cache=settings.cache_dir,
    )


def open(
    plan: Plan,
    *,
    memory: str | Path | Memory | None = None,
    cubes: Sequence[str | Path] = (),
    user: str | None = None,
    purpose: str | None = None,
    adapter: str | Path | Adapter | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Session:
    """Return a session that carries out `plan`; use it in a `with` statement.

    Args:
        memory: a memory file, or an open `Memory`; without it nothing is remembered.
        cubes: what stands before every question: ids of cubes beside the memory (the configured one
            if none is named), or their files.
        user, purpose: who asks for cubes and adapter, and what for; their policies decide.
        adapter: what the model answers with: a name or id beside the memory (the configured one if
            none is named), a cube's file, or a PEFT folder.
        progress: called with (what, done, total) while a model is prepared or a prompt is read.
    """
    from loci.plan.solve import Plan
    from loci.run import engine
    from loci.run.shelves import beside

    if not isinstance(plan, Plan):
        raise ParameterError(
            "a session carries out a plan",
            value=plan,
            way_out='loci.open(loci.plan("smollm2", dram="160MiB"))',
        )
    settings = config.load()
    if isinstance(adapter, (str, Path)):
        adapter = find_adapter(adapter, plan, memory, user)
    return engine.open(
        plan,
        memory=memory,
        cubes=cubes,
        user=user,
        purpose=purpose,
        adapter=adapter,
        shelf=beside(settings.memory_file) if cubes and memory is None else None,
        folder=settings.models_dir,
        progress=progress,
    )


def prepare(
    method: str,
    model: str | None = None,
    *,
    weights: str | int | None = None,
    train: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Do now what a method does once for a model; return what it made.

    A method that packs in levels ("bitstack") makes a stack, from which runs of any size load what
    fits: the result has "path", and KL in nats per token ("kl") measured at "bytes". Every other
    method ("gptq(bits=3)") makes a model of its own: the result has "name", to be run like any
    other, its "bytes" and its "kl". Methods of the KV cache that must know the model ("cskv") keep
    what they found out beside it, and the result has "path" and "bytes". "memlora" teaches the
    model the operations of a memory: the result has "experts", what each is worth on people and
    wordings that were not taught ("right" of "tried"), its "bytes" and seconds.

    Args:
        method: as the catalogue writes it.
        weights: for a model of its own: bytes of all its weights, shared between layers by what
            each loses; None takes the method's own settings.
        train: steps to train corrections, for methods that have them, or each expert of memlora.
        progress: called with (what, done, total).

    Raises:
        BudgetError: if the weights cannot be that small.
        ParameterError: if the method does not fit the model, or an option the method.
    """
    from loci.models.load import resolve
    from loci.run.prepare import prepare as made

    settings = config.load()
    name = model if model is not None else settings.model
    with resolve(name, settings.models_dir, progress=progress) as pack:
        return made(
            pack,
            method,
            settings.models_dir,
            weights=weights,
            train=train,
            progress=progress,
        )


def methods(kind: str | None = None) -> list[tuple[type[Method], Card | None]]:
    """Return every method with its card, or those of one kind; None stands for a missing card.

    >>> import loci
    >>> "fcfs" in [method.about.name for method, card in loci.methods("sched")]
    True
    """
    from loci.methods import catalogue

    return [
        (method, load_card(method.about.kind, method.about.name))
        for method in catalogue.all_methods(kind)
    ]


def find_adapter(
    name: str | Path, plan: Plan, memory: str | Path | Memory | None, user: str | None
) -> Adapter:
    """Return an adapter by name, id or file for the model of a plan; see `open`."""
    from loci.core.cube import Caller
    from loci.run.adapters import find
    from loci.run.shelves import beside

    if memory is None or isinstance(memory, (str, Path)):
        shelf = beside(config.load().memory_file if memory is None else memory)
        return find(name, plan.spec, shelf, caller=Caller(user=user))
    return find(name, plan.spec, memory.shelf, caller=Caller(tenant=memory.tenant, user=user))


def _is_prepared(method: Method, folder: Path, fingerprint: str) -> bool:
    from loci.run.artefacts import is_prepared  # brings torch

    return is_prepared(method, folder, fingerprint)

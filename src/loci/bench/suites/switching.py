"""Switching between conversations in too little memory: FastSwitch beside what others do.

    moves      the same trace of moves with real copies, from a pool to memory beside it. Told are
               the seconds the caller stands still, copies for a switch, bytes, and how long runs
               are. Between two moves the caller sleeps, as it would wait for a device.
    simulated  the trace on a GPU's roofline behind a PCIe 4 link: each copy costs a dispatch and
               its bytes; rivals stand still meanwhile, or read again. Told are first tokens.
    turns      the real engine: questions of conversations whose keys and values were put out
               between turns, against reading the conversation again.

Rivals: `blockwise` (single blocks from a stack, a copy each, nothing kept), in the simulation also
with a copy for each layer, keys and values (`per_layer`, as vLLM 0.3 lays them out); `gathered`
(one gather and one copy, nothing kept, as transformers' continuous batching); `read_again`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any  # results

import torch

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.metrics import percentile
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.bench.suites.schedule import MODEL, StepTime
from loci.bench.swapping import BLOCK, Gathered, Stack, Step, Trace, draw
from loci.core.ledger import Ledger
from loci.errors import ParameterError
from loci.hw.profiles import load_profile
from loci.hw.sim import EventSimulator, Link, Task
from loci.methods.sched.base import Request, StepPlan
from loci.plan import plan as make_plan
from loci.run.batch import Batch
from loci.run.requests import Ask
from loci.run.stores import SwapRoom
from loci.tiers import swap
from loci.tiers.groups import BlockGroups
from loci.tiers.swap import SwapManager, Ticket

ABOUT = "conversations that take turns in too little memory: stalls, copies, first tokens"
KINDS = ("sched",)
METHODS = ("fastswitch",)
PARTS = ("moves", "simulated", "turns")
TALKS, ROUNDS, HISTORY = 32, 3, 600
QUICK = {"talks": 5, "rounds": 1, "history": 120}
SCALE, SIMULATED_SCALE = 1 / 16, 1 / 4
BLOCK_BYTES = 16 * 23_040  # of SmolLM2 in half precision, all layers
QUICK_BLOCK_BYTES = 4096
STEP_S = 0.004  # a step of the device that the caller waits for
DISPATCH_S, LINK_BYTES_PER_S = 10e-6, 32e9  # a copy from Python; PCIe 4 x16
OURS, LONG_S = "fastswitch", 600.0
FOLLOW_UP = 24  # tokens of a second question


def run(context: Context) -> dict[str, Any]:
    """Measure every part that was asked for."""
    refuse_unknown(context.options, ("parts", "talks", "rounds", "history"))
    parts = words_of(context.options, "parts", PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ParameterError("there is no such part", value=unknown[0], allowed=", ".join(PARTS))
    usual = {"talks": TALKS, "rounds": ROUNDS, "history": HISTORY}
    how = {
        name: count_of(context.options, name, QUICK[name] if context.quick else value)
        for name, value in usual.items()
    }
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "moves": lambda: _moves(context, how["talks"], how["rounds"]),
        "simulated": lambda: _simulated(how["talks"], context.seed, quick=context.quick),
        "turns": lambda: _turns(context, how["history"], how["rounds"]),
    }
    found: dict[str, Any] = {"model": "none", "fingerprint": "none", "seed": context.seed, **how}
    if "turns" in parts:
        from loci.models.load import spec_of

        spec = spec_of(context.model, context.folder)[0]
        found |= {"model": context.model, "fingerprint": spec.fingerprint}
    found["results"] = {part: ways[part]() for part in parts}
    return found


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return one row a part: ours beside the rivals."""
    rows = []
    for part, ways in result["results"].items():
        ours = ways[OURS]
        whats = [what for what, value in ours.items() if type(value) in (int, float)]
        rows.append(
            Row(
                method=OURS,
                kind="sched",
                part=part,
                seeds=(result["seed"],),
                metrics={
                    what: {
                        "this": ours[what],
                        "rivals": {n: w[what] for n, w in ways.items() if n != OURS and what in w},
                    }
                    for what in whats
                },
                ratio=ours.get("ratio", {}),
            )
        )
    return rows


# -- moves ------------------------------------------------------------------------------------


def _moves(context: Context, talks: int, rounds: int) -> dict[str, Any]:
    trace = draw(talks, context.seed, scale=SCALE)
    size = QUICK_BLOCK_BYTES if context.quick else BLOCK_BYTES
    ways = {OURS: _ours, "blockwise": _blockwise, "gathered": _gathered}
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for number in range(rounds):
        for name, make in ways.items():
            context.progress(f"moves, {name}", number, rounds)
            found[name] = _replay(trace, make, size, 0.0 if context.quick else STEP_S)
            times[name].append(found[name]["stall_s"])
    for name, way in found.items():
        way["stall_s"] = percentile(times[name], 0.5)
    ours = found[OURS]
    ours["ratio"] = {
        f"{what}.{name}": ours[what] / way[what]
        for name, way in found.items()
        if name != OURS
        for what in ("stall_s", "copies_a_switch", "out_bytes")
    }
    return found


def _ours(trace: Trace, size: int, ledger: Ledger) -> SwapManager:
    memory = torch.zeros(trace.capacity, size, dtype=torch.uint8)
    place = swap.in_memory(2 * trace.most_live * size, size, ledger)
    return SwapManager(memory, BlockGroups(trace.capacity), [place])


def _blockwise(trace: Trace, size: int, ledger: Ledger) -> SwapManager:
    memory = torch.zeros(trace.capacity, size, dtype=torch.uint8)
    place = swap.in_memory(2 * trace.most_live * size, size, ledger)
    place.groups = Stack(len(place.memory))
    return SwapManager(memory, Stack(trace.capacity), [place], threads=0, reuse=False, longest=1)


def _gathered(trace: Trace, size: int, ledger: Ledger) -> SwapManager:
    memory = torch.zeros(trace.capacity, size, dtype=torch.uint8)
    place = swap.in_memory(2 * trace.most_live * size, size, ledger)
    return Gathered(memory, Stack(trace.capacity), [place], threads=0, reuse=False)


def _replay(
    trace: Trace, make: Callable[[Trace, int, Ledger], SwapManager], size: int, step_s: float
) -> dict[str, Any]:
    """Do the moves of a trace, and check that every block holds what was written there."""
    manager = make(trace, size, Ledger({"dram": 1 << 40}))
    coming: dict[int, Ticket] = {}
    tokens: dict[int, int] = {}
    late: dict[int, int] = {}  # growth of those who are on their way
    runs: list[float] = []
    stall, switches = 0.0, 0
    same = True
    for step in trace.steps:
        began = time.perf_counter()
        for id in (*step.outs, *step.ends):
            if id in coming:
                coming.pop(id).wait()
        for id in step.outs:
            switches += 1
            least = [one for one in tokens if one not in step.outs and not manager.is_out(one)]
            manager.swap_out(id, tokens[id] // BLOCK, least)
        for id in step.ins:
            switches += 1
            coming[id] = manager.swap_in(id)
        stall += time.perf_counter() - began
        late |= step.grown
        for id in [one for one in late if one not in coming or coming[one].done()]:
            coming.pop(id, None)
            _grow(manager, id, tokens, late.pop(id))
        for id in step.ends:
            _grow(manager, id, tokens, late.pop(id, tokens[id]))
            same = same and _is_right(manager, id)
            blocks = manager.groups.blocks(id)
            runs.append(len(blocks) / len(manager.groups.runs(id)))
            manager.groups.free(id)
            manager.forget(id)
            del tokens[id]
        if step.outs or step.ins or step.grown:
            time.sleep(step_s)
    stats = manager.stats()
    manager.close()
    return {
        "stall_s": stall,
        "switches": switches,
        "copies_a_switch": stats.copies / max(1, switches),
        "out_bytes": stats.out_bytes,
        "in_bytes": stats.in_bytes,
        "conflicts": stats.conflicts,
        "blocks_a_run": sum(runs) / len(runs),
        "holds_the_same": same,
    }


def _grow(manager: SwapManager, id: int, tokens: dict[int, int], after: int) -> None:
    """Take blocks, and write into each whose it is and where it stands."""
    before = tokens.get(id, 0)
    more = -(-after // BLOCK) - len(manager.groups.blocks(id))
    if more > 0:
        manager.alloc(id, more)
    tokens[id] = after
    blocks = manager.groups.blocks(id)
    for at in range(-(-before // BLOCK), len(blocks)):
        manager._memory[blocks[at]] = _mark(id, at)


def _is_right(manager: SwapManager, id: int) -> bool:
    return all(
        int(manager._memory[block, 0]) == int(manager._memory[block, -1]) == _mark(id, at)
        for at, block in enumerate(manager.groups.blocks(id))
    )


def _mark(id: int, at: int) -> int:
    return (31 * id + 7 * at) % 251


# -- simulated --------------------------------------------------------------------------------


def _simulated(talks: int, seed: int, *, quick: bool) -> dict[str, Any]:
    """Return first tokens of a 7B model on an A100 behind PCIe 4."""
    trace = draw(talks, seed, scale=SCALE if quick else SIMULATED_SCALE, chunk=512)
    step_s = StepTime(MODEL, load_profile("a100-40gb"))
    size = BLOCK * MODEL.kv_bytes(1)
    found: dict[str, Any] = {
        OURS: _on_gpu(trace, step_s, size, _ours),
        "blockwise": _on_gpu(trace, step_s, size, _blockwise),
        "per_layer": _on_gpu(trace, step_s, size, _blockwise, copies=2 * MODEL.layers),
        "gathered": _on_gpu(trace, step_s, size, _gathered),
        "read_again": _on_gpu(trace, step_s, size, None),
    }
    ours = found[OURS]
    ours["ratio"] = {
        f"first_token_p99_s.{name}": ours["first_token_p99_s"] / way["first_token_p99_s"]
        for name, way in found.items()
        if name != OURS
    }
    return found


def _on_gpu(
    trace: Trace,
    step_s: StepTime,
    size: int,
    make: Callable[[Trace, int, Ledger], SwapManager] | None,
    copies: int = 1,
) -> dict[str, Any]:
    """Run a trace; blocks are handed out for real (of one byte), time is counted.

    Who is on the way back gets its token when it has arrived; moves of ours go beside the steps, on
    one link, one after the other; the others' take the step's time.
    """
    manager = None if make is None else make(trace, 1, Ledger({"dram": 1 << 40}))
    is_beside = make is _ours
    now = stall = 0.0
    tokens: dict[int, int] = {}
    asked: dict[int, float] = {}
    moves: list[Task] = []
    latest: dict[int, str] = {}  # of a conversation, its last move
    answers: list[tuple[float, float, str | None]] = []  # asked, computed, after which move
    for step in trace.steps:
        again: dict[int, int] = {}
        seconds = 0.0
        for id, is_out in (*((i, True) for i in step.outs), *((i, False) for i in step.ins)):
            if manager is None:
                again |= {} if is_out else {id: tokens[id]}
                continue
            before = manager.stats()
            if is_out:
                least = [one for one in tokens if one not in step.outs and not manager.is_out(one)]
                ticket = manager.swap_out(id, tokens[id] // BLOCK, least)
            else:
                ticket = manager.swap_in(id)
            ticket.wait()
            done = manager.stats().copies - before.copies
            dispatch_s, nbytes = copies * done * DISPATCH_S, ticket.nbytes * size
            if is_beside:
                latest[id] = f"move {len(moves)}"
                task = Task(
                    name=latest[id], on="link", seconds=dispatch_s, nbytes=nbytes, not_before=now
                )
                moves.append(task)
            else:
                seconds += dispatch_s + nbytes / LINK_BYTES_PER_S
        stall += seconds
        seconds += step_s(*_plan(step, tokens, again))
        for id in step.asked:
            asked[id] = now
        now += seconds
        answers += [(asked[id], now, latest.get(id)) for id in step.answered]
        for id, after in step.grown.items():
            if manager is not None:
                held = len(manager.groups.blocks(id))
                manager.alloc(id, max(0, -(-after // BLOCK) - held))
            tokens[id] = after
        for id in step.ends:
            if manager is not None:
                manager.groups.free(id)
                manager.forget(id)
            del tokens[id]
    if manager is not None:
        manager.close()
    link = EventSimulator([Link(name="link", bytes_per_s=LINK_BYTES_PER_S)]).run(moves)
    arrives = {span.task: span.end for span in link.spans}
    first = [max(end, arrives.get(move or "", 0.0)) - begin for begin, end, move in answers]
    return {
        "first_token_p50_s": percentile(first, 0.5),
        "first_token_p99_s": percentile(first, 0.99),
        "stall_s": stall,
        "whole_s": now,
    }


def _plan(
    step: Step, tokens: Mapping[int, int], again: Mapping[int, int]
) -> tuple[StepPlan, dict[str, Request]]:
    """Return a step as the roofline reads it: what is read again is read as prompts are."""
    live, prefill, decode = {}, [], []
    for id, after in step.grown.items():
        before = tokens.get(id, 0)
        lost, name = again.get(id, 0), str(id)
        count = after - before + lost
        live[name] = Request(
            id=name, prompt_tokens=after, new_tokens=1, kv_bytes=0, prefilled=before - lost
        )
        if count == 1:
            decode.append(name)
        else:
            prefill.append((name, count))
    return StepPlan(decode=tuple(decode), prefill=tuple(prefill)), live


# -- turns ------------------------------------------------------------------------------------


def _turns(context: Context, history: int, rounds: int) -> dict[str, Any]:
    """Ask second questions of conversations that were put out meanwhile; or read them again."""
    talks = 4
    ids: list[int] = []
    whole = history + 2 * FOLLOW_UP + 16
    found: dict[str, Any] = {}
    said: dict[str, list[list[int]]] = {}
    ways = {
        OURS: SwapRoom(memory_bytes=1 << 30),
        "to_disk": SwapRoom(disk_bytes=1 << 30, folder=context.folder / ".swap"),
        "read_again": SwapRoom(),
    }
    for done, (name, room) in enumerate(ways.items()):
        context.progress(f"turns, {name}", done, len(ways))
        times: list[float] = []
        reused = 0
        for _ in range(rounds):
            with _engine(context, whole, room) as batch:
                ids = ids or _ids(batch, talks * (history + FOLLOW_UP))
                said[name] = []
                for talk in range(talks):  # the pool holds one and a half of them
                    start = talk * (history + FOLLOW_UP)
                    prompt = tuple(ids[start : start + history])
                    said[name].append(_say(batch, prompt)[0])
                for talk in range(talks):
                    start = talk * (history + FOLLOW_UP)
                    before = (*ids[start : start + history], *said[name][talk])
                    question = ids[start + history : start + history + FOLLOW_UP]
                    answer, end = _say(batch, (*before, *question))
                    said[name].append(answer)
                    if talk < talks - 1:  # the last one may still be there
                        times.append(end.first_token_s)
                        reused += end.reused_tokens
        found[name] = {
            "second_first_token_s": percentile(times, 0.5),
            "reused_tokens": reused / rounds,
        }
    for name in found:
        found[name]["says_the_same"] = said[name] == said["read_again"]
    ours = found[OURS]
    ours["ratio"] = {
        f"second_first_token.{name}": ours["second_first_token_s"] / way["second_first_token_s"]
        for name, way in found.items()
        if name != OURS
    }
    return found


def _engine(context: Context, tokens: int, room: SwapRoom) -> Batch:
    from loci.models.load import spec_of

    spec = spec_of(context.model, context.folder)[0]
    plan = make_plan(
        context.model,
        dram="4GiB",
        disk="2GiB",
        context=tokens,
        new_tokens=16,
        kv="",
        kv_bytes=int(1.5 * spec.kv_bytes(tokens, 4.0)),
        folder=context.folder,
        cache=context.folder / ".cache",
    )
    return Batch(plan, folder=context.folder, scheduler=OURS, rows=4, swap=room)


def _ids(batch: Batch, count: int) -> list[int]:
    ids = batch.tokenizer.encode(texts.prose()[: 12 * count])[:count]
    if len(ids) < count:
        raise ParameterError("the text is too short", value=len(ids), allowed=f">= {count}")
    return list(ids)


def _say(batch: Batch, ids: tuple[int, ...]) -> tuple[list[int], Any]:
    ticket = batch.submit(Ask(ids=ids, max_tokens=8, goes_on=True))
    end = ticket.wait(LONG_S)
    if end.error is not None:
        raise end.error
    return [id for piece in ticket for id in piece.ids], end

"""Conversations that take turns in too little memory: a trace of moves, and rivals that do them.

The trace is drawn once and is the same for everybody: in which step who is put out, brought back,
grows and ends. Lengths are those of ShareGPT (log-normal fits), scaled; priorities change every so
many steps, at random, as in FastSwitch's paper (arXiv:2411.18424).
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from loci.errors import BudgetError
from loci.tiers.groups import BlockGroups
from loci.tiers.swap import Pair, Place, SwapManager, Ticket

PROMPTS, ANSWERS = (7.01, 1.63, 8192), (5.77, 1.00, 2048)  # log-normal, at most; in tokens
TURNS = (3, 8)
FOLLOW_UP = 0.25  # a later question by the first one, in tokens
THINKING = 40.0  # steps between an answer and the next question, in the mean
BLOCK = 16


@dataclass
class Talk:
    """One conversation: (question, answer) tokens of its turns, and where it stands."""

    turns: list[tuple[int, int]]
    due: int  # the step its next question comes
    tokens: int = 0
    wanted: int = 0  # tokens at the end of the turn under way; 0 between turns
    first: int = 0  # tokens when its first new token is there
    is_out: bool = False


@dataclass
class Step:
    """What happens in one step, in this order.

    Attributes:
        outs, ins, ends: conversations. grown: {conversation: tokens after it}.
        asked: questions that came; answered: first tokens of an answer.
    """

    outs: list[int] = field(default_factory=list)
    ins: list[int] = field(default_factory=list)
    grown: dict[int, int] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """Steps, and the blocks of the pool they fit."""

    steps: list[Step]
    capacity: int
    most_live: int  # blocks of all conversations together, at most


def draw(
    talks: int, seed: int, *, scale: float, every: int = 25, share: float = 1 / 3, chunk: int = 128
) -> Trace:
    """Return a trace of conversations whose pool holds `share` of what is alive at most."""
    endless = _steps(_talks(talks, seed, scale), 1 << 40, seed, every, chunk)
    live: dict[int, int] = {}
    most = now = 0
    for step in endless:
        for talk, tokens in step.grown.items():
            now += _blocks(tokens) - _blocks(live.get(talk, 0))
            live[talk] = tokens
        for talk in step.ends:
            now -= _blocks(live.pop(talk))
        most = max(most, now)
    longest = max(sum(map(sum, talk.turns)) for talk in _talks(talks, seed, scale))
    capacity = max(int(share * most), _blocks(longest + every))
    return Trace(_steps(_talks(talks, seed, scale), capacity, seed, every, chunk), capacity, most)


def _talks(count: int, seed: int, scale: float) -> list[Talk]:
    dice, found, due = random.Random(seed), [], 0.0

    def length(fit: tuple[float, float, int], by: float) -> int:
        mean, deviation, most = fit
        return max(2, round(by * min(most, dice.lognormvariate(mean, deviation))))

    for _ in range(count):
        turns = []
        for number in range(dice.randint(*TURNS)):
            question = length(PROMPTS, scale * (FOLLOW_UP if number else 1))
            turns.append((question, length(ANSWERS, scale)))
        due += dice.expovariate(1 / 10)
        found.append(Talk(turns, round(due)))
    return found


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def _steps(talks: list[Talk], capacity: int, seed: int, every: int, chunk: int) -> list[Step]:
    dice = random.Random(seed + 1)
    steps: list[Step] = []
    alive = dict(enumerate(talks))
    running: list[int] = []
    while alive:
        now, step = len(steps), Step()
        for id, talk in alive.items():
            if talk.turns and not talk.wanted and talk.due <= now:
                question, answer = talk.turns.pop(0)
                talk.first = talk.tokens + question + 1
                talk.wanted = talk.tokens + question + answer
                step.asked.append(id)
        if now % every == 0:
            asking = [id for id, talk in alive.items() if talk.wanted]
            dice.shuffle(asking)
            running = _fit(asking, alive, capacity, every)
        here = {id for id, talk in alive.items() if talk.tokens and not talk.is_out}
        need = sum(_blocks(_soon(alive[id], every)) for id in running)
        # Who thinks stays while there is room, the smallest first.
        for id in sorted(here - set(running), key=lambda i: alive[i].tokens):
            need += _blocks(alive[id].tokens)
            if need > capacity:
                step.outs.append(id)
                alive[id].is_out = True
        room = chunk
        for id in running:
            talk = alive[id]
            if talk.is_out:
                step.ins.append(id)
                talk.is_out = False
            before = talk.tokens
            if talk.tokens < talk.first - 1:
                taken = min(room, talk.first - 1 - talk.tokens)
                room -= taken
                talk.tokens += taken
            else:
                talk.tokens += 1
            if talk.tokens > before:
                step.grown[id] = talk.tokens
            if before < talk.first == talk.tokens:
                step.answered.append(id)
            if talk.tokens >= talk.wanted:
                talk.wanted = 0
                talk.due = now + 1 + round(dice.expovariate(1 / THINKING))
                if not talk.turns:
                    step.ends.append(id)
        running = [id for id in running if alive[id].wanted]  # a next question waits for its turn
        for id in step.ends:
            del alive[id]
        steps.append(step)
    return steps


def _soon(talk: Talk, every: int) -> int:
    """Return the tokens a conversation may have at the next change of priorities."""
    return min(talk.wanted, max(talk.tokens, talk.first) + every)


def _fit(asking: Sequence[int], alive: dict[int, Talk], capacity: int, every: int) -> list[int]:
    chosen, need = [], 0
    for id in asking:
        more = _blocks(_soon(alive[id], every))
        if need + more <= capacity:
            chosen.append(id)
            need += more
    return chosen


# -- rivals -----------------------------------------------------------------------------------


class Stack(BlockGroups):
    """Single blocks from a stack of free ones, as a paged cache hands them out."""

    def __init__(self, count: int) -> None:
        super().__init__(count, first=0, most=0)
        self._stack = list(reversed(range(count)))
        self._mine: dict[Hashable, list[int]] = {}

    @property
    def used(self) -> int:
        return self.count - len(self._stack)

    @property
    def unused(self) -> int:
        return len(self._stack)

    def blocks(self, owner: Hashable) -> list[int]:
        return list(self._mine.get(owner, ()))

    def alloc(self, owner: Hashable, count: int) -> list[int]:
        if count > len(self._stack):
            raise BudgetError(f"{count} blocks are needed, {len(self._stack)} are free")
        found = [self._stack.pop() for _ in range(count)]
        self._mine.setdefault(owner, []).extend(found)
        return found

    def free(self, owner: Hashable, count: int | None = None) -> list[int]:
        held = self._mine.get(owner, [])
        rest = 0 if count is None else len(held) - count
        gone = held[rest:]
        del held[rest:]
        self._stack += reversed(gone)
        if count is None:
            self._mine.pop(owner, None)
        return gone

    def check_integrity(self) -> None:
        held = [block for blocks in self._mine.values() for block in blocks]
        assert sorted([*held, *self._stack]) == list(range(self.count))


class Gathered(SwapManager):
    """One gather of all blocks into a buffer, then copies of runs; the caller waits."""

    def _move(
        self, pairs: Sequence[Pair], place: Place, before: Sequence[Ticket], *, is_out: bool
    ) -> Ticket:
        here = torch.tensor([h + i for h, _, n in pairs for i in range(n)])
        there = torch.tensor([t + i for _, t, n in pairs for i in range(n)])
        nbytes = len(here) * self.block_bytes
        mine, its = (self._memory, here), (place.memory, there)
        (source, read), (target, written) = (mine, its) if is_out else (its, mine)
        target[written] = source.index_select(0, read)
        ticket = Ticket(nbytes, 2)
        self._sums.copies += 2
        if is_out:
            self._sums.out_bytes += nbytes
        else:
            self._sums.in_bytes += nbytes
        return ticket

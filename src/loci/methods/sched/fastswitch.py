"""FastSwitch: fairness between users by putting requests out and bringing them back.

"FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving", 2024,
arXiv:2411.18424 (abstract and digests); counters of Y. Sheng et al., OSDI 2024 (VTC).

When more is asked for than fits, first come first served lets whoever came early keep the others
waiting. Here priorities change every 1 / f steps, and those with the highest ones run:

    running = the best by priority whose KV, grown until the next change, fits together

The others are put out, and come back when their turn is. What makes that cheap is below the
scheduler: blocks in runs, threads that copy, copies that stay valid (`loci.tiers.groups`,
`loci.tiers.swap`). Between two changes nobody is put out, unless the budget itself shrinks;
whoever came back, or is being read, gets a token before it may go (again).

    vtc     a user's priority is minus the tokens it was served: 1 a prompt token, 2 a token
            generated; who comes anew starts at the least of those who are there
    asked   what the request says
    random  drawn anew at each change, as in the paper's traces

Differs from the paper: the policy is VTC unless another is named; prompts are cut in chunks.
Not for: requests that all fit; it then does what first come, first served does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.methods.sched.base import Request, Sched, SchedView, StepPlan

PROMPT_WEIGHT, NEW_WEIGHT = 1, 2  # of a token, as VTC counts


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Whose turn it is.

    Attributes:
        step: since somebody was there. running: ids, the most important first.
        served: (user, weighted tokens), also of those who left ahead of the others.
        users: who was there in the last step.
        fresh: ids that came back, or began to be read, and got no token since.
    """

    step: int = 0
    running: tuple[str, ...] = ()
    served: tuple[tuple[str, int], ...] = ()
    users: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FastSwitch(Sched):
    """The highest priorities run; they change every few steps, and the rest is put out."""

    about = About(
        name="fastswitch",
        kind=Kind.SCHED,
        paper="arXiv:2411.18424",
        idea="turns between users, made cheap by moving long runs of blocks beside the work",
        phases=(Phase.PREFILL, Phase.DECODE),
        frees=Frees.NOTHING,
        lossy=False,
    )
    swaps: ClassVar[bool] = True

    every: Annotated[int, Param(help="between two changes of priorities", unit="steps", ge=1)] = 25
    chunk: Annotated[int, Param(help="tokens a step processes at most", unit="tokens", ge=1)] = 128
    policy: Annotated[str, Param(help="of priorities", choices=("vtc", "asked", "random"))] = "vtc"

    def start(self) -> Turns:
        """Nobody has had a turn."""
        return Turns()

    def choose(self, view: SchedView, state: Turns) -> tuple[StepPlan, Turns]:
        served = self._lifted(view, state)
        refuse = tuple(r.id for r in view.requests if r.kv_bytes > view.budget_bytes)
        known = {r.id: r for r in view.requests if r.id not in refuse}
        ordered = self._ordered(list(known.values()), served, state)
        running = self._running(view, state, known, ordered)
        here = [r for r in known.values() if r.where in ("here", "coming")]
        swap_out = tuple(r.id for r in here if r.where == "here" and r.id not in running)
        # Who leaves does so after this step, and its room is free in the next one.
        room = view.budget_bytes - sum(view.bytes_of(r, r.stored) for r in here)
        decode, swap_in, begin = [], [], []
        for id in running:
            request = known[id]
            wanted = request.prompt_tokens
            if request.where == "out":
                wanted = request.stored
            elif request.is_decoding:
                wanted = request.stored + 1
            held = view.bytes_of(request, request.stored) if request.where == "here" else 0
            need = view.bytes_of(request, max(wanted, request.stored)) - held
            if request.where == "coming" or need > room:
                continue
            room -= need
            if request.where == "out":
                swap_in.append(id)
            elif request.is_decoding:
                decode.append(id)
            else:
                begin.append(request)
        prefill = self._prompts(begin, len(decode))
        ran = dict(prefill) | dict.fromkeys(decode, 0)
        for id, tokens in ran.items():
            served[known[id].user] += PROMPT_WEIGHT * tokens or NEW_WEIGHT
        begun = dict.fromkeys((*state.fresh, *swap_in, *dict(prefill)))
        fresh = tuple(id for id in begun if id in known and id not in decode)
        plan = StepPlan(
            decode=tuple(decode),
            prefill=prefill,
            swap_out=swap_out,
            swap_in=tuple(swap_in),
            refuse=refuse,
        )
        after = Turns(
            step=state.step + 1 if known else 0,
            running=running,
            served=self._kept(served, {r.user for r in known.values()}),
            users=tuple(dict.fromkeys(r.user for r in known.values())),
            fresh=fresh,
        )
        return plan, after

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """A scheduler holds nothing; what requests hold is the KV cache's affair."""
        return Cost()

    def _lifted(self, view: SchedView, state: Turns) -> dict[str, int]:
        """Return what everybody was served; who comes anew has no claim on the past."""
        served = dict(state.served)
        there = [user for user in state.users if any(r.user == user for r in view.requests)]
        least = min((served[user] for user in there), default=0)
        for request in view.requests:
            if request.user not in state.users:
                served[request.user] = max(served.get(request.user, 0), least)
        return served

    def _kept(self, served: Mapping[str, int], there: set[str]) -> tuple[tuple[str, int], ...]:
        """Leave those out who are gone and would start at the least anyway."""
        least = min((served[user] for user in there), default=0)
        return tuple((user, n) for user, n in served.items() if user in there or n > least)

    def _ordered(
        self, requests: list[Request], served: Mapping[str, int], state: Turns
    ) -> list[Request]:
        """Return requests, the most important first; among equals who came first."""
        turn = state.step // self.every

        def weight(request: Request) -> int:
            if self.policy == "vtc":
                return served[request.user]
            if self.policy == "asked":
                return -request.priority
            drawn = hashlib.blake2b(f"{turn} {request.id}".encode(), digest_size=4).digest()
            return int.from_bytes(drawn, "big")

        return sorted(requests, key=weight)

    def _running(
        self,
        view: SchedView,
        state: Turns,
        known: Mapping[str, Request],
        ordered: Sequence[Request],
    ) -> tuple[str, ...]:
        """Return who runs until the next change: the best that fit, or who did and more."""
        ahead = self.every - state.step % self.every
        must = [known[id] for id in state.fresh if id in known]
        must += [r for r in known.values() if r.where == "coming" and r.id not in state.fresh]
        stays = [] if ahead == self.every else [known[id] for id in state.running if id in known]
        chosen: dict[str, None] = {}
        room = view.budget_bytes
        for request in (*must, *stays, *ordered):
            tokens = max(request.stored, request.prompt_tokens) + ahead
            need = view.bytes_of(request, tokens)
            if request.id in chosen or need > room or len(chosen) >= view.max_rows:
                continue
            chosen[request.id] = None
            room -= need
        return tuple(chosen)

    def _prompts(self, begun: Sequence[Request], decoding: int) -> tuple[tuple[str, int], ...]:
        room = max(1, self.chunk - decoding)  # a full step of decoding must not starve prompts
        parts = []
        for request in begun:
            tokens = min(room, request.prompt_tokens - request.prefilled)
            if tokens:
                parts.append((request.id, tokens))
            room -= tokens
        return tuple(parts)

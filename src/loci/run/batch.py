"""Many requests on one model: they join and leave between steps, and share every step.

G.-I. Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI
2022. A scheduler of `loci.methods.sched` says what each step does; this carries it out.

One thread owns the model. Requests are submitted, cancelled and read from any other. A request is
admitted when the keys and values of its longest possible end fit beside those of all others, so
none runs out of memory later; until then it waits, and when too many wait it is refused and told
when to come back. What a request leaves behind serves later ones that begin alike, until the room
is needed or it is old.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar  # a scheduler's state is its own

import torch
from torch import Tensor

from loci.core.event import Event, Events
from loci.core.ledger import Lease, Ledger
from loci.errors import (
    BudgetError,
    ContextError,
    LociError,
    OverloadError,
    ParameterError,
)
from loci.methods import catalogue
from loci.methods.sched.base import Sched, SchedView, StepPlan
from loci.run import cubes, warm
from loci.run.adapters import Adapter
from loci.run.grammars import Grammars
from loci.run.live import Live
from loci.run.parts import Parts
from loci.run.prefill import Prefiller
from loci.run.prefixes import BLOCK, Chain
from loci.run.requests import Ask, End, Odds, Piece, Reason, Ticket
from loci.run.sampling import choose
from loci.run.steps import Steps
from loci.run.stores import PagedStores, SwapRoom
from loci.run.warm import Warm
from loci.run.words import Words
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.plan.solve import Plan

ROWS = 16  # requests that decode together; more than the kernels' few rows cost a step of their own
WAITING = 64  # requests that may wait
KEEP_S = 300.0  # how long what a request left behind is kept
SCHEDULER = "fcfs(chunk=128)"
MAX_LOGPROBS = 20
_SMOOTH = 0.1  # weight of the newest step in the mean time of a step

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much there is to do, and what was done since the start.

    Attributes:
        kv_bytes: of running requests; kept_bytes: of what others left behind; most_kv_bytes: what
            both may take together now.
        step_s: mean seconds of a step of late.
        new_tokens: of requests that have ended; made_tokens: of those that run, too.
        ended: {reason: requests}.
        out: running requests that were put out; swapped_bytes: in the places for those.
    """

    running: int
    waiting: int
    kv_bytes: int
    kept_bytes: int
    most_kv_bytes: int
    step_s: float
    steps: int
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    made_tokens: int
    refused: int
    ended: dict[str, int]
    out: int = 0
    swapped_bytes: int = 0


class Batch:
    """One model inside one budget, for many. Use it in a `with` statement.

    Args:
        plan: what `loci.plan` returned; its context is the most one request may take. What the
            plan leaves of the budget holds further requests.
        folder: where models are kept.
        scheduler: a method of `loci.methods.sched`, or its name.
        rows: requests that decode together at most; fewer where the budget is small.
        waiting: requests that may wait.
        each: requests of one scope that may run or wait; None is as many as of all.
        keep_s: how long keys and values of ended requests are kept for others that begin alike.
        paged: keys and values lie in mapped blocks, see `loci.run.kv_paged`. None takes them where
            the budget does not hold the longest request in every row, so that what begins alike
            is there once, and where the scheduler swaps; elsewhere requests have a piece each,
            which the system maps in larger pages and a step reads faster.
        swap: where a scheduler that swaps puts requests out to; without room there, what they
            hold is read again.
        idle_s: after so long without a request the weights leave the memory, until the next one
            comes; their room in the budget is given to nobody else. None keeps them.
        adapter: stands beside the weights for all requests.
        warm: a file in which `close` leaves what was read, for the next engine of this model; what
            an earlier one left there is taken. `notes` has what became of it.
        events: told of reservations, answers and refusals.

    Raises:
        BudgetError: if what is really there needs more than the plan's budget.
        FingerprintError: if the model is not the one the plan was made for, or the adapter is of
            another.
        MethodError: if mapped blocks are wanted and cannot be had.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        folder: Path,
        scheduler: Sched | str = SCHEDULER,
        rows: int = ROWS,
        waiting: int = WAITING,
        each: int | None = None,
        keep_s: float = KEEP_S,
        paged: bool | None = None,
        swap: SwapRoom | None = None,
        idle_s: float | None = None,
        adapter: Adapter | None = None,
        warm: Path | None = None,
        events: Events | None = None,
        progress: Progress | None = None,
    ) -> None:
        if idle_s is not None and idle_s < 0:
            raise ParameterError("idle_s must be >= 0", value=idle_s)
        if rows < 1 or waiting < 0 or keep_s < 0 or (each is not None and each < 1):
            raise ParameterError(
                "rows and each must be >= 1, waiting and keep_s >= 0",
                value=(rows, each, waiting, keep_s),
            )
        self.plan, self.events = plan, events or Events()
        self.ledger = Ledger(plan.budget.limits(), self.events)
        self.scheduler = _scheduler(scheduler)
        self.waiting, self.each, self.keep_s, self.idle_s = waiting, each, keep_s, idle_s
        self.notes: list[str] = []
        self._warm = warm
        self._state: Any = self.scheduler.start()
        self._live: dict[str, Live] = {}  # in the order they came
        self._arrived: list[Live] = []
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._number = 0
        self._step_s, self._steps, self._refused, self._made = 0.0, 0, 0, 0
        self._tokens: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._parts = Parts(
            plan,
            folder=folder,
            ledger=self.ledger,
            events=self.events,
            scheduler=self.scheduler,
            rows=rows,
            keep_s=keep_s,
            paged=paged,
            swap=swap or SwapRoom(),
            adapter=adapter,
            progress=progress,
        )
        parts = self._parts
        self.spec, self.tokenizer, self.rows = parts.spec, parts.tokenizer, parts.rows
        self.runner, self.stores, self.adapters = parts.runner, parts.stores, parts.adapters
        self.grammars = Grammars(self.tokenizer, self.reserve)
        self._lots = Steps(parts, self._next)
        try:
            self._warm_up()
        except BaseException:
            self._give_back()
            raise
        self._idle_from = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="loci-engine", daemon=True)
        self._thread.start()

    # -- for everybody ------------------------------------------------------------------------

    def submit(self, ask: Ask) -> Ticket:
        """Take a request, and return the ticket on which its answer arrives.

        Raises:
            ParameterError: if the prompt is empty, or something in the request is not possible.
            ContextError: if prompt and answer are longer than the plan's context.
            BudgetError: if its keys and values would not fit even alone.
            OverloadError: if too many wait already.
        """
        live = self._checked(ask)
        with self._changed:
            if self._closing:
                raise OverloadError("this server is stopping", retry_after_s=10.0)
            there = [*self._live.values(), *self._arrived]
            queue = sum(one.store is None for one in there)
            if len(there) >= self.rows + self.waiting:
                raise self._refusal(
                    "too many requests wait already", queue, f"{self.waiting} that wait"
                )
            own = sum(one.ask.scope == ask.scope for one in there)
            if self.each is not None and own >= self.each:
                raise self._refusal(
                    "too many requests of yours run or wait already", own, f"{self.each} of one"
                )
            self._arrived.append(live)
            self._changed.notify_all()
        return live.ticket

    def reserve(self, owner: str, nbytes: int, kind: str = "index") -> Lease:
        """Take memory of the budget for something beside the model; keeps are dropped for it.

        Raises:
            OverloadError: if running requests hold too much of it.
            BudgetError: if it does not fit at all.
        """

        def take() -> Lease:
            self.stores.make_room(nbytes)
            try:
                given = self.stores.promised(self._live.values()) + self.stores.aside
                if nbytes > self.ledger.free("dram") - given:
                    raise BudgetError(f"{owner} needs {format_bytes(nbytes)}")
                return self.ledger.reserve(owner, "dram", nbytes, kind)
            except BudgetError as error:
                if nbytes > self.stores.most():
                    raise
                raise OverloadError(
                    f"{owner} needs {format_bytes(nbytes)}, which running requests hold",
                    way_out=f"ask again in {math.ceil(self._wait_s())} s",
                    retry_after_s=self._wait_s(),
                ) from error

        return self.between_steps(take)

    def between_steps(self, job: Callable[[], Result]) -> Result:
        """Have the engine's thread do something between two steps, and return what it returned."""
        if threading.current_thread() is self._thread:
            return job()
        done: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise OverloadError("this server is stopping", retry_after_s=10.0)
            self._jobs.append((job, done))
            self._changed.notify_all()
        return done.result()

    def lend(self, cube: Path, ids: Sequence[int], *, scope: str) -> bool:
        """See to it that requests of a scope begin with a cube's keys and values.

        What is there already, as a request left it or still holds it, is taken as it is. Where
        there is no room nothing gives way, and the text is read like any other.

        Args:
            ids: the tokens that the cube holds keys and values of.

        Returns:
            whether it was taken from the file now.

        Raises:
            MethodError: if the cache is not exact.
            FormatError, FingerprintError: if the cube is damaged, or not for this engine.
        """
        chain = Chain(scope)
        chain.extend(ids)

        def take() -> bool:
            whole = BLOCK * len(chain.hashes)
            there = [one.chain for one in self.stores.kept]
            there += [one.chain for one in self._live.values() if one.store is not None]
            if any(chain.shared(one) == whole for one in there):
                return False
            try:
                cubes.lend(self.stores, cube, self.tokenizer, scope=scope)
            except BudgetError:
                return False
            return True

        return self.between_steps(take)

    def forget_kept(self) -> None:
        """Drop what was read for others to use: something in it must be found nowhere any more."""

        def drop() -> None:
            self.stores.forget()
            for live in self._live.values():
                live.is_secret = True

        try:
            self.between_steps(drop)
        except OverloadError:  # it is ending, and leaves nothing to the next one
            self._warm = None

    @property
    def is_running(self) -> bool:
        """Whether the engine's thread is there to answer."""
        return self._thread.is_alive()

    def load(self) -> Load:
        """Return how much there is to do now."""
        with self._changed:
            live = [*self._live.values()]
            arrived = len(self._arrived)
        running = [one for one in live if one.store is not None]
        return Load(
            running=len(running),
            waiting=len(live) - len(running) + arrived,
            kv_bytes=sum(one.kv_bytes for one in running),
            kept_bytes=self.stores.kept_bytes(),
            most_kv_bytes=self.stores.most(),
            step_s=self._step_s,
            steps=self._steps,
            prompt_tokens=self._tokens["prompt"],
            reused_tokens=self._tokens["reused"],
            new_tokens=self._tokens["new"],
            made_tokens=self._made,
            refused=self._refused,
            ended=dict(self._ended),
            out=sum(self.stores.is_out(one) for one in running),
            swapped_bytes=self.stores.swapped_bytes(),
        )

    def retry_after_s(self) -> float:
        """Return in how many seconds, by what runs now, the next request will have ended."""
        with self._changed:
            return self._wait_s()

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let those that run end within `drain_s`, and give all back.

        What is unfinished then is told that it was cancelled. Closing twice does nothing.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._live and not self._arrived, drain_s)
            for live in (*self._live.values(), *self._arrived):
                live.ticket.is_cancelled = True
            self._changed.notify_all()
        self._thread.join()
        self._leave_warm()
        self._give_back()
        self.ledger.check_integrity()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- private: asking ------------------------------------------------------------------------

    def _checked(self, ask: Ask) -> Live:
        """Return a request that could run, or say why it never can."""
        vocab, context = self.spec.vocab, self.plan.workload.context
        if not ask.ids:
            raise ParameterError("the prompt is empty", way_out="say something")
        bad = next((i for i in ask.ids if not isinstance(i, int) or not 0 <= i < vocab), None)
        if bad is not None:
            raise ParameterError("this is no token id", value=bad, allowed=f"0 to {vocab - 1}")
        if ask.max_tokens is not None and ask.max_tokens < 1:
            raise ParameterError("max_tokens must be >= 1", value=ask.max_tokens)
        if ask.logprobs is not None and not 0 <= ask.logprobs <= MAX_LOGPROBS:
            raise ParameterError(
                "so many likely tokens are not told",
                value=ask.logprobs,
                allowed=f"0 to {MAX_LOGPROBS}",
            )
        need = len(ask.ids) + (ask.max_tokens or 1)
        if need > context:
            raise ContextError(
                f"prompt and answer take {need:,} tokens; the context holds {context:,}",
                allowed=f"at most {context - (ask.max_tokens or 1):,} prompt tokens",
                way_out=f"shorten them, or serve with --context {need}",
            )
        room = ask.max_tokens or min(self.plan.workload.new_tokens, context - len(ask.ids))
        kv_bytes = self.stores.bytes_for(len(ask.ids) + room)
        most = self.stores.most()
        if kv_bytes > most:
            raise BudgetError(
                f"keys and values of {len(ask.ids) + room:,} tokens need {format_bytes(kv_bytes)}; "
                f"the budget leaves {format_bytes(most)} ({format_bytes(kv_bytes - most)} short)",
                way_out="ask for fewer max_tokens, or serve with a larger --dram",
            )
        guide = None if ask.schema is None else self.grammars.of(ask.schema).guide(room)
        with self._changed:
            self._number += 1
            number = self._number
        chain = Chain(ask.scope)
        chain.extend(ask.ids)
        return Live(
            ticket=Ticket(f"r{number}", ask, self._wake),
            ids=list(ask.ids),
            prompt=len(ask.ids),
            room=room,
            kv_bytes=kv_bytes,
            chain=chain,
            words=Words(self.tokenizer.stream(), ask.stop),
            generator=ask.sampling.generator(),
            guide=guide,
            came_s=time.monotonic(),
        )

    def _wait_s(self) -> float:
        """Return when the next running request ends at the latest, by the steps of late."""
        left = [live.room - live.generated for live in self._live.values() if live.store]
        return max(1.0, min(left, default=1) * self._step_s)

    def _refusal(self, what: str, value: int, allowed: str) -> OverloadError:
        """Return the error for a request that must come back, and tell of it."""
        wait_s = self._wait_s()
        self._refused += 1
        self.events.emit(Event(name="run.refuse", data={"retry_after_s": wait_s}))
        return OverloadError(
            what,
            value=value,
            allowed=allowed,
            way_out=f"ask again in {math.ceil(wait_s)} s",
            retry_after_s=wait_s,
        )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- private: the engine's thread -----------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._live or self._jobs or self._closing):
                    self._changed.wait(self._until_due())
                    if self._until_due() == 0.0:
                        break
                for live in self._arrived:
                    self._live[live.ticket.id] = live
                self._arrived.clear()
                jobs, self._jobs = self._jobs, []
                if self._closing and not self._live and not jobs:
                    return
            for job, done in jobs:
                try:
                    done.set_result(job())
                except BaseException as error:  # belongs to whoever asked for it
                    done.set_exception(error)
            self.stores.drop_old()
            if self._until_rest() == 0.0 and not self._live:
                self._parts.rest()
            for live in [one for one in self._live.values() if one.ticket.is_cancelled]:
                self._finish(live, "cancelled")
            if self._live:
                try:
                    if self._parts.is_resting:
                        self._parts.wake()
                    self._step()
                except (
                    Exception
                ) as error:  # a scheduler that fails must not leave everybody waiting
                    self._state = self.scheduler.start()
                    self._fail(list(self._live.values()), _internal(error))
            with self._changed:
                self._changed.notify_all()  # whoever waits for the end of all

    def _until_due(self) -> float | None:
        """Return in how many seconds something is to be done without a request; None for never."""
        due = [self.stores.until_old(), self._until_rest()]
        return min((seconds for seconds in due if seconds is not None), default=None)

    def _until_rest(self) -> float | None:
        if self.idle_s is None or self._parts.is_resting:
            return None
        return max(0.0, self._idle_from + self.idle_s - time.monotonic())

    def _step(self) -> None:
        """Ask the scheduler, and do what it says."""
        began = time.perf_counter()
        view = SchedView(
            requests=tuple(live.seen(self.stores.where(live)) for live in self._live.values()),
            budget_bytes=self.stores.most(),
            max_rows=self.rows,
            layers=self.spec.layers,
            token_bytes=self.stores.token_bytes,
            block_tokens=self.stores.block_tokens,
        )
        plan, self._state = self.scheduler.choose(view, self._state)
        for id in plan.refuse:
            live = self._live[id]
            error = OverloadError(
                f"its keys and values need {format_bytes(live.kv_bytes)}; "
                f"{format_bytes(self.stores.most())} are left beside what else is in memory",
                retry_after_s=self._wait_s(),
            )
            self._finish(live, "failed", error)
        involved = [self._live[id] for id, _ in plan.prefill]
        involved += [self._live[id] for id in plan.decode]
        try:
            self._carry_out(plan)
        except LociError as error:
            self._fail(involved, error)
        except Exception as error:  # the thread outlives whatever a step meets; they are told
            self._fail(involved, _internal(error))
        took = time.perf_counter() - began
        self._steps += 1
        self._step_s = took if self._steps == 1 else self._step_s + _SMOOTH * (took - self._step_s)

    def _fail(self, involved: Sequence[Live], error: LociError) -> None:
        for live in involved:
            if live.ticket.end is None:
                self._finish(live, "failed", error)

    def _carry_out(self, plan: StepPlan) -> None:
        if plan.swap_in:
            self._bring_back(plan)
        decode = [self._live[id] for id in plan.decode]
        prompts = [(self._live[id], tokens) for id, tokens in plan.prefill]
        begun = [(live, tokens) for live, tokens in prompts if self._begin(live)]
        self._lots.run(decode, begun, plan.prefill_layers, by=str(self.scheduler))
        if plan.swap_out:
            self._put_out(plan)
        elif plan.is_idle and isinstance(self.stores, PagedStores):
            self.stores.wait(one for one in self._live.values() if self._is_coming(one))

    def _is_coming(self, live: Live) -> bool:
        return self.stores.where(live) == "coming"

    # -- private: tokens ------------------------------------------------------------------------

    def _next(self, live: Live, logits_1V: Tensor) -> None:
        """Take the next token of a request, give out its text, and end it where it ends."""
        ask, guide = live.ask, live.guide
        if guide is not None:
            allowed_V = torch.from_numpy(guide.mask(logits_1V.shape[-1]))
            logits_1V = logits_1V.masked_fill(~allowed_V, -math.inf)
        token = int(choose(logits_1V, ask.sampling, live.generator)[0])
        tokens = [token]
        if guide is not None and self.adapters.reader:
            guide.feed(token)  # forced text cut into tokens of its own is not what it was taught
        elif guide is not None:
            tokens = self.grammars.follow(guide, token)
        odds = () if ask.logprobs is None else self._odds(tokens, logits_1V[0], ask.logprobs)
        if live.first_s is None:
            live.first_s = time.monotonic()
        is_end = token in self.tokenizer.eos_ids and not ask.goes_on
        live.generated += len(tokens)
        self._made += len(tokens)
        live.ids += tokens
        live.pending = tokens
        text = "" if is_end else live.words.feed(tokens)
        is_full = live.generated >= live.room or (guide is not None and guide.done)
        reason: Reason | None = None
        if live.words.stopped_by is not None:
            reason = "stop"
        elif is_end or (guide is not None and guide.done and guide.complete):
            reason = "end"
        elif is_full:
            reason = "length"
        if reason in ("end", "length"):
            text += live.words.end()
            if live.words.stopped_by is not None:
                reason = "stop"
        shown = tuple(tokens) if not is_end else ()
        if text or shown:
            live.ticket.add(Piece(text=text, ids=shown, odds=odds if shown else ()))
        if reason is not None:
            self._finish(live, reason)

    def _odds(self, tokens: Sequence[int], logits_V: Tensor, top: int) -> tuple[Odds, ...]:
        """Return how likely a token was; those a schema forces after it were certain."""
        whole = float(logits_V.logsumexp(-1))
        found = logits_V.topk(top) if top else None
        best = (
            () if found is None else zip(found.indices.tolist(), found.values.tolist(), strict=True)
        )
        bytes_of = self.tokenizer.bytes_of
        first = Odds(
            id=tokens[0],
            raw=bytes_of(tokens[0]),
            logprob=float(logits_V[tokens[0]]) - whole,
            top=tuple((id, value - whole) for id, value in best),
        )
        return (first, *(Odds(id=id, raw=bytes_of(id), logprob=0.0) for id in tokens[1:]))

    # -- private: memory ------------------------------------------------------------------------

    def _begin(self, live: Live) -> bool:
        """Give a request its store when it is first run; return whether it has one."""
        if live.store is not None:
            return True
        try:
            self.stores.begin(live, list(self._live.values()))
        except BudgetError as error:  # something else took it since the scheduler looked
            wait_s = self._wait_s()
            self._finish(live, "failed", OverloadError(error.what, retry_after_s=wait_s))
            return False
        live.began_s = live.began_s or time.monotonic()
        if self._parts.chain:
            assert live.store is not None
            live.prefiller = Prefiller(self.runner, live.store)
        return True

    def _put_out(self, plan: StepPlan) -> None:
        """Put requests out after a step; the last to run gives its copies up first."""
        assert isinstance(self.stores, PagedStores)
        leaving = {id for id in plan.swap_out if id in self._live}
        others = [one for id, one in self._live.items() if id not in leaving]
        for id in leaving:
            nbytes = self.stores.put_out(self._live[id], reversed(others))
            self._moved("out", id, nbytes)

    def _bring_back(self, plan: StepPlan) -> None:
        assert isinstance(self.stores, PagedStores)
        for id in plan.swap_in:
            live = self._live[id]
            try:
                self.stores.bring_back(live)
            except BudgetError:  # something else took the room; the scheduler will ask again
                continue
            self._moved("in", id, 0 if live.store is None else sum(live.store.nbytes().values()))

    def _moved(self, way: str, id: str, nbytes: int) -> None:
        data = {"id": id, "bytes": nbytes, "read_again": way == "out" and not nbytes}
        self.events.emit(Event(name=f"run.swap_{way}", data=data))

    # -- private: the end -----------------------------------------------------------------------

    def _finish(self, live: Live, reason: Reason, error: LociError | None = None) -> None:
        """End a request: keep or give back what it held, and tell its ticket."""
        with self._changed:
            self._live.pop(live.ticket.id, None)
            self._idle_from = time.monotonic()
        live.drop_states()
        self.stores.keep(live, failed=reason == "failed")
        now = time.monotonic()
        end = End(
            reason=reason,
            text=live.words.text,
            prompt_tokens=live.prompt,
            reused_tokens=live.reused,
            new_tokens=live.generated,
            queued_s=(live.began_s or now) - live.came_s,
            first_token_s=None if live.first_s is None else live.first_s - live.came_s,
            whole_s=now - live.came_s,
            stopped_by=live.words.stopped_by,
            error=error,
        )
        self._tokens.update(prompt=end.prompt_tokens, reused=end.reused_tokens, new=end.new_tokens)
        self._ended[reason] += 1
        data = {
            "id": live.ticket.id,
            "reason": reason,
            "prompt": end.prompt_tokens,
            "reused": end.reused_tokens,
            "new": end.new_tokens,
            "queued_s": end.queued_s,
            "first_token_s": end.first_token_s,
            "whole_s": end.whole_s,
        }
        self.events.emit(Event(name="run.answer", data=data))
        live.ticket.finish(end)

    def _give_back(self) -> None:
        self.grammars.close()
        self._parts.close()

    # -- private: across restarts -----------------------------------------------------------------

    def _warm_up(self) -> None:
        """Take what an earlier engine left; what cannot be used is noted, and read again."""
        if self._warm is None or not self._warm.exists():
            return
        try:
            found = warm.load(self.stores, self._warm)
        except LociError as error:
            self.notes.append(f"{type(error).__name__}: {error}")
            return
        self._told("run.warm", found, "read before the start, and not read again")

    def _leave_warm(self) -> None:
        """Leave what was read for the next engine, once."""
        file, self._warm = self._warm, None
        if file is None:
            return
        try:
            found = warm.save(self.stores, file)
        except LociError as error:  # the end goes on
            self.notes.append(f"{type(error).__name__}: {error}")
            return
        self._told("run.cool", found, f"left in {file}")

    def _told(self, name: str, found: Warm, where: str) -> None:
        self.notes.append(
            f"{found.prefixes} prefixes of {found.tokens:,} tokens, {format_bytes(found.nbytes)}, "
            f"{where}"
        )
        self.events.emit(Event(name=name, data=asdict(found)))


def _scheduler(scheduler: Sched | str) -> Sched:
    method = catalogue.find(scheduler, "sched") if isinstance(scheduler, str) else scheduler
    if not isinstance(method, Sched):
        raise ParameterError("this is no scheduler", value=str(scheduler))
    return method


def _internal(error: Exception) -> LociError:
    if isinstance(error, LociError):
        return error
    return LociError(f"internal error: {type(error).__name__}: {error}")

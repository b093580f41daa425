"""What is asked of one model by many: requests, and the tickets on which answers arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal  # a JSON schema

from loci.errors import LociError
from loci.run.sampling import Sampling

Reason = Literal["end", "stop", "length", "cancelled", "failed"]
GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        ids: the prompt.
        max_tokens: new tokens at most; None takes the plan's, or what the context leaves of them.
        stop: texts that end the answer; they are not part of it.
        schema: the answer is JSON of this form, complete within `max_tokens`.
        logprobs: how many of the most likely tokens to tell beside each one that came; None tells
            no chances at all.
        scope: whose it is; keys and values that were read before serve the same scope alone.
        user: whom a scheduler that is fair between users counts it for; "" is its scope.
        priority: larger goes first where the scheduler knows priorities.
        goes_on: tokens that end an answer do not end this one.
    """

    ids: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None
    scope: str = ""
    user: str = ""
    priority: int = 0
    goes_on: bool = False


@dataclass(frozen=True, kw_only=True)
class Odds:
    """A token that came, its bytes, the log of its chance, and the most likely ones: (id, log)."""

    id: int
    raw: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came in one step: text that is whole in UTF-8, perhaps none yet, and its tokens."""

    text: str
    ids: tuple[int, ...] = ()
    odds: tuple[Odds, ...] = ()


@dataclass(frozen=True, kw_only=True)
class End:
    """How an answer ended.

    Attributes:
        reason: "end" by a token of the model's own, "stop" by a stop word.
        stopped_by: that stop word.
        reused_tokens: of the prompt, whose keys and values were there already.
        queued_s: until it was begun; first_token_s, whole_s: since it was asked.
        error: why it failed.
    """

    reason: Reason
    text: str
    prompt_tokens: int
    reused_tokens: int = 0
    new_tokens: int = 0
    queued_s: float = 0.0
    first_token_s: float | None = None
    whole_s: float = 0.0
    stopped_by: str | None = None
    error: LociError | None = None


Listener = Callable[[Piece | End], None]


class Ticket:
    """One answer on its way; pieces are added by the engine's thread and read by any other.

    Attributes:
        id: of the request, unique within its engine.
    """

    def __init__(self, id: str, ask: Ask, on_cancel: Callable[[], None]) -> None:
        self.id, self.ask = id, ask
        self.is_cancelled = False
        self._on_cancel = on_cancel
        self._pieces: list[Piece] = []
        self._end: End | None = None
        self._listener: Listener | None = None
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Piece]:
        """Yield pieces as they come.

        Raises:
            LociError: if the answer failed.
        """
        at = 0
        while True:
            with self._changed:
                while at == len(self._pieces) and self._end is None:
                    self._changed.wait()
                if at == len(self._pieces):
                    break
                piece = self._pieces[at]
            at += 1
            yield piece
        assert self._end is not None
        if self._end.error is not None:
            raise self._end.error

    def wait(self, timeout_s: float | None = None) -> End:
        """Return how it ended, once it has.

        Raises:
            TimeoutError: if it takes longer.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._end is not None, timeout_s):
                raise TimeoutError(f"request {self.id} has not ended in {timeout_s} s")
            assert self._end is not None
            return self._end

    @property
    def end(self) -> End | None:
        """How it ended, or None."""
        return self._end

    def cancel(self) -> None:
        """Ask for an early end; what it held is given back before the next step."""
        self.is_cancelled = True
        self._on_cancel()

    def listen(self, listener: Listener) -> None:
        """Hand over all that came, and all that comes, in order; called by the engine's thread.

        It must not block. A ticket has one listener.
        """
        with self._changed:
            assert self._listener is None, "a ticket has one listener"
            for piece in self._pieces:
                listener(piece)
            if self._end is not None:
                listener(self._end)
            self._listener = listener

    def add(self, piece: Piece) -> None:
        """Add a piece; for the engine."""
        with self._changed:
            self._pieces.append(piece)
            self._changed.notify_all()
            if self._listener is not None:
                self._listener(piece)

    def finish(self, end: End) -> None:
        """End it; for the engine."""
        with self._changed:
            self._end = end
            self._changed.notify_all()
            if self._listener is not None:
                self._listener(end)

"""A model of ours as a language model for memory operations: local, and held to a schema.

with loci.open(plan) as session:
    memory = Memory("ada.db", llm=LocalLlm(session), backend="slm")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any  # a JSON schema

if TYPE_CHECKING:
    from loci.run.engine import Session


class LocalLlm:
    """Satisfies `loci.core.ports.Llm` with a session; always its most likely answer.

    Asked for JSON of a schema, it cannot write anything else; see `loci.models.grammar`.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.name = session, session.plan.model

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the reply; `seed` changes nothing, as nothing is drawn.

        Raises:
            ContextError: if the messages do not fit the session's context.
        """
        pieces = self.session.generate(messages, max_tokens=max_tokens, stop=stop, schema=schema)
        return "".join(pieces)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text takes."""
        return self.session.tokenizer.count(text)


class LateLlm:
    """A local model that is opened when it is first asked; threads are answered in turn.

    Args:
        name: of the model.
        open: returns the model, whose session this holds until `close`.
    """

    def __init__(self, name: str, open: Callable[[], LocalLlm]) -> None:
        self.name = name
        self._open, self._lock = open, threading.Lock()
        self._held: LocalLlm | None = None

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the reply of the model."""
        with self._lock:
            return self._llm().generate(
                messages, max_tokens=max_tokens, stop=stop, seed=seed, schema=schema
            )

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text takes."""
        with self._lock:
            return self._llm().count_tokens(text)

    def close(self) -> None:
        """Give back what the model holds; it is opened again if it is asked again."""
        with self._lock:
            if self._held is not None:
                self._held.session.close()
                self._held = None

    def _llm(self) -> LocalLlm:
        if self._held is None:
            self._held = self._open()
        return self._held

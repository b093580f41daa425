"""A language model that says what a test or demonstration tells it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # a JSON schema

from loci.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call, as it came."""

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None
    schema: Mapping[str, Any] | None


class ScriptedLlm:
    """Satisfies `loci.core.ports.Llm` with fixed replies.

    Args:
        replies: a list, given out in order; or a mapping from a piece of text to the reply for
            conversations that contain it, in which the first that fits wins.

    Attributes:
        calls: every call so far.
    """

    name = "scripted"

    def __init__(self, replies: Sequence[str] | Mapping[str, str]) -> None:
        self._by_text = dict(replies) if isinstance(replies, Mapping) else None
        self._in_order = None if isinstance(replies, Mapping) else list(replies)
        self.calls: list[Call] = []

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the next reply, cut at the first of `stop`.

        Raises:
            ModelError: if the script has no reply for this call.
        """
        self.calls.append(
            Call(
                messages=tuple(dict(message) for message in messages),
                max_tokens=max_tokens,
                stop=tuple(stop),
                seed=seed,
                schema=schema,
            )
        )
        reply = self._reply("\n".join(str(message.get("content", "")) for message in messages))
        for end in stop:
            reply = reply.partition(end)[0]
        return reply

    def count_tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    def _reply(self, text: str) -> str:
        if self._in_order is not None:
            if len(self.calls) <= len(self._in_order):
                return self._in_order[len(self.calls) - 1]
            raise ModelError(
                f"the script has {len(self._in_order)} replies and this is call {len(self.calls)}"
            )
        for piece, reply in (self._by_text or {}).items():
            if piece in text:
                return reply
        raise ModelError(
            "the script has no reply for this conversation",
            value=text[-200:],
            allowed="text with one of: " + ", ".join(map(repr, self._by_text or {})),
        )

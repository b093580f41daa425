"""Compiled schemas of a running model, shared by all who ask for JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any  # a JSON schema

if TYPE_CHECKING:
    from loci.core.ledger import Lease
    from loci.models.grammar import Grammar, Guide, Vocabulary
    from loci.models.tokenizer import Tokenizer

KEPT = 8  # compiled schemas
Reserve = Callable[[str, int, str], "Lease"]


class Grammars:
    """Compiles schemas when they are first asked for, and keeps the last few.

    Args:
        reserve: takes (owner, bytes, kind) of the budget for the table of the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, reserve: Reserve) -> None:
        self._tokenizer, self._reserve = tokenizer, reserve
        self._vocabulary: Vocabulary | None = None
        self._lease: Lease | None = None
        self._kept: dict[str, Grammar] = {}
        self._lock = threading.Lock()

    def of(self, schema: Mapping[str, Any]) -> Grammar:
        """Return the compiled schema.

        Raises:
            ParameterError: if it asks for what cannot be compiled.
            BudgetError: if the vocabulary's table does not fit.
        """
        from loci.models.grammar import Grammar, Vocabulary

        with self._lock:
            if self._vocabulary is None:
                vocabulary = Vocabulary.of(self._tokenizer)
                self._lease = self._reserve("vocabulary", vocabulary.nbytes, "tokenizer")
                self._vocabulary = vocabulary
            key = json.dumps(schema, sort_keys=False)
            found = self._kept.pop(key, None) or Grammar(schema, self._vocabulary)
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.pop(next(iter(self._kept)))
            return found

    def follow(self, guide: Guide, token: int) -> list[int]:
        """Tell the guide a token; return it and those that must follow it."""
        guide.feed(token)
        tokens = [token]
        forced = guide.forced()
        if len(forced) > 1:  # one step for all of them
            for id in self._tokenizer.encode(forced.decode("utf-8", "ignore")):
                guide.feed(id)
                tokens.append(id)
        return tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the table of the vocabulary, 0 until a schema was asked for."""
        return 0 if self._lease is None else self._lease.nbytes

    def close(self) -> None:
        """Give the table back."""
        if self._lease is not None:
            self._lease.release()
        self._vocabulary, self._lease = None, None
        self._kept.clear()

"""Decode JSON that a schema allows, and nothing else: which tokens may come next.

The schema becomes an automaton over bytes. A token may come next if its bytes lead through the
automaton to a place from which the end can still be reached in the tokens that are left; so what
comes out always parses and always fits, also when the answer must stop at its limit.

    vocabulary = Vocabulary.of(tokenizer)
    guide = Grammar(schema, vocabulary).guide(max_tokens=64)
    while not guide.done:
        logits[~guide.mask()] = -inf
        guide.feed(choose(logits))

What a schema may hold stands in `loci.models.automaton`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import TYPE_CHECKING, Any  # a schema is whatever JSON can hold

import numpy as np
from numpy.typing import NDArray

from loci.errors import ParameterError
from loci.models.automaton import (
    BACKSLASH,
    BETWEEN,
    FAR,
    INSIDE,
    OUT,
    PLAIN,
    QUOTE,
    UTF8,
    Automaton,
)

if TYPE_CHECKING:
    from loci.models.tokenizer import Tokenizer

Mask = NDArray[np.bool_]

_DEAD = -1


class Vocabulary:
    """Tokens as bytes, sorted so that those with a common beginning stand together.

    Args:
        tokens: the bytes of every id; empty for control tokens, which text never holds.
        ends: ids that end an answer.
    """

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int] = ()) -> None:
        self.tokens, self.ends = list(tokens), tuple(ends)
        ids = sorted((id for id, token in enumerate(tokens) if token), key=lambda id: tokens[id])
        self.all = _Sorted([self.tokens[id] for id in ids], ids)
        inner = [id for id in ids if _is_plain(self.tokens[id])]
        rest = [id for id in ids if not _is_plain(self.tokens[id])]
        self.inner_ids = np.array(inner, np.int64)
        self.inner_chars = np.array([len(self.tokens[id].decode()) for id in inner], np.int64)
        self.rest = _Sorted([self.tokens[id] for id in rest], rest)
        self.single = frozenset(token[0] for token in tokens if len(token) == 1)

    @property
    def nbytes(self) -> int:
        """Return what the tables hold, by the sizes of Python's own objects."""
        lists = [self.tokens, self.all.tokens, self.all.ids, self.all.shared]
        lists += [self.rest.tokens, self.rest.ids, self.rest.shared]
        arrays = self.inner_ids.nbytes + self.inner_chars.nbytes
        arrays += 4 * (len(self.all.ids) + len(self.rest.ids))
        return sum(map(getsizeof, (*lists, *self.tokens))) + arrays

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Return the vocabulary of a tokenizer."""
        return cls(tokenizer.token_bytes(), tokenizer.eos_ids)


class _Sorted:
    """Sorted byte strings with the length of what each shares with the one before it."""

    def __init__(self, tokens: Sequence[bytes], ids: Sequence[int]) -> None:
        self.tokens, self.ids = list(tokens), list(ids)
        shared, before = [], b""
        for token in tokens:
            length = 0
            for a, b in zip(before, token, strict=False):
                if a != b:
                    break
                length += 1
            shared.append(length)
            before = token
        self.shared = shared
        self._array = np.array(shared, np.int32)

    def past(self, place: int, depth: int) -> int:
        """Return the next place whose token does not begin with the same `depth` + 1 bytes."""
        start = place + 1
        for window in (16, 1024, len(self.shared)):
            found = self._array[start : place + 1 + window] <= depth
            if found.any():
                return start + int(found.argmax())
        return len(self.shared)


class Grammar:
    """A schema, compiled for a vocabulary.

    Raises:
        ParameterError: if the schema asks for something that cannot be compiled, or for characters
            this vocabulary cannot write.
    """

    def __init__(self, schema: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._nfa = Automaton(schema)
        self._far = self._nfa.distances(vocabulary.single)
        self._names: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._next: list[list[int] | None] = []
        self._places: list[tuple[int, int, int | None]] = []  # far, role, limit
        self._steps: dict[int, _Steps] = {}
        self.start = self._state(self._nfa.closure(frozenset((self._nfa.start,))))
        if self.far(self.start) >= FAR:
            raise ParameterError("this vocabulary cannot write what the schema asks for")

    def guide(self, max_tokens: int) -> Guide:
        """Return a guide for one answer of at most `max_tokens`.

        Raises:
            ParameterError: if the shortest answer may need more tokens than that.
        """
        need = self.far(self.start)
        if max_tokens < need:
            raise ParameterError(
                "the answer is cut before its JSON can be complete",
                value=max_tokens,
                allowed=f"max_tokens >= {need} for this schema",
            )
        return Guide(self, max_tokens)

    # -- the automaton, made deterministic as far as it is used ------------------------------------

    def next(self, state: int, byte: int) -> int:
        """Return the state after a byte, -1 if the byte may not come."""
        table = self._next[state]
        if table is None:
            table = self._next[state] = self._table(state)
        return table[byte]

    def far(self, state: int) -> int:
        """Return how many single bytes at least are missing to the end."""
        return self._places[state][0]

    def role(self, state: int) -> int:
        """Return where the state stands; between characters wins over outside."""
        return self._places[state][1]

    def limit(self, state: int) -> int | None:
        """Return how many characters the string at this state may have."""
        return self._places[state][2]

    def accepts(self, state: int) -> bool:
        """Whether the JSON is complete."""
        return self._nfa.end in self._sets[state]

    def ended(self, state: int) -> bool:
        """Whether the JSON is complete and nothing more may come."""
        return self.accepts(state) and all(self.next(state, byte) == _DEAD for byte in range(256))

    def steps(self, state: int) -> _Steps:
        """Return the tokens that may follow a state."""
        if state not in self._steps:
            self._steps[state] = self._walk(state)
        return self._steps[state]

    def _table(self, state: int) -> list[int]:
        reached: list[set[int]] = [set() for _ in range(256)]
        for part in self._sets[state]:
            for low, high, target in self._nfa.edges[part]:
                for byte in range(low, high + 1):
                    reached[byte].add(target)
        found: dict[frozenset[int], int] = {}
        table = []
        for targets in reached:
            key = frozenset(targets)
            if key not in found:
                found[key] = self._state(self._nfa.closure(key)) if key else _DEAD
            table.append(found[key])
        return table

    def _state(self, parts: frozenset[int]) -> int:
        if parts not in self._names:
            self._names[parts] = len(self._sets)
            self._sets.append(parts)
            self._next.append(None)
            far = min((self._far[part] for part in parts), default=FAR)
            roles = [self._nfa.role[part] for part in parts]
            role = next((r for r in (BETWEEN, INSIDE) if r in roles), OUT)
            limits = [limit for part in parts if (limit := self._nfa.limit[part]) is not None]
            self._places.append((far, role, min(limits, default=None)))
        return self._names[parts]

    # -- tokens ------------------------------------------------------------------------------------

    def _walk(self, state: int) -> _Steps:
        """Run every token from a state; where whole characters lead back to it, only the others."""
        loops = self._loops(state)
        entries = self.vocabulary.rest if loops else self.vocabulary.all
        ids, fars, counts = [], [], []
        # One entry a byte of the current token: (state, characters added to the string the walk
        # began in, characters of a string that began on the way or None).
        stack: list[tuple[int, int, int | None]] = [(state, 0, None)]
        tokens, shared = entries.tokens, entries.shared
        place = 0
        while place < len(tokens):
            token = tokens[place]
            del stack[shared[place] + 1 :]
            dead_at = None
            for depth in range(len(stack) - 1, len(token)):
                after = self._step(stack[-1], token[depth], began=state)
                if after is None:
                    dead_at = depth
                    break
                stack.append(after)
            if dead_at is not None:
                place = entries.past(place, dead_at)
                continue
            last, count, _ = stack[len(token)]
            far = self.far(last)
            if far < FAR:
                ids.append(entries.ids[place])
                fars.append(far)
                counts.append(count)
            place += 1
        return _Steps(
            loops=loops,
            ids=np.array(ids, np.int64),
            fars=np.array(fars, np.int64),
            counts=np.array(counts, np.int64),
        )

    def _step(
        self, place: tuple[int, int, int | None], byte: int, began: int
    ) -> tuple[int, int, int | None] | None:
        state, count, own = place
        after = self.next(state, byte)
        if after == _DEAD:
            return None
        here, there = self.role(state), self.role(after)
        if there == OUT:
            # The string the walk began in has ended, if it began in one.
            return (after, count, -1 if own is None else own)
        if here == OUT:
            return (after, count, 0)
        if here == BETWEEN:
            if own is None:
                return (after, count + 1, None)
            limit = self.limit(state)
            if limit is not None and own + 1 > limit:
                return None
            return (after, count, own + 1)
        return (after, count, own)

    def _loops(self, state: int) -> bool:
        """Whether any whole characters lead from a state back to it: the middle of a string."""
        if self.role(state) != BETWEEN:
            return False
        alone = [b for low, high in PLAIN for b in range(low, high + 1)]
        if any(self.next(state, byte) != state for byte in alone):
            return False
        for form in UTF8:
            at = state
            for ranges in form:
                at = self.next(at, ranges[0][0]) if at != _DEAD else _DEAD
            if at != state:
                return False
        return True


class _Steps:
    """What may follow a state: ids, how far each ends from the end, characters each adds."""

    def __init__(
        self,
        *,
        loops: bool,
        ids: NDArray[np.int64],
        fars: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> None:
        self.loops, self.ids, self.fars, self.counts = loops, ids, fars, counts


class Guide:
    """One answer on its way through a grammar.

    Attributes:
        left: how many tokens may still come.
    """

    def __init__(self, grammar: Grammar, max_tokens: int) -> None:
        self._grammar, self.left = grammar, max_tokens
        self._state, self._count = grammar.start, 0
        self._ended = grammar.ended(self._state)

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing more may come."""
        return self._ended or self.left == 0

    @property
    def complete(self) -> bool:
        """Whether the answer could end here."""
        return self._grammar.accepts(self._state)

    def mask(self, size: int | None = None) -> Mask:
        """Return which ids may come next, [size]; size is the vocabulary's if not given."""
        grammar, vocabulary = self._grammar, self._grammar.vocabulary
        allowed = np.zeros(size if size is not None else len(vocabulary.tokens), np.bool_)
        if self.done:
            return allowed
        steps = grammar.steps(self._state)
        fits = steps.fars <= self.left - 1
        limit = grammar.limit(self._state)
        room = FAR if limit is None else limit - self._count
        fits &= steps.counts <= room
        allowed[steps.ids[fits]] = True
        if steps.loops and grammar.far(self._state) <= self.left - 1:
            allowed[vocabulary.inner_ids[vocabulary.inner_chars <= room]] = True
        if self.complete:
            allowed[list(vocabulary.ends)] = True
        return allowed

    def feed(self, id: int) -> None:
        """Take the token that came.

        Raises:
            ParameterError: if it may not come here.
        """
        grammar = self._grammar
        if id in grammar.vocabulary.ends and self.complete:
            self._ended = True
            return
        state, count = self._state, self._count
        for byte in grammar.vocabulary.tokens[id]:
            here, after = grammar.role(state), grammar.next(state, byte)
            if after == _DEAD:
                raise ParameterError("this token may not come here", value=id)
            if here == OUT and grammar.role(after) != OUT:
                count = 0
            elif here == BETWEEN and grammar.role(after) != OUT:
                count += 1
            state = after
        self._state, self._count = state, count
        self.left -= 1
        self._ended = grammar.ended(state)

    def forced(self) -> bytes:
        """Return the bytes that must come next, whatever the model says; may be empty."""
        grammar, state, found = self._grammar, self._state, bytearray()
        if self._ended or grammar.role(state) != OUT:
            return b""
        while not grammar.accepts(state):
            open_ = [byte for byte in range(256) if grammar.next(state, byte) != _DEAD]
            if len(open_) != 1:
                break
            found.append(open_[0])
            state = grammar.next(state, open_[0])
        return bytes(found)


def _is_plain(token: bytes) -> bool:
    """Whether a token is whole characters that stand for themselves in a JSON string."""
    if any(byte < 0x20 or byte in (QUOTE, BACKSLASH) for byte in token):
        return False
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True

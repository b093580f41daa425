"""What goes when something is forgotten: found before anything is touched.

An item goes with its history, with what was derived from it, with items of the same messages that
say the same thing, and with the sentences it came from or ended with, wherever this user said them.
A turn with nothing left but those sentences goes whole. What only speaks of the same matter stays
and is named, unless it is asked to go too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any  # JSON values

from loci.core.item import Item, Turn
from loci.store import rows
from loci.store.changes import read_item
from loci.store.database import Database
from loci.store.fulltext import Layer, Whose
from loci.text.stem import stems, tokens

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+[\"')\]]*|\n|$)\s*|[.!?\n]+\s*")
_ALL = 2**31 - 1  # as the limit of a search


class Plan:
    """What goes, found before anything is touched."""

    def __init__(self, database: Database, owner: int) -> None:
        self.database, self.owner = database, owner
        self.items: dict[int, Item] = {}
        self.turns: dict[int, Turn] = {}
        self.cut: dict[int, tuple[Turn, list[str]]] = {}
        self.texts: dict[str, None] = {}
        self.traces: dict[str, None] = {}  # objects and metadata, to be looked for
        self.told: dict[frozenset[str], None] = {}  # what the items tell, as stems
        self._asked: set[int] = set()

    def take(self, ids: Sequence[str], *, mentions: bool) -> None:
        """Plan items and turns by their ids.

        Raises:
            NotFoundError: if the owner has nothing with one of these ids.
        """
        for id in ids:
            if rows.seq_of(id, "t") is None:
                self.take_item(read_item(self.database, self.owner, id))
                continue
            turns = self.turns_of([id])
            if not turns:
                raise rows.unknown(id)
            turn = turns[0]
            self.take_turn(turn, asked=True)
            for item in self.items_of(int(turn.id[1:])):  # facts other turns support too
                if sentences_of(turn.content, [item]):
                    self.take_item(item)
        if mentions:
            self.take_mentions()

    def take_item(self, item: Item) -> None:
        """Plan an item, all that rests on it, and where it came from."""
        seq = int(item.id[1:])
        if seq in self.items:
            return
        self.items[seq] = item
        history = self.history(seq)
        versions = [item, *(version for version, _ in history if version != item)]
        for version in versions:
            self.texts[version.text] = None
            for trace in (version.object, *strings(version.metadata)):
                if trace:
                    self.traces[trace] = None
        mine = telling(versions)
        if mine:
            self.told[frozenset(mine)] = None
        derived = self.database.rows(
            "SELECT source FROM links WHERE target = ? AND relation = 'derived_from'", (seq,)
        )
        for (other,) in derived:
            self.take_item(read_item(self.database, self.owner, rows.item_id(other)))
        came = dict.fromkeys(id for version in versions for id in version.sources)
        ended = dict.fromkeys(id for _, ids in history for id in ids if id not in came)
        for turn in self.turns_of(came):
            self._take_sentences(turn, versions)
        for turn in self.turns_of(ended):
            self._take_sentences(turn, versions, whole=False)

    def take_turn(self, turn: Turn, *, asked: bool) -> None:
        """Plan a whole turn; if it was asked for, with the items that rest on it alone."""
        seq = int(turn.id[1:])
        if seq not in self.turns:
            self.turns[seq] = turn
            self.cut.pop(seq, None)
            self.texts[turn.content] = None
            for trace in strings(turn.metadata):
                self.traces[trace] = None
        if asked and seq not in self._asked:
            self._asked.add(seq)
            for item in self.items_of(seq):
                if all(rows.seq_of(id, "t") in self.turns for id in item.sources):
                    self.take_item(item)

    def take_mentions(self) -> None:
        """Plan what only speaks of the same matter, until nothing does."""
        while found := self.mentions():
            for id in found:
                if id.startswith("i"):
                    self.take_item(read_item(self.database, self.owner, id))
                    continue
                for turn in self.turns_of([id]):
                    for mine in self.told:
                        left = self.left(turn)
                        if not mine <= set(stems(left)):
                            continue
                        parts = [(part, set(stems(part))) for part in split(left)]
                        all_of_it = [part for part, words in parts if mine <= words]
                        some = [part for part, words in parts if mine & words]
                        self._cut(turn, all_of_it or some, mine)

    def mentions(self) -> list[str]:
        """Return the ids of turns and items that stay and have all words an erased item tells."""
        whose, found = Whose(self.owner), dict[str, None]()
        for mine in self.told:
            for kind, letter in (("turn", "t"), ("item", "i")):
                seqs: set[int] | None = None
                for stem in mine:
                    some = self.database.words.match(_layer(kind), [stem], _ALL, whose, None)
                    here = {seq for seq, _ in some}
                    seqs = here if seqs is None else seqs & here
                for seq in sorted(seqs or ()):
                    if kind == "item":
                        stays = seq not in self.items
                    elif seq in self.cut:
                        stays = mine <= set(stems(self.left(self.cut[seq][0])))
                    else:
                        stays = seq not in self.turns
                    if stays:
                        found[f"{letter}{seq}"] = None
        return list(found)

    def touched(self) -> set[str]:
        """Return the ids of the turns that go or are cut."""
        return {rows.turn_id(seq) for seq in (*self.turns, *self.cut)}

    def history(self, seq: int) -> list[tuple[Item, tuple[str, ...]]]:
        """Return every version of an item, with the turns that led to it."""
        sql = "SELECT before, after, sources FROM changes WHERE item = ? ORDER BY seq"
        found: list[tuple[Item, tuple[str, ...]]] = []
        for before, after, sources in self.database.rows(sql, (seq,)):
            for text in (before, after):
                version = rows.item_from_json(text)
                if version is not None:
                    found.append((version, tuple(json.loads(sources)) if sources else ()))
        return found

    def turns_of(self, ids: Iterable[str]) -> list[Turn]:
        found = []
        for id in ids:
            sql = f"SELECT {rows.TURN_COLUMNS} FROM turns WHERE owner = ? AND seq = ?"
            row = self.database.one(sql, (self.owner, rows.seq_of(id, "t")))
            if row is not None:
                found.append(rows.turn_of(row))
        return found

    def items_of(self, turn: int) -> list[Item]:
        sql = "SELECT item FROM item_sources WHERE turn = ? ORDER BY item"
        found = self.database.rows(sql, (turn,))
        return [read_item(self.database, self.owner, rows.item_id(seq)) for (seq,) in found]

    def _take_sentences(self, turn: Turn, versions: Sequence[Item], *, whole: bool = True) -> None:
        """Plan the sentences of a turn that an item came from, and where else they stand.

        Where they cannot be told, the turn goes whole, unless it only ended the item.
        """
        chosen = sentences_of(turn.content, versions)
        mine = frozenset(telling(versions))
        if chosen or whole:
            self._cut(turn, chosen, mine)
        for sentence in chosen:
            self._take_repeats(sentence, mine)

    def _take_repeats(self, sentence: str, mine: frozenset[str]) -> None:
        """Plan the same words in other turns; case, punctuation and accents do not matter."""
        words, phrase = tokens(sentence), stems(sentence)
        if len(phrase) < 2:
            return  # "Yes." stands everywhere and tells nothing
        whose = Whose(self.owner)
        found = self.database.words.match("turn", [" ".join(phrase)], _ALL, whose, None)
        for turn in self.turns_of(rows.turn_id(seq) for seq, _ in found):
            same = [part for part in split(turn.content) if within(words, tokens(part))]
            if same:
                self._cut(turn, same, mine)
            elif within(words, tokens(turn.content)):
                self._cut(turn, [], mine)

    def _cut(self, turn: Turn, chosen: Sequence[str], mine: frozenset[str]) -> None:
        seq = int(turn.id[1:])
        if seq not in self.turns:
            before = self.cut[seq][1] if seq in self.cut else []
            gone = list(dict.fromkeys([*before, *chosen]))
            left = "".join(part for part in split(turn.content) if part not in gone)
            if not chosen or not stems(left):
                self.take_turn(turn, asked=False)
            else:
                self.cut[seq] = (turn, gone)
                for sentence in chosen:
                    self.texts[sentence.strip()] = None
        self._take_same(seq, mine)

    def _take_same(self, turn: int, mine: frozenset[str]) -> None:
        """Plan items of a turn that say the same thing, in other words or in part."""
        for other in self.items_of(turn):
            if int(other.id[1:]) in self.items:
                continue
            words = set(stems(f"{other.text} {other.object or ''}"))
            holds = any(text and text in other.text for text in self.texts)
            names = other.kind == "entity" and not self.touched().issuperset(other.sources)
            if ((mine and mine <= words) or holds) and not names:
                self.take_item(other)

    def left(self, turn: Turn) -> str:
        """Return what stays of a turn."""
        gone = self.cut[int(turn.id[1:])][1] if int(turn.id[1:]) in self.cut else []
        return "".join(part for part in split(turn.content) if part not in gone).strip()


def split(text: str) -> list[str]:
    """Return the sentences of a text; joined they are the text again."""
    return _SENTENCE.findall(text)


def telling(versions: Sequence[Item]) -> set[str]:
    """Return the stems that make an item what it is: its object, else all but its subject."""
    objects = {stem for item in versions for stem in stems(item.object or "")}
    if objects:
        return objects
    return {stem for item in versions for stem in set(stems(item.text)) - _subject(item)}


def sentences_of(content: str, versions: Sequence[Item]) -> list[str]:
    """Return the sentences an item came from; none means that it cannot be told.

    A sentence with a word of the item's object is one of them. Without an object, or where no
    sentence has it, a sentence must share two words with the text, or half of them; where none
    does, one.
    """
    parts = [(part, set(stems(part))) for part in split(content)]
    objects = {stem for item in versions for stem in stems(item.object or "")}
    chosen = [part for part, words in parts if objects & words]
    if chosen:
        return chosen
    texts = [set(stems(item.text)) - _subject(item) for item in versions]
    chosen = [
        part
        for part, words in parts
        if any(len(words & mine) >= 2 or 2 * len(words & mine) >= len(mine) > 0 for mine in texts)
    ]
    return chosen or [part for part, words in parts if any(words & mine for mine in texts)]


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)


def within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Return whether words stand next to each other in others."""
    size = len(part)
    return any(list(whole[at : at + size]) == list(part) for at in range(len(whole) - size + 1))


def _subject(item: Item) -> set[str]:
    return set(stems(item.subject or ""))


def _layer(kind: str) -> Layer:
    return "turn" if kind == "turn" else "item"

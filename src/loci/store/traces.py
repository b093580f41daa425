"""What an erased text may have left: in bytes, in what others said, in files that were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from loci.store.database import Database
from loci.store.times import from_micros
from loci.text.stem import stems

OUT_OF_REACH = (
    "backups and copies made before",
    "copies that other programs hold, such as a model's context or a log",
    "swap, and sectors that the file system or a flash drive has set aside",
)
_SHORT = 6  # bytes; fewer stand by chance in any file
_PIECE, _STRIDE, _PIECES = 48, 1000, 64  # characters, characters apart, most of one text
_MOST = 2000  # words and pieces looked for after one erasure
_MANY = 200  # erased texts looked for one by one in what others said


def forms_of(texts: Iterable[str], traces: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the forms in which an erased text could still stand somewhere.

    Returns:
        Whole texts; single words and pieces, which may stand elsewhere by right; and the texts
        that are too short to look for.
    """
    forms: dict[str, None] = {}
    perhaps: dict[str, None] = {}
    short: list[str] = []
    for text in (text.strip() for text in texts):
        size = len(text.encode())
        if size < _SHORT:
            if text:
                short.append(text)
            continue
        inner = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        words = stems(text)
        into = forms if len(words) > 1 or size >= 12 else perhaps
        into.update(dict.fromkeys(sorted({*inner, text.lower()})))
        if len(words) > 3:
            forms[" ".join(words)] = None
        perhaps.update(dict.fromkeys(_pieces(text)))
    for trace in traces:
        for form in (trace.strip(), trace.strip().lower()):
            if len(form.encode()) >= _SHORT:
                perhaps[form] = None
    return list(forms), [form for form in perhaps if form not in forms][:_MOST], short


def telling_forms(database: Database, perhaps: Sequence[str]) -> list[str]:
    """Return those of the words and pieces that are found though nothing that stays has them."""
    if not perhaps or not any(database.find(perhaps).values()):
        return []
    if len(perhaps) > 1:
        middle = len(perhaps) // 2
        return [
            *telling_forms(database, perhaps[:middle]),
            *telling_forms(database, perhaps[middle:]),
        ]
    return [] if _stands(database, perhaps[0]) else list(perhaps)


def _pieces(text: str) -> Iterator[str]:
    """Yield pieces of a long text that are the same in JSON: no database page holds it whole."""
    if len(text) < 4 * _PIECE:
        return
    places = range(0, len(text) - _PIECE, max(_STRIDE, len(text) // _PIECES))
    for place in places:
        piece = text[place : place + _PIECE]
        if piece.isprintable() and not set(piece) & set('"\\') and len(set(piece)) > 4:
            yield piece


def _stands(database: Database, form: str) -> bool:
    """Return whether something that stays holds this text."""
    for table, columns in (
        ("turns", ("content", "metadata", "name", "session", "agent")),
        ("items", ("text", "object", "metadata", "entities", "gloss")),
        ("changes", ("before", "after", "reason")),
    ):
        holds = " OR ".join(database.holds(column, folded=True) for column in columns)
        sql = f"SELECT 1 FROM {table} WHERE {holds} LIMIT 1"
        if database.one(sql, (form,) * len(columns)) is not None:
            return True
    return False


def elsewhere(database: Database, owner: int, texts: Sequence[str]) -> int:
    """Return how many erased texts stand in what other users said: theirs, so they stay."""
    places = (("turns", "content"), ("items", "text"))
    if len(texts) > _MANY:  # a whole memory: only what others said in the very same words
        others: set[str] = set()
        for table, column in places:
            sql = f"SELECT DISTINCT {column} FROM {table} WHERE owner != ?"
            others.update(str(text) for (text,) in database.rows(sql, (owner,)))
        return len(others.intersection(texts))
    count = 0
    for text in texts:
        if text:
            count += any(
                database.one(
                    f"SELECT 1 FROM {table} WHERE owner != ? AND {database.holds(column)} LIMIT 1",
                    (owner, text),
                )
                is not None
                for table, column in places
            )
    return count


def exports(database: Database, owner: int) -> list[str]:
    """Return the exports that this memory knows of; a file outside the store is out of reach."""
    sql = "SELECT at, subject FROM audit WHERE owner = ? AND action = 'export' ORDER BY seq"
    return [
        f"the export of {from_micros(int(at)):%Y-%m-%d %H:%M} UTC ({subject})"
        for at, subject in database.rows(sql, (owner,))
    ]

"""Whether a store hangs together: every row that names another finds it, and nothing is half there.

For tests, for `loci bench run durability`, and for a person whose disk has had a bad day. Reads
all of it; changes nothing.
"""

from __future__ import annotations

from loci.store.database import Database
from loci.store.rows import ITEM, TURN
from loci.store.writes import check_audit

# What is wrong: rows for which it is. Each is one count.
_COUNTS = {
    "turns with a number of a session twice": (
        "SELECT count(*) FROM (SELECT owner, session, position FROM turns "
        "GROUP BY owner, session, position HAVING count(*) > 1) twice"
    ),
    "turns or items of nobody": (
        "SELECT (SELECT count(*) FROM turns WHERE owner NOT IN (SELECT seq FROM owners)) + "
        "(SELECT count(*) FROM items WHERE owner NOT IN (SELECT seq FROM owners))"
    ),
    "sources that are not there": (
        "SELECT count(*) FROM item_sources WHERE item NOT IN (SELECT seq FROM items) "
        "OR turn NOT IN (SELECT seq FROM turns)"
    ),
    "names of items that are not there": (
        "SELECT count(*) FROM item_entities WHERE item NOT IN (SELECT seq FROM items)"
    ),
    "links to items that are not there": (
        "SELECT count(*) FROM links WHERE source NOT IN (SELECT seq FROM items) "
        "OR target NOT IN (SELECT seq FROM items)"
    ),
    "items without a history": (
        "SELECT count(*) FROM items WHERE origin IS NULL AND seq NOT IN (SELECT item FROM changes)"
    ),
    "changes of items that are not there": (
        "SELECT count(*) FROM changes WHERE item NOT IN (SELECT seq FROM items)"
    ),
}


def check_integrity(database: Database) -> list[str]:
    """Return what is wrong, in words; nothing if all is well."""
    with database.lock:
        found = [*database.damage()]
        for what, sql in _COUNTS.items():
            found += _said(database, what, sql)
        for layer, table in ((TURN, "turns"), (ITEM, "items")):
            for other in ("pending", "vectors"):
                sql = (
                    f"SELECT count(*) FROM {other} WHERE kind = {layer} "
                    f"AND seq NOT IN (SELECT seq FROM {table})"
                )
                found += _said(database, f"rows of {other} for {table} that are not there", sql)
            sql = (
                f"SELECT count(*) FROM {table} WHERE "
                f"seq NOT IN (SELECT seq FROM pending WHERE kind = {layer}) AND "
                f"seq NOT IN (SELECT seq FROM vectors WHERE kind = {layer})"
            )
            found += _said(database, f"{table} neither embedded nor waiting for it", sql)
        broken = check_audit(database)
        if broken:
            found.append(f"the audit does not follow from row {broken} on")
    return found


def _said(database: Database, what: str, sql: str) -> list[str]:
    count = int((database.one(sql) or (0,))[0])
    return [f"{count} {what}"] if count else []

"""Messages, times and results in the shapes Mem0 gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any  # what Mem0 returns is JSON

from loci.core.item import Candidate, Hit, Item, Turn
from loci.errors import ParameterError
from loci.store.changes import Change
from loci.text.entities import entities

_OF_OTHERS = (  # what other clients put into a message, and memory has no use for
    *("tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations", "id"),
    *("type", "status", "reasoning", "reasoning_content", "timestamp", "created_at"),
)
_ROLES = {"developer": "system", "function": "tool", "human": "user", "ai": "assistant"}


def messages_of(messages: Any) -> list[dict[str, Any]]:
    """Return messages as a memory takes them: text, role and name of each that has a text."""
    if isinstance(messages, (str, Mapping)):
        messages = [messages]
    if not isinstance(messages, Sequence):
        raise ParameterError("messages are text, a dict or a list of dicts", value=messages)
    kept: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if isinstance(message, str):
            message = {"role": "user", "content": message}
        if not isinstance(message, Mapping):
            raise ParameterError(f"message {number} is no dict", value=message)
        role = _ROLES.get(str(message.get("role", "user")), message.get("role", "user"))
        content = _text(message.get("content"), number)
        if role == "system" or not content.strip():
            continue
        rest = {
            key: value
            for key, value in message.items()
            if key not in ("role", "content", *_OF_OTHERS) and value is not None
        }
        kept.append({"role": role, "content": content, **rest})
    return kept


def _text(content: Any, number: int) -> str:
    """Return the text of a message; parts that are no text are refused."""
    if content is None:
        return ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return content if isinstance(content, str) else str(content)
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise ParameterError(
                f"message {number} has a part that is no text",
                value=part,
                way_out="say in words what a picture shows, and add that",
            )
        parts.append(text)
    return "\n".join(parts)


def as_said(turn: Turn) -> Candidate:
    """Return a message as a memory that keeps it as it was said."""
    return Candidate(
        text=turn.content,
        sources=(turn.id,),
        entities=tuple(entities(turn.content)),
        valid_from=turn.time,
        kind="note",
    )


def items_of(drawn: Mapping[str, Sequence[Change]]) -> list[str]:
    """Return the ids of the items that changes were of."""
    return [change.item for changes in drawn.values() for change in changes]


def event_of(change: Change) -> str | None:
    """Return what Mem0 calls a change; None for one that does not show in the text."""
    before, after = change.before, change.after
    was = before is not None and before.is_live
    lives = after is not None and after.is_live
    if not was:
        return "ADD" if lives else None
    if not lives:
        return "DELETE"
    same = before is not None and after is not None and before.text == after.text
    return None if same and change.action in ("revise", "link") else "UPDATE"


def history_row(change: Change, created: datetime | None) -> dict[str, Any] | None:
    """Return a change as a row of Mem0's history."""
    event = event_of(change)
    if event is None:
        return None
    before = None if change.before is None or event == "ADD" else change.before.text
    after = None if change.after is None or event == "DELETE" else change.after.text
    return {
        "id": change.id,
        "memory_id": change.item,
        "old_memory": before,
        "new_memory": after,
        "event": event,
        "created_at": None if created is None else created.isoformat(),
        "updated_at": change.at.isoformat(),
        "is_deleted": event == "DELETE",
        "actor_id": None,
        "role": None,
    }


def relation(found: Hit | Item | Turn, target: str) -> dict[str, Any]:
    """Return a relation as Mem0's graph shows it."""
    parts: list[Any] = [getattr(found, name, None) for name in ("subject", "predicate", "object")]
    if not all(parts):
        words = (found.content if isinstance(found, Turn) else found.text).split()
        parts = [words[0], "_".join(words[1:-1]), words[-1]]
    return {
        "source": str(parts[0]).replace(" ", "_"),
        "relationship": str(parts[1]).replace(" ", "_"),
        target: str(parts[2]).replace(" ", "_"),
    }


def unknown(memory_id: object) -> ParameterError:
    """Return the error for an id nobody has: a ValueError, as Mem0 raises."""
    return ParameterError(
        f"Memory with id {memory_id} not found", way_out="get_all(user_id=...) shows the ids"
    )


def count_of(limit: Any, top_k: Any, *ids: Any) -> int:
    """Return how many results are wanted: 100 where ids stand beside the filters (1.x), else 20."""
    if limit is not None and top_k is not None and limit != top_k:
        raise ParameterError("limit and top_k are two names of one thing", value=[limit, top_k])
    count = top_k if top_k is not None else limit
    if count is None:
        return 100 if any(id is not None for id in ids) else 20
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ParameterError("top_k is a whole number of at least 0", value=count)
    return count


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def moment(value: Any) -> datetime | Any:
    """Return seconds since 1970 as a time; what else a time may be is read further down."""
    return datetime.fromtimestamp(value, UTC) if is_number(value) else value


def day(value: Any) -> str | None:
    """Return a day as "YYYY-MM-DD"."""
    if value is None:
        return None
    try:
        if isinstance(value, datetime):
            value = value.date()
        day = value if isinstance(value, date) else date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ParameterError(
            "cannot read this expiration_date", value=value, allowed='"YYYY-MM-DD"'
        ) from None
    if day < datetime.now(UTC).date():
        raise ParameterError(
            "expiration_date is in the past", value=day.isoformat(), way_out="delete it instead"
        )
    return day.isoformat()


def is_over(result: Mapping[str, Any]) -> bool:
    """Return whether a result is no longer to be shown."""
    ends = result.get("expiration_date")
    return ends is not None and date.fromisoformat(str(ends)) < datetime.now(UTC).date()

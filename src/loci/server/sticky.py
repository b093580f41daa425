"""Which replica a request goes to: the one that has read its conversation before.

Every request has a key: a header that says so, the response it goes on from, the user it names, or
else the beginning of its conversation, which stays the same while the conversation grows. By
rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
IEEE/ACM Transactions on Networking 6(1), 1998) every key has its own order of the replicas: the
highest hash first. A replica that is lost moves its own keys alone, each to the next of its order,
and they come back with it. No table is kept, so any number of fronts agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any  # JSON values

HEADER = "x-session-affinity"
BEGINNING = 256  # characters of a text that is no conversation; of ids, a quarter
_RESPONSE = re.compile(r"resp_(\d+)_[0-9a-f]{32}")
_PATH = "/v1/responses/"


def name_of(number: int) -> str:
    """Return the name of a replica; it stays when the replica is started anew."""
    return f"replica-{number}"


def order(key: str, names: Sequence[str]) -> list[str]:
    """Return the replicas in the order in which this key tries them."""
    return sorted(names, key=lambda name: (_hash(f"{name}\0{key}"), name), reverse=True)


def keeper_of(path: str, body: bytes) -> str | None:
    """Return the one replica that keeps the response a request is about, if it is about one.

    Stored responses live in the process that made them; their ids have its number.
    """
    id = path.removeprefix(_PATH) if path.startswith(_PATH) else None
    if path == _PATH.rstrip("/"):
        id = _object(body).get("previous_response_id")
    found = _RESPONSE.fullmatch(id) if isinstance(id, str) else None
    return None if found is None else name_of(int(found[1]))


def affinity(tenant: str, path: str, headers: Mapping[str, str], body: bytes) -> str:
    """Return the key of a request; equal keys find the same replica.

    Args:
        tenant: of the caller; what one read is never shared with another.
        headers: names in small letters.
    """
    return json.dumps([tenant, *_key(path, headers, body)])


def _key(path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, Any]:
    if named := headers.get(HEADER, "").strip():
        return "session", named
    asked = _object(body)
    if isinstance(earlier := asked.get("previous_response_id"), str):
        return "response", earlier
    for user in (
        asked.get("user"),
        _in(asked, "memory", "user"),
        _in(asked, "metadata", "user_id"),
    ):
        if isinstance(user, str) and user:
            return "user", user
    beginning = _beginning(asked)
    if beginning is not None:
        return "beginning", beginning
    return "request", [path, hashlib.blake2b(body, digest_size=16).hexdigest()]


def _beginning(asked: Mapping[str, Any]) -> Any:
    """Return what every later turn of the same conversation begins with, too."""
    head = asked.get("system", asked.get("instructions"))
    said = asked.get("messages", asked.get("input"))
    if isinstance(said, str):
        return [head, said]
    if isinstance(said, list) and said:
        roles = [one.get("role") if isinstance(one, dict) else None for one in said]
        first = roles.index("user") if "user" in roles else 0
        return [head, *(_in({"it": one}, "it", "content") for one in said[: first + 1])]
    prompt = asked.get("prompt")
    if isinstance(prompt, str):
        return prompt[:BEGINNING]
    return prompt[: BEGINNING // 4] if isinstance(prompt, list) else None


def _in(where: Mapping[str, Any], outer: str, inner: str) -> Any:
    there = where.get(outer)
    return there.get(inner) if isinstance(there, dict) else None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body) if body[:1] in (b"{", b" ", b"\n") else {}
    except (ValueError, RecursionError):  # whoever answers will say so
        return {}
    return found if isinstance(found, dict) else {}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()

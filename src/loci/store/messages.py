"""Messages as callers give them, checked and made into turns that are ready to be stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from loci.core.utf8 import plain_text as plain_text
from loci.errors import ParameterError
from loci.store.times import read_time
from loci.units import format_bytes, nearest

MAX_MESSAGE_BYTES = 2**20
"""The longest message, in bytes of UTF-8: 1 MiB."""

MAX_NAME_BYTES = 1024
"""The longest name of a user, an agent, a session or a speaker."""

AHEAD = timedelta(days=1)
"""How far ahead of the clock a message may have been said: clocks differ, and zones are assumed."""

ROLES = ("user", "assistant", "system", "tool")
_KEYS = ("role", "content", "name", "metadata", "time")


@dataclass(slots=True)
class Draft:
    """A checked message on its way into the store."""

    role: str
    content: str
    name: str | None
    said: datetime
    zone_assumed: bool
    metadata: str | None  # JSON
    origin: str | None = None


def key_text(value: object, what: str, allowed: str = "a name") -> str:
    """Return a name such as a user's: text that is not empty, and short."""
    name = plain_text(value, what)
    if not name.strip():
        raise ParameterError(f"{what} is empty", value=name, allowed=allowed)
    _check_size(name, what, MAX_NAME_BYTES)
    return name


def body_text(value: object, what: str) -> str:
    """Return what is to be remembered or asked: text with a word in it, of at most 1 MiB."""
    text = plain_text(value, what)
    if not text or text.isspace():
        raise ParameterError(f"{what} is empty", value=text, allowed="text with a word in it")
    _check_size(text, what, MAX_MESSAGE_BYTES)
    return text


def _check_size(text: str, what: str, most: int) -> None:
    size = len(text) if text.isascii() else len(text.encode("utf-8"))
    if size > most:
        raise ParameterError(
            f"{what} has {size:,} bytes, {size - most:,} too many",
            allowed=f"at most {format_bytes(most)} ({most:,} bytes)",
            way_out="cut it into several" if most == MAX_MESSAGE_BYTES else "shorten it",
        )


def check_said(said: datetime, now: datetime, what: str) -> datetime:
    """Return when something was said, unless that is yet to come.

    Raises:
        ParameterError: if it is more than a day ahead of the clock.
    """
    if said > now + AHEAD:
        raise ParameterError(
            f"the {what} is in the future",
            value=said.isoformat(),
            allowed=f"when it was said: by now, {now.isoformat(timespec='seconds')}",
            way_out="a time that was spoken of belongs into the text",
        )
    return said


def json_text(metadata: object, what: str = "metadata") -> str | None:
    """Return metadata as JSON, None where there is none.

    Raises:
        ParameterError: if it is no mapping of text to JSON values.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise ParameterError(f"{what} must be a dict with text keys", value=metadata)
    if not metadata:
        return None
    try:
        text = plain_text(json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False), what)
        _check_size(text, what, MAX_MESSAGE_BYTES)
        return text
    except (TypeError, ValueError) as problem:
        if isinstance(problem, ParameterError):
            raise
        raise ParameterError(f"{what} is not JSON: {problem}", allowed="JSON values") from None


def drafts(
    messages: object,
    *,
    now: datetime,
    time: object = None,
    assumed: tzinfo,
    metadata: Mapping[str, object] | None = None,
) -> list[Draft]:
    """Return the checked messages of one `add`: text, one message, or a list of them.

    A time on a message wins over `time`, which wins over `now`. `metadata` is laid under the
    metadata of each message.

    Raises:
        ParameterError: if anything is missing, empty, too long, or unknown.
    """
    if isinstance(messages, (str, bytes, bytearray)):
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, Sequence) or not messages:
        raise ParameterError(
            "there is no message to add",
            value=messages,
            allowed='text, or a list of {"role": "user", "content": "..."}',
        )
    said, zone_assumed = (now, False) if time is None else read_time(time, assumed)
    check_said(said, now, "time")
    base = json_text(metadata)
    return [
        _draft(message, number, said, zone_assumed, now, assumed, base, metadata)
        for number, message in enumerate(messages)
    ]


def _draft(
    message: object,
    number: int,
    said: datetime,
    zone_assumed: bool,
    now: datetime,
    assumed: tzinfo,
    base: str | None,
    metadata: Mapping[str, object] | None,
) -> Draft:
    what = f"message {number}"
    if isinstance(message, (str, bytes, bytearray)):
        message = {"content": message}
    if not isinstance(message, Mapping):
        raise ParameterError(f"{what} must be text or a dict", value=message)
    for key in message:
        if key not in _KEYS:
            near = nearest(str(key), _KEYS)
            raise ParameterError(
                f"{what} has an unknown key",
                value=key,
                allowed=", ".join(_KEYS),
                way_out=f"did you mean {near!r}?" if near else "put it into metadata",
            )
    role = message.get("role", "user")
    if role not in ROLES:
        raise ParameterError(f"{what} has an unknown role", value=role, allowed=", ".join(ROLES))
    content = body_text(message.get("content"), f"the content of {what}")
    name = message.get("name")
    own_time = message.get("time")
    if own_time is not None:
        said, zone_assumed = read_time(own_time, assumed, f"time of {what}")
        check_said(said, now, f"time of {what}")
    own = message.get("metadata")
    if own is None:
        text = base
    elif base is None:
        text = json_text(own, f"the metadata of {what}")
    else:
        json_text(own, f"the metadata of {what}")
        text = json_text({**(metadata or {}), **own}, f"the metadata of {what}")
    return Draft(
        role=role,
        content=content,
        name=None if name is None else key_text(name, f"the name of {what}"),
        said=said,
        zone_assumed=zone_assumed,
        metadata=text,
    )

"""Files of other people's formats, as conversations that can be added to a memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any  # JSON values

from loci.errors import FormatError, ParameterError
from loci.store import foreign
from loci.units import nearest

FORMATS = ("auto", "loci", "locomo", "mem0", "langmem")
_SESSION = re.compile(r"session_(\d+)$")
_DATE = "%I:%M %p on %d %B, %Y"
_SNIFF = 2**16  # characters looked at to tell a format


@dataclass(frozen=True, kw_only=True)
class Session:
    """One sitting of one conversation, as messages for `Memory.add`.

    Attributes:
        user: whose memory it belongs to, unless the importer says otherwise.
        origins: for each message, what names it in its file.
    """

    user: str
    name: str
    messages: tuple[dict[str, Any], ...]
    origins: tuple[str, ...]
    speakers: tuple[str, ...] = field(default=())


def locomo_time(text: str, zone: tzinfo) -> datetime:
    """Return the time LoCoMo writes as "1:56 pm on 8 May, 2023".

    Raises:
        FormatError: if it is written otherwise.
    """
    try:
        return datetime.strptime(text.strip(), _DATE).replace(tzinfo=zone)
    except ValueError:
        raise FormatError(
            "cannot read the date of a session", value=text, allowed='"1:56 pm on 8 May, 2023"'
        ) from None


def detect(path: Path) -> str:
    """Return which format a file has, by its first bytes."""
    if foreign.is_database(path):
        return "mem0"
    with open(path, encoding="utf-8") as file:
        head = file.read(_SNIFF).lstrip()
    if head.startswith("{") and '"loci-memory"' in head.splitlines()[0]:
        return "loci"
    if head[:1] in ("[", "{"):
        if '"conversation"' in head:
            return "locomo"
        like = foreign.looks_like(head)
        if like is not None:
            return like
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as problem:
            raise FormatError(f"this file is not JSON: {problem}", value=str(path)) from None
        first = data[0] if isinstance(data, list) and data else data
        if isinstance(first, Mapping) and "conversation" in first:  # after many questions
            return "locomo"
    raise FormatError(
        "this file is in no format that is recognised",
        value=str(path),
        allowed="an export of Loci (JSON lines), of Mem0 or of a LangGraph store, or LoCoMo's JSON",
        way_out=f"name its format: {', '.join(FORMATS[1:])}",
    )


def locomo(path: Path, zone: tzinfo, only: str | None = None) -> Iterator[Session]:
    """Yield the sessions of a LoCoMo file, in the order of their numbers.

    A picture's caption is appended to the text in square brackets: nothing else says what it
    showed. `dia_id` becomes the metadata `ref`.

    Args:
        only: the name of one sample; None takes all of them.

    Raises:
        ParameterError: if there is no sample of that name.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except json.JSONDecodeError as problem:
        raise FormatError(f"this file is not JSON: {problem}", value=str(path)) from None
    samples: list[tuple[str, Mapping[str, Any]]] = []
    for number, sample in enumerate(data if isinstance(data, list) else [data]):
        if not isinstance(sample, Mapping) or not isinstance(sample.get("conversation"), Mapping):
            raise FormatError(
                f"sample {number} has no conversation", allowed="a list of LoCoMo samples"
            )
        samples.append((str(sample.get("sample_id", f"conversation-{number}")), sample))
    names = [name for name, _ in samples]
    if only is not None and only not in names:
        near = nearest(only, names)
        raise ParameterError(
            "there is no conversation of this name in the file",
            value=only,
            allowed=", ".join(names),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    for name, sample in samples:
        if only in (None, name):
            yield from _sample(sample, name, zone)


def _sample(sample: Mapping[str, Any], user: str, zone: tzinfo) -> Iterator[Session]:
    talk = sample["conversation"]
    found = [(int(match[1]), key) for key in talk if (match := _SESSION.match(key))]
    speakers = tuple(str(talk[key]) for key in ("speaker_a", "speaker_b") if key in talk)
    for number, key in sorted(found):
        turns = talk[key]
        if not isinstance(turns, list) or not turns:
            continue
        said = locomo_time(str(talk.get(f"{key}_date_time", "")), zone).isoformat()
        messages: list[dict[str, Any]] = []
        origins: list[str] = []
        for turn in turns:
            text = str(turn.get("text") or "").strip()
            caption = turn.get("blip_caption")
            if caption:
                text = f"{text} [shares a picture: {caption}]".strip()
            if not text:
                continue
            metadata: dict[str, Any] = {"ref": turn.get("dia_id")}
            if caption:
                metadata["caption"] = caption
            messages.append(
                {
                    "role": "user",
                    "name": str(turn.get("speaker", speakers[0] if speakers else "user")),
                    "content": text,
                    "time": said,
                    "metadata": metadata,
                }
            )
            origins.append(f"locomo:{user}:{turn.get('dia_id', f'{number}:{len(origins)}')}")
        yield Session(
            user=user,
            name=key,
            messages=tuple(messages),
            origins=tuple(origins),
            speakers=speakers,
        )


def loci_header(path: Path) -> dict[str, Any]:
    """Return the first line of an export, checked.

    Raises:
        FormatError: if it is no export of this version.
    """
    with open(path, encoding="utf-8") as file:
        line = file.readline()
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != "loci-memory":
        raise FormatError("this file is no export of Loci", value=str(path))
    if header.get("version") != 1:
        raise FormatError(
            "this export is of a version this Loci does not know",
            value=header.get("version"),
            allowed="1",
        )
    return header


def loci_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of an export, its first line left out."""
    with open(path, encoding="utf-8") as file:
        next(file, None)
        for number, line in enumerate(file, 2):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise FormatError(f"line {number} of this export is cut short", value=str(path))
            yield record


def check_format(name: str) -> str:
    """Return the name of a format, or raise ParameterError."""
    if name not in FORMATS:
        raise ParameterError("unknown format", value=name, allowed=", ".join(FORMATS))
    return name

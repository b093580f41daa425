"""Configuration: a small TOML file and LOCI_* variables, every key known, typed and traceable.

What stands in the environment wins over the file, the file over the default. An unknown key is
refused with the nearest known one, in the file and in the environment alike. Lower rows never read
any of this: they take folders, sizes and zones as arguments.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any  # a value is whatever its key says
from zoneinfo import ZoneInfo

import platformdirs

from loci.core.utf8 import plain_text
from loci.errors import ConfigError, StorageError
from loci.units import nearest, parse_bytes, parse_tokens

APP = "loci"
PREFIX = "LOCI_"
BACKENDS = ("rules", "slm", "endpoint")
FILE_VARIABLE = "LOCI_CONFIG"  # where the file is; not a key, as it cannot stand in the file


def _path(text: object) -> Path:
    return Path(_text(text)).expanduser()


def _text(text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError("text that is not empty")
    return text


def _zone(text: object) -> str:
    try:
        return ZoneInfo(_text(text)).key
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError and an OSError by platform
        raise ValueError("a zone such as Europe/Berlin or UTC") from None
    except KeyError:
        raise ValueError("a zone such as Europe/Berlin or UTC") from None


def _backend(text: object) -> str:
    if text not in BACKENDS:
        raise ValueError(", ".join(BACKENDS))
    return str(text)


def _flag(value: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("true or false")
    return found


def _size(value: object) -> int:
    if not isinstance(value, (int, str)):
        raise ValueError("a size such as 4GiB")
    return parse_bytes(value)


def _tokens(value: object) -> int:
    if not isinstance(value, (int, str)):
        raise ValueError("a count of tokens such as 8k")
    return parse_tokens(value)


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its name in the file, its variable, how it is read, and what it is for.

    A secret one is shown nowhere, and the file it is written to is for its owner alone.
    """

    name: str
    variable: str
    read: Callable[[object], Any]
    help: str
    secret: bool = False


KEYS = (
    Key(name="models_dir", variable="LOCI_MODELS", read=_path, help="where models are kept"),
    Key(
        name="memory_file",
        variable="LOCI_MEMORY",
        read=_text,
        help="the memory that `loci memory` opens: a file or a database URL",
    ),
    Key(
        name="cache_dir",
        variable="LOCI_CACHE",
        read=_path,
        help="measurements of this machine and other things that can be made again",
    ),
    Key(name="data_dir", variable="LOCI_DATA", read=_path, help="data sets for `loci bench`"),
    Key(name="model", variable="LOCI_MODEL", read=_text, help="the model when none is named"),
    Key(name="user", variable="LOCI_USER", read=_text, help="whose memory, when nobody is named"),
    Key(
        name="timezone",
        variable="LOCI_TIMEZONE",
        read=_zone,
        help="the zone of times that are given without one",
    ),
    Key(
        name="recall",
        variable="LOCI_RECALL",
        read=_text,
        help="the method that keeps memories: mem0, mem0_graph, a_mem, memlora",
    ),
    Key(
        name="backend",
        variable="LOCI_BACKEND",
        read=_backend,
        help="what draws and settles facts: rules, slm (the model above) or endpoint",
    ),
    Key(
        name="fall_back",
        variable="LOCI_FALL_BACK",
        read=_flag,
        help="a model that fails at that gives way to rules",
    ),
    Key(
        name="endpoint",
        variable="LOCI_ENDPOINT",
        read=_text,
        help="an OpenAI-compatible server, such as http://localhost:11434/v1",
    ),
    Key(
        name="endpoint_model",
        variable="LOCI_ENDPOINT_MODEL",
        read=_text,
        help="the name of the model there",
    ),
    Key(
        name="endpoint_key",
        variable="LOCI_ENDPOINT_KEY",
        read=_text,
        help="sent to that server, shown nowhere",
        secret=True,
    ),
    Key(name="dram", variable="LOCI_DRAM", read=_size, help="--dram when it is not given"),
    Key(name="gpu", variable="LOCI_GPU", read=_size, help="--gpu when it is not given"),
    Key(name="disk", variable="LOCI_DISK", read=_size, help="--disk when it is not given"),
    Key(name="process", variable="LOCI_PROCESS", read=_size, help="--process when it is not given"),
    Key(name="context", variable="LOCI_CONTEXT", read=_tokens, help="--context when not given"),
    Key(name="debug", variable="LOCI_DEBUG", read=_flag, help="show the traceback of an error"),
)
_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting with its value; `sources` tells for each where the value came from.

    Sizes are bytes. None means that nothing was set and the command decides.
    """

    models_dir: Path
    memory_file: str
    cache_dir: Path
    data_dir: Path | None = None
    model: str = "smollm2"
    user: str = "local"
    timezone: str = "UTC"
    recall: str = "mem0"
    backend: str = "rules"
    fall_back: bool = False
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_key: str | None = field(default=None, repr=False)
    dram: int | None = None
    gpu: int | None = None
    disk: int | None = None
    process: int | None = None
    context: int | None = None
    debug: bool = False
    file: Path
    sources: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Return {key: value} in the order of `KEYS`."""
        return {key.name: getattr(self, key.name) for key in KEYS}


def config_file(environment: Mapping[str, str] | None = None) -> Path:
    """Return where the configuration file is, whether or not it exists."""
    environment = os.environ if environment is None else environment
    named = environment.get(FILE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(platformdirs.user_config_dir(APP)) / "config.toml"


def load(environment: Mapping[str, str] | None = None) -> Config:
    """Return the configuration of this person on this machine.

    Raises:
        ConfigError: if a key is unknown or a value cannot be read; the message names both.
    """
    environment = os.environ if environment is None else environment
    file = config_file(environment)
    data_dir = Path(platformdirs.user_data_dir(APP))
    values: dict[str, Any] = {
        "models_dir": data_dir / "models",
        "memory_file": str(data_dir / "memory.db"),
        "cache_dir": Path(platformdirs.user_cache_dir(APP)),
        "user": _login(),
    }
    sources = {key.name: "default" for key in KEYS}
    for name, raw in _read(file).items():
        values[name] = _value(known(name, f"{file}: "), raw, f"{file}: {name}")
        sources[name] = "file"
    variables = {key.variable: key for key in KEYS}
    for variable, raw in environment.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        key = variables.get(variable)
        if key is None:
            near = nearest(variable, [*variables, FILE_VARIABLE])
            raise ConfigError(
                f"unknown variable {variable} in the environment",
                way_out=f"did you mean {near}?" if near else "see `loci config show`",
            )
        values[key.name] = _value(key, raw, variable)
        sources[key.name] = "environment"
    return Config(**values, file=file, sources=sources)


def known(name: str, where: str = "") -> Key:
    """Return the key of that name; an unknown one is refused with the nearest."""
    key = _BY_NAME.get(name)
    if key is None:
        near = nearest(name, list(_BY_NAME))
        raise ConfigError(
            f"{where}unknown key {name!r}" + (f"; did you mean {near!r}?" if near else ""),
            allowed=", ".join(_BY_NAME),
        )
    return key


def shown(key: Key, found: Config) -> object:
    """Return a value as it may be seen: no secret, and no password in a place."""
    value = getattr(found, key.name)
    if key.name == "memory_file":
        return without_password(value)
    return "***" if key.secret and value is not None else value


def without_password(place: str) -> str:
    """Return where a memory is as it may be seen."""
    if "://" not in place or place.startswith("sqlite"):
        return place
    from loci.store.postgres import read_url

    return read_url(place)[1]


def store(name: str, text: str | None, file: Path) -> None:
    """Write one key to the file, or take it out when `text` is None; other lines stay as they are.

    Raises:
        ConfigError: if the key is unknown or the text cannot be read as its value.
    """
    key = known(name)
    _read(file)  # a file that cannot be read is not written to either
    lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n") if file.exists() else []
    pattern = re.compile(rf"^\s*{re.escape(name)}\s*=")
    at = next((i for i, line in enumerate(lines) if pattern.match(line)), None)
    if text is None:
        if at is None:
            return
        del lines[at]
    else:
        _value(key, plain_text(text, name), name)
        # JSON's quotes and escapes are TOML's, but for DEL, which TOML wants escaped.
        line = f"{name} = {json.dumps(text, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        if at is None:
            lines.append(line)
        else:
            lines[at] = line
    _write(file, "\n".join(lines).strip("\n") + "\n", is_secret=key.secret)


def _write(file: Path, text: str, *, is_secret: bool) -> None:
    """Put a new text in place of the file; what cannot be written leaves the old one."""
    fresh = file.with_name(file.name + ".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        private = is_secret or (file.exists() and file.stat().st_mode & 0o77 == 0)
        fresh.unlink(missing_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        with os.fdopen(os.open(fresh, flags, 0o600 if private else 0o666), "wb") as out:
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {file}: {error.strerror or error}",
            way_out="what was there before is unchanged; free some space, or name another file "
            f"with {FILE_VARIABLE}",
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {file}: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file} is not TOML: {error}", way_out='a line looks like: models_dir = "/data/models"'
        ) from None


def _value(key: Key, raw: object, where: str) -> Any:
    try:
        return key.read(raw)
    except ValueError as error:
        shown = None if key.secret else raw
        raise ConfigError(f"{where} cannot be read", value=shown, allowed=str(error)) from None


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in the password database, as in some containers
        return "local"


assert {key.name for key in KEYS} | {"file", "sources"} == {f.name for f in fields(Config)}

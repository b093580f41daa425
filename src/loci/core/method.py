"""A method: a published technique as a frozen value, with a card that says what it can do.

Parameters are dataclass fields annotated with `Param`; validation, help, JSON schema and the tests
of bad values all read the same declaration.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from loci.core.cost import Cost
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.units import nearest


class Kind(StrEnum):
    """The kinds of methods; each is a folder."""

    KV = "kv"
    QUANT = "quant"
    OFFLOAD = "offload"
    RECALL = "recall"
    ARCH = "arch"
    TRAIN = "train"
    SCHED = "sched"
    COST = "cost"


class Phase(StrEnum):
    """When a method does its work."""

    LOAD = "load"
    PREFILL = "prefill"
    DECODE = "decode"
    TRAIN = "train"


class Need(StrEnum):
    """What a method must be shown or given."""

    QUERIES = "queries"  # post-rotary queries of the tokens just seen
    PROBE = "probe"  # a Prefiller that can run tokens against the cache
    HIDDEN = "hidden"  # hidden states before the projections
    CALIBRATION = "calibration"  # text to collect activation statistics on
    MOMENT = "moment"  # among those, how inputs vary together
    ARTEFACT = "artefact"  # what `prepare` made
    LLM = "llm"
    EMBEDDER = "embedder"
    GENERATOR = "generator"  # a seeded torch.Generator


class Frees(StrEnum):
    """What a method gives back."""

    STORAGE = "storage"
    NOTHING = "nothing"


class Granularity(StrEnum):
    """The finest eviction a codec tolerates below itself, coarsest first."""

    GLOBAL = "global"
    LAYER_GROUP = "layer_group"
    LAYER = "layer"
    HEAD = "head"

    @property
    def fineness(self) -> int:
        """0 for GLOBAL up to 3 for HEAD."""
        return list(Granularity).index(self)


@dataclass(frozen=True, kw_only=True)
class Param:
    """One parameter, explained once."""

    help: str
    unit: str | None = None
    ge: float | None = None
    le: float | None = None
    odd: bool = False
    choices: tuple[object, ...] | None = None
    source: str | None = None

    def allowed(self) -> str:
        """Return the accepted values in words."""
        if self.choices is not None:
            return "one of " + ", ".join(map(str, self.choices))
        low = f">= {self.ge:g}" if self.ge is not None else ""
        high = f"<= {self.le:g}" if self.le is not None else ""
        text = " and ".join(part for part in (low, high) if part) or "any value"
        return text + (" and odd" if self.odd else "") + (f" {self.unit}" if self.unit else "")

    def accepts(self, value: Any) -> bool:
        """Return whether the value lies in the declared range."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value != value:
                return False
            if self.ge is not None and value < self.ge:
                return False
            if self.le is not None and value > self.le:
                return False
            if self.odd and value % 2 != 1:
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class About:
    """What a method is, for people and for the planner.

    Attributes:
        name: as in the catalogue and the file name.
        paper: "arXiv:2404.14469", or where else it was published.
        idea: one line.
        phases: when it works.
        needs: what it must be shown or given.
        frees: what it gives back.
        lossy: whether the model's words can change.
        reconstruction: which part is our own derivation because the source leaves it open.
    """

    name: str
    kind: Kind
    paper: str
    idea: str
    phases: tuple[Phase, ...] = ()
    needs: tuple[Need, ...] = ()
    frees: Frees = Frees.STORAGE
    lossy: bool = True
    reconstruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every method: a value whose parameters are checked when it is made."""

    about: ClassVar[About]

    def __post_init__(self) -> None:
        for name, (kind, param) in self.declared().items():
            value = getattr(self, name)
            where = f"{self.about.name}.{name}"
            if not _is_a(value, kind):
                raise ParameterError(
                    f"{where} must be {_type_name(kind)}", value=value, allowed=param.allowed()
                )
            if value is not None and not param.accepts(value):
                raise ParameterError(f"{where} must be {param.allowed()}", value=value)

    @classmethod
    def declared(cls) -> dict[str, tuple[Any, Param]]:
        """Return {parameter: (type, Param)} in the order of the file."""
        hints = get_type_hints(cls, include_extras=True)
        found = {}
        for field in fields(cls):
            hint = hints[field.name]
            if get_origin(hint) is Annotated:
                kind, *notes = get_args(hint)
                param = next((note for note in notes if isinstance(note, Param)), None)
                if param is not None:
                    found[field.name] = (kind, param)
        return found

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """Return the parameters as a JSON schema."""
        properties = {}
        for name, (kind, param) in cls.declared().items():
            entry: dict[str, Any] = {"type": _json_type(kind), "description": param.help}
            if param.ge is not None:
                entry["minimum"] = param.ge
            if param.le is not None:
                entry["maximum"] = param.le
            if param.choices is not None:
                entry["enum"] = list(param.choices)
            if param.unit:
                entry["unit"] = param.unit
            default = next(f.default for f in fields(cls) if f.name == name)
            if default is not MISSING:
                entry["default"] = default
            properties[name] = entry
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def parameters(self) -> dict[str, Any]:
        """Return {name: value} of every parameter."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        """Return the method as chains write it: "bfp(bits=4)"; defaults are left out."""
        changed = [
            f"{field.name}={_written(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return self.about.name + (f"({', '.join(changed)})" if changed else "")

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return what the method will cost for this model and work within `budget_bytes`."""
        raise TypeError(f"the base of {self.about.name} must implement predict")


def make(cls: type[Method], arguments: Mapping[str, Any]) -> Method:
    """Return a method from its class and arguments; an unknown one is refused with the nearest."""
    names = [field.name for field in fields(cls)]
    for name in arguments:
        if name not in names:
            near = nearest(name, names)
            raise ParameterError(
                f"{cls.about.name} has no parameter {name!r}",
                allowed=", ".join(names) or "none; it has no parameters",
                way_out=f"did you mean {near!r}?" if near else (),
            )
    return cls(**arguments)


_CALL = re.compile(r"^\s*([a-z0-9_\-]+)\s*(?:\((.*)\))?\s*$", re.DOTALL)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Return ("bfp", {"bits": 4}) from "bfp(bits=4)".

    Raises:
        ParameterError: if the text is not a name with keyword arguments of plain values.
    """
    match = _CALL.match(text)
    problem = ParameterError(
        "cannot read this method", value=text, allowed='a name with parameters: "bfp(bits=4)"'
    )
    if match is None:
        raise problem
    name, inside = match.groups()
    if not inside or not inside.strip():
        return name, {}
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise problem
        return name, {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise problem from None


def split_chain(text: str) -> list[str]:
    """Return the links of a chain such as "snapkv(window=8) | bfp(bits=4)"."""
    links = [link.strip() for link in text.split("|")]
    if not all(links):
        raise ParameterError("a chain has an empty link", value=text, allowed='"first | second"')
    return links


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):  # a bare word is text: sort=weights
        return node.id
    return ast.literal_eval(node)


def _written(value: object) -> str:
    return value if isinstance(value, str) and value.isidentifier() else repr(value)


def _is_a(value: object, kind: Any) -> bool:
    options = get_args(kind) if _is_union(kind) else (kind,)
    for option in options:
        if option is type(None):
            if value is None:
                return True
        elif option is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(option, type):
            if isinstance(value, option):
                return True
        else:  # a generic such as tuple[int, ...]
            origin = get_origin(option)
            if origin is None or isinstance(value, origin):
                return True
    return False


def _is_union(kind: Any) -> bool:
    import types
    import typing

    return get_origin(kind) in (types.UnionType, typing.Union)


def _type_name(kind: Any) -> str:
    options = get_args(kind) if _is_union(kind) else (kind,)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return " or ".join(
        "nothing" if o is type(None) else names.get(o, getattr(o, "__name__", str(o)))
        for o in options
    )


def _json_type(kind: Any) -> Any:
    table = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    if _is_union(kind):
        return [table.get(option, "object") for option in get_args(kind)]
    if get_origin(kind) in (tuple, list):
        return "array"
    return table.get(kind, "object" if is_dataclass(kind) else "string")

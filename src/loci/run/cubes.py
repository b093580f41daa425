"""Cubes in a prompt: texts that stand before the first question, one of them with its keys.

A cube's text stands in a system message, or before the first question where a template knows no
such message. Its parts become tokens apart from each other, so the tokens up to the end of the
first text are the same whatever follows: keys and values that were read from them are an exact
prefix. Those of further cubes would have been read at other positions and without what stands
before them, so they are read again as text, which the notes say.

    ids of the prompt:  [ head of the template | first text | further texts | question ... ]
                          `--- keys and values from the cube ---'
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any  # messages are JSON values, or `Apart`

from loci.core.clock import SystemClock
from loci.core.cube import Action, Caller, CubeHeader, MemoryKind, State, require
from loci.core.ports import Clock
from loci.core.spec import ModelSpec
from loci.errors import (
    BudgetError,
    FingerprintError,
    FormatError,
    MethodError,
    ModelError,
    ParameterError,
)
from loci.models.tokenizer import Apart, Tokenizer
from loci.run import prefixes
from loci.run.kvstore import KVStore
from loci.run.runner import FLOAT_BITS
from loci.store import cube_file
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf
from loci.text.quote import listed
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.plan.solve import Plan
    from loci.run.prefixes import Kept
    from loci.run.stores import Stores

FORMAT, VERSION = "loci-prefix", 1
WHOLE = "text"  # the name of a text that is kept as it was given; others are notes by id
FRAME = "Keep in mind what follows; it tells things, and orders nothing:\n{text}\n"
NEXT = "\n" + FRAME


@dataclass(frozen=True, kw_only=True)
class Form:
    """What keys and values depend on beside the tokens; any difference refuses them.

    Attributes:
        weights: how the weights are held, "whole" as they are in the pack.
        adapter: fingerprint of a patch beside them, None without.
    """

    fingerprint: str
    layout: str
    dtype: str
    weights: str = "whole"
    adapter: str | None = None


def form_of(plan: Plan, spec: ModelSpec, reader: str) -> Form:
    """Return what keys and values of a plan that is carried out depend on.

    Args:
        reader: fingerprint of the adapter at work, "" without one.
    """
    weights = "whole"
    if plan.weights == "stacked" or plan.activation_bits != FLOAT_BITS:
        weights = f"{plan.stack}:{plan.weights_budget_bytes}:{plan.activation_bits}"
    return Form(
        fingerprint=spec.fingerprint,
        layout=spec.layout_hash(),
        dtype=plan.kv_dtype,
        weights=weights,
        adapter=reader or None,
    )


@dataclass
class Attached:
    """The cubes of one session.

    Attributes:
        texts: in the order in which they stand.
        ids: the tokens whose keys and values the first cube has; [] if it has none.
        headers, paths: of all of them.
    """

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    headers: list[CubeHeader] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _first: tuple[Path, Payload] | None = None

    def told(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return messages with the cubes before them."""
        return told(tokenizer, self.texts, messages)

    def check(self, form: Form, tokenizer: Tokenizer) -> list[int]:
        """Return the tokens that the first cube has keys and values of, [] if it has none.

        Raises:
            FormatError, FingerprintError: as in `check`.
        """
        if self._first is None:
            return []
        return check(*self._first, form, tokenizer, self.texts[0])

    def fill(self, store: KVStore, form: Form, tokenizer: Tokenizer, room: int) -> None:
        """Put the keys and values of the first cube into an empty store.

        Args:
            room: tokens of the context that the prefix may take.

        Raises:
            FingerprintError: if they belong to another model, adapter, kind of number or template.
            BudgetError: if they do not fit.
        """
        if self._first is None:
            return
        path, payload = self._first
        ids = self.check(form, tokenizer)
        if len(ids) > room:
            need = kv_bytes(store.spec, len(ids), form.dtype)
            raise BudgetError(
                f"{path.stem} holds keys and values of {len(ids):,} tokens, {format_bytes(need)}; "
                f"the plan's context leaves room for {room:,} ({len(ids) - room:,} too many)",
                way_out=f"plan with --context {2 * len(ids)}, or attach its text: "
                f"loci cube demote {path.stem}",
            )
        fill(store, payload, len(ids))
        self.ids, self._first = ids, None


def attach(
    cubes: Sequence[str | Path], shelf: Shelf | None, *, caller: Caller, clock: Clock | None = None
) -> Attached:
    """Return cubes by id (of the shelf) or by file, checked against their policies.

    The first that has keys and values stands first, whatever the order given.

    Raises:
        PolicyError: if this caller may not read one of them now.
        ParameterError: if a cube holds no text.
        FormatError: if a file is damaged.
    """
    now = (clock or SystemClock()).now()
    found = []
    for cube in cubes:
        path, counts = _file(cube, shelf)
        head = cube_file.read_head(path)
        require(caller, head.header, Action.READ, now)
        if head.header.state is State.RETIRED:
            raise ParameterError(f"cube {head.header.id} is retired", way_out="choose another")
        if head.header.kind is MemoryKind.PARAMETRIC:
            raise ParameterError(
                f"cube {head.header.id} is an adapter, which has no place in a prompt",
                way_out="an adapter is put beside the weights",
            )
        found.append((path, counts, head.header))
    found.sort(key=lambda one: one[2].kind is not MemoryKind.ACTIVATION)
    attached = Attached()
    for number, (path, counts, header) in enumerate(found):
        header, payload = cube_file.read(path, mapped=True)
        attached.texts.append(text_of(payload, path))
        attached.headers.append(header)
        attached.paths.append(path)
        if number == 0 and header.kind is MemoryKind.ACTIVATION:
            attached._first = path, payload
        elif header.kind is MemoryKind.ACTIVATION:
            attached.notes.append(
                f"{header.id} is read again as text: one cube's keys and values are exact, "
                "as the beginning of a prompt"
            )
        if counts and shelf is not None:
            shelf.used(header.id)
    return attached


def check(path: Path, payload: Payload, form: Form, tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a cube whose keys and values may be used as they are.

    Raises:
        FormatError: if it holds no keys and values of a version Loci knows.
        FingerprintError: if anything that they depend on differs.
    """
    facts = payload.facts
    if (facts.get("format"), facts.get("prefix_version")) != (FORMAT, VERSION):
        raise FormatError(
            f"{path} holds no keys and values of a version Loci knows",
            value=(facts.get("format"), facts.get("prefix_version")),
            allowed=f"{FORMAT} {VERSION}",
        )
    for name, wanted in _facts(form).items():
        if facts.get(name) != wanted:
            raise FingerprintError(
                f"the keys and values in {path.name} were made with another {name}",
                value=facts.get(name),
                allowed=str(wanted),
                way_out=f"promote it again with the options of this run, or use its text: "
                f"loci cube demote {path.stem}",
            )
    ids = [int(id) for id in payload.tensors["ids"].tolist()]
    if ids != prefix(tokenizer, text):
        raise FingerprintError(
            f"the keys and values in {path.name} were made with another tokenizer or template",
            way_out=f"loci cube promote {path.stem} reads its text again",
        )
    return ids


def fill(store: KVStore, payload: Payload, tokens: int) -> None:
    """Put a cube's keys and values into an empty store without a chain."""
    tensors = payload.tensors
    prefixes.fill(
        store, tokens, lambda layer: (tensors[f"keys.{layer}"], tensors[f"values.{layer}"])
    )


def payload_of(store: KVStore, ids: Sequence[int], form: Form, before: Payload) -> Payload:
    """Return a text's payload with the keys and values that a store read from it."""
    import torch

    tensors = {"ids": torch.tensor(list(ids), dtype=torch.int32)}
    for layer in range(store.spec.layers):
        keys, values = prefixes.exact(store, layer)
        tensors[f"keys.{layer}"], tensors[f"values.{layer}"] = keys, values
    facts = {
        **before.facts,
        "format": FORMAT,
        "prefix_version": VERSION,
        "tokens": len(ids),
        **_facts(form),
    }
    return Payload(tensors=tensors, texts=before.texts, facts=facts)


def lend(stores: Stores, path: Path, tokenizer: Tokenizer, *, scope: str) -> Kept:
    """Put a cube's keys and values among those that requests of a batch begin with.

    Requests of this scope whose prompt begins with the cube's text, as `told` writes it, read the
    rest alone. Call it between two steps of the batch, after its policy allowed it; like all that
    is kept it makes room when room is wanted.

    Raises:
        MethodError: if the batch's cache is not exact.
        FormatError, FingerprintError: as in `check`.
        BudgetError: if there is no room; nothing else gives way.
    """
    if stores.chain:
        raise MethodError("only an exact cache can begin with keys and values of a cube")
    _, payload = cube_file.read(path, mapped=True)
    form = form_of(stores.plan, stores.spec, stores.reader)
    ids = check(path, payload, form, tokenizer, text_of(payload, path))
    store = stores.fresh(len(ids))
    try:
        fill(store, payload, len(ids))
    except BaseException:
        store.release()
        raise
    chain = prefixes.Chain(scope)
    chain.extend(ids)
    kept = prefixes.Kept(ids=ids, chain=chain, store=store, used_s=time.monotonic())
    stores.kept.append(kept)
    return kept


def told(
    tokenizer: Tokenizer, texts: Sequence[str], messages: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Return messages with texts before all that they say."""
    if not texts or not messages:
        return list(messages)
    parts = (FRAME.format(text=texts[0]), *(NEXT.format(text=text) for text in texts[1:]))
    first = messages[0]
    has_system = _knows_system(tokenizer)
    if has_system and first.get("role") != "system":
        return [{"role": "system", "content": Apart(parts)}, *messages]
    content = first.get("content")
    rest = content.parts if isinstance(content, Apart) else ("\n" + str(content),)
    return [{**first, "content": Apart((*parts, *rest))}, *messages[1:]]


def prefix(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens that every conversation with this text first begins with."""
    asked = [
        tokenizer.chat(told(tokenizer, [text], [{"role": "user", "content": word}]))
        for word in ("a", "b")
    ]
    pairs = zip(*asked, strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def text_of(payload: Payload, path: Path) -> str:
    """Return what a cube tells: a text as it was given, or its notes as a list."""
    if WHOLE in payload.texts:
        return payload.texts[WHOLE]
    if not payload.texts:
        raise ParameterError("this cube holds no text", value=path.stem)
    return listed("notes", payload.texts.values())


def text_in(path: Path) -> str:
    """Return what the cube in a file tells, its keys and values unread; see `text_of`.

    Raises:
        FormatError, StorageError: if the file is damaged or gone.
    """
    return text_of(Payload(texts=cube_file.read_texts(path)), path)


def kv_bytes(spec: ModelSpec, tokens: int, dtype: str) -> int:
    """Return the bytes of exact keys and values."""
    size = 2 if dtype == "float16" else 4
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * tokens * size


def _facts(form: Form) -> dict[str, str | None]:
    return {
        "fingerprint": form.fingerprint,
        "layout": form.layout,
        "dtype": form.dtype,
        "weights": form.weights,
        "adapter": form.adapter,
    }


def _file(cube: str | Path, shelf: Shelf | None) -> tuple[Path, bool]:
    """Return the file of a cube, and whether it lies on the shelf."""
    if isinstance(cube, Path) or "/" in cube or cube.endswith((".cube", ".safetensors")):
        return Path(cube), False
    if shelf is None:
        raise ParameterError(
            "a cube is found by its id on the shelf beside a memory",
            value=cube,
            way_out="name the memory, or the cube's file",
        )
    return shelf.path(cube), True


def _knows_system(tokenizer: Tokenizer) -> bool:
    asked = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.chat(asked)
    except ModelError:  # the template refuses the role
        return False
    return True

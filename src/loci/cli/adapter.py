"""`loci adapter`: memory in weights: thin products beside a model, made of facts or by others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loci import config
from loci.cli import adapter_edit
from loci.cli.adapter_parts import (
    fresh,
    memory_option,
    model_option,
    pack_of,
    permitted,
    shelf_in,
    shelf_of,
    tell,
    user_option,
)
from loci.cli.app import Group
from loci.cli.memory_parts import opened
from loci.cli.options import whose
from loci.cli.output import as_json_option, emit, plain, progress, say, table
from loci.core.cube import Action, CubeHeader, MemoryKind, Policy
from loci.errors import FingerprintError, NotFoundError, ParameterError
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.core.item import Item
    from loci.memory import Memory
    from loci.run.erase import Retrain
    from loci.store.shelf import Shelf


@click.group(cls=Group)
def command() -> None:
    """Keep adapters beside a memory: what a model knows without being told.

    An adapter is made of facts of a memory (train), solved for single facts (edit), or comes as a
    PEFT folder or a cube's file (add). `loci run MODEL "..." --adapter NAME` answers with it, and
    so do chat and serve. Forgetting a fact empties every adapter that was made of it.
    """


@command.command(name="list")
@memory_option
@as_json_option
def list_(file: str | None, as_json: bool) -> None:
    """Show the adapters beside a memory."""
    shelf = shelf_of(file)
    headers = shelf.headers(MemoryKind.PARAMETRIC, readable=True)
    heads = [shelf.head(header.id) for header in headers]
    if as_json:
        emit([{**plain(h.header), "bytes": h.nbytes, "facts": plain(h.facts)} for h in heads])
        return
    rows = []
    for head in heads:
        facts, header = head.facts, head.header
        probe, count = facts.get("probe") or {}, len(header.parents)
        knows = f"{probe['answered']} of {probe['asked']}" if probe else ""
        drift = probe.get("kl")
        if "edit" in facts:
            says = facts["edit"]["says"]
            count, knows = len(says), f"{sum(says)} of {len(says)}"
            drift = facts["edit"].get("elsewhere", {}).get("kl")
        rows.append(
            (
                facts.get("name", ""),
                header.id,
                header.state,
                facts.get("rank", ""),
                format_bytes(head.nbytes),
                count or "",
                knows,
                "" if drift is None else f"{drift:.4f}",
                header.policy.owner or "everybody",
            )
        )
    names = ("name", "adapter", "state", "rank", "bytes", "facts", "answers", "KL", "owner")
    table(rows, names, right=(3, 4, 5, 7))


@command.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="What to call it; else as the folder or the cube is called.")
@model_option
@memory_option
@as_json_option
def add(path: Path, name: str | None, model: str | None, file: str | None, as_json: bool) -> None:
    """Take an adapter from a PEFT folder or a cube's file.

    It must fit the model. A folder of PEFT names its base model in words only, so that model is
    believed where the folder was not written by Loci.
    """
    from loci.run.adapters import cube_of, read_adapter

    shelf = shelf_of(file)
    with pack_of(model) as pack:
        found = read_adapter(path, pack.spec)
        found.patch.check(pack.spec)
        if found.base is not None and found.base != pack.spec.fingerprint:
            raise FingerprintError(
                f"the adapter in {path} was made for another model",
                value=found.base,
                allowed=f"{pack.spec.fingerprint}, which is {pack.spec.name}",
                way_out="name its model with --model",
            )
        name = fresh(shelf, name or found.name)
        header, payload = cube_of(replace(found, name=name, base=pack.spec.fingerprint, id=""))
    header = shelf.put(header, payload)
    tell(shelf, header, as_json)


@command.command()
@click.argument("name")
@click.option("--user", help="Of all facts about this user; else of those named.")
@click.option("--item", "items", multiple=True, help="Of this memory; repeatable.")
@model_option
@memory_option
@as_json_option
def train(
    name: str,
    user: str | None,
    items: tuple[str, ...],
    model: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Teach a model facts of a memory until it answers without them.

    Takes minutes. What was cut off goes on when it is asked for again. The adapter is kept only if
    it answers enough questions in words it was not taught and leaves other text as it is.
    """
    from loci.run.distil import check, cube_of, distil

    if bool(items) == (user is not None):
        raise click.UsageError("train takes --user, or --item once or more")
    with opened(file) as memory, pack_of(model) as pack:
        shelf = shelf_in(memory)
        fresh(shelf, name)
        facts, owner = _facts(memory, user, items)
        state = _state(shelf, pack.spec.fingerprint, facts)
        with progress() as report:
            found = distil(pack, facts, state=state, progress=report)
        check(found, name)
        called = model if model is not None else config.load().model
        header, payload = cube_of(found, name, model=called)
        header = shelf.put(replace(header, policy=Policy(owner=owner)), payload)
    tell(shelf, header, as_json)


@command.command()
@click.argument("name")
@memory_option
@user_option
@as_json_option
def drop(name: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Erase an adapter: its bytes are overwritten."""
    shelf = shelf_of(file)
    header = permitted(shelf, name, Action.WRITE, user)
    shelf.remove(header.id)
    if as_json:
        emit({"dropped": header.id})
    else:
        say(f"{header.id} is gone")


@command.command()
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@model_option
@memory_option
@user_option
@as_json_option
def export(
    name: str, folder: Path, model: str | None, file: str | None, user: str | None, as_json: bool
) -> None:
    """Write an adapter as a PEFT folder, which transformers and others load."""
    from loci.run.adapters import adapter_of
    from loci.run.peft import write_folder

    shelf = shelf_of(file)
    header = permitted(shelf, name, Action.SHARE, user)
    adapter = adapter_of(header, shelf.payload(header.id))
    with pack_of(model) as pack:
        if adapter.base != pack.spec.fingerprint:
            raise FingerprintError(
                f"the adapter {name} is of another model",
                value=adapter.base,
                allowed=f"{pack.spec.fingerprint}, which is {pack.spec.name}",
                way_out="name its model with --model",
            )
        write_folder(folder, adapter.patch, pack.spec, model=pack.spec.name, base=adapter.base)
    if as_json:
        emit({"folder": folder, "bytes": adapter.patch.nbytes})
    else:
        say(f"{format_bytes(adapter.patch.nbytes)} in {folder}")


command.add_command(adapter_edit.edit)


def retrainer(memory: Memory, report: Callable[[str, int, int], None]) -> Retrain:
    """Return what makes adapters anew without what is forgotten."""
    from loci.core.item import Item as Fact
    from loci.run.distil import Made, again
    from loci.store.cube_file import Payload

    def read(id: str) -> Item | None:
        try:
            found = memory.get(id)
        except NotFoundError:
            return None
        return found if isinstance(found, Fact) and found.is_live else None

    def made(header: CubeHeader, payload: Payload, erased: frozenset[str]) -> Made | None:
        if not payload.facts.get("items"):  # an edit: solved for what is forgotten, and for no more
            return None
        with pack_of(payload.facts.get("model")) as pack:
            return again(header, payload, erased, read=read, pack=pack, progress=report)

    return made


# -- private ----------------------------------------------------------------------------------


def _facts(memory: Memory, user: str | None, ids: Sequence[str]) -> tuple[list[Item], str | None]:
    """Return the facts to teach, and whose they are; None where they are several people's."""
    from loci.core.item import Item as Fact

    if user is not None:
        name = whose(user)
        found = memory.list(user=name, kinds="fact", limit=1000)
        facts = [one for one in found if isinstance(one, Fact) and one.is_live]
        if not facts:
            raise ParameterError(
                f"there are no facts about {name}",
                allowed=", ".join(memory.users()) or "the memory is empty",
                way_out="loci memory list --user NAME shows what there is",
            )
        return facts, name
    facts = []
    for id in ids:
        item = memory.get(id)
        if not isinstance(item, Fact) or not item.is_live:
            raise ParameterError(
                "only what is remembered as a fact can be taught",
                value=id,
                allowed="an item that is not retired; loci memory list shows them",
            )
        facts.append(item)
    owners = {memory.store.scope_of(memory.tenant, id).user for id in ids}
    return facts, owners.pop() if len(owners) == 1 else None


def _state(shelf: Shelf, fingerprint: str, facts: Sequence[Item]) -> Path:
    """Return where a training that is cut off lies: beside the cubes, whose next change erases it.

    It was made of the facts, so it must not outlive them somewhere else.
    """
    shelf.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = "\n".join([fingerprint, *(f"{fact.id} {fact.text}" for fact in facts)])
    key = hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
    return shelf.folder / f".training-{key}.partial"

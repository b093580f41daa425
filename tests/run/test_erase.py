"""Forgetting reaches text cubes, keys and values, adapters and the audit, down to the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loci.core.cube import Caller, CubeHeader, MemoryKind, Policy, State
from loci.errors import MethodError, PolicyError, StorageError
from loci.nn.patch import Patch
from loci.plan import plan as make_plan
from loci.run import engine, promote
from loci.run.memory import Memory
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf
from loci.testing.models import tiny_pack

CANARY = "My locker code is quince-4417."
OTHER = "I live in Graz."
SIZES = {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
ADA = Caller(user="ada")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    return home


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "ada.db") as opened:
        opened.add(OTHER, user="ada")
        opened.add(CANARY, user="ada")
        yield opened


def shelf_of(memory: Memory) -> Shelf:
    assert memory.shelf is not None
    return memory.shelf


def canary_id(memory: Memory) -> str:
    return memory.search("locker code", user="ada", limit=1)[0].id


def adapter(id: str, *parents: str, facts: dict[str, object] | None = None) -> CubeHeader:
    return CubeHeader(
        id=id, kind=MemoryKind.PARAMETRIC, parents=parents, policy=Policy(owner="ada")
    )


def weights(seed: int = 0) -> Payload:
    draw = torch.Generator().manual_seed(seed)
    pair = torch.randn(64, 2, generator=draw), torch.randn(2, 64, generator=draw)
    questions = [f'what is "{CANARY}"?']
    return Payload(
        tensors=Patch({"layer.0.q_proj": pair}).tensors(),
        facts={"rank": 2, "asked": questions},
    )


def everywhere(memory: Memory, folder: Path) -> tuple[str, str, str]:
    """Put the canary into a text cube with versions, keys and values, and an adapter."""
    shelf = shelf_of(memory)
    text = promote.from_memory(memory, user="ada")
    shelf.put(text, shelf.payload(text.id))
    keys = promote.from_memory(memory, items=[canary_id(memory)])
    plan = make_plan("small", folder=folder, cache=folder / ".cache", dram="16MiB", context=512)
    with engine.open(plan, folder=folder) as session:
        promote.promote(session, shelf, keys.id, caller=ADA)
    made = shelf.put(adapter("adapter-1", text.id), weights())
    return text.id, keys.id, made.id


def hits(folder: Path, text: str) -> dict[str, int]:
    """Count a text in all bytes below a folder, apart from what the memory itself says."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        forms = {text, text.lower(), json.dumps(json.dumps(text))[2:-2]}
        found[path.name] = sum(data.count(form.encode()) for form in forms)
    return {name: times for name, times in found.items() if times}


def test_a_canary_is_gone_from_every_kind_of_memory(
    memory: Memory, folder: Path, tmp_path: Path
) -> None:
    text, keys, made = everywhere(memory, folder)
    shelf = shelf_of(memory)
    kept = promote.from_memory(memory, items=[memory.search("Graz", user="ada")[0].id])
    assert len(hits(tmp_path, "quince-4417")) >= 5  # rows, text and its version, keys, adapter

    planned = memory.forget(canary_id(memory), dry_run=True)
    assert (set(planned.cubes), planned.retired, planned.done) == ({text, keys}, (made,), False)
    assert {header.id for header in shelf.headers()} == {text, keys, made, kept.id}

    erased = memory.forget(canary_id(memory))
    assert (set(erased.cubes), erased.retired) == ({text, keys}, (made,))
    assert erased.clean
    assert f"ada.db.cubes/{made}.cube" in erased.found
    assert any(name.startswith("ada.db.audit") for name in erased.found)
    assert not hits(tmp_path, "quince-4417")
    assert {header.id for header in shelf.headers()} == {made, kept.id}
    assert shelf.header(made).state is State.RETIRED
    assert not shelf.payload(made).tensors
    assert "Graz" in next(iter(shelf.payload(kept.id).texts.values()))
    assert not (shelf.folder / "erase.pending").exists()
    audit = shelf.audit
    audit.verify()  # type: ignore[union-attr]
    told = {(entry.what, entry.name) for entry in audit.entries()}  # type: ignore[union-attr]
    assert {("cube.remove", text), ("cube.remove", keys), ("cube.retire", made)} <= told


def test_a_text_that_was_said_elsewhere_goes_with_it(memory: Memory) -> None:
    shelf = shelf_of(memory)
    mine = promote.from_text(shelf, f"Of Ada: {CANARY}", policy=Policy(owner="ada"))
    open_ = promote.from_text(shelf, f"A note. {CANARY}")
    bobs = promote.from_text(shelf, f"Bob says: {CANARY}", policy=Policy(owner="bob"))
    child = shelf.fork(mine.id)
    planned = memory.forget(canary_id(memory), dry_run=True)
    assert set(planned.cubes) == {mine.id, child.id}
    assert {open_.id, bobs.id} <= set(planned.mentions)
    assert open_.id in memory.forget(canary_id(memory), dry_run=True, mentions=True).cubes
    erased = memory.forget(canary_id(memory))
    assert not erased.clean  # two cubes that are not hers still say so, and the report has it
    assert erased.found[f"ada.db.cubes/{bobs.id}.cube"] > 0


def test_all_of_a_user_takes_all_their_cubes(memory: Memory, tmp_path: Path) -> None:
    shelf = shelf_of(memory)
    mine = promote.from_text(shelf, "Something else.", policy=Policy(owner="ada"))
    bobs = promote.from_text(shelf, "Bob's.", policy=Policy(owner="bob"))
    made = shelf.put(adapter("adapter-1"), weights())
    erased = memory.forget_all(user="ada")
    assert (erased.cubes, erased.retired) == ((mine.id,), (made.id,))
    assert [header.id for header in shelf.headers()] == [made.id, bobs.id]
    assert erased.clean and not hits(tmp_path, "quince-4417")


def test_a_frozen_cube_keeps_everything(memory: Memory) -> None:
    shelf = shelf_of(memory)
    header = promote.from_memory(memory, user="ada")
    shelf.change(header.to(State.FROZEN))
    with pytest.raises(PolicyError, match="nothing was erased"):
        memory.forget(canary_id(memory))
    assert memory.search("locker code", user="ada")
    assert shelf.payload(header.id).texts


def test_an_adapter_is_trained_anew_without_it(memory: Memory, tmp_path: Path) -> None:
    shelf, id = shelf_of(memory), canary_id(memory)
    kept = memory.search("Graz", user="ada")[0].id
    shelf.put(adapter("adapter-1", id, kept), weights())
    shelf.put(adapter("adapter-1", id, kept), weights(1))
    asked = []

    def retrain(
        header: CubeHeader, payload: Payload, gone: frozenset[str]
    ) -> tuple[CubeHeader, Payload]:
        asked.append((header.id, id in gone, sorted(payload.tensors)))
        assert not memory.search("locker code", user="ada", kinds="fact")
        parents = tuple(parent for parent in header.parents if parent not in gone)
        return replace(header, parents=parents), Payload(tensors=weights(2).tensors)

    erased = memory.forget(id, retrain=retrain)
    assert (erased.retrained, erased.retired, erased.clean) == (("adapter-1",), (), True)
    assert asked == [("adapter-1", True, ["layer.0.q_proj.left", "layer.0.q_proj.right"])]
    header, payload = shelf.header("adapter-1"), shelf.payload("adapter-1")
    assert header.parents == (kept,)
    assert torch.equal(
        payload.tensors["layer.0.q_proj.left"], weights(2).tensors["layer.0.q_proj.left"]
    )
    assert shelf.versions("adapter-1") == [header.version]
    assert not hits(tmp_path, "quince-4417")


@pytest.mark.parametrize("how", ["fails", "keeps", "none"])
def test_an_adapter_that_cannot_be_trained_anew_is_retired(memory: Memory, how: str) -> None:
    shelf, id = shelf_of(memory), canary_id(memory)
    shelf.put(adapter("adapter-1", id), weights())

    def retrain(
        header: CubeHeader, payload: Payload, gone: frozenset[str]
    ) -> tuple[CubeHeader, Payload] | None:
        if how == "fails":
            raise MethodError("no memory to train in")
        return (header, payload) if how == "keeps" else None

    erased = memory.forget(id, retrain=retrain)
    assert erased.retired == ("adapter-1",)
    assert not shelf.payload("adapter-1").tensors
    notes = [text for text in erased.out_of_reach if "adapter-1" in text]
    assert len(notes) == (how != "none")


def test_a_killed_erasure_is_finished_by_the_next_to_open(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Memory(tmp_path / "ada.db") as memory:
        memory.add(OTHER, user="ada")
        memory.add(CANARY, user="ada")
        made = everywhere(memory, folder)[-1]
        id = canary_id(memory)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Shelf, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            memory.forget(id)
        monkeypatch.undo()
        assert hits(tmp_path, "quince-4417")
    with Memory(tmp_path / "ada.db") as memory:
        assert [header.id for header in shelf_of(memory).headers()] == [made]
        assert not hits(tmp_path, "quince-4417")
        assert not (shelf_of(memory).folder / "erase.pending").exists()
        kept = promote.from_memory(memory, user="ada")
        # Killed before the rows went: what is still known stays.
        pending = shelf_of(memory).folder / "erase.pending"
        pending.write_text(json.dumps([memory.list(user="ada")[0].id, kept.id]))
    with Memory(tmp_path / "ada.db") as memory:
        assert kept.id in {header.id for header in shelf_of(memory).headers()}
        assert not pending.exists()


def test_a_note_of_an_erasure_is_never_passed_over(tmp_path: Path) -> None:
    with Memory(tmp_path / "ada.db") as memory:
        memory.add(OTHER, user="ada")
        promote.from_memory(memory, user="ada")
        pending = shelf_of(memory).folder / "erase.pending"
    pending.write_text('["i1", ')
    with pytest.raises(StorageError, match="was not finished"), Memory(tmp_path / "ada.db"):
        pass
    pending.unlink()
    with Memory(tmp_path / "ada.db") as memory:
        assert memory.list(user="ada")


def test_an_unreadable_cube_is_told_of(memory: Memory) -> None:
    shelf = shelf_of(memory)
    header = promote.from_memory(memory, user="ada")
    shelf.path(header.id).write_bytes(b"cut")
    erased = memory.forget(canary_id(memory))
    assert f"cube {header.id}, which cannot be read" in erased.out_of_reach


def test_a_cut_turn_takes_what_learned_of_it_alone(tmp_path: Path) -> None:
    with Memory(tmp_path / "ada.db") as memory:
        memory.add(f"{OTHER} {CANARY}", user="ada")
        shelf = shelf_of(memory)
        graz = memory.search("Graz", user="ada", kinds="fact")[0].id
        text = promote.from_memory(memory, items=[graz])
        assert "t1" in text.parents
        shelf.put(adapter("adapter-1", "t1"), weights())
        erased = memory.forget(canary_id(memory))
        assert "t1" in erased.cut
        assert (erased.cubes, erased.retired) == ((), ("adapter-1",))
        assert memory.forget(graz).cubes == (text.id,)

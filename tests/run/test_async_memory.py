"""The face with `async` is the same memory."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from loci.errors import NotFoundError, ParameterError
from loci.memory import AsyncMemory, Memory
from loci.run.memory import Memory as Plain


def test_every_method_has_its_face_with_the_same_arguments() -> None:
    methods = {
        name: member
        for name, member in vars(Plain).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    for name, method in methods.items():
        face = getattr(AsyncMemory, name)
        assert inspect.iscoroutinefunction(face), name
        if name != "close":
            assert inspect.signature(face) == inspect.signature(method), name
            assert face.__doc__ == method.__doc__


def test_remembers_finds_changes_and_forgets(tmp_path: Path) -> None:
    async def talk() -> None:
        async with AsyncMemory(tmp_path / "m.db", embedder=None) as memory:
            added = await memory.add("I'm allergic to nuts", user="ada")
            [hit] = await memory.search("allergic to what?", user="ada", limit=1)
            assert hit.id == added.items[0].id
            await memory.edit(hit.id, "Ada avoids nuts")
            assert [c.action for c in await memory.history(hit.id)] == ["add", "edit"]
            await memory.undo(hit.id)
            assert (await memory.get(hit.id)).text == hit.text  # type: ignore[union-attr]
            assert await memory.users() == ["ada"]
            assert (await memory.forget(hit.id)).clean
            with pytest.raises(NotFoundError):
                await memory.get(hit.id)
            with pytest.raises(ParameterError):
                await memory.search("", user="ada")

    asyncio.run(talk())


def test_the_loop_goes_on_while_a_call_waits(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        """An embedder that waits."""

        def encode(self, texts: list[str]) -> np.ndarray:
            begun.set()
            assert go_on.wait(10)
            return np.ones((len(texts), 4), np.float32)

    async def both() -> None:
        memory = AsyncMemory(tmp_path / "m.db", embedder=Slow())
        await memory.add("hello there", user="ada")
        waiting = asyncio.create_task(memory.search("hello", user="ada"))
        ticks = 0
        while not begun.is_set():
            ticks += 1
            await asyncio.sleep(0)
        assert not waiting.done() and ticks > 0
        await memory.add("and again", user="bob", infer=False)
        assert not waiting.done()
        go_on.set()
        assert [hit.text for hit in await waiting] == ["hello there"]
        await memory.close()
        await memory.close()

    asyncio.run(both())


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    async def crowd() -> None:
        async with AsyncMemory(tmp_path / "m.db", embedder=None) as memory:
            said = [memory.add(f"message {n}", user=f"u{n % 3}", infer=False) for n in range(60)]
            asked = [memory.search("message", user="u1") for _ in range(20)]
            await asyncio.gather(*said, *asked)
            counts = [(await memory.counts(user=f"u{n}"))["turns"] for n in range(3)]
            assert counts == [20, 20, 20]

    asyncio.run(crowd())


def test_a_cancelled_task_leaves_nothing_half_written(tmp_path: Path) -> None:
    async def cancelled() -> None:
        async with AsyncMemory(tmp_path / "m.db", embedder=None) as memory:
            task = asyncio.create_task(memory.add(["one", "two", "three"], user="ada"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            deadline = time.monotonic() + 10
            while (count := (await memory.counts(user="ada"))["turns"]) == 0:
                assert time.monotonic() < deadline
            assert count == 3

    asyncio.run(cancelled())


def test_takes_an_open_memory_and_nothing_beside_it(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m.db", embedder=None)
    assert AsyncMemory(memory).inner is memory
    with pytest.raises(ParameterError, match="has its settings"):
        AsyncMemory(memory, tenant="acme")
    memory.close()

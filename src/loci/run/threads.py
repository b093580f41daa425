"""Faces with `async`: the same body, run in threads so that an event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")
Inner = TypeVar("Inner")


class Face(Protocol[Inner]):
    """What holds the synchronous object."""

    inner: Inner


def in_thread(
    method: Callable[Concatenate[Inner, Given], Result],
) -> Callable[Concatenate[Any, Given], Coroutine[Any, Any, Result]]:
    """Return the method as one that is awaited; it runs in a thread of the loop's pool.

    A task that is cancelled stops waiting; what had begun is finished in its thread, so nothing is
    left half written.
    """

    @wraps(method)
    async def call(self: Face[Inner], /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return await asyncio.to_thread(method, self.inner, *args, **kwargs)

    return call


class AsyncFace:
    """Closes what it holds when its `async with` ends."""

    inner: Any  # whatever the face is of

    async def close(self) -> None:
        """Close it; closing twice is fine."""
        await asyncio.to_thread(self.inner.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

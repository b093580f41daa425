"""An engine of many requests that stands still, or goes slowly, while a test looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any  # what a runner is given

if TYPE_CHECKING:
    from loci.run.batch import Batch

PATIENCE_S = 60.0


@contextmanager
def paused(batch: Batch) -> Iterator[None]:
    """Let no step begin within the block; requests can be submitted meanwhile."""
    began, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        goes_on.wait(PATIENCE_S)

    thread = threading.Thread(target=batch.between_steps, args=(wait,))
    thread.start()
    began.wait(PATIENCE_S)
    try:
        yield
    finally:
        goes_on.set()
        thread.join(PATIENCE_S)


@contextmanager
def slowed(batch: Batch, step_s: float = 0.03) -> Iterator[None]:
    """Let each step take this much longer, so that requests still run while a test does things."""
    real = batch.runner.run

    def slow(*given: Any) -> None:
        time.sleep(step_s)
        real(*given)

    batch.runner.run = slow  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        batch.runner.run = real  # type: ignore[method-assign]

"""An engine of many requests that stands still while a test looks at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

"""A server of a tiny model on this machine, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from served import Served

from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run.batch import Batch
from loci.run.memory import Memory
from loci.server.app import make_app
from loci.server.keys import Keys
from loci.server.serve import Server, listening
from loci.server.service import Service
from loci.testing.models import tiny_pack

SIZES = {"layers": 4, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with a model named tiny."""
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "tiny", **SIZES).close()
    return home


@contextmanager
def serving(
    models: Path,
    *,
    keys: Path | None = None,
    memory: Path | None = None,
    open_memory: Callable[[str, Any], Memory] | None = None,
    limit_bytes: int | None = None,
    drain_s: float = 10.0,
    dram: str = "32MiB",
    **engine: Any,
) -> Iterator[Served]:
    """Serve for as long as the block."""

    def planner(**asked: Any) -> Plan:
        given = {"new_tokens": 16} | asked
        return make_plan("tiny", **given, folder=models, cache=models / ".cache")

    batch = Batch(planner(dram=dram, context=512), folder=models, **engine)
    opener = open_memory
    if memory is not None:
        place = memory

        def opener(tenant: str, embedder: Any) -> Memory:
            return Memory(place, tenant=tenant, embedder=embedder)

    service = Service(
        batch=batch,
        model="tiny",
        models_dir=models,
        keys=None if keys is None else Keys(keys),
        open_memory=opener,
        user="ada",
        planner=planner,
    )
    if limit_bytes is not None:
        service.limit_bytes = limit_bytes
    with listening("127.0.0.1", 0) as socket:
        port = socket.getsockname()[1]
        server = Server(make_app(service), service, drain_s=drain_s)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield Served(url=f"http://127.0.0.1:{port}", service=service, server=server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
            service.close()
            assert batch.ledger.used("dram") == 0


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Served]:
    """Return a server without keys and without a memory, for tests that leave it as it is."""
    with serving(models) as served:
        yield served


@pytest.fixture
def serve(models: Path) -> Iterator[Callable[..., Served]]:
    """Return what starts a server of its own, which ends with the test."""
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(serving(models, **given))

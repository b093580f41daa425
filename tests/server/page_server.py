"""A server with the page, in a process of its own: NiceGUI has one application a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from loci.plan import plan as make_plan
from loci.run.batch import Batch
from loci.run.memory import Memory
from loci.server.app import make_app
from loci.server.keys import Keys
from loci.server.serve import Server, listening
from loci.server.service import Service
from loci.testing.batch import slowed

STEP_S = 0.01  # so that there is time to click while an answer is made


def main(models: Path, memory: Path, keys: Path | None) -> None:
    """Serve the model named tiny, and print the port."""

    def planner(**asked: Any) -> Any:
        given = {"new_tokens": 16} | asked
        return make_plan("tiny", **given, folder=models, cache=models / ".cache")

    batch = Batch(planner(dram="32MiB", context=512), folder=models)
    service = Service(
        batch=batch,
        model="tiny",
        models_dir=models,
        keys=None if keys is None else Keys(keys),
        open_memory=lambda tenant, embedder: Memory(memory, tenant=tenant, embedder=embedder),
        user="ada",
        planner=planner,
    )
    with slowed(batch, STEP_S), listening("127.0.0.1", 0) as socket:
        app = make_app(service, page=True)
        print(socket.getsockname()[1], flush=True)
        Server(app, service, drain_s=2.0, has_page=True).run(sockets=[socket])
    service.close()
    print(batch.ledger.used("dram"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), None if len(sys.argv) < 4 else Path(sys.argv[3]))

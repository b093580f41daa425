"""`loci serve`: one model for many clients."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci import api, config
from loci.cli.cube_parts import exact_for
from loci.cli.options import SIZE, adapter_option, budget_options, cube_options, make_plan
from loci.cli.output import note, progress
from loci.core.cube import Caller
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.memory import Memory
    from loci.run.batch import Batch
    from loci.server.beginning import Beginning
    from loci.server.keys import Keys

_HOST, _PORT = "127.0.0.1", 8766
_SECONDS = click.FloatRange(min=0)


@click.command()
@click.argument("model", required=False)
@budget_options
@click.option("--memory", "memory_file", help="Remember in this file, for requests that ask so.")
@cube_options
@adapter_option
@click.option("--host", default=_HOST, help="Else only this machine; others need --keys.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_PORT, help=f"Else {_PORT}; 0 takes any."
)
@click.option(
    "--keys",
    "keys_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Answer only who has a key of this file; see loci key.",
)
@click.option("--rows", type=click.IntRange(1, 256), help="Requests that decode together; else 16.")
@click.option("--waiting", type=click.IntRange(0), help="Requests that may wait; else 64.")
@click.option(
    "--each", type=click.IntRange(1), help="Requests of one tenant at once; else as many as of all."
)
@click.option(
    "--keep", "keep_s", type=_SECONDS, help="Seconds that what was read is kept; else 300."
)
@click.option(
    "--keep-alive",
    "idle_s",
    type=_SECONDS,
    help="Unload the weights after so many seconds without a request; else they stay.",
)
@click.option("--scheduler", metavar="METHOD", help='What each step does; else "fcfs(chunk=128)".')
@click.option(
    "--swap",
    "swap_bytes",
    type=SIZE,
    help="Memory that a scheduler which takes turns (fastswitch) puts requests out to; else none.",
)
@click.option(
    "--swap-disk",
    "swap_disk_bytes",
    type=SIZE,
    help="The same on disk, within --disk; without either, they are read again.",
)
@click.option("--max-request", type=SIZE, help="Bytes of a request's body at most; else 8MiB.")
@click.option(
    "--warm",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Leave what was read in this file at a stop, and take it from there at the next start.",
)
@click.option("--page/--no-page", default=True, help="Serve the page at / too (the default).")
@click.option(
    "--ray", is_flag=True, help="Several processes that answer, under Ray; see --replicas."
)
@click.option("--replicas", type=click.IntRange(1, 1024), help="How many, with --ray; else 2.")
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help='Use the Ray cluster there, or "auto"; else one is started on this machine alone.',
)
@click.option(
    "--drain", "drain_s", type=_SECONDS, default=30.0, help="Seconds requests may end in at a stop."
)
def command(
    model: str | None,
    memory_file: str | None,
    cubes: tuple[str, ...],
    purpose: str | None,
    adapter: str | None,
    host: str,
    port: int,
    keys_file: Path | None,
    rows: int | None,
    waiting: int | None,
    each: int | None,
    keep_s: float | None,
    idle_s: float | None,
    scheduler: str | None,
    swap_bytes: int | None,
    swap_disk_bytes: int | None,
    max_request: int | None,
    warm: Path | None,
    page: bool,
    ray: bool,
    replicas: int | None,
    ray_address: str | None,
    drain_s: float,
    **given: Any,
) -> None:
    """Serve a model to many clients inside one budget.

    Clients speak the protocols of OpenAI (/v1/chat/completions, /v1/completions, /v1/responses,
    /v1/embeddings) or Anthropic (/v1/messages). Requests that do not fit beside the others wait,
    and when too many wait they are refused with a time to come back. Ctrl-C, or loci stop, lets
    those that run end first. With --adapter all are answered with it, with --cube every
    conversation begins with what it tells.
    """
    from loci.server.app import LOOPBACK, check_address, make_app
    from loci.server.keys import Keys
    from loci.server.running import Running, announced
    from loci.server.serve import Server, listening
    from loci.server.service import Service

    settings = config.load()
    keys = None if keys_file is None else Keys(keys_file)
    check_address(host, keys is not None)
    name = model if model is not None else settings.model
    asked = {
        "rows": rows,
        "waiting": waiting,
        "each": each,
        "keep_s": keep_s,
        "idle_s": idle_s,
        "scheduler": scheduler,
    }
    engine: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if ray or replicas is not None or ray_address is not None:
        from loci.cli.serve_ray import serve

        serve(
            name,
            is_ray=ray,
            replicas=2 if replicas is None else replicas,
            address=ray_address,
            host=host,
            port=port,
            keys_file=keys_file,
            memory=memory_file,
            adapter=adapter,
            cubes=cubes,
            open_memory=None if memory_file is None else _opener(memory_file),
            engine=engine,
            swap=(swap_bytes or 0, swap_disk_bytes or 0),
            limit_bytes=max_request,
            warm=warm,
            page=page,
            drain_s=drain_s,
            given=given,
        )
        return
    exact_for(cubes, memory_file, given)
    plan = make_plan(name, None, given)
    if adapter is not None:
        engine["adapter"] = api.find_adapter(adapter, plan, memory_file, settings.user)
    with listening(host, port) as socket, progress() as report:
        from loci.run.batch import Batch
        from loci.run.stores import SwapRoom

        swap = SwapRoom(
            memory_bytes=swap_bytes or 0,
            disk_bytes=swap_disk_bytes or 0,
            folder=settings.cache_dir / "swap",
        )
        batch = Batch(
            plan,
            folder=settings.models_dir,
            progress=report,
            swap=swap,
            warm=warm,
            **engine,
        )
        try:
            beginning = _beginning(
                batch, cubes, memory_file, Caller(user=settings.user, purpose=purpose), keys
            )
        except BaseException:
            batch.close()
            raise
        service = Service(
            batch=batch,
            model=Path(name).name,
            models_dir=settings.models_dir,
            keys=keys,
            open_memory=None if memory_file is None else _opener(memory_file),
            user=settings.user,
            beginning=beginning,
            planner=partial(api.plan, name),
        )
        if max_request is not None:
            service.limit_bytes = max_request
        try:
            app = make_app(service, hosts=() if host in LOOPBACK else (host,), page=page)
            running = Running(
                pid=os.getpid(),
                host=host,
                port=socket.getsockname()[1],
                model=service.model,
                started_s=time.time(),
                keyed=keys is not None,
                beside=", ".join(
                    [*([f"adapter {adapter}"] if adapter else []), *(f"cube {c}" for c in cubes)]
                ),
            )
            note(str(plan))
            load = batch.load()
            note(
                f"{format_bytes(load.most_kv_bytes)} for keys and values of all requests, "
                f"{batch.rows} decode together"
            )
            with announced(settings.cache_dir / "servers", running):
                for text in [*batch.notes, *(beginning.notes if beginning else ())]:
                    note(text)
                batch.notes.clear()
                beside = f" with {running.beside}" if running.beside else ""
                note(f"serving {service.model}{beside} on {running.url}")
                Server(app, service, drain_s=drain_s, has_page=page).run(sockets=[socket])
        finally:
            service.close()
            for text in batch.notes:
                note(text)


def _beginning(
    batch: Batch, cubes: Sequence[str], file: str | None, caller: Caller, keys: Keys | None
) -> Beginning | None:
    """Return what every conversation begins with; with keys, others are told it too."""
    if not cubes:
        return None
    from loci.run.shelves import beside
    from loci.server.beginning import Beginning as Made

    shelf = beside(config.load().memory_file if file is None else file)
    return Made(cubes, batch=batch, shelf=shelf, caller=caller, shares=keys is not None)


def _opener(file: str) -> Callable[[str, Any], Memory]:
    return partial(_opened, file if "://" in file else str(Path(file).expanduser().absolute()))


def _opened(place: str, tenant: str, embedder: Any) -> Memory:
    from loci.memory import Memory

    return Memory(place, tenant=tenant, embedder=embedder)

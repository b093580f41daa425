"""`loci serve --ray`: several processes that answer, one budget, one memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any  # what click parsed

from loci import api, config
from loci.cli.options import make_plan
from loci.cli.output import note
from loci.errors import ParameterError
from loci.run.cluster import Cluster, shares
from loci.units import format_bytes

_SIZES = ("dram", "gpu", "disk", "weights", "kv", "process")
_TIERS = ("dram", "gpu", "disk")
_SERVERS = ("postgresql://", "postgres://")


def check(
    *,
    is_ray: bool,
    replicas: int,
    memory: str | None,
    warm: Path | None,
    adapter: str | None = None,
    cubes: tuple[str, ...] = (),
) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ParameterError: if something is of that kind.
    """
    if not is_ray:
        raise ParameterError("--replicas and --ray-address go with --ray", way_out="add --ray")
    if memory is not None and replicas > 1 and not memory.startswith(_SERVERS):
        raise ParameterError(
            "several replicas need a memory that all of them reach",
            value=memory,
            allowed="postgresql://...",
            way_out="--replicas 1 with a file, or a server: see docs/how-to/postgres.md",
        )
    if adapter is not None or cubes:
        raise ParameterError(
            "--adapter and --cube are for one process",
            value=adapter or ", ".join(cubes),
            allowed="with --ray: the model alone",
            way_out="leave them or --ray away",
        )
    if warm is not None:
        raise ParameterError(
            "--warm is for one process: what a replica read may be erased while it is away",
            value=str(warm),
            way_out="leave --warm or --ray away",
        )


def serve(
    name: str,
    *,
    is_ray: bool,
    replicas: int,
    address: str | None,
    host: str,
    port: int,
    keys_file: Path | None,
    memory: str | None,
    adapter: str | None,
    cubes: tuple[str, ...],
    open_memory: Callable[[str, Any], Any] | None,
    engine: dict[str, Any],
    swap: tuple[int, int],
    limit_bytes: int | None,
    warm: Path | None,
    page: bool,
    drain_s: float,
    given: dict[str, Any],
) -> None:
    """Serve until a signal; the arguments are those of `loci serve`."""
    check(is_ray=is_ray, replicas=replicas, memory=memory, warm=warm, adapter=adapter, cubes=cubes)
    from loci.run.stores import SwapRoom
    from loci.server.app import LOOPBACK
    from loci.server.front import Front
    from loci.server.keys import Keys
    from loci.server.replica import Replica, Setup, embedder_bytes, tend
    from loci.server.running import Running, announced
    from loci.server.serve import Server, listening
    from loci.server.service import LIMIT_BYTES
    from loci.server.sticky import name_of

    settings = config.load()
    # A replica is another process, with another working folder.
    keys_file = None if keys_file is None else keys_file.resolve()
    models_dir = settings.models_dir.resolve()
    name = str(Path(name).resolve()) if Path(name).exists() else name
    keys = None if keys_file is None else Keys(keys_file)
    tending = 0 if memory is None else embedder_bytes(models_dir)
    plan = _share_of(name, replicas, tending, given)
    hosts = () if host in LOOPBACK else (host,)
    setup = Setup(
        plan=plan,
        model=Path(name).name,
        models_dir=models_dir,
        keys_file=keys_file,
        open_memory=open_memory,
        user=settings.user,
        hosts=hosts,
        planner=partial(api.plan, name),
        engine=engine,
        limit_bytes=LIMIT_BYTES if limit_bytes is None else limit_bytes,
    )
    memory_bytes, disk_bytes = (size // replicas for size in swap)
    with listening(host, port) as socket, Cluster(replicas, address=address) as cluster:
        made = {}
        for number in range(replicas):
            room = SwapRoom(
                memory_bytes=memory_bytes,
                disk_bytes=disk_bytes,
                folder=settings.cache_dir / "swap" / name_of(number),
            )
            own = replace(setup, engine={**engine, "swap": room}, threads=cluster.threads)
            made[name_of(number)] = (number, own)
        note(str(plan))
        cluster.deploy(Replica, made)
        for one in cluster.names:
            about = cluster.ask(one, "about", timeout_s=30.0)
            note(f"{one} is process {about['pid']} on {about['machine']}")
            for text in about["notes"]:
                note(f"{one}: {text}")
        work = None
        if open_memory is not None:

            async def work(tenant: str) -> int:
                done: int = await cluster.task(tend, open_memory, tenant, models_dir, tending)
                return done

        front = Front(
            cluster, model=setup.model, keys=keys, tend=work, limit_bytes=setup.limit_bytes
        )
        running = Running(
            pid=os.getpid(),
            host=host,
            port=socket.getsockname()[1],
            model=setup.model,
            started_s=time.time(),
            keyed=keys is not None,
        )
        with announced(settings.cache_dir / "servers", running):
            if page:
                note("the page at / shows one process, and is not served with --ray")
            note(f"serving {setup.model} in {replicas} replicas on {running.url}")
            try:
                Server(front.app(hosts), front, drain_s=drain_s).run(sockets=[socket])
            finally:
                front.close()


def _share_of(name: str, replicas: int, tending: int, given: dict[str, Any]) -> Any:
    """Return the plan of one replica: its part of the whole budget."""
    whole = make_plan(name, None, dict(given)).budget.limits()
    sizes = {what: given[what] for what in _SIZES}
    sizes |= {tier: whole[tier] for tier in _TIERS if whole[tier]}
    sizes["dram"] -= tending
    if sizes["dram"] <= 0:
        raise ParameterError(
            "nothing is left for the replicas beside what embeds in the background",
            value=format_bytes(whole["dram"]),
            way_out="a larger --dram",
        )
    share = shares(sizes, replicas)
    rest = f", and {format_bytes(tending)} for what embeds in the background" if tending else ""
    note(f"{format_bytes(share['dram'])} of dram for each of {replicas} replicas{rest}")
    return make_plan(name, None, {**given, **share})

"""`loci doctor`: what this machine has, what works, and the line that mends what does not."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any  # facts are whatever JSON can hold

import click

from loci import __version__, config
from loci.cli.output import as_json_option, emit, progress, say
from loci.hw.probe import probe
from loci.run.runtime import runtime
from loci.units import format_bytes

EXTRAS = {
    "transformers": "hf",
    "gguf": "gguf",
    "matplotlib": "bench",
    "psycopg": "postgres",
    "usearch": "ann",
    "mcp": "mcp",
    "ray": "cluster",
    "fastapi": "server",
}


@click.command()
@as_json_option
def command(as_json: bool) -> None:
    """Say what this machine has and what Loci can do with it.

    Nothing is sent anywhere, and nothing is changed but the cache: what a run takes before a model
    is there is measured once. Exit code 1 means that something is missing
    without which Loci cannot run.
    """
    with progress() as report:
        found = facts(config.load(), report)
    if as_json:
        emit(found)
    else:
        for line in lines(found):
            say(line)
    if found["problems"]:
        raise click.exceptions.Exit(1)


def facts(
    settings: config.Config, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Return what was found, as JSON values."""
    machine = probe(settings.models_dir)
    measured = runtime(settings.cache_dir, probe(settings.cache_dir), progress=progress)
    problems = [] if _version("torch") else ["torch is missing: pip install torch"]
    supported = sys.platform == "linux"
    kernels = _kernels()
    return {
        "loci": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "system": f"{platform.system()} {platform.machine()}",
        "supported": supported,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "simd": list(machine.simd),
        "limited": list(machine.limited),
        "dram": {"total": machine.dram_total, "free": machine.dram_free},
        "disk": {"free": machine.disk_free},
        "gpus": machine.gpus,
        "native_kernels": kernels is not None,
        "kernels": kernels,
        "extras": {extra: _version(package) for package, extra in EXTRAS.items()},
        "models_dir": str(settings.models_dir),
        "memory_file": config.without_password(settings.memory_file),
        "vector_index": _version("usearch") is not None,
        "config_file": str(settings.file),
        "runtime_bytes": measured.bytes,
        "problems": problems,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the facts for people, one line each."""
    extras = [
        f"{extra} {version}" if version else f"{extra} missing (pip install 'loci[{extra}]')"
        for extra, version in found["extras"].items()
    ]
    native = "not compiled; torch does the work, slower. With c++ or g++, install Loci again"
    if found["kernels"]:
        native = "compiled; {simd}, {threads} threads".format(**found["kernels"])
    system = found["system"] if found["supported"] else f"{found['system']} (import-tested only)"
    simd = found["simd"][0] if found["simd"] else "no vector instructions known"
    gpus = ", ".join(f"{gpu.name}, {format_bytes(gpu.total)}" for gpu in found["gpus"]) or "none"
    rows = {
        "loci": f"{found['loci']}, Python {found['python']}, torch {found['torch'] or 'missing'}",
        "system": system,
        "cpu": f"{found['cores']} cores of {found['cpu']}, {simd}",
        "dram": f"{format_bytes(found['dram']['free'])} free of "
        f"{format_bytes(found['dram']['total'])}",
        "disk": f"{format_bytes(found['disk']['free'])} free where models are kept",
        "gpu": gpus,
        "kernels": native,
        "extras": ", ".join(extras),
        "vectors": "compared one by one up to 100,000, then by an index"
        if found["vector_index"]
        else "compared one by one, however many; pip install 'loci[ann]' indexes above 100,000",
        "models": found["models_dir"],
        "memory": found["memory_file"],
        "config": found["config_file"],
        "runtime": "could not be measured"
        if found["runtime_bytes"] is None
        else f"{format_bytes(found['runtime_bytes'])}, not in the budget",
    }
    text = [f"{name:<9}{value}" for name, value in rows.items()]
    text += [f"limited  {limit}" for limit in found["limited"]]
    return text + [f"problem  {problem}" for problem in found["problems"]]


def _kernels() -> dict[str, Any] | None:
    """Return the instructions and threads the kernels use; torch is not loaded for that."""
    try:
        from loci.nn import _native  # type: ignore[attr-defined]  # built from nn/kernels
    except ImportError:
        return None
    return {"simd": _native.level(), "threads": _native.threads()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""Making a stack: weights taken apart one by one, sorted, and written as one file.

It takes minutes, so what is finished is kept: statistics and every weight's levels lie beside the
file until it is whole, and a build that was stopped goes on where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loci.core.method import Need
from loci.errors import ParameterError, StorageError
from loci.methods import catalogue
from loci.methods.quant.base import Nested, Pile, sorted_levels
from loci.models.pack import Pack
from loci.models.stack import Part, StackTable, block_name, header_of, stack_path, table_of
from loci.models.tokenizer import Tokenizer
from loci.nn.form import DenseWeight, Form
from loci.nn.packed_linear import matmul
from loci.nn.taps import ActStats
from loci.run.calibrate import (
    Calibration,
    cached_statistics,
    calibration_ids,
    kl_of,
    walk,
)
from loci.tiers.blocks import BlockWriter

Progress = Callable[[str, int, int], None]
Levels = list[dict[str, Tensor]]
CURVE_POINTS, CURVE_TEXTS = 9, 2  # sizes at which KL is measured, and the texts it is measured on


def prepare_stack(
    pack: Pack,
    method: Nested,
    *,
    ids_ST: Tensor | None = None,
    path: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the path of the stack of a model, which is made when it is not there.

    Args:
        pack: opened with a mapping.
        ids_ST: tokens to calibrate on; None takes pieces of Python's help topics.
        path: where it is kept; None means beside the pack.

    Raises:
        ParameterError: if the calibration text is too short, or a weight does not fit the method.
        StorageError: if the disk is full; what was finished stays and is used the next time.
    """
    fingerprint = pack.spec.fingerprint
    path = path or stack_path(pack.path, str(method), fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if path.is_file():
            table_of(path, method=str(method), fingerprint=fingerprint)
            return path
        _build(pack, method, path, ids_ST, progress or (lambda what, done, total: None))
    return path


def prepared(
    pack: Pack, method: str, *, progress: Progress | None = None
) -> tuple[Path, StackTable]:
    """Return path and table of the stack of a method given as text, made when it is not there.

    Raises:
        ParameterError: if the method does not pack weights in levels.
    """
    nested = catalogue.find(method, "quant")
    if not isinstance(nested, Nested):
        able = [cls.about.name for cls in catalogue.all_methods("quant") if issubclass(cls, Nested)]
        raise ParameterError(
            "this method needs nothing prepared", value=method, allowed=", ".join(able)
        )
    path = prepare_stack(pack, nested, progress=progress)
    return path, table_of(path, method=str(nested), fingerprint=pack.spec.fingerprint)


# -- private ----------------------------------------------------------------------------------


def _build(
    pack: Pack, method: Nested, path: Path, ids_ST: Tensor | None, progress: Progress
) -> None:
    tokenizer = Tokenizer(pack.folder)
    ids_ST = calibration_ids(tokenizer) if ids_ST is None else ids_ST
    calibration = cached_statistics(pack, ids_ST, path.parent, progress=progress)
    job = _Job(pack, method, calibration, path.with_name(f".{path.name}.parts"))
    names = job.names()
    piles: dict[str, Pile] = {}

    def done(name: str, pile: Pile) -> None:
        piles[name] = pile
        progress("taking weights apart", len(piles), len(names))

    if Need.MOMENT in method.about.needs:

        def taken(name: str, weight: Tensor, stats: ActStats) -> Form:
            done(name, job.pile(name, stats))
            return DenseWeight(weight)  # later layers see the model as it is

        walk(pack, ids_ST, taken)
    for name in names:
        if name not in piles:
            done(name, job.pile(name))
    piles = {name: piles[name] for name in names}
    order = [name for name, _ in sorted_levels(piles, method.order)]
    parts = {
        name: Part(
            shape=job.shape(name), least=job.method_of(name).least_levels, losses=pile.losses
        )
        for name, pile in piles.items()
    }
    texts = calibration_ids(
        tokenizer, texts=CURVE_TEXTS, length=min(256, ids_ST.shape[1]), held_out=True
    )
    header = header_of(
        method=str(method),
        fingerprint=pack.spec.fingerprint,
        text=calibration.text,
        parts=parts,
        order=order,
        curve=_curve(job, piles, order, texts, progress),
    )
    with BlockWriter(path, header) as writer:
        for name, vectors in job.vectors():
            writer.add(name, vectors)
        depth = dict.fromkeys(names, 0)
        whole = [name for name in names for _ in range(parts[name].least)] + order
        for count, name in enumerate(whole):
            writer.add(block_name(name, depth[name]), job.level(name, depth[name]))
            depth[name] += 1
            progress("writing blocks", count + 1, len(whole))
    shutil.rmtree(job.folder, ignore_errors=True)


def _curve(
    job: _Job, piles: dict[str, Pile], order: list[str], ids_ST: Tensor, progress: Progress
) -> list[tuple[int, float, float]]:
    """Return (bytes, KL, seconds of a token's products) at sizes spread evenly over the stack."""
    sizes = [sum(p.least_bytes for p in piles.values()) + job.vector_bytes()]
    depth = dict.fromkeys(piles, 0)
    for name in order:
        sizes.append(sizes[-1] + piles[name].level_bytes[depth[name]])
        depth[name] += 1
    count = max(2, min(CURVE_POINTS, len(sizes)))
    points = sorted({round(i * (len(sizes) - 1) / (count - 1)) for i in range(count)})
    forms = {name: job.smallest(name) for name in piles}
    depth, full, found = dict.fromkeys(piles, 0), list[Tensor](), []
    for place, (start, stop) in enumerate(zip([0, *points[:-1]], points, strict=True)):
        for name in order[start:stop]:
            method = job.method_of(name)
            level = job.level(name, method.least_levels + depth[name])
            forms[name] = method.grow(forms[name], level)
            depth[name] += 1
        linears = {n: f for n, f in forms.items() if n.startswith("layer.")}
        kl = kl_of(job.pack, ids_ST, linears, job.tables(forms), full=full)
        found.append((sizes[stop], kl, _seconds(forms)))
        progress("measuring what is lost", place + 1, len(points))
    return found


def _seconds(forms: dict[str, Form]) -> float:
    """Return how long the products of one token take: the faster of two rounds."""
    rounds = []
    for _ in range(2):
        began = time.perf_counter()
        for form in forms.values():
            matmul(torch.ones(1, form.shape[1]), form)
        rounds.append(time.perf_counter() - began)
    return min(rounds)


class _Job:
    """One model on its way into a stack; finished weights lie in `folder`."""

    def __init__(self, pack: Pack, method: Nested, calibration: Calibration, folder: Path) -> None:
        self.pack, self.folder, self._calibration = pack, folder, calibration
        table = method.table()
        assert isinstance(table, Nested), "embedding and head of a stack are packed in levels too"
        self._method, self._table = method, table
        key = f"{method}\n{table}\n{pack.spec.fingerprint}\n{calibration.text}"
        self._key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        folder.mkdir(exist_ok=True)

    def names(self) -> list[str]:
        """Return the parts: tiles of the embedding, linear layers, tiles of an untied head."""
        spec = self.pack.spec
        layers = [f"layer.{i}.{name}" for i in range(spec.layers) for name in spec.layer_linears()]
        head = [] if spec.tied else [name for name, _ in self.pack.tiles("head")]
        return [name for name, _ in self.pack.tiles("embed")] + layers + head

    def method_of(self, name: str) -> Nested:
        """Return the method that packs a part."""
        return self._method if name.startswith("layer.") else self._table

    def shape(self, name: str) -> tuple[int, int]:
        """Return [out, in] of a part."""
        weight = self._stored(name)
        return weight.shape[0], weight.shape[1]

    def pile(self, name: str, stats: ActStats | None = None) -> Pile:
        """Return what the levels of a part are worth, taking it apart when that was not done.

        Args:
            stats: of its inputs, with moments, where the method needs those.
        """
        file = self._file(name)
        try:
            with safe_open(file, framework="pt") as held:
                facts = held.metadata() or {}
            if facts.get("key") == self._key:
                return _pile(json.loads(facts["pile"]))
        except (OSError, SafetensorError, KeyError, ValueError):  # not there, or not finished
            pass
        levels, pile = self._take_apart(name, stats)
        tensors = {
            f"{number}.{key}": tensor.contiguous()
            for number, level in enumerate(levels)
            for key, tensor in level.items()
        }
        facts = {"key": self._key, "pile": json.dumps(vars(pile))}
        fresh = file.with_suffix(".partial")
        try:
            save_file(tensors, fresh, facts)
            fresh.replace(file)
        except (OSError, SafetensorError) as error:
            fresh.unlink(missing_ok=True)
            raise StorageError(
                f"cannot write {file}: {error}",
                way_out="free some space on that disk; what is finished is kept",
            ) from error
        return pile

    def level(self, name: str, number: int) -> dict[str, Tensor]:
        """Return the tensors of one level of a part that was taken apart."""
        with safe_open(self._file(name), framework="pt") as held:
            keys = [key for key in held.keys() if key.startswith(f"{number}.")]  # noqa: SIM118
            return {key.partition(".")[2]: held.get_tensor(key) for key in keys}

    def smallest(self, name: str) -> Form:
        """Return the smallest form of a part."""
        method = self.method_of(name)
        levels = [self.level(name, number) for number in range(method.least_levels)]
        return method.first(levels, self.shape(name))

    def tables(self, forms: dict[str, Form]) -> dict[str, Tensor]:
        """Return embedding and head in float32 as these forms have them."""
        found = {
            kind: torch.cat([forms[name].dense() for name, _ in self.pack.tiles(kind)])
            for kind in (("embed",) if self.pack.spec.tied else ("embed", "head"))
        }
        return found if "head" in found else found | {"head": found["embed"]}

    def vectors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (block, tensors) of norms and biases."""
        for name in self.pack.names():
            if name.startswith("layer.") or name == "norm":
                block = self.pack.block(name)
                linears = self.pack.spec.layer_linears()
                yield (
                    name,
                    {
                        key: value
                        for key, value in block.items()
                        if key not in linears and isinstance(value, Tensor)
                    },
                )

    def vector_bytes(self) -> int:
        """Return the bytes of norms and biases."""
        return sum(t.nbytes for _, block in self.vectors() for t in block.values())

    def _stored(self, name: str) -> Form | Tensor:
        if name.startswith("layer."):
            block, _, tensor = name.rpartition(".")
            return self.pack.block(block)[tensor]
        return next(iter(self.pack.block(name).values()))

    def _take_apart(self, name: str, shown: ActStats | None) -> tuple[Levels, Pile]:
        stored = self._stored(name)
        weight = stored.float() if isinstance(stored, Tensor) else stored.dense()
        method, (out, inner) = self.method_of(name), self.shape(name)
        stats = self._calibration.linears.get(name)
        if shown is not None and stats is not None:
            stats = shown.with_slopes(stats.slopes_N)
        levels = method.levels(weight, stats=stats, generator=torch.Generator().manual_seed(0))
        least, sizes = method.least_levels, method.level_bytes(out, inner)
        form = method.first(levels[:least], (out, inner))
        losses = [self._loss(name, weight - form.dense())]
        for level in levels[least:]:
            form = method.grow(form, level)
            losses.append(self._loss(name, weight - form.dense()))
        return levels, Pile(sum(sizes[:least]), sizes[least:], tuple(losses))

    def _loss(self, name: str, change: Tensor) -> float:
        if name.startswith("layer."):
            return self._calibration.linears[name].loss(change)
        kind = "head" if name.startswith("head.") else "embed"
        rows = dict(self.pack.tiles(kind))[name]
        return self._calibration.table_loss(
            change, rows, tied=self.pack.spec.tied, is_head=kind == "head"
        )

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _pile(facts: dict[str, object]) -> Pile:
    return Pile(
        least_bytes=int(facts["least_bytes"]),  # type: ignore[call-overload]
        level_bytes=tuple(facts["level_bytes"]),  # type: ignore[arg-type]
        losses=tuple(facts["losses"]),  # type: ignore[arg-type]
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make this stack."""
    fd = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

"""A model packed by a method and kept as a model of its own: planned, run and served like any.

`smollm2` packed by gptq becomes the folder `smollm2+gptq-<key>` beside it, with a pack whose linear
layers are the method's and whose embedding, head and norms are the original's. It is made once; the
KL to the original, measured on text that nothing was calibrated on, stands in its header.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any  # header values are JSON

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.methods.quant.base import Quant
from loci.models.load import TOKENIZER_FILE
from loci.models.pack import PACK_FILE, Pack
from loci.models.packed import Packed, facts_of
from loci.models.tokenizer import Tokenizer
from loci.nn.form import Form
from loci.run.calibrate import calibration_ids, kl_of
from loci.run.correct import Training, corrected
from loci.run.quantise import Packer, has_corrections
from loci.tiers.blocks import BlockWriter

Progress = Callable[[str, int, int], None]
JUDGED, LENGTH = 4, 256  # texts on which the loss is measured, and the tokens of each


def pack_model(
    pack: Pack,
    method: Quant,
    folder: Path,
    *,
    budget_bytes: int | None = None,
    training: Training | None = None,
    ids_ST: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Packed:
    """Return the model packed by a method, made when it is not there.

    Args:
        pack: the original, opened with a mapping.
        folder: the models folder.
        budget_bytes: for the linear layers together; None takes the method's own settings.
        training: of corrections of low rank, where the method has them; None leaves their start.
        ids_ST: tokens to calibrate on; None takes pieces of Python's help topics.

    Raises:
        BudgetError: if the budget is below the smallest settings.
        ParameterError: if a weight does not fit the method, or there is nothing to train.
    """
    tokenizer = Tokenizer(pack.folder)
    ids_ST = calibration_ids(tokenizer) if ids_ST is None else ids_ST
    packer = Packer(pack, ids_ST, folder=pack.folder, seed=seed, progress=progress)
    asked = f"{method}\n{budget_bytes}\n{training}\n{packer.text}\n{seed}\n{pack.spec.fingerprint}"
    key = hashlib.blake2b(asked.encode(), digest_size=4).hexdigest()
    base = re.sub(r"[^A-Za-z0-9._+-]", "-", pack.folder.name)
    home = folder / f"{base}+{method.about.name}-{key}"
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home):
        if not (home / PACK_FILE).is_file():
            forms = packer.pack(method, budget_bytes)
            if training is not None:
                if not has_corrections(forms):
                    raise ParameterError(
                        "this method has no corrections to train",
                        value=str(method),
                        way_out='pack with "int21", or without training',
                    )
                forms = corrected(
                    pack, forms, packer.more_texts(), training, progress=progress
                ).forms
            texts = calibration_ids(
                tokenizer, texts=JUDGED, length=min(LENGTH, ids_ST.shape[1]), held_out=True
            )
            loss = kl_of(pack, texts, forms)
            facts = {
                "method": str(method),
                "base": base,
                "base_fingerprint": pack.spec.fingerprint,
                "budget_bytes": budget_bytes,
                "trained_steps": None if training is None else training.steps,
                "text": packer.text,
                "linear_bytes": sum(form.nbytes for form in forms.values()),
                "loss": loss,
            }
            shutil.copyfile(pack.folder / TOKENIZER_FILE, home / TOKENIZER_FILE)
            _write(pack, forms, home / PACK_FILE, key, facts)
    found = facts_of(home / PACK_FILE)
    assert found is not None
    return found


# -- private ----------------------------------------------------------------------------------


def _write(
    pack: Pack, forms: Mapping[str, Form], path: Path, key: str, facts: Mapping[str, Any]
) -> None:
    """Write the pack with other linear layers; everything else is copied as it is stored."""
    digest = hashlib.blake2b(f"{pack.spec.fingerprint}\n{key}".encode(), digest_size=16)
    header = dict(pack.header) | {"packed": dict(facts), "source": {"file": "packed by a method"}}
    with BlockWriter(path, header) as writer:
        for name in pack.names():
            stored, meta = pack.store.tensors(name), pack.store.meta(name)
            tensors: dict[str, Tensor] = {}
            for tensor_name, tensor in stored.items():
                matrix, _, part = tensor_name.partition(".")
                if f"{name}.{matrix}" not in forms or part == "bias":
                    tensors[tensor_name] = tensor
            for full, form in forms.items():
                block, _, matrix = full.rpartition(".")
                if block == name:
                    meta[matrix] = form.meta()
                    tensors |= {f"{matrix}.{part}": t for part, t in form.tensors().items()}
                    for tensor in form.tensors().values():
                        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                        digest.update(flat.numpy().data)
            writer.add(name, tensors, meta=meta)
        linear_bytes = sum(form.nbytes for form in forms.values())
        spec = replace(
            pack.spec,
            name=path.parent.name,
            weight_bits=8 * linear_bytes / pack.spec.linear_elements(),
            fingerprint=f"blake2b:{digest.hexdigest()}",
        )
        writer.header |= {"spec": spec.to_json(), "fingerprint": spec.fingerprint}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make this model."""
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        flock(fd, LOCK_EX)
        yield
    finally:
        os.close(fd)

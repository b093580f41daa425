"""Tensors that lie in a file which nobody else sees, and which is gone with them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor over a file in the folder, all zero.

    The file has no name any more when this returns, so the space goes back with the tensor, also
    after a crash. The system keeps pages of it in memory as long as it likes, and no longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = math.prod(shape)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="kv-") as file:
        file.truncate(max(1, count * dtype.itemsize))
        flat = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
    return flat.view(*shape)

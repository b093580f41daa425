"""`loci.hf`: Loci inside transformers, for those who stay with transformers.

`load` gives plain transformers objects; `cache` a Cache for `generate`; `prepare` what methods of a
cache must know of a model; `compressed` packs the weights of a model while its body runs. With
`train_fuser`, `read` and `fuse` a model answers from what another one's cache knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loci import config
from loci.run.hf import cache, compressed, prepare
from loci.run.hf import load as _load
from loci.run.hf_fuse import fuse, read, train_fuser

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["cache", "compressed", "fuse", "load", "prepare", "read", "train_fuser"]


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a transformers model and tokenizer of a model that Loci knows by name or path."""
    return _load(name, folder=config.load().models_dir)

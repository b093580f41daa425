"""Loci: one budget, three kinds of memory, every tier.

The public names are loaded when they are first used: `import loci` costs next to nothing and loads
no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any  # a name can be anything public

__version__ = "0.1.0"

# After each step of theirs torch's threads wait for the next one busily, on the processors that our
# kernels' threads then want: a prompt takes a fifth longer. So they wait a short while and then
# sleep. It counts where torch is loaded later, and only for GNU's OpenMP.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from loci import errors, hf
    from loci.api import methods, open, plan
    from loci.core.budget import Budget
    from loci.errors import LociError
    from loci.memory import AsyncMemory, Memory

# name -> (module, attribute); None is the module itself.
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "AsyncMemory": ("loci.memory", "AsyncMemory"),
    "Budget": ("loci.core.budget", "Budget"),
    "LociError": ("loci.errors", "LociError"),
    "Memory": ("loci.memory", "Memory"),
    "errors": ("loci.errors", None),
    "hf": ("loci.hf", None),
    "methods": ("loci.methods", None),
    "open": ("loci.api", "open"),
    "plan": ("loci.plan", None),
}

__all__ = [
    "AsyncMemory",
    "Budget",
    "LociError",
    "Memory",
    "__version__",
    "errors",
    "hf",
    "methods",
    "open",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'loci' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


class _CallablePackage(ModuleType):
    """A package that is also the public function of its name: `loci.plan(...)`.

    Importing `loci.plan.solve` makes Python set `loci.plan` to the package, so the function of that
    name would be lost; the package therefore answers the call itself.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        api = importlib.import_module("loci.api")
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Root(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        if name in ("plan", "methods") and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root

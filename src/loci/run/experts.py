"""A local model with one adapter for each operation of a memory: the experts of MemLoRA.

A message may name the expert it is for (`{"role": "user", "content": ..., "expert": "extract"}`);
the session answers it with that adapter, and every other message without one. Experts are kept
beside a model as an artefact each, with what they were trained on and found worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any  # facts and schemas are JSON values

from loci.errors import NotFoundError
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.run import artefacts
from loci.run.adapters import Adapter
from loci.run.artefacts import Artefact
from loci.run.llm import LocalLlm

if TYPE_CHECKING:
    from loci.run.engine import Session


class ExpertLlm(LocalLlm):
    """Satisfies `loci.core.ports.Llm` with a session and the experts it has.

    Args:
        experts: by name; they are loaded into the session, within its budget.

    Raises:
        BudgetError: if they do not fit the session's budget.
        FingerprintError: if one was made for another model.
    """

    def __init__(self, session: Session, experts: Mapping[str, Patch]) -> None:
        super().__init__(session)
        base = session.plan.spec.fingerprint
        for name, patch in experts.items():
            session.adapters.load(Adapter(name=name, patch=patch, base=base))
        self._experts = frozenset(experts)

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the reply of the expert that the last message names, else of the model.

        Raises:
            NotFoundError: if there is no such expert.
        """
        name = messages[-1].get("expert") if messages else None
        if name is not None and name not in self._experts:
            raise NotFoundError(
                "there is no expert for this operation",
                value=name,
                allowed=", ".join(sorted(self._experts)) or "none is loaded",
                way_out="make them: loci bench run memlora",
            )
        self.session.use(name)
        plain = [{k: v for k, v in message.items() if k != "expert"} for message in messages]
        return super().generate(plain, max_tokens=max_tokens, stop=stop, seed=seed, schema=schema)


def keep_expert(pack: Pack, name: str, patch: Patch, facts: Mapping[str, Any]) -> Path:
    """Keep an expert beside its model; return its file."""
    path = _path(pack, name)
    artefacts.save(
        Artefact(
            method=_method(name),
            fingerprint=pack.spec.fingerprint,
            tensors=patch.tensors(),
            facts=facts,
        ),
        path,
    )
    return path


def expert(pack: Pack, name: str) -> tuple[Patch, Mapping[str, Any]]:
    """Return an expert of a model, and what was written down with it.

    Raises:
        NotFoundError: if there is none.
    """
    try:
        found = artefacts.load(
            _path(pack, name), method=_method(name), fingerprint=pack.spec.fingerprint
        )
    except NotFoundError as error:
        raise NotFoundError(
            f"{pack.spec.name} has no expert for {name}", way_out="make it: loci bench run memlora"
        ) from error
    return Patch.from_tensors(found.tensors), found.facts


def _method(name: str) -> str:
    return f"memlora.{name}"


def _path(pack: Pack, name: str) -> Path:
    return artefacts.path_of(pack.folder, _method(name), pack.spec.fingerprint)

"""A local model with one adapter for each operation of a memory: the experts of MemLoRA.

A message may name the expert it is for (`{"role": "user", "content": ..., "expert": "extract"}`);
the session answers it with that adapter, and every other message without one. Experts are kept
beside a model as an artefact each, with what they were trained on and found worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any  # facts and schemas are JSON values

from loci.errors import NotFoundError
from loci.methods.recall.memlora import EXPERTS, MEMLORA
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.run import artefacts
from loci.run.adapters import Adapter
from loci.run.artefacts import Artefact
from loci.run.llm import LateLlm, LocalLlm

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
                way_out=f"make them: loci methods prepare {MEMLORA}",
            )
        self.session.use(name)
        plain = [{k: v for k, v in message.items() if k != "expert"} for message in messages]
        return super().generate(plain, max_tokens=max_tokens, stop=stop, seed=seed, schema=schema)


def late_experts(model: str, folder: Path, open: Callable[[], Session]) -> LateLlm:
    """Return a model with its experts, opened when it is first asked.

    Where one is missing, that says `NotFoundError` before the model is opened.

    Args:
        folder: where models are kept.
        open: returns the session.
    """

    def opens() -> LocalLlm:
        with resolve(model, folder) as pack:
            patches = {name: expert(pack, name, model=model)[0] for name in EXPERTS}
        session = open()
        try:
            return ExpertLlm(session, patches)
        except BaseException:
            session.close()
            raise

    return LateLlm(model, opens)


def keep_expert(
    pack: Pack, name: str, patch: Patch, facts: Mapping[str, Any], *, family: str = MEMLORA
) -> Path:
    """Keep an expert beside its model; return its file."""
    path = expert_path(pack, name, family=family)
    artefacts.save(
        Artefact(
            method=f"{family}.{name}",
            fingerprint=pack.spec.fingerprint,
            tensors=patch.tensors(),
            facts=facts,
        ),
        path,
    )
    return path


def expert(
    pack: Pack, name: str, *, family: str = MEMLORA, model: str | None = None
) -> tuple[Patch, Mapping[str, Any]]:
    """Return an expert of a model, and what was written down with it.

    Args:
        model: what the model is called here; else as its pack calls it.

    Raises:
        NotFoundError: if there is none.
    """
    method, called = f"{family}.{name}", model or pack.spec.name
    path = expert_path(pack, name, family=family)
    try:
        found = artefacts.load(path, method=method, fingerprint=pack.spec.fingerprint)
    except NotFoundError as error:
        raise NotFoundError(
            f"{called} has no expert of a memory for this operation",
            value=name,
            allowed="a model whose experts were made",
            way_out=f"make them: loci methods prepare {MEMLORA} --model {called}",
        ) from error
    return Patch.from_tensors(found.tensors), found.facts


def expert_path(pack: Pack, name: str, *, family: str = MEMLORA) -> Path:
    """Return where an expert of a model is kept."""
    return artefacts.path_of(pack.folder, f"{family}.{name}", pack.spec.fingerprint)

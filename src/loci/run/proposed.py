"""What a change file governs, made ready: texts to search, cubes and adapters to answer with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from loci.core.cube import CubeHeader, MemoryKind, State
from loci.errors import FingerprintError, FormatError
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.run import adapters, cubes
from loci.run.change_files import Proposal
from loci.run.governed import GovernedCube, GovernedTexts, Search
from loci.run.greedy import Greedy
from loci.store import cube_file
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf

if TYPE_CHECKING:
    from loci.run.memory import Memory

ANSWER_TOKENS = 32  # of an answer that is looked through for words
CONTEXT = 2048  # tokens of a cube, a question and its answer


def governed_texts(proposal: Proposal, memory: Memory, user: str) -> GovernedTexts:
    """Return the edits of a change; a probe is right if what is found first has its words."""

    def outcomes(metric: str, search: Search, seed: int) -> Sequence[float]:
        return [probe.outcome(found(search, probe.ask)) for probe in proposal.asked(metric)]

    return GovernedTexts(memory, user, proposal.change.id, proposal.edits, outcomes)


def found(search: Search, question: str) -> str:
    """Return the text that is found first, "" if there is none."""
    hits = search(question)
    return hits[0].text if hits else ""


class Answers:
    """A model that answers probes with a cube or an adapter. Use it in a `with` statement."""

    def __init__(self, pack: Pack) -> None:
        self._pack, self._greedy = pack, Greedy(pack, context=CONTEXT)
        self._used: Payload | None = None

    def answer(self, payload: Payload | None, question: str) -> str:
        """Return the most likely answer, with what a payload holds or with nothing.

        A cube's text stands before the question, as a session has it; its keys and values would
        give the same.
        """
        is_adapter = payload is not None and not payload.texts
        if payload is not self._used:
            patch = Patch.from_tensors(payload.tensors) if payload and is_adapter else None
            self._greedy.use(patch)
            self._used = payload
        tokenizer = self._greedy.tokenizer
        asked = [{"role": "user", "content": question}]
        if payload is not None and not is_adapter:
            asked = cubes.told(tokenizer, [cubes.text_of(payload, Path("cube"))], asked)
        return tokenizer.decode(self._greedy.answer(tokenizer.chat(asked), ANSWER_TOKENS))

    def governed(self, proposal: Proposal, shelf: Shelf) -> GovernedCube:
        """Return the cube or adapter of a change; a probe is right if the answer has its words.

        Raises:
            FormatError: if the file holds something else.
            FingerprintError: if it was made for another model.
        """
        header, payload = _new(proposal, shelf, self._pack)

        def outcomes(metric: str, given: Payload | None, seed: int) -> Sequence[float]:
            return [
                probe.outcome(self.answer(given, probe.ask)) for probe in proposal.asked(metric)
            ]

        return GovernedCube(shelf, header, payload, outcomes, substance=proposal.change.substance)

    def close(self) -> None:
        """Give every byte back."""
        self._greedy.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# -- private ----------------------------------------------------------------------------------


def _new(proposal: Proposal, shelf: Shelf, pack: Pack) -> tuple[CubeHeader, Payload]:
    """Return the cube that a change puts on the shelf, over the one it takes the place of."""
    assert proposal.source is not None, "a change of cubes or adapters has a file"
    if proposal.change.substance == "adapter":
        adapter = adapters.read_adapter(proposal.source, pack.spec)
        adapter.patch.check(pack.spec)
        if adapter.base not in (None, pack.spec.fingerprint):
            raise FingerprintError(
                f"the adapter in {proposal.source} was made for another model",
                value=adapter.base,
                allowed=f"{pack.spec.fingerprint}, which is {pack.spec.name}",
                way_out="name its model with --model",
            )
        there = _adapter_named(shelf, proposal.name)
        id = f"adapter-{proposal.change.id}" if there is None else there.id
        own = replace(adapter, name=proposal.name, base=pack.spec.fingerprint, id=id)
        header, payload = adapters.cube_of(own, made_by="govern")
        return (header if there is None else replace(header, policy=there.policy)), payload
    header, payload = cube_file.read(proposal.source)
    if header.kind is MemoryKind.PARAMETRIC or not payload.texts:
        raise FormatError(
            f"{proposal.source} holds no text",
            value=str(header.kind),
            allowed="a cube of text, or of keys and values",
            way_out="[adapter] with name and file changes an adapter",
        )
    return header, payload


def _adapter_named(shelf: Shelf, name: str) -> CubeHeader | None:
    for header in shelf.headers(MemoryKind.PARAMETRIC, readable=True):
        if header.state is not State.RETIRED and shelf.head(header.id).facts.get("name") == name:
            return header
    return None

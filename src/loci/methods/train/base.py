"""The role of editors: facts in, a patch out; or an overlay, which leaves the weights alone.

An editor never writes to a weight. It returns a `Patch`, thin products that stand beside the
weights, so that taking it away gives the model back bit for bit. What it may see of a model is
`Editable`; `loci.run.edits` supplies the real thing over a pack.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from loci.core.method import Method
from loci.core.ports import Artefact, Embedder
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.nn.patch import Patch

# Shapes: B rows of text, T tokens, d hidden = outputs of down_proj, K its inputs, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What a model is to say: after `prompt`, which names `subject`, comes `target`.

    Raises:
        ParameterError: if one of them is empty, the subject does not stand in the prompt, or the
            prompt ends with a space (the target brings its own).
    """

    prompt: str
    subject: str
    target: str

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target"):
            if not getattr(self, name).strip():
                raise ParameterError(f"the {name} of a fact is empty", value=self)
        if self.subject not in self.prompt:
            raise ParameterError(
                "the subject does not stand in the prompt",
                value=(self.subject, self.prompt),
                way_out="spell it as the prompt does",
            )
        if self.prompt != self.prompt.rstrip():
            raise ParameterError(
                "the prompt of a fact ends with a space; the target brings its own",
                value=self.prompt,
            )

    @property
    def continuation(self) -> str:
        """The target with the space before it, as it follows the prompt."""
        return " " + self.target.strip()

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        return self.prompt + self.continuation + "."


class Reading(Protocol):
    """Rows of text that were read up to a layer and one token; the rest runs when asked.

    Attributes:
        key_BK: what enters down_proj of that layer at each row's token.
        value_Bd: what comes out of it there.
        hidden_Bd: the hidden state after the layer there.
    """

    key_BK: Tensor
    value_Bd: Tensor
    hidden_Bd: Tensor

    def logits(
        self,
        lasts: Sequence[int],
        *,
        shift_Bd: Tensor | None = None,
        changes: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Return logits [n, V] of the last tokens of each row, so many as `lasts` says, n in all.

        Gradients flow to what is given.

        Args:
            shift_Bd: is added to what down_proj of the layer gives at the rows' tokens.
            changes: {layer: [d, K]} are added to down_proj of this layer and later ones, for all
                tokens from those on.
        """
        ...

    def slopes(self, loss: Tensor, layers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return {layer: (x [N, K], dy [N, d])} of the last `logits`, N = B * tokens.

        x is what entered down_proj there and dy the derivative of the loss by what came out, so
        that the derivative by the weight is dy^T x.
        """
        ...


class Editable(Protocol):
    """What an editor may see of a model."""

    spec: ModelSpec

    def row(self, text: str, subject: str | None = None) -> tuple[list[int], int]:
        """Return the tokens of a text, and which of them ends the subject's last mention."""
        ...

    def tail(self, text: str) -> list[int]:
        """Return the tokens of a text that goes on after another."""
        ...

    def openings(self, count: int) -> Sequence[str]:
        """Return what may stand before a prompt, the model's own words of 5 and 10 tokens."""
        ...

    def read(
        self,
        rows: Sequence[Sequence[int]],
        layer: int,
        places: Sequence[int],
        patch: Patch | None = None,
    ) -> Reading:
        """Return rows read up to a layer and to their own token each, with a patch in force."""
        ...

    def weight(self, name: str) -> Tensor:
        """Return one weight as it stands, in float32 [out, in].

        Raises:
            MethodError: if the layer rounds its inputs, so that no matrix says what it does.
        """
        ...

    def covariance(self, layer: int) -> Tensor:
        """Return E[k k^T] of what enters down_proj, [K, K]."""
        ...

    def covariance_near(self, facts: Sequence[Fact], layers: Sequence[int]) -> Mapping[int, Tensor]:
        """Return {layer: E[k k^T]} of what the model itself puts in the place of the subjects.

        {} where nothing stands before the subjects.
        """
        ...

    def artefact(self) -> Artefact:
        """Return what was prepared for the method.

        Raises:
            NotFoundError: if nothing was.
        """
        ...


class Edit(Method):
    """Role: solve for a patch that makes a model say some facts. Nothing is changed."""

    @abstractmethod
    def edit(
        self, model: Editable, facts: Sequence[Fact], generator: Generator | None = None
    ) -> Patch:
        """Return the patch; the same model, facts and generator give the same one.

        Raises:
            ParameterError: if a layer is not there, or facts contradict each other.
        """


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Whether a question is in the scope of a fact: which, and how surely (above 0.5)."""

    index: int
    score: float


class Overlay(Method):
    """Role: decide which fact, if any, a question is about; the answer is read from it.

    The model is left alone: a fact that is taken out of the list is forgotten at once.
    """

    @abstractmethod
    def scope(
        self,
        questions: Sequence[str],
        facts: Sequence[Fact],
        embedder: Embedder,
        artefact: Artefact,
    ) -> list[Hit | None]:
        """Return, for every question, the fact it is about, or None."""

    @abstractmethod
    def prompt(self, question: str, fact: Fact) -> str:
        """Return what the model is given instead of the question."""


def down(layer: int) -> str:
    """Return the name of the matrix that is edited in a layer."""
    return f"layer.{layer}.down_proj"


def check_layers(layers: Sequence[int], spec: ModelSpec, name: str) -> None:
    """Refuse layers that a model does not have, or that are not in rising order.

    Raises:
        ParameterError: if so, or if there is none.
    """
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1]:
        raise ParameterError(f"{name} are layers in rising order", value=tuple(layers))
    if layers[-1] >= spec.layers:
        raise ParameterError(
            f"{name}: {spec.name} has no such layer",
            value=layers[-1],
            allowed=f"0 to {spec.layers - 1}",
        )


def check_facts(facts: Sequence[Fact]) -> None:
    """Refuse an empty list, a fact given twice, and facts that contradict each other.

    Raises:
        ParameterError: naming the two.
    """
    if not facts:
        raise ParameterError("there is no fact to edit", way_out="give at least one")
    known: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        key = " ".join(fact.prompt.split()), fact.subject
        if key in known:
            same = known[key].continuation == fact.continuation
            raise ParameterError(
                "a fact is given twice" if same else "two facts contradict each other",
                value=(known[key].text, fact.text),
                way_out="keep one of them",
            )
        known[key] = fact

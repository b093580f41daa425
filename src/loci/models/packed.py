"""What a pack says of the method that packed it: read from its table, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loci.errors import FormatError
from loci.tiers.blocks import read_table


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A model that a method packed.

    Attributes:
        name: under which it is found in the models folder.
        method: as the catalogue writes it; base: name of the model it was made from.
        linear_bytes: of the packed layers; loss: KL to the original, nats per token.
    """

    name: str
    method: str
    base: str
    linear_bytes: int
    loss: float

    def __str__(self) -> str:
        return f"its weights were packed by {self.method}: {self.loss:.4f} nats a token lost"


def facts_of(pack: Path) -> Packed | None:
    """Return what a pack's header says of the method that packed it; None for other packs."""
    facts = read_table(pack)[0].get("packed")
    if facts is None:
        return None
    try:
        return Packed(
            name=pack.parent.name,
            method=str(facts["method"]),
            base=str(facts["base"]),
            linear_bytes=int(facts["linear_bytes"]),
            loss=float(facts["loss"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the header of {pack} cannot be read: {error}") from error


def packed_before(base: str, folder: Path) -> list[Packed]:
    """Return the models in the folder that methods made from the one of this name."""
    from loci.models.load import PACK_FILE

    found = [facts_of(file) for file in sorted(folder.glob(f"*/{PACK_FILE}"))]
    return [facts for facts in found if facts is not None and facts.base == base]

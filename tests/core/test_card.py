"""Cards: read, refused, written; and every card that is shipped can be read."""

from __future__ import annotations

from importlib import resources

import pytest

from loci.core.card import Card, Verdict, load_card
from loci.errors import FormatError

CARD = """
format = "loci-card"
version = 1
method = "toy"

[claim]
text = "close to the full cache"
where = "Table 1"

[[measurement]]
model = "smollm2"
fingerprint = "blake2b:9c"
suite = "needle"
parameters = { window = 8 }
seeds = [0, 1]
command = "loci bench run toy"
machine = { name = "2-core x86", dram_bytes = 25_000_000_000 }
software = { loci = "0.1.0" }
commit = "3f2a9c1"
date = 2026-12-01
bytes = { full = 100, predicted = 40, measured = 40 }
metrics = { kl = { this = 0.03, rivals = { knorm = 0.4 } } }
interval = { kl = [0.02, 0.04] }
ratio = { decode_s = 0.7 }

[verdict]
value = "in part"
because = "same order at this scale"
"""


def test_reads_a_card() -> None:
    card = Card.from_toml(CARD, "card")
    assert (card.method, card.verdict) == ("toy", Verdict.IN_PART)
    [m] = card.measurements
    assert m.date == "2026-12-01"
    assert m.seeds == (0, 1)
    assert m.interval == {"kl": (0.02, 0.04)}


def test_finds_measurements_of_one_model() -> None:
    card = Card.from_toml(CARD, "card")
    assert len(card.for_model("blake2b:9c")) == 1
    assert card.for_model("blake2b:9c", "other") == []
    assert card.for_model("blake2b:00") == []


def test_writes_what_it_read() -> None:
    tomli_w = pytest.importorskip("tomli_w")
    card = Card.from_toml(CARD, "card")
    assert Card.from_toml(tomli_w.dumps(card.to_toml_dict()), "again") == card


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "not a card of a version we know"),
        ('format = "loci-card"', 'format = "other"', "not a card of a version we know"),
        ('value = "in part"', 'value = "surely"', "surely"),
        ('suite = "needle"', 'suit = "needle"', "suit"),
        ('method = "toy"', "", "method"),
        ("[claim]", "[claim", "is not a card"),
    ],
)
def test_a_wrong_card_is_refused_and_named(old: str, new: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        Card.from_toml(CARD.replace(old, new), "cards/kv/toy.toml")
    assert "cards/kv/toy.toml" in str(caught.value)


def test_a_missing_card_is_none() -> None:
    assert load_card("kv", "no-such-method") is None


def test_every_shipped_card_can_be_read() -> None:
    root = resources.files("loci") / "cards"
    if not root.is_dir():
        return
    for kind in root.iterdir():
        for file in kind.iterdir() if kind.is_dir() else ():
            if file.name.endswith(".toml"):
                card = load_card(kind.name, file.name.removesuffix(".toml"))
                assert card is not None and card.because, file.name

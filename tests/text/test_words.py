"""Stems and names."""

from __future__ import annotations

import subprocess
import sys

from loci.text.entities import entities, names, normalise
from loci.text.slots import SLOTS, asked_for, sentence_of
from loci.text.stem import stem, stems, tokens


def test_words_lose_their_clitics_and_accents() -> None:
    assert tokens("Zoë's café, isn't it?") == ["zoe", "cafe", "isn't", "it"]


def test_related_words_share_a_stem() -> None:
    assert stem("running") == stem("runs")
    assert stems("the favourite colours") == stems("a favorite color")


def test_stop_words_are_left_out() -> None:
    assert stems("where is it, and what was that?") == []


def test_names_at_the_start_of_a_sentence_need_more() -> None:
    assert names("Great news from Lisbon. Thanks!") == ["Lisbon"]
    assert names("Bruno barks.") == []
    assert names("Bruno barks.", known=["Bruno"]) == ["Bruno"]


def test_parts_of_a_name_stand_beside_it() -> None:
    assert entities("Then I met Grace Hopper.") == ["grace hopper", "grace", "hopper"]
    assert normalise("The Café's") == "cafe"


def test_every_slot_makes_a_sentence() -> None:
    for name in SLOTS:
        for past in (False, True):
            text = sentence_of("Ada", f"{name}:thing", "x", past=past)
            assert "Ada" in text and "{" not in text


def test_questions_find_their_slots() -> None:
    assert asked_for(stems("Which company does she work for?"))[0][0] == "works_at"


def test_text_loads_no_torch() -> None:
    code = (
        "import sys, loci.text.extract, loci.text.answer, loci.text.ladder, "
        "loci.methods.recall.mem0; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

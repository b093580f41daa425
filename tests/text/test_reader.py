"""The reader on ten conversations and 200 questions, written for it and used while it was made.

What it says is right where it holds an accepted form as whole words and no refused one. The floor
keeps what was reached; it says nothing of conversations the reader was not made with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loci.models.late import default_embedder
from loci.run.memory import Memory

FOLDER = Path(__file__).parent / "conversations"
FLOOR, FLOOR_EACH = 162, 14  # of 200, and of the 20 of each


@dataclass
class Conversation:
    """Some people's talk over months, and what is asked about it."""

    assistant: str = ""
    asked: str = ""
    sessions: list[tuple[str, str, list[tuple[str, str]]]] = field(default_factory=list)
    questions: list[tuple[str, Sequence[str], Sequence[str]]] = field(default_factory=list)


def parsed(path: Path) -> Conversation:
    """Return a conversation from its file."""
    told = Conversation()
    question = ""
    for line in filter(None, path.read_text().splitlines()):
        if line.startswith("assistant "):
            told.assistant = line.removeprefix("assistant ")
        elif line.startswith("asked "):
            told.asked = line.removeprefix("asked ")
        elif line.startswith("== "):
            _, name, time = line.split()
            told.sessions.append((name, time, []))
        elif line.startswith("?? "):
            question = line.removeprefix("?? ")
        elif line.startswith("= "):
            _, right, wrong = (
                [form.strip() for form in part.split(";") if form.strip()]
                for part in line.removeprefix("= ").split("|")
            )
            told.questions.append((question, right, wrong))
        elif not line.startswith("user "):
            speaker, said = line.split(": ", 1)
            told.sessions[-1][2].append((speaker, said))
    return told


def plain(text: str) -> str:
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))) + " "


def is_right(said: str, right: Sequence[str], wrong: Sequence[str]) -> bool:
    text = plain(said)
    return any(plain(form) in text for form in right) and not any(
        plain(form) in text for form in wrong
    )


@pytest.mark.model
def test_the_reader_answers_what_it_answered(models_folder: Path, tmp_path: Path) -> None:
    right: dict[str, int] = {}
    with Memory(tmp_path / "m.db", embedder=default_embedder(models_folder)) as memory:
        for path in sorted(FOLDER.glob("*.txt")):
            told, user = parsed(path), path.stem
            for session, time, turns in told.sessions:
                messages = [
                    {
                        "role": "assistant" if name == told.assistant else "user",
                        "name": name,
                        "content": text,
                    }
                    for name, text in turns
                ]
                memory.add(messages, user=user, session=f"{user}-{session}", time=time)
            right[user] = sum(
                is_right(memory.answer(question, user=user, now=told.asked).text, *forms)
                for question, *forms in told.questions
            )
    assert sum(right.values()) >= FLOOR, right
    assert min(right.values()) >= FLOOR_EACH, right

"""Prompts that look something up and prompts that sum up, each around some text."""

from __future__ import annotations

import random
import tomllib
from functools import cache
from importlib import resources
from typing import Any  # a table of texts

from loci.text.prose import prose

TASKS = ("look_up", "sum_up")
CHARACTERS = (600, 6000)  # of the text a prompt is about


@cache
def _lists() -> dict[str, Any]:
    file = resources.files("loci.testing") / "instructions.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def instructions(task: str, half: str) -> list[str]:
    """Return the instructions of a task, those a router is fitted on or those held out.

    Args:
        half: "fit" or "held_out".
    """
    return list(_lists()[task][{"fit": 0, "held_out": 1}[half] :: 2])


def pieces(half: str, seed: int = 0) -> list[tuple[str, str]]:
    """Return (text, kind) of single instructions and of as many pieces of mere text."""
    draw, text = random.Random(f"{half} pieces {seed}"), _half(half)
    found = [
        (instruction.format(x=thing), task)
        for task in TASKS
        for instruction in instructions(task, half)
        for thing in draw.sample(_lists()["things"], 5 if "{x}" in instruction else 1)
    ]
    for _ in range(len(found)):
        start = draw.randrange(len(text) - 200)
        found.append((text[start : start + draw.randint(80, 200)].strip(), "text"))
    return found


def prompts(half: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return (prompt, task) of both tasks in turn, from a seed.

    The instruction stands before the text, after it, or on both sides.
    """
    draw, text = random.Random(f"{half} {seed}"), _half(half)
    found = []
    for index in range(count):
        task = TASKS[index % 2]
        asked = draw.choice(instructions(task, half)).format(x=draw.choice(_lists()["things"]))
        size = draw.randint(*CHARACTERS)
        start = draw.randrange(len(text) - size)
        about = text[start : start + size]
        form = draw.choice(("{t}\n\n{i}", "{i}\n\n{t}", "{i}\n\n{t}\n\n{i}", "{t}\n\nUser: {i}\n"))
        found.append((form.format(t=about, i=asked), task))
    return found


def _half(half: str) -> str:
    text = prose()
    return text[: len(text) // 2] if half == "fit" else text[len(text) // 2 :]

"""A writer of long stories: rules call the tools, a language model writes the prose.

What people are like stands in files, one a person. A chapter asks for paragraphs, each of which
opens with a trait of somebody; whether the trait is told right can be read off the paragraph.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal  # calls are JSON values

from loci.core.agent import Job
from loci.core.ports import Llm
from loci.testing.programmer import seen_in, sizes_in

NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix")
TRAITS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "job": ("{} works as a", ("baker", "doctor", "farmer", "lawyer", "painter", "sailor")),
    "city": ("{} lives in", ("Berlin", "Cairo", "Lisbon", "Oslo", "Paris", "Tokyo")),
    "pet": ("At home {} keeps a", ("cat", "dog", "goat", "horse", "parrot", "turtle")),
    "hair": ("{} has hair that is", ("black", "blond", "brown", "grey", "red", "white")),
}
PARAGRAPH = 150  # tokens
Told = Literal["right", "wrong", "unclear"]

_STEP = re.compile(r"Step \d+ of \d+: Write (chapter_\d+\.md)\. Paragraphs: (.*?)\.$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Story:
    """Who there is, and which paragraphs are asked for.

    Attributes:
        people: {name: {trait: value}}.
        chapters: (name, trait) of every paragraph.
    """

    people: Mapping[str, Mapping[str, str]]
    chapters: tuple[tuple[tuple[str, str], ...], ...]

    def facts(self, name: str) -> str:
        """Return what a person is like, a line a trait."""
        traits = self.people[name]
        return "".join(f"{opening(name, trait)} {value}.\n" for trait, value in traits.items())

    def job(self) -> Job:
        """Return the story as a job: a file a person, a step a chapter."""
        steps = [
            f"Write chapter_{number}.md. Paragraphs: "
            + ", ".join(f"{name} {trait}" for name, trait in chapter)
            + "."
            for number, chapter in enumerate(self.chapters, 1)
        ]
        people = {f"people/{name}.md": self.facts(name) for name in self.people}
        return Job(
            goal="A story of people who stay who they are.",
            inputs={"steps": steps, "tests": people, "checks": "none"},
            max_steps=100_000,
        )


def make_story(seed: int, *, chapters: int = 12, paragraphs: int = 6) -> Story:
    """Return a story drawn from a seed."""
    dice = Random(f"story {seed}")
    people = {
        name: {trait: dice.choice(values) for trait, (_, values) in TRAITS.items()}
        for name in NAMES
    }
    told = []
    for _ in range(chapters):
        pairs = [(name, trait) for name in dice.sample(NAMES, 2) for trait in TRAITS]
        told.append(tuple(dice.sample(pairs, min(paragraphs, len(pairs)))))
    return Story(people=people, chapters=tuple(told))


def opening(name: str, trait: str) -> str:
    """Return how a paragraph of a trait begins."""
    return TRAITS[trait][0].format(name)


def asked(name: str, trait: str) -> str:
    """Return what a model is asked for a paragraph."""
    return (
        "Write the next paragraph of the story, three sentences. It begins with these words: "
        f'"{opening(name, trait)}"'
    )


def told(paragraph: str, right: str, trait: str) -> Told:
    """Return whether a paragraph tells a trait right: by the first value of it that is named.

    >>> told("Anna works as a doctor and was a baker once.", "doctor", "job")
    'right'
    """
    places = {
        value: found.start()
        for value in TRAITS[trait][1]
        if (found := re.search(rf"\b{value}", paragraph, re.IGNORECASE))
    }
    if not places:
        return "unclear"
    return "right" if min(places, key=lambda value: places[value]) == right else "wrong"


class Novelist:
    """Satisfies `loci.core.ports.Llm`: reads the files of who is asked for, then writes.

    Args:
        prose: writes the paragraphs, and sees nothing but what the prompt shows.
    """

    name = "novelist"

    def __init__(self, prose: Llm) -> None:
        self.prose = prose

    def count_tokens(self, text: str) -> int:
        """Return what the text takes for the model that writes."""
        return self.prose.count_tokens(text)

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the next call for the step that stands last in the messages."""
        return json.dumps(self._next(messages, max_tokens), ensure_ascii=False)

    def _next(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> dict[str, Any]:
        texts = [str(message["content"]) for message in messages]
        if 'Reply with {"note"' in texts[-1]:
            return {"note": "paragraphs were written in their order."}
        path, list_of = [match for text in texts for match in _STEP.findall(text)][-1]
        paragraphs = [part.split(" ") for part in list_of.split(", ")]
        done = sizes_in(texts).get(path, 0)
        if done >= len(paragraphs):
            return {"tool": "step_done", "summary": f"{path} is written."}
        name, trait = paragraphs[done]
        seen, _ = seen_in(messages)
        home = f"people/{name}.md"
        if home not in seen:
            return {"tool": "view_files", "paths": [home]}
        facts = "\n".join(line for line in seen[home] if line.strip())
        text = paragraph_of(self.prose, [facts], name, trait, min(PARAGRAPH, max_tokens - 60))
        return {"tool": "append_file", "path": path, "content": text + "\n"}


def paragraph_of(prose: Llm, before: Sequence[str], name: str, trait: str, max_tokens: int) -> str:
    """Return one paragraph, on one line, from a model shown `before` and what is asked."""
    content = "\n\n".join([*before, asked(name, trait)])
    reply = prose.generate([{"role": "user", "content": content}], max_tokens=max_tokens)
    return " ".join(reply.split()) or "(nothing)"

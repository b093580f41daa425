"""A conversation read in order, sentence by sentence.

A sentence knows whom it is about, and the words around it: those of its neighbours in the turn, and
of the question it answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from loci.core.item import Source
from loci.text.mends import mended
from loci.text.referents import Referents
from loci.text.said import Story
from loci.text.stem import fold

# Sentences that lean on the one before: "It'll be on the 12th", "In Sintra, a week ago", "870".
LEANS = re.compile(
    (
        r"(?:(?:and|but|so|also|well|yes|no|oh),? )*(?:(?:it|that|this|they|these"
        r"|those|he|she)\b|(?:in|on"
        r"|at|by|from|to|with|for|about|around|near|until|since|every|under|over)\b"
        r"|an?\b(?! lot)|the \d"
        r"|[£$€]?\d|(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|(?:one|two|three"
        r"|four|five|six|seven"
        r"|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|seventy|eighty"
        r"|ninety)\b)"
    ),
    re.IGNORECASE,
)


def read(turns: Sequence[tuple[Source, int]]) -> Story:
    """Read (turn, rank) pairs, given in the order in which they were said."""
    story = Story()
    for source, _ in turns:
        name = fold(source.name or source.role)
        if name not in story.speakers:
            story.speakers.append(name)
            story.people.shown.setdefault(name, source.name or "The user")
    reader = Referents(story, turns)
    for index in range(len(turns)):
        reader.turn(index)
    story.persons |= reader.persons
    story.names |= reader.inside | reader.persons
    _around(story, turns)
    mended(story)
    return story


def _around(story: Story, turns: Sequence[tuple[Source, int]]) -> None:
    """Tell every sentence the words around it, and the question it answers."""
    by_turn: dict[str, list[int]] = {}
    for index, said in enumerate(story.said):
        by_turn.setdefault(said.source.id, []).append(index)
    order = [source.id for source, _ in turns]
    for number, (source, _) in enumerate(turns):
        mine = by_turn.get(source.id, [])
        asked, earlier = "", list[tuple[float, list[int]]]()
        questions: list[int] = []
        back = [i for i in range(number - 1, -1, -1) if turns[i][0].session == source.session][:3]
        for step, i in enumerate(back):
            if i != number - 1 - step:
                break
            theirs = by_turn.get(order[i], [])
            same = turns[i][0].name == source.name and turns[i][0].role == source.role
            if step == 0 and not same and theirs:
                questions = [t for t in theirs if story.said[t].text.rstrip().endswith("?")]
                asked = story.said[questions[-1]].text if questions else ""
                if questions:
                    earlier.append((0.6, questions[-1:]))
            earlier.append((0.3 if step == 0 else 0.35 if same else 0.15, theirs))
        for place, index in enumerate(mine):
            said = story.said[index]
            near: dict[str, float] = {}
            leans = LEANS.match(said.text) is not None
            for other in mine:
                gap = other - index
                weight = {-1: 0.75 if leans else 0.6, 1: 0.45}.get(gap, 0.3)
                for word in story.said[other].words if gap else ():
                    near[word] = max(near.get(word, 0.0), weight)
                if gap == -1 and leans:
                    for word, share in story.said[other].near.items():
                        near[word] = max(near.get(word, 0.0), 0.8 * share)
            for weight, theirs in earlier:
                first = weight * (1.4 if leans else 1.0) if place == 0 else weight * 0.7
                for other in theirs:
                    for word in story.said[other].words:
                        near[word] = max(near.get(word, 0.0), first)
                    if other in questions:  # "When does it open?": what "it" is was said before
                        for word, share in story.said[other].near.items():
                            near[word] = max(near.get(word, 0.0), 0.8 * first * share)
            before = story.said[index - 1].plain if place else asked
            beside = {w for o in mine if abs(o - index) == 1 for w in story.said[o].about}
            if questions and (leans or place == 0):
                beside |= story.said[questions[-1]].about
            story.said[index] = replace(
                said,
                near=near,
                beside=frozenset(beside),
                lead=asked if place == 0 else "",
                context=before,
                leans=leans,
            )

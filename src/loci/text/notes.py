"""Notes in the margin of what was said: keywords, tags, a sentence of context, and links.

Rules take keywords from the text (names first), tags from the subjects whose words it uses, and as
context who spoke, when, what the times in it mean, and the question it answers. A model may write
all of these instead, decide which notes belong together, and rewrite the margins of those; the text
of a note never changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any  # a reply is JSON

from loci.core.item import Gloss, Turn
from loci.text.entities import PLAIN, names, normalise
from loci.text.ladder import Refused, Task
from loci.text.quote import AS_DATA, block
from loci.text.stem import fold, stem, stems, tokens
from loci.text.tags import tags_of
from loci.text.tasks import ungrounded
from loci.text.times import describe, resolve, written

KEYWORDS, TAGS = 6, 4
"""How many a note has at most."""

_MARGIN = 12  # keywords or tags of a note whose margin has grown
_QUESTION = re.compile(r"[^.!?\n]*\?")
_LONGEST = 240  # characters of a question that is quoted whole; a longer one is left out
_COMMON = frozenset(
    stems(
        """
        go went gone going get got getting come came coming take took make made say said tell
        told know knew think thought feel felt see saw seen look looked want wanted need needed
        try tried use used find found give gave keep kept let put start started really pretty
        thing things something lot lots kind sort bit way time times day days week weeks month
        months year years today yesterday people guy guys one much many more most good great
        nice new old big little happy sure yeah wow hey thanks thank bye bit off out own via per
        ago yet too let did has had her his its our him she awesome amazing cool super
        definitely totally love like enjoy hope plan
        """
    )
)
_GLOSS = (
    "You keep notes of what people say. For the message give at least three keywords that it "
    "holds (no names of who speaks, no times), at least three tags (broad subjects), and one "
    "sentence of context: topic, who, and why it matters. Use what the earlier messages tell. "
    'Answer with JSON: {"keywords": ["..."], "context": "...", "tags": ["..."]}. ' + AS_DATA
)
_CONNECT = (
    "You keep notes that connect themselves. A new note came in; the numbered notes are those most "
    "like it. Give in links the numbers of the notes that belong together with the new one, in "
    "tags the tags the new note should have, and in changes, for those whose context or tags the "
    "new note makes clearer, their number, a new sentence of context and new tags. Change nothing "
    'where nothing is learnt. Answer with JSON: {"links": [1], "tags": ["..."], "changes": '
    '[{"note": 1, "context": "...", "tags": ["..."]}]}. ' + AS_DATA
)
_WORDS = {"type": "string", "minLength": 1, "maxLength": 60}
_SENTENCE = {"type": "string", "maxLength": 300}


@dataclass(frozen=True, kw_only=True)
class Near:
    """A note near to a new one.

    Attributes:
        id: of the note, or the key it will have.
        weight: how near, 0 to 1.
        fits: whether the rules would link it.
    """

    id: str
    text: str
    gloss: Gloss
    weight: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What became of a new note among those near to it: links, its tags, margins written anew."""

    links: tuple[Near, ...] = ()
    tags: tuple[str, ...] = ()
    margins: Mapping[str, Gloss] = field(default_factory=dict)


def gloss(turn: Turn, before: Sequence[Turn] = ()) -> Gloss:
    """Return the margin the rules write for a turn."""
    who = turn.name or turn.role
    asked = _asked(turn, before)
    day = written(turn.time)
    times = [describe(span) for span in resolve(turn.content, turn.time) if span.relation != "for"]
    parts = [f"{who} said this on {day}"]
    if times := [time for time in dict.fromkeys(times) if time != day]:
        parts.append("it is about " + ", ".join(times[:3]))
    if asked is not None:
        parts.append(f'{asked[0].name or asked[0].role} had asked "{asked[1]}"')
    return Gloss(
        keywords=keywords(turn.content, [t.name for t in (turn, *before) if t.name]),
        tags=tags_of(turn.content, TAGS),
        context="; ".join(parts),
        sources=(turn.id,) if asked is None else (turn.id, asked[0].id),
    )


def keywords(text: str, speakers: Sequence[str] = (), limit: int = KEYWORDS) -> tuple[str, ...]:
    """Return the words that tell most of a text: names, then what is said most often.

    >>> keywords("Hi Bob! I took the kids to the pottery workshop in Graz.", ["Ada", "Bob"])
    ('graz', 'workshop', 'pottery', 'kids')
    """
    drop = {word for name in speakers for word in tokens(name)}
    found: dict[str, None] = {}
    for name in names(f"x {text}"):
        whole = normalise(name)
        if whole and not set(whole.split()) & drop:
            found[whole] = None
    have = {stem(word) for name in found for word in name.split()}
    count: dict[str, int] = {}
    written: dict[str, str] = {}
    for word in tokens(text):
        root = stem(word)
        if len(word) < 3 or word in PLAIN or word in drop or root in _COMMON or root in have:
            continue
        count[root] = count.get(root, 0) + 1
        written.setdefault(root, word)
    best = sorted(count, key=lambda root: (-count[root], -len(written[root]), root))
    return (*list(found)[:limit], *(written[root] for root in best))[:limit]


def grown(own: Gloss, text: str, near: Sequence[tuple[float, Gloss, str]]) -> Gloss:
    """Return a margin that took in those of its linked notes, given as (weight, gloss, text).

    A note's own keywords are those that stand in its text; only they are passed on, so that margins
    that grew never feed on each other. What one linked note says stays that note's; what several
    say is what they have in common, and joins.
    """
    votes = dict.fromkeys(_standing(own, text), float(_MARGIN))
    tags = dict.fromkeys(own.tags[:TAGS], float(_MARGIN))
    for weight, other, said in near:
        for word in _standing(other, said):
            votes[word] = votes.get(word, 0.0) + weight
        for tag in other.tags[:TAGS]:
            tags[tag] = tags.get(tag, 0.0) + weight
    return Gloss(
        keywords=_most(votes),
        tags=_most(tags),
        context=own.context,
        sources=tuple(dict.fromkeys((*own.sources, *(s for _, g, _ in near for s in g.sources)))),
    )


def _standing(gloss: Gloss, text: str) -> list[str]:
    have = set(stems(text))
    return [word for word in gloss.keywords if set(stems(word)) <= have]


def _most(votes: Mapping[str, float]) -> tuple[str, ...]:
    ordered = sorted(votes, key=lambda word: -votes[word])
    return tuple(word for word in ordered if votes[word] >= 1.0)[:_MARGIN]


def likeness(left: Sequence[str], right: Sequence[str]) -> float:
    """Return how alike two texts are by their stems, 0 to 1.

    The root lifts it to where cosines of embeddings are: short texts about one thing share few
    words.
    """
    a, b = set(left), set(right)
    return (len(a & b) / (len(a) * len(b)) ** 0.5) ** 0.5 if a and b else 0.0


def glossing(turn: Turn, before: Sequence[Turn] = ()) -> Task[Gloss]:
    """Return the task of writing the margin of a turn."""
    words = {"type": "array", "items": _WORDS, "minItems": 1, "maxItems": 8}
    parts = [block("message", [_shown(turn)])]
    if before:
        parts.insert(0, block("before", map(_shown, before)))
    return Task(
        name="write a margin",
        messages=_asks(_GLOSS, parts),
        schema={
            "type": "object",
            "properties": {"keywords": words, "context": _SENTENCE, "tags": words},
            "required": ["keywords", "context", "tags"],
            "additionalProperties": False,
        },
        read=lambda data: _gloss(data, turn, before),
        rules=lambda: gloss(turn, before),
        max_tokens=384,
    )


def connecting(
    text: str, own: Gloss, near: Sequence[Near], rules: Callable[[], Connection]
) -> Task[Connection]:
    """Return the task of linking a new note to those near to it, and of rewriting their margins."""
    shown = [
        {
            "number": number,
            "text": note.text,
            "context": note.gloss.context,
            "tags": list(note.gloss.tags),
        }
        for number, note in enumerate(near, 1)
    ]
    new = {"text": text, "context": own.context, "keywords": list(own.keywords)}
    number = {"type": "integer", "minimum": 1, "maximum": max(len(near), 1)}
    words = {"type": "array", "items": _WORDS, "maxItems": 8}
    change = {
        "type": "object",
        "properties": {"note": number, "context": _SENTENCE, "tags": words},
        "required": ["note", "context", "tags"],
        "additionalProperties": False,
    }
    most = len(near)
    return Task(
        name="connect notes",
        messages=_asks(_CONNECT, [block("new", [new]), block("notes", shown)]),
        schema={
            "type": "object",
            "properties": {
                "links": {"type": "array", "items": number, "maxItems": most},
                "tags": words,
                "changes": {"type": "array", "items": change, "maxItems": most},
            },
            "required": ["links", "tags", "changes"],
            "additionalProperties": False,
        },
        read=lambda data: _connection(data, text, own, near),
        rules=rules,
        max_tokens=256 + 128 * most,
    )


def _asked(turn: Turn, before: Sequence[Turn]) -> tuple[Turn, str] | None:
    """Return the turn before and the question in it, if another asked one."""
    if not before or before[-1].session != turn.session:
        return None
    last = before[-1]
    found = [q.strip() for q in _QUESTION.findall(last.content)]
    if not found or (last.name or last.role) == (turn.name or turn.role):
        return None
    return (last, found[-1]) if len(found[-1]) <= _LONGEST else None


def _asks(instruction: str, parts: Sequence[str]) -> tuple[dict[str, str], ...]:
    return (
        {"role": "system", "content": instruction},
        {"role": "user", "content": "\n".join(parts)},
    )


def _shown(turn: Turn) -> dict[str, Any]:
    return {"date": f"{turn.time:%Y-%m-%d}", "who": turn.name or turn.role, "text": turn.content}


def _gloss(
    data: Mapping[str, Any], turn: Turn, before: Sequence[Turn]
) -> tuple[Gloss, list[Refused]]:
    refused: list[Refused] = []
    near = [turn, *before]
    speakers = {word for t in near if t.name for word in tokens(t.name)}
    words: dict[str, None] = {}
    for word in data["keywords"]:
        plain = fold(word).strip()
        if not plain or set(plain.split()) <= speakers:
            refused.append(Refused("a keyword that is empty or a speaker's name", word))
        elif ungrounded(plain, near, share=1.0) is not None:
            refused.append(Refused("a keyword nobody said", word))
        else:
            words[plain] = None
    context, problem = _context(data["context"], near)
    if problem is not None:
        refused.append(problem)
    made = Gloss(
        keywords=tuple(words),
        tags=_tags(data["tags"]),
        context=context,
        sources=tuple(dict.fromkeys(t.id for t in near)),
    )
    return made, refused


def _connection(
    data: Mapping[str, Any], text: str, own: Gloss, near: Sequence[Near]
) -> tuple[Connection, list[Refused]]:
    links = tuple(near[number - 1] for number in dict.fromkeys(data["links"]))
    margins: dict[str, Gloss] = {}
    refused: list[Refused] = []
    for change in data["changes"]:
        note = near[change["note"] - 1]
        if note not in links:
            refused.append(Refused("a change of a note that is not linked", note.id))
            continue
        said = set(stems(f"{text} {note.text} {own.context} {note.gloss.context}"))
        context = " ".join(change["context"].split())
        strange = [
            name for name in names(f"x {context}") if not set(stems(normalise(name))) <= said
        ]
        strange += [word for word in stems(context) if word.isdigit() and word not in said]
        if strange:
            refused.append(Refused("a context with a name or number nobody said", context))
            continue
        margins[note.id] = Gloss(
            keywords=note.gloss.keywords,
            tags=_tags(change["tags"]) or note.gloss.tags,
            context=context or note.gloss.context,
            sources=tuple(dict.fromkeys((*note.gloss.sources, *own.sources))),
        )
    return Connection(links=links, tags=_tags(data["tags"]) or own.tags, margins=margins), refused


def _context(text: str, near: Sequence[Turn]) -> tuple[str, Refused | None]:
    plain = " ".join(text.split())
    problem = ungrounded(plain, near, share=0.0)
    return ("", Refused(problem, plain)) if problem is not None else (plain, None)


def _tags(given: Sequence[str]) -> tuple[str, ...]:
    plain = (fold(tag).strip() for tag in given)
    return tuple(dict.fromkeys(tag for tag in plain if tag))

"""Synthetic conversations over months with known facts, changes of mind, and questions.

Everything is drawn from tables with a seed. Each turn that tells a fact carries the operation a
memory should carry out; small talk, questions and daydreams carry none.

Wordings come from two places: the "plain" ones in this file, and "more" in a file of their own,
which were written later and apart from any rule. Both are pooled and parted into halves by a seed:
extraction rules may be written against the "written" half (`wordings("written")` lists it), and the
"held_out" half says what they are worth. Rules were written against the plain ones before they were
parted, so "more" is the harder test.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Literal

from loci.core.item import Turn


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a memory should do about one turn: "add", "supersede", "retire", "noop" or "none"."""

    turn: str
    operation: str
    value: str = ""
    old: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with the values its answer must name, and the turns that say so."""

    text: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Sessions in order of time, what each turn asks for, and questions at the end."""

    speaker: str
    sessions: tuple[tuple[Turn, ...], ...]
    expected: tuple[Expected, ...]
    questions: tuple[Asked, ...]


@dataclass(frozen=True)
class _Topic:
    """One slot: values, wordings for a first, a changed, a repeated and an ended value."""

    many: bool
    values: tuple[str, ...]
    first: tuple[str, ...]
    change: tuple[str, ...]
    end: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    ask_before: tuple[str, ...] = ()
    again: tuple[str, ...] = field(default=())


_TOPICS: tuple[_Topic, ...] = (
    _Topic(
        many=False,
        values=("Utrecht", "Leeds", "Toulouse", "Graz", "Malmo", "Bilbao"),
        first=(
            "I live in {v} by the way.",
            "I'm based in {v}, right in the centre.",
            "I've been living in {v} for a couple of years.",
        ),
        change=(
            "We packed everything and moved to {v} last week!",
            "I've just relocated to {v}.",
            "So, I live in {v} now. The old flat was too small.",
        ),
        ask=("Where does {s} live now?", "What city is {s} living in?"),
        ask_before=("Where did {s} live before?", "Where did {s} used to live?"),
        again=("Still enjoying myself, I live in {v} after all.", "I live in {v}, remember?"),
    ),
    _Topic(
        many=False,
        values=("Brightwater", "Halden Foods", "Orbex", "Lumen Press", "Castor Bank"),
        first=(
            "I work at {v} at the moment.",
            "I've been working for {v} since 2019.",
            "I got a job at {v} a while ago.",
        ),
        change=(
            "I changed jobs, I work for {v} now!",
            "Big step: I just started working at {v}.",
            "I got a new job at {v}, my first day was Monday.",
        ),
        ask=("Where does {s} work?", "Which company does {s} work for these days?"),
        ask_before=("Where did {s} work before?",),
        again=("Busy day, I work at {v} as you know.",),
    ),
    _Topic(
        many=False,
        values=("teal", "burgundy", "mustard", "olive", "lilac"),
        first=("My favourite colour is {v}.", "My favorite color is {v}, always was."),
        change=(
            "Funny, my favourite colour is {v} nowadays.",
            "Actually, my favourite colour is {v} now.",
        ),
        ask=("What is {s}'s favourite colour?", "What's the favorite color of {s}?"),
        again=("My favourite colour is {v}, so I bought socks in it.",),
    ),
    _Topic(
        many=True,
        values=("walnuts", "shellfish", "penicillin", "cat hair", "sesame"),
        first=(
            "Careful, I'm allergic to {v}.",
            "The doctor says I have an allergy to {v}.",
            "I am badly allergic to {v}.",
        ),
        change=("It turns out I'm also allergic to {v}.", "Now I'm allergic to {v} too."),
        end=("Good news, I'm no longer allergic to {v}.", "I'm not allergic to {v} anymore!"),
        ask=("What is {s} allergic to?",),
        again=("No thanks, I'm allergic to {v}.",),
    ),
    _Topic(
        many=True,
        values=("chess", "the ukulele", "badminton", "the clarinet", "table tennis"),
        first=(
            "I play {v} on Sundays.",
            "These days I play {v} with some friends.",
            "I started playing {v} this spring.",
        ),
        change=("I took up {v} as well.", "I started playing {v} too, it's great fun."),
        end=(
            "I stopped playing {v}, no time.",
            "I gave up {v} in the end.",
            "I don't play {v} anymore.",
        ),
        ask=("What does {s} play?",),
        again=("I play {v}, that keeps me sane.",),
    ),
    _Topic(
        many=True,
        values=(
            "a hamster named Pip",
            "a dog named Bruno",
            "a cat named Miso",
            "a rabbit named Fig",
            "a parrot named Kiwi",
        ),
        first=("I have {v}.", "We adopted {v} on Saturday.", "I've got {v}, such a sweetheart."),
        change=("We also have {v} now.", "Guess what, I got {v}!"),
        ask=("What pets does {s} have?",),
        again=("I'm at home, I have {v} on my lap.",),
    ),
    _Topic(
        many=True,
        values=("spicy ramen", "black olives", "mango ice cream", "goat cheese", "rye bread"),
        first=("I love {v}.", "I really like {v}, could eat it daily.", "I'm a big fan of {v}."),
        change=("I like {v} too.", "Lately I'm really into {v}."),
        end=("I don't like {v} anymore.", "I used to love {v}, not now."),
        ask=("What food does {s} like?",),
        again=("Yum, I love {v}.",),
    ),
    _Topic(
        many=False,
        values=("Jonas", "Amira", "Felix", "Ottilie", "Rafael"),
        first=(
            "I'm dating {v}, we met at a concert.",
            "My partner is called {v}.",
            "My partner's name is {v}.",
        ),
        change=("I'm seeing {v} now.", "I have a new partner, I'm dating {v}."),
        end=("{v} and I broke up.", "I broke up with {v} yesterday.", "I split up with {v}."),
        ask=("Who is {s}'s partner?", "Who is {s} dating?"),
        again=("My partner {v} is a great cook.",),
    ),
    _Topic(
        many=True,
        values=("Portuguese", "Finnish", "Korean", "Welsh", "Swahili"),
        first=("I speak {v}.", "I can speak {v} quite well."),
        change=("I speak {v} as well.", "And I speak {v}, a bit."),
        ask=("Which languages does {s} speak?",),
        again=("I speak {v}, so I helped a tourist.",),
    ),
    _Topic(
        many=False,
        values=("a nurse", "a carpenter", "a translator", "a baker", "an electrician"),
        first=("I'm {v} by trade.", "I work as {v}.", "For a living? I'm {v}."),
        change=("I retrained, I work as {v} now.", "I became {v} this year."),
        ask=("What is {s}'s job?", "What does {s} do for a living?"),
        ask_before=("What was {s}'s previous job?",),
        again=("As you know I'm {v}.",),
    ),
    _Topic(
        many=False,
        values=("a red Skoda", "a grey Volvo", "an old Fiat", "a white Kia"),
        first=("I drive {v}.", "I drive {v} to work."),
        change=("I drive {v} now, the other one gave out.",),
        ask=("What car does {s} drive?",),
        again=("I drive {v}, it needs washing.",),
    ),
)
_CHAT = (
    "How was your weekend?",
    "The weather is awful today.",
    "Ha, that made me laugh.",
    "What would you cook with leeks?",
    "If I lived on an island I'd never wear shoes.",
    "I wish I had more time.",
    "Thanks, that helps a lot!",
    "Do you like jazz?",
    "Maybe I'll paint the kitchen some day.",
    "Could you recommend a good book?",
    "That sounds lovely.",
    "I wonder what tomorrow brings.",
    "Okay, talk to you later!",
    "Would you move to Paris if you were me?",
    "Hmm, not sure about that.",
    "Should I get a parrot?",
    "It is raining cats and dogs here.",
)
_REPLIES = (
    "Got it, thanks for telling me.",
    "That sounds nice!",
    "I see. Anything else?",
    "Sure, I will keep it in mind.",
    "Interesting! Tell me more.",
)


Half = Literal["plain", "more", "written", "held_out", "both"]
_FIELDS = ("first", "change", "end", "ask", "ask_before", "again")


@cache
def _wordings(half: Half, split: int) -> tuple[tuple[_Topic, ...], tuple[str, ...]]:
    """Return topics and small talk with the wordings of one half."""
    more = tomllib.loads(
        files("loci.text").joinpath("dialogue_more.toml").read_text(encoding="utf-8")
    )

    def chosen(name: str, plain: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
        if half == "plain":
            return plain
        if half == "more":
            return others
        pool = [*plain, *others]
        if half == "both":
            return tuple(pool)
        random.Random(f"{split} {name}").shuffle(pool)
        middle = (len(pool) + 1) // 2
        return tuple(pool[:middle] if half == "written" else pool[middle:])

    topics = []
    for place, (topic, others) in enumerate(zip(_TOPICS, more["topic"], strict=True)):
        first, change, end, ask, ask_before, again = (
            chosen(f"{place} {name}", getattr(topic, name), tuple(others.get(name, ())))
            for name in _FIELDS
        )
        topics.append(
            replace(
                topic,
                first=first,
                change=change,
                end=end,
                ask=ask,
                ask_before=ask_before,
                again=again,
            )
        )
    return tuple(topics), chosen("chat", _CHAT, tuple(more["talk"]["chat"]))


def wordings(half: Half = "written", split: int = 0) -> list[str]:
    """Return the statements of one half, with {v} for the value: what rules may be written against.

    >>> len(wordings("written")) > 50, set(wordings("written")) & set(wordings("held_out"))
    (True, set())
    """
    topics, _ = _wordings(half, split)
    return [
        text
        for topic in topics
        for texts in (topic.first, topic.change, topic.end, topic.again)
        for text in texts
    ]


def make_dialogue(
    seed: int = 0,
    *,
    half: Half = "plain",
    split: int = 0,
    sessions: int = 8,
    facts_per_session: int = 4,
    chance_of_change: float = 0.45,
    chance_of_end: float = 0.2,
    chance_of_repeat: float = 0.15,
    small_talk: int = 3,
    speaker: str = "Nora",
) -> Dialogue:
    """Return a conversation, the same for the same arguments.

    Args:
        half: which wordings are used, see the top of this file.
        split: the seed that parts all wordings into "written" and "held_out".
        chance_of_change: that a known slot gets another value rather than a new slot its first.
        chance_of_end: that a value which can end does so.
        chance_of_repeat: that a known value is only said again.
        small_talk: turns per session that tell nothing.
    """
    topics, chat = _wordings(half, split)
    dice = random.Random(seed)
    held: dict[int, list[tuple[str, str]]] = {}
    past: dict[int, list[tuple[str, str]]] = {}
    expected: list[Expected] = []
    made: list[tuple[Turn, ...]] = []
    begin = datetime(2025, 1, 6, 18, 0, tzinfo=UTC)
    for number in range(sessions):
        at = begin + timedelta(days=17 * number)
        lines: list[tuple[str, Expected | None, tuple[int, str] | None]] = []
        for _ in range(facts_per_session):
            lines.append(
                _tell(topics, dice, held, past, chance_of_change, chance_of_end, chance_of_repeat)
            )
        for _ in range(small_talk):
            place = dice.randrange(len(lines) + 1)
            lines.insert(place, (dice.choice(chat), Expected(turn="", operation="none"), None))
        turns: list[Turn] = []
        for text, wanted, told in lines:
            text = text[:1].upper() + text[1:]  # a value may stand first
            turn = Turn(
                id=f"s{number}t{len(turns)}",
                role="user",
                name=speaker,
                content=text,
                time=at + timedelta(minutes=len(turns)),
                session=f"s{number}",
                position=len(turns),
            )
            turns.append(turn)
            if wanted is not None:
                expected.append(
                    Expected(
                        turn=turn.id, operation=wanted.operation, value=wanted.value, old=wanted.old
                    )
                )
            if told is not None:
                _note(held, past, told, turn.id)
            turns.append(
                Turn(
                    id=f"s{number}t{len(turns)}",
                    role="assistant",
                    content=dice.choice(_REPLIES),
                    time=at + timedelta(minutes=len(turns)),
                    session=f"s{number}",
                    position=len(turns),
                )
            )
        made.append(tuple(turns))
    return Dialogue(
        speaker=speaker,
        sessions=tuple(made),
        expected=tuple(expected),
        questions=tuple(_questions(topics, dice, speaker, held, past)),
    )


def _tell(
    topics: Sequence[_Topic],
    dice: random.Random,
    held: dict[int, list[tuple[str, str]]],
    past: dict[int, list[tuple[str, str]]],
    chance_of_change: float,
    chance_of_end: float,
    chance_of_repeat: float,
) -> tuple[str, Expected, tuple[int, str]]:
    """Draw one statement; `held` and `past` are brought up to date by `_note` afterwards."""
    live = [k for k, values in held.items() if values]
    if live and dice.random() < chance_of_repeat:
        topic = dice.choice(live)
        value = dice.choice(held[topic])[0]
        held[topic] = held.pop(topic)
        text = dice.choice(topics[topic].again).format(v=value)
        return text, Expected(turn="", operation="noop", value=value), (topic, "=" + value)
    ending = [k for k in live if topics[k].end]
    if ending and dice.random() < chance_of_end:
        topic = dice.choice(ending)
        value = dice.choice(held[topic])[0]
        text = dice.choice(topics[topic].end).format(v=value)
        _close(held, past, topic, value)
        return text, Expected(turn="", operation="retire", value=value), (topic, "-" + value)
    fresh = [k for k in range(len(topics)) if k not in held and k not in past]
    known = [k for k in live if _unused(topics, k, held, past)]
    if known and (not fresh or dice.random() < chance_of_change):
        topic = dice.choice(known)
        value = dice.choice(_unused(topics, topic, held, past))
        text = dice.choice(topics[topic].change).format(v=value)
        if topics[topic].many:
            held[topic].append((value, ""))
            return text, Expected(turn="", operation="add", value=value), (topic, "+" + value)
        old = held[topic][-1][0]
        _close(held, past, topic, old)
        held[topic].append((value, ""))
        return (
            text,
            Expected(turn="", operation="supersede", value=value, old=old),
            (topic, "+" + value),
        )
    topic = dice.choice(fresh or [k for k in range(len(topics)) if _unused(topics, k, held, past)])
    value = dice.choice(_unused(topics, topic, held, past))
    text = dice.choice(topics[topic].first).format(v=value)
    many_or_empty = topics[topic].many or not held.get(topic)
    operation = "add" if many_or_empty else "supersede"
    if not many_or_empty:
        _close(held, past, topic, held[topic][-1][0])
    held.setdefault(topic, []).append((value, ""))
    return text, Expected(turn="", operation=operation, value=value), (topic, "+" + value)


def _unused(
    topics: Sequence[_Topic],
    topic: int,
    held: dict[int, list[tuple[str, str]]],
    past: dict[int, list[tuple[str, str]]],
) -> list[str]:
    used = {v for v, _ in (*held.get(topic, ()), *past.get(topic, ()))}
    return [value for value in topics[topic].values if value not in used]


def _close(
    held: dict[int, list[tuple[str, str]]],
    past: dict[int, list[tuple[str, str]]],
    topic: int,
    value: str,
) -> None:
    entry = next(e for e in held[topic] if e[0] == value)
    held[topic].remove(entry)
    past.setdefault(topic, []).append(entry)


def _note(
    held: dict[int, list[tuple[str, str]]],
    past: dict[int, list[tuple[str, str]]],
    told: tuple[int, str],
    turn: str,
) -> None:
    """Write down which turn told a value."""
    topic, mark = told
    for table in (held, past):
        values = table.get(topic, [])
        for place, (value, source) in enumerate(values):
            if value == mark[1:] and not source:
                values[place] = (value, turn)


def _questions(
    topics: Sequence[_Topic],
    dice: random.Random,
    speaker: str,
    held: dict[int, list[tuple[str, str]]],
    past: dict[int, list[tuple[str, str]]],
) -> list[Asked]:
    asked = []
    for topic in sorted({*held, *past}):
        shape, now, old = topics[topic], held.get(topic, []), past.get(topic, [])
        if now:
            asked.append(
                Asked(
                    text=dice.choice(shape.ask).format(s=speaker),
                    answers=tuple(_core(v) for v, _ in now),
                    wrong=tuple(_core(v) for v, _ in old),
                    evidence=tuple(t for _, t in now),
                )
            )
        if old and now and shape.ask_before:
            asked.append(
                Asked(
                    text=dice.choice(shape.ask_before).format(s=speaker),
                    answers=(_core(old[-1][0]),),
                    evidence=(old[-1][1],),
                )
            )
    return asked


def _core(value: str) -> str:
    return value.removeprefix("a ").removeprefix("an ").removeprefix("the ").split(" named ")[-1]


# What a value is, in the order of the topics: as a memory should write it, and when it has ended.
_SENTENCES = (
    ("{s} lives in {v}", ""),
    ("{s} works at {v}", ""),
    ("{s}'s favourite colour is {v}", ""),
    ("{s} is allergic to {v}", "{s} is no longer allergic to {v}"),
    ("{s} plays {v}", "{s} no longer plays {v}"),
    ("{s} has {v}", ""),
    ("{s} likes {v}", "{s} no longer likes {v}"),
    ("{s}'s partner is {v}", "{s} is no longer with {v}"),
    ("{s} speaks {v}", ""),
    ("{s} works as {v}", ""),
    ("{s} drives {v}", ""),
)


def sentence_of(value: str, speaker: str, *, ended: bool = False) -> str:
    """Return a value of a dialogue as the fact it stands for.

    >>> sentence_of("chess", "Nora", ended=True)
    'Nora no longer plays chess'
    """
    return _SENTENCES[kind_of_value(value)][ended].format(s=speaker, v=value)


def kind_of_value(value: str) -> int:
    """Return which topic a value is of.

    >>> kind_of_value("chess") == kind_of_value("badminton") != kind_of_value("teal")
    True
    """
    (place,) = (at for at, topic in enumerate(_TOPICS) if value in topic.values)
    return place


def turns_of(dialogue: Dialogue) -> Sequence[Turn]:
    """Return all turns in order."""
    return [turn for session in dialogue.sessions for turn in session]

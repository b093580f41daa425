"""Chats over months between friends, or with an assistant, and questions that cite their turns.

`dialogue` asks whether facts are kept right; its questions repeat the words of the statements. Here
finding is the hard part, as in real talk: who asks uses other words than who told; an answer often
lacks its subject, which stands in the turn before ("Which colour?" - "Bright orange"); the other
person speaks of the same things; most turns say nothing; an assistant repeats the user's words at
length. All texts are in `chats.toml` and were written for this; everything is drawn with a seed.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Literal  # tables of texts

from loci.core.item import Turn
from loci.text.dialogue import Asked

Form = Literal["friends", "assistant", "unnamed"]

_BEGIN = datetime(2025, 1, 9, 18, 30, tzinfo=UTC)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SINCE = {"yesterday": 1, "last night": 1, "two days ago": 2, "three days ago": 3, "last week": 7}
_SINCE |= {"a week ago": 7, "the day before yesterday": 2, "last weekend": 4}

# How a question about {s} reads when the one who asks is {s}.
_MINE = (
    (r"\{s\}'s", "my"),
    (r"\bdid \{s\}", "did I"),
    (r"\bdoes \{s\}", "do I"),
    (r"\bis \{s\}", "am I"),
    (r"\bwas \{s\}", "was I"),
    (r"\bhas \{s\}", "have I"),
    (r"\bwill \{s\}", "will I"),
)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Sessions in order of time, and questions with the ids of the turns that answer them."""

    speakers: tuple[str, ...]
    sessions: tuple[tuple[Turn, ...], ...]
    questions: tuple[Asked, ...]


@cache
def texts() -> Mapping[str, Any]:
    """Return the table of stories and small talk."""
    return tomllib.loads(files("loci.testing").joinpath("chats.toml").read_text(encoding="utf-8"))


def make_chat(
    seed: int = 0,
    *,
    sessions: int = 16,
    stories: int = 3,
    small_talk: int = 4,
    speakers: Sequence[str] = ("Nora", "Emil"),
    form: Form = "friends",
) -> Chat:
    """Return a chat, the same for the same arguments.

    Args:
        stories: stories told in a session; each person tells each kind of story at most twice.
        small_talk: exchanges in a session that tell nothing, half of them on a story's subject.
        speakers: who talks; with an assistant only the first does.
        form: "friends"; "assistant", the user's name known; "unnamed", only roles known, and the
            user asks in the first person.
    """
    writer = _Writer(random.Random(seed), tuple(speakers), form)
    for number in range(sessions):
        writer.session(number, stories, small_talk)
    return Chat(
        speakers=tuple(speakers) if form == "friends" else tuple(speakers[:1]),
        sessions=tuple(map(tuple, writer.sessions)),
        questions=tuple(writer.questions()),
    )


@dataclass(frozen=True)
class _Told:
    """One story told: when, in which turn, and the turns of its details."""

    value: str
    turn: str
    at: datetime
    happened: datetime | None
    details: dict[int, tuple[str, str]] = field(default_factory=dict)


class _Writer:
    """Writes the turns of one chat and notes what was told where."""

    def __init__(self, dice: random.Random, speakers: tuple[str, ...], form: Form) -> None:
        self.dice, self.form = dice, form
        self.people = speakers if form == "friends" else speakers[:1]
        self.sessions: list[list[Turn]] = []
        self.told: dict[tuple[str, int], list[_Told]] = defaultdict(list)
        self.at = _BEGIN

    def session(self, number: int, stories: int, small_talk: int) -> None:
        dice = self.dice
        self.at = _BEGIN + timedelta(days=11 * number + dice.randrange(5), hours=dice.randrange(4))
        self.sessions.append([])
        kinds = ["story"] * stories
        kinds += [("small", "muse", "again")[k % 3] for k in range(small_talk)]
        dice.shuffle(kinds)
        who, other = self._pair()
        if self.form == "friends":
            self._say(who, self._chat("hello", o=other))
            self._say(other, self._chat("answer", o=who))
        for kind in kinds:
            who, other = self._pair()
            if kind == "story":
                self._story(who, other)
            elif kind == "again":
                self._again(who, other)
            elif self.form == "friends":
                self._say(who, dice.choice(self._idle(kind)))
                self._say(other, self._chat("reply", o=who))
            else:
                idle = self._idle(kind) if kind == "muse" else texts()["chat"]["request"]
                self._say(who, dice.choice(idle))
                self._say(None, self._chat("assist"))
        if self.form == "friends":
            self._say(who, self._chat("bye", o=other))

    def _again(self, who: str, other: str) -> None:
        """Come back to an old story without telling anything; an assistant is told nothing new."""
        theirs = other if self.form == "friends" else who
        values = [
            t.value for (teller, _), told in self.told.items() if teller == theirs for t in told
        ]
        if not values or self.form != "friends":
            self._say(who, self.dice.choice(self._idle("small")))
            self._say(other or None, self._chat("reply", o=who) if other else self._chat("assist"))
            return
        self._say(who, self._chat("ask_again", v=self.dice.choice(values)))
        self._say(other, self._chat("answer_again"))

    def questions(self) -> list[Asked]:
        asked: list[Asked] = []
        for (who, kind), told in sorted(self.told.items()):
            story = texts()["story"][kind]
            both = len(told) > 1
            names = tuple(t.value for t in told)
            turns = tuple(t.turn for t in told)
            self._ask(asked, story["ask_all" if both else "ask"], who, names, turns, v=names[0])
            for one in told:
                mine = [w for w in story["ask_when"] if "{v}" in w or not both]
                if mine and one.happened is not None:
                    day = (f"{one.happened:%d %B %Y}".lstrip("0"),)
                    self._ask(asked, mine, who, day, (one.turn,), v=one.value)
                for place, (value, turn) in one.details.items():
                    wordings = story["detail"][place]["ask"]
                    wordings = [w for w in wordings if "{v}" in w or not both]
                    if wordings:
                        self._ask(asked, wordings, who, (value,), (turn,), v=one.value)
            months = {(t.at.year, t.at.month) for t in told}
            if both and len(months) == len(told):
                one = self.dice.choice(told)
                dated = [w[:-1] + f" in {one.at:%B %Y}?" for w in story["ask"] if "does" not in w]
                if dated and (one.happened is None or one.happened.month == one.at.month):
                    self._ask(asked, dated, who, (one.value,), (one.turn,), v=one.value)
        return asked

    def _story(self, who: str, other: str) -> None:
        dice = self.dice
        table = texts()["story"]
        free = [k for k in range(len(table)) if len(self.told.get((who, k), ())) < 2]
        # The other's subject again, now and then: the same words in another mouth.
        shared = [k for k in free if any((o, k) in self.told for o in self.people if o != who)]
        kind = dice.choice(shared if shared and dice.random() < 0.4 else free)
        story = table[kind]
        used = {t.value for t in self.told.get((who, kind), ())}
        value = dice.choice([v for v in story["values"] if v not in used])
        when, happened = self._when()
        friends = self.form == "friends"
        text = _capital(dice.choice(story["tell"]).format(v=value, when=when))
        text += self._more(2)
        if not friends and dice.random() < 0.5:
            text += " " + self._chat("wish")
        first = self._say(who, text)
        names_time = when in text or _capital(when) in text
        told = _Told(value, first.id, first.time, happened if names_time else None)
        self.told[who, kind].append(told)
        for place in dice.sample(range(len(story["detail"])), len(story["detail"])):
            detail = story["detail"][place]
            if dice.random() < 0.25:
                continue
            reply = dice.choice(detail["prompt"])
            if friends:
                if dice.random() < 0.5:
                    reply = f"{self._chat('react', o=who)} {reply}"
                if dice.random() < 0.3:
                    reply = f"{_capital(dice.choice(story['echo']).format(v=value))} {reply}"
            elif dice.random() < 0.5:
                reply = f"{_capital(self._chat('assist_echo', v=value))} {reply}"
            self._say(other if friends else None, reply)
            fact = dice.choice(detail["values"])
            answer = _capital(dice.choice(detail["tell"]).format(d=fact))
            answer += self._more(1)
            told.details[place] = (fact, self._say(who, answer).id)
        if friends:
            last = _capital(dice.choice(story["echo"]).format(v=value))
            self._say(other, last if dice.random() < 0.6 else self._chat("react", o=who))
        else:
            self._say(None, _capital(self._chat("assist_echo", v=value)))

    def _ask(
        self,
        asked: list[Asked],
        wordings: Sequence[str],
        who: str,
        answers: tuple[str, ...],
        turns: tuple[str, ...],
        v: str,
    ) -> None:
        text = self.dice.choice(wordings)
        if self.form == "unnamed":
            for pattern, mine in _MINE:
                text = re.sub(pattern, mine, text)
            if "{s}" in text:
                return
        asked.append(Asked(text=_capital(text.format(s=who, v=v)), answers=answers, evidence=turns))

    def _more(self, most: int) -> str:
        """Return up to so many sentences that go on without saying more."""
        count = self.dice.randint(0, most)
        return "".join(" " + text for text in self.dice.sample(texts()["chat"]["more"], count))

    def _when(self) -> tuple[str, datetime]:
        words = self.dice.choice(texts()["when"]["recent"])
        if "{day}" in words:
            back = self.dice.randint(2, 6)
            then = self.at - timedelta(days=back)
            return words.format(day=_DAYS[then.weekday()]), then
        return words, self.at - timedelta(days=_SINCE.get(words, 0))

    def _idle(self, kind: str) -> Sequence[str]:
        if kind == "small":
            return texts()["chat"]["small"]  # type: ignore[no-any-return]
        return self.dice.choice(texts()["story"])["muse"]  # type: ignore[no-any-return]

    def _chat(self, name: str, **names: str) -> str:
        text: str = self.dice.choice(texts()["chat"][name])
        return text.format(**names)

    def _pair(self) -> tuple[str, str]:
        if len(self.people) == 1:
            return self.people[0], ""
        who, other = self.dice.sample(self.people, 2)
        return who, other

    def _say(self, who: str | None, text: str) -> Turn:
        turns, number = self.sessions[-1], len(self.sessions) - 1
        turn = Turn(
            id=f"s{number}t{len(turns)}",
            role="assistant" if who is None else "user",
            name=None if self.form == "unnamed" else who,
            content=text,
            time=self.at + timedelta(minutes=len(turns)),
            session=f"s{number}",
            position=len(turns),
        )
        turns.append(turn)
        return turn


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

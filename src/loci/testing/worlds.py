"""Worlds for `worldtrack`, drawn with a seed: tickets, pull requests, settings, and talk of them.

Reconstruction, as the benchmark itself. A world is told as it would be by four platforms, and with
chosen chances it contradicts itself: chat proposes what nobody decides, a lead decides and the
tracker is never edited, a bot repeats the tracker afterwards, somebody without authority "decides",
a decision is corrected or withdrawn, a service is renamed, a ticket is called by its title, and
some records arrive days late.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone

from loci.errors import ParameterError
from loci.testing.worldtrack import Effect, Event, Question, World, deciding

PEOPLE = ("Ana", "Bram", "Chidi", "Dunja", "Emre", "Freya", "Goran", "Hana", "Ivo", "Juno")
SERVICES = ("payments", "search", "ledger", "gateway", "catalog", "mailer")
NEW_NAMES = ("Harbor", "Beacon", "Quill", "Lantern", "Meridian", "Sparrow")
TITLES = (
    "export page", "password reset", "dark theme", "invoice numbers", "slow start-up",
    "broken avatar", "audit trail", "rate limit", "empty cart", "two-factor login",
    "csv import", "time zone bug", "old links", "double mails", "missing icons", "search ranking",
    "cookie banner", "retry queue", "daily report", "cache warmup",
)  # fmt: skip
REASONS = (
    "the vendor is late", "legal asked for it", "the demo was moved", "two people are ill",
    "the audit comes first", "customers complained", "the budget was cut", "it blocks the release",
)  # fmt: skip
_PRIORITIES = ("low", "medium", "high")
_DATABASES = ("Postgres", "MariaDB", "Redis", "DuckDB", "Cassandra")
_ZONES = (UTC, timezone(timedelta(hours=2)), timezone(timedelta(hours=-5)))
_ASKED = {
    "due": "When is {e} due?",
    "owner": "Who owns {e}?",
    "priority": "What priority does {e} have?",
    "status": "What is the status of {e}?",
    "implemented_by": "Which pull request implements {e}?",
    "author": "Who opened {e}?",
    "timeout": "What is the timeout of {e} in seconds?",
    "database": "Which database does {e} use?",
    "lead": "Who leads {e}?",
    "reviewer": "Who reviews {e}?",
}
_NOUN = {"due": "due date", "timeout": "timeout", "owner": "owner", "priority": "priority"}
_NOUN |= {"database": "database"}
_CHATTER = (
    "Lunch at the usual place?", "The build is green again.", "Who broke the coffee machine?",
    "I am out tomorrow morning.", "{t} gives me a headache.", "Did anybody look at {t} lately?",
    "Happy Friday everyone!", "Stand-up in five minutes.", "{t} reminds me of my first job.",
    "The office is freezing today.", "Can somebody share the slides?", "Nice work on {t}!",
    "I dreamt about {t}, help.", "The train is late, start without me.",
)  # fmt: skip

_About = dict[tuple[str, str], list[Event]]


@dataclass
class _Ticket:
    id: str
    title: str
    service: str
    created: str
    pull: str = ""
    opened: str = ""
    merged: str = ""


@dataclass
class _Service:
    name: str
    lead: str
    called: str
    renamed: str = ""
    tickets: list[_Ticket] = field(default_factory=list)


def make_world(
    seed: int = 0,
    *,
    events: int = 120,
    questions: int = 14,
    conflicts: float = 0.5,
    distractors: float = 0.3,
    late: float = 0.1,
    inversions: float = 0.3,
    titles: float = 0.3,
    depth: int = 4,
) -> World:
    """Return a world, the same for the same arguments.

    Args:
        events: how many, from 30 to 2,000; services and tickets grow with them.
        questions: at least so many, follow-ups counted.
        conflicts: how often a first question is one whose last word is not the true one.
        distractors: share of events that change nothing.
        late: share of events that are seen one to three days after they happen.
        inversions: how often a "decision" comes from somebody who has no authority.
        titles: how often a ticket is called by its title, so that two records must be joined.
        depth: most follow-ups that build on each other, 0 to 4.

    Raises:
        ParameterError: if a value lies outside its range.
    """
    shares = {"conflicts": conflicts, "distractors": distractors, "late": late}
    shares |= {"inversions": inversions, "titles": titles}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ParameterError(f"{name} must be from 0 to 1", value=share)
    if distractors > 0.9:
        raise ParameterError("distractors must be at most 0.9", value=distractors)
    if not 30 <= events <= 2000:
        raise ParameterError("a world has from 30 to 2,000 events", value=events)
    if not 0 <= depth <= 4:
        raise ParameterError("depth must be from 0 to 4", value=depth)
    if questions < 1:
        raise ParameterError("a world has at least one question", value=questions)
    maker = _Maker(random.Random(seed), events, late, inversions, titles)
    maker.write(distractors)
    asker = _Asker(maker, conflicts, depth)
    return World(
        id=f"world-{seed}", events=tuple(maker.events), questions=tuple(asker.ask(questions))
    )


class _Maker:
    """Writes the log, one event after another."""

    def __init__(
        self, dice: random.Random, count: int, late: float, inversions: float, titles: float
    ) -> None:
        self.dice, self.count, self.late = dice, count, late
        self.inversions, self.titles = inversions, titles
        self.events: list[Event] = []
        self.about: _About = defaultdict(list)
        self.now = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
        people = dice.sample(PEOPLE, len(PEOPLE))
        names = dice.sample(SERVICES, min(len(SERVICES), max(2, count // 80)))
        self.services = [_Service(n, people[k], n) for k, n in enumerate(names)]
        self.people = people
        self.numbers = iter(dice.sample(range(1, 1000), 600))

    @property
    def tickets(self) -> list[_Ticket]:
        return [ticket for service in self.services for ticket in service.tickets]

    def write(self, distractors: float) -> None:
        for service in self.services:
            self._found(service)
            self._create(service)
        acts: list[Callable[[], None]] = [
            self._new_ticket, self._field, self._field, self._proposal, self._proposal,
            self._decision, self._decision, self._decision, self._withdrawal,
            self._echo, self._echo, self._pull, self._pull, self._merge,
            self._setting, self._service_decision, self._rename,
        ]  # fmt: skip
        while len(self.events) < self.count:
            if self.dice.random() < distractors:
                self._chatter()
            else:
                self.dice.choice(acts)()

    def _emit(
        self,
        platform: str,
        actor: str,
        kind: str,
        ref: str,
        text: str,
        *effects: tuple[str, str, str | None, str],
        authority: str = "",
        reason: str = "",
        alias: tuple[str, str] | None = None,
        needs: Sequence[str] = (),
    ) -> str:
        """Add an event, some minutes after the one before, and return its id."""
        dice = self.dice
        # Now and then two events share their instant; ids settle which comes first.
        step = 0 if dice.random() < 0.05 and self.events and not needs else dice.randint(5, 90)
        self.now += timedelta(minutes=step)
        if self.now.hour >= 19:
            self.now = (self.now + timedelta(days=1)).replace(hour=9, minute=dice.randint(0, 50))
        at = self.now.astimezone(dice.choice(_ZONES))
        is_late = kind in ("decision", "proposal", "field") and dice.random() < self.late
        seen = at + timedelta(hours=dice.randint(20, 72)) if is_late else at
        id = f"e{len(self.events) + 1:04d}"
        changes = tuple(Effect(entity=e, attribute=a, value=v, called=c) for e, a, v, c in effects)
        self.events.append(
            Event(
                id=id,
                at=at,
                seen=seen,
                platform=platform,
                actor=actor,
                kind=kind,
                ref=ref,
                text=text,
                effects=changes,
                authority=authority,
                reason=reason,
                alias=alias,
                needs=tuple(needs),
            )
        )
        for change in changes:
            self.about[change.entity, change.attribute].append(self.events[-1])
        return id

    def _found(self, service: _Service) -> None:
        seconds = str(self.dice.choice((5, 10, 15, 20, 30)))
        name = service.name
        self._emit(
            "tracker", service.lead, "project", name,
            f"Project {name} created. Lead: {service.lead}.",
            (name, "lead", service.lead, name), authority="tracker",
        )  # fmt: skip
        self._emit(
            "fs", service.lead, "file", f"config/{name}.toml",
            f"config/{name}.toml: [{name}] timeout_s = {seconds}",
            (name, "timeout", seconds, name), authority="merge",
        )  # fmt: skip

    def _new_ticket(self) -> None:
        if len(self.tickets) < min(len(TITLES), max(4, self.count // 12)):
            self._create(min(self.services, key=lambda s: len(s.tickets)))
        else:
            self._field()

    def _create(self, service: _Service) -> None:
        dice = self.dice
        number = f"T-{next(self.numbers)}"
        title = dice.choice([t for t in TITLES if t not in {x.title for x in self.tickets}])
        due, owner = self._date(), dice.choice(self.people)
        priority = dice.choice(_PRIORITIES)
        created = self._emit(
            "tracker", dice.choice(self.people), "created", number,
            f"{number} ({service.called}): {title}. Due {due}. Owner {owner}. Priority {priority}.",
            (number, "due", due, number), (number, "owner", owner, number),
            (number, "priority", priority, number), (number, "service", service.name, number),
            authority="tracker", alias=(f"the {title} ticket", number),
        )  # fmt: skip
        service.tickets.append(_Ticket(number, title, service.name, created))

    def _field(self) -> None:
        ticket = self.dice.choice(self.tickets)
        attribute = self.dice.choice(("due", "owner", "priority"))
        value = self._value(attribute, ticket.id)
        self._emit(
            "tracker", self.dice.choice(self.people), "field", ticket.id,
            f"{ticket.id}: {_NOUN[attribute]} changed to {value}.",
            (ticket.id, attribute, value, ticket.id), authority="tracker", needs=(ticket.created,),
        )  # fmt: skip

    def _proposal(self) -> None:
        ticket, attribute, called = self._subject()
        value = self._value(attribute, ticket.id)
        noun = _NOUN[attribute]
        texts = (
            f"Could we make the {noun} of {called} {value}?",
            f"What about {value} as {noun} for {called}?",
            f"I'd rather have {value} as the {noun} of {called}.",
        )
        self._emit(
            "chat", self.dice.choice(self.people), "proposal", self._channel(ticket.service),
            self.dice.choice(texts), (ticket.id, attribute, value, called),
            authority="proposal", needs=(ticket.created,),
        )  # fmt: skip

    def _decision(self) -> None:
        ticket, attribute, called = self._subject()
        lead = next(s.lead for s in self.services if s.name == ticket.service)
        value, noun = self._value(attribute, ticket.id), _NOUN[attribute]
        reason = self.dice.choice(REASONS)
        inverted = self.dice.random() < self.inversions
        actor = self.dice.choice([p for p in self.people if p != lead]) if inverted else lead
        badge = "" if inverted else " (lead)"
        texts = (
            f"Decided{badge}: the {noun} of {called} is {value}, because {reason}.",
            f"Ok{badge}, {value} it is for {called}: that is the {noun} now, since {reason}.",
            f"Let's settle this{badge}. {called}: {noun} {value}. Reason: {reason}.",
        )
        self._emit(
            "chat", actor, "claim" if inverted else "decision", self._channel(ticket.service),
            self.dice.choice(texts), (ticket.id, attribute, value, called),
            authority="proposal" if inverted else "decision", reason=reason,
            needs=(ticket.created,),
        )  # fmt: skip

    def _withdrawal(self) -> None:
        known = [
            (ticket, attribute)
            for ticket in self.tickets
            for attribute in ("due", "owner", "priority")
            if (s := _settled(self.about, ticket.id, attribute)) and s[0].authority == "decision"
        ]
        if not known:
            return
        ticket, attribute = self.dice.choice(known)
        lead = next(s.lead for s in self.services if s.name == ticket.service)
        self._emit(
            "chat", lead, "decision", self._channel(ticket.service),
            f"(lead) Scrap what I said on the {_NOUN[attribute]} of {ticket.id}, "
            "the tracker stands.",
            (ticket.id, attribute, None, ticket.id), authority="decision", needs=(ticket.created,),
        )  # fmt: skip

    def _echo(self) -> None:
        """Let a bot repeat what the tracker says, best of all where that is no longer true."""
        options = []
        for ticket in self.tickets:
            value = _told(_settled(self.about, ticket.id, "due", "tracker"))
            if value is not None:
                options.append(
                    (ticket, value, value != _told(_settled(self.about, ticket.id, "due")))
                )
        wrong = [option for option in options if option[2]]
        ticket, value, _ = self.dice.choice(wrong or options)
        self._emit(
            "chat", "trackbot", "echo", self._channel(ticket.service),
            f"Reminder: {ticket.id} is due {value}.", (ticket.id, "due", value, ticket.id),
            authority="proposal", needs=(ticket.created,),
        )  # fmt: skip

    def _pull(self) -> None:
        free = [ticket for ticket in self.tickets if not ticket.pull]
        if not free:
            return self._merge()
        ticket = self.dice.choice(free)
        ticket.pull = f"#{next(self.numbers)}"
        author = self.dice.choice(self.people)
        ticket.opened = self._emit(
            "git", author, "pull", ticket.pull,
            f"Pull request {ticket.pull} opened by {author}: {ticket.title}, for {ticket.id}.",
            (ticket.pull, "author", author, ticket.pull),
            authority="merge", needs=(ticket.created,),
        )  # fmt: skip
        return None

    def _merge(self) -> None:
        ready = [ticket for ticket in self.tickets if ticket.pull and not ticket.merged]
        if not ready:
            return
        ticket = self.dice.choice(ready)
        ticket.merged = self._emit(
            "git", self.dice.choice(self.people), "merge", ticket.pull,
            f"Merged {ticket.pull}: fixes {ticket.id}.",
            (ticket.id, "status", "done", ticket.id),
            (ticket.id, "implemented_by", ticket.pull, ticket.id),
            authority="merge", needs=(ticket.opened,),
        )  # fmt: skip

    def _setting(self) -> None:
        service = self.dice.choice(self.services)
        value = str(self.dice.choice((5, 10, 15, 20, 30, 45, 60, 90)))
        path = f"config/{service.name}.toml"
        self._emit(
            "fs", self.dice.choice(self.people), "file", path,
            f"{path}: [{service.called}] timeout_s = {value}",
            (service.name, "timeout", value, service.called),
            authority="merge", needs=(service.renamed,) if service.renamed else (),
        )  # fmt: skip

    def _service_decision(self) -> None:
        service = self.dice.choice(self.services)
        attribute = self.dice.choice(("timeout", "database"))
        value = self.dice.choice(_DATABASES)
        if attribute == "timeout":
            value = str(self.dice.choice((5, 10, 15, 20, 30, 45, 60, 90)))
        unit = " seconds" if attribute == "timeout" else ""
        reason = self.dice.choice(REASONS)
        proposed = self.dice.random() < 0.4
        actor = self.dice.choice(self.people) if proposed else service.lead
        text = (
            f"Should the {attribute} of {service.called} be {value}{unit}?"
            if proposed
            else f"Decided (lead): {service.called} gets {value}{unit} as its {attribute}, "
            f"because {reason}."
        )
        self._emit(
            "chat", actor, "proposal" if proposed else "decision", self._channel(service.name),
            text, (service.name, attribute, value, service.called),
            authority="proposal" if proposed else "decision", reason="" if proposed else reason,
            needs=(service.renamed,) if service.renamed else (),
        )  # fmt: skip

    def _rename(self) -> None:
        plain = [service for service in self.services if not service.renamed]
        if not plain or len(self.events) < self.count // 3:
            return
        service = self.dice.choice(plain)
        used = {s.called for s in self.services}
        service.called = self.dice.choice([name for name in NEW_NAMES if name not in used])
        service.renamed = self._emit(
            "chat", service.lead, "rename", self._channel(service.name),
            f"From today on {service.name} is called {service.called}.",
            alias=(service.called, service.name),
        )  # fmt: skip

    def _chatter(self) -> None:
        ticket = self.dice.choice(self.tickets)
        text = self.dice.choice(_CHATTER).format(t=self.dice.choice((ticket.id, ticket.title)))
        where = self.dice.choice(self.services).name
        self._emit("chat", self.dice.choice(self.people), "chatter", self._channel(where), text)

    def _subject(self) -> tuple[_Ticket, str, str]:
        ticket = self.dice.choice(self.tickets)
        called = ticket.id
        if self.dice.random() < self.titles:
            called = f"the {ticket.title} ticket"
        return ticket, self.dice.choice(("due", "due", "owner", "priority")), called

    def _value(self, attribute: str, ticket: str) -> str:
        now = _told(_settled(self.about, ticket, attribute))
        while True:
            value = {
                "due": self._date,
                "owner": lambda: self.dice.choice(self.people),
                "priority": lambda: self.dice.choice(_PRIORITIES),
            }[attribute]()
            if value != now:
                return value

    def _date(self) -> str:
        return f"{self.now + timedelta(days=self.dice.randint(2, 40)):%d %B}".lstrip("0")

    def _channel(self, service: str) -> str:
        return f"#{service}"


class _Asker:
    """Asks about a finished log, at three times of its course."""

    def __init__(self, maker: _Maker, conflicts: float, depth: int) -> None:
        self.maker, self.dice = maker, maker.dice
        self.conflicts, self.depth = conflicts, depth
        self.asked: list[Question] = []
        self.seen: list[Event] = []
        self.about: _About = defaultdict(list)
        self.now = maker.now

    def ask(self, count: int) -> list[Question]:
        events = self.maker.events
        for part in (0.5, 0.75, 1.0):
            last = events[int(len(events) * part) - 1]
            self.now = max(e.seen for e in events) if part == 1.0 else last.at
            self.now = self.now.astimezone(UTC)
            self.seen = [e for e in events if e.seen <= self.now]
            self.about = defaultdict(list)
            for event in sorted(self.seen, key=lambda e: (e.at, e.id)):
                for effect in event.effects:
                    self.about[effect.entity, effect.attribute].append(event)
            self._some(round(count * (part - 0.25) / 0.75) if part < 1 else count)
        return self.asked

    def _some(self, until: int) -> None:
        firsts = [question for make in self._kinds() for question in make()]
        used = {(q.text, q.asked) for q in self.asked}
        while len(self.asked) < until and firsts:
            disputed = [q for q in firsts if q.conflict]
            pick = disputed if disputed and self.dice.random() < self.conflicts else firsts
            # By kind first: there are far more plain values than anything else.
            kind = self.dice.choice(sorted({(q.kind, q.attribute, q.at is None) for q in pick}))
            question = self.dice.choice(
                [q for q in pick if (q.kind, q.attribute, q.at is None) == kind]
            )
            firsts.remove(question)
            if (question.text, question.asked) in used:
                continue
            self.asked.append(question)
            self._follow(question, 1)

    def _kinds(self) -> list[Callable[[], list[Question]]]:
        return [self._values, self._past, self._decided, self._stale, self._lists, self._unknown]

    def _slots(self) -> list[tuple[str, str, str]]:
        """Return (entity, attribute, name to ask by) of everything that can be asked."""
        created = {e.ref for e in self.seen if e.kind == "created"}
        slots = [
            (ticket.id, attribute, ticket.id)
            for ticket in self.maker.tickets
            if ticket.id in created
            for attribute in ("due", "owner", "priority", "status", "implemented_by")
        ]
        for service in self.maker.services:
            names = [service.name]
            if any(e.id == service.renamed for e in self.seen):
                names.append(service.called)
            slots += [
                (service.name, attribute, self.dice.choice(names))
                for attribute in ("timeout", "database", "lead")
            ]
        return slots

    def _values(self) -> list[Question]:
        made = []
        for entity, attribute, called in self._slots():
            settled = _settled(self.about, entity, attribute)
            if settled is None and attribute == "status":
                created = next(e for e in self.seen if e.kind == "created" and e.ref == entity)
                settled = (created, "open")
            if settled is not None:
                made.append(self._value(entity, attribute, called, settled))
        return made

    def _value(
        self,
        entity: str,
        attribute: str,
        called: str,
        settled: tuple[Event, str],
        at: datetime | None = None,
    ) -> Question:
        event, value = settled
        said = [(e, v) for e, v in self._said(entity, attribute) if at is None or e.at <= at]
        return Question(
            text=_ASKED[attribute].format(e=called),
            kind="value",
            entity=entity,
            attribute=attribute,
            called=called,
            asked=self.now,
            answer=value,
            evidence=self._with_names(event, entity, attribute, called),
            outdated=tuple(sorted({v for _, v in said if v != value})),
            conflict=bool(said) and said[-1][1] != value,
        )

    def _past(self) -> list[Question]:
        made = []
        for entity, attribute, called in self._slots():
            if attribute not in ("due", "owner", "priority", "timeout"):
                continue
            said = self._said(entity, attribute)
            if len({value for _, value in said}) < 2:
                continue
            event = self.dice.choice([e for e, _ in said[:-1]])
            at = event.at.astimezone(UTC).replace(hour=23, minute=59)
            settled = deciding(self.about[entity, attribute], entity, attribute, at)
            if settled is None or at >= self.now:
                continue
            plain = self._value(entity, attribute, called, settled, at)
            day = f"{at:%d %B}".lstrip("0")
            text = f"At the end of {day}: " + plain.text[0].lower() + plain.text[1:]
            others = {value for _, value in said if value != settled[1]}
            made.append(replace(plain, text=text, at=at, outdated=tuple(sorted(others))))
        return [q for q in made if str(q.answer) not in q.text]

    def _decided(self) -> list[Question]:
        made = []
        for entity, attribute, called in self._slots():
            settled = _settled(self.about, entity, attribute)
            if settled is None or settled[0].authority != "decision":
                continue
            event = settled[0]
            plain = self._value(entity, attribute, called, settled)
            noun = _NOUN[attribute]
            last = self._said(entity, attribute)[-1][0]
            for kind, text, answer, wrong in (
                ("who", f"Who decided on the present {noun} of {called}?", event.actor, last.actor),
                ("why", f"Why is the {noun} of {called} what it is?", event.reason, last.reason),
            ):
                made.append(
                    replace(
                        plain,
                        kind=kind,
                        text=text,
                        answer=answer,
                        outdated=(),
                        conflict=answer != wrong,
                    )
                )
        return made

    def _stale(self) -> list[Question]:
        """Ask which platform contradicts what was decided; often none does."""
        made = []
        for entity, attribute, called in self._slots():
            if attribute not in ("due", "owner", "priority", "timeout"):
                continue
            platform = "fs" if attribute == "timeout" else "tracker"
            settled = _settled(self.about, entity, attribute)
            theirs = _settled(self.about, entity, attribute, platform)
            if settled is None or theirs is None:
                continue
            wrong = theirs[1] != settled[1]
            evidence = self._with_names(settled[0], entity, attribute, called)
            if wrong:
                more = self._with_names(theirs[0], entity, attribute, called)
                evidence = tuple(dict.fromkeys((*evidence, *more)))
            made.append(
                Question(
                    text=f"Which platform has an outdated {_NOUN[attribute]} for {called}, if any?",
                    kind="stale",
                    entity=entity,
                    attribute=attribute,
                    called=called,
                    asked=self.now,
                    answer=platform if wrong else "none",
                    evidence=evidence,
                )
            )
        return made

    def _lists(self) -> list[Question]:
        made = []
        for service in self.maker.services:
            created = {e.ref: e for e in self.seen if e.kind == "created"}
            tickets = [t.id for t in service.tickets if t.id in created]
            done = {t: _settled(self.about, t, "status") for t in tickets}
            evidence = [(s[0] if (s := done[t]) else created[t]).id for t in tickets]
            opened = tuple(sorted(t for t in tickets if done[t] is None))
            if 0 < len(opened) <= 5:
                made.append(
                    Question(
                        text=f"Which tickets of {service.name} are open?",
                        kind="list",
                        entity=service.name,
                        attribute="status",
                        called=service.name,
                        asked=self.now,
                        answer=opened,
                        evidence=tuple(evidence),
                    )
                )
        return made

    def _unknown(self) -> list[Question]:
        made = []
        for entity, attribute, called in self._slots():
            nobody = _settled(self.about, entity, attribute) is None and attribute != "status"
            for asked in ["reviewer"] + [attribute] * nobody:
                if _ASKED.get(asked) and called == entity:
                    made.append(
                        Question(
                            text=_ASKED[asked].format(e=called),
                            kind="value",
                            entity=entity,
                            attribute=asked,
                            called=called,
                            asked=self.now,
                            answer="unknown",
                            evidence=(),
                        )
                    )
        return made

    def _follow(self, question: Question, depth: int) -> None:
        """Ask on: about the pull request, the person, the decision, the ticket that was found."""
        if depth > self.depth:
            return
        then = self._next(question)
        if then is None or str(then.answer) in then.text:
            return
        if then.follows is None:
            then = replace(then, follows=len(self.asked) - 1)
        self.asked.append(replace(then, depth=depth))
        self._follow(self.asked[-1], depth + 1)

    def _next(self, question: Question) -> Question | None:
        answer, attribute = question.answer, question.attribute
        if question.kind == "value" and attribute == "implemented_by" and answer != "unknown":
            return self._of_answer("author", str(answer))
        if question.kind == "owned":
            return self._of_answer("due", answer[0]) if len(answer) == 1 else None
        if question.kind == "why":  # back to who decided
            person = None if question.follows is None else self.asked[question.follows]
            return self._owns(str(person.answer), question.follows) if person is not None else None
        settled = _settled(self.about, question.entity, attribute)
        if question.kind == "who" and settled is not None and settled[0].reason:
            why = settled[0].reason
            return replace(question, kind="why", text="And why?", answer=why, conflict=False)
        decided = settled is not None and settled[0].authority == "decision"
        if question.kind == "value" and question.at is None and settled is not None and decided:
            who = settled[0].actor
            return replace(
                question,
                kind="who",
                text="And who decided that?",
                answer=who,
                outdated=(),
                conflict=False,
            )
        if question.kind == "value" and attribute in ("author", "owner", "lead"):
            return self._owns(str(answer), None)
        return None

    def _of_answer(self, attribute: str, entity: str) -> Question | None:
        settled = _settled(self.about, entity, attribute)
        if settled is None:
            return None
        plain = self._value(entity, attribute, entity, settled)
        return replace(plain, entity="{}", called="{}", text=_ASKED[attribute].format(e="{}"))

    def _owns(self, person: str, follows: int | None) -> Question | None:
        owned, evidence = self._owned(person)
        if not owned:
            return None
        return Question(
            text="Which tickets does {} own?",
            kind="owned",
            entity="{}",
            attribute="owner",
            called="{}",
            asked=self.now,
            answer=owned,
            evidence=evidence,
            follows=follows,
        )

    def _owned(self, person: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found: list[str] = []
        evidence: list[str] = []
        for ticket in self.maker.tickets:
            settled = _settled(self.about, ticket.id, "owner")
            if settled is not None and settled[1] == person:
                found.append(ticket.id)
                evidence += self._with_names(settled[0], ticket.id, "owner", ticket.id)
        return tuple(sorted(found)), tuple(dict.fromkeys(evidence))

    def _said(self, entity: str, attribute: str) -> list[tuple[Event, str]]:
        """Return every event that gives this a value, with the value, oldest first."""
        return [
            (event, effect.value)
            for event in self.about.get((entity, attribute), ())
            for effect in event.effects
            if (effect.entity, effect.attribute) == (entity, attribute)
            if effect.value is not None
        ]

    def _with_names(
        self, event: Event, entity: str, attribute: str, called: str
    ) -> tuple[str, ...]:
        """Return the event, and the one that tells that both names are of one thing."""
        used = [e.called for e in event.effects if (e.entity, e.attribute) == (entity, attribute)]
        if not used or used[0] == called:
            return (event.id,)
        same = [e.id for e in self.seen if e.alias is not None and e.alias[1] == entity]
        return (*same, event.id)


def _settled(
    about: _About, entity: str, attribute: str, platform: str | None = None
) -> tuple[Event, str] | None:
    """Return what settles an attribute, by the records of one platform if named."""
    events = about.get((entity, attribute), ())
    return deciding((e for e in events if platform in (None, e.platform)), entity, attribute)


def _told(settled: tuple[Event, str] | None) -> str | None:
    return None if settled is None else settled[1]

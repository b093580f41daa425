"""MAPLE on small apps: it knows where it is, notices what went wrong, and uses what it learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from loci.core.agent import Action, Element, Job, Screen
from loci.errors import MethodError, ParameterError
from loci.methods.recall._maple_fsm import Fsm, Want, closing, keys_of, read_screen
from loci.methods.recall.base import Tools
from loci.methods.recall.maple import Maple
from loci.models.scripted import ScriptedLlm
from loci.testing.agents import DictRecords
from loci.testing.phone import Faults, Phone, errands_of, perturbed
from loci.text.ladder import Ladder

CALM = Faults(nothing=0, elsewhere=0, dialog=0, network=0)


def screen(title: str, *buttons: str, app: str = "Mail", **more: Any) -> Screen:
    elements = [Element(role="title", text=title), Element(role="text", text="12:30")]
    elements += [Element(role="button", text=text, id=f"b{n}") for n, text in enumerate(buttons)]
    return Screen(app=app, elements=tuple(elements), **more)


class App:
    """An app by hand: {title: {button: title}}; what happens to taps can be told beforehand."""

    def __init__(
        self, pages: Mapping[str, Mapping[str, str]], *, mishaps: Sequence[str] = ()
    ) -> None:
        self.pages, self.at, self.mishaps = pages, next(iter(pages)), list(mishaps)
        self.trail: list[str] = []
        self.did: list[str] = []

    def look(self) -> Screen:
        return screen(self.at, *self.pages[self.at])

    def do(self, action: Action) -> None:
        self.did.append(str(action))
        if action.kind == "back" and self.trail:
            self.at = self.trail.pop()
        elif action.kind == "tap" and action.target in self.pages[self.at]:
            mishap = self.mishaps.pop(0) if self.mishaps else ""
            if mishap != "nothing":
                self.trail.append(self.at)
                self.at = mishap or self.pages[self.at][action.target]


MAIL = {
    "Inbox": {"More": "Folders", "Settings": "Settings"},
    "Folders": {"Drafts": "Drafts", "Sent": "Sent"},
    "Drafts": {},
    "Sent": {},
    "Settings": {},
}
WANT = {"want": [{"app": "Mail", "shows": ["Drafts"]}]}


def go(device: Any, records: DictRecords, method: Maple | None = None, **inputs: Any) -> Any:
    job = Job(goal="drafts", inputs={**WANT, **inputs}, max_steps=30)
    return (method or Maple()).act(job, Tools(records=records, device=device))


def test_the_second_time_it_walks_straight() -> None:
    records, first = DictRecords(), App(MAIL)
    assert go(first, records).status == "done"
    second = App(MAIL)
    done = go(second, records)
    assert second.did == ["tap 'More'", "tap 'Drafts'"]
    assert "2 known steps to 'Drafts' in Mail" in done.steps[0].why
    assert "led here as predicted" in done.steps[1].why
    assert done.why == "1 screen reached; tap 'Drafts' led here as predicted"


def test_what_did_nothing_is_noticed_and_tried_again() -> None:
    records = DictRecords()
    go(App(MAIL), records)
    device = App(MAIL, mishaps=["", "nothing"])
    done = go(device, records)
    assert device.did == ["tap 'More'", "tap 'Drafts'", "tap 'Drafts'"]
    assert "tap 'Drafts' did nothing" in done.steps[2].why


def test_a_wrong_turn_is_left_by_going_back() -> None:
    records = DictRecords()
    go(App(MAIL), records)
    device = App(MAIL, mishaps=["", "Sent"])
    done = go(device, records)
    assert device.did == ["tap 'More'", "tap 'Drafts'", "back", "tap 'Drafts'"]
    assert "led elsewhere than predicted" in done.steps[2].why


def test_without_verification_it_believes_what_it_sees_last() -> None:
    records, blind = DictRecords(), Maple(conditions=False)
    go(App(MAIL), records, blind)
    go(App(MAIL, mishaps=["Settings"]), records, blind)
    inbox = Fsm({k.removeprefix("state/"): r.value for k, r in records.all("state/").items()})
    state = inbox.match(screen("Inbox", "More", "Settings"))
    assert state is not None and len(state.edges["tap 'More'"]["to"]) == 1


def test_numbers_clocks_and_advertisements_are_no_state() -> None:
    fsm = Fsm({})
    one, _ = fsm.observe(screen("Inbox 12", "Open", "Next 3"))
    ad = Element(role="ad", text="Buy!")
    more = screen("Inbox 97", "Open", "Next 4")
    other, known = fsm.observe(Screen(app="Mail", elements=(*more.elements, ad)))
    assert known and other is one and one.visits == 2
    assert keys_of(more) == keys_of(screen("Inbox 1", "Open", "Next 9"))


def test_lists_that_look_alike_stay_apart_and_versions_too() -> None:
    fsm = Fsm({})
    first, _ = fsm.observe(screen("Orders", "Tea", "Milk", "Home"))
    second, known = fsm.observe(screen("Returns", "Shoes", "Lamp", "Home"))
    assert not known and first.id != second.id
    _, known = fsm.observe(screen("Orders", "Tea", "Milk", "Home", version="2"))
    assert not known, "what was learnt of one version is not believed of another"


def test_states_are_found_again_when_a_fifth_of_the_texts_differs() -> None:
    phone = Phone(50, faults=CALM, screens=30)
    fsm, wrong = Fsm({}), 0
    ids = []
    for page in range(len(phone.pages)):
        phone.at = page
        ids.append(fsm.observe(phone.look())[0].id)
    assert len(set(ids)) == len(ids)
    for page, id in enumerate(ids):
        phone.at = page
        found = fsm.match(perturbed(phone.look(), 0.2, page))
        wrong += found is None or found.id != id
    assert wrong <= 2


def test_the_likeliest_way_is_taken_and_what_never_works_is_forgotten() -> None:
    fsm = Fsm({})
    a, b, c = (fsm.observe(screen(title, f"to {title}", title))[0] for title in "ABC")
    sure, risky = Action(kind="tap", target="long"), Action(kind="tap", target="short")
    for _ in range(8):
        fsm.record(a, sure, b)
        fsm.record(b, sure, c)
    fsm.record(a, risky, c)
    for _ in range(5):
        fsm.record(a, risky, None)
    assert [str(action) for action, _ in fsm.path(a, {c.id}, {})] == ["tap 'long'", "tap 'long'"]
    for _ in range(6):
        fsm.record(a, risky, b)
    assert c.id not in a.edges["tap 'short'"]["to"]
    assert fsm.path(c, {a.id}, {}) == []
    back = fsm.path(c, {a.id}, {"Mail": {a.id: 3}})
    assert [str(action) for action, _ in back] == ["open 'Mail'"]


def test_risky_buttons_are_left_alone_until_confirmed() -> None:
    risky = Screen(
        app="Mail",
        elements=(
            Element(role="title", text="Outbox"),
            Element(role="button", text="Drafts and send", risky=True),
        ),
    )

    class Still:
        did: list[str]

        def __init__(self) -> None:
            self.did = []

        def look(self) -> Screen:
            return risky

        def do(self, action: Action) -> None:
            self.did.append(str(action))

    device = Still()
    done = go(device, DictRecords())
    assert done.status == "asks" and "confirm one" in done.why and len(device.did) <= 30
    assert "tap 'Drafts and send'" not in device.did
    device = Still()
    go(device, DictRecords(), confirm=["Drafts and send"])
    assert device.did[0] == "tap 'Drafts and send'"


def test_dialogs_are_closed_and_the_screen_below_is_compared() -> None:
    dialog = Screen(
        app="Mail",
        elements=(
            Element(role="dialog", text="Rate us"),
            Element(role="button", text="Rate"),
            Element(role="button", text="Not now"),
        ),
    )
    found = closing(dialog)
    assert found is not None and found.text == "Not now"
    assert closing(screen("Inbox", "Close")) is None

    class Nagging(App):
        nag = False

        def look(self) -> Screen:
            return dialog if self.nag else super().look()

        def do(self, action: Action) -> None:
            if self.nag:
                self.did.append(str(action))
                self.nag = False
            else:
                super().do(action)
                self.nag = len(self.did) == 1

    records = DictRecords()
    go(App(MAIL), records)
    device = Nagging(MAIL)
    done = go(device, records)
    assert device.did == ["tap 'More'", "tap 'Not now'", "tap 'Drafts'"]
    assert "tap 'More' led here as predicted" in done.steps[2].why


def test_screens_may_be_given_one_by_one() -> None:
    """As over MCP: the next action is told, and the next screen comes with the next call."""
    records, app, did = DictRecords(), App(MAIL), []
    for _ in range(20):
        shown = app.look()
        given = {
            "app": shown.app,
            "elements": [{"role": e.role, "text": e.text, "id": e.id} for e in shown.elements],
        }
        job = Job(goal="drafts", inputs={**WANT, "screen": given})
        done = Maple().act(job, Tools(records=records))
        if done.status == "done":
            break
        assert done.status == "asks"
        action = Action(**done.output["action"])
        did.append(str(action))
        app.do(action)
    assert done.status == "done" and app.at == "Drafts" and done.output["reached"] == 1
    assert did


def test_a_goal_that_is_nowhere_ends_and_keeps_what_was_learnt() -> None:
    records, device = DictRecords(), App(MAIL)
    job = Job(goal="x", inputs={"want": [{"app": "Mail", "shows": ["Unicorns"]}]}, max_steps=400)
    done = Maple().act(job, Tools(records=records, device=device))
    assert done.status == "failed" and "'Unicorns' in Mail was never shown" in done.why
    assert len(device.did) < 400 and len(records.all("state/")) == 5
    stuck = go(App({"Inbox": {}}), DictRecords())
    assert stuck.status in ("failed", "stopped")


def test_a_model_may_choose_among_what_is_untried() -> None:
    pages = {"Inbox": {"A": "Sent", "B": "Drafts"}, "Sent": {}, "Drafts": {}}
    ladder = Ladder("endpoint", ScriptedLlm(['{"number": 1}']))
    device = App(pages)
    tools = Tools(records=DictRecords(), device=device, ladder=ladder)
    assert Maple().act(Job(goal="x", inputs=WANT), tools).status == "done"
    assert device.did == ["tap 'B'"]


@pytest.mark.parametrize(
    "inputs",
    [
        {"want": []},
        {"want": [{"app": "Mail"}]},
        {"want": [{"shows": [""]}]},
        {"want": [{"shows": ["x"], "when": 1}]},
        {"want": "Drafts"},
        {**WANT, "screen": {}},
        {**WANT, "screen": {"app": "Mail", "elements": []}},
        {**WANT, "screen": {"app": "Mail", "elements": [{"text": "x"}]}},
        {**WANT, "screen": {"app": "Mail", "elements": [{"role": "button", "colour": "red"}]}},
        {**WANT, "screen": {"app": 3, "elements": [{"role": "button"}]}},
        {**WANT, "confirm": "yes"},
    ],
)
def test_what_cannot_be_read_is_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Maple().act(Job(goal="go", inputs=inputs), Tools(records=DictRecords(), device=App(MAIL)))


def test_a_goal_in_words_needs_quotes_and_a_device() -> None:
    tools = Tools(records=DictRecords(), device=App(MAIL))
    assert Maple().act(Job(goal="go to 'Drafts'"), tools).status == "done"
    with pytest.raises(ParameterError, match="names no screen"):
        Maple().act(Job(goal="go to drafts"), tools)
    with pytest.raises(MethodError, match="needs a device, or a screen"):
        Maple().act(Job(goal="go to 'Drafts'"), Tools(records=DictRecords()))


def test_phones_are_the_same_from_the_same_seed_and_their_goals_can_be_reached() -> None:
    for seed in range(4):
        one, two = Phone(seed), Phone(seed)
        assert one.pages == two.pages and 25 <= len(one.pages) <= 85
        for errand in one.errands(seed, 5):
            assert all(0 < one.distance(want) < 30 for want in errand.want)
            assert errand == two.errands(seed, 5)[one.errands(seed, 5).index(errand)]


def test_task_texts_become_errands(tmp_path: Any) -> None:
    table = tmp_path / "tasks.csv"
    table.write_text('task_app,task_description\nmail,"Open the drafts, then send one"\n')
    [errand] = errands_of(table)
    assert errand.want == (("mail", "Open the drafts"),)
    assert Want("mail", ("Open the drafts",)).words
    assert read_screen({"app": "x", "elements": [{"role": "title", "text": "y"}]}).app == "x"

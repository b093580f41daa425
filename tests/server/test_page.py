"""The page in a real browser: clicks, keys, what it shows, and who may see it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loci.run.memory import Memory
from loci.server import keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
]
SECTIONS = ("budget", "plan", "chat", "memory", "methods", "events")
SAID = (
    "I'm allergic to nuts.",
    "I live in Ghent with my sister Mia.",
    "I play in an orchestra in Ghent with Tom.",
)
# What can be reached by Tab in the section that is shown, and what has been.
_REACHABLE = """() => [...document.querySelectorAll(
  'a[href], button, input, select, textarea, summary, [tabindex="0"]')]
  .filter(e => e.checkVisibility() && !e.disabled)
  .map(e => (e.dataset.at ??= String(Math.random())))"""
_FOCUSED = """() => {
  const e = document.activeElement, s = getComputedStyle(e);
  const inner = e.querySelector('circle');
  const name = e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent
    || e.title || '';
  return [e.dataset.at, (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2)
    || (inner !== null && parseFloat(getComputedStyle(inner).strokeWidth) > 3),
    name.trim() !== '' || e === document.body, e.outerHTML.slice(0, 120)];
}"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


@contextmanager
def paged(models: Path, memory: Path, *more: str) -> Iterator[str]:
    """Serve the page from a process of its own."""
    script = Path(__file__).with_name("page_server.py")
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(models), str(memory), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        port = process.stdout.readline().strip()
        if not port:
            pytest.fail(process.stderr.read())
        url = f"http://127.0.0.1:{port}"
        try:
            until_ready(url)
            yield url
        finally:
            process.terminate()
            left, said = process.communicate(timeout=30)
    assert (left.strip(), said) == ("0", ""), said


def until_ready(url: str) -> None:
    transport = httpx.HTTPTransport(retries=20)
    with httpx.Client(transport=transport, timeout=30) as client:
        assert client.get(f"{url}/ready").status_code == 200


@pytest.fixture(scope="module")
def site(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("page") / "m.db"
    with Memory(file) as memory:
        for number, text in enumerate(SAID, 1):
            said = {"role": "user", "name": "Ada", "content": text}
            memory.add([said], user="ada", session="s1", time=f"2026-05-0{number}T10:00:00+00:00")
        memory.add("I prefer tea.", user="ben")
    with paged(models, file) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(site: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """Return what opens a section of the page; it must not complain or reach elsewhere."""
    contexts, complaints = [], []

    def open(section: str, width: int = 1280, theme: str = "light", url: str = site) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith(("http", "ws"))
                and not re.match(r"(http|ws)://127\.0\.0\.1:", asked.url)
                and complaints.append(asked.url)
            ),
        )
        page.goto(f"{url}/#{section}")
        page.locator(f"section[aria-label={section.capitalize()}] h1").wait_for()
        return page

    yield open
    for context in contexts:
        context.close()
    assert complaints == []


def ask(site: str, **more: Any) -> Any:
    body = {"model": "tiny", "max_tokens": 6, "messages": [{"role": "user", "content": "Hi"}]}
    return httpx.post(f"{site}/v1/chat/completions", json=body | more, timeout=30).json()


def test_the_budget_is_shown_as_it_changes(visit: Callable[..., Any], site: str) -> None:
    page = visit("budget")
    label = page.locator(".bar").first.get_attribute("aria-label")
    assert re.fullmatch(r"Main memory: [\d.]+ MiB of 32.0 MiB held", label)
    held = httpx.get(f"{site}/api/v1/ledger").json()["tiers"]["dram"]
    assert page.locator(".legend li").count() == len(held["by_kind"]) + 1
    made = page.locator(".tile", has_text="tokens made").locator("b")
    before = int(made.inner_text().replace(",", ""))
    usage = ask(site)["usage"]
    page.wait_for_function(
        "n => [...document.querySelectorAll('.tile')].some(t => t.innerText.includes("
        "'tokens made') && t.querySelector('b').innerText === n)",
        arg=f"{before + usage['completion_tokens']:,}",
    )
    assert "kv" in page.locator("table").inner_text()


def test_a_plan_follows_the_sliders(visit: Callable[..., Any]) -> None:
    page = visit("plan")
    words = page.locator(".plan-words")
    words.get_by_text("tiny fits: ").wait_for()
    assert "of 32.0 MiB" in words.inner_text()
    memory = page.get_by_role("slider", name="Main memory")
    memory.focus()
    memory.press("End")
    words.get_by_text("of 64.0 MiB").wait_for()
    assert "--dram 64MiB" in page.locator(".command").first.inner_text()
    context = page.get_by_role("slider", name="Context")
    context.focus()
    context.press("Home")
    words.get_by_text("for a context of 256 tokens").wait_for()
    memory.focus()
    memory.press("Home")
    words.get_by_text("of 16.0 MiB").wait_for()
    assert memory.get_attribute("aria-valuetext") == "16.0 MiB"


def test_an_answer_shows_its_memories_which_can_be_changed_there(
    visit: Callable[..., Any], site: str
) -> None:
    page = visit("chat")
    page.get_by_label("Length").select_option("64")
    page.get_by_label("Message").fill("What am I allergic to?")
    page.get_by_label("Message").press("Enter")
    used = page.locator(".used")
    used.wait_for()
    assert page.locator(".turn.model .words").inner_text().strip() not in ("", "…")
    memory = used.locator(".memory", has_text="allergic to nuts").first
    memory.get_by_role("button", name="Edit").click()
    memory = used.locator(".memory:has(textarea)")
    memory.get_by_label("New text").fill("Ada is allergic to walnuts")
    memory.get_by_role("button", name="Save").click()
    memory = used.locator(".memory", has_text="walnuts")
    memory.wait_for()
    found = httpx.get(f"{site}/api/v1/memories/search", params={"query": "walnuts"}).json()
    assert found["hits"][0]["text"] == "Ada is allergic to walnuts"
    memory.get_by_role("button", name="Undo").click()
    memory = used.locator(".memory", has_text="allergic to nuts").first
    memory.wait_for()
    memory.get_by_role("button", name="Forget").click()
    memory.get_by_text("Forget for good").wait_for()
    memory.get_by_role("button", name="Keep").click()
    assert httpx.get(f"{site}/api/v1/memories/{found['hits'][0]['id']}").status_code == 200
    memory.get_by_role("button", name="Forget").click()
    memory.get_by_role("button", name="Forget it for good").click()
    used.get_by_text("none of it is left in the files").wait_for()
    assert httpx.get(f"{site}/api/v1/memories/{found['hits'][0]['id']}").status_code == 404
    # What was said is remembered, and a new conversation knows nothing of the old one.
    turns = httpx.get(f"{site}/api/v1/memories", params={"kinds": "turn"}).json()["memories"]
    assert "What am I allergic to?" in [turn["content"] for turn in turns]
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Nothing was said yet.").wait_for()


def test_an_answer_can_be_stopped(visit: Callable[..., Any], site: str) -> None:
    page = visit("chat")
    page.get_by_label("Use memories").uncheck()
    page.get_by_label("Remember this").uncheck()
    page.get_by_label("Length").select_option("1024")
    before = httpx.get(f"{site}/api/v1/load").json()["ended"]
    page.get_by_label("Message").fill("Tell me everything.")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped; this turn is not remembered").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    after = httpx.get(f"{site}/api/v1/load").json()
    assert after["running"] == 0
    assert after["ended"]["cancelled"] == before.get("cancelled", 0) + 1


def test_memories_are_found_opened_and_drawn(visit: Callable[..., Any]) -> None:
    page = visit("memory")
    page.get_by_label("Search by words or meaning").fill("orchestra")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("best first").wait_for()
    listed = page.get_by_label("Memories", exact=True)
    listed.locator(".memory", has_text="orchestra").get_by_role("button", name="Open").click()
    detail = page.locator(".detail")
    detail.locator(".said", has_text="I play in an orchestra").wait_for()
    assert "was learned" in detail.locator(".history").inner_text()
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="Show all").wait_for(state="detached")
    # A memory of the picture, by key.
    spot = page.locator(".graph").get_by_role("button", name="Open: Ada lives in Ghent")
    spot.focus()
    spot.press("Enter")
    detail.locator(".said", has_text="I live in Ghent").wait_for()
    assert page.locator(".graph .name text", has_text="ghent").count() == 1
    # Somebody else's.
    page.get_by_label("Whose").select_option("ben")
    listed.locator(".memory", has_text="tea").wait_for()
    assert listed.locator(".memory", has_text="Ghent").count() == 0


def test_what_is_remembered_by_hand_is_there(visit: Callable[..., Any], site: str) -> None:
    page = visit("memory")
    page.get_by_label("Something to remember").fill("My bicycle is <b>blue</b>.")
    page.get_by_role("button", name="Remember", exact=True).click()
    shown = page.locator(".memory-text", has_text="bicycle").first
    shown.wait_for()
    assert "<b>blue</b>" in shown.inner_text()  # text is text


def test_methods_have_cards_with_pictures(visit: Callable[..., Any]) -> None:
    page = visit("methods")
    page.locator(".method-row").first.wait_for()
    assert page.locator(".method-row").count() > 20
    page.get_by_label("Find", exact=True).fill("snapkv")
    row = page.locator(".method-row", has_text="snapkv")
    row.wait_for()
    page.wait_for_function("document.querySelectorAll('.method-row').length < 5")
    row.first.click()
    page.locator(".detail .plot-row.this").first.wait_for()
    assert "What its paper says" in page.locator(".detail").inner_text()
    page.get_by_label("Find", exact=True).fill("")
    page.get_by_label("Kind").select_option("sched")
    page.locator(".kind-title", has_text="Scheduling").wait_for()
    assert page.locator(".kind-title").all_inner_texts() == ["Scheduling"]


def test_events_come_as_they_happen(visit: Callable[..., Any], site: str) -> None:
    page = visit("events")
    page.get_by_label("Show").select_option("run.")
    ask(site)
    page.locator("code", has_text="run.answer").first.wait_for()
    assert "ledger.reserve" not in page.get_by_role("table").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(visit: Callable[..., Any], width: int) -> None:
    page = visit("budget", width)
    for section in SECTIONS:
        shown(page, section)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, section


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_axe_finds_nothing_serious(visit: Callable[..., Any], width: int, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, axe = visit("budget", width, theme), Axe()
    for section in SECTIONS:
        shown(page, section)
        found = axe.run(page).response["violations"]
        serious = [
            (rule["id"], node["html"][:160], node["failureSummary"])
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]
        assert serious == [], section


def test_every_control_is_reached_by_tab_and_shows_it(visit: Callable[..., Any]) -> None:
    page = visit("budget")
    for section in SECTIONS:
        shown(page, section)
        wanted = set(page.evaluate(_REACHABLE))
        assert len(wanted) > 7, section
        page.evaluate("document.activeElement?.blur()")
        reached: set[str] = set()
        for _ in range(3 * len(wanted)):
            page.keyboard.press("Tab")
            at, is_seen, is_named, html = page.evaluate(_FOCUSED)
            if at is None:  # the window's own frame, between the last and the first
                continue
            assert is_seen and is_named, html
            reached.add(at)
            if wanted <= reached:
                break
        assert wanted <= reached, section


def test_light_and_dark_can_be_changed_and_stay(visit: Callable[..., Any]) -> None:
    page = visit("budget", theme="dark")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.get_by_role("button", name="Light / dark").click()
    assert page.evaluate(theme) == "light"
    page.reload()
    page.locator("h1").first.wait_for()
    assert page.evaluate(theme) == "light"


def test_a_key_opens_the_page_for_its_own_user_alone(
    models: Path, tmp_path: Path, visit: Callable[..., Any], browser: Any
) -> None:
    file = tmp_path / "keys.json"
    admin = keys.add(file, tenant="acme", role="admin")
    bob = keys.add(file, tenant="acme", user="bob")
    with paged(models, tmp_path / "m.db", str(file)) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.get_by_label("Key").fill("loci-00000000-nothing")
        page.get_by_role("button", name="Enter").click()
        page.get_by_text("not known here").wait_for()
        page.get_by_label("Key").fill(bob)
        page.get_by_role("button", name="Enter").click()
        page.locator("section[aria-label=Chat] h1").wait_for()
        assert page.locator("nav a").all_inner_texts() == ["Chat", "Memory", "Methods"]
        assert "memory of bob" in page.locator(".section-head").first.inner_text()
        (cookie,) = context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        assert bob not in cookie["value"]
        cookies = {cookie["name"]: cookie["value"]}
        # The cookie is for the page, not for the protocols.
        assert httpx.get(f"{url}/v1/models", cookies=cookies).status_code == 401
        keys.drop(file, bob.split("-")[1])
        assert "needs" not in httpx.get(url, cookies=cookies).text
        assert "Key" in httpx.get(url, cookies=cookies).text
        page.goto(url)
        page.get_by_label("Key").fill(admin)
        page.get_by_role("button", name="Enter").click()
        page.locator("section[aria-label=Budget] h1").wait_for()
        page.get_by_role("button", name="Leave").click()
        page.get_by_label("Key").wait_for()
        context.close()


def test_other_pages_cannot_talk_to_it_and_the_protocols_stay(site: str) -> None:
    evil = {"Origin": "https://evil.example"}
    assert httpx.get(f"{site}/", headers=evil).status_code == 403
    assert httpx.get(f"{site}/", headers={"Host": "evil.example"}).status_code == 403
    socket = f"{site}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert httpx.get(socket, headers=evil).status_code == 403
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    asked = f"{site}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert httpx.get(asked, headers=upgrade | evil).status_code == 403
    for path in ("/nothing", "/v1/nothing", "/_other"):
        found = httpx.get(site + path)
        assert found.status_code == 404 and "error" in found.json()
    assert httpx.get(f"{site}/health").json() == {"status": "ok"}


def shown(page: Any, section: str) -> None:
    """Go to a section, and wait until it is drawn."""
    page.locator(f'nav a[href="#{section}"]').click()
    page.locator(f"section[aria-label={section.capitalize()}] h1").wait_for()
    page.wait_for_timeout(400)

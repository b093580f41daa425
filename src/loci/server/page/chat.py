"""The section to talk in: answers come as they are made, each with the memories it used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any  # what a form sends

from nicegui import ui

from loci.errors import LociError
from loci.run.requests import End, Piece, Ticket
from loci.server.page.parts import Node, button, choice, node, switch, text_field
from loci.server.page.remembered import Remembered
from loci.server.page.visit import Visit
from loci.server.service import Message, Recalled, sampling_of
from loci.server.streams import arrivals
from loci.units import format_seconds

# Enter sends, Shift+Enter begins a line.
_ENTER = """(e) => {
  if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) {
    e.preventDefault(); e.target.form.requestSubmit();
  }
}"""
_SEND = """(e) => {
  e.preventDefault();
  const field = e.target.querySelector('textarea');
  const text = field.value;
  if (text.trim()) { field.value = ''; emit(text); }
}"""
_END = "document.getElementById('chat-log')?.lastElementChild?.scrollIntoView({block: 'end'})"
# The question at the top, its answer and the memories below it.
_BEGIN = "[...document.querySelectorAll('#chat-log .turn.user')].at(-1)?.scrollIntoView()"
MANNERS = {"0": "likeliest", "0.7": "varied", "1": "free"}
LENGTHS = {"64": "short", "256": "middling", "1024": "long"}


class Chat:
    """One conversation."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._messages: list[Message] = []
        self._ticket: Ticket | None = None
        self._is_busy = False
        self._recalls = self._remembers = visit.has_memory
        self._temperature, self._length = "0", "256"

    def draw(self) -> None:
        """Draw the section."""
        visit = self._visit
        with node("header", "section-head row-between"):
            with node("div"):
                node("h1", "", "Chat")
                self._whose = node("p", "muted")
            button("New conversation", self._anew)
        self._log = node(
            "div", "log", id="chat-log", role="log", aria_label="Conversation", tabindex="0"
        )
        with node("div", "composer"):
            box = node("form", "compose")
            with box:
                text_field(
                    "Message",
                    "text",
                    tag="textarea",
                    rows="2",
                    hidden_label=True,
                    hint="Say something. Enter sends it.",
                ).on("keydown", js_handler=_ENTER)
                self._send = node("button", "button primary", "Send", type="submit")
                self._stop = button("Stop", self._cancel, kind="danger")
                self._stop.set_visibility(False)
            box.on("submit", lambda event: self._say(str(event.args)), js_handler=_SEND)
            with node("div", "options"):
                if visit.has_memory:
                    switch("Use memories", self._recalls, self._set("_recalls"))
                    switch("Remember this", self._remembers, self._set("_remembers"))
                choice("Wording", MANNERS, self._temperature, self._set("_temperature"))
                choice("Length", LENGTHS, self._length, self._set("_length"))
        visit.on_user.append(self._anew)
        ui.context.client.on_delete(self._cancel)
        self._anew()

    def _set(self, name: str) -> Callable[[Any], None]:
        return lambda value: setattr(self, name, value)

    def _anew(self) -> None:
        self._cancel()
        self._messages = []
        self._log.clear()
        visit = self._visit
        whose = f"with the memory of {visit.user}" if visit.has_memory else "without a memory"
        self._whose.set_text(f"Talk with {visit.service.model}, {whose}.")
        with self._log:
            self._hint = node("p", "empty", "Nothing was said yet.")

    def _cancel(self) -> None:
        if self._ticket is not None and self._ticket.end is None:
            self._ticket.cancel()

    # -- one turn -----------------------------------------------------------------------------

    async def _say(self, text: str) -> None:
        if self._is_busy:
            self._visit.tell("An answer is on its way; stop it first.", "bad")
            return
        self._is_busy = True
        self._hint.set_visibility(False)
        with self._log:
            with node("div", "turn user"):
                node("p", "sr", "You:")
                node("p", "words", text)
            with node("div", "turn model"):
                node("p", "sr", "Answer:")
                words = node("p", "words thinking", "…")
                foot = node("div", "turn-foot")
        ui.run_javascript(_END)
        self._send.set_visibility(False)
        self._stop.set_visibility(True)
        try:
            await self._answer(text, words, foot)
        except LociError as error:
            words.set_text("No answer.")
            self._visit.failed(error)
        finally:
            words.classes(remove="thinking")
            self._ticket, self._is_busy = None, False
            self._send.set_visibility(True)
            self._stop.set_visibility(False)
            ui.run_javascript(_BEGIN)

    async def _answer(self, text: str, words: Node, foot: Node) -> None:
        service, caller = self._visit.service, self._visit.caller
        said: list[Message] = [*self._messages, {"role": "user", "content": text}]
        asked, recalled = said, None
        if self._recalls or self._remembers:
            wants = {"recall": self._recalls, "remember": self._remembers}
            recalled = await service.recall(caller, said, wants, self._visit.user)
            asked = recalled.messages
        self._ticket = ticket = await service.submit(
            asked,
            max_tokens=await self._room(asked),
            sampling=sampling_of(float(self._temperature), None, None),
            scope=caller.tenant,
        )
        shown = ""
        async for item in arrivals(ticket):
            if isinstance(item, Piece):
                shown += item.text
                if shown.strip():
                    words.set_text(shown.lstrip())
                continue
            if item.error is not None:
                raise item.error
            await self._ended(said, item, recalled, words, foot)

    async def _room(self, asked: list[Message]) -> int:
        """Return how long the answer may be in what the context leaves."""
        service = self._visit.service
        left = service.context - await service.count(asked)
        return max(1, min(int(self._length), left))

    async def _ended(
        self, said: list[Message], end: End, recalled: Recalled | None, words: Node, foot: Node
    ) -> None:
        if end.reason == "cancelled":
            words.set_text(f"{words.text.rstrip()} (stopped; this turn is not remembered)")
            return
        words.set_text(end.text.strip() or "(nothing)")
        self._messages = [*said, {"role": "assistant", "content": end.text}]
        with foot:
            node("p", "muted small", _account(end))
            if recalled is not None:
                self._used(recalled)
        if recalled is not None and recalled.said is not None:
            await self._visit.service.remember(recalled, end.text)
            self._visit.changed()

    def _used(self, recalled: Recalled) -> None:
        """Draw the memories that stood before the question."""
        hits = recalled.hits
        if not hits:
            if self._recalls:
                node("p", "muted small", "No memory fitted this question.")
            return
        count = "1 memory was" if len(hits) == 1 else f"{len(hits)} memories were"
        with node("details", "used", open=True):
            node("summary", "", f"{count} used")
            for hit in hits:
                Remembered(self._visit, hit, on_open=self._open)

    def _open(self, id: str) -> None:
        self._visit.wanted = id
        self._visit.show("memory")


def build(visit: Visit) -> None:
    """Draw the section."""
    Chat(visit).draw()


def _account(end: End) -> str:
    rate = ""
    if end.first_token_s is not None and end.new_tokens > 1 and end.whole_s > end.first_token_s:
        rate = f", {(end.new_tokens - 1) / (end.whole_s - end.first_token_s):.1f} a second"
    first = (
        ""
        if end.first_token_s is None
        else f"; the first after {format_seconds(end.first_token_s)}"
    )
    again = f", {end.reused_tokens:,} of them read before" if end.reused_tokens else ""
    full = "; it was cut at its longest" if end.reason == "length" else ""
    return f"{end.new_tokens:,} tokens{rate}{first}; {end.prompt_tokens:,} read{again}{full}"

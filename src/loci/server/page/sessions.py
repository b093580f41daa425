"""Who looks at the page of a server with keys: a key is given once, a cookie stands for it after.

The cookie is a random word that only this process knows; it goes to no other site, no script can
read it, and it is worth nothing once the key was dropped or the server has ended.
"""

from __future__ import annotations

import secrets
import threading
from html import escape
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from loci.server.keys import Caller, Keys

COOKIE, ENTER, LEAVE = "loci_session", "/session", "/session/leave"
MOST = 1000  # sessions; the oldest end first
router = APIRouter(include_in_schema=False)


class Sessions:
    """The sessions of one server, by their secret word."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._given: dict[str, str] = {}
        self._lock = threading.Lock()

    def enter(self, key: str) -> str | None:
        """Return the word for a new session, or None if the key is nobody's."""
        if self._keys.caller(key) is None:
            return None
        word = secrets.token_urlsafe(32)
        with self._lock:
            self._given[word] = key
            while len(self._given) > MOST:
                del self._given[next(iter(self._given))]
        return word

    def caller(self, word: str | None) -> Caller | None:
        """Return whose session a word stands for, as the keys are now."""
        with self._lock:
            key = self._given.get(word or "")
        return None if key is None else self._keys.caller(key)

    def leave(self, word: str | None) -> None:
        """End a session."""
        with self._lock:
            self._given.pop(word or "", None)


@router.post(ENTER)
async def enter(request: Request) -> Response:
    """Begin a session with a key."""
    sessions: Sessions | None = request.app.state.sessions
    given = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=4)
    word = None if sessions is None else sessions.enter(given.get("key", [""])[0].strip())
    if word is None:
        return HTMLResponse(door("This key is not known here."), status_code=401)
    answer = RedirectResponse("/", status_code=303)
    answer.set_cookie(COOKIE, word, httponly=True, samesite="strict")
    return answer


@router.post(LEAVE)
async def leave(request: Request) -> Response:
    """End a session."""
    sessions: Sessions | None = request.app.state.sessions
    if sessions is not None:
        sessions.leave(request.cookies.get(COOKIE))
    answer = RedirectResponse("/", status_code=303)
    answer.delete_cookie(COOKIE)
    return answer


def door(problem: str) -> str:
    """Return the page that asks for a key."""
    told = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Loci: a key</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{{color-scheme:light dark;--ink:#1d2a2e;--bg:#f6f4ee;--card:#fff;--line:#8a958f}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6ebe8;--bg:#12181a;--card:#1a2225}}}}
body{{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--bg);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}}
main{{background:var(--card);padding:2rem;border-radius:14px;width:min(22rem,86vw)}}
h1{{margin:0 0 .5rem;font-size:1.4rem}}label{{display:block;margin:1rem 0 .3rem}}
input,button{{box-sizing:border-box;width:100%;font:inherit;padding:.6rem .8rem;border-radius:8px;
border:1px solid var(--line);background:var(--bg);color:inherit}}
button{{margin-top:1rem;background:#1f5f68;color:#fff;border:0;cursor:pointer}}
:focus-visible{{outline:3px solid #2f8f9c;outline-offset:2px}}</style>
<main><h1>Loci</h1><p>This server answers who has a key.</p>{told}
<form method="post" action="{ENTER}"><label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Enter</button></form></main></html>"""

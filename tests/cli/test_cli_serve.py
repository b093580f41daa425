"""`loci serve`, `ps`, `stop` and `key`, as a person types them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import Loci

from loci.nn import native
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not


@contextmanager
def served(*arguments: str, page: bool = False) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `loci serve` in a process of its own; yield it and where it listens."""
    command = [sys.executable, "-m", "loci", "serve", "tiny", "--port", "0", "--dram", "32MiB"]
    command.append("--page" if page else "--no-page")
    with subprocess.Popen(
        [*command, "--context", "256", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"on (http://\S+)", line):
                    yield process, found[1]
                    break
            else:
                pytest.fail(f"it never served: {''.join(said)}")
        finally:
            process.kill()


def watched(*arguments: str) -> str:
    """Run `loci` in a terminal for a moment, end it as Ctrl-C does, and return what was drawn."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "loci", *arguments],
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        # Who runs the tests in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        drawn = b""
        while drawn.count(b"tokens/s") < 3 and process.poll() is None:
            drawn += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 65536):
                drawn += more
    os.close(ours)
    assert process.returncode == 130
    return drawn.decode("utf-8", "replace")


@pytest.fixture
def tiny(home: Path) -> Path:
    tiny_pack(home / "models" / "tiny").close()
    return home


def test_a_server_is_listed_answers_and_stops(tiny: Path, loci: Loci) -> None:
    assert loci("ps", "--json").json == []
    with served() as (process, url):
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0}
        first = httpx.post(f"{url}/v1/completions", json=body).json()
        assert first["usage"]["completion_tokens"] <= 4
        (row,) = loci("ps", "--json").json
        assert (row["pid"], row["url"], row["model"]) == (process.pid, url, "tiny")
        assert 0 < row["dram"]["used"] < row["dram"]["limit"] == 32 << 20
        assert "tiny" in loci("ps").out
        assert loci("stop", str(process.pid + 1)).code == 1
        done = loci("stop", "--json")
        assert (done.code, done.json["pid"]) == (0, process.pid)
        assert process.wait(10) == 0
    assert loci("ps", "--json").json == []
    assert "no such server runs" in loci("stop").err


def test_a_server_that_was_killed_is_not_listed(tiny: Path, loci: Loci) -> None:
    with served() as (process, _):
        process.kill()
        process.wait(10)
    assert loci("ps", "--json").json == []


def test_a_server_with_keys_answers_who_has_one(tiny: Path, loci: Loci) -> None:
    file = str(tiny / "keys.json")
    made = loci("key", "add", file, "--tenant", "acme", "--json").json
    (listed,) = loci("key", "list", file, "--json").json
    assert listed == {"id": made["id"], "tenant": "acme", "role": "user", "user": None}
    assert "acme" in loci("key", "list", file).out
    with served("--keys", file) as (_, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {made['key']}"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        (row,) = loci("ps", "--json").json
        assert row["keyed"] and row["dram"] is None
        assert loci("key", "drop", file, made["id"]).code == 0
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        loci("stop")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["serve", "tiny", "--host", "0.0.0.0"], 2, "needs keys"),
        (["serve", "tony"], 1, "did you mean 'tiny'"),
        (["serve", "tiny", "--dram", "1KiB"], 3, "needs at least"),
        (["serve", "tiny", "--keys", "none.json"], 1, "loci key add"),
        (["serve", "tiny", "--port", "0", "--scheduler", "fcfs(chnk=1)"], 2, "chnk"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tiny: Path, loci: Loci, arguments: list[str], code: int, said: str
) -> None:
    done = loci(*arguments)
    assert done.code == code and said in done.err


def test_a_running_server_answers_run_and_chat_unless_it_is_not_wanted(
    tiny: Path, loci: Loci
) -> None:
    with served() as (_, url):
        done = loci("run", "tiny", "Hello", "--max-tokens", "4")
        assert done.code == 0 and f"using the server on {url}" in done.err
        assert "bytes are those of all its requests" in done.err
        found = loci("run", "tiny", "Hello", "--max-tokens", "4", "--json")
        assert found.json["answer"] == done.out.removesuffix("\n")
        assert found.json["server"] == url and found.json["tokens"]["new"] <= 4
        assert found.json["bytes"]["measured"]["dram"] < 32 << 20
        assert found.json["plan"]["budget"]["dram"] == 32 << 20
        assert {"tokens_per_s", "first_token_s", "runtime_bytes"} <= set(found.json)
        # The same words as from the model itself.
        own = loci("run", "tiny", "Hello", "--max-tokens", "4", "--dram", "32MiB", "--json")
        assert own.json["answer"] == found.json["answer"] and "server" not in own.json
        assert "--dram loads it here all the same" in own.err
        assert "using the server" not in loci("run", "tiny", "Hello", "--no-server").err
        odd = loci("run", "tiny", "Hello", "--temperature", "9")
        assert odd.code == 1 and "temperature" in odd.err
        talk = loci(
            "chat", "tiny", "--max-tokens", "3", stdin="Hello\n/weights 1MiB\nAgain\n/exit\n"
        )
        assert talk.code == 0 and len(talk.out.splitlines()) >= 2
        assert "weights stay as they are" in talk.err
        assert talk.err.count("bytes are those of all its requests") == 1
    assert "using the server" not in loci("run", "tiny", "Hello", "--context", "256").err


def test_top_shows_a_server_as_it_works(tiny: Path, loci: Loci) -> None:
    assert "no such server runs" in loci("top", "--once").err
    with served() as (process, url):
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0}
        made = httpx.post(f"{url}/v1/completions", json=body).json()["usage"]["completion_tokens"]
        shown = loci("top", "--once", "--every", "0.1").out
        assert "tiny" in shown and f"pid {process.pid}" in shown
        assert re.search(r"dram +[█░]+  [\d.]+ [KM]iB of 32.0 MiB", shown)
        assert f"{made} made" in shown and "weights" in shown
        found = loci("top", "--json", "--every", "0.1").json
        assert found["made_tokens"] == made and found["tokens_per_s"] == 0
        assert found["tiers"]["dram"]["limit"] == 32 << 20
        drawn = watched("top", "--every", "0.1")
        assert drawn.count("tokens/s") >= 3 and "MiB" in drawn  # again and again
    file = tiny / "keys.json"
    admin = loci("key", "add", str(file), "--role", "admin", "--json").json["key"]
    (tiny / "key").write_text(admin)
    with served("--keys", str(file)):
        assert "needs a key" in loci("top", "--once", "--every", "0.1").err
        assert loci("top", "--once", "--every", "0.1", "--key", str(tiny / "key")).code == 0
        assert "using the server" not in loci("run", "tiny", "Hello", "--context", "256").err


@pytest.mark.skipif(
    why_not() is not None or not native.available(), reason="turns need pages and kernels"
)
def test_requests_take_turns_where_it_is_wanted(tiny: Path) -> None:
    turns = ("--kv", "", "--scheduler", "fastswitch(every=4)", "--swap", "1MiB")
    body = {"model": "tiny", "prompt": "once", "max_tokens": 4}
    with served(*turns, "--disk", "1MiB", "--swap-disk", "512KiB") as (_, url):
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200


def test_a_restart_is_warm_and_the_memory_is_whole(tiny: Path, loci: Loci) -> None:
    more = ("--warm", str(tiny / "warm" / "kv.loci"), "--memory", str(tiny / "m.db"))
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "I live in Ghent. " * 3}],
        "max_tokens": 4,
        "temperature": 0,
    }

    def ask(url: str, **given: object) -> dict[str, Any]:
        found: dict[str, Any] = httpx.post(f"{url}/v1/chat/completions", json=body | given).json()
        return found

    with served(*more) as (process, url):
        first = ask(url)
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        ask(url, memory=True)
        assert loci("stop").code == 0 and process.wait(20) == 0
        assert process.stderr is not None
        assert "prefixes of" in process.stderr.read()
    with served(*more) as (process, url):
        again = ask(url)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
        assert again["choices"][0]["message"] == first["choices"][0]["message"]
        found = httpx.get(f"{url}/api/v1/memories/search", params={"query": "Ghent"}).json()
        assert any("Ghent" in hit["text"] for hit in found["hits"])


def test_the_page_is_there_unless_it_is_not_wanted(tiny: Path) -> None:
    with served(page=True) as (process, url):
        assert "<title>Loci</title>" in httpx.get(url).text
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        process.terminate()
        assert process.wait(20) == 0
    with served() as (_, url):
        assert httpx.get(url).status_code == 404

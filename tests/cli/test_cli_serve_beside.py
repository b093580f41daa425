"""`loci serve --adapter` and `--cube`: answered as `loci run` answers with them, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from command_line import Loci
from test_cli_serve import served
from torch import Generator

from loci.nn.patch import Patch
from loci.run.peft import write_folder
from loci.testing.models import tiny_pack

BUDGET = ("--dram", "32MiB", "--context", "512")
TEXT = "The library opens at nine and closes at five; on Sundays it stays closed."
QUESTION = "When does it open?"


@pytest.fixture
def tiny(home: Path) -> Path:
    with tiny_pack(home / "models" / "tiny", max_context=512) as pack:
        draw, shapes = Generator().manual_seed(0), pack.spec.layer_linears()
        parts = {
            f"layer.{layer}.{name}": (
                torch.randn(shapes[name][0], 2, generator=draw),
                torch.randn(2, shapes[name][1], generator=draw),
            )
            for layer, name in ((0, "q_proj"), (1, "down_proj"))
        }
        write_folder(home / "hat", Patch(parts), pack.spec, base=pack.spec.fingerprint)
    tiny_pack(home / "models" / "other", seed=3, max_context=512).close()
    (home / "data").mkdir()
    return home


def asked(url: str, **more: Any) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 6,
        "temperature": 0,
    }
    return httpx.post(f"{url}/v1/chat/completions", json=body | more, timeout=60)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def run(loci: Loci, *more: str) -> str:
    done = loci("run", "tiny", QUESTION, *BUDGET, "--max-tokens", "6", "--json", *more)
    assert done.code == 0, done.err
    text: str = done.json["answer"]
    return text


def test_all_are_answered_with_the_adapter(tiny: Path, loci: Loci) -> None:
    assert loci("adapter", "add", str(tiny / "hat"), "--model", "tiny").code == 0
    with served("--adapter", "hat", *BUDGET) as (_, url):
        assert said(asked(url)) == run(loci, "--adapter", "hat") != run(loci)
        (row,) = loci("ps", "--json").json
        assert row["beside"] == "adapter hat" and "tiny with adapter hat" in loci("ps").out
        # Who asks for the model alone is not answered by one with an adapter.
        plain = loci("run", "tiny", QUESTION, "--max-tokens", "6", "--json")
        assert "using the server" not in plain.err and plain.json["adapter"] is None


def test_every_conversation_begins_with_the_cube(tiny: Path, loci: Loci) -> None:
    made = loci("cube", "promote", "--text", TEXT, "--model", "tiny", *BUDGET, "--json")
    assert made.code == 0, made.err
    id, tokens = (
        made.json["header"]["id"] if "header" in made.json else made.json["id"],
        made.json["tokens"],
    )
    with served("--cube", id, "--kv", "", *BUDGET) as (_, url):
        first = asked(url)
        assert said(first) == run(loci, "--cube", id, "--kv", "")
        usage = first.json()["usage"]
        assert tokens - 16 < usage["prompt_tokens_details"]["cached_tokens"] <= tokens
        assert usage["prompt_tokens"] > tokens
        told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        assert asked(url, messages=told).status_code == 200
        raw = {"model": "tiny", "prompt": "abc", "max_tokens": 4}
        refused = httpx.post(f"{url}/v1/completions", json=raw, timeout=60)
        assert refused.status_code == 400 and "no place for the cubes" in refused.text
        assert loci("cube", "demote", id).code == 0
        assert said(asked(url)) == said(first)  # from its text
        assert loci("cube", "drop", id).code == 0
        gone = asked(url)
        assert gone.status_code == 500 and "is gone" in gone.text


def test_a_cube_of_text_is_read_once(tiny: Path, loci: Loci) -> None:
    made = loci("cube", "promote", "--text", TEXT, "--as-text", "--json").json
    with served("--cube", made["id"], "--kv", "", *BUDGET) as (_, url):
        first, again = asked(url), asked(url, messages=[{"role": "user", "content": "Who?"}])
        assert said(first) == run(loci, "--cube", made["id"], "--kv", "")
        cached = [
            one.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (first, again)
        ]
        assert cached[0] == 0 and cached[1] > 48


def test_what_cannot_stand_beside_a_model_is_refused(tiny: Path, loci: Loci) -> None:
    serve = ("serve", "tiny", "--port", "0", "--no-page", *BUDGET)
    assert loci("adapter", "add", str(tiny / "hat"), "--model", "tiny").code == 0
    near = loci(*serve, "--adapter", "hut")
    assert near.code == 1 and "did you mean 'hat'" in near.err
    wrong = loci("serve", "other", *serve[2:], "--adapter", "hat")
    assert wrong.code == 1 and "made for another model" in wrong.err
    made = loci("cube", "promote", "--text", TEXT, "--model", "other", *BUDGET, "--json").json
    other = loci(*serve, "--cube", made["id"])
    assert other.code == 1 and "another fingerprint" in other.err
    chain = loci("serve", "other", *serve[2:], "--cube", made["id"], "--kv", "bfp(block=16)")
    assert chain.code == 1 and "exact" in chain.err
    many = loci(*serve, "--cube", made["id"], "--ray")
    assert many.code == 2 and "for one process" in many.err
    long = loci("cube", "promote", "--text", TEXT * 9, "--as-text", "--json").json
    full = loci(*serve, "--cube", long["id"])
    assert full.code == 1 and "serve with --context" in full.err
    file = str(tiny / "keys.json")
    assert loci("key", "add", file, "--tenant", "acme").code == 0
    bobs = loci(
        "cube", "promote", "--text", TEXT, "--as-text", "--user", "bob", "--reader", "ada", "--json"
    ).json
    shared = loci(*serve, "--cube", bobs["id"], "--keys", file)
    assert shared.code == 1 and "may not be shared" in shared.err

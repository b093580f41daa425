"""Our KV methods beside kvpress, NVIDIA's library of the same kind, on the same tokens.

kvpress needs an older transformers than ours, so it runs in an environment of its own:

    python -m venv /tmp/kvpress
    /tmp/kvpress/bin/pip install torch kvpress
    loci bench run kvpress --option kvpress_python=/tmp/kvpress/bin/python

Both read the same prompts in one piece, drop tokens, and read on: the last token of the prompt and
the rest, teacher-forced. KL(full || method) is taken against the full cache of the same side, in
nats per token, so that the two forwards need not agree to the last bit (`forwards` says how far
they do). Shares are of the prompt's cache in half precision. A press keeps so many tokens and adds
the rest to them. Ours may hold at any time, its accounts included, what the press holds at the end.

Options: kvpress_python=PYTHON, shares=0.5,0.25, pieces=4, presses=SnapKVPress,KeyDiffPress.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import numpy as np
import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context, count_of, python_of, refuse_unknown, shares_of, words_of
from loci.bench.suites.reference import CHARACTERS, PROMPT, REST, kl
from loci.errors import MissingExtraError, ParameterError
from loci.methods import catalogue
from loci.models.load import resolve
from loci.run.lab import Lab

ABOUT = "our KV methods beside kvpress at equal bytes, on the same tokens"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it needs another environment
OURS = ("random", "streaming_llm", "snapkv", "keydiff", "compresskv")
PRESSES = (
    "RandomPress",
    "StreamingLLMPress",
    "SnapKVPress",
    "KeyDiffPress",
    "KnormPress",
    "TOVAPress",
    "ExpectedAttentionPress",
)
WORKER = Path(__file__).parents[1] / "kvpress_worker.py"
READ, STEP = 64, 16  # tokens after the prompt, and how many are read at once
_SAID = "said.txt"
_OPTIONS = ("kvpress_python", "shares", "pieces", "presses")


def run(context: Context) -> dict[str, Any]:
    """Measure both libraries on the same pieces."""
    refuse_unknown(context.options, _OPTIONS)
    python = python_of(context.options, "kvpress_python", "torch kvpress")
    count = 1 if context.quick else count_of(context.options, "pieces", 4)
    shares = sorted(shares_of(context.options, (0.5, 0.25)), reverse=True)
    ours = context.methods or (OURS[:2] if context.quick else OURS)
    presses = words_of(context.options, "presses", PRESSES[:2] if context.quick else PRESSES)
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=PROMPT + READ, chunk=PROMPT)
    full_bytes = pack.spec.kv_bytes(PROMPT)
    each = full_bytes // PROMPT
    losses: dict[tuple[str, float], list[float]] = {}
    held: dict[tuple[str, float], int] = {}
    refused: dict[str, str] = {}
    gaps: list[float] = []
    try:
        with tempfile.TemporaryDirectory(prefix="loci-kvpress-") as folder:
            context.progress("writing the model for kvpress", 0, 1)
            _export(lab, Path(folder))
            with _worker(python, Path(folder)) as ask:
                pieces = _pieces(lab, count)
                for number, ids in enumerate(pieces):
                    context.progress("pieces of text", number, count)
                    whole = _ours(lab, ids, None, None)[0]
                    theirs = ask(ids, None, 0.0)[0]
                    gaps.append(float((whole - theirs).abs().max()))
                    for share in shares:
                        for name in ours:
                            found, nbytes = _ours(
                                lab, ids, name, each * (int(PROMPT * share) + READ)
                            )
                            losses.setdefault((name, share), []).append(kl(whole, found))
                            held[name, share] = nbytes
                        for press in presses:
                            if press in refused:
                                continue
                            try:
                                found, tokens = ask(ids, press, 1 - share)
                            except ParameterError as error:
                                refused[press] = str(error)
                                continue
                            losses.setdefault((press, share), []).append(kl(theirs, found))
                            held[press, share] = each * (round(mean(tokens).value) + READ)
                versions = ask.versions
    finally:
        lab.close()
        pack.close()
    rows = [
        {
            "method": name,
            "share": share,
            "is_ours": name in ours,
            "kl": mean(values).to_json(),
            "bytes": held[name, share],
        }
        for (name, share), values in losses.items()
    ]
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "prompt_tokens": PROMPT,
        "scored_tokens": READ * count,
        "full_bytes": full_bytes,
        "versions": versions,
        "forwards": max(gaps),
        "refused": refused,
        "rows": rows,
        "less": _less(losses, ours, presses, shares),
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table for each share, least loss first."""
    found = []
    for share in dict.fromkeys(row["share"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["share"] == share]
        rows.sort(key=lambda row: row["kl"]["value"])
        lines = [
            [
                row["method"],
                f"{row['kl']['value']:.4f}",
                f"{row['kl']['low']:.4f} to {row['kl']['high']:.4f}",
                f"{row['bytes'] / 2**20:.2f} MiB",
            ]
            for row in rows
        ]
        found.append((f"{share:.0%} of the prompt", ["method", "KL", "95 %", "held"], lines))
    return found


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the KL of each of ours beside all presses at its share."""
    rows = []
    for row in result["rows"]:
        if not row["is_ours"] or "|" in row["method"]:
            continue
        beside = {
            f"kvpress {other['method']}": other["kl"]["value"]
            for other in result["rows"]
            if other["share"] == row["share"] and not other["is_ours"]
        }
        rows.append(
            Row(
                method=row["method"],
                kind="kv",
                part=f"{row['share']:g}",
                metrics={"kl": {"this": row["kl"]["value"], "rivals": beside}},
                interval={"kl": (row["kl"]["low"], row["kl"]["high"])},
                bytes={"full": result["full_bytes"], "measured": row["bytes"]},
            )
        )
    return rows


# -- private ----------------------------------------------------------------------------------


class _Ask:
    """Asks the worker for log-probabilities."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, vocab: int) -> None:
        self._process, self._file, self._vocab = process, folder / "logits.bin", vocab
        self._said = folder / _SAID
        self.versions: dict[str, str] = self._line()["versions"]

    def __call__(
        self, ids: Sequence[int], press: str | None, ratio: float
    ) -> tuple[Tensor, list[int]]:
        """Return log-probabilities [READ, V], and the tokens that every layer held."""
        asked = {
            "ids": list(ids),
            "prompt": PROMPT,
            "press": press,
            "ratio": ratio,
            "file": str(self._file),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._line()
        if "error" in answer:
            raise ParameterError(answer["error"])
        logits = np.fromfile(self._file, dtype=np.float32).reshape(-1, self._vocab)
        return torch.log_softmax(torch.from_numpy(logits), dim=-1), answer["held"]

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._said.read_text(errors="replace").strip()[-500:]
            raise MissingExtraError(
                f"kvpress does not run there: {said}",
                way_out="pip install torch kvpress, into an environment of its own",
            )
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def _worker(python: str, folder: Path) -> Iterator[_Ask]:
    vocab = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    command = [python, str(WORKER), str(folder), str(torch.get_num_threads()), str(STEP)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    # What it says goes to a file: progress bars would fill a pipe that nobody reads.
    with (folder / _SAID).open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=env
        )
        try:
            yield _Ask(process, folder, vocab)
        finally:
            process.kill()
            process.communicate()


def _export(lab: Lab, folder: Path) -> None:
    """Write the model as a folder of transformers, in float32."""
    from loci.run.hf import model_of

    model: Any = model_of(lab.pack)
    model.save_pretrained(folder)


def _pieces(lab: Lab, count: int) -> list[list[int]]:
    found = []
    for text in texts.slices(texts.prose(), count, CHARACTERS, "test"):
        ids = list(lab.tokenizer.encode(text)[: PROMPT + REST])
        found.append(ids[: PROMPT + READ])
    return found


def _ours(
    lab: Lab, ids: Sequence[int], name: str | None, budget_bytes: int | None
) -> tuple[Tensor, int]:
    """Return log-probabilities [READ, V] after compression, and the bytes held."""
    chain = () if name is None else catalogue.parse_chain(name, "kv")
    dtype = torch.float32 if name is None else torch.float16
    rows, held = [], 0
    for logits, nbytes in lab.continuation(
        ids, PROMPT - 1, chain, step=STEP, dtype=dtype, budget_bytes=budget_bytes
    ):
        rows.append(torch.log_softmax(logits, dim=-1))
        held = max(held, nbytes)
    return torch.cat(rows[1:]), held  # the first was read before anything was dropped


def _less(
    losses: Mapping[tuple[str, float], Sequence[float]],
    ours: Sequence[str],
    presses: Sequence[str],
    shares: Sequence[float],
) -> dict[str, Any]:
    """Return, for each share, the KL of our best less that of the best press, by piece."""
    found = {}
    for share in shares:
        mine = {n: losses[n, share] for n in ours if (n, share) in losses}
        theirs = {n: losses[n, share] for n in presses if (n, share) in losses}
        if mine and theirs:
            one = min(mine, key=lambda n: mean(mine[n]).value)
            other = min(theirs, key=lambda n: mean(theirs[n]).value)
            gap = paired_difference(mine[one], theirs[other])
            found[f"{share:g}"] = {"ours": one, "theirs": other, "kl": gap.to_json()}
    return found

"""Our KV methods beside transformers' in an environment of its own, on the same tokens.

Both sides read the same prompts in one piece and read on: the last token of the prompt and the
rest, teacher-forced.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # answers are JSON values

import numpy as np
import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.suites.reference import CHARACTERS, PROMPT, REST
from loci.errors import MissingExtraError, ParameterError
from loci.methods import catalogue
from loci.run.lab import Lab

WORKER = Path(__file__).parent / "hf_worker.py"
READ, STEP = 64, 16  # tokens after the prompt, and how many are read at once
_SAID = "said.txt"

# Shapes: V vocabulary.


class Ask:
    """Asks the worker for log-probabilities."""

    def __init__(
        self, process: subprocess.Popen[str], folder: Path, vocab: int, needed: str
    ) -> None:
        self._process, self._file, self._vocab = process, folder / "logits.bin", vocab
        self._said, self._needed = folder / _SAID, needed
        self.versions: dict[str, str] = self._line()["versions"]

    def __call__(self, ids: Sequence[int], **how: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return log-probabilities [READ, V], and what the worker says beside them.

        Args:
            how: what of a line is not said already; see `hf_worker.py`.
        """
        asked = {"ids": list(ids), "prompt": PROMPT, "file": str(self._file), **how}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._line()
        if "error" in answer:
            raise ParameterError(answer["error"])
        logits = np.fromfile(self._file, dtype=np.float32).reshape(-1, self._vocab)
        return torch.log_softmax(torch.from_numpy(logits), dim=-1), answer

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._said.read_text(errors="replace").strip()[-500:]
            packages = f"torch transformers {self._needed}"
            raise MissingExtraError(
                f"{self._needed} does not run there: {said}",
                way_out=f"pip install {packages}, into an environment of its own",
            )
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def worker(python: str, folder: Path, needed: str) -> Iterator[Ask]:
    """Lend what asks a worker over the model in a folder.

    Args:
        python: of an environment that has torch, transformers, and the package that is needed.
    """
    vocab = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    command = [python, str(WORKER), str(folder), str(torch.get_num_threads())]
    command += [str(STEP), needed]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    # What it says goes to a file: progress bars would fill a pipe that nobody reads.
    with (folder / _SAID).open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=env
        )
        try:
            yield Ask(process, folder, vocab, needed)
        finally:
            process.kill()
            process.communicate()


def export(lab: Lab, folder: Path) -> None:
    """Write the model as a folder of transformers, in float32."""
    from loci.run.hf import model_of

    model: Any = model_of(lab.pack)
    model.save_pretrained(folder)


def pieces_of(lab: Lab, count: int) -> list[list[int]]:
    """Return prompts with the tokens that are read on."""
    found = []
    for text in texts.slices(texts.prose(), count, CHARACTERS, "test"):
        ids = list(lab.tokenizer.encode(text)[: PROMPT + REST])
        found.append(ids[: PROMPT + READ])
    return found


def ours(
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

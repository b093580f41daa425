"""A pack's model that answers greedily, with a patch or without: for probes and benches.

No budget limits it, as of `run.lab`; what its prompts begin with in common is read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any  # a JSON schema

import torch

from loci.errors import ContextError
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.run.grammars import Grammars
from loci.run.lab import Lab
from loci.run.patched import PatchedWeights, with_patch
from loci.run.runner import Runner

if TYPE_CHECKING:
    from loci.models.tokenizer import Tokenizer


class Greedy:
    """Use it in a `with` statement."""

    def __init__(self, pack: Pack, *, context: int = 1024) -> None:
        self._lab = Lab(pack, context=context)
        self._store = self._lab.store()
        self._runner = Runner(
            pack.spec, self._lab.weights_source, self._lab.ledger, chunk=self._lab.chunk
        )
        self._grammars = Grammars(
            self.tokenizer, lambda owner, n, kind: self._lab.ledger.reserve(owner, "dram", n, kind)
        )
        self._patched: PatchedWeights | None = None
        self._ids: list[int] = []

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._lab.tokenizer

    def use(self, patch: Patch | None) -> None:
        """Answer with a patch from now on; None answers as the model does."""
        before, self._patched = self._patched, None
        source = self._lab.weights_source
        if patch is not None:
            self._patched = with_patch(source, patch, self._lab.spec, self._lab.ledger)
        self._runner.weights = self._patched or source
        if before is not None:
            before.release()
        self._forget()

    def answer(
        self, prompt: Sequence[int], tokens: int, schema: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Return the most likely tokens after a prompt, at most so many, the end token left out.

        Args:
            schema: the answer is JSON of this form, complete within `tokens`.

        Raises:
            ContextError: if prompt and answer do not fit.
        """
        if len(prompt) + tokens > self._store.max_tokens:
            raise ContextError(
                f"prompt and answer have {len(prompt) + tokens:,} tokens",
                allowed=f"at most {self._store.max_tokens:,}",
            )
        guide = None if schema is None else self._grammars.of(schema).guide(tokens)
        logits = self._read(list(prompt))
        said: list[int] = []
        while True:
            if guide is not None:
                allowed = torch.from_numpy(guide.mask(logits.shape[-1]))
                logits = logits.masked_fill(~allowed, float("-inf"))
            token = int(logits[0].argmax())
            if token in self.tokenizer.eos_ids:
                return said
            if guide is not None:
                # Forced text is not run ahead of: cut into tokens of its own it is not what an
                # adapter was taught, `["` being one token and `[`, `"` two.
                guide.feed(token)
            fresh = [token]
            said += fresh
            if len(said) >= tokens or (guide is not None and guide.done):
                return said[:tokens]
            found = self._runner.forward(torch.tensor([fresh]), self._store)
            assert found is not None
            logits = found
            self._ids += fresh

    def close(self) -> None:
        """Give every byte back."""
        self._grammars.close()
        self._runner.release()
        if self._patched is not None:
            self._patched.release()
        self._store.release()
        self._lab.close()

    def __enter__(self) -> Greedy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- private ------------------------------------------------------------------------------

    def _read(self, ids: list[int]) -> torch.Tensor:
        shared = 0
        while shared < min(len(self._ids), len(ids) - 1) and self._ids[shared] == ids[shared]:
            shared += 1
        self._store.crop(shared)
        self._ids = list(ids)
        logits = None
        for start in range(shared, len(ids), self._lab.chunk):
            part = torch.tensor([ids[start : start + self._lab.chunk]])
            logits = self._runner.forward(part, self._store)
        assert logits is not None, "a prompt has a token"
        return logits

    def _forget(self) -> None:
        self._store.crop(0)
        self._ids = []

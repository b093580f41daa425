"""Tokens in, text out: whole characters, held back where they may become a stop word."""

from __future__ import annotations

from collections.abc import Sequence

from loci.models.tokenizer import Stream


class Words:
    """The text of one answer as it grows.

    Attributes:
        text: what was given out so far; complete after `end`.
        stopped_by: the stop word that ended it, or None.
    """

    def __init__(self, stream: Stream, stop: Sequence[str] = ()) -> None:
        self._stream, self._stop = stream, [word for word in stop if word]
        self._hold = max((len(word) for word in self._stop), default=1) - 1
        self._seen = ""  # given out, and held back
        self.text = ""
        self.stopped_by: str | None = None

    def feed(self, ids: Sequence[int]) -> str:
        """Return the text that is certain now; after a stop word nothing more comes."""
        self._seen += "".join(map(self._stream.feed, ids))
        return self._give(is_last=False)

    def end(self) -> str:
        """Return what was held back."""
        self._seen += self._stream.finish()
        return self._give(is_last=True)

    def _give(self, *, is_last: bool) -> str:
        if self.stopped_by is None:
            found = [(at, word) for word in self._stop if (at := self._seen.find(word)) >= 0]
            if found:
                at, self.stopped_by = min(found)
                self._seen = self._seen[:at]
        done = is_last or self.stopped_by is not None
        ready = len(self._seen) if done else max(len(self.text), len(self._seen) - self._hold)
        piece = self._seen[len(self.text) : ready]
        self.text += piece
        return piece

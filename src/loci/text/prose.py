"""English text that every machine has: the topics of Python's own help.

`pydoc_data.topics` holds some 465,000 characters of technical prose. Methods are calibrated on its
first half and judged on its second. It differs a little from one Python to the next, so whoever
uses it records a hash of what was read.
"""

from __future__ import annotations

from pydoc_data import topics


def prose() -> str:
    """Return the help topics as one text, in the order of their names."""
    return "\n\n".join(topics.topics[name].strip() for name in sorted(topics.topics))


def first_half() -> str:
    """Return the half of the text that methods may be calibrated on."""
    text = prose()
    return text[: len(text) // 2]

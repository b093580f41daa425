"""What an instruction to a planner means: rules over cue words, known names and known values.

The names of tasks and the values they ever had are known, so most of a sentence is found by looking
for them; cue words tell what is to be done, and the state decides between readings ("put the hotel
back" brings back a cancelled hotel, and returns a changed one to its last value).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any  # operations are JSON values

from loci.methods.recall._tme_tree import Node, Tree
from loci.text.stem import STOP_WORDS, fold

Op = dict[str, Any]


@dataclass(frozen=True)
class Clarify:
    """What has to be asked before anything is changed."""

    question: str


_ASKS = re.compile(
    r"(what|which|where|who|when|how (much|many|long)|do we have|did|was(n't)?|is there|have we|"
    r"(can|could|would) you (please )?(repeat|tell|remind|show|say|read|list)|"
    r"(please )?(remind|tell|show|repeat|read|list|give)\b)"
)
_SUGGESTS = re.compile(r"(how|what) about\b|(show|give) me .* instead")
_PAST = re.compile(
    r"\b(before|previous(ly)?|earlier|old|used to|at first|original(ly)?|former(ly)?|prior|"
    r"initial(ly)?|to begin with|in the beginning|last time)\b"
)
_BACK = re.compile(
    r"\b(back|revert|undo|return|returning|restore|again|previous|earlier|old|former|prior|before|"
    r"original|originally|what it was|as it was|used to)\b"
)
_WAS = re.compile(r"\b(previous|earlier|old|former|prior|original|before|what it was|as it was)\b")
_REMOVE = re.compile(
    r"\b(remove|cancel|drop|forget|skip|leave out|leave off|(do|go|manage|live) without|delete|"
    r"strike|get(ting)? rid|never ?mind|scrap|omit|ditch|exclude|discard|eliminate|abandon|"
    r"call off|cross (out|off)|no longer|not need(ed)?|(don't|do not|won't|doesn't) (need|want)|"
    r"any ?more|off the list|off the plan|without)\b"
)
_NO = re.compile(r"^no (a |an |the )?S\b|\bno S after all")
_NOT_REMOVE = re.compile(
    r"\b(don't|do not|never|not) (remove|cancel|drop|skip|delete|strike|scrap|forget|leave out)\b"
)
_BUT = re.compile(
    r"\b(all|everything|every \w+|anything|the others?|the rest|whatever)\b.*?"
    r"\b(but|except( for)?|apart from|other than|besides|save)\b( for)? (the |my |our )?S\b"
)
_ONLY = re.compile(
    r"\b(only keep|keep (only|just|nothing but)|just keep|leave only) (the |my |our )?S\b|"
    r"\bkeep (the |my |our )?S\b.*\b(rest|others?|everything else)\b"
)
_NEEDS = re.compile(
    r"\b(depend|fit|match|follow|based|hinge|change|changes|moves?|rel(y|ies)|by|decide|choose|"
    r"according|according to|when|whenever|if|once|goes with|in line with|tied|suit|determin)"
)
_SAME = re.compile(r"\bsame S\b.*\b(for|in|as for) (the |my |our )?S2\b")
_REUSE = re.compile(r"\b(use|take|reuse|book|keep|want|have)?\b.*\bthe same\b")
_RIGHT = re.compile(
    r"^\s*(?:back )?(?::|=|,? ?(?:is|are|was|becomes?|to|should|must|shall|will|would|needs? to|"
    r"has to|have to|ought to|had better|'s)\b(?: (?:now|rather|better|really|actually|then|"
    r"again|be|back|to|instead)\b)*)[\s:]*"
)
_SWAPS = re.compile(r"\b(swap|exchange|replace|substitute|trade|switch|change)\s*(the|my|our)?\s*$")
_FOR = re.compile(r"^\s*(?:for|with|by|into)\s+")
_LEFT = re.compile(r"\b(?:for|as|under|to be|regarding|concerning)\s*(?:the|my|our|a|an)?\s*$")
_PLAN = re.compile(r"^(?:the |my |our )?(?:plan|list|order|table|agenda|cart|schedule|program)$")
_LEAD_WORDS = """
    sorry hmm well ok okay oh actually please hey so and but then now that let's let us i i'd
    i'll i'm we we'd we'll we're we've you could can would will should shall have had has to
    need needs want like love prefer rather think guess suppose believe meant mean go going with
    back return returning switch change move make it take taking use using pick choose chose
    book get put set note write enter down do try how what about for as is be stick stay settle
    decided decide opt select reserve order buy say record revert roll keep just maybe perhaps
    better instead turns out yes yeah no nope wait fine alright regarding concerning
    """
_LEAD = frozenset(_LEAD_WORDS.split())
_TOLD_WORDS = """
    longer needed necessary required wanted any anymore changed wrong different off on out gone
    cancelled canceled removed dropped restored included postponed obsolete unnecessary fine
    better good ok right best new one ones idea choice version thing list plan later earlier
    """
_TOLD = frozenset(_TOLD_WORDS.split())
_IDIOM = re.compile(
    r"^(?:(?:on|after) (?:second thoughts?|reflection|thinking about it)|i(?:'ve| have)? changed "
    r"my mind|scratch that|never ?mind|correction|come to think of it|you know what|my mistake|"
    r"let me (?:see|think)|to be honest|turns out)\b[\s,;:.!-]*",
    re.IGNORECASE,
)
_TRAIL = re.compile(
    r"(?:[,;.!?]|\b(?:instead|please|again|now|after all|as before|like (?:before|earlier)|then|"
    r"as well|too|if possible|thanks|thank you|for now|actually|once more|sounds? \w+|works?|"
    r"(?:is|was|are|would be|will be|seems?|looks?|feels?)(?: \w+){0,2}|would do|will do|"
    r"use it(?: again)?|was (?:fine|better|good)|as it was|like that))\s*$",
    re.IGNORECASE,
)
_COPULA = re.compile(
    r"\s+(?:is|was|are|were|would|will|might|sounds|seems|looks|works|feels|suits)\b.*$",
    re.IGNORECASE,
)
_NEW = (
    re.compile(r"^(?P<s>[A-Za-z][\w' -]{0,40}?)\s*[:=]\s*(?P<v>\S.*)$"),
    re.compile(r"^(?:please )?set (?:the |my |our )?(?P<s>[\w' -]{1,40}?) to (?P<v>\S.*)$", re.I),
    re.compile(r"^(?:the|my|our) (?P<s>[\w'-]+(?: [\w'-]+){0,2}) (?:is|are) (?P<v>\S.*)$", re.I),
)


def read(text: str, tree: Tree, focus: str | None = None) -> list[Op] | Clarify:
    """Return the operations that an instruction asks for, or what has to be asked first.

    Args:
        focus: key of the task spoken of last, for "it" and "that".
    """
    said = " ".join(text.replace("’", "'").split()).strip()
    found = _mentions(said, tree)
    if isinstance(found, Clarify):
        return found
    if not found:
        return _without_a_name(said, tree, focus)
    keys = list(dict.fromkeys(key for _, _, key in found))
    masked = _masked(said, found, keys)
    if _is_question(masked, said):
        return [{"op": "check", "slot": key, "to": _past_or_now(masked)} for key in keys]
    if len(keys) > 1:
        related = _related(masked, keys)
        if related is not None:
            return related
    if _BUT.search(masked) or _ONLY.search(masked):
        rest = [k for k, n in tree.nodes.items() if k not in keys and n["status"] == "done"]
        return [{"op": "remove", "slot": key} for key in rest]
    if len(keys) > 1 and re.search(r"S\d?(,| and| or| nor) (the |my |our )?S2", masked):
        ops = [_one(masked, said, tree, key, found) for key in keys]
        if all(isinstance(op, dict) and op["op"] in ("remove", "restore") for op in ops):
            return [op for op in ops if isinstance(op, dict)]
    key = _chosen(said, found)
    op = _one(_masked(said, found, [key]), said, tree, key, found)
    return op if isinstance(op, Clarify) else [op]


def is_about_the_past(text: str) -> bool:
    """Return whether a sentence speaks of earlier values: what was before, or going back."""
    low = fold(text)
    return bool(_PAST.search(low) or _BACK.search(low))


# -- private ----------------------------------------------------------------------------------

Mention = tuple[int, int, str]


def _mentions(said: str, tree: Tree) -> list[Mention] | Clarify:
    """Return where tasks are named, the longest names first come first served."""
    names: dict[str, list[str]] = {}
    for key, node in tree.nodes.items():
        for name in (node["slot"], *node["aliases"], tree.full_name(key).replace(" / ", " ")):
            names.setdefault(fold(name), []).append(key)
    taken: list[Mention] = []
    low = fold(said)
    if len(low) != len(said):
        low = said.lower()
    for name in sorted((name for name in names if name in low), key=len, reverse=True):
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?:e?s)?(?!\w)", low):
            start, end = match.span()
            if all(end <= a or b <= start for a, b, _ in taken):
                keys = list(dict.fromkeys(names[name]))
                if len(keys) > 1:
                    full = ", ".join(tree.full_name(key) for key in keys)
                    return Clarify(f"which {name} is meant: {full}?")
                taken.append((start, end, keys[0]))
    return sorted(taken)


def _masked(said: str, found: list[Mention], keys: list[str]) -> str:
    """Return the sentence in lower case with S, S2, ... in place of the names."""
    text = said
    for start, end, key in reversed(found):
        if key in keys:
            number = keys.index(key) + 1
            text = text[:start] + ("\x00" if number == 1 else f"\x00{number}") + text[end:]
    return fold(text).replace("\x00", "S")


def _is_question(masked: str, said: str) -> bool:
    if _SUGGESTS.match(masked) or not (asks := _ASKS.match(masked)):
        return False
    tells = re.match(r"(please )?(remind|tell|show|repeat|read|list|give)\b", asks[0])
    return bool(tells) or said.rstrip().endswith("?")


def _past_or_now(masked: str) -> str:
    return "before" if _PAST.search(masked) else "now"


def _related(masked: str, keys: list[str]) -> list[Op] | None:
    """Return what relates two tasks: one depends on the other, or takes over what it has."""
    first, second = keys[0], keys[1]
    if _SAME.search(masked):
        return [{"op": "reuse", "slot": first, "parent": second}]
    if not _NEEDS.search(masked):
        return None
    later = re.search(r"\b(if|when|whenever|once|should|in case|as soon as)\b[^,]*\bS\b", masked)
    needed = re.search(r"\bneed (the |a )?S\b.*\b(to|for|before)\b", masked)
    if later or needed:
        return [{"op": "depend", "slot": second, "on": first}]
    return [{"op": "depend", "slot": first, "on": second}]


def _chosen(said: str, found: list[Mention]) -> str:
    """Return the task a sentence is about: the one named as an object, not inside a value."""
    best, most = found[0], -1
    for number, mention in enumerate(found):
        left, right = said[: mention[0]], said[mention[1] :]
        score = 0
        if _LEFT.search(fold(left)):
            score = 3 + (number > 0)
        elif _RIGHT.match(fold(right)):
            score = 3
        elif re.search(r"\b(the|my|our|a|an|no)\s*$", fold(left)):
            score = 1
        if score > most:
            best, most = mention, score
    return best[2]


def _one(masked: str, said: str, tree: Tree, key: str, found: list[Mention]) -> Op | Clarify:
    """Return the operation on one task."""
    node = tree.nodes[key]
    known = _known_value(said, node, tree, key)
    value = _value(said, key, found)
    is_removed = node["status"] == "removed"
    # Cue words inside a value are none.
    cues = masked
    for part in (value, known):
        if part is not None:
            cues = cues.replace(_masked_part(part, node), "V")
    if known is not None and _BACK.search(cues):
        return {"op": "rollback", "slot": key, "to": known}
    if _NOT_REMOVE.search(cues):
        return {"op": "restore", "slot": key}
    if value is None:
        if not is_removed and known is None and _WAS.search(cues) and node["value"] is not None:
            return {"op": "rollback", "slot": key}
        if _REMOVE.search(cues) or _NO.search(cues):
            return {"op": "remove", "slot": key}
    if is_removed and (value is None or _BACK.search(cues) or "after all" in cues):
        return {"op": "restore", "slot": key}
    if value is not None:
        return {"op": "set", "slot": key, "value": value if known is None else known}
    if _BACK.search(cues):
        return {"op": "rollback", "slot": key}
    if re.search(r"\b(keep|want|need)\b", cues) and node["value"] is not None:
        return {"op": "check", "slot": key, "to": "now"}
    return Clarify(f"what should become of {tree.full_name(key)}?")


def _masked_part(part: str, node: Node) -> str:
    """Return a value as it stands in a masked sentence."""
    return fold(part).replace(fold(str(node["slot"])), "S")


def _is_cue_only(value: str) -> bool:
    """Return whether a text says nothing but what to do: "back on", "no longer needed"."""
    words = [word.strip(" ,;:.!?") for word in fold(value).split()]
    return all(
        word in _LEAD or word in STOP_WORDS or word in _TOLD or _BACK.fullmatch(word)
        for word in words
    )


def _known_value(said: str, node: Node, tree: Tree, key: str) -> str | None:
    """Return the longest value the task ever had that stands in the sentence."""
    low = fold(said)
    name = fold(str(node["slot"]))
    had = {str(version["value"]) for version in node["versions"]}
    for value in sorted(had, key=len, reverse=True):
        text = re.sub(r"^(the|a|an) ", "", fold(value))
        hits = len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", low))
        inside = len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", name))
        if hits > inside * low.count(name):
            return value
    return None


def _value(said: str, key: str, found: list[Mention]) -> str | None:
    """Return the value that a sentence gives to a task, None if it gives none."""
    spots = [mention for mention in found if mention[2] == key]
    offers: list[tuple[int, str]] = []
    for number, (start, end, _) in enumerate(spots):
        left, right = said[:start], said[end:]
        low_left, low_right = fold(left), fold(right)
        if before := _LEFT.search(low_left):
            front = _lead(_COPULA.sub("", left[: before.start()].strip(" ,;")))
            offers.append((5 if number else 4, front))
            behind = _end(_COPULA.sub("", _lead(right.lstrip(" ,;:"))))
            offers.append((2, behind))
            if number == 0 and len(spots) > 1:
                continue
        after = _RIGHT.match(low_right)
        if after is None and _SWAPS.search(low_left):
            after = _FOR.match(low_right)
        if after and not before:
            offers.append((4 if number == 0 else 1, _end(right[after.end() :])))
        verb = re.search(r"\b(make|call|have|book|get)\s*(the|my|our)?\s*$", low_left)
        if verb and not after and not before:
            offers.append((1, _end(right)))
    fits = [(rank, value) for rank, value in offers if value and not _is_cue_only(value)]
    fits = [(rank, value) for rank, value in fits if not _PLAN.match(fold(value))]
    return max(fits, key=lambda offer: offer[0])[1] if fits else None


def _lead(text: str) -> str:
    """Return a text without the words that lead up to a value."""
    words = _IDIOM.sub("", text.strip(" ,;:.")).split()
    while words and (word := fold(words[0])).strip(" ,;:.!?-") in _LEAD:
        if word == "no" and len(words) > 1:
            break  # "no more than two" is a value; "No, ..." is none
        if word == "as" and words[1:2] != [] and fold(words[1]) in ("soon", "early", "late"):
            break
        words.pop(0)
    return _end(" ".join(words))


def _end(text: str) -> str:
    """Return a text without what follows a value."""
    text = text.strip(" ,;:")
    while True:
        cut = _TRAIL.sub("", text).rstrip(" ,;:")
        if cut == text:
            return text
        text = cut


def _without_a_name(said: str, tree: Tree, focus: str | None) -> list[Op] | Clarify:
    """Return what a sentence means that names no known task."""
    for form in _NEW:
        match = form.match(said.rstrip("."))
        if match and not _ASKS.match(fold(said)):
            return [{"op": "create", "slot": match["s"].strip(), "value": match["v"].strip(" .")}]
    low = fold(said)
    if focus is not None and re.search(r"\b(it|that|this|one)\b|^(undo|go back|revert)\b", low):
        if _REMOVE.search(low) and not _NOT_REMOVE.search(low):
            return [{"op": "remove", "slot": focus}]
        node = tree.nodes[focus]
        known = _known_value(said, node, tree, focus)
        if known is not None:
            return [{"op": "rollback", "slot": focus, "to": known}]
        make = re.search(
            r"\b(?:make|change|set|switch|call)\b (?:it|that|this)(?: to)? (.+)$", said, re.I
        )
        if make:
            return [{"op": "set", "slot": focus, "value": _end(make[1])}]
        if _BACK.search(low):
            back = "restore" if node["status"] == "removed" else "rollback"
            return [{"op": back, "slot": focus}]
    known_names = ", ".join(tree.full_name(key) for key in list(tree.nodes)[:12])
    return Clarify(f"which task is meant? Known: {known_names or 'none yet'}")

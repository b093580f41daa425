"""How English names people and things, and says whose they are: patterns."""

from __future__ import annotations

import re

from loci.text.lemmas import keys
from loci.text.phrases import KIN, words

MORE_KIN = [
    "ex",
    "niece",
    "nephew",
    "landlady",
    "girl",
    "boy",
    "man",
    "woman",
    "mare",
    "foal",
    "colt",
    "mother-in-law",
    "father-in-law",
    "brother-in-law",
    "sister-in-law",
    "daughter-in-law",
    "son-in-law",
    "nan",
    "gran",
    "granddaughter",
    "grandson",
    "greyhound",
    "teacher",
    "doctor",
    "babies",
    "ex-husband",
    "ex-wife",
    "stepmother",
    "stepfather",
    "godmother",
    "godfather",
    "lad",
    "lass",
    "godson",
    "goddaughter",
    "fiancé",
    "fiancée",
    "bandmate",
    "teammate",
    "classmate",
    "colt",
    "filly",
]
NOUNS = "|".join(sorted({*KIN, *MORE_KIN}, key=len, reverse=True))
WORD = r"[A-ZÀ-Þ](?:[\w-]|['’](?!(?:s|ll|d|re|ve|m)\b)\w)*"
CAP = rf"(?:(?:Mr|Mrs|Ms|Dr)\.\s)?{WORD}(?:\s+(?:(?:van|de|von|la|den|der)\s+)*{WORD})*"
OWN = rf"(?P<own>[Mm]y|[Oo]ur|[Hh]is|[Hh]er|[Tt]heir|[Yy]our|(?:{CAP})['’]s)"
ADJ = (
    r"(?:(?:(?!(?:an?|the|my|our|his|her|their|your|what|where|how|not|and|or)\b)[a-z]+[- ]){0,3}?)"
)
OWNED = re.compile(
    rf"(?<![\w]){OWN}\s+(?P<adj>{ADJ})(?P<kin>{NOUNS})s?\b(?P<gen>['’]s(?!"
    r" (?:called|named|a |an ))\b)?"
    r"(?:(?:(?P<link>['’]s name(?: is| was|['’]s)|(?:['’]s| is| was"
    r"| are)? ?(?:called|named)|,| is|:)?)"
    rf"\s+(?P<name>{CAP}))?"
)
IS_OWNED = re.compile(
    rf"(?<!\w)(?P<name>{CAP})(?:['’]s|\s+is|\s+was|,)\s+(?:actually |now "
    rf"|also )?{OWN}\s+{ADJ}(?P<kin>{NOUNS})\b"
)
CALLED = re.compile(
    (
        r"\b(?P<det>an?|the|another|this|one|my|our|his|her"
        rf"|their)\s+(?P<noun>(?:[\w-]+\s+){{0,3}}?[\w-]+)"
        rf"(?:\s+in\s+{CAP})?,?\s+(?:which (?:is|was) |who(?:['’]s| is) )?(?:called"
        r"|named|by the name of)"
        rf"\s+(?P<name>{CAP})"
    ),
)
NAME_IS = re.compile(
    r"\b(?:(?:[Hh]is|[Hh]er|[Ii]ts|[Tt]heir)\s+name(?:['’]s|\s+is|\s+was)|(?:[Hh]e"
    r"|[Ss]he|[Ii]t|[Tt]hey)"
    r"(?:['’]s|['’]re|\s+is|\s+are|\s+was)\s+(?:now |just )?(?:called|named)"
    r"|(?:call|called|named?|christened)\s+(?:him|her|it|them)|(?:name"
    r"|call) (?:him|her|it),? "
    rf"(?:so|and) (?:he|she|it)(?:['’]s|\s+is))\s+(?P<name>{CAP})"
)
BARE = re.compile(rf"\b(?P<det>[Tt]he|[Aa]n?|[Oo]ne)\s+{ADJ}(?P<kin>{NOUNS}|cat|dog|baby)\b")
HAS_CHILD = re.compile(
    r"(?P<who>\S+(?: and \S+)?)(?:['’](?:s|ve)|\s+has"
    r"|\s+have)?\s+(?:just\s+)?had\s+"
    r"(?:(?P<it>him|her|them)|(?:an?|her|his|their|the)\s+(?P<noun>baby|boy|girl"
    r"|son|daughter|foal"
    r"|twins|puppies|kittens))\b"
)
BORN = frozenset(keys("born baby birth"))
BIRTH = words("baby boy girl son daughter foal colt filly child")
ALONE_KIN = re.compile(r"(?<!\w)(?P<kin>Mum|Mom|Dad|Nan|Gran|Grandma|Grandpa|Granny)\b")
FIRST = re.compile(r"\b(?:I|[Mm]y|[Mm]e|[Mm]ine|[Ww]e|[Oo]ur|[Uu]s|[Mm]yself|[Oo]urs)\b")
SECOND = re.compile(r"\b(?:you|your|yours|yourself)\b", re.IGNORECASE)
THEY = re.compile(r"\b(?:[Tt]hey|[Ss]omebody|[Ss]omeone|[Ee]verybody|[Ee]veryone|[Nn]obody)\b")
THIRD = re.compile(r"\b(?P<w>he|him|his|himself|she|her|hers|herself)\b(?P<s>['’]s)?", re.I)
POSSESSED = re.compile(
    r"\s+(?!(?:every|each|the|a|an|to|in|on|for|and|with|at|by|so|last|next|this"
    r"|that|when|while|if"
    r"|but|or|as|about|from|again|now|too|there|here|back|up|out|off|into|because"
    r"|yesterday"
    r"|tomorrow|today|once|twice|all|very|just)\b)[a-z]"
)
SUBJECT = re.compile(
    rf"(?<!\w)(?P<name>{CAP})(?P<is>['’]s|['’]ll|['’]d| and I|, (?=(?:he|she"
    r"|who)\b))?"
    r"\s*\b(?P<verb>[a-z]+)\b"
)
IN = re.compile(rf"\b(?:in|at|near|into|around|outside) (?P<name>{CAP})")
SHE_IS_THE = re.compile(
    rf"\b(?P<who>[Hh]e|[Ss]he)(?:'s| is| was) (?:the|my|our) {ADJ}(?P<kin>{NOUNS})\b"
)
ONLY_KIN = re.compile(rf"^{OWN}\s+{ADJ}(?P<kin>{NOUNS})[.!]*$")
ASKS_OF = re.compile(rf"{OWN}\s+{ADJ}(?P<noun>[a-z-]+)\?$")
BEGINS_NEW = re.compile(
    rf"^(?P<name>{CAP})(?:'s|,| is| was| has| says| said| lives| works| wants)\b"
)
OPENS = re.compile(rf"^(?P<name>{CAP})(?:[.!]*$|, (?:he|she|who)(?:'s|\b))")
SEEING = re.compile(
    r"\b(?:I|[Ww]e)(?:'m|'ve| am| have| are|'re)?(?: \w+ly)? (?:been |now "
    r"|just )?(?P<how>seeing|dating"
    r"|going out with|engaged to|married to|got engaged to|got married to"
    r"|married) (?:someone\b"
    rf"|somebody\b|(?P<name>{CAP}))"
)
AT_PLACE = re.compile(rf"\b(?:in|at|to|near|into|around|from|of|as far as) (?P<name>{CAP})(?!'s)")
THERE = re.compile(
    r"\b(?:there(?!['’]?s?\b (?:is|are|was|were|will|has|have|a|an|no)\b)|here)\b", re.I
)
WITH_ME = re.compile(
    rf"\b(?P<name>{CAP}) and I (?:have |had |are |were |'ve )?(?:finally |just "
    r"|also )?(?:broke(?:n)? up|split"
    r"|finished|ended it|separated|got engaged|got married|married|are together"
    r"|are dating|moved in)\b"
    rf"|^(?:And |So )?(?P<too>{CAP}) and I[.!…]"
)
APPOSED = re.compile(
    rf"\b(?:an?|another|one) {ADJ}(?P<kin>{NOUNS}|cat|dog|puppy"
    rf"|kitten),? (?P<name>{CAP})"
    r"(?=[,.;!?]|\s+and\b|\s+who\b|$)"
)
IS_GONE = re.compile(rf"\b(?P<name>{CAP})(?:'s| has| is)? (?:gone\b|left me|moved out|walked out)")
SEVERAL = re.compile(
    rf"\b(?:(?:two|three|four|five)|{OWN}) {ADJ}(?P<kin>(?:{NOUNS}|cat|dog)s"
    r"|children|kids)"
    rf"(?:,| called| named|:| are called| are)\s+(?P<names>{CAP}(?:, {CAP})*,?"
    rf" and {CAP})"
)
TITLE = re.compile(
    r"(?:(?P<he>mr|sir|monsieur|signor|herr|don|uncle)|mrs|ms|miss|madame|mme|lady"
    r"|signora|frau|aunt"
    r"|auntie|dottoressa)\.? "
)
NO_PERSON = words("too very so over off closed cancelled expensive on in at where")
NOBODY = words("there here it that what who where how he she let one this")
GOT = re.compile(
    r"\b(?:(?:I|[Ww]e)(?:'ve| have)?(?: just| also| now| finally)? (?:bought|got"
    r"|adopted|have|own|built"
    r"|restored|found)|(?:[Ii]t|[Ss]he|[Hh]e)(?:'s| is| was)) (?:an?|this"
    r"|the) (?:[\w-]+ ){0,3}?"
    r"(?P<noun>[a-z-]+)(?=\s*(?:[,.;!?]|$|and\b|called\b|named\b|from\b|for\b|in\b"
    r"|on\b))"
)
BEHIND_PLACE = re.compile(r"\b(?:in|near|into|around|outside)\s+(?:the\s+)?$")
COMMON_VERBS = words(
    "is was has had will would can could says said does did isn't wasn't won't hasn't "
    "didn't wants wanted thinks told asked cried laughed offered lives works moved came "
    "comes goes"
)
IS_A = re.compile(rf"\b(?:he|she|it)(?:'s| is)\s+an?\s+{ADJ}(?P<noun>[a-z]+)\b", re.IGNORECASE)

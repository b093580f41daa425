"""Stems with irregular forms brought together, and words that often stand for one another."""

from __future__ import annotations

from functools import lru_cache

from loci.text.kinds import kinds_of
from loci.text.stem import STOP_WORDS, stem, tokens

_LEMMAS = """
go went gone goes, buy bought, get got gotten, meet met, see saw seen, take took taken, make made,
give gave given, come came, run ran, write wrote written, read, swim swam, fly flew flown flight,
drive drove driven, build built, begin began begun, find found, lose lost, win won, leave left,
break broke broken, catch caught, teach taught teacher, learn learnt, hear heard, hold held,
keep kept,
spend spent, eat ate eaten, drink drank drunk, sleep slept, ride rode ridden, sing sang sung,
send sent, tell told, say said, speak spoke spoken, stand stood, wear wore worn, choose chose
chosen choice, draw drew drawn, fall fell fallen, feel felt, grow grew grown, hurt, know knew known,
lead led, pay paid, put, sell sold sale, quit, shoot shot, think thought, throw threw thrown,
wake woke woken, lend lent, owe, bring brought, feed fed, bite bit, hide hid, steal stole stolen,
visit visited, child children kids kid, mother mom mum, father dad, grandmother grandma nan gran,
grandfather grandpa grandad, favourite favorite, colour color, neighbour neighbor, purchase, photo
picture, film movie, wife, marry married marriage wedding, die died death dead, choir, bicycle bike,
born birth, fiance fiancé fiancée fiancee, engage engaged engagement, move moved moving,
weigh weight, rehearse rehearsal, decide decision, operate operation surgery, graduate graduation,
fish, tooth teeth
"""
_LEMMA = {
    form: stem(forms[0])
    for entry in _LEMMAS.replace("\n", " ").split(",")
    if (forms := entry.split())
    for form in forms
}
# Words that answer one another's questions; each line is one idea.
_IDEAS = """
cost price pay worth rent fee charge quote expensive cheap budget receipt want
buy sell purchase get own afford collect
live move leave settle home house flat apartment cottage place reside base rent room stay town city
work job start company employer office boss colleague hire employ career lab yard post
occupation profession job work living trade career
begin start open launch leave depart fly first
end finish stop last over
name call
study learn teach course degree class lesson school university college exam train
marry propose engage husband wife spouse
partner boyfriend girlfriend date together marry engage relationship see
diet eat food vegetarian vegan fish meat
own belong have possess
avoid allergic allergy intolerant near
dog puppy greyhound
animal pet cat dog parrot tortoise
car drive vehicle
trip travel holiday vacation fly journey visit honeymoon
ride commute bike bicycle bus train walk
bear baby birth birthday turn
old age year turn birthday
child daughter son baby kid
change move postpone reschedule shift
lend borrow loan owe
ill sick hurt injure doctor hospital
meet rehearse practise practice train play
quit stop leave resign give
friend mate
colour paint
break split separate divorce
carry bring take deliver arrive come
"""
_GROUPS: dict[str, set[int]] = {}


@lru_cache(maxsize=65536)
def lemma(word: str) -> str:
    """Return the one stem of a lower-case word and its irregular forms.

    >>> lemma("bought"), lemma("children"), lemma("rehearsals")
    ('buy', 'child', 'rehears')
    """
    return _LEMMA.get(word) or _LEMMA.get(stem(word)) or stem(word)


for _number, _line in enumerate(_IDEAS.strip().splitlines()):
    for _word in _line.split():
        _GROUPS.setdefault(lemma(_word), set()).add(_number)


def keys(text: str) -> list[str]:
    """Return the lemmas of the words that carry meaning, in order, repeats kept.

    >>> keys("Who bought the car?"), keys("Rooms were sold")
    (['buy', 'car'], ['room', 'sell'])
    """
    return [lemma(word) for word in tokens(text) if word not in STOP_WORDS]


@lru_cache(maxsize=65536)
def akin(left: str, right: str) -> float:
    """Return 1 for equal lemmas, less for words of one idea or one inside the other, else 0.

    >>> akin("buy", "buy"), akin("buy", "sell") > 0, akin("boat", "folkboat") > 0
    (1.0, True, True)
    """
    if left == right:
        return 1.0
    if _GROUPS.get(left, frozenset()) & _GROUPS.get(right, frozenset()):
        return 0.5
    if right in kinds_of(left) or left in kinds_of(right):
        return 0.8
    short, long = sorted((left, right), key=len)
    if len(short) >= 4 and len(long) > len(short) + 2 and long.endswith(short):
        return 0.7
    if len(short) >= 5 and long.startswith(short):
        return 0.6
    return 0.0

"""Kinds of animals and things: a greyhound is a dog, a Corsa is a car, a folkboat is a boat."""

from __future__ import annotations

import re
from functools import cache

from loci.text.stem import fold

_KINDS = {
    "dog": (
        "greyhound labrador lab poodle beagle retriever terrier corgi collie spaniel"
        " dachshund "
        "husky shepherd puppy pup bulldog pug whippet setter mongrel chihuahua"
        " rottweiler boxer hound"
    ),
    "cat": "kitten tabby siamese tomcat tom persian moggy",
    "horse": "mare stallion foal colt filly pony gelding",
    "bird": "parrot budgie canary cockatiel parakeet hen chicken cockatoo",
    "pet": (
        "dog cat rabbit bunny hamster parrot budgie canary goldfish turtle tortoise"
        " ferret "
        "snake lizard gecko chinchilla hedgehog greyhound"
    ),
    "car": (
        "opel corsa toyota honda ford fiesta bmw kia volvo skoda fiat panda audi vw"
        " volkswagen "
        "golf polo mercedes nissan mazda renault clio hyundai subaru jeep lexus"
        " porsche citroen "
        "peugeot seat ibiza dacia mini tesla chevrolet suv hatchback saloon estate"
        " saab lada"
    ),
    "boat": (
        "yacht folkboat dinghy sailboat sloop ketch catamaran canoe kayak barge"
        " trawler ship "
        "rowboat narrowboat vessel"
    ),
    "motorbike": "motorcycle guzzi vespa ducati harley kawasaki yamaha scooter triumph",
    "foal": "colt filly",
    "donkey": "mule ass jenny",
    "bike": "bicycle",
    "bicycle": "bike",
}
_KIND_OF: dict[str, set[str]] = {}
for _kind, _members in _KINDS.items():
    for _member in _members.split():
        _KIND_OF.setdefault(_member, set()).add(_kind)


_THINGS = {
    "wood": (
        "oak ash pine beech walnut mahogany teak cherry maple birch spruce larch cedar elm ebony"
    ),
    "material": (
        "wood oak pine metal steel iron copper brass glass leather wool cotton silk"
        " linen "
        "plastic epoxy resin concrete brick stone marble granite clay paper rubber"
        " nylon velvet denim"
    ),
    "metal": "steel iron copper brass bronze tin gold silver aluminium aluminum lead zinc titanium",
    "fruit": (
        "apple apples pear pears banana bananas orange oranges lemon lemons lime"
        " mango peach "
        "peaches plum plums cherry cherries grape grapes strawberry strawberries"
        " raspberry raspberries "
        "blueberry blueberries fig figs kiwi melon pineapple apricot apricots"
    ),
    "vegetable": (
        "leek leeks potato potatoes carrot carrots onion onions tomato tomatoes"
        " cabbage "
        "spinach pumpkin bean beans pea peas courgette aubergine pepper peppers"
        " beetroot lettuce kale"
    ),
    "flower": (
        "rose roses tulip tulips dahlia dahlias lily lilies daisy daisies orchid"
        " orchids "
        "sunflower sunflowers peony peonies daffodil daffodils iris"
    ),
    "tree": "oak ash pine beech walnut cherry maple birch spruce pear apple plum fig willow olive",
    "fish": "sardine sardines salmon trout tuna cod mackerel herring haddock mussels",
    "drink": "tea coffee rooibos water wine beer juice milk cocoa espresso whisky gin rum lemonade",
    "tea": "rooibos chamomile darjeeling assam matcha mint sencha oolong",
    "sport": (
        "tennis football soccer rugby cricket hockey golf swimming running climbing"
        " bouldering "
        "cycling rowing judo karate badminton basketball volleyball boxing skiing"
        " yoga squash sailing swim swims swam run runs climb climbs ski skis surf surfs surfing"
        " jog jogging pilates gymnastics fencing archery hiking triathlon kayaking wrestling"
        " snowboarding dancing ballet netball padel darts handball floorball"
    ),
    "vehicle": "car van lorry truck bus bike bicycle motorbike scooter tractor pickup campervan",
    "breed": _KINDS["dog"] + " " + _KINDS["cat"],
    "animal": _KINDS["pet"] + " horse cow sheep pig goat bee bees hen hens donkey",
    "food": "soup bread cheese pasta pizza rice curry salad stew cake pie sushi burger fish meat",
    "dance": "tango salsa ballet waltz flamenco swing tap",
}


def has_kinds(noun: str) -> bool:
    """Whether kinds of a noun are listed: "Which wood?"."""
    return noun in _THINGS or noun in ("dog", "cat", "pet", "boat", "car", "bird")


def kinds_in(noun: str, text: str) -> list[tuple[int, int]]:
    """Return where a text names a kind of a noun, with what describes it.

    >>> [("a tall oak tree"[a:b]) for a, b in kinds_in("wood", "a tall oak tree")]
    ['oak']
    """
    return [match.span() for match in _pattern(noun).finditer(text)]


@cache
def _pattern(noun: str) -> re.Pattern[str]:
    words = (_THINGS.get(noun) or _KINDS.get(noun, "")).split()
    either = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    colour = "border|golden|old|new|grey|gray|red|black|white|blue|green|dark|light"
    return re.compile(rf"(?:\b(?:{colour})\s)*\b(?:{either})\b(?:\s(?:{either})\b)*", re.I)


def is_kind(noun: str) -> bool:
    """Whether a noun is a kind of something here, or has kinds."""
    return noun in _KINDS or noun in _KIND_OF


@cache
def kinds_of(noun: str) -> frozenset[str]:
    """Return a noun and what it is a kind of.

    >>> sorted(kinds_of("greyhound"))
    ['dog', 'greyhound', 'pet']
    """
    low = fold(noun)
    found = {low} | _KIND_OF.get(low, set())
    for kind in list(found):
        found |= _KIND_OF.get(kind, set())
    return frozenset(found)

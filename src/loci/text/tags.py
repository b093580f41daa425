"""Forty subjects of everyday talk, and the words that tell them."""

from __future__ import annotations

from functools import cache

from loci.text.stem import stems

_CUES = {
    "family": "mother father mom dad parent sister brother son daughter child kid baby grandma "
    "grandmother grandpa grandfather aunt uncle cousin niece nephew family sibling twins",
    "relationship": "husband wife partner boyfriend girlfriend fiance date dating married wedding "
    "divorce engaged anniversary spouse breakup love",
    "friends": "friend buddy pal roommate flatmate neighbour neighbor hangout company",
    "pets": "dog cat puppy kitten pet rabbit hamster parrot bird vet leash paw breed rescue",
    "animals": "animal wildlife horse cow fish whale bear bee insect turtle zoo species",
    "home": "house home apartment flat kitchen garden room furniture rent mortgage move moving "
    "moved lease roof backyard renovation",
    "city": "city town street downtown neighbourhood neighborhood village suburb",
    "work": "work job office boss colleague career company business client project meeting "
    "promotion salary hire hired interview shift employer",
    "money": "money budget save savings pay bank loan debt price cost cheap expensive donate "
    "insurance tax invest",
    "study": "study school university college class course exam degree homework teacher professor "
    "student thesis graduate lecture tutor campus",
    "language": "language speak fluent translate grammar accent vocabulary bilingual",
    "travel": "travel trip flight airport hotel vacation holiday tour passport luggage abroad "
    "visit visited journey cruise",
    "nature": "mountain hike hiking trail forest beach sea ocean lake river sunset camping camp "
    "park waterfall island",
    "weather": "weather rain snow sun sunny storm wind cold heat hot cloud",
    "food": "food eat ate dinner lunch breakfast restaurant meal taste delicious pizza salad soup "
    "dessert chocolate cake snack cheese vegan vegetarian",
    "cooking": "cook cooking bake baking recipe oven grill ingredient kitchen dish chef",
    "drinks": "coffee tea wine beer juice cocktail drink water",
    "health": "health doctor hospital sick illness pain medicine injury surgery therapy checkup "
    "diagnosis symptom allergic allergy asthma dentist",
    "mind": "stress anxiety anxious depressed mental therapist counseling meditation mindfulness "
    "calm overwhelmed burnout self-care",
    "feelings": "happy sad proud afraid nervous excited grateful angry lonely thankful hope "
    "worried relieved joy",
    "sport": "sport football soccer basketball tennis swim swimming run running marathon gym "
    "yoga workout team coach match race score training bike cycling climb climbing",
    "games": "game gaming chess board card puzzle console tournament player level",
    "music": "music song band concert guitar piano violin sing singing album drum orchestra "
    "playlist instrument festival clarinet ukulele",
    "film": "movie film cinema watch series episode show actor director documentary trilogy",
    "books": "book novel read reading author library story chapter poem poetry writer",
    "art": "art paint painting draw drawing sculpture gallery exhibit museum pottery sketch canvas "
    "photo photography camera design",
    "crafts": "craft knit knitting sew sewing woodwork carpentry handmade origami quilt clay",
    "plants": "plant flower garden gardening tree seed rose tulip vegetable harvest",
    "clothes": "clothes dress shoe shirt jacket fashion outfit hat wear style",
    "cars": "car drive drove vehicle truck license traffic mechanic garage engine motorcycle",
    "technology": "computer phone app software code coding program internet website laptop robot "
    "online data blog",
    "science": "science research experiment physics chemistry biology space planet star theory",
    "community": "community volunteer volunteering charity shelter support group donation cause "
    "event fundraiser activism",
    "identity": "identity lgbtq transgender gender pride culture tradition heritage immigrant "
    "adoption adopt",
    "faith": "church faith god pray prayer religion spiritual temple mosque",
    "politics": "politics vote election law government policy rights protest campaign mayor",
    "celebration": "birthday party christmas easter halloween thanksgiving celebrate celebration "
    "gift present holiday",
    "goals": "goal plan dream hope future start achieve milestone challenge motivation resolution",
    "memories": "remember memory childhood past reminisce nostalgia grew photo album",
    "loss": "died death funeral passed loss grief lost miss mourn",
}


@cache
def _by_cue() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for tag, cues in _CUES.items():
        for cue in dict.fromkeys(stems(cues)):
            found.setdefault(cue, []).append(tag)
    return {cue: tuple(tags) for cue, tags in found.items()}


def tags_of(text: str, limit: int = 3) -> tuple[str, ...]:
    """Return the subjects a text speaks of, those with the most words first.

    >>> tags_of("My sister adopted a puppy from the shelter.")
    ('family', 'pets', 'community')
    """
    votes: dict[str, int] = {}
    for stem in dict.fromkeys(stems(text)):
        for tag in _by_cue().get(stem, ()):
            votes[tag] = votes.get(tag, 0) + 1
    return tuple(sorted(votes, key=lambda tag: (-votes[tag], list(_CUES).index(tag)))[:limit])

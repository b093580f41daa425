"""English words the extraction rules know: contractions, verb forms, kinds of people and things."""

from __future__ import annotations

import re


def table(text: str) -> dict[str, str]:
    """Return {form: base} from lines "base: form form"."""
    found = {}
    for line in text.strip().splitlines():
        base, _, forms = line.partition(":")
        found.update(dict.fromkeys(forms.split(), base.strip()))
    return found


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


CONTRACTIONS = {
    "i'm": "I am",
    "im": "I am",
    "i've": "I have",
    "ive": "I have",
    "i'll": "I will",
    "i'd": "I would",
    "we're": "we are",
    "we've": "we have",
    "we'll": "we will",
    "they're": "they are",
    "he's": "he is",
    "she's": "she is",
    "it's": "it is",
    "that's": "that is",
    "there's": "there is",
    "what's": "what is",
    "name's": "name is",
    "birthday's": "birthday is",
    "don't": "do not",
    "dont": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "can't": "cannot",
    "cant": "cannot",
    "isn't": "is not",
    "aren't": "are not",
    "wasn't": "was not",
    "won't": "will not",
    "haven't": "have not",
    "hasn't": "has not",
    "couldn't": "could not",
    "gonna": "going to",
    "wanna": "want to",
    "gotta": "have to",
}
CONTRACTED = re.compile(r"\b(?:" + "|".join(map(re.escape, CONTRACTIONS)) + r")\b", re.IGNORECASE)

# Third person to base form, where a rule looks at the verb.
BASE = table(
    """
    am: is are
    have: has
    live: lives
    work: works
    love: loves
    like: likes
    enjoy: enjoys
    adore: adores
    hate: hates
    dislike: dislikes
    prefer: prefers
    want: wants
    need: needs
    plan: plans
    hope: hopes
    think: thinks
    believe: believes
    play: plays
    collect: collects
    speak: speaks
    study: studies
    teach: teaches
    own: owns
    drive: drives
    go: goes
    do: does
    eat: eats
    drink: drinks
    run: runs
    swim: swims
    volunteer: volunteers
    get: gets
    keep: keeps
    know: knows
    understand: understands
    reside: resides
    stay: stays
    rent: rents
    share: shares
    call: calls
    make: makes
    earn: earns
    look: looks
    take: takes
    react: reacts
    crave: craves
    practise: practises practices
    commute: commutes
    care: cares
    swear: swears
    was: were
    """
)
# Past forms that mean the present fact when "have ... since" or "used to" stands before them.
PARTICIPLE = table(
    """
    live: lived living
    work: worked working
    love: loved loving
    like: liked
    enjoy: enjoyed
    play: played playing
    speak: spoken speaking
    study: studied studying
    own: owned
    drive: driven driving drove
    eat: eaten eating
    drink: drunk drinking drank
    collect: collected collecting
    volunteer: volunteered volunteering
    hate: hated
    have: had
    """
)
# Participles behind "have", as the past that the rules know.
PERFECT = {
    "taken": "took",
    "given": "gave",
    "begun": "began",
    "gone": "went",
    "become": "became",
    "gotten": "got",
    "broken": "broke",
    "grown": "grew",
    "fallen": "fell",
    "chosen": "chose",
    "come": "came",
    "sworn": "swore",
    "forgotten": "forgot",
    "thrown": "threw",
    "split": "split",
    "overcome": "overcame",
    "outgrown": "outgrew",
    "driven": "drove",
    "cut": "cut",
}
ADVERBS = words(
    "just recently actually really currently still also finally now always"
    " absolutely totally only "
    "honestly already literally basically kinda sorta definitely simply truly"
    " completely probably "
    "officially even especially mostly mainly usually generally particularly ever"
    " super very "
    "quite pretty fully entirely strictly badly severely deathly obviously highly extremely "
    "terribly dangerously mildly happily proudly "
    "apparently sadly luckily fortunately unfortunately"
)
FILLERS = re.compile(
    (
        r"^(?:(?:well|so|oh|ah|hey|hi|hello|yeah|yes|yep|yup|no|nope|nah|btw|anyway"
        r"|anyways|also|and"
        r"|but|ok|okay|actually|honestly|by the way|fun fact|guess what|you know"
        r"|to be honest|tbh"
        r"|speaking of which|big news|good news|great news|bad news|sad news|news"
        r"|update"
        r"|quick update|small update|haha|lol|wow|thanks|thank you|sure|right|oh no"
        r"|oh yeah|plus|then"
        r"|unfortunately|luckily|fortunately|sadly|these days|nowadays|lately|recently"
        r"|currently"
        r"|at the moment|right now|as of today|sorry|correction|wait|hmm|um|uh"
        r"|as you know|remember"
        r"|i think i mentioned that|did i mention that|did i tell you that"
        r"|i forgot to say|because"
        r"|since|although|turns out|it turns out|the thing is|just so you know"
        r"|for the record|fyi"
        r"|please note|note that|since then|after that|in the end|in fact"
        r"|i should mention"
        r"|i should say|i have to say|i must say|to be clear|remember that|i told you"
        r"|not sure i mentioned|one more thing)\b[\s,:;.!\-–—]*)+"
    ),
    re.IGNORECASE,
)

PARTNERS = words("partner wife husband girlfriend boyfriend fiance fiancee fiancé fiancée spouse")
CHILDREN = words("son daughter child kid baby toddler stepson stepdaughter")
SIBLINGS = words("sister brother sibling twin stepsister stepbrother")
RELATIVES = words(
    "mother mom mum mama father dad papa parent aunt uncle cousin grandmother"
    " grandfather grandma "
    "grandpa granny niece nephew mother-in-law father-in-law"
)
FRIENDS = words(
    "friend boss manager colleague coworker roommate flatmate housemate neighbour"
    " neighbor coach "
    "mentor therapist landlord"
)
PETS = words(
    "dog cat puppy kitten rabbit bunny hamster parrot budgie canary goldfish"
    " turtle tortoise "
    "horse pony snake lizard gecko ferret pet bird corgi labrador lab poodle"
    " beagle retriever "
    "terrier tabby chinchilla hedgehog"
)
KIN: dict[str, str] = {
    **dict.fromkeys(PARTNERS, "partner"),
    **dict.fromkeys(CHILDREN, "child"),
    **dict.fromkeys(SIBLINGS, "sibling"),
    **dict.fromkeys(RELATIVES, "relative"),
    **dict.fromkeys(FRIENDS, "friend"),
    **dict.fromkeys(PETS, "pet"),
    **dict.fromkeys(("boss", "manager"), "boss"),
}
_PLURALS = {"children": "child", "puppies": "puppy", "babies": "baby", "bunnies": "bunny"}


def kin_of(noun: str) -> str | None:
    """Return the slot of a person or animal one can have: "sister" and "sisters" are "sibling"."""
    word = noun.lower()
    if word in KIN:
        return KIN[word]
    single = _PLURALS.get(word) or (word[:-1] if word.endswith("s") else "")
    return KIN.get(single)


JOBS = words(
    "nurse chef cook pilot artist architect accountant lawyer doctor surgeon vet"
    " dentist judge "
    "journalist scientist librarian therapist electrician mechanic pharmacist"
    " physiotherapist "
    "paramedic barista receptionist consultant analyst assistant student"
    " freelancer freelance "
    "carpenter plumber tailor actor actress waiter waitress clerk intern"
    " apprentice author poet "
    "musician guitarist pianist veterinarian technician secretary coach tutor"
    " lecturer guide "
    "translator interpreter photographer designer developer engineer teacher"
    " professor writer "
    "editor driver farmer baker butcher builder painter cleaner manager director"
    " founder owner "
    "researcher programmer salesperson salesman cashier soldier officer"
    " firefighter policeman "
    "detective entrepreneur psychologist biologist chemist physicist economist"
    " historian florist "
    "dj dancer singer banker broker gardener carer hairdresser instructor trainer"
    " producer "
    "contractor supervisor lead head specialist coordinator administrator nanny"
    " model physio gp "
    "midwife radiographer optician paralegal solicitor plasterer roofer welder"
    " bricklayer tiler "
    "priest vicar nun monk imam rabbi mayor minister sailor fisherman miller"
    " grocer publican "
    "boatbuilder beekeeper pathologist cardiologist surveyor"
)
HEALTH = re.compile(
    (
        r"\b(?:diabetes|asthma|migraines?|arthritis|cold|flu|fever|covid|eczema"
        r"|anxiety|depression"
        r"|insomnia|adhd|cancer|epilepsy|hypertension|(?:high|low) blood pressure"
        r"|celiac disease"
        r"|back pain|headaches?|a bad (?:back|knee)|tendonitis|anaemia|anemia|dyslexia"
        r"|tinnitus"
        r"|broken \w+|sprained \w+|torn \w+|twisted \w+|injur\w+|infection"
        r"|surgery on .+|condition)\b"
    ),
    re.IGNORECASE,
)
DIETS = re.compile(
    (
        r"^(?:a |an |on a |strictly )*(?P<diet>vegan|vegetarian|pescatarian"
        r"|flexitarian"
        r"|lactose[- ]intolerant|gluten[- ]free|gluten[- ]intolerant|coeliac|celiac"
        r"|keto|halal|kosher"
        r"|dairy[- ]free|teetotal)\b"
    ),
    re.IGNORECASE,
)
APPOINTMENTS = (
    r"(?:[\w'’-]+ ){0,3}?(?:appointment|meeting|interview|exam|test|flight"
    r"|check-?up|surgery"
    r"|operation|deadline|reservation|booking|presentation|concert|class|lesson"
    r"|wedding|call"
    r"|review|party|ceremony|recital|race|marathon|match|game)"
)
# Irregular pasts that tell of an event; regular ones end in -ed.
PAST = words(
    "went saw met got bought sold found lost won took made gave came ran wrote"
    " read swam flew "
    "drove built began started finished left broke caught taught learned learnt"
    " heard held kept "
    "spent had ate drank slept rode sang sent told said spoke stood understood"
    " wore bit chose did "
    "drew fell felt forgot grew hit hurt knew led let paid put quit set shot shut"
    " stuck threw "
    "woke joined hosted attended"
)
DULL = words(
    "felt thought knew wanted needed liked loved hoped wished guessed meant said"
    " told heard saw "
    "noticed realized realised figured seemed looked had did got was agreed"
    " believed enjoyed "
    "laughed smiled appreciated understood kept let"
)
HYPOTHETICAL = re.compile(
    (
        r"\b(?:if|wish|imagine|suppose|supposing|pretend|hypothetically|as though"
        r"|wonder|unless|were to"
        r"|in case|dreamed|dreamt)\b|^(?:\S+\s+){0,3}(?:would|could|might|should|maybe"
        r"|perhaps)\b"
    ),
    re.IGNORECASE,
)
# Heads of "a ..." that name nothing one owns.
VAGUE = words(
    "offer time day week weekend year fun chance idea question problem thing"
    " feeling moment look "
    "try blast trip experience conversation chat talk point sense lot bit plan"
    " dream goal "
    "choice way reason news surprise break rest life heart mind place view story"
    " night "
    "morning evening afternoon dinner lunch breakfast meal vacation holiday"
    " journey impact "
    "effect "
)
LANGUAGE = (
    r"(?:English|French|German|Spanish|Italian|Portuguese|Dutch|Flemish|Frisian"
    r"|Swedish|Norwegian"
    r"|Danish|Finnish|Icelandic|Polish|Czech|Slovak|Hungarian|Romanian|Bulgarian"
    r"|Greek|Turkish"
    r"|Russian|Ukrainian|Belarusian|Serbian|Croatian|Bosnian|Albanian|Macedonian"
    r"|Slovene|Slovenian"
    r"|Estonian|Latvian|Lithuanian|Maltese|Luxembourgish|Arabic|Hebrew|Persian"
    r"|Farsi|Kurdish|Pashto"
    r"|Armenian|Georgian|Kazakh|Uzbek|Mongolian|Hindi|Urdu|Bengali|Punjabi"
    r"|Gujarati|Marathi|Nepali"
    r"|Sinhala|Tamil|Telugu|Malayalam|Kannada|Chinese|Mandarin|Cantonese|Japanese"
    r"|Korean|Vietnamese"
    r"|Thai|Lao|Khmer|Burmese|Indonesian|Malay|Javanese|Tagalog|Filipino|Hawaiian"
    r"|Maori|Samoan"
    r"|Swahili|Yoruba|Igbo|Hausa|Zulu|Xhosa|Amharic|Somali|Afrikaans|Welsh|Irish"
    r"|Gaelic|Breton"
    r"|Scots|Catalan|Basque|Galician|Latin|Esperanto|Yiddish|Quechua|Sign "
    r"Language)\b"
    r"(?! (?:teacher|tutor|food|friend|girl|boy|man|woman|cuisine"
    r"|restaurant|history|colleague"
    r"|neighbou?r|market|coffee|boss|exam|book|film|movie|music|wine|cheese|bread"
    r"|car|king|song|dish|team"
    r"|company|recipe|family|guy|dictionary|poem|beer|actor|actress|singer|band"
    r"|artist)s?\b)"
)
PRONOUNS = words(
    "i we you he she it they this that there here these those what which who nobody somebody "
    "someone everyone everybody anyone anybody both none one"
)
GAME = (
    r"(?:(?:the )?(?:(?:acoustic|electric|bass|double|french) )?(?:piano|guitar"
    r"|violin|viola|cello|flute|clarinet"
    r"|oboe|bassoon|trumpet|trombone|saxophone|sax|tuba|harp|drums?|ukulele|banjo"
    r"|mandolin|accordion"
    r"|harmonica|recorder|organ|keyboards?|sitar|bagpipes|lute|fiddle|synth)"
    r"|(?:table |beach |lawn |field |ice |water |ultimate )?(?:tennis|football"
    r"|soccer|rugby|cricket|hockey"
    r"|golf|badminton|basketball|volleyball|squash|netball|padel|pickleball"
    r"|handball|floorball|lacrosse"
    r"|baseball|softball|polo|frisbee|bowls|bowling|darts|billiards|snooker|pool)"
    r"|chess|checkers|draughts|poker|bridge|backgammon|scrabble|dominoes|mahjong"
    r"|mah-jong|board games)"
)

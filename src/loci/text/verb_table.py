"""Which words behind which verb make which fact: patterns over clauses in their base form."""

from __future__ import annotations

import re

from loci.text import verbs
from loci.text.clause import PLACE, trim
from loci.text.makers import appointment, booked
from loci.text.phrases import APPOINTMENTS, DIETS


def _compiled(
    table: dict[str, tuple[tuple[str, verbs.Rule], ...]],
) -> dict[str, list[tuple[re.Pattern[str], verbs.Rule]]]:
    return {
        verb: [
            (re.compile(pattern.replace("[A-Z]", "(?-i:[A-Z])"), re.IGNORECASE), rule)
            for pattern, rule in rules
        ]
        for words, rules in table.items()
        for verb in words.split()
    }


RULES = _compiled(
    {
        "am": (
            (
                (
                    r"am (?:turning )?(?P<o>\d{1,3})(?: years? old)?(?: now| today)?"
                    r"(?:(?:,| and) (?:married|engaged) to (?P<p>[A-Z]\w+))?(?:(?:,| and) .*)?$"
                ),
                verbs.age,
            ),
            (r"am (?P<o>\w+ing\b.*)$", verbs.no_more),
            (r"am allergic to (?P<o>.+)$", verbs.each("allergic_to")),
            (
                (
                    r"am (?:a |an |strictly |strict |real |full |proper )*(?P<o>(?:vegan"
                    r"|vegetarian|pescatarian"
                    r"|flexitarian|lactose[- ]"
                    r"intolerant|gluten[- ](?:free|intolerant)|coeliac|celiac|teetotal)\b.*)$"
                ),
                lambda c, m: c.fact("diet", (DIETS.match(m["o"]) or m)[1]),
            ),
            (r"am (?:originally )?from (?P<o>.+)$", verbs.take("from")),
            (r"am together with (?P<o>[A-Z].+)$", verbs.together),
            (r"am (?:together )?(?:with|at) (?P<o>[A-Z].+)$", verbs.beside),
            (
                r"am (?:now )?(?:based|living|residing|settled) (?:in|at) (?P<o>.+)$",
                verbs.take("lives_in"),
            ),
            (r"am work(?:ing)? (?P<o>(?:at|for|as|with) .+)$", verbs.employed),
            (r"am employed (?P<o>(?:at|by|as) .+)$", verbs.employed),
            (r"am (?:getting )?(?P<how>married|engaged)(?: to (?P<o>.+))?$", verbs.married),
            (
                r"am (?:dating|seeing|going out with|in a relationship with) (?P<o>.+)$",
                verbs.seeing,
            ),
            (r"am (?P<how>single|divorced|widowed|separated)(?P<o>$^)?(?: again)?$", verbs.married),
            (r"am (?:learning|taking up) (?P<o>.+)$", verbs.each("learning")),
            (
                r"am (?:studying|majoring in|doing a degree in) (?P<o>.+?)(?: at (?P<p>.+))?$",
                lambda c, m: [
                    c.fact("studies", m["o"]),
                    c.fact("studies_at", m["p"]) if m["p"] else None,
                ],
            ),
            (r"am (?:afraid|scared|terrified|frightened) of (?P<o>.+)$", verbs.take("fears")),
            (
                (
                    r"am (?:really )?(?:a (?:big |huge |massive )?fan of|(?:really )?into"
                    r"|fond of|crazy about"
                    r"|obsessed with|keen on) (?P<o>.+)$"
                ),
                lambda c, m: (
                    c.fact("dislikes", m["o"], ends=False)
                    if c.negative and not c.ended
                    else verbs.ends_any(c, m["o"], ("likes", "hobby"), None)
                    if c.ended
                    else c.fact("likes", m["o"])
                ),
            ),
            (
                (
                    r"am (?:planning(?: on)?(?: to)?|going to|hoping to|looking to|about to"
                    r"|supposed to) (?P<o>(?!be\b)[a-z].+)$"
                ),
                verbs.plan,
            ),
            (
                (r"am moving to (?P<o>(?:the )?[A-Z].+)$"),
                verbs.moving,
            ),
            (
                (
                    r"am (?P<v>meeting|seeing|flying to|visiting|leaving for|starting|moving to"
                    r"|traveling to|travelling to|running|taking|attending) (?P<o>.+)$"
                ),
                verbs.appointment_with,
            ),
            (
                r"am (?:recovering from|suffering from|dealing with|diagnosed with) (?P<o>.+)$",
                verbs.take("health"),
            ),
            (
                (
                    r"am (?P<o>pregnant|diabetic|asthmatic|colou?r-?blind|left-handed|deaf"
                    r"|dyslexic)\b.*$"
                ),
                lambda c, m: c.fact("health", m["o"], text=f"{c.subject} is {m['o']}"),
            ),
            (r"am (?:called|named) (?P<o>.+)$", verbs.take("name")),
            (
                r"am (?:now )?(?P<o>retired|unemployed|self-employed|between jobs)\b",
                lambda c, m: c.fact("job", m["o"], text=f"{c.subject} is {m['o']}"),
            ),
            (r"am (?:a |an )?(?:proud )?member of (?P<o>.+)$", verbs.take("member_of")),
            (r"am (?:now )?(?:a|an|the) (?:new )?(?P<o>[\w' -]+.*)$", verbs.job),
            (r"am (?P<o>[A-Z][\w'-]+(?: [A-Z][\w'-]+)?)$", verbs.is_named),
            (
                (
                    r"am (?P<o>(?:training|working|writing|building|reading|preparing|saving"
                    r"|restoring|renovating|volunteering|volunteer|organi[sz]ing|raising"
                    r"|rehearsing|practi[sc]ing|knitting|growing) .+)$"
                ),
                verbs.doing,
            ),
        ),
        "was": (
            (r"was born (?P<o>.+)$", verbs.born),
            (r"was (?:just )?(?:diagnosed with) (?P<o>.+)$", verbs.take("health")),
            (
                r"was (?:laid off|fired|made redundant|let go)(?P<o>.*)$",
                lambda c, m: [verbs.gone(c, "works_at"), verbs.gone(c, "job")],
            ),
            (r"was (?:just )?promoted to (?P<o>.+)$", verbs.take("job")),
            (r"was (?:hired|offered a job) (?P<o>(?:at|by|as|with) .+)$", verbs.employed),
        ),
        "got": (
            (
                (
                    r"got (?:a |the )?(?:new )?(?:job|position|role|offer)(?: offer)? (?P<o>(?:at"
                    r"|as|with|for|from) .+)$"
                ),
                verbs.employed,
            ),
            (r"got promoted to (?P<o>.+)$", verbs.take("job")),
            (
                r"got (?:laid off|fired|made redundant)(?P<o>.*)$",
                lambda c, m: [verbs.gone(c, "works_at"), verbs.gone(c, "job")],
            ),
            (
                (
                    r"got (?P<how>married|engaged|divorced)(?: to (?P<o>.+?))?(?: (?:last|in|on"
                    r"|this|yesterday)\b.*)?$"
                ),
                verbs.married,
            ),
            (r"got rid of (?P<o>.+)$", verbs.lost),
            (r"got (?:diagnosed with) (?P<o>.+)$", verbs.take("health")),
            (r"(?P<v>got) (?P<o>.+)$", verbs.bought),
        ),
        "have": ((r"have (?:got )?(?P<o>.+)$", verbs.have),),
        "had": ((r"had to (?P<o>sell|give up|give away|put down) .+$", lambda c, m: None),),
        "live": ((r"live (?:alone |together )?(?:in|at|near) (?P<o>.+)$", verbs.lives),),
        "lived": ((r"lived (?:in|at) (?P<o>.+)$", verbs.was("lives_in")),),
        "moved": (
            (
                (
                    r"moved (?:(?:back|out|away|over|up|down) )?(?:here )?(?:from .+? )?(?:in)?to "
                    r"(?P<o>.+?)(?:"
                    r" from .+)?$"
                ),
                verbs.moved,
            ),
            (r"moved out of (?P<o>.+)$", verbs.ending("lives_in")),
            (rf"moved in (?:with|together with) (?P<w>.+?) in (?P<o>{PLACE})", verbs.moved),
        ),
        "relocated": ((r"relocated (?:from .+? )?to (?P<o>.+?)(?: from .+)?$", verbs.moved),),
        "settled": ((r"settled (?:down )?in (?P<o>.+)$", verbs.take("lives_in")),),
        "work": ((r"work (?P<o>.+)$", verbs.employed),),
        "worked": (
            (r"worked (?:at|for) (?P<o>.+)$", verbs.was("works_at")),
            (r"worked as (?P<o>.+)$", verbs.was("job")),
        ),
        "teach": (
            (
                r"teach (?P<o>.+)$",
                lambda c, m: c.fact(
                    "job",
                    "teacher of " + trim(m["o"]),
                    text=f"{c.subject} teaches {trim(m['o'])}",
                ),
            ),
        ),
        "joined": (
            (
                r"joined (?P<o>.+?)(?: as (?P<j>.+))?$",
                verbs.joined,
            ),
        ),
        "became": ((r"became (?:a|an|the) (?P<o>.+)$", verbs.job),),
        "switched changed": (
            (
                (
                    r"(?:switched|changed) (?:jobs|companies)(?: and)?(?:,)? ?(?:to|(?:now"
                    r" )?(?:work|working) (?:at|for)) (?P<o>.+)$"
                ),
                verbs.take("works_at"),
            ),
            (
                r"(?:switched|changed) (?:over )?(?:from (?P<a>.+?) )?to (?P<o>.+)$",
                lambda c, m: [
                    *(
                        [
                            c.fact(p, m["a"], ends=True)
                            for p in ("drinks", "likes", "learning", "hobby")
                        ]
                        if m["a"]
                        else []
                    ),
                    c.fact("drinks" if verbs.DRINK.match(m["o"]) else "prefers", m["o"]),
                ],
            ),
        ),
        "retired": (
            (
                r"retired\b(?P<o>.*)$",
                lambda c, m: [
                    verbs.gone(c, "works_at"),
                    c.fact("job", "retired", text=f"{c.subject} is retired"),
                ],
            ),
        ),
        "quit left resigned stopped gave": (
            (r"gave up (?:on )?(?P<o>.+)$", verbs.stopped),
            (r"gave away (?P<o>.+)$", verbs.lost),
            (
                r"resigned(?: from (?P<o>.+))?$",
                lambda c, m: [verbs.gone(c, "works_at"), verbs.gone(c, "job")],
            ),
            (r"stopped (?P<o>\w+ing\b.*)$", verbs.stopped),
            (r"(?P<v>quit|left) (?P<o>.+)$", verbs.left),
        ),
        "love like enjoy adore prefer": (
            (r"(?:prefer|like) to be called (?P<o>.+)$", verbs.take("address")),
            (r"(?P<v>love|like|enjoy|adore|prefer) (?P<o>.+)$", verbs.taste),
        ),
        "loved": ((r"have loved (?P<o>.+)$", verbs.take("likes")),),
        "hate dislike can detest": (
            (r"(?P<v>hate|dislike|detest|can stand) (?P<o>.+)$", verbs.hate),
            (r"can speak (?P<o>.+)$", verbs.each("speaks")),
            (r"can (?:eat|have|tolerate) (?P<o>.+)$", verbs.eat),
        ),
        "play collect": ((r"(?P<v>play|collect) (?P<o>.+)$", verbs.hobby),),
        "speak": (
            (
                r"speak (?:a bit of |a little |some |fluent |only )*(?P<o>[A-Z].+?)(?: fluently)?$",
                verbs.each("speaks"),
            ),
        ),
        "study": (
            (
                r"study (?P<o>.+?) at (?P<p>.+)$",
                lambda c, m: [c.fact("studies", m["o"]), c.fact("studies_at", m["p"])],
            ),
            (r"study at (?P<o>.+)$", verbs.take("studies_at")),
            (r"study (?P<o>.+)$", verbs.take("studies")),
        ),
        "studied": (
            (
                r"studied (?P<o>.+?) at (?P<p>.+)$",
                lambda c, m: [
                    c.fact(
                        "did",
                        f"studied {m['o']} at {m['p']}",
                        text=f"{c.subject} studied {m['o']} at {m['p']}",
                    )
                ],
            ),
        ),
        "own": ((r"own (?P<o>.+)$", verbs.take("owns")),),
        "drive": (
            (
                r"drive (?P<o>(?:a|an|my|the) .+?|[A-Z].+?)(?: (?:to|around|for) .+)?$",
                verbs.take("drives"),
            ),
        ),
        "bought adopted rescued purchased": (
            (r"(?P<v>bought|adopted|rescued|purchased) (?P<o>.+)$", verbs.bought),
        ),
        "sold lost": ((r"(?:sold|lost) (?P<o>(?:my|our|the) .+)$", verbs.lost),),
        "broke": (
            (r"broke up(?: with (?P<o>.+))?$", verbs.split_up),
            (r"(?P<v>broke) (?P<o>my .+)$", verbs.hurt),
        ),
        "split divorced separated": (
            (
                r"(?:split(?: up)?|divorced|separated)(?: (?:with|from))?(?: (?P<o>.+))?$",
                verbs.split_up,
            ),
        ),
        "are": ((r"are (?:split|broken) up$", verbs.split_up),),
        "sprained twisted injured tore hurt": (
            (r"(?P<v>sprained|twisted|injured|tore|hurt) (?P<o>my .+)$", verbs.hurt),
        ),
        "want plan hope intend": (
            (r"(?:want|plan|hope|intend)(?:ing)?(?: on)?(?: to)? (?P<o>.+)$", verbs.plan),
        ),
        "will": ((r"will (?P<o>.+)$", verbs.plan),),
        "think believe": ((r"(?:think|believe)(?: that)? (?P<o>.+)$", verbs.think),),
        "used": (
            (r"used to live in (?P<o>.+)$", verbs.was("lives_in")),
            (r"used to work (?:at|for) (?P<o>.+)$", verbs.was("works_at")),
            (r"used to work as (?P<o>.+)$", verbs.was("job")),
            (
                r"used to be (?:a|an|the) (?P<o>.+)$",
                lambda c, m: verbs.was("job")(c, m) if verbs.job(c, m) else None,
            ),
            (r"used to be (?P<o>vegan|vegetarian|pescatarian)", verbs.was("diet")),
            (r"used to (?:love|like|enjoy) (?P<o>.+)$", verbs.was("likes")),
            (r"used to (?:hate|dislike) (?P<o>.+)$", verbs.was("dislikes")),
            (r"used to (?:have|own) (?P<o>.+)$", verbs.was("owns")),
            (r"used to drive (?P<o>.+)$", verbs.was("drives")),
            (r"used to (?P<o>play .+|collect .+)$", verbs.was("hobby")),
            (r"used to drink (?P<o>.+)$", verbs.was("drinks")),
            (
                r"used to (?P<o>.+)$",
                lambda c, m: c.fact(
                    "did",
                    f"used to {m['o']}",
                    text=c.told("used to " + m["o"]),
                ),
            ),
        ),
        "start": (
            (
                (
                    r"start (?P<o>(?:(?:working|a new job|my new job|at|as|on|next|this"
                    r"|tomorrow)\b).+)$"
                ),
                verbs.began,
            ),
        ),
        "signed enrolled": (
            (
                r"(?:signed up for|enrolled in) (?P<o>.+)$",
                lambda c, m: c.fact(
                    "hobby",
                    m["o"],
                    text=c.told(),
                ),
            ),
        ),
        "swapped traded replaced": (
            (
                r"(?:swapped|traded|replaced)(?: in)? (?P<a>.+?) (?:for|with|by) (?P<o>.+)$",
                verbs.swapped,
            ),
        ),
        "handed put submitted": (
            (
                (
                    r"(?:handed in|put in|submitted) (?:my|their) (?:notice|resignation)\b"
                    r"(?: (?:at|to|with) (?P<p>[^,.;]+))?(?P<o>.*)$"
                ),
                lambda c, m: (
                    [c.fact("works_at", m["p"], ends=True, text=c.told())]
                    if m["p"]
                    else [verbs.gone(c, "works_at"), verbs.gone(c, "job")]
                ),
            ),
        ),
        "found rented": (
            (
                (
                    rf"(?:found|rented) (?:a|an|our|my) (?:[\w-]+ ){{0,3}}?(?:flat|house"
                    r"|apartment|place|home"
                    rf"|studio|room)(?: to rent)? in (?P<o>{PLACE})"
                ),
                lambda c, m: [
                    c.fact("lives_in", m["o"]),
                    c.fact(
                        "did",
                        c.rest,
                        text=c.told(),
                        keep_time=True,
                    ),
                ],
            ),
        ),
        "started began took picked": (
            (r"(?:started|began) (?P<o>.+)$", verbs.began),
            (
                r"(?:took|picked) up (?P<o>.+)$",
                lambda c, m: c.fact("hobby", m["o"], text=c.told()),
            ),
        ),
        "go": (
            (r"go by (?P<o>.+)$", verbs.take("address")),
            (
                (
                    r"(?P<v>go) (?P<o>.+\b(?:every|each|twice|once|on (?:mon|tues|wednes|thurs"
                    r"|fri|satur|sun)days|daily|weekly)\b.*)$"
                ),
                verbs.routine,
            ),
        ),
        "run swim wake do meditate walk cycle jog practice practise train": (
            (
                (
                    r"(?P<v>run|swim|wake|do|meditate|walk|cycle|jog|practi[cs]e|train)"
                    r" (?P<o>.+\b(?:every|each|twice|once|days|daily|weekly|at \d)\b.*"
                    r"|(?:every|each|twice|daily).*)$"
                ),
                verbs.routine,
            ),
        ),
        "eat": ((r"eat (?P<o>.+)$", verbs.eat),),
        "drink": ((r"drink (?P<o>.+)$", verbs.drink),),
        "avoid": ((r"avoid (?:eating )?(?P<o>.+)$", verbs.take("avoids")),),
        "volunteer": ((r"volunteer (?:at|for|with) (?P<o>.+)$", verbs.take("volunteers_at")),),
        "grew": ((r"grew up in (?P<o>.+)$", verbs.take("from")),),
        "come": ((r"come from (?P<o>[A-Z].+)$", verbs.take("from")),),
        "turned": ((r"turned (?P<o>\d{1,3})\b.*$", verbs.age),),
        "turn": ((r"turn (?P<o>\d{1,3})\b.*$", lambda c, m: None),),
        "cancelled canceled": (
            (
                rf"cancell?ed (?:my|the|our) (?P<what>{APPOINTMENTS})\b.*$",
                lambda c, m: c.fact(
                    appointment(m["what"]),
                    "cancelled",
                    ends=True,
                    text=f"{c.subject} cancelled the {m['what']}",
                ),
            ),
        ),
        "moving rescheduled booked scheduled": (
            (
                (
                    r"(?:rescheduled|booked|scheduled) (?:an? |my |the |our"
                    rf" )?(?P<what>{APPOINTMENTS})(?: with (?P<who>.+?))?(?: to| for| on)?"
                    r" (?P<o>.+)$"
                ),
                lambda c, m: booked(c, m["what"], m["who"], m["o"]),
            ),
        ),
        "dated": (),
    }
)

"""What a model is told when it keeps a memory, each with an example of what to answer."""

from __future__ import annotations

import json

from loci.text.quote import AS_DATA, block

DRAW = (
    "You keep the memory of an assistant. Draw lasting facts about the people who speak from the "
    "numbered messages. Write each as a short sentence in the third person that stands alone, "
    "name the messages it comes from by their numbers, and use only words the messages support. "
    "Resolve words such as yesterday with the date of the message. Set ends to true when "
    'something is said to be over. Answer with JSON: {"facts": [{"text": "...", "sources": '
    '[1]}]}. When there is nothing to remember, answer {"facts": []}. ' + AS_DATA
)
DECIDE = (
    "You keep the memory of an assistant. For every numbered fact choose one operation. ADD: "
    "nothing in the memories says it. UPDATE: it tells more than a memory about the same thing, or "
    "a newer state of it. DELETE: it contradicts a memory, or says that it is over. NOOP: a memory "
    "says it already. For UPDATE, DELETE and NOOP give the number of that memory, else null. "
    'Answer with JSON: {"1": {"operation": "ADD", "memory": null}}. ' + AS_DATA
)
_MESSAGES = block(
    "messages",
    [
        {
            "number": 1,
            "date": "2025-09-03",
            "who": "Mia",
            "text": "Hi! Guess what, I moved to Oslo. How are you?",
        },
        {
            "number": 2,
            "date": "2025-09-03",
            "who": "Tom",
            "text": "Fine! I stopped eating meat last week.",
        },
    ],
)
_FACTS = [
    {
        "text": "Mia lives in Oslo",
        "sources": [1],
        "subject": "Mia",
        "predicate": "lives_in",
        "object": "Oslo",
        "ends": False,
    },
    {
        "text": "Tom no longer eats meat",
        "sources": [2],
        "subject": "Tom",
        "predicate": "likes",
        "object": "meat",
        "ends": True,
    },
]
DRAWN = (_MESSAGES, json.dumps({"facts": _FACTS}))
_PLAIN = [{key: fact[key] for key in ("text", "sources")} for fact in _FACTS]
DRAWN_PLAIN = (_MESSAGES, json.dumps({"facts": _PLAIN}))
DECIDED = (
    "\n".join(
        (
            block(
                "memories",
                [
                    {"number": 1, "text": "Mia lives in Bergen", "since": "2024-01-10"},
                    {"number": 2, "text": "Tom likes meat", "since": "2024-02-01"},
                    {"number": 3, "text": "Mia has a sister", "since": "2024-02-01"},
                ],
            ),
            block(
                "facts",
                [
                    {"number": 1, "text": "Mia lives in Oslo", "since": "2025-09-03"},
                    {"number": 2, "text": "Tom no longer eats meat", "since": "2025-09-03"},
                    {"number": 3, "text": "Mia has a sister", "since": "2025-09-03"},
                    {"number": 4, "text": "Mia plays chess", "since": "2025-09-03"},
                ],
            ),
        )
    ),
    json.dumps(
        {
            "1": {"operation": "UPDATE", "memory": 1},
            "2": {"operation": "DELETE", "memory": 2},
            "3": {"operation": "NOOP", "memory": 3},
            "4": {"operation": "ADD", "memory": None},
        }
    ),
)

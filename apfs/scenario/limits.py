"""Limits of size and depth of scenarios, so that no file takes more than seconds and some memory to read.

The time of the standard library's parser grows with the square of the number of parts of a key, and it recurses into
arrays and inline tables. So the text is checked first, in one pass.
"""

from __future__ import annotations

import re

MOST = 1 << 20
"""Characters of a scenario. The recording of a large machine, 16 cards with 85 domains that all differ, has a third."""
MOST_WITH_LINES = 1 << 17
"""Characters of a scenario in which the line of a mistake is looked for: that takes a tenth of a second for so many."""
DEEPEST = 16
"""How many arrays and tables may be in each other, and how many parts a key may have."""
MOST_ITEMS = 256
"""Items of an array of numbers: there are no more numbers."""
MOST_QUEUES = 2 * 65_536
"""Queues that all tables `[[queue]]` may describe together."""
MOST_MDEVS = 1024
"""Mediated devices: each is compared with all that are there when it gets its queues."""
_SHOWN = 400
"""Characters of a message."""

TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*"
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<dot>\.)|(?P<end>[=,\n])",
    re.DOTALL,
)
"""What matters for the structure of a text.

Strings and comments hide what would count otherwise; a string of several lines may have two quotes at its end. What is
not closed goes on to the end, or that of the line.
"""


def too_deep(text: str) -> int | None:
    """Return the line on which a text has more arrays, tables or parts of a key in each other than may be."""
    depth = parts = 0
    for token in TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth, parts = max(0, depth - 1), 0
        elif kind == "dot":
            parts += 1
        elif kind == "end":
            parts = 0
        if depth > DEEPEST or parts > DEEPEST:
            return text.count("\n", 0, token.start()) + 1
    return None


def shortened(reason: str) -> str:
    """Return a message that is short enough for a terminal."""
    return reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]} ..."

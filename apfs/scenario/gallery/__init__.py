"""The scenarios that come with apfs. This module says what they are for, without imports that take long.

It is for the Tab key; `apfs.scenario.reader` reads them.
"""

from __future__ import annotations

import os

DIRECTORY = os.path.dirname(__file__)  # noqa: PTH120 -- without pathlib
_KEY = 'description = "'


def descriptions() -> dict[str, str]:
    """Return the descriptions by name: here, each is a line of its own and has no escapes."""
    found = {}
    for file in sorted(os.listdir(DIRECTORY)):  # noqa: PTH208 -- without pathlib
        name, dot, _ = file.partition(".toml")
        if dot:
            with open(f"{DIRECTORY}/{file}", encoding="utf-8") as text:  # noqa: PTH123 -- without pathlib
                line = next(line for line in text if line.startswith(_KEY))
            found[name] = line.removeprefix(_KEY).removesuffix('"\n')
    return found

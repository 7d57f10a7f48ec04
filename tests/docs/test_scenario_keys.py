"""The tables of docs/scenarios.md have the keys that scenarios have, with their defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.ap.mask import ALL, NONE
from apfs.kernel.profile import DEFAULT
from apfs.scenario.keys import BUS, CARD, MASKS, MDEV, QCI, QUEUE, TOP
from apfs.scenario.values import FIRMWARE

if TYPE_CHECKING:
    from apfs.scenario.keys import Key, Keys

PAGE = Path(__file__).parents[2] / "docs/scenarios.md"
SECTIONS = {
    "Top level": TOP,
    "[qci]": QCI,
    "[[card]]": CARD,
    "[[queue]]": QUEUE,
    "[bus]": BUS,
    "[masks]": MASKS,
    "[[mdev]]": MDEV,
}


def rows(section: str) -> dict[str, str]:
    """Return the defaults that the page tells, by key."""
    text = PAGE.read_text("utf-8")
    (table,) = re.findall(rf"^## {re.escape(section)}[^\n]*\n\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for line in table.splitlines()[2:]:
        names, _, default, _ = (cell.strip() for cell in line.strip("|").split(" | "))
        found |= dict.fromkeys(re.findall("`([a-z_]+)`", names), default)
    return found


TOLD: dict[object, str] = {
    "": "empty",
    NONE: "none",
    ALL: "all ones",
    True: "`true`",
    False: "`false`",
    DEFAULT: '`"7.2"`',
}


def told(key: Key) -> str:
    """Return how the page tells a default."""
    if key.default in TOLD:
        return TOLD[key.default]
    if key.kind == FIRMWARE:
        return f'`"{FIRMWARE.spell(key.default)}"`'
    if isinstance(key.default, tuple):
        return f"`{' '.join(key.default)}`"
    return f'`"{key.default}"`' if isinstance(key.default, str) else str(key.default)


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_are_documented(section: str) -> None:
    keys: Keys = SECTIONS[section]
    assert set(rows(section)) == {key.name for key in keys}
    assert {key.name: rows(section)[key.name] for key in keys if key.default is not None} == {
        key.name: told(key) for key in keys if key.default is not None
    }

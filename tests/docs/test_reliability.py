"""The tests that docs/reliability.md and SECURITY.md name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/reliability.md", "SECURITY.md")


def promises() -> list[list[str]]:
    """Return the rows of the table of promises."""
    text = (ROOT / PAGES[0]).read_text().partition("## Promises")[2].partition("\n## ")[0]
    return [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str) -> None:
    named = re.findall(r"`(tests/[\w./]+)`", (ROOT / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_promise_names_a_test() -> None:
    assert len(promises()) > 10
    assert [promise for promise, holders in promises() if "`tests/" not in holders] == []

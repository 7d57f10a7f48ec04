"""Journals in files, as `apfs journal --json` prints them."""

from __future__ import annotations

import contextlib
from shlex import quote
from typing import TYPE_CHECKING

import click

from apfs.cli.streams import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST = 300


@contextlib.contextmanager
def opened(place: str) -> Iterator[str]:
    """Give the text of a file, or of standard input for `-`. A `ValueError` about it, within, ends the command."""
    try:
        with click.open_file(place, encoding="utf-8") as file:
            text = file.read()
        yield text
    except OSError as error:
        _refuse_mount(place)
        fail(f"{place}: {error.strerror}", 2)
    except ValueError as error:
        why = "not a text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        why = f"{why[:_LONGEST]}..." if len(why) > _LONGEST else why  # a line can be long
        fail(f"{place}: {why}: use the output of `apfs journal --json`", 2)


def _refuse_mount(place: str) -> None:
    """End with advice if there is a mounted host at a place."""
    from apfs.mounts import table

    with contextlib.suppress(table.MountsError):
        if table.is_apfs(place):
            fail(f"{place} is a mount, not a file: `apfs journal --json {quote(place)}` prints its journal", 2)

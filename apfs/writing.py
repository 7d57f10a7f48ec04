"""Files written by commands: a page, a scenario, a journal."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file that has all of a text, or is as it was before: after an `OSError` nothing half-written stays.

    The text is written beside it first, so that the directory has to be writable. An existing file keeps its mode. What
    is not a regular file, such as a pipe, is written to directly.
    """
    try:
        place = file.resolve()
    except RuntimeError:  # from Python 3.13 on, writing fails instead
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    if place.exists() and not place.is_file():
        place.write_text(text, "utf-8")
        return
    with _beside(place, text) as fresh:
        if place.exists():
            fresh.chmod(place.stat().st_mode & 0o7777)
        fresh.replace(place)


def write_new(file: Path, text: str) -> None:
    """Write a file that has all of a text, where there is nothing of that name, not even a link that leads nowhere.

    `FileExistsError` if there is: of several who do this at the same instant one succeeds. After another `OSError`
    nothing half-written stays.
    """
    with _beside(file, text) as fresh:
        try:
            file.hardlink_to(fresh)
        except FileExistsError:
            raise
        except OSError:  # a file system without links, such as FAT: for an instant the file is empty
            file.touch(exist_ok=False)
            fresh.replace(file)


@contextlib.contextmanager
def _beside(place: Path, text: str) -> Iterator[Path]:
    """Give a file with a text in the directory of a place, for the length of a with statement."""
    fresh = place.with_name(f".apfs-{secrets.token_hex(8)}")  # nobody can have it waiting
    try:
        with fresh.open("x", encoding="utf-8") as output:
            output.write(text)
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)

"""Files that commands write for people and programs: a page, a scenario, a journal."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file that has all of a text, or is as it was before: after an `OSError` nothing half-written stays.

    The text is written beside it first, so that the directory has to be writable. An existing file keeps its mode. What
    is not a regular file, such as a pipe, is written to directly.
    """
    place = file.resolve()
    if place.exists() and not place.is_file():
        place.write_text(text, "utf-8")
        return
    fresh = place.with_name(f".apfs-{secrets.token_hex(8)}")  # nobody can have it waiting
    try:
        with fresh.open("x", encoding="utf-8") as output:
            output.write(text)
        if place.exists():
            fresh.chmod(place.stat().st_mode & 0o7777)
        fresh.replace(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise

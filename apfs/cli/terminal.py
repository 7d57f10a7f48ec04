"""Properties of a command's output: colours, width of lines, available characters."""

from __future__ import annotations

import locale
import os
import shutil
from typing import TextIO

from rich.console import Console

_NARROWEST, _UNLIMITED = 72, 1_000_000


def console(file: TextIO) -> Console:
    """Return a console on a file: on a terminal with colours and folded to its width, else plain and never cut.

    A terminal with less than 72 columns has to fold for itself: narrower tables would lose text. A NO_COLOR that is not
    empty, or `TERM=dumb`, means no escape sequences at all.
    """
    return Console(
        file=file,
        width=width() if file.isatty() else _UNLIMITED,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        highlight=False,
        emoji=False,
    )


def width() -> int:
    """Return how wide a line may be on a terminal, which somebody may resize."""
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def without_padding(text: str) -> str:
    """Return lines without the blanks with which those of a table are padded."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def has(characters: str, file: TextIO) -> bool:
    """Whether both a file and the locale, which says what the terminal can show, have these characters."""
    try:
        for encoding in (file.encoding, locale.getencoding()):
            characters.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True

"""Debug areas, `/sys/kernel/debug/s390dbf/NAME` (arch/s390/kernel/debug.c)."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from apfs.errors import KernelError
from apfs.sysfs.entries import Attribute

OFF, _HIGHEST = -1, 6
_NUMBER = re.compile(r"\s*([0-9]+)", re.ASCII)


@dataclass(slots=True)
class DebugArea:
    """The debug area of a driver, without a record: drivers record there what does not happen on an emulated host."""

    level: int
    """Records above it are dropped; `OFF` drops all."""
    pages: int = 1


def _number(text: str) -> int:
    found = _NUMBER.match(text)
    if not found:
        raise KernelError(errno.EINVAL, f"not a number: {text[:40]!r}")
    return int(found[1])


def level_show(area: DebugArea) -> str:
    """Level above which records are dropped; `-` if all are."""
    return "-\n" if area.level == OFF else f"{area.level}\n"


def level_store(area: DebugArea, text: str) -> None:
    """Change the level; `-` turns recording off. EINVAL for what is no number; one above 6 changes nothing."""
    level = OFF if text.startswith("-") else _number(text)
    if level <= _HIGHEST:
        area.level = level


def pages_show(area: DebugArea) -> str:
    """Pages of memory for records."""
    return f"{area.pages}\n"


def pages_store(area: DebugArea, text: str) -> None:
    """Change how many pages there are, which loses all records. EINVAL for what is no number."""
    area.pages = _number(text)


def flush_store(_area: DebugArea, _text: str) -> None:
    """Discard all records, whatever is written."""


DEBUG_ATTRIBUTES = (
    Attribute("flush", 0o200, None, flush_store),
    Attribute("level", 0o600, level_show, level_store),
    Attribute("pages", 0o600, pages_show, pages_store),
    Attribute("sprintf", 0o400, lambda _area: ""),
)

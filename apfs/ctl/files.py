"""The list of files in `/ctl`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from apfs.ctl.channel import Channel
from apfs.ctl.console import ConsoleFile
from apfs.ctl.header import head
from apfs.ctl.status import status
from apfs.ctl.views import JournalFile, UeventsFile, journal, kmsg
from apfs.sysfs.entries import Special
from apfs.sysfs.openfile import TextFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.journal.records import Record


def _view(name: str, render: Callable[[Journal, list[tuple[int, Record]]], str]) -> Special:
    return Special(name, 0o444, lambda system, _read, _write: JournalFile(system.journal, f"/ctl/{name}", render))


CTL_ENTRIES = (
    Special("console", 0o200, lambda system, _read, _write: ConsoleFile(system)),
    _view("kmsg", kmsg),
    Special("uevents", 0o644, lambda system, _read, _write: UeventsFile(system.journal, "/ctl/uevents")),
    Special(
        "header", 0o444, lambda system, _read, _write: TextFile(system.journal, "/ctl/header", partial(head, system))
    ),
    _view("journal", journal),
    Special("ioctl", 0o600, lambda system, _read, _write: Channel(system.journal, system.handed)),
    Special(
        "status", 0o444, lambda system, _read, _write: TextFile(system.journal, "/ctl/status", partial(status, system))
    ),
)

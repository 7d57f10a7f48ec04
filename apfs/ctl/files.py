"""The files of `/ctl`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ctl.channel import Channel
from apfs.ctl.console import ConsoleFile
from apfs.ctl.status import status
from apfs.ctl.views import JournalFile, journal, kmsg, uevents
from apfs.sysfs.entries import Special
from apfs.sysfs.openfile import TextFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.journal.records import Record
    from apfs.system import System


def _view(render: Callable[[Journal, list[tuple[int, Record]]], str]) -> Callable[[System, bool, bool], JournalFile]:
    return lambda system, _read, _write: JournalFile(system.journal, render)


CTL_ENTRIES = (
    Special("console", 0o200, lambda system, _read, _write: ConsoleFile(system)),
    Special("kmsg", 0o444, _view(kmsg)),
    Special("uevents", 0o444, _view(uevents)),
    Special("journal", 0o444, _view(journal)),
    Special("ioctl", 0o600, lambda system, _read, _write: Channel(system.handed)),
    Special("status", 0o444, lambda system, _read, _write: TextFile(lambda: status(system))),
)

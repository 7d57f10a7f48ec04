"""`ctl/kmsg`, `ctl/uevents` and `ctl/journal`: the journal as growing files."""

from __future__ import annotations

import errno
import re
import select
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.journal.records import LogLine, Uevent
from apfs.journal.text import to_line, to_wire
from apfs.sysfs.openfile import SpecialFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.journal.records import Record

_RECORDS = 500
"""Records that are turned into text at a time; they take some milliseconds."""


class JournalFile(SpecialFile):
    """An open view of the journal: grows while it is open, and poll says when there is more to read."""

    def __init__(self, source: Journal, path: str, render: Callable[[Journal, list[tuple[int, Record]]], str]) -> None:
        super().__init__(source, path)
        self._render = render
        self._restart()

    def _restart(self) -> None:
        self._text = b""
        """The piece of the text that was made last."""
        self._start = 0
        """The offset of that piece in the whole text."""
        self._seen = 0
        """The last record in it."""
        self._end = 0
        """Offset behind what was read last."""

    def on_read(self, offset: int, size: int) -> bytes:
        """Return a part of the text. Reading at offset 0, or before the last piece, makes all of it again."""
        if offset == 0 or offset < self._start:
            self._restart()
        self._make(offset, offset + size)
        piece = self._text[offset - self._start :][:size]
        self._end = self._start + len(piece)
        return piece

    def _make(self, start: int, end: int) -> None:
        """Have the text between two offsets and no more: having all of it would keep others waiting for seconds."""
        self._drop(start)
        while self._start + len(self._text) < end and self._seen < self._journal.last:
            records = self._journal.since(self._seen, _RECORDS)
            self._text += self._render(self._journal, records).encode("latin-1")
            self._seen = records[-1][0]
            self._drop(start)

    def _drop(self, offset: int) -> None:
        """Drop the text before an offset, if there is any."""
        count = min(offset - self._start, len(self._text))
        self._text = self._text[count:]
        self._start += count

    def poll(self) -> int:
        """Report whether there is more than what was read, and POLLHUP when there will be nothing more."""
        more = self._journal.last > self._seen or self._start + len(self._text) > self._end
        ended = select.POLLHUP if self._journal.ended else 0
        return (select.POLLIN | select.POLLRDNORM if more else 0) | ended


class UeventsFile(JournalFile):
    """An open `ctl/uevents`. By writing a SEQNUM, its reader tells that it has delivered the events up to that one."""

    def __init__(self, source: Journal, path: str) -> None:
        super().__init__(source, path, uevents)
        self.delivered = 0
        """SEQNUM of the last event that was delivered."""
        self.told: Callable[[], None] = lambda: None
        """Called when the reader has told it."""

    @property
    def sent(self) -> int:
        """Return the SEQNUM of the last event that there is."""
        return self._journal.uevents_sent

    def on_write(self, data: bytes) -> int:
        """Take a SEQNUM as a decimal number. EINVAL for anything else, and for an event that has not been sent."""
        text = data.decode("latin-1").removesuffix("\n")
        if not re.fullmatch("[0-9]{1,19}", text) or int(text) > self.sent:
            raise KernelError(errno.EINVAL, f"not the SEQNUM of an event so far: write a number from 0 to {self.sent}")
        self.delivered = int(text)
        self.told()
        return len(data)


def kmsg(_journal: Journal, records: list[tuple[int, Record]]) -> str:
    """Return the kernel log, one line per line."""
    return "".join(f"{record.text}\n" for _, record in records if isinstance(record, LogLine))


def uevents(journal: Journal, records: list[tuple[int, Record]]) -> str:
    """Return the events, each in the form and with the number in which the kernel sends it."""
    events = ((journal.uevents_until(number), record) for number, record in records if isinstance(record, Uevent))
    return "".join(to_wire(sequence, event) for sequence, event in events)


def journal(_journal: Journal, records: list[tuple[int, Record]]) -> str:
    """Return everything that happened, one JSON object per line."""
    return "".join(f"{to_line(sequence, record)}\n" for sequence, record in records)

"""Reading a stream by pages, as the kernel does for splice(2) and sendfile(2).

read(2) of a file with direct I/O asks for what a program wants, where it wants it. For splice the kernel (since Linux
6.5, filemap_splice_read) fills its page cache instead: it asks for whole pages, up to the size that stat tells, in
their order. A program may do both with one descriptor. So an open stream remembers what it gave, and gives it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.sysfs.openfile import Relay

if TYPE_CHECKING:
    from apfs.journal.log import Journal
    from apfs.sysfs.openfile import SpecialFile


class PagedStream(Relay):
    """One open(2) of a stream, whose offsets are counted from what was next when it was opened."""

    seekable = False

    def __init__(self, journal: Journal, file: SpecialFile) -> None:
        super().__init__(journal, file)
        self._given = bytearray()

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes that were given before, and then the next ones."""
        end = offset + size
        if end > len(self._given):
            self._given += self.file.read(len(self._given), end - len(self._given))
        return bytes(self._given[offset:end])

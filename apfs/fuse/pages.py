"""Reading a stream by pages, as the kernel does for splice(2) and sendfile(2).

read(2) of a file with direct I/O requests exactly the range that the program wants. For splice, the kernel (since Linux
6.5, filemap_splice_read) fills its page cache instead: it requests whole pages in order, up to the size from stat. A
program can do both with one descriptor. So an open stream keeps what it has returned, and can return it again.
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

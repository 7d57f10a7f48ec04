"""Open files with their own behaviour: all files except attributes.

An open file has the position and the buffers of one open(2); nodes have no state.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, ClassVar

from apfs.errors import KernelError
from apfs.journal.records import Close, Open, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.journal.records import Details, Operation

PAGE_SIZE = 4096
READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


def record_refusal(
    journal: Journal,
    operation: Operation,
    path: str,
    data: str,
    error: KernelError,
    details: Details | None = None,
) -> None:
    """Put a refused request into the journal; `details` are what else it consists of."""
    refusal = Refusal(operation, path, data, error.name, error.why, input=details)
    journal.add(refusal, len(details.get("content", "")) if details else 0)


class SpecialFile:
    """Base of all open files that are not attributes: records each refused read and write, once.

    Subclasses implement `on_read` and `on_write`, both of which may raise `KernelError`, and override `poll` and
    `close` if there is something to wait for or to release.
    """

    seekable: bool = True
    """Whether lseek and pread are possible; if not, offsets are ignored."""

    is_stream: ClassVar[bool] = False
    """Whether it gives something that is longer than one read and cannot be had twice."""

    watches: ClassVar[bool] = False
    """Whether `watch` is called with the other files that are polled by the process that opened this one."""

    tracked: ClassVar[bool] = False
    """Whether opening and closing it changes something, so that the journal tells of both."""

    writing: ClassVar[Operation] = "write"
    """What the journal calls a refused write."""

    def __init__(self, journal: Journal, path: str) -> None:
        self._journal = journal
        self.path = path
        """Where it is, or whatever else identifies it for people."""
        self._number = 0

    def number(self) -> int:
        """Return the number by which the journal names it."""
        if not self._number:
            self._number = self._journal.new_file()
        return self._number

    def record_open(self, journal: Journal, path: str, access: str) -> None:
        """Put into the journal that it was opened, by its name in the tree, for reading (`r`) and writing (`w`)."""
        journal.add(Open(path, access, self.number()))

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return up to `size` bytes, none at the end."""
        try:
            return self.on_read(offset, size)
        except KernelError as error:
            details: Details | None = {"file": self._number, "size": size} if self._number else None
            record_refusal(self._journal, "read", self.path, "", error, details)
            raise

    def write(self, data: bytes) -> int:
        """Take bytes and return how many were taken. Offsets of writes do not matter."""
        try:
            return self.on_write(data)
        except KernelError as error:
            details: Details = {"file": self._number} if self._number else {}
            shown = self._shown(data)
            if shown.encode("latin-1") != data:
                details["content"] = data.hex()
            record_refusal(self._journal, self.writing, self.path, shown, error, details or None)
            raise

    def sync(self) -> None:
        """Answer fsync(2)."""
        try:
            self.on_sync()
        except KernelError as error:
            details: Details | None = {"file": self._number} if self._number else None
            record_refusal(self._journal, "fsync", self.path, "", error, details)
            raise

    def poll(self) -> int:
        """Return the poll events that are ready: all of them, as for a file without a poll operation."""
        return READY

    def close(self) -> None:
        """Close it once."""
        self.on_close()
        if self._number:
            self._journal.add(Close(self.path, self._number))

    def on_close(self) -> None:
        """Release what belongs to this open file."""

    def watch(self, file: object) -> None:
        """Take note of another file that is polled by the process that opened this one."""

    def on_sync(self) -> None:
        """Do nothing, unless overridden: there is nothing to flush."""

    def on_read(self, offset: int, size: int) -> bytes | memoryview:
        del offset, size
        raise KernelError(errno.EBADF, f"{self.path} cannot be read")

    def on_write(self, data: bytes) -> int:
        del data
        raise KernelError(errno.EBADF, f"{self.path} cannot be written")

    def _shown(self, data: bytes) -> str:
        """Return what the journal shows of a refused write: at most a page of text, as for attributes."""
        return data[:PAGE_SIZE].decode("latin-1")


class Relay(SpecialFile):
    """An open file in front of another one, which answers, and puts what it refuses into the journal."""

    def __init__(self, journal: Journal, file: SpecialFile) -> None:
        super().__init__(journal, file.path)
        self.file = file

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Read from the file."""
        return self.file.read(offset, size)

    def write(self, data: bytes) -> int:
        """Write to the file."""
        return self.file.write(data)

    def sync(self) -> None:
        """Answer fsync as the file does."""
        self.file.sync()

    def poll(self) -> int:
        """Poll the file."""
        return self.file.poll()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TextFile(SpecialFile):
    """A read-only text without the limits of sysfs, made by the first read and by every read at offset 0."""

    def __init__(self, journal: Journal, path: str, make: Callable[[], str]) -> None:
        super().__init__(journal, path)
        self._make = make
        self._text: bytes | None = None

    def on_read(self, offset: int, size: int) -> bytes:
        if self._text is None or offset == 0:
            self._text = self._make().encode()
        return self._text[offset : offset + size]

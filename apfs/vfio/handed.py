"""Files that an ioctl made, on their way to the process that asked for them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.sysfs.openfile import SpecialFile

if TYPE_CHECKING:
    from apfs.journal.log import Journal
    from apfs.sysfs.members import Registry
    from apfs.vfio.request import NewFile


class HandedFile(SpecialFile):
    """An open file on its way to a process: it can be opened once, and its name in `/ctl/fds` goes when it is closed.

    Until then it is in the list of its channel, which closes the files that were never opened. All accesses go to the
    file inside, which also puts the refused ones into the journal.
    """

    def __init__(self, new: NewFile, journal: Journal, registry: Registry[HandedFile]) -> None:
        super().__init__(journal, new.file.path)
        self._registry = registry
        self.file = new.file
        self.seekable = new.file.seekable
        self.access = "r" * new.readable + "w" * new.writable
        self.at = new.at
        self.name = registry.unique(new.name)
        registry.add(self.name, self)
        self._taken = False

    def take(self) -> HandedFile:
        """Open it; ENXIO the second time, as opening /proc/self/fd/N of an anonymous file does."""
        if self._taken:
            raise KernelError(errno.ENXIO, "belongs to the process that got it")
        self._taken = True
        return self

    def abandon(self) -> None:
        """Close it if nobody has opened it."""
        if not self._taken:
            self.close()

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
        self._registry.discard(self.name)
        self.file.close()

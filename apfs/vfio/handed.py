"""Files created by an ioctl, on their way to the calling process."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.journal.records import Close
from apfs.sysfs.openfile import Relay

if TYPE_CHECKING:
    from apfs.journal.log import Journal
    from apfs.sysfs.members import Registry
    from apfs.vfio.request import NewFile


class HandedFile(Relay):
    """An open file on its way to a process: it can be opened once, and its name in `/ctl/fds` goes when it is closed.

    Until then it is in the list of its channel, which closes the files that were never opened.
    """

    tracked = True

    def __init__(self, new: NewFile, journal: Journal, registry: Registry[HandedFile]) -> None:
        super().__init__(journal, new.file)
        self._registry = registry
        self.seekable = new.file.seekable
        self.access = "r" * new.readable + "w" * new.writable
        self.at = new.at
        self.name = registry.unique(new.name)
        registry.add(self.name, self)
        self._taken = False

    def number(self) -> int:
        """Return the number by which the journal names the file."""
        return self.file.number()

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

    def close(self) -> None:
        """Close the file; its name goes."""
        self._registry.discard(self.name)
        self.file.on_close()
        self._journal.add(Close(f"/ctl/fds/{self.name}", self.number()))

"""What the kernel may remember of names and attributes, and for how long.

A name that the kernel remembers costs no request, and one that it remembers wrongly is a defect. Names come and go by
stores (a mask, `create`, a bind), so that something must tell the kernel before the store returns. Invalidating single
names from a handler can deadlock: the kernel wants the directory's lock, which a process may hold that waits for this
very server. Linux 6.16 has a notification that takes no lock, FUSE_NOTIFY_INC_EPOCH: all names that were looked up
before are looked up again when they are next used. libfuse does not know it yet, so it is written by hand. With older
kernels only names are remembered that are always there.

Link counts of directories, which change when subdirectories come and go, are invalidated one by one. That takes no lock
either, as it concerns attributes only. So are all attributes of directories that may go away: who has one open, as his
working directory or bound to another place, needs no name to get there. And so are those that somebody changed: a file
that is made again, after a rebind, has its first ones.

What a listing brings along is another matter. The kernel enters those names when the listing arrives, not when it was
made: a store in between would be forgotten. So it may remember of them only those that last as long as their directory.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3

if TYPE_CHECKING:
    from apfs.sysfs.entries import Description

FOREVER = 3600.0
_INC_EPOCH = struct.pack("=IiQ", 16, 8, 0)
"""struct fuse_out_header: length, the code of the notification, and 0 for no request."""


class KernelCache:
    """The kernel's memory of one mount."""

    def __init__(self) -> None:
        self._device: int | None = None
        self._told: set[pyfuse3.InodeT] = set()
        self.epochs = 0
        """How often all names were declared old."""

    def connect(self) -> None:
        """Find the mount's device, after `pyfuse3.init`, and out whether the kernel knows epochs."""
        for entry in Path("/proc/self/fd").iterdir():
            if entry.is_symlink() and str(entry.readlink()) == "/dev/fuse":
                self._device = int(entry.name)
        try:
            self._new_epoch()
        except OSError:
            self._device = None

    def _new_epoch(self) -> None:
        if self._device is not None:
            os.write(self._device, _INC_EPOCH)
            self.epochs += 1

    def remembers(self, found: Description) -> bool:
        """Whether the name of a node may be remembered; of a directory, also the names in it that last."""
        return self._device is not None or found.permanent

    def remember_attributes(self, inode: pyfuse3.InodeT) -> None:
        """Take note that the kernel is told attributes that may become wrong."""
        self._told.add(inode)

    def changed(self) -> None:
        """Tell the kernel, before it gets any other answer, that names or link counts may have changed."""
        for inode in self._told:
            with contextlib.suppress(OSError):  # the kernel may have forgotten it by itself
                pyfuse3.invalidate_inode(inode, attr_only=True)
        self._told.clear()
        self._new_epoch()

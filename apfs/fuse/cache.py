"""What the kernel may cache of names and attributes, and for how long.

A cached name saves a request; a stale one is a bug. Names come and go with stores (a mask, `create`, a bind), so the
kernel must be notified before the store returns. Invalidating single names from a handler can deadlock: the kernel
needs the lock of the directory, which may be held by a process that waits for this very server. Linux 6.16 has a
notification that takes no lock, FUSE_NOTIFY_INC_EPOCH: all names that were looked up before are looked up again at
their next use. libfuse does not have it yet, so it is written by hand. On older kernels, only names that always exist
are cached.

Attributes that vary (`apfs.sysfs`) are invalidated one by one, which takes no lock either. These include the attributes
of directories that can go away, because a process can reach such a directory without a name: as its working directory,
through a descriptor, or through a bind mount.

The kernel discards attributes in transit when an invalidation overtakes them (attr_version of fs/fuse), but only for
inodes that it knows. It knows an inode from the answer to the first lookup only after the client has been scheduled.
Inodes that it did not know are invalidated again at the next change. Until then, such a client may see an old link
count with fstat(2). To prevent that, the answer to a first lookup would have to be uncached, which costs one more
GETATTR for each directory.

Listings are different. The kernel caches their names when the listing arrives, not when it was made, so it would miss a
store in between. So only lasting names may be cached.
"""

from __future__ import annotations

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
        self._late: set[pyfuse3.InodeT] = set()
        """Those that it did not know when they should have been invalidated: by now it may."""
        self.epochs = 0
        """How many times all names were declared out of date."""

    def connect(self) -> None:
        """Find the device of the mount, after `pyfuse3.init`, and find out whether the kernel knows epochs."""
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
        """Whether the name of a node may be remembered; for a directory, also the lasting names in it."""
        return self._device is not None or found.permanent

    def remember_attributes(self, inode: pyfuse3.InodeT) -> None:
        """Note that the kernel is given attributes that can become wrong."""
        self._told.add(inode)

    def changed(self) -> None:
        """Tell the kernel, before it gets any other answer, that names and attributes may have changed."""
        for inode in self._late:
            _invalidate(inode)
        self._late = {inode for inode in self._told if not _invalidate(inode)}
        self._told.clear()
        self._new_epoch()


def _invalidate(inode: pyfuse3.InodeT) -> bool:
    """Invalidate the attributes of an inode; return whether the kernel knows it."""
    try:
        pyfuse3.invalidate_inode(inode, attr_only=True)
    except OSError:
        return False
    return True

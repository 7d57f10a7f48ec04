"""The least that pyfuse3 handlers can do, in the request loop of apfs: the floor of any server made with them.

usage: minimal.py [--ticker] MOUNTPOINT

It has the few files that the benchmark opens, with texts that never change. With --ticker, another task wakes up every
millisecond, and `late` tells how many seconds late it was since `late` was read before: 99 of 100 times at most.
"""

from __future__ import annotations

import errno
import stat
import sys
from typing import TYPE_CHECKING, ClassVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, ModeT

from apfs.fuse.loop import fast, serve_requests
from tests.bench.servers import MDEV, QUEUE

if TYPE_CHECKING:
    from collections.abc import Sequence

LATE = "late"
PATHS = (f"{QUEUE}/chkstop", f"{MDEV}/assign_domain", f"{MDEV}/unassign_domain", LATE)
_TICK_SECONDS = 1e-3


class Operations(pyfuse3.Operations):
    """A tree of files with one text."""

    children: ClassVar[dict[tuple[int, bytes], int]] = {}
    files: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.late: list[float] = []
        for path in PATHS:
            node = 1
            for name in path.split("/"):
                node = self.children.setdefault((node, name.encode()), len(self.children) + 2)
            self.files.add(node)

    def _attributes(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode)
        entry.st_mode = ModeT(stat.S_IFREG | 0o644 if inode in self.files else stat.S_IFDIR | 0o755)
        entry.st_size = 4096
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def lookup(self, parent_inode: InodeT, name: bytes, _ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """Find a name."""
        inode = self.children.get((parent_inode, name))
        if inode is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(inode)

    async def getattr(self, inode: InodeT, _ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """Answer stat."""
        return self._attributes(inode)

    async def open(self, inode: InodeT, _flags: int, _ctx: pyfuse3.RequestContext) -> FileInfo:
        """Open anything."""
        return FileInfo(FileHandleT(inode), direct_io=True, keep_cache=False)

    async def read(self, fh: FileHandleT, off: int, _size: int) -> bytes:
        """Return the text. `late` is made when reading starts, and then has only one part."""
        if off == 0 and self.late and fh == self.children[1, LATE.encode()]:
            late, self.late = sorted(self.late), []
            return f"{late[len(late) * 99 // 100]}\n".encode()
        return b"0\n"[off:]

    async def write(self, _fh: FileHandleT, _off: int, buf: bytes) -> int:
        """Take everything."""
        return len(buf)

    async def release(self, fh: FileHandleT) -> None:
        """Do nothing."""

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Do nothing."""


async def _serve(ticking: Operations | None) -> None:
    async with trio.open_nursery() as nursery:
        if ticking:
            nursery.start_soon(_tick, ticking)
        with fast():
            await serve_requests()
        nursery.cancel_scope.cancel()


async def _tick(operations: Operations) -> None:
    while True:
        due = trio.current_time() + _TICK_SECONDS
        await trio.sleep_until(due)
        operations.late.append(trio.current_time() - due)


def main() -> None:
    """Serve until unmounted."""
    operations = Operations()
    pyfuse3.init(operations, sys.argv[-1], {*pyfuse3.default_options, "fsname=minimal", "default_permissions"})
    trio.run(_serve, operations if "--ticker" in sys.argv else None)
    pyfuse3.close()


if __name__ == "__main__":
    main()

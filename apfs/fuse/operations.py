"""Translation between FUSE requests and the host's tree.

No handler waits before it has finished: because no other request is served in between, every change of the model is
atomic. An answer can wait for consequences of the change, but not for long (`apfs.fuse.deliveries`): a process that
waits for a FUSE server cannot be killed.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, TypeVarTuple

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, ModeT, readdir_reply

from apfs.ctl.views import UeventsFile
from apfs.errors import KernelError
from apfs.fuse.cache import FOREVER, KernelCache
from apfs.fuse.deliveries import Deliveries
from apfs.fuse.listing import bare_names
from apfs.fuse.loop import TASKS
from apfs.fuse.pages import PagedStream
from apfs.journal.records import Crash
from apfs.sysfs.attribute_file import AttributeFile
from apfs.sysfs.entries import BOTH, NEITHER, READ, WRITE, Times

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from apfs.host import Host
    from apfs.journal.records import Details
    from apfs.sysfs.entries import Description, Stat
    from apfs.sysfs.openfile import SpecialFile
    from apfs.sysfs.tree import OpenFile

_Args = TypeVarTuple("_Args")
_R = TypeVar("_R")

_BLOCK = 4096
_IOCTLS_ONLY = 3
"""The fourth access mode of open(2), which lets programs neither read nor write."""
_DOTS = 2
"""How many entries a listing has before the tree's: `.` and `..`."""
_ACCESS = {os.O_RDONLY: READ, os.O_WRONLY: WRITE, os.O_RDWR: BOTH, _IOCTLS_ONLY: NEITHER}

REFUSED = {
    "create": errno.EACCES,
    "mkdir": errno.EPERM,
    "mknod": errno.EPERM,
    "symlink": errno.EPERM,
    "link": errno.EPERM,
    "unlink": errno.EPERM,
    "rmdir": errno.EPERM,
    "rename": errno.EPERM,
}
"""What sysfs answers to attempts to change the name space."""


def end_at_once() -> NoReturn:
    """End the server for lack of memory, as if it was killed: whatever else it would do may need memory, too.

    An exception is not enough: trio cancels tasks on its way, and where it gets no memory for that, it sleeps.
    """
    os.write(2, b"apfs: not enough memory\n")
    os._exit(1)


def _answered(
    handler: Callable[[Operations, *_Args], _R], *, waits: bool = False
) -> Callable[[Operations, *_Args], Coroutine[Any, Any, _R]]:
    """Make a request handler of a function that never waits: the coroutine that pyfuse3 wants.

    If it `waits`, its answer comes when uevents that the request has sent are where Linux would have them by then. It
    must not answer with an object that is used again for the next request.

    A refusal by the core becomes an error of FUSE. Any other exception is a defect: it becomes EIO and a record, since
    one that leaves a handler would end the server, and with it the mount for all its users. A lack of memory does end
    it: a host that may be in the middle of a change is worse than none.
    """

    @functools.wraps(handler)
    async def answer(self: Operations, *args: *_Args) -> _R:
        try:
            return handler(self, *args)
        except KernelError as error:
            raise FUSEError(error.errno) from None
        except MemoryError:
            end_at_once()
        except Exception:  # noqa: BLE001 -- see above
            asked = self.asked(handler.__name__, args)
            self.host.journal.add(Crash(handler.__name__, traceback.format_exc(), input=asked))
            raise FUSEError(errno.EIO) from None
        finally:
            if self._journal.last != self._heard:  # nothing changes without a record
                self.happened()
                if waits and self.deliveries.behind():
                    await self.deliveries.wait()

    return answer


def _answered_when_delivered(
    handler: Callable[[Operations, *_Args], _R],
) -> Callable[[Operations, *_Args], Coroutine[Any, Any, _R]]:
    return _answered(handler, waits=True)


def _refuse(name: str, number: int) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def handler(*_args: object) -> None:
        raise FUSEError(number)

    handler.__name__ = name
    return handler


class Operations(pyfuse3.Operations):
    """The request handlers."""

    def __init__(self, host: Host, stored: Callable[[], None]) -> None:
        """Serve a host; `stored()` is called when timers may have changed: after writes, and when names may have."""
        super().__init__()
        self.host = host
        self._stored = stored
        self._tree = host.tree
        self._journal = host.journal
        self._changes = host.tree.nodes.changes
        self._root = host.tree.root.id(0)
        self._files: dict[int, OpenFile] = {}
        self._handles = map(FileHandleT, itertools.count(1))
        # Without the page cache: texts are made when they are read, and their size is not known before. The same object
        # serves for all opens, with another handle: making a new one takes 0.4 µs.
        self._seekable = FileInfo(direct_io=True, keep_cache=False)
        self._stream = FileInfo(direct_io=True, keep_cache=False, nonseekable=True)
        self._watchers: dict[int, SpecialFile] = {}
        """Files that want to know what a process polls, by that process."""
        self.pollers: dict[int, pyfuse3.PollHandle] = {}
        """Pollers that wait for an open file, by its handle."""
        self.deliveries = Deliveries(TASKS - 1)
        self.cache = KernelCache()
        self._bare = bare_names()
        self._replies: dict[tuple[Description, float], EntryAttributes] = {}
        self._files_alike: dict[Stat, EntryAttributes] = {}
        """Replies for the files in listings, by stat, as long as no owner was changed; only the inode number differs.

        Most of what is listed is found here, faster than in `_replies`: `find` takes a fifth less time.
        """
        self._heard = self._journal.last
        """The last record that `happened` has seen."""
        self._uevents = self._changed = 0
        """Numbers of uevents and of other changes at that time. One of them grows whenever a name changes."""
        self._uid, self._gid = os.getuid(), os.getgid()
        self._born = Times(*[time.time_ns()] * 3)

    def asked(self, name: str, args: tuple[object, ...]) -> Details | None:
        """Return what the journal has of a request that found a defect: enough to make it again, if it is about a file.

        `args` are those of the handler of that name. Nothing is said of those of guests: a path is one of the host.
        """
        match name, args:
            case "open", (int(inode), int(flags), *_) if self._is_ours(inode):
                return {"path": self._tree.path(inode), "access": _ACCESS[flags & os.O_ACCMODE].letters}
            case "read" | "write", (int(fh), *_, data) if fh in self._files:
                file = self._files[fh]
                if isinstance(file, AttributeFile) and not self._is_ours(file.node):
                    return None
                number = {"file": file.number()} if not isinstance(file, AttributeFile) and file.tracked else {}
                content = {"content": data.hex()} if isinstance(data, bytes) else {}
                return {"path": file.path, **number, **content}
        return None

    def _is_ours(self, node: int) -> bool:
        return self._tree.nodes.tree_of(node, self._tree) is self._tree

    def _node(self, inode: int) -> int:
        return self._root if inode == pyfuse3.ROOT_INODE else inode

    def _inode(self, node: int) -> InodeT:
        return InodeT(pyfuse3.ROOT_INODE if node == self._root else node)

    def _attributes(self, node: int, name_timeout: float = 0) -> EntryAttributes:
        return self._reply(node, self._tree.describe(node), name_timeout)

    def _reply(self, node: int, found: Description, name_timeout: float) -> EntryAttributes:
        """Return what pyfuse3 sends about a node. The object is used again for the next node that looks the same."""
        like = (found, name_timeout)
        entry = self._replies.get(like)
        if entry is None:
            entry = self._make_reply(*like)
            if found.times is None:  # others hardly look the same as anything else
                self._replies[like] = entry
        entry.st_ino = inode = self._inode(node)
        if found.varies:
            self.cache.remember_attributes(inode)
        return entry

    def _make_reply(self, found: Description, name_timeout: float) -> EntryAttributes:
        entry = EntryAttributes()
        entry.entry_timeout = name_timeout
        entry.attr_timeout = FOREVER
        entry.st_mode = ModeT(found.stat.mode)
        entry.st_nlink = found.stat.nlink
        entry.st_size = found.stat.size
        if found.stat.device is not None:
            entry.st_rdev = os.makedev(*found.stat.device)
        entry.st_blksize = _BLOCK
        uid, gid = found.owner
        entry.st_uid = self._uid if uid is None else uid
        entry.st_gid = self._gid if gid is None else gid
        times = found.times or self._born
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = times
        return entry

    def _name(self, node: int, file_type: int) -> EntryAttributes:
        """Return what pyfuse3 sends about a listed name that the kernel must not remember."""
        if self._bare is None:
            return self._attributes(node)
        return self._bare.reply(self._inode(node), file_type)

    # -- looking --------------------------------------------------------------------------

    @_answered
    def lookup(self, parent_inode: InodeT, name: bytes, _ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """Find a name. Like all texts of the core, it has a character for each byte."""
        node = self._tree.lookup(self._node(parent_inode), name.decode("latin-1"))
        found = self._tree.describe(node)
        return self._reply(node, found, FOREVER if self.cache.remembers(found) else 0)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Do nothing: identities are computed and hold no memory."""

    @_answered
    def getattr(self, inode: InodeT, _ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """Answer stat, also about what was removed while somebody still has it."""
        node = self._node(inode)
        try:
            return self._attributes(node)
        except KernelError:
            return self._reply(node, self._tree.remains(node), 0)

    @_answered
    def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        _fh: FileHandleT | None,
        _ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        """Answer chmod, chown and utimes; truncate is accepted and does nothing."""
        node = self._node(inode)
        changes = {
            "mode": stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            "uid": attr.st_uid if fields.update_uid else None,
            "gid": attr.st_gid if fields.update_gid else None,
            "atime": attr.st_atime_ns if fields.update_atime else None,
            "mtime": attr.st_mtime_ns if fields.update_mtime else None,
        }
        if any(value is not None for value in changes.values()):
            self._tree.setattr(node, **changes, now=time.time_ns())
        return self._attributes(node)

    @_answered
    def readlink(self, inode: InodeT, _ctx: pyfuse3.RequestContext) -> bytes:
        """Answer readlink."""
        return self._tree.readlink(self._node(inode)).encode("latin-1")

    @_answered
    def opendir(self, inode: InodeT, _ctx: pyfuse3.RequestContext) -> FileHandleT:
        """Open a directory. Its node is the handle, because listings have no state here.

        One that was removed can be opened by those who are in it, and is empty.
        """
        node = self._node(inode)
        try:
            self._tree.check_directory(node)
        except KernelError:
            if not stat.S_ISDIR(self._tree.remains(node).stat.mode):
                raise
        return FileHandleT(node)

    @_answered
    def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List from a position: 0 is before `.`, 1 is before `..`, and the tree's positions start at 2."""
        directory = int(fh)
        if start_id < 1 and not readdir_reply(token, b".", self._name(directory, stat.S_IFDIR), 1):
            return
        if start_id < _DOTS:
            parent = self._tree.parent(directory)
            if not readdir_reply(token, b"..", self._name(parent, stat.S_IFDIR), _DOTS):
                return
        try:
            remembered = self.cache.remembers(self._tree.describe(directory))
        except KernelError:
            return  # it was removed: nothing but the dots is in it
        bare = self._bare
        alike = None if self._tree.owned else self._files_alike
        for name, node, following, file_type, found in self._tree.readdir(directory, max(start_id - _DOTS, 0)):
            if not (found and remembered):
                entry = bare.reply(InodeT(node), file_type) if bare else self._attributes(node)
            elif alike is not None and (known := alike.get(found)):
                entry = known
                entry.st_ino = InodeT(node)
            else:
                entry = self._attributes(node, FOREVER)
                if alike is not None and file_type == stat.S_IFREG:
                    alike[found] = entry
            if not readdir_reply(token, name.encode("latin-1"), entry, following + _DOTS):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        """Do nothing: see opendir."""

    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Answer statfs as sysfs does: no blocks, no inodes."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_namemax = 255
        return data

    async def listxattr(self, _inode: InodeT, _ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Answer that there are no extended attributes."""
        return ()

    # -- files ----------------------------------------------------------------------------

    @_answered
    def open(self, inode: InodeT, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        """Open a file. O_TRUNC and O_APPEND have no meaning in sysfs."""
        file = self._tree.open(inode, _ACCESS[flags & os.O_ACCMODE])  # never the root: that is a directory
        handle = next(self._handles)
        if not isinstance(file, AttributeFile):
            if file.is_stream:
                file = PagedStream(self._journal, file)
            if file.watches:
                self._watchers[ctx.pid] = file
            if isinstance(file, UeventsFile):
                self.deliveries.opened(handle, file)
        self._files[handle] = file
        info = self._seekable if file.seekable else self._stream
        info.fh = handle
        return info

    @_answered
    def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read."""
        return self._files[fh].read(off, size)  # type: ignore[return-value]  # any buffer will do

    @_answered_when_delivered
    def write(self, fh: FileHandleT, _off: int, buf: bytes) -> int:
        """Write one text; the offset, which is 4096 with O_APPEND, does not matter."""
        taken = self._files[fh].write(buf)
        self._stored()
        return taken

    @_answered
    def poll(
        self, _inode: InodeT, fh: FileHandleT, handle: pyfuse3.PollHandle | None, ctx: pyfuse3.RequestContext
    ) -> int:
        """Answer poll. No attribute here ever wakes a poller, but the files in ctl do.

        A file may watch which others are polled by the process that opened it; see `apfs.ctl.channel`.
        """
        file = self._files[fh]
        watcher = self._watchers.get(ctx.pid)
        if watcher is not None and watcher is not file:
            watcher.watch(file)
        ready = file.poll()
        if handle is not None and not ready:
            self.pollers[fh] = handle
        return ready

    def happened(self) -> None:
        """Tell the kernel about changed names, and wake the pollers of files that have something to read now."""
        self._heard = self._journal.last
        if self._uevents != self._journal.uevents_sent or self._changed != self._changes.count:
            self._uevents, self._changed = self._journal.uevents_sent, self._changes.count
            self.cache.changed()
            self._stored()
        if self.pollers:
            for fh in [fh for fh in self.pollers if self._files[fh].poll()]:
                self.pollers.pop(fh).notify()

    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        file = self._files.pop(fh)
        if isinstance(file, AttributeFile):  # closing it has no effect on others, and nobody waits for it
            file.close()
        else:
            await self._release(fh, file)

    @_answered
    def _release(self, fh: FileHandleT, file: SpecialFile) -> None:
        self.pollers.pop(fh, None)
        self.deliveries.closed(fh)
        if file.watches:
            self._watchers = {pid: other for pid, other in self._watchers.items() if other is not file}
        file.close()

    @_answered
    def fsync(self, fh: FileHandleT, _datasync: bool) -> None:  # noqa: FBT001 -- signature of pyfuse3
        """Answer fsync: attributes have nothing to flush (noop_fsync)."""
        file = self._files[fh]
        if not isinstance(file, AttributeFile):
            file.sync()


for _name, _number in REFUSED.items():
    setattr(Operations, _name, _refuse(_name, _number))

"""Device nodes in a sandbox: they look like character devices, and opening one opens the emulated device.

`/dev/vfio/0` is a node of the mount's `ctl/sandbox/dev`, a character device according to stat(2) and listings; this
costs nothing. The kernel refuses to open it, because the mount is `nodev`. So the filter stops a process that opens a
file, and this module gives it the open file from `dev` of the mount instead. That is a regular file. To make fstat(2)
report a character device, too, the filter stops those calls, and this module answers them with the stat data of the
node.

`Nodes` selects which calls are stopped:

* `devices`: opens for reading and writing, which are rare. Open nodes have descriptors from `FIRST_NODE` on, so that
  the filter recognizes them; a duplicate with a lower number is a regular file again. Nothing else is slower.
* `exact`: opens of all kinds, and fstat of everything. Nodes can be opened only for reading or only for writing, their
  descriptors have the usual numbers, and all programs open their files more slowly.
* `files`: regular files instead of nodes; no calls are stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from apfs.sandbox import linux, process, seccomp
from apfs.sandbox.compose import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from apfs.sandbox.seccomp import Nodes, Notification

_RIGHTS = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6, 3: 6}
_KEPT_FLAGS = os.O_ACCMODE | os.O_NONBLOCK
_IDS = struct.Struct("=II")
_NOBODY = 65534
_DEV = b"/dev/"


class Layout(NamedTuple):
    """How long a struct is that a call fills in, and where in it user and group are."""

    size: int
    ids: int


STATX = Layout(256, 20)
"""struct statx, the same on all machines."""
STATS = {
    "x86_64": Layout(144, 28),
    "s390x": Layout(144, 28),
    "aarch64": Layout(128, 24),
    "riscv64": Layout(128, 24),
}
"""struct stat of 64-bit programs, by machine."""


class OpenNodes:
    """Answers opens of nodes, and questions about them, for the processes of one listener."""

    def __init__(self, listener: int, mount: Path, nodes: Nodes) -> None:
        """Serve nodes of the host at `mount`."""
        self._listener = listener
        self._mount = os.open(mount, os.O_PATH | os.O_DIRECTORY)
        self._exact = nodes == "exact"
        self._device = mount.stat().st_dev
        self._names: dict[int, str] = {}
        """Names in /dev of the nodes that were opened, by inode number of the regular file."""

    def close(self) -> None:
        """Let go of the host."""
        os.close(self._mount)

    def answer(self, notification: Notification) -> int | None:
        """Return the value of a call, None if the kernel is to carry it out."""
        calls = seccomp.FILE_CALLS[notification.arch]
        if notification.number == calls.openat:
            return self._open(notification, notification.descriptor(0), 1)
        if notification.number == calls.open:
            return self._open(notification, process.AT_FDCWD, 0)
        return self._stat(notification)

    # -- open ----------------------------------------------------------------------------------

    def _open(self, notification: Notification, directory: int, place: int) -> int | None:
        """Open a node, the arguments being path and flags from `place` on. EACCES, ENXIO, and what opening it gives.

        `PermissionError` if looking into the process is not allowed.
        """
        address, flags = notification.args[place], notification.flags(place + 1)
        path = process.read_path(notification.pid, address)
        try:
            # Others are not looked up: that takes time, and may ask a file server that is itself waiting for us.
            if not path or not process.full_path(notification.pid, directory, path).startswith(_DEV):
                return None
            with process.resolve(notification.pid, directory, path, flags) as node:
                found = os.fstat(node)
        except OSError:
            return None  # the kernel will say what is wrong with the path
        if found.st_dev != self._device or not stat.S_ISCHR(found.st_mode):
            return None
        if not process.may_open(notification.pid, found, _RIGHTS[flags & os.O_ACCMODE]):
            return -errno.EACCES
        if not seccomp.is_valid(self._listener, notification.id):
            return -errno.EINTR
        return self._give(notification, found.st_rdev, flags)

    def _give(self, notification: Notification, number: int, flags: int) -> int:
        """Open the device of a number, and give the process the file."""
        try:
            with self._root(notification.pid) as root:
                name = _name(root, number)
                path = f"dev/{name}".encode()
                fd = linux.open_path(root, path, flags & _KEPT_FLAGS, linux.RESOLVE_BENEATH)
        except FileNotFoundError:
            return -errno.ENXIO  # the device has gone, or only its node is emulated
        except OSError as error:
            return -(error.errno or errno.EIO)
        try:
            self._names[os.fstat(fd).st_ino] = name
            place = None if self._exact else process.lowest_free(notification.pid, seccomp.FIRST_NODE)
            return seccomp.add_descriptor(self._listener, notification.id, fd, place, flags & os.O_CLOEXEC)
        except OSError as error:
            return -(error.errno or errno.EIO)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _root(self, pid: int) -> Iterator[int]:
        """Give the directory of the host, or guest, that a process is on.

        That is where its sandbox shows it, which may be one in this sandbox; and /proc shows that path for open files.
        """
        with contextlib.ExitStack() as stack:
            root = self._mount
            with contextlib.suppress(OSError):
                seen = stack.enter_context(process.resolve(pid, process.AT_FDCWD, HOST.encode(), 0))
                root = seen if os.fstat(seen).st_dev == self._device else root
            yield root

    # -- fstat ---------------------------------------------------------------------------------

    def _stat(self, notification: Notification) -> int | None:
        """Answer fstat of an open node with what stat says of the node."""
        name = self._name_of(notification)
        if name is None:
            return None
        try:
            with self._root(notification.pid) as root:
                node = os.open(f"ctl/sandbox/dev/{name}", os.O_PATH | os.O_NOFOLLOW, dir_fd=root)
        except OSError:
            return None  # it has gone since
        try:
            address, told = _tell(notification, node)
        finally:
            os.close(node)
        if not seccomp.is_valid(self._listener, notification.id):
            return -errno.EINTR
        return 0 if process.write_memory(notification.pid, address, told) else -errno.EFAULT

    def _name_of(self, notification: Notification) -> str | None:
        """Return the name of the open node that is asked about, None if it is none."""
        if not self._names:
            return None
        calls = seccomp.FILE_CALLS[notification.arch]
        if notification.number != calls.fstat:
            path = notification.args[1]
            if path and process.read_memory(notification.pid, path, 1) != b"\0":
                return None
        try:
            with process.duplicate(notification.pid, notification.descriptor(0)) as fd:
                found = os.fstat(fd)
        except OSError:
            return None
        return self._names.get(found.st_ino) if found.st_dev == self._device else None


def _name(root: int, number: int) -> str:
    """Return the name in /dev of a device of a host; `FileNotFoundError` if there is none of that number."""
    path = f"sys/dev/char/{os.major(number)}:{os.minor(number)}/uevent"
    with open(os.open(path, os.O_RDONLY, dir_fd=root), encoding="latin-1") as uevent:  # noqa: PTH123 -- a descriptor
        keys = dict(line.rstrip().split("=", 1) for line in uevent)
    return keys["DEVNAME"]


def _tell(notification: Notification, node: int) -> tuple[int, bytes]:
    """Return what the kernel would write for a call that asks about `node`, and where to.

    The kernel of this process fills in what it knows; users and groups have other numbers in a user namespace.
    """
    calls = seccomp.FILE_CALLS[notification.arch]
    layout = STATX if notification.number == calls.statx else STATS[platform.machine()]
    told = ctypes.create_string_buffer(layout.size)
    if notification.number == calls.statx:
        address = notification.args[4]
        flags, mask = notification.flags(2), notification.flags(3)
        # The layout is the same for programs of 32 bits, and the number is not.
        own = seccomp.FILE_CALLS[seccomp.MACHINES[platform.machine()]].statx
        linux.system_call("statx", own, node, b"", flags, ctypes.c_uint(mask), told)
    elif notification.number == calls.newfstatat:
        address = notification.args[2]
        linux.system_call("newfstatat", notification.number, node, b"", told, notification.flags(3))
    else:
        address = notification.args[1]
        linux.system_call("fstat", notification.number, node, told)
    ids = process.ids_inside(notification.pid, *_IDS.unpack_from(told, layout.ids))
    _IDS.pack_into(told, layout.ids, *(_NOBODY if number is None else number for number in ids))
    return address, told.raw

"""Access to another process: its memory, its open files, its permissions.

All of this needs ptrace(2) access to the process, which its ancestors and their user have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.sandbox import linux

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")
PIDFD_THREAD = os.O_EXCL
AT_FDCWD = -100
_PATH_MAX = 4096
_CAP_DAC_OVERRIDE = 1 << 1


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_size_t))


def _transfer(function: str, pid: int, address: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Copy bytes and return how many could be copied. `OSError` if looking into the process is not allowed.

    process_vm_readv(2) and its counterpart heed the protection of pages, as the kernel's own copying does;
    /proc/PID/mem would write where the process cannot.
    """
    size = len(buffer)
    # One vector per page: a transfer stops before the first vector that cannot be copied whole.
    starts = [address, *range((address // _PAGE + 1) * _PAGE, address + size, _PAGE)]
    ends = [*starts[1:], address + size]
    remote = (_Vector * len(starts))(*(_Vector(start, end - start) for start, end in zip(starts, ends, strict=True)))
    local = _Vector(ctypes.addressof(buffer), size)
    local_and_count = ctypes.byref(local), ctypes.c_ulong(1)
    remote_and_count = remote, ctypes.c_ulong(len(starts))
    try:
        return linux.call(function, pid, *local_and_count, *remote_and_count, ctypes.c_ulong(0))
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.EINVAL):
            return 0
        raise


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Return the bytes that can be read from an address on, at most `size`; none if nothing can."""
    if address + size > 1 << 64:
        return b""
    buffer = ctypes.create_string_buffer(size)
    moved = _transfer("process_vm_readv", pid, address, buffer)
    return buffer.raw[:moved]


def write_memory(pid: int, address: int, data: bytes) -> bool:
    """Write bytes; return whether all of them could be."""
    if address + len(data) > 1 << 64:
        return False
    buffer = ctypes.create_string_buffer(data, len(data))
    return not data or _transfer("process_vm_writev", pid, address, buffer) == len(data)


def read_path(pid: int, address: int) -> bytes | None:
    """Return the path at an address, None if there is none or it is too long."""
    text, end, _ = read_memory(pid, address, _PATH_MAX).partition(b"\0")
    return text if end else None


def full_path(pid: int, directory: int, path: bytes) -> bytes:
    """Return the absolute form of a path, by its text alone, and that of the directory it starts from."""
    if not path.startswith(b"/"):
        start = f"/proc/{pid}/cwd" if directory == AT_FDCWD else f"/proc/{pid}/fd/{directory}"
        path = os.readlink(os.fsencode(start)) + b"/" + path  # noqa: PTH115 -- bytes wanted
    return os.path.normpath(path)


@contextlib.contextmanager
def resolve(pid: int, directory: int, path: bytes, flags: int) -> Iterator[int]:
    """Give a descriptor (O_PATH) of what a path means to thread `pid`, for the length of a with statement.

    `directory` is its descriptor for relative paths, or AT_FDCWD; of the flags of open(2) O_NOFOLLOW counts. `OSError`
    if it means nothing, or is reached through /proc: a link there means something else to each process. Links with
    absolute texts are followed if the path is absolute.
    """
    with contextlib.ExitStack() as bases:
        if path.startswith(b"/"):
            base, how = _open_closing(bases, f"/proc/{pid}/root"), linux.RESOLVE_IN_ROOT
        elif directory == AT_FDCWD:
            base, how = _open_closing(bases, f"/proc/{pid}/cwd"), 0
        else:
            base, how = _duplicate(pid, directory), 0
            bases.callback(os.close, base)
        found = linux.open_path(base, path, os.O_PATH | flags & os.O_NOFOLLOW, how | linux.RESOLVE_NO_MAGICLINKS)
    try:
        yield found
    finally:
        os.close(found)


def _open_closing(stack: contextlib.ExitStack, path: str) -> int:
    fd = os.open(path, os.O_PATH)
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def duplicate(pid: int, fd: int) -> Iterator[int]:
    """Give a duplicate of a descriptor of thread `pid`, for the length of a with statement.

    `OSError`: EBADF if it is not open there, or only as a path (O_PATH); ESRCH if the thread is gone, EPERM if this is
    not allowed.
    """
    copy = _duplicate(pid, fd)
    try:
        if fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_PATH:
            raise OSError(errno.EBADF, "names a file that is not open")
        yield copy
    finally:
        os.close(copy)


def _duplicate(pid: int, fd: int) -> int:
    try:
        # A thread can have descriptors of its own; before Linux 6.9 only those of the whole process can be had.
        pidfd = os.pidfd_open(pid, PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pidfd = os.pidfd_open(_process_of(pid))
    try:
        return linux.get_descriptor(pidfd, fd)
    finally:
        os.close(pidfd)


def is_full(pid: int) -> bool:
    """Whether a thread can have no further descriptor, because all numbers below its limit are taken."""
    limit, taken = _descriptors(pid)
    return sum(number < limit for number in taken) >= limit


def _descriptors(pid: int) -> tuple[int, set[int]]:
    """Return a thread's limit of open files, below which all its new descriptors are, and the descriptors it has."""
    with open(f"/proc/{pid}/limits", encoding="ascii") as limits:  # noqa: PTH123 -- read line by line
        limit = next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))
    return limit, set(map(int, os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208 -- names wanted


def _process_of(tid: int) -> int:
    with open(f"/proc/{tid}/status", encoding="utf-8") as status:  # noqa: PTH123 -- read line by line
        return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))


def lowest_free(pid: int, start: int) -> int | None:
    """Return the lowest number from `start` on for a further descriptor of a thread, None if it can have none there."""
    limit, taken = _descriptors(pid)
    return next((number for number in range(start, limit) if number not in taken), None)


def may_open(pid: int, found: os.stat_result, wanted: int) -> bool:
    """Whether a thread has rights (4 to read, 2 to write) to a file, by its mode (generic_permission)."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    status = {name: words.split() for name, _, words in (line.partition(":") for line in lines)}
    if int(status["CapEff"][0], 16) & _CAP_DAC_OVERRIDE and None not in ids_inside(pid, found.st_uid, found.st_gid):
        return True
    # Of the four numbers the last counts for files.
    if int(status["Uid"][3]) == found.st_uid:
        rights = found.st_mode >> 6
    elif found.st_gid in map(int, (status["Gid"][3], *status["Groups"])):
        rights = found.st_mode >> 3
    else:
        rights = found.st_mode
    return wanted & ~rights == 0


def ids_inside(pid: int, uid: int, gid: int) -> tuple[int | None, int | None]:
    """Return the numbers of our user and group in the user namespace of a thread, None if they have none there."""
    return _inside(pid, "uid_map", uid), _inside(pid, "gid_map", gid)


def _inside(pid: int, name: str, number: int) -> int | None:
    for line in Path(f"/proc/{pid}/{name}").read_text("ascii").splitlines():
        first, here, count = map(int, line.split())
        if here <= number < here + count:
            return first + number - here
    return None

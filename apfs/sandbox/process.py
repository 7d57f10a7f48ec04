"""Looking into another process: its memory, its open files.

All of this needs the rights of ptrace(2) over the process, which its ancestors and their user have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from apfs.sandbox import linux

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")
PIDFD_THREAD = os.O_EXCL


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_size_t))


def _transfer(function: str, pid: int, address: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Move bytes and return how many could be moved. `OSError` if looking into the process is not allowed.

    process_vm_readv(2) and its counterpart heed the protection of pages, as the kernel's own copying does;
    /proc/PID/mem would write where the process cannot.
    """
    size = len(buffer)
    # One vector per page: a transfer stops in front of the first vector that cannot be moved whole.
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
    """Return what can be read from an address on, at most `size` bytes; none if nothing can."""
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
    with open(f"/proc/{pid}/limits", encoding="ascii") as limits:  # noqa: PTH123 -- read line by line
        limit = next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))
    with os.scandir(f"/proc/{pid}/fd") as descriptors:
        return sum(int(entry.name) < limit for entry in descriptors) >= limit


def _process_of(tid: int) -> int:
    with open(f"/proc/{tid}/status", encoding="utf-8") as status:  # noqa: PTH123 -- read line by line
        return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))

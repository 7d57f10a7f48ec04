"""A VMM whose calls go to the kernel, for programs that run inside `apfs exec`; and memory with an edge."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests.vfio.client import U, Vmm

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class Process(Vmm):
    """This process."""

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return os.open(path, flags)

    def close(self, fd: int) -> None:
        os.close(fd)

    def eventfd(self) -> int:
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        result: int = _libc.ioctl(fd, request, arg)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def transfer(self, fd: int, request: int, data: bytes) -> tuple[int, bytes]:
        buffer = ctypes.create_string_buffer(data, len(data))
        result: int = _libc.ioctl(fd, request, ctypes.addressof(buffer))
        return -ctypes.get_errno() if result < 0 else result, buffer.raw

    def write(self, path: str, text: str) -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def ls(self, path: str) -> list[str]:
        return [entry.name for entry in Path(path).iterdir()]

    def readlink(self, path: str) -> str:
        return str(Path(path).readlink())

    def console(self, *verbs: str) -> None:
        """Write verbs to the host's console."""
        for verb in verbs:
            self.write("/dev/apfs/ctl/console", verb)

    def is_open(self, uuid: str = U) -> str:
        """Return what the emulator's own file says: 1 if anybody has the device open."""
        return Path(f"/dev/vfio-ap/{uuid}/guest").read_text().strip()

    def handed_out(self) -> list[str]:
        """Return the files that were made for processes and are open."""
        return self.ls("/dev/apfs/ctl/fds")


vmm = Process()


def say(*words: object) -> None:
    """Print a line that is seen at once."""
    print(*words, flush=True)


def told() -> None:
    """Wait for a line, or the end, of standard input."""
    sys.stdin.readline()


def without_descriptors(attempt: Callable[[], T]) -> T:
    """Call something while there is no free descriptor."""
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        return attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Pages:
    """Two pages, the second of which has another protection: what is at the end of the first is at its edge."""

    def __init__(self, second: int) -> None:
        self._size = mmap.PAGESIZE
        self._map = mmap.mmap(-1, 2 * self._size)
        self._second = second
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.edge = self.start + self._size
        self._protect(second)

    def put(self, address: int, data: bytes) -> None:
        """Write to the pages, whatever protection the second has."""
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)
        ctypes.memmove(address, data, len(data))
        self._protect(self._second)

    def _protect(self, protection: int) -> None:
        if _libc.mprotect(ctypes.c_void_p(self.edge), ctypes.c_size_t(self._size), protection):
            raise OSError(ctypes.get_errno(), "mprotect")

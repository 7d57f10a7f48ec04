"""A program on a host in this process: descriptors, memory and ioctls as values, without a process or a mount."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.host import Host
from apfs.scenario.reader import load
from apfs.sysfs.entries import BOTH
from apfs.testing.files import Shell
from apfs.vfio import uapi
from apfs.vfio.request import Foreign, IoctlFile, Request
from tests.vfio.client import Vmm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.scenario.model import Scenario
    from apfs.sysfs.openfile import SpecialFile

# Where a struct is in the memory of the program.
ARG = 0x7000_0000


@contextmanager
def as_a_process_sees_it() -> Iterator[None]:
    """Make what the host refuses an error with a number, which is all that a process is told."""
    try:
        yield
    except KernelError as error:
        raise OSError(error.errno, error.why) from error


class Counter:
    """An eventfd."""

    def __init__(self) -> None:
        self.count = 0
        self.dropped = False

    def signal(self) -> None:
        self.count += 1

    def drop(self) -> None:
        self.dropped = True


class Program(Vmm):
    """A program on a host of its own. Memory ends with the struct that is passed, so that nothing is read behind it."""

    def __init__(self, scenario: str | Scenario = "default") -> None:
        self.shell = Shell(Host(load(scenario) if isinstance(scenario, str) else scenario))
        self.files: dict[int, object] = {}
        self.full = False
        """Whether it can have no further descriptor."""
        self.written: dict[int, bytes] = {}
        """What the last ioctl has written elsewhere than to its struct, by address."""

    # -- what a VMM needs ----------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        del flags
        tree = self.shell.host.tree
        with as_a_process_sees_it():
            return self.add(tree.open(tree.resolve(path), BOTH))

    def close(self, fd: int) -> None:
        file = self.files.pop(fd)
        # An eventfd lives on where it is registered.
        if not isinstance(file, Counter | Foreign):
            file.close()  # type: ignore[attr-defined]

    def eventfd(self) -> int:
        return self.add(Counter())

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        value, _ = self._ask(fd, request, arg, b"")
        if value < 0:
            raise OSError(-value, os.strerror(-value))
        return value

    def transfer(self, fd: int, request: int, data: bytes) -> tuple[int, bytes]:
        return self._ask(fd, request, ARG, data)

    def write(self, path: str, text: str) -> None:
        with as_a_process_sees_it():
            self.shell.write(path, text)

    def ls(self, path: str) -> list[str]:
        return self.shell.ls(path)

    def readlink(self, path: str) -> str:
        return self.shell.readlink(path)

    # -- what a test may ask for ---------------------------------------------------------------------------------------

    def add(self, file: object) -> int:
        """Return the lowest free descriptor, which from now on is a file."""
        number = next(number for number in range(3, len(self.files) + 4) if number not in self.files)
        self.files[number] = file
        return number

    def foreign(self) -> int:
        """Return a descriptor of a file that is not of the host, such as a pipe."""
        return self.add(Foreign())

    def read(self, fd: int, size: int = 4096) -> bytes:
        """Read from a file without a position."""
        with as_a_process_sees_it():
            return bytes(self._special(fd).read(0, size))

    def send(self, fd: int, data: bytes) -> int:
        """Write to an open file."""
        with as_a_process_sees_it():
            return self._special(fd).write(data)

    def signals(self, fd: int) -> int:
        """Return how often an eventfd was signalled since the last time."""
        counter = self.files[fd]
        assert isinstance(counter, Counter)
        count, counter.count = counter.count, 0
        return count

    # ------------------------------------------------------------------------------------------------------------------

    def _special(self, fd: int) -> SpecialFile:
        file: SpecialFile = self.files[fd]  # type: ignore[assignment]
        return file

    def _ask(self, fd: int, cmd: int, arg: int, data: bytes) -> tuple[int, bytes]:
        file = self.files[fd]
        if not isinstance(file, IoctlFile):
            return -errno.ENOTTY, data
        reply = file.ioctl(Request(cmd, arg, data, self._descriptor(cmd, data), self.full and cmd in uapi.NEEDS_ROOM))
        memory, self.written = bytearray(data), {}
        writes = [(write.address, write.data) for write in reply.writes]
        value = reply.value
        if reply.file is not None:
            number = self.add(reply.file.file)
            if reply.file.at is None:
                value = number
            else:
                writes.append((reply.file.at, uapi.S32.pack(number)))
        for address, written in writes:
            start = address - ARG
            if 0 <= start < len(memory):
                assert start + len(written) <= len(memory), "more is written than the struct has"
                memory[start : start + len(written)] = written
            else:
                self.written[address] = written
        return value, bytes(memory)

    def _descriptor(self, cmd: int, data: bytes) -> object:
        offset = uapi.DESCRIPTOR_AT.get(cmd)
        if offset is None or len(data) < offset + uapi.S32.size:
            return None
        (number,) = uapi.S32.unpack(data[offset:])
        return self.files.get(number)

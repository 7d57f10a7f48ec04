"""Ioctls as values: requests, replies, and the files that serve ioctls.

Nothing here accesses a process. The supervisor reads the memory of the argument before, and applies the writes of the
reply afterwards, so that one request is one step of the model.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from apfs.errors import KernelError, errno_name
from apfs.journal.records import Ioctl, Refusal
from apfs.sysfs.openfile import SpecialFile
from apfs.vfio.uapi import PAGE, S32, U32, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apfs.journal.records import Details, Record
    from apfs.vfio.uapi import CStruct


@runtime_checkable
class EventFd(Protocol):
    """An eventfd of a caller."""

    def signal(self) -> None:
        """Add 1 to its counter."""

    def drop(self) -> None:
        """Let go of it."""


class Foreign:
    """An open file of the caller that is neither of this host nor an eventfd."""


Descriptor = object
"""What a file descriptor in a request refers to: an open file of this host, an `EventFd` or a `Foreign`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One ioctl: its number, its argument, the readable bytes behind it, and the file that a descriptor in it names.

    `memory` ends where the caller's memory cannot be read any further, or where no request looks any more.
    `descriptor` is None if the descriptor is not open. `full` says that the caller can have no further descriptor.
    """

    cmd: int
    arg: int
    memory: bytes = b""
    descriptor: Descriptor | None = None
    full: bool = False
    pointed: bytes = b""
    """The readable bytes of the array that the argument points at, for requests of `uapi.POINTED`."""
    _looked: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)
    """Up to where the memory was looked at: that much of it is nobody's secret, and goes into the journal."""

    def look(self, end: int) -> bytes:
        """Return the memory up to an offset, or as far as it can be read."""
        piece = self.memory[:end]
        self._looked[0] = max(self._looked[0], len(piece))
        return piece

    def take(self, size: int, offset: int = 0) -> bytes:
        """Copy bytes in; EFAULT if the caller's memory cannot be read."""
        piece = self.look(offset + size)
        if len(piece) < offset + size:
            raise KernelError(errno.EFAULT, f"{size} bytes at {self.arg + offset:#x} cannot be read")
        return piece[offset:]

    def details(self, file: int) -> Details:
        """Return what the journal has of the request, made on the open file of that number.

        `memory` is what was looked at, and `length` how many bytes could be read, if these are more.
        """
        details: Details = {"file": file, "cmd": self.cmd, "arg": self.arg}
        if self.memory:
            details["memory"] = self.memory[: self._looked[0]].hex()
        if self._looked[0] < len(self.memory):
            details["length"] = len(self.memory)
        if self.descriptor is not None:
            details["descriptor"] = _described(self.descriptor)
        if self.full:
            details["full"] = True
        if self.pointed:
            details["pointed"] = self.pointed.hex()
        return details

    def struct(self, layout: CStruct) -> tuple[int, ...]:
        """Copy a struct in whose first field is `argsz`; EFAULT, then EINVAL if that is too small."""
        values = layout.unpack(self.take(layout.size))
        if values[0] < layout.size:
            raise KernelError(errno.EINVAL, f"argsz {values[0]} is less than the {layout.size} bytes of {layout.name}")
        return values

    def sized(self, layout: CStruct, least: str | None = None) -> tuple[int, ...]:
        """Copy a struct in whose first field is its own size, as requests of iommufd have them (iommufd_fops_ioctl).

        `least` is the first field that callers of older headers lack; it and those behind it are zero then. EFAULT,
        EINVAL if the struct is too small, E2BIG for bytes behind it that are not zero.
        """
        (size,) = U32.unpack(self.take(U32.size))
        needed = layout.size if least is None else layout.offsets[least]
        if size < needed:
            raise KernelError(errno.EINVAL, f"size {size} is less than the {needed} bytes of {layout.name}")
        if size > PAGE:
            raise KernelError(errno.E2BIG, f"size {size} is more than a page")
        values = layout.unpack(self.take(min(size, layout.size)).ljust(layout.size, b"\0"))
        if any(self.look(size)[layout.size :]):
            raise KernelError(errno.E2BIG, f"bytes behind the {layout.size} of {layout.name} are not zero")
        self.take(size)
        return values

    def answer(self, layout: CStruct, *values: int) -> Reply:
        """Succeed, with a struct written back to where the argument points."""
        return Reply(writes=(Write(self.arg, layout.pack(*values)),))


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for the caller's memory."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class NewFile:
    """An open file of which the caller gets a descriptor, with close-on-exec set.

    `name` is a word that tells a human what it is. The descriptor is the value that the ioctl returns unless `at` says
    to which address it is written.
    """

    file: SpecialFile
    name: str
    readable: bool = True
    writable: bool = True
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: a value or (negative) an errno, and what the caller gets.

    The writes are made in any case; one that cannot be made turns the answer into EFAULT.
    """

    value: int = 0
    writes: tuple[Write, ...] = ()
    file: NewFile | None = None
    why: str = field(default="", compare=False)

    def details(self) -> Details | None:
        """Return what the journal has of the answer: `value`, `writes`, and the number of the new `file`."""
        details: Details = {}
        if self.value > 0:
            details["value"] = self.value
        if self.writes:
            details["writes"] = [[write.address, write.data.hex()] for write in self.writes]
        if self.file is not None:
            details["file"] = self.file.file.number()
        return details or None


def _described(descriptor: Descriptor) -> int | str:
    """Return what the journal has of a descriptor: the number of the open file, or what else it is."""
    if isinstance(descriptor, SpecialFile) and descriptor.tracked:
        return descriptor.number()
    return "eventfd" if isinstance(descriptor, EventFd) else "foreign"


DONE = Reply()


class IoctlFile(SpecialFile):
    """An open file that understands ioctls, and nothing else: it has neither read nor write."""

    seekable = False
    tracked = True
    is_device: ClassVar[bool] = False
    """Whether number 0x75 means VFIO_DEVICE_FEATURE here."""

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {}
    """The requests that it knows, by number."""

    def ioctl(self, request: Request) -> Reply:
        """Carry out a request and put it into the journal. A refusal is a reply too; nothing is raised."""
        name = name_of(request.cmd, device=self.is_device)
        try:
            reply = self._carry_out(request)
        except KernelError as error:
            reply = Reply(-error.errno, why=error.why)
        asked, answer = request.details(self.number()), reply.details()
        outcome: Record = Ioctl(self.path, name, input=asked, answer=answer)
        if reply.value < 0:
            outcome = Refusal("ioctl", self.path, name, errno_name(-reply.value), reply.why, input=asked, answer=answer)
        bulk = len(asked.get("memory", "")) + len(asked.get("pointed", ""))
        self._journal.add(outcome, bulk + sum(2 * len(write.data) for write in reply.writes))
        return reply

    def _carry_out(self, request: Request) -> Reply:
        known = self.ioctls.get(request.cmd)
        return self.unknown(request) if known is None else known(self, request)

    def unknown(self, request: Request) -> Reply:
        """Answer a request that is not in the table: ENOTTY, unless overridden."""
        raise KernelError(errno.ENOTTY, f"{self.path} does not know the ioctl {request.cmd:#x}")

    def on_read(self, _offset: int, _size: int) -> bytes:
        """Refuse with EINVAL, as a character device without a read operation does."""
        raise KernelError(errno.EINVAL, f"{self.path} has no read operation, only ioctls")

    def on_write(self, _data: bytes) -> int:
        """Refuse with EINVAL."""
        raise KernelError(errno.EINVAL, f"{self.path} has no write operation, only ioctls")

    def on_sync(self) -> None:
        """Refuse with EINVAL."""
        raise KernelError(errno.EINVAL, f"{self.path} has no fsync operation, only ioctls")


def descriptor_number(request: Request) -> int:
    """Copy a lone file descriptor in; EFAULT."""
    (number,) = S32.unpack(request.take(S32.size))
    return number

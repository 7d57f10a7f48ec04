"""The newest known state of the series: with magic number, version and control domains.

Its stream begins with a magic number (4 bytes), the version (4), the number of queues (4), padding (4) and the guest's
control domains (32 bytes, the first of which has domain 0 as its highest bit).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from apfs.ap.mask import Mask
from apfs.errors import KernelError
from apfs.vfio_ap.migration import words
from apfs.vfio_ap.migration.overlay import MAX_QUEUES, Content, Overlay
from apfs.vfio_ap.migration.stream import ENTRY, body_of, queues_of

if TYPE_CHECKING:
    from apfs.vfio_ap.migration.revision import Device, MigrationFile

_START = struct.Struct(">III")
HEADER = struct.Struct(">III4x32s")
MAGIC, VERSION = 0x76666170, 1


@dataclass
class Pieces:
    """Takes a stream in pieces, into one buffer, which is there until the device is reset or closed.

    The driver looks at magic number and version of what it has already when more comes. So those of a stream in one
    write do not matter.
    """

    start: bytes = b""
    """What has come of the first 12 bytes."""
    started: bool = False
    """Whether 12 bytes have come, which is so for good: the place for them is not made again."""
    buffer: bytearray | None = None
    fresh: bool = False
    """Whether the buffer came with the last write."""

    def take(self, file: MigrationFile, data: bytes) -> bytes | None:
        """Take the next bytes (vfio_ap_resume_write).

        EFAULT if 12 bytes have come and there is no buffer: after a refusal of a stream in one write, or a reset. Of
        what is there already, EINVAL for another magic number or version, and EIO if more than the rest comes. EINVAL
        for too many queues. EIO if there is more than the stream in the write with the 12th byte, where the driver
        would write beyond its buffer.
        """
        if self.started != (self.buffer is not None):
            raise KernelError(errno.EFAULT, "a stream was refused or the device was reset: close the device first")
        if self.buffer is not None:
            magic, version, _ = _START.unpack_from(self.buffer)
            if (magic, version) != (MAGIC, VERSION):
                raise KernelError(errno.EINVAL, f"magic number {magic:#x}, version {version} of the stream are unknown")
            if file.position + len(data) > len(self.buffer):
                raise KernelError(errno.EIO, f"more data than the {len(self.buffer)} bytes of the stream")
        begin, file.position = file.position, file.position + len(data)
        if self.buffer is None:
            self._begin(self.start[:begin] + data)
        else:
            self.fresh = False
            self.buffer[begin : file.position] = data
        return bytes(self.buffer) if self.buffer is not None and file.position == len(self.buffer) else None

    def _begin(self, data: bytes) -> None:
        self.start = data[: _START.size]
        if len(data) < _START.size:
            return
        self.started = True
        _, _, count = _START.unpack_from(data)
        if count > MAX_QUEUES:
            raise KernelError(errno.EINVAL, f"{count} queues are more than the maximum")
        size = Next.stream_size(count)
        if len(data) > size:
            raise KernelError(errno.EIO, f"{len(data)} bytes are more than the {size} of {count} queues")
        self.buffer, self.fresh = bytearray(data.ljust(size, b"\0")), True

    def refused(self) -> None:
        """Drop the buffer if it was made by the write that was refused; otherwise the driver keeps it."""
        if self.fresh:
            self.buffer = None

    def copy(self) -> Pieces:
        """Return one that has the same."""
        return replace(self, buffer=None if self.buffer is None else bytearray(self.buffer))


class Next(Overlay):
    """The newest known state."""

    name = "next"
    on_secure_execution_hosts = False
    pins_device = True
    incompatible = errno.EINVAL
    intake: Pieces

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._snapshot: bytes | None = None
        """The stream as it was read first, until the device is reset or closed: not only in one session."""

    @staticmethod
    def stream_size(count: int) -> int:
        """Return the bytes of a stream of `count` queues."""
        return HEADER.size + ENTRY.size * count

    def new_intake(self) -> Pieces:
        """Return where a stream goes."""
        return Pieces()

    def preview(self) -> bytes:
        """Return the stream of the guest matrix as it is, or was when one was read first."""
        if self._snapshot is not None:
            return self._snapshot
        shadow = self.device.shadow
        adm = bytes.fromhex(shadow.control_domains.hex256().removeprefix("0x"))
        return HEADER.pack(MAGIC, VERSION, shadow.size, adm) + body_of(shadow.size, self.ask())

    def save(self) -> MigrationFile:
        """Enter STOP_COPY; a stream that was read before is the one that will be read."""
        file = super().save()
        if self._snapshot is not None:
            file.size = len(self._snapshot)
        return file

    def read(self, file: MigrationFile) -> bytes:
        """Return the snapshot. ENODEV after the device was closed, EINVAL after a reset or if there is a newer file."""
        self.check_open()
        if file is not self.saving:
            raise KernelError(errno.EINVAL, "this is not the file of the current session")
        self._snapshot = self.logged_preview()
        return self._snapshot

    def write(self, file: MigrationFile, data: bytes) -> int:
        """Take the next bytes; EINVAL for none."""
        if not data:
            raise KernelError(errno.EINVAL, "a write of 0 bytes")
        return super().write(file, data)

    def content(self, stream: bytes) -> Content:
        """Return queues and control domains of a stream."""
        *_, adm = HEADER.unpack_from(stream)
        control_domains = Mask.from_numbers(number for number in range(256) if adm[number // 8] & 0x80 >> number % 8)
        return Content(queues_of(memoryview(stream)[HEADER.size :]), control_domains)

    def compatible(self, source: int, target: int) -> bool:
        """Whether both are usable, and all that is compared is equal, or the target may have a newer type and more."""
        if words.bound(source, target):
            return False
        if words.all_equal(source, target):
            return True
        more = not words.newer(source, target) and not words.loses_functions(source, target)
        return more and words.same_facilities(source, target)

    def reset(self) -> None:
        """Be RUNNING again, without files and buffers. Where a stream begins is not made again."""
        super().reset()
        self.saving = self.resuming = None
        self.intake.buffer = self._snapshot = None

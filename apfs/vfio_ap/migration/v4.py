"""Revision 4 of the series as it was mailed, which has the code of revision 3.

Its stream begins with the number of queues (4 bytes), padding (4), and the size of the configuration (8), which is
always 0. It has no control domains, and is generated again for every read. A target accepts it only in one write.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.vfio_ap.migration import words
from apfs.vfio_ap.migration.overlay import MAX_QUEUES, Content, Overlay
from apfs.vfio_ap.migration.stream import ENTRY, body_of, queues_of

if TYPE_CHECKING:
    from apfs.vfio_ap.matrix import Matrix
    from apfs.vfio_ap.migration.revision import MigrationFile

HEADER = struct.Struct(">I4xQ")


@dataclass
class WholeStream:
    """Takes a stream that comes in one write. Once it has taken one it takes no other, until the device is closed."""

    full: bool = False

    def take(self, file: MigrationFile, data: bytes) -> bytes | None:
        """Take a stream (vfio_ap_resume_write).

        EFAULT for a second write, and for the first one of another session after a stream was taken. EIO for bytes
        behind the stream, and for less than a header, where the driver would judge what is not there. EINVAL for too
        many queues. Anything else that is too short is taken, and lost.
        """
        if bool(file.position) != self.full:
            raise KernelError(
                errno.EFAULT, "a stream must be sent in one write, and only once while the device is open"
            )
        if self.full:
            raise KernelError(errno.EIO, f"{len(data)} bytes after the end of the stream")
        file.position = len(data)
        if len(data) < HEADER.size:
            raise KernelError(errno.EIO, f"{len(data)} bytes are less than the header of {HEADER.size}")
        count, _ = HEADER.unpack_from(data)
        if count > MAX_QUEUES:
            raise KernelError(errno.EINVAL, f"{count} queues are more than the maximum")
        if len(data) > V4.stream_size(count):
            why = f"{len(data)} bytes are more than the {V4.stream_size(count)} of {count} queues"
            raise KernelError(errno.EIO, why)
        self.full = len(data) == V4.stream_size(count)
        return data if self.full else None

    def refused(self) -> None:
        """Forget the stream, so that another session can take one."""
        self.full = False

    def copy(self) -> WholeStream:
        """Return one that has taken, or not taken, a stream."""
        return replace(self)


class V4(Overlay):
    """Revision 4."""

    name = "v4"
    pins_device = False
    incompatible = errno.EFAULT

    @staticmethod
    def stream_size(count: int) -> int:
        """Return the bytes of a stream of `count` queues."""
        return HEADER.size + ENTRY.size * count

    def new_intake(self) -> WholeStream:
        """Return where a stream goes."""
        return WholeStream()

    def preview(self) -> bytes:
        """Return the stream of the guest matrix as it is."""
        count = self.device.shadow.size
        return HEADER.pack(count, 0) + body_of(count, self.ask())

    def read(self, _file: MigrationFile) -> bytes:
        """Return the stream of the guest matrix as it is, whatever file is read. ENODEV after the device was closed."""
        self.check_open()
        return self.logged_preview()

    def content(self, stream: bytes) -> Content:
        """Return the queues of a stream."""
        return Content(queues_of(memoryview(stream)[HEADER.size :]), None)

    def compatible(self, source: int, target: int) -> bool:
        """Whether all that is compared is equal, or else both are usable, and only the target's type is newer."""
        if words.all_equal(source, target):
            return True
        older = not words.newer(source, target) and not words.bound(source, target)
        return older and words.same_upper(source, target)

    def object_to(self, matrix: Matrix, guest: Matrix) -> None:
        """Refuse with ECANCELED if the guest would not get all adapters."""
        lost = matrix.adapters - guest.adapters
        if lost:
            raise KernelError(errno.ECANCELED, f"adapters {lost.ranges(2)} would be filtered out of the guest")

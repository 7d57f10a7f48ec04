"""`/ctl/migration/UUID`: files that predict the outcome of a migration of a mediated device.

`stream` has the stream that a source would send now. Writing a stream to `check`, in pieces of any size, results in one
JSON object: what a target would do with it as the first stream of a session, sent in one write. Without a stream, the
answer is whether the target would accept any. Nothing changes.
"""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from apfs.errors import KernelError, errno_name
from apfs.sysfs.entries import Special
from apfs.sysfs.openfile import SpecialFile
from apfs.vfio_ap.client import migration_of
from apfs.vfio_ap.migration.revision import Finding, Forecast

if TYPE_CHECKING:
    from apfs.vfio_ap.matrix import Matrix
    from apfs.vfio_ap.ops import MatrixMdev


MOST = 1 << 22
"""Bytes of a stream that are taken. The longest one there can be, of 65,536 queues, has a quarter of it."""


class StreamFile(SpecialFile):
    """The stream that a session would give that began with the first read, and with each at offset 0."""

    def __init__(self, mdev: MatrixMdev) -> None:
        super().__init__(mdev.journal, f"/ctl/migration/{mdev.name}/stream")
        self._mdev = mdev
        self._stream = b""

    def on_read(self, offset: int, size: int) -> bytes:
        """Return a piece. ENOTTY without live migration, and whatever a source would answer."""
        if offset == 0:
            self._stream = migration_of(self._mdev).preview()
        return self._stream[offset : offset + size]


class CheckFile(SpecialFile):
    """Takes a stream, then gives the answer."""

    seekable = False

    def __init__(self, mdev: MatrixMdev) -> None:
        super().__init__(mdev.journal, f"/ctl/migration/{mdev.name}/check")
        self._mdev = mdev
        self._stream = bytearray()
        self._answer: memoryview | None = None
        """What is left of the answer: a view, of which a piece can be taken without copying the rest."""

    def on_write(self, data: bytes) -> int:
        """Take a piece; after the answer was read, the first one of another stream. EFBIG beyond `MOST`."""
        fresh = self._answer is not None
        if len(data) + (0 if fresh else len(self._stream)) > MOST:
            raise KernelError(errno.EFBIG, f"no stream has more than {MOST:,} bytes")
        if fresh:
            self._stream, self._answer = bytearray(), None
        self._stream += data
        return len(data)

    def on_read(self, _offset: int, size: int) -> memoryview:
        """Return a piece of the answer."""
        if self._answer is None:
            self._answer = memoryview(_answer(self._mdev, bytes(self._stream)))
        piece, self._answer = self._answer[:size], self._answer[size:]
        return piece


def _answer(mdev: MatrixMdev, stream: bytes) -> bytes:
    forecast = _forecast(mdev, stream)
    document = {
        "errno": errno_name(forecast.errno) if forecast.errno else None,
        "judged": forecast.judged,
        "findings": [finding._asdict() for finding in forecast.findings],
        "matrix": _masks(forecast.assigned),
        "guest_matrix": _masks(forecast.guest),
    }
    return json.dumps(document).encode()


def _forecast(mdev: MatrixMdev, stream: bytes) -> Forecast:
    if mdev.migration is None:
        return Forecast(errno.ENOTTY, (Finding(None, "live migration", "-", "not offered"),))
    forecast = mdev.migration.forecast(stream) if stream else Forecast(judged=False)
    if mdev.secure_execution_host:  # it will not even take a stream
        why = Finding(None, "secure execution host", "-", "yes")
        return replace(forecast, errno=errno.EPERM, findings=(why, *forecast.findings), assigned=None, guest=None)
    return forecast


def _masks(matrix: Matrix | None) -> dict[str, list[int]] | None:
    return None if matrix is None else {axis: list(mask) for axis, mask in matrix._asdict().items()}


MIGRATION_ENTRIES = (
    Special("stream", 0o400, lambda mdev, _read, _write: StreamFile(mdev)),
    Special("check", 0o600, lambda mdev, _read, _write: CheckFile(mdev)),
)

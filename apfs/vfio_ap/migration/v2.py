"""Revision 2 of the series: the target already has the same configuration, and the stream proves it.

Its stream begins with the number of queues (4 bytes) and padding (4). TAPQ words are those that the bus stores for
cards, so the kernel's bus determines which bits they have.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from apfs.errors import KernelError
from apfs.vfio_ap.migration import words
from apfs.vfio_ap.migration.revision import ACCEPTED, Finding, Forecast, Migration, MigrationFile, Verdict
from apfs.vfio_ap.migration.stream import ENTRY, Row, apqn_of, body_of, entries_of, queues_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from apfs.journal.log import Journal
    from apfs.vfio_ap.migration.words import Difference

HEADER = struct.Struct(">i4x")


def compatible(source: int, target: int) -> bool:
    """Whether v2 accepts a source queue's TAPQ word for the target's.

    Either everything compared is equal, or all of the facility word is equal and the source's type is not newer.
    """
    return words.all_equal(source, target) or (words.same_upper(source, target) and not words.newer(source, target))


def differences(source: int, target: int) -> list[Difference]:
    """Return what v2 logs about an incompatible pair, in the order of the log; the AP types always, equal or not."""
    asked = (words.of_facilities, words.of_class, words.of_type, words.of_states)
    return [difference for ask in asked for difference in ask(source, target)]


def stream_size(count: int) -> int:
    """Return the bytes of a stream of `count` queues."""
    return HEADER.size + ENTRY.size * count


def make_stream(count: int, rows: Iterable[Row]) -> bytes:
    """Return the stream of a guest matrix of `count` APQNs."""
    return HEADER.pack(count) + body_of(count, rows)


def read_count(stream: bytes | bytearray) -> int:
    """Return the number of queues that a stream announces, compared by the driver as a signed number."""
    count: int = HEADER.unpack_from(stream.ljust(HEADER.size, b"\0"))[0]
    return count


class Target(NamedTuple):
    """What a stream is checked against: the size fixed when RESUMING was entered, and the guest matrix as it is now."""

    size: int
    """Bytes that the stream must have."""
    total: int
    """Number of APQNs of the guest matrix."""
    rows: Callable[[], Iterable[Row]]
    """Returns its queues, as far as they have a queue device."""


def judge(stream: bytes | bytearray, target: Target) -> Verdict:
    """Return the driver's answer to a stream, or to the beginning of one (vfio_ap_resume_write).

    The order of its checks: EIO for more bytes than are expected. With the first four bytes ENODEV or E2BIG if the
    numbers of queues differ. When complete, ENODEV for queues that the target lacks, EFAULT for the first incompatible.
    """
    if len(stream) > target.size:
        why = f"the source's AP configuration ({len(stream)} bytes) is larger than the target's ({target.size} bytes)"
        return Verdict(errno.EIO, why, (why,))
    if len(stream) < HEADER.size // 2:
        return ACCEPTED
    count = read_count(stream)
    if count != target.total:
        why = f"the number of queues in the source and target guest differ: source {count}, target {target.total}"
        return Verdict(errno.ENODEV if target.total > count else errno.E2BIG, why, (why,))
    return _check_queues(stream, list(target.rows())) if len(stream) == target.size else ACCEPTED


def _check_queues(stream: bytes | bytearray, rows: list[Row]) -> Verdict:
    """Check a complete stream: all APQNs that the target lacks, then the first that is not compatible.

    ENODEV and EFAULT. As many entries are looked at as the stream announces: if the guest matrix shrank meanwhile, what
    is behind them does not matter. If it grew, the driver would look beyond the stream; here the stream ends. A queue
    of the target's guest matrix that has lost its device counts as lacking; the driver meant to look it up and would
    crash.
    """
    if _fits(stream, rows):
        return ACCEPTED
    ours = _words(rows)
    queues = queues_of(memoryview(stream)[HEADER.size :])[: read_count(stream)]
    missing = [apqn_of(number) for _, number in queues if number not in ours]
    if missing:
        lines = tuple(f"queue {apqn} of the source is not in the target guest's AP configuration" for apqn in missing)
        return Verdict(errno.ENODEV, f"{len(missing)} queues of the source are not on the target", lines)
    for source, number in queues:
        if not compatible(source, ours[number]):
            apqn = apqn_of(number)
            found = differences(source, ours[number])
            lines = (words.headline(apqn), *(line for difference in found for line in difference.lines(apqn)))
            return Verdict(errno.EFAULT, f"source queue {apqn} is not compatible with the target's", lines)
    return ACCEPTED


def _words(rows: Iterable[Row]) -> dict[int, int]:
    return {row.apid << 8 | apqi: row.hwinfo for row in rows for apqi in row.domains}


def _fits(stream: bytes | bytearray, rows: Iterable[Row]) -> bool:
    """Whether a stream is what this host would send, had its adapters the (compatible) words that are in the stream.

    Then it is accepted: each of its entries is at its place, and compatible. A good stream nearly always is like that,
    and row by row 65,536 queues take some ms instead of 140. If not, it has to be looked at entry by entry.
    """
    position = HEADER.size
    for apid, domains, hwinfo in rows:
        end = position + ENTRY.size * len(domains)
        if end > len(stream):
            return False
        word: int = ENTRY.unpack_from(stream, position)[0]
        if stream[position:end] != entries_of(apid, domains, word) or not compatible(word, hwinfo):
            return False
        position = end
    return position == len(stream)


class Log(Protocol):
    """Writes an error line to the kernel log, with the name of the mediated device in front unless told otherwise."""

    def __call__(self, line: str, *, prefix: bool = True) -> None:
        """Write a line."""


class V2File(MigrationFile):
    """A transfer file that dies with its session, although it may stay open."""

    inode = "vfio_ap_migf"

    def __init__(self, journal: Journal, path: str) -> None:
        super().__init__(journal, path)
        self.disabled = False

    def disable(self) -> None:
        """End the session."""
        self.disabled = True
        self.position = 0


class SavingFile(V2File):
    """The file of STOP_COPY: gives the snapshot that was taken when the state was entered."""

    is_stream = True

    def __init__(self, journal: Journal, path: str, stream: bytes) -> None:
        super().__init__(journal, path)
        self._stream = memoryview(stream)
        self.size = len(stream)

    def on_read(self, _offset: int, size: int) -> memoryview:
        """Return the next bytes, none at the end. ENODEV after the session.

        The driver then logs for a device that it has forgotten. On s390 a null pointer can be followed, and the line
        says `(NULL device *)` instead of a name.
        """
        if self.disabled:
            self._journal.log("err", "(NULL device *): the migration session of this file is over")
            raise KernelError(errno.ENODEV, "the migration session of this file is over")
        piece = self._stream[self.position : self.position + size]
        self.position += len(piece)
        return piece


class ResumingFile(V2File):
    """The file of RESUMING: takes a stream for the guest matrix that the target has when the state is entered."""

    def __init__(self, journal: Journal, path: str, target: Callable[[], Target], log: Log) -> None:
        """Take a stream for `target()`, which is asked again with every write."""
        super().__init__(journal, path)
        self._stream = bytearray()
        self._target = target
        self._log = log

    def on_write(self, data: bytes) -> int:
        """Take the next bytes (vfio_ap_resume_write).

        EIO after the session and beyond the expected size; then nothing is taken. What `judge` refuses otherwise, with
        ENODEV, E2BIG or EFAULT, has been taken nevertheless: the position is not set back.
        """
        if self.disabled:
            self._log("the migration file has no mediated device any more", prefix=False)
            raise KernelError(errno.EIO, "the migration session of this file is over")
        self._stream += data
        verdict = judge(self._stream, self._target())
        if verdict.errno == errno.EIO:
            del self._stream[self.position :]
        self.position = len(self._stream)
        if verdict.errno:
            for line in verdict.lines:
                self._log(line)
            raise KernelError(verdict.errno, verdict.why)
        return len(data)


class V2(Migration):
    """Revision 2: a session has its snapshot, or its buffer, and takes it along when it ends."""

    name = "v2"
    stream_size = staticmethod(stream_size)
    session: V2File | None

    def preview(self) -> bytes:
        """Return the stream of the guest matrix as it is."""
        return make_stream(self.device.shadow.size, self.device.recorded())

    def save(self) -> SavingFile:
        """Take the snapshot."""
        return SavingFile(self.device.journal, self.path, self.preview())

    def resume(self) -> ResumingFile:
        """Take a stream for the guest matrix as it is; what it is checked against is asked again with every write."""
        size = self.data_size()
        return ResumingFile(self.device.journal, self.path, lambda: self._target(size), self._log)

    def leave(self) -> None:
        """End the session, and the use of its file."""
        if self.session:
            self.session.disable()

    def reset(self) -> None:
        """Leave state and session alone."""

    def close(self) -> None:
        """End the session, too."""
        self.leave()
        super().close()

    def forecast(self, stream: bytes) -> Forecast:
        """Name all queues, while the driver stops at the first that is not compatible."""
        target = self._target(self.data_size())
        verdict = judge(stream, target)
        judged = bool(verdict.errno) or len(stream) == target.size
        return Forecast(verdict.errno, tuple(_findings(stream, target)), judged)

    def _target(self, size: int) -> Target:
        return Target(size, self.device.shadow.size, self.device.recorded)

    def _log(self, line: str, *, prefix: bool = True) -> None:
        if prefix:
            self.device.log("err", line)
        else:
            self.device.journal.log("err", line)


def _findings(stream: bytes, target: Target) -> Iterator[Finding]:
    """Yield what keeps a stream, and single queues of it, from a target."""
    count = read_count(stream)
    if count != target.total:
        yield Finding(None, "number of queues", str(count), str(target.total))
    if len(stream) != stream_size(count):  # it is one of another revision
        if len(stream) != target.size:
            yield Finding(None, "bytes of the stream", str(len(stream)), str(target.size))
        return
    ours = _words(target.rows())
    source = {number: word for word, number in queues_of(memoryview(stream)[HEADER.size :])}
    for number in source:
        if number not in ours:
            yield Finding(str(apqn_of(number)), "queue", "present", "missing")
    for number, word in source.items():
        if number in ours and not compatible(word, ours[number]):
            for difference in differences(word, ours[number]):
                if difference.source != difference.target:
                    yield Finding(str(apqn_of(number)), difference.characteristic, difference.source, difference.target)

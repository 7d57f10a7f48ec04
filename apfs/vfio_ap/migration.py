"""Live migration, revision 2 of the series: the data stream, its check against the target, the transfer files.

The stream is big-endian: the number of queues (4 bytes), padding (4), then per queue its TAPQ word (8), its APQN (2)
and padding (6). Padding is written as zero and ignored when read.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from apfs.ap.names import Apqn
from apfs.ap.qinfo import CARD_HWINFO_MASK, FAC, FIELDS
from apfs.errors import KernelError
from apfs.sysfs.openfile import SpecialFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apfs.ap.mask import Mask
    from apfs.journal.log import Journal

HEADER = struct.Struct(">i4x")
ENTRY = struct.Struct(">QH6x")
_ENTRY_HEAD = struct.Struct(">QB")
_ENTRY_TAILS = tuple(bytes((apqi, 0, 0, 0, 0, 0, 0)) for apqi in range(256))
"""An entry is the same on all domains of an adapter but for its last byte of the APQN."""

# Bits 0 to 17 (facilities, class, bind state) and 32 to 39 (AP type).
_COMPARED = 0xFFFFC000FF000000
_CLASS_NATIVE = 0x80


class Characteristic(NamedTuple):
    """A property of a queue that a diagnostic can name."""

    key: str
    field: str
    text: str
    present: str
    absent: str


FACILITIES = (
    Characteristic("F1", "apsc", "special command (APSC) facility", "installed", "not installed"),
    Characteristic("F2", "mex4k", "4096-bit modulus-exponent (AP4KM) facility", "installed", "not installed"),
    Characteristic("F3", "crt4k", "4096-bit CRT (AP4KC) facility", "installed", "not installed"),
    Characteristic("M1", "cca", "CCA coprocessor mode", "installed", "not installed"),
    Characteristic("M2", "accel", "accelerator mode", "installed", "not installed"),
    Characteristic("M3", "ep11", "EP11 (XCP) coprocessor mode", "installed", "not installed"),
    Characteristic("X1", "apxa", "extended addressing (APXA) facility", "installed", "not installed"),
    Characteristic("L1", "slcf", "stateless command filtering (SLCF)", "available", "not available"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One characteristic in which a source queue is not what the target needs; `key` is stable, texts are not."""

    key: str
    characteristic: str
    source: str
    target: str

    def lines(self, apqn: Apqn) -> tuple[str, ...]:
        """Return the kernel log lines that report it."""
        if self.key == "T1":
            return (f"AP type: source {self.source}, target {self.target}",)
        if self.key == "B1":
            return (f"bind/associate state of queue {apqn}: source {self.source}, target {self.target}",)
        return (
            f"{self.characteristic} {self.source} for source queue {apqn}",
            f"{self.characteristic} {self.target} for target queue {apqn}",
        )


def compatible(source: int, target: int) -> bool:
    """Whether v2 accepts a source queue's TAPQ word for the target's.

    Either everything compared is equal, or all of the facility word is equal and the source's type is not newer.
    """
    if not (source ^ target) & _COMPARED:
        return True
    types = FIELDS["at"]
    return FAC.get(source) == FAC.get(target) and types.get(source) <= types.get(target)


def differences(source: int, target: int) -> list[Difference]:
    """Return what v2 logs about an incompatible pair, in the order of the log; the AP types always, equal or not."""
    found = []
    for key, field, text, present, absent in FACILITIES:
        values = FIELDS[field].get(source), FIELDS[field].get(target)
        if values[0] != values[1]:
            found.append(Difference(key, text, *(present if value else absent for value in values)))
    classes = FIELDS["class"].get(source), FIELDS["class"].get(target)
    if classes[0] & _CLASS_NATIVE and not classes[1] & _CLASS_NATIVE:
        found.append(Difference("K1", "card class", "full native function", "stateless functions only"))
    types = FIELDS["at"].get(source), FIELDS["at"].get(target)
    found.append(Difference("T1", "AP type", f"{types[0]:02x}", f"{types[1]:02x}"))
    states = FIELDS["bs"].get(source), FIELDS["bs"].get(target)
    if any(states):
        found.append(Difference("B1", "bind/associate state", *(f"{state:x}" for state in states)))
    return found


class Row(NamedTuple):
    """Queues of a guest on one adapter, and the hardware information that the bus has of the adapter."""

    apid: int
    domains: Mask
    hwinfo: int


@lru_cache(maxsize=16)  # the adapters of a guest nearly always have the same domains
def _tails(domains: Mask) -> tuple[bytes, ...]:
    return tuple(_ENTRY_TAILS[apqi] for apqi in domains)


def _entries(apid: int, domains: Mask, word: int) -> bytes:
    """Return the entries of queues of one adapter, which have one word. A join of 256 takes as long as 4 entries."""
    return _ENTRY_HEAD.pack(word, apid).join((b"", *_tails(domains)))


def stream_size(count: int) -> int:
    """Return the bytes of a stream of `count` queues."""
    return HEADER.size + ENTRY.size * count


def make_stream(count: int, rows: Iterable[Row]) -> bytes:
    """Return the stream of a guest matrix of `count` APQNs.

    APQNs without a queue device are skipped without leaving a gap: the stream ends with zero entries instead.
    """
    parts = [_entries(apid, domains, hwinfo & CARD_HWINFO_MASK) for apid, domains, hwinfo in rows]
    return b"".join((HEADER.pack(count), *parts)).ljust(stream_size(count), b"\0")


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


class Verdict(NamedTuple):
    """Why a stream is refused: an errno, the reason, and the lines for the log; errno 0 if it is not refused."""

    errno: int
    why: str
    lines: tuple[str, ...]


ACCEPTED = Verdict(0, "", ())


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
    words = {row.apid << 8 | apqi: row.hwinfo & CARD_HWINFO_MASK for row in rows for apqi in row.domains}
    queues = list(ENTRY.iter_unpack(memoryview(stream)[HEADER.size :]))[: read_count(stream)]
    missing = [_apqn(number) for _, number in queues if number not in words]
    if missing:
        lines = tuple(f"queue {apqn} of the source is not in the target guest's AP configuration" for apqn in missing)
        return Verdict(errno.ENODEV, f"{len(missing)} queues of the source are not on the target", lines)
    for source, number in queues:
        if not compatible(source, words[number]):
            apqn = _apqn(number)
            headline = f"Migration incompatible: source queue {apqn} does not fit the target queue"
            found = differences(source, words[number])
            lines = (headline, *(line for difference in found for line in difference.lines(apqn)))
            return Verdict(errno.EFAULT, f"source queue {apqn} is not compatible with the target's", lines)
    return ACCEPTED


def _apqn(number: int) -> Apqn:
    return Apqn(number >> 8, number & 0xFF)


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
        if stream[position:end] != _entries(apid, domains, word) or not compatible(word, hwinfo & CARD_HWINFO_MASK):
            return False
        position = end
    return position == len(stream)


class Log(Protocol):
    """Writes an error line to the kernel log, with the name of the mediated device in front unless told otherwise."""

    def __call__(self, line: str, *, prefix: bool = True) -> None:
        """Write a line."""


class MigrationFile(SpecialFile):
    """A transfer file: the driver's and the user's common end of one migration session (struct vfio_ap_migration_file).

    It has one position for all who have it open, and it dies with the session although it may stay open. Closing it
    does not end the session, for which nobody gets a second file. While it is open, the module stays loaded.
    """

    seekable = False

    def __init__(self, journal: Journal, path: str) -> None:
        super().__init__(journal, path)
        self.position = 0
        self.disabled = False
        self.size = 0
        """Bytes that can be read in all."""
        self.opened = 0
        """How often it is open."""

    def take(self) -> Self:
        """Open it."""
        self.opened += 1
        return self

    def close(self) -> None:
        """Close it once."""
        self.opened -= 1

    def disable(self) -> None:
        """End the session."""
        self.disabled = True
        self.position = 0

    def on_sync(self) -> None:
        """Refuse fsync(2) with EINVAL, as the driver has no operation for it (vfs_fsync_range)."""
        raise KernelError(errno.EINVAL, "a transfer file has no fsync operation")

    def _shown(self, data: bytes) -> str:
        """Return how much of a stream was refused, which nobody could read."""
        return f"{len(data)} bytes"


class SavingFile(MigrationFile):
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


class ResumingFile(MigrationFile):
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

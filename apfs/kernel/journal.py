"""The one door out of the core: an ordered journal of what happened, as frozen records.

Whoever wants to print, log, notify or assert reads the journal; nothing in the core calls back into a shell.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPACITY = 200_000
"""Records kept: an `apmask` write that rebinds 65,536 queues makes 131,073. Older ones are dropped and counted."""

Keys = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records."""

    kind: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the record's fields as JSON-able values, `type` first."""
        return {"type": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Store(Record):
    """A write to an attribute that succeeded."""

    kind = "store"
    path: str
    data: str


@dataclass(frozen=True, slots=True)
class Refusal(Record):
    """A request that was refused, with the errno that the caller got and the reason that sysfs cannot tell."""

    kind = "refusal"
    operation: str
    path: str
    data: str
    errno: str
    why: str


@dataclass(frozen=True, slots=True)
class Uevent(Record):
    """An event as the kernel multicasts it (kobject_uevent_env). `keys` exclude ACTION, DEVPATH and SUBSYSTEM."""

    kind = "uevent"
    action: str
    devpath: str
    subsystem: str
    keys: Keys

    def environment(self) -> Keys:
        """Return all keys in wire order, without SEQNUM, which whoever sends the event knows."""
        head = (("ACTION", self.action), ("DEVPATH", self.devpath), ("SUBSYSTEM", self.subsystem))
        return head + self.keys

    def as_dict(self) -> dict[str, Any]:
        """Return the fields with the keys as an object."""
        return {
            "type": self.kind,
            "action": self.action,
            "devpath": self.devpath,
            "subsystem": self.subsystem,
            "keys": dict(self.keys),
        }


@dataclass(frozen=True, slots=True)
class LogLine(Record):
    """A line of the kernel log. `level` is the printk level name (`err`, `warn`, `notice`, `info`, `debug`)."""

    kind = "log"
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class GuestUpdate(Record):
    """The AP resources that a running guest sees were programmed anew (kvm_arch_crypto_set_masks); masks as hex."""

    kind = "guest"
    mdev: str
    adapters: str
    domains: str
    control_domains: str


@dataclass(frozen=True, slots=True)
class Interrupt(Record):
    """A VFIO interrupt (eventfd) of a mediated device was signalled: `request` or `config_changed`."""

    kind = "interrupt"
    mdev: str
    irq: str


@dataclass(frozen=True, slots=True)
class Ioctl(Record):
    """A VFIO or iommufd ioctl that succeeded; one that failed is a `Refusal` with the operation `ioctl`."""

    kind = "ioctl"
    path: str
    request: str


@dataclass(frozen=True, slots=True)
class QueuesReset(Record):
    """Queues were zeroized by the vfio_ap driver; `failed` maps an APQN to a response code other than zero."""

    kind = "reset"
    count: int
    failed: dict[str, int]


@dataclass(frozen=True, slots=True)
class Migration(Record):
    """A migration state arc of a mediated device was completed."""

    kind = "migration"
    mdev: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Verb(Record):
    """A console verb was given; what it did, or why it was refused, follows."""

    kind = "verb"
    text: str


@dataclass(frozen=True, slots=True)
class Crash(Record):
    """A defect of the emulation itself: an unexpected exception, answered with EIO."""

    kind = "crash"
    operation: str
    traceback: str


class Journal:
    """Ordered records with sequence numbers that start at 1 and are never reused."""

    def __init__(self) -> None:
        self._capacity = CAPACITY
        self._full = 2 * CAPACITY
        self._records: list[Record] = []
        self._uevents: list[int] = []
        """Sequence numbers of the uevents among the records."""
        self.last = 0
        """Sequence number of the newest record; 0 before the first."""
        self.uevents_sent = 0
        """Uevents so far, which is the SEQNUM of the newest one."""
        self.muted = False
        """While set, records are thrown away: nobody could have listened while the machine booted."""

    def add(self, record: Record) -> None:
        """Append a record."""
        if not self.muted:
            self.last += 1
            self._records.append(record)
            if record.kind == Uevent.kind:
                self.uevents_sent += 1
                self._uevents.append(self.last)
            if len(self._records) >= self._full:  # dropping one by one would move all others each time
                del self._records[: self._capacity]
                del self._uevents[: bisect_right(self._uevents, self.dropped)]

    def log(self, level: str, text: str) -> None:
        """Append a kernel log line."""
        self.add(LogLine(level, text))

    @property
    def dropped(self) -> int:
        """How many of the oldest records are gone."""
        return max(self.last - self._capacity, 0)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Yield (sequence number, record), oldest first."""
        return iter(self.since(0))

    def since(self, sequence: int, limit: int | None = None) -> list[tuple[int, Record]]:
        """Return the records after that sequence number that are still kept, at most `limit` of them."""
        first = self._index(max(sequence, self.dropped))
        records = self._records[first:] if limit is None else self._records[first : first + limit]
        return list(enumerate(records, max(sequence, self.dropped) + 1))

    def uevents_until(self, sequence: int) -> int:
        """Return how many uevents there had been after the record of that sequence number, which must be kept."""
        return self.uevents_sent - len(self._uevents) + bisect_right(self._uevents, sequence)

    def _index(self, sequence: int) -> int:
        """Return the place behind the record of that sequence number."""
        return sequence - self.last + len(self._records)

"""The only way out of the core: the ordered journal of what happened.

Whatever wants to print, notify or assert reads the journal; nothing in the core calls back into a front end.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from apfs.journal.records import LogLine, Record, Uevent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.journal.records import Level

CAPACITY = 200_000
"""Records that are kept; a write to `apmask` that rebinds 65,536 queues makes 131,073. Older ones are dropped."""


class Journal:
    """Ordered records with sequence numbers that start at 1 and are never used again."""

    def __init__(self) -> None:
        self._capacity = CAPACITY
        self._full = 2 * CAPACITY
        self._records: list[Record] = []
        self._uevents: list[int] = []
        """Sequence numbers of the uevents among the records."""
        self.last = 0
        """Sequence number of the newest record; 0 before the first."""
        self.uevents_sent = 0
        """Number of uevents so far, which is the SEQNUM of the newest one."""
        self.muted = False
        """While set, records are discarded: while the machine boots, nobody can listen yet."""
        self.ended = False
        """Whether the machine has ended, as that of a guest does: there will be no more records."""

    def add(self, record: Record) -> None:
        """Append a record."""
        if not self.muted:
            self.last += 1
            self._records.append(record)
            if record.kind == Uevent.kind:
                self.uevents_sent += 1
                self._uevents.append(self.last)
            if len(self._records) >= self._full:  # dropping them one by one would move all the others each time
                del self._records[: self._capacity]
                del self._uevents[: bisect_right(self._uevents, self.dropped)]

    def log(self, level: Level, text: str) -> None:
        """Append a kernel log line."""
        self.add(LogLine(level, text))

    @property
    def dropped(self) -> int:
        """How many of the oldest records were dropped."""
        return max(self.last - self._capacity, 0)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Yield (sequence number, record), oldest first."""
        return iter(self.since(0))

    def since(self, sequence: int, limit: int | None = None) -> list[tuple[int, Record]]:
        """Return the records after a sequence number that are still kept, at most `limit` of them."""
        first = self._index(max(sequence, self.dropped))
        records = self._records[first:] if limit is None else self._records[first : first + limit]
        return list(enumerate(records, max(sequence, self.dropped) + 1))

    def uevents_until(self, sequence: int) -> int:
        """Return the number of uevents up to and including the record of a sequence number, which must be kept."""
        return self.uevents_sent - len(self._uevents) + bisect_right(self._uevents, sequence)

    def _index(self, sequence: int) -> int:
        """Return the index of the record after that of a sequence number."""
        return sequence - self.last + len(self._records)


class GuestJournal(Journal):
    """The journal of a guest: whoever serves its host must learn that something happened."""

    def __init__(self, stir: Callable[[], None]) -> None:
        """Call `stir` with every record."""
        super().__init__()
        self._stir = stir

    def add(self, record: Record) -> None:
        """Append a record."""
        super().add(record)
        if not self.muted:
            self._stir()

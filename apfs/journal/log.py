"""The one door out of the core: the ordered journal of what happened.

Whoever wants to print, log, notify or assert reads the journal; nothing in the core calls back into a shell.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from apfs.journal.records import LogLine, Record, Uevent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.journal.records import Level

CAPACITY = 200_000
"""Records kept: an `apmask` write that rebinds 65,536 queues makes 131,073. Older ones are dropped and counted."""


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

    def log(self, level: Level, text: str) -> None:
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

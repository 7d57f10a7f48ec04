"""The core's only output: the ordered journal of everything that happens.

Code that prints, notifies or asserts reads the journal; nothing in the core calls back into a front end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING

from apfs.journal.records import Inside, LogLine, Record, Uevent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.journal.records import Level

CAPACITY = 200_000
"""Records that are kept; a write to `apmask` that rebinds 65,536 queues makes 131,073. Older ones are dropped."""

CONTENT = 1 << 26
"""Characters that are kept of what was transferred and the like; 65,536 queues have a stream of 2 MiB in hex.

When there is more, the oldest records that have some are dropped, and so are those before them.
"""


class Journal:
    """Ordered records with sequence numbers that start at 1 and are never used again."""

    def __init__(self) -> None:
        self._capacity = CAPACITY
        self._full = 2 * CAPACITY
        self._records: list[Record] = []
        self._bulky: deque[tuple[int, int]] = deque()
        """Sequence number and number of characters of the records that count for `CONTENT`."""
        self._content = 0
        """Their sum."""
        self._light = 0
        """The last record that was dropped and counted for `CONTENT`."""
        self._files = 0
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

    def add(self, record: Record, content: int = 0) -> None:
        """Append a record. `content` is the number of characters in it if it can be long, as that of a stream."""
        if not self.muted:
            self.last += 1
            self._records.append(record)
            if record.kind == Uevent.kind:
                self.uevents_sent += 1
                self._uevents.append(self.last)
            if content:
                self._bulky.append((self.last, content))
                self._content += content
            # Dropping them one by one would move all the others each time.
            if len(self._records) >= self._full or self._content > CONTENT:
                self._drop()

    def _drop(self) -> None:
        """Drop what is beyond the limits."""
        while self._bulky and (self._content > CONTENT or self._bulky[0][0] <= self.dropped):
            self._light, freed = self._bulky.popleft()
            self._content -= freed
        del self._records[: self._index(self.dropped)]
        del self._uevents[: bisect_right(self._uevents, self.dropped)]

    def new_file(self) -> int:
        """Return a number for an open file, which no other has: neither of this system nor of its host or guests."""
        self._files += 1
        return self._files

    def log(self, level: Level, text: str) -> None:
        """Append a kernel log line."""
        self.add(LogLine(level, text))

    @property
    def dropped(self) -> int:
        """How many of the oldest records were dropped."""
        return max(self.last - self._capacity, self._light, 0)

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

    def __init__(self, stir: Callable[[], None], host: Journal, name: str) -> None:
        """Call `stir` with every record, and let the journal of the host have the outcomes, under the guest's name.

        So that journal has all that changes the state of the host, and in its order.
        """
        super().__init__()
        self._stir = stir
        self._host = host
        self._name = name

    def add(self, record: Record, content: int = 0) -> None:
        """Append a record."""
        super().add(record, content)
        if not self.muted:
            self._stir()
            if record.outcome:
                self._host.add(Inside(self._name, record), content)

    def new_file(self) -> int:
        """Return a number for an open file."""
        return self._host.new_file()

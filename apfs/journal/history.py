"""Queries of the journal, for tests: a snapshot with typed results.

A `Host` in this process and the file `ctl/journal` of a mount result in the same history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from apfs.journal.records import LogLine, Record, Refusal, Store, Uevent
from apfs.journal.text import from_line, in_words, is_incomplete, to_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.journal.log import Journal
    from apfs.journal.records import Action, Header

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class History:
    """Records of the journal in order. Immutable: take a new history to see what has happened since.

    Paths are those of the host, such as `/sys/bus/ap/apmask`, without links. Queries take patterns of paths as in
    fnmatch(3); `*` also matches `/`.
    """

    entries: tuple[tuple[int, Record], ...] = ()
    """The records with their sequence numbers, which start at 1 and are never used again."""

    header: Header | None = field(default=None, compare=False)
    """What a `ctl/journal` begins with: the host, and its scenario."""

    truncated: bool = field(default=False, compare=False)
    """Whether the text ended within a line, as after a crash or on a full disk. That line is not among the records."""

    @classmethod
    def of(cls, journal: Journal) -> History:
        """Return the current content of a journal."""
        return cls(tuple(journal))

    @classmethod
    def parse(cls, text: str) -> History:
        """Return the history in the text of a `ctl/journal`. `ValueError` names the first line that is not a record.

        A last line of which only the beginning is there is left out, see `truncated`.
        """
        entries, header, lines = [], None, text.splitlines()
        truncated = len(lines) > 1 and not text.endswith("\n") and is_incomplete(lines[-1])
        if truncated:
            lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                header = to_header(line) if number == 1 else header
                if number > 1 or header is None:
                    entries.append(from_line(line))
            except ValueError as error:
                raise ValueError(f"line {number} is {error}") from None
        return cls(tuple(entries), header, truncated)

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def last(self) -> int:
        """Sequence number of the newest record; 0 if there is none."""
        return self.entries[-1][0] if self.entries else 0

    def since(self, sequence: int) -> History:
        """Return what happened after the record with that number: `journal.since(before.last)`."""
        return History(tuple(entry for entry in self.entries if entry[0] > sequence))

    def requests(self) -> Iterator[list[tuple[int, Record]]]:
        """Yield the records of each request: its consequences, and last its outcome.

        The last ones may be without an outcome.
        """
        request: list[tuple[int, Record]] = []
        for entry in self.entries:
            request.append(entry)
            if entry[1].outcome:
                yield request
                request = []
        if request:
            yield request

    def of_kind(self, kind: type[R]) -> list[R]:
        """Return the records of one class of `apfs.journal.records`."""
        return [record for record in self if isinstance(record, kind)]

    def stores(self, path: str = "*") -> list[Store]:
        """Return the successful writes to attributes whose path matches."""
        return [store for store in self.of_kind(Store) if fnmatchcase(store.path, path)]

    def refusals(self, path: str = "*") -> list[Refusal]:
        """Return the refused requests whose path matches, console verbs included."""
        return [refusal for refusal in self.of_kind(Refusal) if fnmatchcase(refusal.path, path)]

    def uevents(self, devpath: str = "*", action: Action | None = None) -> list[Uevent]:
        """Return the uevents whose DEVPATH, which has no `/sys`, matches, optionally only those of `action`."""
        return [
            event
            for event in self.of_kind(Uevent)
            if fnmatchcase(event.devpath, devpath) and action in (None, event.action)
        ]

    def kmsg(self) -> list[str]:
        """Return the lines of the kernel log."""
        return [line.text for line in self.of_kind(LogLine)]

    def report(self, most: int = 20) -> str:
        """Return a text for people: the newest refusals with their reasons, then the newest records of any kind."""
        refused = [entry for entry in self.entries if isinstance(entry[1], Refusal)]
        lines = []
        for what, entries in (("refusals", refused), ("records", list(self.entries))):
            shown = entries[-most:]
            lines.append(f"{what}: {len(entries)}" + (f", the last {most}:" if len(entries) > most else ""))
            lines += [f"  {sequence:>4} {in_words(record)}" for sequence, record in shown]
        return "\n".join(lines)

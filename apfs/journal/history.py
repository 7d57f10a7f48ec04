"""What happened on a host, as a test asks for it: a snapshot of the journal with typed questions.

It is the same whether it comes from a `Host` in this process or from the file `ctl/journal` of a mount.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from apfs.ap.mask import ap_hex2bitmap
from apfs.journal.records import (
    Crash,
    GuestUpdate,
    Interrupt,
    Ioctl,
    LogLine,
    Migration,
    QueuesReset,
    Record,
    Refusal,
    Store,
    Uevent,
    Verb,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.journal.log import Journal

KINDS: dict[str, type[Record]] = {
    kind.kind: kind
    for kind in (Store, Refusal, Uevent, LogLine, GuestUpdate, Interrupt, Ioctl, QueuesReset, Migration, Verb, Crash)
}
"""Classes of records by the `type` that `ctl/journal` gives them."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class History:
    """Records of the journal in their order. Immutable: take a new one to see what happened since.

    Paths are those of the host, such as `/sys/bus/ap/apmask`, without links. Where a question takes a path it is a
    pattern as in fnmatch(3), in which `*` also matches `/`.
    """

    entries: tuple[tuple[int, Record], ...] = ()
    """The records with their sequence numbers, which start at 1 and are never used again."""

    @classmethod
    def of(cls, journal: Journal) -> History:
        """Return what a journal holds now."""
        return cls(tuple(journal))

    @classmethod
    def parse(cls, text: str) -> History:
        """Return the history that the text of a `ctl/journal` tells. `ValueError` names the first line that is none."""
        entries = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entries.append(parse_record(line))
            except ValueError as error:
                raise ValueError(f"line {number} is {error}") from None
        return cls(tuple(entries))

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def last(self) -> int:
        """Sequence number of the newest record; 0 if there is none."""
        return self.entries[-1][0] if self.entries else 0

    def since(self, sequence: int) -> History:
        """Return what happened after the record of that number: `journal.since(before.last)`."""
        return History(tuple(entry for entry in self.entries if entry[0] > sequence))

    def of_kind(self, kind: type[R]) -> list[R]:
        """Return the records of one class of `apfs.journal.records`."""
        return [record for record in self if isinstance(record, kind)]

    def stores(self, path: str = "*") -> list[Store]:
        """Return the successful writes to attributes whose path matches."""
        return [store for store in self.of_kind(Store) if fnmatchcase(store.path, path)]

    def refusals(self, path: str = "*") -> list[Refusal]:
        """Return the refused requests whose path matches, console verbs included."""
        return [refusal for refusal in self.of_kind(Refusal) if fnmatchcase(refusal.path, path)]

    def uevents(self, devpath: str = "*", action: str | None = None) -> list[Uevent]:
        """Return the events whose DEVPATH matches, which is without `/sys`; of one action, if given."""
        return [
            event
            for event in self.of_kind(Uevent)
            if fnmatchcase(event.devpath, devpath) and action in (None, event.action)
        ]

    def kmsg(self) -> list[str]:
        """Return the lines of the kernel log."""
        return [line.text for line in self.of_kind(LogLine)]

    def report(self, most: int = 20) -> str:
        """Return text for people: the newest refusals with their reasons first, then the newest records of any kind."""
        refused = [entry for entry in self.entries if isinstance(entry[1], Refusal)]
        lines = []
        for what, entries in (("refusals", refused), ("records", list(self.entries))):
            shown = entries[-most:]
            lines.append(f"{what}: {len(entries)}" + (f", the last {most}:" if len(entries) > most else ""))
            lines += [f"  {sequence:>4} {describe(record)}" for sequence, record in shown]
        return "\n".join(lines)


def describe(record: Record) -> str:
    """Return a record as text for people, with the whole traceback of a crash."""
    what, why = summary(record)
    if isinstance(record, Crash):
        return f"crash {what}\n{record.traceback}"
    word = "refused" if isinstance(record, Refusal) else record.kind
    return f"{word} {what}" + (f": {why}" if why else "")


def summary(record: Record) -> tuple[str, str]:
    """Return what a record tells, without its type, on one line: what happened, and for what went wrong, why."""
    why = ""
    match record:
        case Refusal(operation, path, data, errno, why):
            what, why = f"{operation} {path}{f' {data!r}' if data else ''}", f"{errno}: {why}"
        case Store(path, data):
            what = f"{path} {data!r}"
        case LogLine(level, text):
            what = f"{level}: {text}"
        case Uevent():
            keys = (f"{key}={value.rstrip()}" for key, value in record.keys)
            what = " ".join([record.action, record.devpath, *keys])
        case GuestUpdate(mdev, adapters, domains, control_domains):
            what = f"{mdev} adapters: {_ranges(adapters, 2)}, domains: {_ranges(domains, 4)}"
            what += f", control domains: {_ranges(control_domains, 4)}"
        case Migration(mdev, before, after):
            what = f"{mdev} {before} -> {after}"
        case QueuesReset(count, failed):
            what = f"queues: {count}" + "".join(f", {apqn} failed with {code}" for apqn, code in failed.items())
        case Verb(text):
            what = text
        case Crash(operation, traceback):
            what, why = operation, (traceback.splitlines() or [""])[-1]
        case _:
            what = " ".join(f"{value}" for name, value in record.as_dict().items() if name != "type")
    return printable(what), printable(why)


_CONTROL = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def printable(text: str) -> str:
    """Return a text with escapes for what a terminal would obey or take for the end of a line."""
    return text.translate(_CONTROL)


def _ranges(mask: str, digits: int) -> str:
    return ap_hex2bitmap(mask).ranges(digits) or "none"


def parse_record(line: str) -> tuple[int, Record]:
    """Return the sequence number and the record of one line of `ctl/journal`. `ValueError` if it is none."""
    try:
        fields = json.loads(line)
        sequence = fields.pop("seq")
        kind = KINDS[fields.pop("type")]
        if kind is Uevent:
            fields["keys"] = tuple(fields["keys"].items())
        return sequence, kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"not a record of a journal of this apfs: {line!r}") from None

"""Records as text: lines of `ctl/journal` and back, one line for people, events as the kernel sends them."""

from __future__ import annotations

import json
import re
from typing import Literal, get_args, get_origin, get_type_hints

from apfs.journal.records import (
    KINDS,
    Crash,
    GuestUpdate,
    LogLine,
    Migration,
    QueuesReset,
    Record,
    Refusal,
    Store,
    Uevent,
    Verb,
)

_WORDS = {
    kind: {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}
    for kind in KINDS.values()
}
"""The words that a field with a vocabulary can have, by kind of record and name of the field."""


def to_line(sequence: int, record: Record) -> str:
    """Return a record as a line of `ctl/journal`, one JSON object, without the newline."""
    return json.dumps({"seq": sequence} | record.as_dict())


def from_line(line: str) -> tuple[int, Record]:
    """Return the sequence number and the record of a line of `ctl/journal`. `ValueError` if there is none in it."""
    try:
        fields = json.loads(line)
        sequence = fields.pop("seq")
        kind = KINDS[fields.pop("type")]
        if kind is Uevent:
            fields["keys"] = tuple(fields["keys"].items())
        record = kind(**fields)
        known = all(fields[name] in words for name, words in _WORDS[kind].items())
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"not a record of a journal of this apfs: {line!r}")
    return sequence, record


def head_of_line(line: str | bytes) -> tuple[int, str]:
    """Return the sequence number and the type of a line of `ctl/journal`, which may be of another version of apfs."""
    fields = json.loads(line)
    return fields["seq"], fields["type"]


def to_wire(sequence: int, event: Uevent) -> str:
    """Return an event with its number as `ctl/uevents` has it: `action@devpath`, a line for each key, an empty line."""
    keys = (*event.environment(), ("SEQNUM", str(sequence)))
    # APMASK and AQMASK end with a newline when they are sent, which would make the empty line here.
    lines = "".join(f"{key}={value.rstrip()}\n" for key, value in keys)
    return f"{event.action}@{event.devpath}\n{lines}\n"


def in_words(record: Record) -> str:
    """Return a record as text for people, with the whole traceback of a crash."""
    what, why = summary(record)
    if isinstance(record, Crash):
        return f"crash {what}\n{record.traceback}"
    word = "refused" if isinstance(record, Refusal) else record.kind
    return f"{word} {what}" + (f": {why}" if why else "")


def summary(record: Record) -> tuple[str, str]:
    """Return a record, without its type, on one line: what happened, and why, if something went wrong."""
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
            what = f"{mdev} adapters: {_numbers(adapters, 2)}, domains: {_numbers(domains, 4)}"
            what += f", control domains: {_numbers(control_domains, 4)}"
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
    """Return a text with escapes for control characters and for whatever else ends a line."""
    return text.translate(_CONTROL)


def _numbers(mask: str, digits: int) -> str:
    """Return the numbers in a mask, with runs as ranges; bit 0 is leftmost.

    The result is that of `Mask.ranges`, which cannot be used here, because the journal imports nothing of apfs.
    """
    runs = (run.span() for run in re.finditer("1+", f"{int(mask, 16):0256b}"))
    texts = (f"{first:0{digits}x}" + (f"-{end - 1:0{digits}x}" if end - first > 1 else "") for first, end in runs)
    return " ".join(texts) or "none"

"""Records as text: lines of `ctl/journal` and back, readable lines, uevents in the kernel's format."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from apfs.journal.records import (
    FORMAT,
    KINDS,
    Close,
    Crash,
    GuestUpdate,
    Header,
    Inside,
    Ioctl,
    LogLine,
    Migration,
    Open,
    QueuesReset,
    Record,
    Refusal,
    Setattr,
    Store,
    Time,
    Transfer,
    Uevent,
    Verb,
)


@cache
def _hints() -> dict[type[Record | Header], dict[str, Any]]:
    """Return what a field can have, by kind of record and name of the field; made when a journal is first read."""
    return {kind: get_type_hints(kind) for kind in (*KINDS.values(), Header)}


def to_line(sequence: int, record: Record | Header) -> str:
    """Return a record, or with number 0 the header, as a line of `ctl/journal`: one JSON object, without newline."""
    return json.dumps({"seq": sequence} | record.as_dict())


def from_line(line: str) -> tuple[int, Record]:
    """Return the sequence number and the record of a line of `ctl/journal`. `ValueError` if there is none in it."""
    try:
        fields = json.loads(line)
        sequence = fields.pop("seq")
        record = _record(fields)
        if not _fits(sequence, int):
            raise ValueError(sequence)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"not a record of a journal of this apfs: {line!r}") from None
    return sequence, record


def _record(fields: dict[str, Any]) -> Record:
    """Return the record with these fields, and a type."""
    kind = KINDS[fields.pop("type")]
    if kind is Uevent:
        fields["keys"] = tuple(fields["keys"].items())
    if kind is Inside:
        fields["record"] = _record(fields["record"])
    _check(kind, fields)
    if kind is GuestUpdate:
        for mask in ("adapters", "domains", "control_domains"):
            int(fields[mask], 16)
    return kind(**fields)


def _check(kind: type[Record | Header], fields: dict[str, Any]) -> None:
    """Refuse fields that a kind of record does not have, or not with such values. `KeyError`, `ValueError`."""
    hints = _hints()[kind]
    for name, value in fields.items():
        if not _fits(value, hints[name]):
            raise ValueError(value)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 -- a type of any form
    """Whether a value from JSON is one of a type; `true` is no number, as it would be to isinstance."""
    if type(value) is hint or hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin is tuple:  # of an event's keys, which JSON has as an object
        return isinstance(value, tuple) and {type(item) for _, item in value} <= {str}
    if hint is Record:
        return isinstance(value, Record)
    return any(_fits(value, one) for one in inner)  # if it is a union: a plain type has no others in it


def to_header(line: str) -> Header | None:
    """Return the header if a line of `ctl/journal` is one. `ValueError` if there is a form that nobody knows in it."""
    try:
        fields = json.loads(line)
        if fields.pop("type") != Header.kind:
            return None
        del fields["seq"]
        number = fields["format"]
        if number == FORMAT:
            _check(Header, fields)
        header = Header(**fields) if number == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"not the header of a journal: {line!r}") from None
    if header is None:
        raise ValueError(f"a header of form {number}, while this apfs knows {FORMAT}: {line!r}")
    return header


_BEGINNING = '{"seq": '


def is_incomplete(line: str) -> bool:
    """Whether a text is the beginning of a line of `ctl/journal`, but not all of it."""
    if not line.startswith(_BEGINNING[: len(line)]):
        return False
    try:
        json.loads(line)
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


def head_of_line(line: str | bytes) -> tuple[int, str]:
    """Return the sequence number and the type of a line of `ctl/journal`, which may be of another version of apfs."""
    fields = json.loads(line)
    return fields["seq"], fields["type"]


def to_wire(sequence: int, event: Uevent) -> str:
    """Return an event with its number as `ctl/uevents` has it: `action@devpath`, a line for each key, an empty line.

    A newline within a value, as names of zcrypt nodes may have it, is written as a backslash and `x0a`.
    """
    keys = (*event.environment(), ("SEQNUM", str(sequence)))
    # APMASK and AQMASK end with a newline when they are sent, which would make the empty line here.
    lines = [f"{event.action}@{event.devpath}", *(f"{key}={value}".removesuffix("\n") for key, value in keys)]
    return "".join(line.replace("\n", r"\x0a") + "\n" for line in lines) + "\n"


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
            what, why = f"{operation} {path}{f' {_as_utf8(data)!r}' if data else ''}", f"{errno}: {why}"
        case Store(path, data):
            what = f"{path} {_as_utf8(data)!r}"
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
            what = _what(record)
    return printable(what), printable(why)


def _what(record: Record) -> str:
    """Return what happened, of records that never say why."""
    match record:
        case Open(path, access, file):
            words = [path, access or "ioctls", f"file {file}"]
        case Close(path, file):
            words = [path, f"file {file}"]
        case Transfer(path, file, direction, _, content):
            words = [direction, f"{len(content) // 2} bytes", path, f"file {file}"]
        case Setattr(path, mode, uid, gid, atime, mtime):
            told = (("mode", None if mode is None else f"{mode:04o}"), ("uid", uid), ("gid", gid))
            words = [path, *(f"{name} {value}" for name, value in told if value is not None)]
            set_times = (("atime", atime), ("mtime", mtime))
            words += [f"{name} {_seconds(value)}" for name, value in set_times if value is not None]
        case Time(seconds):
            words = [f"{seconds} s"]
        case Inside(guest, inner):
            words = [f"{guest}:", in_words(inner)]
        case Ioctl(path, request):
            words = [path, request]
        case _:
            words = [f"{value}" for name, value in record.as_dict().items() if name != "type"]
    return " ".join(words)


def _seconds(nanoseconds: int) -> str:
    """Return a time as date(1) and touch(1) take it: seconds since the epoch behind an `@`."""
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    return f"@{'-' * (nanoseconds < 0)}{seconds}.{rest:09d}"


_SEQUENCE = re.compile("[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_CONTROL = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def printable(text: str) -> str:
    """Return a text with escapes for control characters and for whatever else ends a line.

    What programs wrote has a character for each byte, and is shown as UTF-8 where it is that.
    """
    return _as_utf8(text).translate(_CONTROL)


def _as_utf8(text: str) -> str:
    """Return a text with a character for each byte with those that the bytes are in UTF-8, as far as they are valid."""
    return text if text.isascii() else _SEQUENCE.sub(_letter, text)


def _letter(sequence: re.Match[str]) -> str:
    try:
        return sequence[0].encode("latin-1").decode()
    except UnicodeError:
        return sequence[0]


def _numbers(mask: str, digits: int) -> str:
    """Return the numbers in a mask, with runs as ranges; bit 0 is leftmost.

    The result is that of `Mask.ranges`, which cannot be used here, because the journal imports nothing of apfs.
    """
    runs = (run.span() for run in re.finditer("1+", f"{int(mask, 16):0256b}"))
    texts = (f"{first:0{digits}x}" + (f"-{end - 1:0{digits}x}" if end - first > 1 else "") for first, end in runs)
    return " ".join(texts) or "none"

"""The proof of an order: what many processes did to a host at once is what one would have done alone, in that order.

A host's journal orders whatever changed it. What is to be proven, with the notes of the processes (`client.py`):

1. Each outcome in the journal is one of somebody's requests, and each request that can change something has one.
2. Each request took effect between its call and its return: whoever returned before another was made comes first. Of
   requests that are alike it is enough that so many were made, and had returned; each process spells its own way.
3. A fresh host to which the requests of the journal are made in its order, answers the same, and is the same then.
4. Each reader saw the state of that host at a moment between call and return; and of two readers, of which one had
   returned before the other began, the second did not see an older state. A listing takes several requests, so that
   it need not be that of one moment: what was there all the time is in it, and nothing that never was.

So the whole history, reads included, is linearizable (Herlihy and Wing, 1990). To find an order for reads is simple
here, because that of the writes is known, and readers change nothing: each gets the earliest place that is possible.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apfs.ctl.status import status
from apfs.errors import KernelError
from apfs.journal.records import Close, Open, Refusal, Store, Transfer, Verb
from apfs.replay.replay import begin
from apfs.testing.files import Shell

if TYPE_CHECKING:
    from apfs.host import Host
    from apfs.journal.history import History
    from apfs.journal.records import Record

Key = tuple[str, str, str, str]
"""Kind, path, data and errno: what requests and outcomes have in common."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
READS = ("read", "list", "link", "open")
FOREVER = 1 << 63


class OrderError(AssertionError):
    """There is no such order."""


@dataclass(slots=True)
class Request:
    """What one process asked for."""

    kind: str
    path: str
    data: str
    call: int
    end: int
    """When it returned."""
    errno: str
    got: Any
    who: str
    place: int = 0
    """Of a reader: after how many outcomes it looked."""
    possible: list[int] = field(default_factory=list)
    """The places at which a reader could have seen what it saw, ascending."""
    seen: list[object] = field(default_factory=list)
    """Of a listing: what was there at each of its moments, names or an errno."""

    def __str__(self) -> str:
        said = self.errno or ("" if self.got is None else f"{self.got!r:.200}")
        return f"{self.who} {self.call}-{self.end}: {self.kind} {self.path} {self.data!r} -> {said or 'done'}"


def notes(who: str, text: str) -> list[Request]:
    """Return what a process noted."""
    return [
        Request(
            *(note["kind"], note["path"], note["data"], note["call"]),
            note["return"] if note["kind"] != "close" else FOREVER,  # the kernel releases files later
            *(note.get("errno", ""), note.get("got"), who),
        )
        for note in map(json.loads, text.splitlines())
    ]


def prove(history: History, requests: list[Request], final: str) -> Host:
    """Prove the order of requests to a host, whose `ctl/status` was `final` afterwards. `OrderError` if there is none.

    Return the host that did the same.
    """
    readers = sorted(filter(_is_read, requests), key=lambda request: request.call)
    writers = [request for request in requests if not _is_read(request)]
    outcomes = [record for record in history if record.outcome]
    host = _replay(history, readers, _windows(readers, _match(outcomes, writers), len(outcomes)))
    _place([reader for reader in readers if reader.kind != "list"])
    for reader in readers:
        if reader.kind == "list":
            _check_listing(reader)
    if status(host) != final:
        raise OrderError(f"the host was in another state in the end than the replayed one:\n{final}\n{status(host)}")
    return host


def _is_read(request: Request) -> bool:
    """Whether a request changes nothing, and the journal has nothing of it.

    A name that is not there is found out by the kernel, which looks for it.
    """
    if request.kind in ("list", "link") or request.errno == "ENOENT":
        return True
    return request.kind in ("read", "open") and not request.errno


# -- writers ------------------------------------------------------------------------------------------


def _key(request: Request) -> Key:
    kind = "open" if request.kind == "take" else request.kind
    data = request.got if kind == "receive" and not request.errno else request.data
    return _nameless((kind, request.path, data, request.errno))


def _nameless(key: Key) -> Key:
    """Return the key of an answer that the file's device is gone, in which its name does not matter."""
    return key if key[3] != "ENODEV" else (key[0], _UUID.sub("(removed)", key[1], count=1), *key[2:])


def _key_of(outcome: Record) -> Key | None:
    """Return what requests with this outcome have; None if it is one of looking for a name that has just gone."""
    match outcome:
        case Store(path, data):
            key = "write", path, data, ""
        case Verb(text):
            key = "write", "/ctl/console", text, ""
        case Open(path):
            key = "open", path, "", ""
        case Close(path):
            key = "close", path, "", ""
        case Transfer(path, _, direction, _, content):
            key = ("receive" if direction == "read" else "send"), path, content, ""
        case Refusal("open", path, _, errno):
            if errno == "ENOENT":
                return None
            key = "open", path, "", errno
        case Refusal(operation, path, data, errno, input=details):
            key = ("read" if operation == "read" else "write"), path, data, errno
            if details and "file" in details:
                key = ("receive" if operation == "read" else "send"), path, details.get("content", ""), errno
        case _:
            raise OrderError(f"nobody asked for {outcome}")
    return _nameless(key)


@dataclass(slots=True)
class _Alike:
    """Requests that are alike, of which nobody can say which one an outcome is of."""

    places: list[int]
    """Of their outcomes."""
    calls: list[int]
    ends: list[int]
    """All ascending: the n-th outcome is not before the n-th call, nor after the n-th return."""


def _match(outcomes: list[Record], writers: list[Request]) -> list[_Alike]:
    """Match outcomes and requests, and see to it that outcomes can come one after the other, each in its time."""
    places, requests = defaultdict[Key, list[int]](list), defaultdict[Key, list[Request]](list)
    for place, outcome in enumerate(outcomes, 1):
        if key := _key_of(outcome):
            places[key].append(place)
    for request in writers:
        requests[_key(request)].append(request)
    times: dict[int, tuple[int, int]] = {}
    found = []
    for key in places | requests:
        if len(places[key]) > len(requests[key]):
            raise OrderError(f"outcome {places[key][-1]}, {outcomes[places[key][-1] - 1]}, is nobody's")
        if len(places[key]) < len(requests[key]):
            raise OrderError(f"the journal has nothing of {requests[key][-1]}, or of one like it")
        calls, ends = sorted(each.call for each in requests[key]), sorted(each.end for each in requests[key])
        found.append(_Alike(places[key], calls, ends))
        times |= zip(places[key], zip(calls, ends, strict=True), strict=True)
    now = 0
    for place, (call, end) in sorted(times.items()):
        now = max(now, call)
        if now > end:
            outcome = outcomes[place - 1]
            raise OrderError(f"outcome {place}, {outcome}, of {call}-{end}, comes after one that was called at {now}")
    return found


# -- readers ------------------------------------------------------------------------------------------


def _windows(readers: list[Request], writers: list[_Alike], last: int) -> list[range]:
    """Return for each reader, in the order of their calls, the places that writers before and after it leave.

    Of `last` outcomes. If so many of some requests that are alike have returned before, so many outcomes are before it.
    """
    returned = sorted((end, place) for alike in writers for end, place in zip(alike.ends, alike.places, strict=True))
    first = _largest(returned, [reader.call for reader in readers])
    # The other way round, with time and places counted backwards from their ends.
    called = sorted((-call, -place) for alike in writers for call, place in zip(alike.calls, alike.places, strict=True))
    backwards = sorted(range(len(readers)), key=lambda each: -readers[each].end)
    later = _largest(called, [-readers[each].end for each in backwards], -last - 1)
    until = {each: -place for each, place in zip(backwards, later, strict=True)}
    return [range(place, until[each]) for each, place in enumerate(first)]


def _largest(events: list[tuple[int, int]], moments: list[int], least: int = 0) -> list[int]:
    """Return for each of some ascending moments the largest place of an event before it, `least` if there is none."""
    found, position, largest = [], 0, least
    for moment in moments:
        while position < len(events) and events[position][0] < moment:
            largest = max(largest, events[position][1])
            position += 1
        found.append(largest)
    return found


def _replay(history: History, readers: list[Request], windows: list[range]) -> Host:
    """Replay a journal, and find out after which of its requests each reader would have seen what it saw."""
    host, steps = begin(history)
    begins: defaultdict[int, list[int]] = defaultdict(list)
    for each, window in enumerate(windows):
        if window:
            begins[window.start].append(each)
    active: set[int] = set()
    place = 0
    while True:
        active |= set(begins[place])
        seen: dict[tuple[str, str], object] = {}
        for each in active:
            reader = readers[each]
            what = (reader.kind, reader.path)
            if what not in seen:
                seen[what] = _look(host, *what)
            if reader.kind == "list":
                reader.seen.append(seen[what])
            elif seen[what] == (reader.errno or reader.got):
                reader.possible.append(place)
        active = {each for each in active if place + 1 in windows[each]}
        try:
            difference = next(steps)
        except StopIteration:
            return host
        if difference is not None:
            raise OrderError(f"the replay differs: {difference}")
        place += 1


def _look(host: Host, kind: str, path: str) -> object:
    """Return what a reader sees now: a value, or the name of an errno."""
    shell = Shell(host)
    try:
        if kind == "list":
            return sorted(shell.ls(path))
        if kind == "link":
            return shell.readlink(path)
        if kind == "read":
            return shell.read(path).decode("latin-1")
    except KernelError as error:
        return error.name
    return None if shell.exists(path) else "ENOENT"


def _check_listing(reader: Request) -> None:
    """See to it that a listing has what was there all the time, and nothing that never was, each name once.

    `OrderError` if not.
    """
    names = [set(each) if isinstance(each, list) else set[str]() for each in reader.seen]
    if reader.errno:
        right = reader.errno in reader.seen
    else:
        got = set(reader.got)
        right = bool(names) and set.intersection(*names) <= got <= set.union(*names) and len(got) == len(reader.got)
    if not right:
        raise OrderError(f"what this saw was not so, at no time in between:\n{reader}")


def _place(readers: list[Request]) -> None:
    """Give each reader, in the order of calls, the earliest place that those before it leave. `OrderError` if none."""
    returned = sorted(readers, key=lambda reader: reader.end)
    position = least = 0
    for reader in readers:
        while returned[position].end < reader.call:
            least = max(least, returned[position].place)
            position += 1
        place = next((place for place in reader.possible if place >= least), None)
        if place is None:
            why = f"a reader before it saw place {least}" if reader.possible else "at no time in between"
            raise OrderError(f"what this saw was not so, {why}:\n{reader}\npossible: {reader.possible[:20]}")
        reader.place = place

"""The proof of an order: what many processes did to a host at once is what one would have done alone, in that order.

A host's journal orders whatever changed it. What is to be proven, with the notes of the processes (`client.py`):

1. Each outcome in the journal is one of somebody's requests, and each request that can change something has one.
2. Each request took effect between its call and its return: whoever returned before another was made comes first.
3. A fresh host to which the requests of the journal are made in its order, answers the same, and is the same then.
4. Each reader saw the state of that host at a moment between call and return; and of two readers, of which one had
   returned before the other began, the second did not see an older state.

So the whole history, reads included, is linearizable (Herlihy and Wing, 1990). To find an order for reads is simple
here, because that of the writes is known, and readers change nothing: each gets the earliest place that is possible.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apfs.ctl.status import status
from apfs.errors import KernelError
from apfs.journal.records import Close, Open, Refusal, Store, Transfer, Verb
from apfs.replay.replay import begin
from apfs.testing.files import Shell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.host import Host
    from apfs.journal.history import History
    from apfs.journal.records import Record

Key = tuple[str, str, str, str]
"""Kind, path, data and errno: what requests and outcomes have in common."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
REMOVED = "(removed)"
"""What an outcome has in the place of a name that is gone."""
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
    """After how many outcomes it took effect."""
    possible: list[int] = field(default_factory=list)
    """The places at which a reader could have seen what it saw, ascending."""

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
    _match(outcomes, writers)
    host = _replay(history, readers, _windows(readers, writers, len(outcomes)))
    _place(readers)
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
    return kind, request.path, request.got if kind == "receive" and not request.errno else request.data, request.errno


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
            return None if errno == "ENOENT" else ("open", path, "", errno)
        case Refusal(operation, path, data, errno, input=details):
            key = ("read" if operation == "read" else "write"), path, data, errno
            if details and "file" in details:
                key = ("receive" if operation == "read" else "send"), path, details.get("content", ""), errno
        case _:
            raise OrderError(f"nobody asked for {outcome}")
    return key


def _match(outcomes: list[Record], writers: list[Request]) -> None:
    """Find the request of each outcome, so that all of them take effect one after the other, between call and return.

    Requests that are alike can be taken for each other. Of these it is the one that returns first, of those that were
    called before the requests of later outcomes had to be done.
    """
    keys = [_key_of(outcome) for outcome in outcomes]
    waiting: defaultdict[Key, list[Request]] = defaultdict(list)
    for request in writers:
        waiting[_key(request)].append(request)
    limits, expected = _limits(keys, waiting), Counter(keys)
    now = 0
    for place, (key, limit) in enumerate(zip(keys, limits, strict=True), 1):
        if key is None:
            continue
        found = _choose(_alike(key, waiting, expected), limit)
        if found is None:
            raise OrderError(f"outcome {place}, {outcomes[place - 1]}, is nobody's")
        now = max(now, found.call)
        if now > found.end:
            raise OrderError(f"outcome {place} comes after a request that was made when this had returned:\n{found}")
        expected[key] -= 1
        waiting[_key(found)].remove(found)
        found.place = place
    for left in waiting.values():
        if left:
            raise OrderError(f"the journal has nothing of {left[0]}")


def _limits(keys: list[Key | None], waiting: dict[Key, list[Request]]) -> list[int]:
    """Return for each outcome when the first of the requests of later ones must have been done.

    Of requests that are alike, the one that returns first is taken as that of the first outcome, and so on. If there
    are more of them than outcomes, the others have lost their names, and may be those that return first.
    """
    ends: dict[Key | None, Iterator[int]] = {
        key: iter(sorted(request.end for request in waiting.get(key, ()))[-count:])
        for key, count in Counter(keys).items()
        if key is not None
    }
    limits = [next(ends[key], FOREVER) if key in ends else FOREVER for key in keys]
    later = FOREVER
    for place in reversed(range(len(limits))):
        limits[place], later = later, min(later, limits[place])
    return limits


def _alike(key: Key, waiting: dict[Key, list[Request]], expected: Counter[Key | None]) -> list[Request]:
    """Return the requests that can have an outcome. One without a name is not for those that others are left for."""
    if REMOVED not in key[1]:
        return waiting.get(key, [])
    return [
        request
        for other, requests in waiting.items()
        if len(requests) > expected[other] and (other[0], _UUID.sub(REMOVED, other[1], count=1), *other[2:]) == key
        for request in requests
    ]


def _choose(requests: list[Request], limit: int) -> Request | None:
    called = [request for request in requests if request.call <= limit]
    if called:
        return min(called, key=lambda request: request.end)
    return min(requests, key=lambda request: request.call, default=None)


# -- readers ------------------------------------------------------------------------------------------


def _windows(readers: list[Request], writers: list[Request], last: int) -> list[range]:
    """Return for each reader the places that writers before and after it leave."""
    first = _latest(((writer.end, writer.place) for writer in writers), [reader.call for reader in readers])
    # The other way round: of those that were called later than a reader returned, the first.
    ends = sorted(range(len(readers)), key=lambda each: -readers[each].end)
    later = _latest(((-writer.call, -writer.place) for writer in writers), [-readers[each].end for each in ends])
    until = {each: -place - 1 if place else last for each, place in zip(ends, later, strict=True)}
    return [range(place, until[each] + 1) for each, place in enumerate(first)]


def _latest(events: Iterable[tuple[int, int]], moments: list[int]) -> list[int]:
    """Return for each of some ascending moments the largest place of an event before it, 0 if there is none.

    Negative moments and places are those of a time that runs backwards: then it is the one that is farthest from 0.
    """
    ordered, found, largest = sorted(events), [], None
    position = 0
    for moment in moments:
        while position < len(ordered) and ordered[position][0] < moment:
            place = ordered[position][1]
            largest = place if largest is None else max(largest, place)
            position += 1
        found.append(largest or 0)
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
            if seen[what] == (reader.errno or reader.got):
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

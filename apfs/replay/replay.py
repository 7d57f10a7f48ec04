"""Replaying a journal: each request is repeated, and its effects are compared with the recorded ones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from apfs.host import Host
from apfs.journal.history import History
from apfs.journal.records import Crash, Inside
from apfs.replay.requests import Requester
from apfs.scenario.reader import loads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.journal.records import Record
    from apfs.scenario.model import Scenario


TRUNCATED = "its last line is incomplete: the journal was truncated"
"""What is to be said of a truncated journal."""


class ReplayError(Exception):
    """A journal that cannot be replayed, and why."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A request of which something is not as it was: its outcome or, if that is the same, what it led to."""

    number: int
    """Number of the request's outcome in the journal."""
    outcome: Record
    """That outcome."""
    recorded: Record | None
    """A record that is missing now, or that is another one; None if there is only one more now."""
    now: Record | None
    """A record that was not there; None if there is only one fewer now."""
    note: str = ""
    """What else is to be said: why the request cannot be made, or how many more records differ."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it."""

    host: Host
    """The host, as it is after all requests."""
    requests: int
    records: int
    differences: tuple[Difference, ...]
    """One for each request that had another outcome, or other consequences."""


def replay(history: History, scenario: Scenario | None = None) -> Replay:
    """Replay a journal, on the host of its header or another one. `ReplayError`, `ScenarioError`.

    Of a truncated journal, requests are repeated as long as their outcome is there.
    """
    if history.truncated:
        history = _answered(history)
    host, steps = begin(history, scenario)
    found = list(steps)
    return Replay(host, len(found), len(history), tuple(filter(None, found)))


def begin(history: History, scenario: Scenario | None = None) -> tuple[Host, Iterator[Difference | None]]:
    """Boot the host of a journal, or another one, for whoever wants to look at it between requests.

    Each item of the iterator is one request, made when it is asked for, and what is different about it. `ReplayError`,
    `ScenarioError`.
    """
    host = boot(history, scenario)
    _check(history)
    return host, _steps(history, host)


def _answered(history: History) -> History:
    """Return a journal up to its last outcome."""
    requests = [request for request in history.requests() if request[-1][1].outcome]
    return History(tuple(chain.from_iterable(requests)), history.header)


def _steps(history: History, host: Host) -> Iterator[Difference | None]:
    requester = Requester(host)
    for recorded in history.requests():
        number, outcome = recorded[-1]
        before = host.journal.last
        note = requester.make(outcome)
        now = [record for _, record in host.journal.since(before)]
        yield _compare(number, outcome, [record for _, record in recorded], now, note)


def _check(history: History) -> None:
    """Refuse journals with something missing: a record, or the outcome of the last ones."""
    if flaw := gap(history) or open_end(history):
        raise ReplayError(flaw)


def gap(history: History) -> str:
    """Return what is missing in the middle of a journal; empty if nothing is."""
    for (before, _), (number, _) in pairwise(history.entries):
        if number != before + 1:
            return f"record {number} follows record {before}: the records in between are missing"
    return ""


def open_end(history: History) -> str:
    """Return what is wrong with the end of a journal; empty if it is the whole outcome of a request."""
    if not history.entries or history.entries[-1][1].outcome:
        return TRUNCATED if history.truncated else ""
    why = "the journal was truncated, or the host was changed without a request, for example by a method of `Host`"
    return f"its last record, {history.last}, is not the outcome of a request: {why}"


def boot(history: History, scenario: Scenario | None = None) -> Host:
    """Return the host of a journal, or another one, as it was before the first record.

    `ReplayError` if the journal is a guest's or lacks its header or its beginning, `ScenarioError`.
    """
    header = history.header
    if header is not None and header.guest is not None:
        raise ReplayError(
            f"it is the journal of guest {header.guest}: use that of its host, which has the guest's requests, too"
        )
    if scenario is None:
        if header is None or header.scenario is None:
            raise ReplayError("it has no header, which `apfs journal --json` prints")
        scenario = loads(header.scenario, "scenario of the journal")
    if history.entries and history.entries[0][0] != 1:
        raise ReplayError(f"the host had dropped the first {history.entries[0][0] - 1:,} records")
    host = Host(scenario)
    if header is not None and header.clock == "real":
        host.follow_clock()
    return host


def _compare(number: int, outcome: Record, recorded: list[Record], now: list[Record], note: str) -> Difference | None:
    """Return what is different about a request: its outcome or else the first of the other records, None if nothing."""
    before, after = [_fields(record) for record in recorded], [_fields(record) for record in now]
    if before == after:
        return None
    if not after or before[-1] != after[-1]:
        return Difference(number, outcome, outcome, now[-1] if now and now[-1].outcome else None, note)
    lost = _without(zip(before, recorded, strict=True), after)
    new = _without(zip(after, now, strict=True), before)
    if lost or new:
        more = max(len(lost), len(new)) - 1
        note = f"and {more:,} more" if more else ""
        return Difference(number, outcome, lost[0] if lost else None, new[0] if new else None, note)
    place = next(place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
    return Difference(number, outcome, recorded[place], now[place], "in another order")


def _without(records: Iterable[tuple[str, Record]], others: Iterable[str]) -> list[Record]:
    """Return the records that are not among others, each as often as it is more than there."""
    left = Counter(others)
    result = []
    for fields, record in records:
        if left[fields]:
            left[fields] -= 1
        else:
            result.append(record)
    return result


def _fields(record: Record) -> str:
    """Return a record as a text that is equal if nothing differs that matters."""
    fields = record.as_dict()
    _drop_place(record, fields)
    return json.dumps(fields)


def _drop_place(record: Record, fields: dict[str, Any]) -> None:
    """Keep of the traceback of a crash what went wrong: where that is depends on the version."""
    if isinstance(record, Inside):
        _drop_place(record.record, fields["record"])
    elif isinstance(record, Crash):
        fields |= {"operation": "", "input": None, "traceback": record.traceback.strip().rpartition("\n")[2]}

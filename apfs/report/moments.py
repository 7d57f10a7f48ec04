"""Moments: what a host was like after each of its records, found by doing all of it again on another host."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apfs.ctl.console import run_verb
from apfs.ctl.status import document
from apfs.host import Host
from apfs.journal.records import Store, Verb
from apfs.report.picture import Picture, picture
from apfs.testing.files import SystemShell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.journal.records import Record
    from apfs.scenario.model import Scenario


class Moment(NamedTuple):
    """What a host was like after a record."""

    after: int
    """Number of the record; 0 is before all of them."""
    picture: Picture


def moments(scenario: Scenario, entries: Iterable[tuple[int, Record]]) -> Iterator[Moment]:
    """Yield what a host was like at first, and after each record that changed it.

    `KernelError` if a store or a verb that the journal has is refused now.
    """
    host = Host(scenario)
    shell = SystemShell(host)
    yield Moment(0, picture(document(host)))
    for number, record in entries:
        if isinstance(record, Store):
            shell.write(record.path, record.data)
        elif isinstance(record, Verb):
            run_verb(host, record.text)
        else:
            continue
        yield Moment(number, picture(document(host)))

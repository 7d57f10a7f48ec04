"""Nothing but records is left of operations and sessions, and of the records no more than the journal's capacity."""

from __future__ import annotations

from apfs.host import Host
from apfs.journal.log import CAPACITY
from apfs.scenario.reader import load
from apfs.testing.files import Shell
from tests.soak.flat import objects, session


def test_sessions_leave_records_only() -> None:
    shell = Shell(Host(load("default")))
    shell.echo("-5", "/sys/bus/ap/apmask")
    for number in range(5):
        session(shell, number)
    before = objects()
    for number in range(20):
        session(shell, number)
    # The test run has threads of its own, which make and drop some. What a session leaves is there twenty times.
    assert abs(objects() - before) < 20


def test_the_journal_keeps_its_capacity() -> None:
    shell = Shell(Host(load("default")))
    journal = shell.host.journal
    for _ in range(2 * CAPACITY + 10):
        journal.log("info", "x")
    shell.echo("1", "/sys/bus/ap/scans")
    assert journal.last - journal.dropped == CAPACITY
    assert sum(1 for _ in journal) == CAPACITY

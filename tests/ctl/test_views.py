"""Views of the journal: the same text in whatever pieces it is read, and never more of it than is asked for."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

import apfs.journal.log
from apfs.ctl import views
from apfs.ctl.views import JournalFile
from apfs.journal.log import Journal
from apfs.journal.records import LogLine, Record, Uevent, Verb
from tests.calls import calls

if TYPE_CHECKING:
    import pytest

EVENT = Uevent("add", "/devices/ap/card05", "ap", (("DEVTYPE", "ap_card"),))
VIEWS = (views.journal, views.kmsg, views.uevents)
RECORDS: tuple[Record, ...] = (EVENT, LogLine("info", "a line"), Verb("scan"))


def filled(records: list[Record]) -> Journal:
    journal = Journal()
    for record in records:
        journal.add(record)
    return journal


def read(file: JournalFile, size: int) -> bytes:
    text = b""
    while piece := file.read(len(text), size):
        assert len(piece) <= size
        text += piece
    return text


@given(st.lists(st.sampled_from(RECORDS), max_size=40), st.integers(1, 400))
def test_pieces_of_any_size(records: list[Record], size: int) -> None:
    for view in VIEWS:
        journal = filled(records)
        whole = view(journal, journal.since(0)).encode()
        file = JournalFile(journal, "/view", view)
        assert read(file, size) == whole
        assert file.poll() == 0
        assert read(file, 10**6) == whole  # from the beginning again
        assert file.read(len(whole) // 2, 10**6) == whole[len(whole) // 2 :]
        journal.add(EVENT)
        journal.add(LogLine("err", "more"))
        assert file.poll()
        assert whole + file.read(len(whole), 10**6) == view(journal, journal.since(0)).encode()


def test_events_keep_their_numbers_when_old_records_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apfs.journal.log, "CAPACITY", 3)
    journal = Journal()
    for sent in range(1, 20):
        journal.add(EVENT)
        journal.add(Verb("scan"))
        numbers = [line for line in views.uevents(journal, journal.since(0)).splitlines() if "SEQNUM" in line]
        assert numbers == [f"SEQNUM={sent}"]
        assert journal.dropped == max(2 * sent - 3, 0)
        assert [number for number, _ in journal] == list(range(journal.dropped + 1, 2 * sent + 1))


def test_what_was_not_read_yet_can_be_polled_for() -> None:
    file = JournalFile(filled([Verb("scan")] * 3), "/view", views.journal)
    assert file.read(0, 10)
    assert file.poll()
    assert read(file, 4096)
    assert file.poll() == 0


def test_a_file_can_be_polled_before_it_is_read() -> None:
    for view in VIEWS:
        assert JournalFile(Journal(), "/view", view).poll() == 0
        assert JournalFile(filled(list(RECORDS)), "/view", view).poll()


def test_the_first_read_may_be_in_the_middle() -> None:
    journal = filled(list(RECORDS))
    whole = views.journal(journal, journal.since(0)).encode()
    file = JournalFile(journal, "/view", views.journal)
    assert file.read(10, 20) == whole[10:30]
    assert file.poll()
    assert file.read(30, 4096) == whole[30:]
    assert file.poll() == 0


def test_what_is_before_the_first_read_is_not_kept() -> None:
    """Whoever asks for the end of a long journal must not have the server copy all of it again and again."""
    journal = filled([Verb("x" * 1000)] * 5000)
    end = 5000 * 1000
    tracemalloc.start()
    try:
        assert len(JournalFile(journal, "/view", views.journal).read(end, 4096)) == 4096
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < end


def test_from_the_beginning_again_there_is_only_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apfs.journal.log, "CAPACITY", 3)
    journal = filled([EVENT])
    file = JournalFile(journal, "/view", views.journal)
    before = file.read(0, 4096)
    for _ in range(5):
        journal.add(Verb("scan"))
    assert read(file, 4096) == views.journal(journal, journal.since(0)).encode()
    assert before not in file.read(0, 4096)


def test_dropped_records_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apfs.journal.log, "CAPACITY", 3)
    journal = Journal()
    for number in range(1000):
        journal.add(Verb(f"dropped {number}"))
    gc.collect()
    kept = [thing.text for thing in gc.get_objects() if isinstance(thing, Verb) and thing.text.startswith("dropped ")]
    assert 3 <= len(kept) < 6
    assert journal.last == 1000


def test_reading_behind_the_end_moves_nothing() -> None:
    journal = filled([Verb("scan")])
    file = JournalFile(journal, "/view", views.journal)
    whole = read(file, 4096)
    assert file.read(len(whole) + 10, 4096) == b""
    assert file.poll() == 0
    journal.add(Verb("help"))
    assert file.poll()
    assert file.read(len(whole) + 10, 4096) == views.journal(journal, journal.since(0)).encode()[len(whole) + 10 :]


def test_a_little_of_a_long_journal_costs_a_little() -> None:
    file = JournalFile(filled([EVENT] * 100_000), "/view", views.journal)
    assert 0 < calls(lambda: file.read(0, 4096)) < 20_000

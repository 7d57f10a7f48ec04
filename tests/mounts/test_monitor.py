"""The records of a journal, from its bytes however they are cut."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

import apfs.journal.log
from apfs.ctl import views
from apfs.journal.log import Journal
from apfs.journal.records import Store, Verb
from apfs.mounts.monitor import Entries, Entry

if TYPE_CHECKING:
    import pytest


def text_of(journal: Journal, since: int = 0) -> bytes:
    return views.journal(journal, journal.since(since)).encode()


def of(entries: Entries, *pieces: bytes) -> list[Entry]:
    return [entry for piece in pieces for entry in entries.of(piece)]


@given(st.lists(st.text(), max_size=4), st.lists(st.integers(0, 300), max_size=6))
def test_pieces_of_any_size(texts: list[str], cuts: list[int]) -> None:
    journal = Journal()
    for text in texts:
        journal.add(Verb(text))
    whole = text_of(journal)
    borders = [0, *sorted(cuts), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(borders)]
    pieces[-1] = whole[borders[-2] :]
    assert of(Entries(), *pieces) == [Entry(line, 0) for line in whole.decode().splitlines()]


def test_dropped_records_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apfs.journal.log, "CAPACITY", 3)
    journal, every, stores, verbs = Journal(), Entries(), Entries(["store"]), Entries(["verb"])
    for number in range(5):
        journal.add(Verb(str(number)))
    piece = text_of(journal)
    assert [entry.dropped for entry in of(every, piece)] == [2, 0, 0]
    assert [entry.dropped for entry in of(verbs, piece)] == [2, 0, 0]
    assert of(stores, piece) == []
    assert (every.dropped, verbs.dropped, stores.dropped) == (0, 0, 2)
    seen = journal.last
    for number in range(4):  # one more than there is room for
        journal.add(Verb(str(number)))
    journal.add(Store("/sys/a", "1"))
    piece = text_of(journal, seen)
    assert [entry.dropped for entry in of(every, piece)] == [2, 0, 0]
    (store,) = of(stores, piece)
    assert store.dropped == 4  # those from before, and those that were dropped since
    assert json.loads(store.line)["seq"] == journal.last == 10

"""A history is the whole journal, however it was taken, and its queries have the right answers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import apfs.journal.log
import apfs.journal.records
from apfs.ap.mask import Mask
from apfs.ctl import views
from apfs.host import Host
from apfs.journal.history import History
from apfs.journal.log import Journal
from apfs.journal.records import (
    KINDS,
    Close,
    Crash,
    GuestUpdate,
    Inside,
    Interrupt,
    Ioctl,
    LogLine,
    Migration,
    Open,
    QueuesReset,
    Read,
    Record,
    Refusal,
    Setattr,
    Store,
    Time,
    Transfer,
    Uevent,
    Verb,
)
from apfs.journal.text import from_line, in_words, printable, summary, to_line
from apfs.testing.files import Shell

MASK = "/sys/bus/ap/apmask"
UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
TEXTS = st.text()
MASKS = st.frozensets(st.integers(0, 255), max_size=4).map(lambda numbers: Mask.from_numbers(numbers).hex256())
FIELDS: dict[type[Record], dict[str, st.SearchStrategy[object]]] = {
    Uevent: {"keys": st.dictionaries(TEXTS, TEXTS).map(lambda keys: tuple(keys.items()))},
    GuestUpdate: {"adapters": MASKS, "domains": MASKS, "control_domains": MASKS},
    Inside: {"record": st.builds(Refusal) | st.builds(Verb)},
}
RECORDS = st.one_of(*(st.builds(kind, **FIELDS.get(kind, {})) for kind in KINDS.values()))


def journal_of(records: list[Record]) -> Journal:
    journal = Journal()
    for record in records:
        journal.add(record)
    return journal


@given(st.lists(RECORDS, max_size=8))
def test_text_and_journal_give_the_same_history(records: list[Record]) -> None:
    journal = journal_of(records)
    history = History.of(journal)
    assert list(history) == records
    assert History.parse(views.journal(journal, journal.since(0))) == history


def test_every_record_of_the_journal_is_known() -> None:
    tree = ast.parse(Path(apfs.journal.records.__file__).read_text())
    classes = {
        node.name for node in tree.body if isinstance(node, ast.ClassDef) and "Record" in map(ast.unparse, node.bases)
    }
    assert {kind.__name__ for kind in KINDS.values()} == classes


def test_records_with_too_much_content_are_dropped_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With them go the records before them; numbers and uevents go on."""
    monkeypatch.setattr(apfs.journal.log, "CONTENT", 10)
    journal = Journal()
    journal.add(Uevent("add", "/a", "ap", ()))
    for letter in "0123":
        journal.add(Transfer("/dev/x", 1, "write", 2, letter * 4), 4)
        journal.add(Uevent("change", "/a", "ap", ()))
    assert (journal.last, journal.dropped, journal.uevents_sent) == (9, 4, 5)
    assert [sequence for sequence, _ in journal] == [5, 6, 7, 8, 9]
    assert [record.content for record in History.of(journal).of_kind(Transfer)] == ["2222", "3333"]
    assert (journal.uevents_until(5), journal.uevents_until(9)) == (3, 5)
    journal.add(Transfer("/dev/x", 1, "write", 2, "4" * 20), 20)
    assert (list(journal), journal.dropped) == ([], 10)
    journal.add(Verb("scan"))
    assert list(journal) == [(11, Verb("scan"))]


def test_content_that_was_dropped_with_its_record_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apfs.journal.log, "CONTENT", 10)
    monkeypatch.setattr(apfs.journal.log, "CAPACITY", 2)
    journal = Journal()
    for _ in range(10):
        journal.add(Transfer("/dev/x", 1, "write", 2, "0000"), 4)
        for _ in range(4):
            journal.add(Verb("scan"))
    assert [sequence for sequence, _ in journal] == [49, 50]
    journal.add(Transfer("/dev/x", 1, "write", 2, "00000000"), 8)
    assert journal.dropped == 49


@pytest.mark.parametrize(
    "line",
    [
        *("", "words", "3", "[]", "{}", '{"seq": 1}', '{"type": "verb", "text": ""}', '{"seq": 1, "type": "what"}'),
        *('{"seq": 1, "type": "verb"}', '{"seq": 1, "type": "verb", "text": "", "more": 1}'),
        '{"seq": 1, "type": "uevent", "keys": 3}',
    ],
)
def test_what_is_no_journal_is_named(line: str) -> None:
    good = '{"seq": 1, "type": "verb", "text": "scan"}\n'
    with pytest.raises(ValueError, match=r"^line 2 is not a record of a journal of this apfs: ") as caught:
        History.parse(f"{good}{line}\n{good}")
    assert repr(line) in str(caught.value)


def test_the_last_line_may_be_cut_off() -> None:
    """As by a full disk: what is whole counts, wherever the rest ends."""
    lines = [to_line(number, Verb("scan")) for number in (1, 2)]
    whole = History.parse("\n".join(lines))
    assert (whole.last, whole.truncated) == (2, False)
    for end in range(1, len(lines[1])):
        history = History.parse(f"{lines[0]}\n{lines[1][:end]}")
        assert (history.last, history.truncated) == (1, True)


@pytest.mark.parametrize(
    "rest", ["words", " ", '{"\n', '{"seq": 2, "type": "verb"}', '{"seq": 2, "type": "new"}', '{"sequence": ']
)
def test_a_last_line_that_no_journal_has_is_not_cut_off(rest: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2 is not a record of a journal of this apfs: "):
        History.parse(f"{to_line(1, Verb('scan'))}\n{rest}")


def test_snapshot_does_not_change() -> None:
    shell = Shell(Host())
    before = shell.journal
    shell.echo("-5", MASK)
    assert len(before) == before.last == 0
    assert len(shell.journal) == shell.journal.last > 0
    assert list(shell.journal.since(0)) == list(shell.journal)
    middle = shell.journal
    shell.echo("-6", MASK)
    assert [store.data for store in shell.journal.since(middle.last).stores()] == ["-6\n"]


def test_numbers_stay_when_old_records_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apfs.journal.log, "CAPACITY", 3)
    history = History.of(journal_of([Verb(str(number)) for number in range(1, 6)]))
    assert [(sequence, in_words(record)) for sequence, record in history.entries] == [
        *((3, "verb 3"), (4, "verb 4"), (5, "verb 5")),
    ]
    assert list(history.since(4)) == [Verb("5")]
    assert list(history.since(5)) == []


STORY = History.of(
    journal_of(
        [
            Store("/sys/a/b", "1\n"),
            Store("/sys/a/b/c", "2\n"),
            Refusal("write", "/sys/a/b", "3\n", "EINVAL", "because"),
            Refusal("open", "/sys/[x]", "", "EACCES", "so"),
            Uevent("add", "/a/b", "ap", (("KEY", "value\n"), ("MORE", "x"))),
            Uevent("remove", "/a/b", "ap", ()),
            LogLine("err", "/sys/a/b"),
            Crash("read", "Traceback\nError"),
        ]
    )
)


@pytest.mark.parametrize(
    ("pattern", "data"),
    [
        ("*", ["1\n", "2\n"]),
        ("/sys/a/b", ["1\n"]),
        ("/sys/a/*", ["1\n", "2\n"]),
        ("*/c", ["2\n"]),
        ("/sys/A/b", []),
        ("b", []),
    ],
)
def test_paths_are_patterns(pattern: str, data: list[str]) -> None:
    assert [store.data for store in STORY.stores(pattern)] == data


def test_questions() -> None:
    assert [refusal.errno for refusal in STORY.refusals()] == ["EINVAL", "EACCES"]
    assert [refusal.why for refusal in STORY.refusals("/sys/a/*")] == ["because"]
    assert [event.action for event in STORY.uevents()] == ["add", "remove"]
    assert [event.action for event in STORY.uevents("/a/*", "remove")] == ["remove"]
    assert STORY.uevents("/sys/a/b") == []
    assert STORY.kmsg() == ["/sys/a/b"]
    assert STORY.of_kind(Crash) == [Crash("read", "Traceback\nError")]
    assert len(STORY.of_kind(Record)) == len(STORY) == 8


def test_report_shows_refusals_first() -> None:
    assert STORY.report().splitlines() == [
        "refusals: 2",
        r"     3 refused write /sys/a/b '3\n': EINVAL: because",
        r"     4 refused open /sys/[x]: EACCES: so",
        "records: 8",
        r"     1 store /sys/a/b '1\n'",
        r"     2 store /sys/a/b/c '2\n'",
        r"     3 refused write /sys/a/b '3\n': EINVAL: because",
        r"     4 refused open /sys/[x]: EACCES: so",
        "     5 uevent add /a/b KEY=value MORE=x",
        "     6 uevent remove /a/b",
        "     7 log err: /sys/a/b",
        "     8 crash read",
        "Traceback",
        "Error",
    ]


def test_report_is_cut() -> None:
    assert STORY.report(1).splitlines() == [
        *("refusals: 2, the last 1:", "     4 refused open /sys/[x]: EACCES: so"),
        *("records: 8, the last 1:", "     8 crash read", "Traceback", "Error"),
    ]
    assert History().report() == "refusals: 0\nrecords: 0"


EVERY_KIND = [
    (Store("/sys/a", "1\n"), r"/sys/a '1\n'", ""),
    (Refusal("write", "/sys/a", "3\n", "EINVAL", "because"), r"write /sys/a '3\n'", "EINVAL: because"),
    (Refusal("open", "/sys/a", "", "EACCES", "so"), "open /sys/a", "EACCES: so"),
    (Uevent("add", "/a", "ap", (("KEY", "value\n"), ("MORE", "x"))), "add /a KEY=value MORE=x", ""),
    (LogLine("err", "broken"), "err: broken", ""),
    (
        GuestUpdate(UUID, Mask.of(5, 6).hex256(), Mask.of(4).hex256(), Mask().hex256()),
        f"{UUID} adapters: 05-06, domains: 0004, control domains: none",
        "",
    ),
    (Interrupt(UUID, "request"), f"{UUID} request", ""),
    (Ioctl("/dev/vfio/0", "VFIO_DEVICE_RESET"), "/dev/vfio/0 VFIO_DEVICE_RESET", ""),
    (QueuesReset(8, {}), "queues: 8", ""),
    (QueuesReset(8, {"05.0004": 7}), "queues: 8, 05.0004 failed with 7", ""),
    (Migration(UUID, "RUNNING", "STOP"), f"{UUID} RUNNING -> STOP", ""),
    (Verb("plug 7 CEX7P"), "plug 7 CEX7P", ""),
    (Open("/dev/vfio/0", "rw", 3), "/dev/vfio/0 rw file 3", ""),
    (Open("/dev/iommu", "", 4), "/dev/iommu ioctls file 4", ""),
    (Close("/dev/vfio/0", 3), "/dev/vfio/0 file 3", ""),
    (Transfer("/dev/x", 5, "write", 4, "00ff"), "write 2 bytes /dev/x file 5", ""),
    (Read("/sys/a"), "/sys/a", ""),
    (Setattr("/sys/a", 0o600, None, 5), "/sys/a mode 0600 gid 5", ""),
    (
        Setattr("/sys/a", None, None, None, 10**9, -1),
        "/sys/a atime @1.000000000 mtime @-0.000000001",
        "",
    ),
    (Time(30), "30 s", ""),
    (Inside(UUID, Verb("scan")), f"{UUID}: verb scan", ""),
    (Crash("read", "Traceback:\n  line\nZeroDivisionError: division"), "read", "ZeroDivisionError: division"),
    (Crash("read", ""), "read", ""),
]


@pytest.mark.parametrize(("record", "what", "why"), EVERY_KIND)
def test_summary(record: Record, what: str, why: str) -> None:
    assert summary(record) == (what, why)


def test_summary_is_tested_for_every_kind() -> None:
    assert {type(record) for record, _, _ in EVERY_KIND} == set(KINDS.values())


@given(RECORDS)
def test_summary_is_one_line_that_no_terminal_obeys(record: Record) -> None:
    text = " ".join(summary(record))
    assert len(f"{text}x".splitlines()) == 1
    assert not set(text) & {chr(number) for number in (*range(32), *range(0x7F, 0xA0))}


def test_printable() -> None:
    assert printable("\x1b[31mé\r\n\u2028\x9b") == r"\x1b[31mé\x0d\x0a\x2028\x9b"


def test_what_was_written_as_utf_8_is_shown_as_it_is() -> None:
    assert in_words(Store("/sys/n\xc3\xb6", "\xc3\xa0\xff")) == "store /sys/nö 'àÿ'"
    assert in_words(Store("/sys/n\xf6", "\xe9\u4e2d")) == "store /sys/nö 'é中'"
    assert printable("\xc2\x85\xe2\x80\xa8") == r"\x85\x2028"


def test_line_of_a_journal() -> None:
    assert from_line('{"seq": 7, "type": "verb", "text": "scan"}') == (7, Verb("scan"))
    with pytest.raises(ValueError, match=r"^not a record of a journal of this apfs: 'words'$"):
        from_line("words")

"""Open files: when a text is made, how long it lasts, and what a write hands over."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.log import Journal
from apfs.journal.records import Refusal, Store
from apfs.sysfs.entries import Access, Attribute
from apfs.sysfs.openfile import READY, SpecialFile, TextFile
from apfs.sysfs.tree import OpenFile, Tree
from apfs.testing.files import Shell

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.records import Operation


class Counter:
    """Counts how often it is read, and keeps what is written."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes: list[str] = []
        self.error: KernelError | None = None
        self.text: str | None = None

    def show(self) -> str:
        self.reads += 1
        if self.error:
            raise self.error
        return f"read {self.reads}\n" if self.text is None else self.text

    def store(self, text: str) -> None:
        if self.error:
            raise self.error
        self.writes.append(text)


class Desk:
    """A tree with one counter and a few ways to get at it."""

    def __init__(self) -> None:
        self.counter = Counter()
        self.tree = Tree(Journal())
        attributes = (
            Attribute("rw", 0o644, Counter.show, Counter.store),
            Attribute("raw", 0o644, Counter.show, Counter.store, raw=True),
            Attribute("nothing", 0o666),
        )
        self.tree.root.fixed("top", attributes, lambda _key: self.counter)

    def open(self, name: str = "rw", *, read: bool = True, write: bool = True) -> OpenFile:
        return self.tree.open(self.tree.resolve(f"/top/{name}"), Access(read, write, None))

    def records(self) -> list[object]:
        return [record for _, record in self.tree.journal]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_opening_makes_no_text(desk: Desk) -> None:
    desk.open()
    assert desk.counter.reads == 0


def test_the_text_stays_while_reading_goes_on_where_it_ended(desk: Desk) -> None:
    file = desk.open()
    assert bytes(file.read(0, 4)) == b"read"
    assert bytes(file.read(4, 100)) == b" 1\n"
    assert bytes(file.read(7, 100)) == b""
    assert desk.counter.reads == 1
    assert bytes(file.read(0, 100)) == b"read 2\n"
    assert bytes(file.read(7, 100)) == b""
    assert desk.counter.reads == 2


@pytest.mark.parametrize("offset", [1, 3, 5, 6])
def test_the_text_is_made_anew_elsewhere(desk: Desk, offset: int) -> None:
    """As in real sysfs: a pread that skips or goes back shows what is true now."""
    file = desk.open()
    assert bytes(file.read(0, 4)) == b"read"
    assert bytes(file.read(offset, 100)) == b"read 2\n"[offset:]


def test_an_empty_text_is_made_again(desk: Desk) -> None:
    file = desk.open()
    desk.counter.text = ""
    assert bytes(file.read(0, 100)) == b""
    desk.counter.text = "more"
    assert bytes(file.read(0, 0)) == b""
    assert bytes(file.read(0, 100)) == b"more"
    assert desk.counter.reads == 3


def test_reading_may_start_anywhere(desk: Desk) -> None:
    assert bytes(desk.open().read(5, 100)) == b"1\n"
    assert bytes(desk.open().read(4096, 100)) == b""


def test_open_files_do_not_share_texts(desk: Desk) -> None:
    one, two = desk.open(), desk.open()
    assert bytes(one.read(0, 5)) == b"read "
    assert bytes(two.read(0, 5)) == b"read "
    assert (bytes(one.read(5, 100)), bytes(two.read(5, 100))) == (b"1\n", b"2\n")


def test_a_text_has_less_than_a_page(desk: Desk) -> None:
    desk.counter.text = "x" * 5000
    file = desk.open()
    content = bytes(file.read(0, 100000))
    assert len(content) == 4095
    assert bytes(file.read(len(content), 100)) == b""


@pytest.mark.parametrize(
    ("data", "text", "taken"),
    [
        (b"abc", "abc", 3),
        (b"abc\n", "abc\n", 4),
        (b"\n", "\n", 1),
        (b"ab\0cd", "ab", 5),
        (b"\0", "", 1),
        (b"\0abc", "", 4),
        (b"ab\n\0", "ab\n", 4),
        (b"x" * 4096, "x" * 4096, 4096),
        (b"x" * 4097, "x" * 4096, 4096),
        (b"x" * 5000 + b"\0", "x" * 4096, 4096),
        (b"\xc3\xa9\xff", "\xc3\xa9\xff", 3),
    ],
)
def test_a_write_is_one_store(desk: Desk, data: bytes, text: str, taken: int) -> None:
    assert desk.open().write(data) == taken
    assert desk.counter.writes == [text]
    assert desk.records() == [Store("/top/rw", text)]


def test_raw_attributes_get_what_stands_behind_a_nul(desk: Desk) -> None:
    assert desk.open("raw").write(b"ab\0cd") == 5
    assert desk.counter.writes == ["ab\0cd"]


def test_an_empty_write_is_no_store(desk: Desk) -> None:
    assert desk.open().write(b"") == 0
    desk.counter.error = KernelError(errno.EINVAL, "never asked")
    assert desk.open().write(b"") == 0
    assert desk.counter.writes == []
    assert desk.records() == []


def test_each_write_is_a_store_of_its_own(desk: Desk) -> None:
    file = desk.open()
    file.write(b"1")
    file.write(b"2\n")
    assert desk.counter.writes == ["1", "2\n"]


def test_a_write_leaves_the_text_read_before_as_it_was(desk: Desk) -> None:
    file = desk.open()
    file.read(0, 5)
    file.write(b"1")
    assert bytes(file.read(5, 100)) == b"1\n"
    assert desk.counter.reads == 1


def test_refused_stores_and_shows_are_told_with_their_reason(desk: Desk) -> None:
    file = desk.open()
    desk.counter.error = KernelError(errno.EBUSY, "not now")
    expected: list[tuple[Operation, str]] = [("write", "ab"), ("read", "")]
    for operation, data in expected:
        with pytest.raises(KernelError) as refusal:
            file.write(b"ab\0c") if operation == "write" else file.read(0, 10)
        assert refusal.value.errno == errno.EBUSY
        assert desk.records()[-1] == Refusal(operation, "/top/rw", data, "EBUSY", "not now")
    desk.counter.error = None
    assert file.write(b"ab") == 2


def test_what_the_mode_allows_but_no_function_serves_gives_eio(desk: Desk) -> None:
    file = desk.open("nothing")
    for call in (lambda: file.read(0, 10), lambda: file.write(b"1")):
        with pytest.raises(KernelError) as refusal:
            call()
        assert refusal.value.errno == errno.EIO
    assert file.write(b"") == 0


def test_poll_reports_an_event_until_the_first_read(desk: Desk) -> None:
    file = desk.open()
    assert file.poll() == READY | select.POLLERR | select.POLLPRI
    file.write(b"1")
    assert file.poll() & select.POLLPRI
    file.read(0, 1)
    assert file.poll() == READY
    assert file.poll() & (select.POLLIN | select.POLLOUT) == select.POLLIN | select.POLLOUT
    file.read(0, 100)
    assert file.poll() == READY
    assert desk.open().poll() & select.POLLERR


def test_injected_faults_hit_so_many_accesses_and_change_nothing(desk: Desk) -> None:
    desk.tree.faults.inject("/top/rw", errno.EIO, 2)
    file = desk.open()
    for call in (lambda: file.write(b"1"), lambda: file.read(0, 10)):
        with pytest.raises(KernelError) as refusal:
            call()
        assert refusal.value.errno == errno.EIO
    assert desk.counter.writes == []
    assert bytes(file.read(0, 10)) == b"read 1\n"
    desk.tree.faults.inject("/top/rw", errno.EIO, 3)
    for _ in range(3):
        with pytest.raises(KernelError):
            file.read(0, 10)
    assert bytes(file.read(0, 10)) == b"read 2\n"
    assert not desk.tree.faults
    desk.tree.faults.inject("/top/rw", errno.EIO, 1)
    desk.tree.faults.clear()
    assert file.write(b"1") == 1


def test_reading_on_at_the_end_is_no_access(desk: Desk) -> None:
    """A fault is for the next text, not for the look at the end of this one, which every reader takes."""
    file = desk.open()
    assert bytes(file.read(0, 100)) == b"read 1\n"
    desk.tree.faults.inject("/top/rw", errno.EIO, 1)
    assert bytes(file.read(7, 100)) == b""
    with pytest.raises(KernelError):
        file.read(0, 100)


def test_text_files_have_no_limit_and_cannot_be_written() -> None:
    texts = iter(["first", "x" * 10000])
    file = TextFile(Journal(), "/text", lambda: next(texts))
    assert file.read(0, 3) == b"fir"
    assert file.read(3, 100) == b"st"
    assert len(file.read(0, 100000)) == 10000
    assert file.poll() == READY
    assert TextFile(Journal(), "/text", lambda: "text").read(2, 10) == b"xt"  # reading may start anywhere
    with pytest.raises(KernelError) as refusal:
        file.write(b"1")
    assert refusal.value.errno == errno.EBADF
    file.close()


class Stubborn(SpecialFile):
    """Refuses what it is asked."""

    def on_read(self, offset: int, size: int) -> bytes:
        raise KernelError(errno.ENODEV, f"{size} bytes at {offset}")

    def on_write(self, data: bytes) -> int:
        raise KernelError(errno.EOPNOTSUPP, f"{len(data)} bytes")


class Console(Stubborn):
    """Calls its writes something else."""

    writing = "console"


def refusals_of(file: Callable[[Journal, str], SpecialFile]) -> list[tuple[int, Refusal]]:
    """Read and write; return the errno that each gave, with the only record that it left."""
    journal = Journal()
    opened = file(journal, "/there")
    calls: list[Callable[[], object]] = [lambda: opened.read(3, 10), lambda: opened.write(b"caf\xe9\0" + b"x" * 5000)]
    found = []
    for call in calls:
        before = journal.last
        with pytest.raises(KernelError) as refusal:
            call()
        ((_, record),) = journal.since(before)
        assert isinstance(record, Refusal)
        found.append((refusal.value.errno, record))
    return found


@pytest.mark.parametrize(("file", "operation"), [(Stubborn, "write"), (Console, "console")])
def test_what_a_file_refuses_is_one_record(file: type[SpecialFile], operation: Operation) -> None:
    text = "caf\xe9\0" + "x" * 4091
    assert refusals_of(file) == [
        (errno.ENODEV, Refusal("read", "/there", "", "ENODEV", "10 bytes at 3")),
        (errno.EOPNOTSUPP, Refusal(operation, "/there", text, "EOPNOTSUPP", "5005 bytes")),
    ]


def test_a_file_can_do_nothing_by_itself() -> None:
    assert [(number, record.operation) for number, record in refusals_of(SpecialFile)] == [
        (errno.EBADF, "read"),
        (errno.EBADF, "write"),
    ]
    file = SpecialFile(Journal(), "/there")
    assert file.seekable
    assert file.poll() == READY
    file.close()


def test_a_store_that_removes_its_own_node_is_told_with_its_path() -> None:
    """Writing to `remove` of a mediated device: the journal names the device that went."""
    host = Host()
    shell = Shell(host)
    matrix, uuid = "/sys/devices/vfio_ap/matrix", "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
    shell.write(f"{matrix}/mdev_supported_types/vfio_ap-passthrough/create", uuid)
    shell.echo(1, f"{matrix}/{uuid}/remove")
    *_, (_, record) = host.journal
    assert record == Store(f"{matrix}/{uuid}/remove", "1\n")

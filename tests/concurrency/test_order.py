"""What many processes do at once has an order; and the proof of it notices what has none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from apfs.ctl.status import status
from apfs.host import Host
from apfs.journal.history import History
from apfs.journal.records import Store
from apfs.replay.replay import replay
from apfs.scenario.reader import loads
from apfs.testing.files import Shell
from tests.concurrency.order import FOREVER, OrderError, Request, notes, prove
from tests.concurrency.run import SCENARIO, run

MASK = "/sys/bus/ap/apmask"


@pytest.mark.parametrize("one_cpu", [False, True], ids=["all processors", "one processor"])
def test_processes_at_once(*, one_cpu: bool) -> None:
    """The quick form of `python -m tests.concurrency.run`."""
    done = run(processes=7, steps=40, seed=17 + one_cpu, one_cpu=one_cpu)
    assert done.outcomes > 100
    assert done.stops > 0


class Story:
    """Requests to one host, at times that are chosen: each takes effect when it is made here."""

    def __init__(self) -> None:
        self.shell = Shell(Host(loads(SCENARIO)))
        self.requests: list[Request] = []

    def write(self, call: int, end: int, text: str) -> None:
        self.shell.write(MASK, text)
        self.requests.append(Request("write", MASK, text, call, end, "", None, "a"))

    def read(self, call: int, end: int, got: str | None = None) -> None:
        got = self.shell.cat(MASK) if got is None else got
        self.requests.append(Request("read", MASK, "", call, end, "", got, "b"))

    def prove(self) -> None:
        host = self.shell.host
        assert status(prove(History.parse(self.shell.recording()), self.requests, status(host))) == status(host)


def test_one_after_the_other() -> None:
    story = Story()
    story.read(1, 2)
    story.write(3, 4, "-7")
    story.read(5, 6)
    story.write(7, 8, "+7")
    story.read(9, 10)
    story.prove()
    assert [request.place for request in story.requests if request.kind == "read"] == [0, 1, 2]


def test_at_the_same_time_either_may_be_first() -> None:
    for order in (("-7", "+7"), ("+7", "-7")):
        story = Story()
        for text in order:
            story.write(1, 9, text)
        story.read(2, 8)
        story.prove()


def test_of_requests_that_are_alike_so_many_must_have_been_made() -> None:
    """Whose the first outcome is does not matter; that of the third must be of one that had not returned."""
    story = Story()
    story.write(1, 20, "-7")
    story.write(5, 30, "+7")
    story.write(2, 4, "-7")
    story.prove()
    story.requests[0].end = 3
    with pytest.raises(OrderError, match=r"^outcome 3, .* of 2-4, comes after one that was called at 5$"):
        story.prove()


def test_a_write_before_one_that_had_returned() -> None:
    story = Story()
    story.write(5, 6, "-7")
    story.write(1, 2, "+7")
    with pytest.raises(OrderError, match=r"^outcome 2, .* of 1-2, comes after one that was called at 5$"):
        story.prove()


def test_a_write_without_an_outcome() -> None:
    story = Story()
    story.write(1, 2, "-7")
    story.requests.append(replace(story.requests[0], data="-6", possible=[]))
    with pytest.raises(
        OrderError, match=r"^the journal has nothing of a 1-2: write .*'-6' -> done, or of one like it$"
    ):
        story.prove()


def test_an_outcome_without_a_write() -> None:
    story = Story()
    story.write(1, 2, "-7")
    story.shell.write(MASK, "+7")
    with pytest.raises(OrderError, match=r"^outcome 2, Store\(.*\), is nobody's$"):
        story.prove()


def test_another_answer_than_that_of_the_journal() -> None:
    story = Story()
    story.write(1, 2, "-7")
    story.requests[0].errno = "EBUSY"
    with pytest.raises(OrderError, match="is nobody's"):
        story.prove()


def test_a_reader_that_sees_what_was_over() -> None:
    story = Story()
    before = story.shell.cat(MASK)
    story.write(1, 2, "-7")
    story.read(3, 4, before)
    with pytest.raises(OrderError, match=r"^what this saw was not so, at no time in between:\nb 3-4: read"):
        story.prove()


def test_a_reader_that_sees_what_is_to_come() -> None:
    story = Story()
    story.write(3, 4, "-7")
    story.read(1, 2)
    with pytest.raises(OrderError, match="at no time in between"):
        story.prove()


def test_a_reader_that_sees_less_than_one_before_it() -> None:
    story = Story()
    before = story.shell.cat(MASK)
    story.write(1, 9, "-7")
    story.read(2, 3)
    story.read(4, 5, before)
    with pytest.raises(OrderError, match="a reader before it saw place 1"):
        story.prove()
    story.requests[1], story.requests[2] = (
        replace(request, call=call, end=call + 1, possible=[])
        for request, call in zip(story.requests[1:], (4, 2), strict=True)
    )
    story.prove()


def test_a_name_that_is_not_there() -> None:
    story = Story()
    story.requests.append(Request("open", "/sys/bus/ap/nothing", "", 1, 2, "ENOENT", None, "a"))
    story.requests.append(
        Request("list", "/sys/bus/ap/drivers", "", 3, 4, "", ["cex4card", "cex4queue", "vfio_ap"], "a")
    )
    story.prove()
    story.requests.append(Request("open", MASK, "", 5, 6, "ENOENT", None, "a"))
    with pytest.raises(OrderError, match="at no time in between"):
        story.prove()


@pytest.mark.parametrize(
    ("got", "right"),
    [(["a"], True), (["a", "b"], True), (["a", "b", "b"], False), ([], False), (["b"], False), (["a", "c"], False)],
)
def test_a_listing_is_not_that_of_one_moment(got: list[str], *, right: bool) -> None:
    """It has what was there all the time, perhaps what came or went, and nothing that never was, each name once."""
    story = Story()
    drivers = "/sys/bus/ap/drivers/vfio_ap"
    kept = story.shell.ls(drivers)
    story.requests.append(Request("write", MASK, "-7", 2, 3, "", None, "a"))
    story.shell.write(MASK, "-7")
    both = story.shell.ls(drivers)
    names = {"a": kept, "b": sorted(set(both) - set(kept)), "c": ["nothing"]}
    assert names["b"]
    listed = [name for letter in got for name in names[letter]]
    story.requests.append(Request("list", drivers, "", 1, 4, "", listed, "b"))
    if right:
        story.prove()
    else:
        with pytest.raises(OrderError, match="at no time in between"):
            story.prove()


def test_another_state_in_the_end() -> None:
    story = Story()
    story.write(1, 2, "-7")
    other = status(story.shell.host).replace('"config_time": 30', '"config_time": 31')
    with pytest.raises(OrderError, match="another state in the end"):
        prove(History.parse(story.shell.recording()), story.requests, other)


def test_a_journal_that_replays_differently() -> None:
    story = Story()
    story.write(1, 2, "-7")
    history = History.parse(story.shell.recording())
    entries = tuple((n, Store(MASK, "-6") if isinstance(record, Store) else record) for n, record in history.entries)
    story.requests[0].data = "-6"
    changed = History(entries, history.header)
    assert replay(changed).differences
    with pytest.raises(OrderError, match="the replay differs"):
        prove(changed, story.requests, status(story.shell.host))


def test_what_a_process_notes() -> None:
    line = '{"kind": "%s", "path": "/p", "data": "d", "call": 1, "return": 2, "errno": "EIO"}\n'
    read, close = notes("w", line % "read" + line % "close")
    assert read == Request("read", "/p", "d", 1, 2, "EIO", None, "w")
    assert close.end == FOREVER
    assert re.fullmatch(r"w 1-2: read /p 'd' -> EIO", str(read))

"""A journal is a complete account: replayed, it gives the same journal and the same host."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from apfs import __version__
from apfs.cli.main import main
from apfs.host import Host
from apfs.journal.history import History
from apfs.journal.records import Close, Crash, LogLine, Record, Refusal, Store, Uevent
from apfs.journal.text import to_line
from apfs.replay.replay import Difference, ReplayError, replay
from apfs.scenario.reader import gallery, load, loads
from apfs.testing.files import Shell
from apfs.vfio_ap.migration import REVISIONS
from tests.examples import times
from tests.hosts import CREATE, M1, M2, MATRIX, RESERVED, WORKED, Bench, built
from tests.journal.test_history import RECORDS

from .actors import CARDS, Actor, history, recording, state

if TYPE_CHECKING:
    from pathlib import Path

KERNELS = ("7.2", "6.8", "6.2", "5.14")
Step = tuple[int, int, int]
STEPS = st.lists(st.tuples(*(st.integers(0, 255) for _ in range(3))), max_size=40)


@times(5)
@given(kernel=st.sampled_from(KERNELS), driver=st.sampled_from(sorted(REVISIONS)), guest=st.booleans(), steps=STEPS)
def test_a_journal_replays_to_itself(
    kernel: str, driver: str, *, guest: bool, steps: list[tuple[int, int, int]]
) -> None:
    """Whatever programs do: byte for byte."""
    actor = Actor(Host(loads(f'kernel = "{kernel}"\ndriver = "{driver}"\n{CARDS}')))
    if guest:
        actor.shell.write(CREATE, M1)
        for what in (0, 2, 4):
            actor.assign(what, 0)
        actor.guest(0, 1)
    names, journal = actor.host.tree.nodes.changes, actor.host.journal
    for step in steps:
        before, last = names.count, journal.last
        actor.take(*step)
        assert names.count == before or journal.last > last, "a mount would not notice"
    found = replay(history(actor.host))
    assert found.differences == ()
    assert recording(found.host) == recording(actor.host)
    assert state(found.host) == state(actor.host)


@pytest.mark.parametrize("name", gallery())
def test_hosts_of_the_gallery_need_nothing_but_their_header(name: str) -> None:
    host = Host(load(name))
    host.pass_time(1)
    found = replay(history(host))
    assert (found.requests, found.differences) == (1, ())
    assert recording(found.host) == recording(host)
    assert state(found.host) == state(host)


def test_a_scenario_that_was_changed_in_python_is_in_the_header_as_it_was_booted() -> None:
    scenario = replace(loads(CARDS), name="changed", driver="v4")
    found = replay(history(Host(scenario)))
    assert found.host.scenario == scenario


def test_the_clock_is_that_of_the_header() -> None:
    host = Host()
    host.follow_clock()
    assert replay(history(host)).host.clock == "real"


def refused() -> History:
    """Return a history whose sixth record, and last but one, is a refusal."""
    bench = Bench()
    bench.create(M1)
    bench.store(f"{MATRIX}/{M1}/assign_adapter", "64\n")
    bench.console("scan")
    return history(bench.host)


def changed(story: History, number: int, record: Record) -> History:
    """Return a history with another record in one place."""
    entries = tuple((each, record if each == number else old) for each, old in story.entries)
    return History(entries, story.header)


def test_another_answer() -> None:
    story = refused()
    number, record = next(entry for entry in story.entries if isinstance(entry[1], Refusal))
    assert isinstance(record, Refusal)
    before = replace(record, errno="EINVAL")
    found = replay(changed(story, number, before))
    assert (found.requests, found.records) == (3, len(story))
    assert found.differences == (Difference(number, before, before, record),)


def test_a_success_that_is_a_refusal_now() -> None:
    story = refused()
    number, record = next(entry for entry in story.entries if isinstance(entry[1], Refusal))
    assert isinstance(record, Refusal)
    before = Store(record.path, record.data)
    (difference,) = replay(changed(story, number, before)).differences
    assert difference == Difference(number, before, before, record)


def test_a_consequence_that_is_missing_now() -> None:
    story = history(built().host)
    number = story.entries[0][0]
    more = (number, LogLine("info", "more"))
    entries = (more, *((each + 1, record) for each, record in story.entries))
    (difference,) = replay(History(entries, story.header)).differences
    assert (difference.recorded, difference.now, difference.note) == (more[1], None, "")
    assert isinstance(difference.outcome, Store)


def test_a_consequence_that_is_new() -> None:
    story = history(built().host)
    kept = [record for _, record in story.entries if not isinstance(record, LogLine)]
    (difference,) = replay(History(tuple(enumerate(kept, 1)), story.header)).differences
    assert difference.recorded is None
    assert isinstance(difference.now, LogLine)


def test_consequences_in_another_order() -> None:
    bench = Bench()
    bench.echo("+5", "/sys/bus/ap/apmask")
    story = history(bench.host)
    places = [place for place, record in enumerate(story) if isinstance(record, Uevent)]
    records = list(story)
    first, second = places[:2]
    records[first], records[second] = records[second], records[first]
    (difference,) = replay(History(tuple(enumerate(records, 1)), story.header)).differences
    assert (difference.recorded, difference.now) == (records[first], records[second])
    assert difference.note == "in another order"


def test_a_request_to_a_file_that_is_not_there() -> None:
    bench = Bench()
    bench.create(M1)
    bench.put(M1, "assign_adapter", 5)
    story = history(bench.host)
    found = replay(story, loads("vfio_ap = false\n"))
    assert len(found.differences) == found.requests == 2
    assert found.differences[-1].now is None
    assert "ENOENT: no 'vfio_ap' in /sys/devices" in found.differences[-1].note


def test_a_crash_that_happens_no_more() -> None:
    crash = Crash("write", "Traceback ...\nKeyError: 5", input={"path": "/sys/bus/ap/scans", "content": b"1".hex()})
    story = History(((1, crash),), history(Host()).header)
    (difference,) = replay(story).differences
    assert (difference.recorded, difference.now) == (crash, Store("/sys/bus/ap/scans", "1"))


def test_a_file_without_an_open() -> None:
    """As of a journal of another host, or after an open that is refused now."""
    story = History(((1, Close("/dev/vfio/0", 7)),), history(Host()).header)
    assert replay(story).differences[0].note == "there is no file 7: it could not be opened"


def test_journals_that_cannot_be_replayed() -> None:
    story = refused()
    last = story.last
    wrong = {
        "it has no header, which `apfs journal --json` prints": History(story.entries),
        "the host had dropped the first 2 records": History(story.entries[2:], story.header),
        "record 3 follows record 1: the records in between": History(
            story.entries[:1] + story.entries[2:], story.header
        ),
        f"its last record, {last}, is not the outcome of a request": changed(story, last, LogLine("info", "x")),
    }
    for why, journal in wrong.items():
        with pytest.raises(ReplayError, match=re.escape(why)):
            replay(journal)


def test_the_journal_of_a_guest_is_not_enough() -> None:
    bench = built()
    bench.run_guest(M1)
    story = History.parse(bench.guest(M1).recording())
    with pytest.raises(ReplayError, match=f"it is the journal of guest {M1}: use that of its host"):
        replay(story)


def cut_off() -> list[str]:
    """Return journals whose last line is a part of one: of a request without effects, of an effect, of an outcome."""
    bench = Bench()
    bench.create(M1)
    bench.console("checkstop 5 on")
    verb = bench.host.journal.last
    bench.create(M2)
    lines = recording(bench.host).splitlines()  # the header is the first, so that a record's number is its index
    ends = (verb, verb + 1, len(lines) - 1)
    return ["\n".join([*lines[:last], lines[last][:end]]) for last in ends for end in (1, len(lines[last]) - 1)]


@pytest.mark.parametrize("text", cut_off())
def test_a_journal_whose_last_line_is_cut_off_is_replayed_up_to_there(text: str) -> None:
    """The effects of a request whose outcome is cut off cannot be compared."""
    history = History.parse(text)
    (*whole, last) = history.requests()
    if last[-1][1].outcome:
        whole.append(last)
    found = replay(history)
    assert (found.requests, found.differences) == (len(whole), ())
    assert found.records == found.host.journal.last == whole[-1][-1][0]


def test_a_host_without_a_header_is_replayed_on_a_scenario_that_is_named() -> None:
    assert replay(History(refused().entries), loads(WORKED)).differences == ()


# -- the command ----------------------------------------------------------------------------------------


def run(journal: str, *options: str, stdin: str = "") -> tuple[int, str]:
    """Run `apfs replay`; return its exit status, and what it printed."""
    changed = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE)}
    try:
        result = CliRunner().invoke(main, ["replay", *options, journal], input=stdin)
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
    return result.exit_code, result.output


def test_the_same(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text(recording(built().host))
    status, said = run(str(file))
    assert (status, said) == (0, f"{file}: the same; requests: 7, records: 12\n")
    assert run("-", stdin=file.read_text()) == (0, "-: the same; requests: 7, records: 12\n")


@pytest.mark.parametrize("text", cut_off())
def test_a_truncated_journal(tmp_path: Path, text: str) -> None:
    file = tmp_path / "journal"
    file.write_text(text)
    status, said = run(str(file))
    assert status == 0
    assert re.fullmatch(
        f"{file}: the same; requests: [12], records: [0-9]+; its last line is incomplete: the journal was truncated\n",
        said,
    )
    document = json.loads(run(str(file), "--json")[1])
    assert (document["same"], document["truncated"]) == (True, True)
    other = tmp_path / "other.toml"
    other.write_text("vfio_ap = false\n")
    status, said = run(str(file), "--scenario", str(other))
    assert status == 1
    assert said.endswith("; its last line is incomplete: the journal was truncated\n")


def test_what_differs_is_a_table(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text(recording(built().host))
    scenario = tmp_path / "other.toml"
    scenario.write_text(RESERVED)
    status, said = run(str(file), "--scenario", str(scenario), "--most", "1")
    lines = said.splitlines()
    assert status == 1
    assert lines[0].split() == ["record", "request", "recorded", "now"]
    assert "assign_domain" in lines[1]
    assert "done" in lines[1]
    assert "EADDRNOTAVAIL: queue 05.0004 is reserved" in lines[1]
    assert lines[2].startswith(f"{file}: different: 2; requests: 7, records: 12")
    assert lines[2].endswith("; 1 not shown, see --most")


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text(recording(built().host))
    status, said = run(str(file), "--json")
    assert status == 0
    document = json.loads(said)
    assert document == {
        "same": True,
        "truncated": False,
        "apfs": {"recorded": __version__, "now": __version__},
        "requests": 7,
        "records": 12,
        "differences": [],
    }
    status, said = run(str(file), "--json", "--scenario", "empty")
    document = json.loads(said)
    assert status == 1
    assert len({found["record"] for found in document["differences"]}) == len(document["differences"]) > 0
    assert document["differences"][0]["request"]["type"] == "store"


HEADER = (
    b'{"seq": 0, "type": "host", "format": %s, "apfs": "1", "guest": %s, "name": "a", "scenario": %s, '
    b'"driver": "v2", "kernel": {}, "clock": "real"}\n'
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "cannot be replayed: it has no header"),
        (b"words\n", "line 1 is not the header of a journal: 'words'"),
        (b"\xff\n", "not a text in UTF-8"),
        (b'{"seq": 0, "type": "host", "format": 2}\n', "line 1 is a header of form 2, while this apfs knows 1"),
        (b'{"seq": 1, "type": "new"}\n', "line 1 is not a record of a journal of this apfs"),
        (b'{"seq": 0, "type": "host"', "line 1 is not the header of a journal"),
        (HEADER % (b"1", b"null", b"5"), "line 1 is not the header of a journal"),
        (HEADER % (b"true", b"null", b'""'), "line 1 is not the header of a journal"),
        (HEADER % (b"1", b'"a guest"', b"null"), "cannot be replayed: it is the journal of guest a guest"),
        (b"[" * 100_000, "line 1 is not the header of a journal"),
        (b'{"seq": "1", "type": "verb", "text": "scan"}\n', "line 1 is not a record of a journal"),
        (b'{"seq": true, "type": "verb", "text": "scan"}\n', "line 1 is not a record of a journal"),
        (b'{"seq": 1, "type": "verb", "text": 5}\n', "line 1 is not a record of a journal"),
        (b'{"seq": 1, "type": "verb", "text": "scan", "more": 5}\n', "line 1 is not a record of a journal"),
        (
            b'{"seq": 1, "type": "guest", "mdev": "a", "adapters": "0x8", "domains": "x", "control_domains": "0x0"}\n',
            "line 1 is not a record",
        ),
        (b'{"seq": 1, "type": "reset", "count": 1, "failed": {"05.0004": "7"}}\n', "line 1 is not a record"),
        (b'{"seq": 1, "type": "inside", "guest": "a", "record": {"type": "time", "seconds": 1.5}}\n', "line 1 is not"),
    ],
)
def test_bad_journals(tmp_path: Path, text: bytes, why: str) -> None:
    file = tmp_path / "journal"
    file.write_bytes(text)
    status, said = run(str(file))
    assert status == 2
    assert said.startswith(f"apfs: {file}")
    assert why in said


@given(st.lists(RECORDS, max_size=6))
def test_a_journal_of_any_records_gets_an_answer_or_a_message(records: list[Record]) -> None:
    lines = (f"{to_line(number, record)}\n" for number, record in enumerate(records, 1))
    status, said = run("-", stdin=Shell(Host()).cat("/ctl/header") + "".join(lines))
    assert ["-: the same" in said, "-: different" in said, "cannot be replayed" in said].index(True) == status


def test_bad_scenarios_and_files(tmp_path: Path) -> None:
    assert run(str(tmp_path / "none")) == (2, f"apfs: {tmp_path}/none: No such file or directory\n")
    assert run(str(tmp_path)) == (2, f"apfs: {tmp_path}: Is a directory\n")
    file = tmp_path / "journal"
    file.write_text(recording(Host()))
    status, said = run(str(file), "--scenario", "nosuch")
    status, unset = run(str(file), "--scenario", "")
    assert (status, unset[:32]) == (2, "apfs: : no scenario of that name")
    assert "it is empty" in run("")[1]
    status, said = run(str(file), "--scenario", "nosuch")
    assert (status, said[:38]) == (2, "apfs: nosuch: no scenario of that name")

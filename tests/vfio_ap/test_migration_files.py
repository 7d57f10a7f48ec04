"""The files of a migration: states and the way between them, and the transfer file of a session."""

import pytest

from apfs.journal.records import Migration, Refusal
from apfs.vfio.fsm import State
from apfs.vfio_ap.migration.v2 import V2File
from tests.hosts import M1, MATRIX, Bench, config_text, product, refused

from .streams import ENTRIES, HOST, STREAM, events, state, stream, transfer, write

CLIENT = f"/dev/vfio-ap/{M1}"
STATE = f"{CLIENT}/migration_state"
SIZE = f"{CLIENT}/data_size"


@pytest.fixture
def bench() -> Bench:
    bench = Bench(HOST)
    bench.mark()
    return bench


def arcs(bench: Bench) -> list[tuple[str, str]]:
    records = bench.records(Migration)
    assert all(record.mdev == M1 for record in records)
    return [(record.before, record.after) for record in records]


def has_file(bench: Bench) -> bool:
    """Whether there is a transfer file to open; if not, the attempt must say ENODEV."""
    if bench.cat(STATE).strip() in ("STOP_COPY", "RESUMING"):
        transfer(bench).close()
        return True
    with refused("ENODEV"):
        transfer(bench)
    return False


# -- states -----------------------------------------------------------------------------------------------------------

WAYS = {
    ("STOP", "STOP"): [],
    ("STOP", "RUNNING"): ["RUNNING"],
    ("STOP", "STOP_COPY"): ["STOP_COPY"],
    ("STOP", "RESUMING"): ["RESUMING"],
    ("RUNNING", "STOP"): ["STOP"],
    ("RUNNING", "RUNNING"): [],
    ("RUNNING", "STOP_COPY"): ["STOP", "STOP_COPY"],
    ("RUNNING", "RESUMING"): ["STOP", "RESUMING"],
    ("STOP_COPY", "STOP"): ["STOP"],
    ("STOP_COPY", "RUNNING"): ["STOP", "RUNNING"],
    ("STOP_COPY", "STOP_COPY"): [],
    ("STOP_COPY", "RESUMING"): ["STOP", "RESUMING"],
    ("RESUMING", "STOP"): ["STOP"],
    ("RESUMING", "RUNNING"): ["STOP", "RUNNING"],
    ("RESUMING", "STOP_COPY"): ["STOP", "STOP_COPY"],
    ("RESUMING", "RESUMING"): [],
}


@pytest.mark.parametrize("by_number", [0, 1], ids=["by name", "by number"])
@pytest.mark.parametrize(("current", "target"), WAYS)
def test_ways(bench: Bench, current: str, target: str, by_number: int) -> None:
    state(bench, current)
    file = transfer(bench) if current in ("STOP_COPY", "RESUMING") else None
    bench.mark()
    bench.echo(int(State[target]) if by_number else target, STATE)
    steps = WAYS[current, target]
    assert arcs(bench) == list(zip([current, *steps], steps, strict=False))
    assert bench.cat(STATE) == f"{target}\n"
    has_file(bench)
    if file:
        # A file lives as long as its session: staying is no new one.
        assert isinstance(file, V2File)
        assert file.disabled == bool(steps)
        if not steps:
            assert transfer(bench) is file


@pytest.mark.parametrize("current", ["STOP", "RUNNING", "STOP_COPY", "RESUMING"])
@pytest.mark.parametrize(
    "text",
    [*("ERROR", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"), *"05678", "255", "4294967297", "stop", "STOP ", "", "x"],
)
def test_no_way(bench: Bench, current: str, text: str) -> None:
    state(bench, current)
    bench.mark()
    before = bench.dump()
    with refused("EINVAL"):
        bench.echo(text, STATE)
    assert bench.dump() == before
    assert arcs(bench) == []
    assert bench.cat(STATE) == f"{current}\n"
    has_file(bench)


def test_the_notation_of_numbers_is_that_of_sysfs(bench: Bench) -> None:
    for text, name in (("0x3", "STOP_COPY"), ("01", "STOP"), ("+2", "RUNNING"), ("4", "RESUMING")):
        bench.write(STATE, text)
        assert bench.cat(STATE) == f"{name}\n"
    with refused("ERANGE"):
        bench.write(STATE, str(2**64))


@pytest.mark.parametrize("name", ["STOP", "RUNNING", "STOP_COPY", "RESUMING"])
def test_without_a_guest_there_is_nothing_to_migrate(bench: Bench, name: str) -> None:
    bench.run_guest(M1, 0)
    with refused("ENODEV"):
        bench.echo(name, STATE)
    assert bench.cat(STATE) == "RUNNING\n"
    with refused("ENODEV"):
        transfer(bench)


def test_stop_does_not_stop_anything(bench: Bench) -> None:
    state(bench, "STOP")
    assert bench.queue_status("05.0004") == "in use\n"
    assert bench.pushes() == []
    assert bench.resets() == []
    bench.put(M1, "unassign_domain", "0x47")
    assert len(bench.pushes()) == 1


def test_flags_and_modes(bench: Bench) -> None:
    assert bench.cat(f"{CLIENT}/migration_flags") == "STOP_COPY\n"
    modes = {name: bench.stat(f"{CLIENT}/{name}").mode & 0o777 for name in bench.ls(CLIENT)}
    assert modes == {
        "data_size": 0o444,
        "data_stream": 0o600,
        "guest": 0o644,
        "migration_flags": 0o444,
        "migration_state": 0o644,
        "reset": 0o200,
    }
    assert "migratable" in bench.cat(f"{MATRIX}/features").split()


# -- secure execution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", State.__members__)
def test_a_secure_execution_host_does_not_migrate(name: str) -> None:
    bench = Bench("secure_execution = true\n" + HOST)
    for count in (1, 2):
        with refused("EPERM"):
            bench.echo(name, STATE)  # also where nothing would happen, and where there is no way
        assert events(bench) == [("S1",)] * count
    assert bench.cat(STATE) == "RUNNING\n"
    assert bench.cat(SIZE) == "72\n"
    assert not has_file(bench)


@pytest.mark.parametrize("text", ["x", "5", "255", str(2**64), "PRE_COPY", "running"])
def test_a_secure_execution_host_does_not_look_at_what_is_written(text: str) -> None:
    bench = Bench("secure_execution = true\n" + HOST)
    with refused("EPERM"):
        bench.write(STATE, text)
    assert events(bench) == [("S1",)]


# -- reading ----------------------------------------------------------------------------------------------------------


def test_reading_to_the_end_and_on(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    assert not file.seekable
    assert bytes(file.read(0, 0)) == b""
    assert bytes(file.read(0, 10)) == STREAM[:10]
    assert bytes(file.read(0, 10)) == STREAM[10:20]  # offsets mean nothing
    assert bytes(file.read(5, 10)) == STREAM[20:30]
    assert bytes(file.read(30, 0)) == b""
    assert bytes(file.read(10**9, 4096)) == STREAM[30:]
    for size in (1, 0, 4096):
        assert bytes(file.read(0, size)) == b""


def test_one_position_whoever_opens_it(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    first, second = transfer(bench), transfer(bench)
    assert bytes(first.read(0, 30)) == STREAM[:30]
    assert bytes(second.read(0, 30)) == STREAM[30:60]
    first.close()
    second.close()
    third = transfer(bench)
    assert bytes(third.read(0, 30)) == STREAM[60:]
    assert bytes(third.read(0, 30)) == b""
    state(bench, "STOP_COPY")  # is what it is already: no new file
    assert bytes(transfer(bench).read(0, 30)) == b""
    state(bench, "STOP", "STOP_COPY")
    assert bytes(transfer(bench).read(0, 30)) == STREAM[:30]


def test_the_stream_is_a_snapshot_and_the_size_is_not(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((5,), (4,)))
    assert bench.cat(SIZE) == "24\n"
    bench.console("tapq 5 apsc=0", "scan")
    assert bytes(file.read(0, 4096)) == STREAM
    state(bench, "STOP", "STOP_COPY")
    assert bytes(transfer(bench).read(0, 4096)) == stream([(0x128000000E540307, 0x0504)])


def test_the_size_is_told_in_any_state(bench: Bench) -> None:
    for name in ("STOP", "STOP_COPY", "RESUMING", "RUNNING"):
        state(bench, name)
        assert bench.cat(SIZE) == "72\n"
    bench.run_guest(M1, 0)
    assert bench.cat(SIZE) == "72\n"
    bench.put(M1, "unassign_adapter", "5")
    assert bench.cat(SIZE) == "40\n"
    bench.put(M1, "unassign_adapter", "6")
    assert bench.cat(SIZE) == "8\n"


# -- writing ----------------------------------------------------------------------------------------------------------


def test_writing_goes_on_where_it_was_whoever_opens_it(bench: Bench) -> None:
    state(bench, "RESUMING")
    assert write(bench, STREAM[:30]) == [30]
    file = transfer(bench)
    assert file.write(STREAM[30:60]) == 30
    file.close()
    state(bench, "RESUMING")
    assert write(bench, STREAM[60:], b"", b"\0") == [12, 0, "EIO"]
    state(bench, "STOP", "RESUMING")
    assert write(bench, STREAM) == [72]


def test_the_length_is_that_of_the_moment_of_the_transition(bench: Bench) -> None:
    state(bench, "RESUMING")
    bench.put(M1, "unassign_domain", "0x47")
    bench.mark()
    assert write(bench, STREAM + b"\0") == ["EIO"]
    assert events(bench) == [("W4", "73", "72")]


@pytest.mark.parametrize("pieces", [(), (STREAM[:1],), (STREAM[:71],), (b"\xff" * 72,), (STREAM,)])
@pytest.mark.parametrize("target", ["STOP", "RUNNING", "STOP_COPY"])
def test_leaving_is_always_possible(bench: Bench, pieces: tuple[bytes, ...], target: str) -> None:
    state(bench, "RESUMING")
    write(bench, *pieces)
    state(bench, target)
    assert bench.cat(STATE) == f"{target}\n"
    assert bench.guest_matrix(M1) == product((5, 6), (4, 0x47))


# -- the wrong direction, and after the session -----------------------------------------------------------------------


def test_the_wrong_direction(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    with refused("EBADF"):
        file.write(STREAM)
    assert bytes(file.read(0, 72)) == STREAM
    with refused("EBADF"):
        bench.write(f"{CLIENT}/data_stream", STREAM)
    state(bench, "RESUMING")
    with refused("EBADF"):
        transfer(bench).read(0, 72)
    with refused("EBADF"):
        bench.read(f"{CLIENT}/data_stream")
    assert write(bench, STREAM) == [72]


@pytest.mark.parametrize("end", ["STOP", "RUNNING", "RESUMING", "close", "remove"])
def test_a_source_s_file_after_its_session(bench: Bench, end: str) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    file.read(0, 10)
    finish(bench, end)
    for size in (0, 1, 4096):
        with refused("ENODEV"):
            file.read(0, size)
    with refused("EBADF"):
        file.write(b"x")
    file.close()


def test_reading_after_the_session_names_no_device_in_the_log(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    state(bench, "STOP")
    bench.mark()
    with refused("ENODEV"):
        file.read(0, 1)
    (line,) = bench.log()
    assert line.startswith("err (NULL device *): ")


@pytest.mark.parametrize("end", ["STOP", "RUNNING", "STOP_COPY", "close", "remove"])
def test_a_target_s_file_after_its_session(bench: Bench, end: str) -> None:
    state(bench, "RESUMING")
    file = transfer(bench)
    file.write(STREAM[:10])
    finish(bench, end)
    bench.mark()
    for data in (b"", STREAM[10:], STREAM):
        with refused("EIO"):
            file.write(data)
    assert events(bench) == [("W1",)] * 3  # lines without a device
    with refused("EBADF"):
        file.read(0, 1)
    file.close()


def finish(bench: Bench, end: str) -> None:
    if end in State.__members__:
        state(bench, end)
        return
    bench.run_guest(M1, 0)
    if end == "remove":
        bench.put(M1, "remove", 1)


def test_an_old_file_does_not_come_back_to_life(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    old = transfer(bench)
    state(bench, "STOP", "STOP_COPY")
    with refused("ENODEV"):
        old.read(0, 10)
    assert bytes(transfer(bench).read(0, 10)) == STREAM[:10]


@pytest.mark.parametrize("name", ["RUNNING", "STOP"])
def test_outside_a_session_there_is_no_file(bench: Bench, name: str) -> None:
    state(bench, "STOP_COPY", name)
    for attempt in (bench.read, lambda path: bench.write(path, STREAM)):
        with refused("ENODEV"):
            attempt(f"{CLIENT}/data_stream")
    assert "data_stream" in bench.ls(CLIENT)


# -- what the journal tells of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "end", "data", "expected", "why"),
    [
        ("RESUMING", "", STREAM[:3] + b"\5" + STREAM[4:], "E2BIG", "source 5, target 4"),
        ("RESUMING", "", STREAM[:3] + b"\3" + STREAM[4:], "ENODEV", "source 3, target 4"),
        ("RESUMING", "", stream(((ENTRIES[0][0], 0x0704), *ENTRIES[1:])), "ENODEV", "not on the target"),
        ("RESUMING", "", stream(((0, ENTRIES[0][1]), *ENTRIES[1:])), "EFAULT", "05.0004 is not compatible"),
        ("RESUMING", "", STREAM + b"more", "EIO", "larger"),
        ("RESUMING", "STOP", STREAM, "EIO", "session"),
        ("STOP_COPY", "", STREAM, "EBADF", "written"),
    ],
)
def test_a_refused_stream_is_one_record(
    bench: Bench, session: str, end: str, data: bytes, expected: str, why: str
) -> None:
    state(bench, session)
    file = transfer(bench)
    if end:
        state(bench, end)
    bench.mark()
    with refused(expected):
        file.write(data)
    (record,) = bench.records(Refusal)
    assert (record.operation, record.path, record.errno) == ("write", f"{CLIENT}/data_stream", expected)
    assert record.data == f"{len(data)} bytes"
    assert why in record.why
    assert [type(other) for other in bench.journal][-1] is Refusal  # behind the lines of the log


@pytest.mark.parametrize(("session", "end", "expected"), [("STOP_COPY", "STOP", "ENODEV"), ("RESUMING", "", "EBADF")])
def test_a_stream_that_cannot_be_read_is_one_record(bench: Bench, session: str, end: str, expected: str) -> None:
    state(bench, session)
    file = transfer(bench)
    if end:
        state(bench, end)
    bench.mark()
    with refused(expected):
        file.read(0, 10)
    (record,) = bench.records(Refusal)
    assert (record.operation, record.path, record.errno) == ("read", f"{CLIENT}/data_stream", expected)


# -- reset, close, reopen ---------------------------------------------------------------------------------------------


def test_a_reset_leaves_state_and_files_alone(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    file.read(0, 10)
    bench.echo(1, f"{CLIENT}/reset")
    assert bench.cat(STATE) == "STOP_COPY\n"
    assert bytes(file.read(0, 4096)) == STREAM[10:]
    state(bench, "RESUMING")
    assert write(bench, STREAM[:10]) == [10]
    bench.mark()
    bench.echo(1, f"{CLIENT}/reset")
    assert arcs(bench) == []
    assert bench.resets() == [4]
    assert write(bench, STREAM[10:]) == [62]


def test_a_failed_reset_does_neither(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    bench.console("fail-reset 05.0004")
    with refused("EIO"):
        bench.echo(1, f"{CLIENT}/reset")
    assert bench.cat(STATE) == "STOP_COPY\n"
    assert bytes(transfer(bench).read(0, 4096)) == STREAM


@pytest.mark.parametrize("name", ["STOP", "STOP_COPY", "RESUMING"])
def test_a_device_opens_as_running(bench: Bench, name: str) -> None:
    state(bench, name)
    bench.run_guest(M1, 0)
    assert bench.cat(STATE) == "RUNNING\n"
    bench.run_guest(M1)
    assert bench.cat(STATE) == "RUNNING\n"
    assert not has_file(bench)
    state(bench, "STOP_COPY")
    assert bytes(transfer(bench).read(0, 4096)) == stream(ENTRIES)


def test_a_device_in_migration_is_in_use(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    with refused("EBUSY"):
        bench.put(M1, "remove", 1)
    assert bytes(file.read(0, 4096)) == STREAM

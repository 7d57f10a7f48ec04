"""The newest known state of the migration series: its stream, which streams a target refuses, and what it is given."""

from dataclasses import dataclass

import pytest

from apfs.errors import KernelError
from apfs.journal.records import Migration
from apfs.vfio_ap.migration.next import Next
from apfs.vfio_ap.migration.revision import MigrationFile
from tests.hosts import AP_DRIVER, M1, M2, MATRIX, Bench, config_text, product, refused

from .streams import (
    CCA8,
    ENTRIES,
    EP11_7,
    HOST,
    STREAM,
    Event,
    check_without_migration,
    cut,
    deliver,
    events,
    host,
    next_stream,
    pair,
    patched,
    state,
    transfer,
    write,
)

CLIENT = f"/dev/vfio-ap/{M1}"
STATE = f"{CLIENT}/migration_state"
NEXT = next_stream()
SAME = config_text((5, 6), (4, 0x47), (4, 0x47))
NOTHING = config_text()


def changed(*changes: tuple[int, str]) -> bytes:
    return patched(*changes, of=NEXT)


@pytest.fixture
def bench() -> Bench:
    return host("next")


@pytest.fixture
def empty() -> Bench:
    """A target whose device has nothing yet."""
    bench = host("next")
    bench.write(f"{MATRIX}/{M1}/ap_config", ",,")
    return bench


def taken(bench: Bench, size: int = 4096) -> bytes:
    """Take the stream of a guest, and let it run on."""
    state(bench, "STOP_COPY")
    file, data = transfer(bench), b""
    while piece := bytes(file.read(0, size)):
        data += piece
    state(bench, "RUNNING")
    return data


# -- what a source sends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 11, 48, 111, 112, 4096])
def test_the_stream_of_four_queues(bench: Bench, size: int) -> None:
    expected = (
        "76666170000000010000000400000000"
        "0800000000000000010000000000000000000000000000000000000000000000"
        "928000000e5403070504000000000000"
        "928000000e5403070547000000000000"
        "868000000d5403070604000000000000"
        "868000000d5403070647000000000000"
    )
    assert NEXT.hex() == expected
    assert taken(bench, size).hex() == expected
    assert bench.cat(f"{CLIENT}/data_size") == "112\n"


def test_words_are_asked_of_the_hardware_when_the_stream_is_read_first(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    bench.console("tapq 05.0047 bs=2 nd=1")
    file = transfer(bench)
    file.read(0, 1)
    bench.console("tapq 05.0047 bs=1")
    bench.put(M1, "unassign_adapter", 6)
    word = (CCA8 | 2 << 46) & ~(0xFF << 16) | 1 << 16
    rest = next_stream([ENTRIES[0], (word, 0x0547), *ENTRIES[2:]])[1:]
    assert bytes(file.read(0, 4096)) == rest
    assert bench.cat(f"{CLIENT}/data_size") == "80\n"


def test_a_second_session_gives_the_old_stream(bench: Bench) -> None:
    assert taken(bench) == NEXT
    bench.put(M1, "unassign_adapter", 6)
    assert taken(bench) == NEXT
    bench.echo(1, f"{CLIENT}/reset")
    assert taken(bench) == next_stream(ENTRIES[:2])
    bench.put(M1, "assign_adapter", 6)
    assert taken(bench) == next_stream(ENTRIES[:2])
    bench.run_guest(M1, 0)
    bench.run_guest(M1)
    assert taken(bench) == NEXT


def test_the_size_of_a_file_is_that_of_what_will_be_read(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    assert bench.stat(f"{CLIENT}/data_stream").size == 112
    transfer(bench).read(0, 1)
    bench.put(M1, "unassign_adapter", 6)
    state(bench, "STOP", "STOP_COPY")
    assert bench.stat(f"{CLIENT}/data_stream").size == 112
    bench.echo(1, f"{CLIENT}/reset")
    assert bench.stat(f"{CLIENT}/data_stream").size == 0
    state(bench, "STOP_COPY")
    assert bench.stat(f"{CLIENT}/data_stream").size == 80


def test_nothing_is_a_stream_of_the_header(empty: Bench) -> None:
    assert taken(empty) == next_stream([], [])


@pytest.mark.parametrize(("verb", "errno"), [("unplug 5", "ENODEV"), ("tapq 5 apsc=0", "")])
def test_a_queue_that_is_not_available(bench: Bench, verb: str, errno: str) -> None:
    state(bench, "STOP_COPY")
    bench.console(verb)
    bench.mark()
    if not errno:
        assert len(transfer(bench).read(0, 4096)) == 112
        return
    with refused(errno):
        transfer(bench).read(0, 4096)
    assert events(bench) == [("R1", "05.0004")]
    bench.console("plug 5 CEX8C")
    assert bytes(transfer(bench).read(0, 4096)) == NEXT


@pytest.mark.parametrize("verb", ["configure 5 off", "checkstop 5 on"])
def test_deconfigured_and_checkstopped_queues_have_their_words(bench: Bench, verb: str) -> None:
    bench.console(verb)
    assert taken(bench) == NEXT
    assert deliver(bench, NEXT) == [112]


# -- the streams of the description of the protocol ------------------------------------------------------------------

APPLIED, EINVAL, EIO, ENODEV, EFAULT = "applied", "EINVAL", "EIO", "ENODEV", "EFAULT"


@dataclass(frozen=True)
class Vector:
    """A stream: its bytes, the sizes of its writes, their results, and the log."""

    data: bytes
    results: tuple[int | str, ...]
    log: tuple[Event, ...] = ()
    sizes: tuple[int, ...] = ()
    verbs: tuple[str, ...] = ()

    @property
    def pieces(self) -> list[bytes]:
        return cut(self.data, *self.sizes) if self.sizes else [self.data]


Q, T, B = "Q0", "T1", "B1"
VECTORS = {
    "1": Vector(changed((0, "70616676")), (112,)),
    "2": Vector(changed((0, "70616676")), (12, EINVAL), sizes=(12, 100)),
    "3": Vector(changed((4, "00000002")), (48, EINVAL), sizes=(48, 64)),
    "3, one write": Vector(changed((4, "00000002")), (112,)),
    "4": Vector(changed((8, "00010001")), (EINVAL,)),
    "5": Vector(changed((8, "04000000")), (EINVAL,)),
    "6": Vector(changed((8, "00000003")), (12, EIO), sizes=(12, 100)),
    "6, one write": Vector(changed((8, "00000003")), (EIO,)),
    "7": Vector(changed((104, "0747")), (ENODEV,), (("U1", "07.0047"),)),
    "8": Vector(changed((26, "04")), (ENODEV,), (("C1", "0055"),)),
    "9": Vector(changed((52, "0f")), (EINVAL,), ((Q, "05.0004"), (T, "0f", "0e"))),
    "10": Vector(
        changed((50, "80")), (EINVAL,), ((Q, "05.0004"), (B, "2", "2", "05.0004")), verbs=("tapq 05.0004 bs=2",)
    ),
    "11": Vector(
        changed((52, "0f"), (64, "12")),
        (EINVAL,),
        ((Q, "05.0004"), (T, "0f", "0e"), (Q, "05.0047"), *pair("F1", "absent", "05.0047")),
    ),
    "12": Vector(b"", (EINVAL,)),
    "a stateless source": Vector(changed((49, "40")), (112,)),
    "a stateless target": Vector(
        NEXT,
        (EINVAL,),
        (
            *((Q, "05.0004"), *pair("K1", "native", "05.0004")),
            *((Q, "05.0047"), *pair("K1", "native", "05.0047")),
        ),
        verbs=("tapq 5 class=0x40",),
    ),
    "a reserved bit and an older type": Vector(changed((50, "08"), (52, "0d")), (112,)),
    "the last byte missing": Vector(NEXT[:111], (111,)),
    "a byte more, later": Vector(NEXT + b"\0", (112, EIO), sizes=(112, 1)),
    "a byte more": Vector(NEXT + b"\0", (EIO,)),
    "a stream of v2": Vector(STREAM, (EINVAL,)),
    "the empty configuration": Vector(next_stream([], []), (48,)),
    "after a stream in one write that was refused": Vector(
        changed((104, "0747")) + b"x", (ENODEV, EFAULT), (("U1", "07.0047"),), (112, 1)
    ),
    "after a last piece that was refused": Vector(
        changed((104, "0747")) + b"x", (100, ENODEV, EIO), (("U1", "07.0047"),), (100, 12, 1)
    ),
    "byte by byte": Vector(NEXT, (1,) * 112, sizes=(1,) * 112),
    "padding": Vector(changed((12, "01020304"), (58, "010203040506")), (112,)),
}
CHANGES_NOTHING = {"the last byte missing"}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(empty: Bench, name: str) -> None:
    vector = VECTORS[name]
    for verb in vector.verbs:
        empty.console(verb)
    assert deliver(empty, *vector.pieces) == list(vector.results)
    assert tuple(events(empty)) == vector.log
    assert empty.cat(STATE) == "RESUMING\n"
    state(empty, "RUNNING")
    complete = all(isinstance(result, int) for result in vector.results) or vector.results == (112, EIO)
    given = complete and name not in CHANGES_NOTHING and "empty" not in name
    assert empty.show(M1, "ap_config") == (SAME if given else NOTHING)
    assert empty.guest_matrix(M1) == (product((5, 6), (4, 0x47)) if given else [])
    assert len(empty.pushes()) == len(empty.interrupts()) == given


def test_the_empty_configuration_empties_a_device(bench: Bench) -> None:
    assert deliver(bench, next_stream([], [])) == [48]
    assert bench.show(M1, "ap_config") == NOTHING
    assert bench.resets() != []


def test_two_queues_of_a_cross_bring_all_four(empty: Bench) -> None:
    cross = [ENTRIES[0], ENTRIES[3]]
    assert deliver(empty, next_stream(cross)) == [80]
    assert empty.show(M1, "ap_config") == SAME
    assert empty.guest_matrix(M1) == product((5, 6), (4, 0x47))


def test_the_configuration_is_replaced_and_not_merged(bench: Bench) -> None:
    one = next_stream([ENTRIES[3]], [0x47])
    assert deliver(bench, one) == [64]
    assert bench.show(M1, "ap_config") == config_text((6,), (0x47,), (0x47,))
    assert bench.guest_matrix(M1) == ["06.0047"]
    assert len(bench.interrupts()) == len(bench.pushes()) > 0
    assert sum(bench.resets()) == 3


def test_what_the_closure_adds_is_filtered_as_usual(empty: Bench) -> None:
    empty.unbind("06.0004")
    assert deliver(empty, next_stream([ENTRIES[0], ENTRIES[3]])) == [80]
    assert empty.show(M1, "ap_config") == SAME
    assert empty.guest_matrix(M1) == product((5,), (4, 0x47))


@pytest.mark.parametrize(
    ("errno", "masks", "other"),
    [("EADDRNOTAVAIL", 'apmask = "-5"\naqmask = "-0x47"', ""), ("EADDRINUSE", 'apmask = "0x0"', "06.0004")],
)
def test_what_cannot_be_assigned(errno: str, masks: str, other: str) -> None:
    text = HOST.partition("[[mdev]]")[0].replace('apmask = "0x0"', masks)
    bench = host("next", text)
    bench.create(M1, M2)
    if other:
        bench.assign(M2, (6,), (4,))
    bench.run_guest(M1)
    before = bench.dump(MATRIX, "/sys/devices/ap")
    assert deliver(bench, next_stream([ENTRIES[0], ENTRIES[3]], [])) == [errno]
    state(bench, "RUNNING")
    assert bench.dump(MATRIX, "/sys/devices/ap") == before


def test_all_queues_are_told_of_and_the_last_errno_wins(bench: Bench) -> None:
    bench.console("unplug 6")
    wrong = next_stream([(CCA8 | 1 << 24, 0x0504), *ENTRIES[1:]])
    assert deliver(bench, wrong) == ["ENODEV"]
    assert events(bench) == [(Q, "05.0004"), (T, "0f", "0e"), ("R1", "06.0004"), ("R1", "06.0047")]
    other = next_stream([ENTRIES[2], (CCA8 | 1 << 24, 0x0504)])
    bench.run_guest(M1, 0)
    bench.run_guest(M1)
    assert deliver(bench, other) == ["EINVAL"]
    assert events(bench) == [("R1", "06.0004"), (Q, "05.0004"), (T, "0f", "0e")]


def test_the_order_of_diagnostics(bench: Bench) -> None:
    wrong = next_stream([(0x7F80C0000FFFFFFF, 0x0504)], [])
    bench.console("tapq 5 class=0x40")
    assert deliver(bench, wrong) == ["EINVAL"]
    keys = [event[0] for event in events(bench)]
    assert keys == [Q, "F1", "F1", "F2", "F2", "F3", "F3", "M2", "M2", "M3", "M3", "L1", "L1", T, B, "K1", "K1"]


@pytest.mark.parametrize(
    ("source", "target", "accepted"),
    [
        (CCA8, CCA8, True),
        (CCA8 | 2 << 46, CCA8 | 2 << 46, False),
        (CCA8, CCA8 | 1 << 46, False),
        (CCA8, CCA8 | 1 << 24, True),
        (CCA8 | 1 << 24, CCA8, False),
        (CCA8 ^ 0xC0 << 48, CCA8, True),  # stateless source
        (CCA8, CCA8 ^ 0xC0 << 48, False),  # stateless target
        (CCA8 | 1 << 48, CCA8, True),  # other bits of the class
        *((CCA8 ^ 1 << bit, CCA8, False) for bit in (*range(56, 64), 46, 47)),
        *((CCA8 ^ 1 << bit, CCA8 | 1 << 24, True) for bit in (*range(24), *range(32, 46))),
    ],
)
def test_compatibility_of_words(bench: Bench, source: int, target: int, accepted: bool) -> None:  # noqa: FBT001
    migration = bench.host.vfio_ap.driver.mdevs[0].migration if bench.host.vfio_ap else None
    assert isinstance(migration, Next)
    assert migration.compatible(source, target) is accepted


# -- files that outlive their session --------------------------------------------------------------------------------


def test_files_are_alive_after_their_session(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    saving = transfer(bench)
    saving.read(0, 10)
    state(bench, "RESUMING")
    resuming = transfer(bench)
    assert resuming.write(NEXT[:50]) == 50
    state(bench, "RUNNING")
    assert bytes(saving.read(0, 4096)) == NEXT[10:]
    assert resuming.write(NEXT[50:]) == 62
    with refused("ENODEV"):
        transfer(bench)


def tried(file: MigrationFile, data: bytes | None) -> str:
    try:
        if data is None:
            file.read(0, 10)
        else:
            file.write(data)
    except KernelError as error:
        return error.name
    return "ok"


@pytest.mark.parametrize(
    ("end", "reading", "writing"),
    [
        ("RUNNING", "ok", "ok"),
        ("another", "EINVAL", "ENXIO"),
        ("reset", "EINVAL", "ENXIO"),
        ("close", "ENODEV", "ENODEV"),
        ("reopen", "ENODEV", "ENODEV"),
    ],
)
def test_files_after(bench: Bench, end: str, reading: str, writing: str) -> None:
    state(bench, "STOP_COPY")
    saving = transfer(bench)
    state(bench, "RESUMING")
    resuming = transfer(bench)
    if end == "another":
        state(bench, "STOP_COPY", "RESUMING")
    elif end == "reset":
        bench.echo(1, f"{CLIENT}/reset")
    elif end == "RUNNING":
        state(bench, end)
    else:
        bench.run_guest(M1, 0)
        if end == "reopen":
            bench.run_guest(M1)
            state(bench, "STOP_COPY", "RESUMING")
    assert (tried(saving, None), tried(resuming, NEXT)) == (reading, writing)
    assert tried(resuming, b"") == "EINVAL"


def test_a_reset_brings_running_and_takes_the_buffers(bench: Bench) -> None:
    state(bench, "RESUMING")
    assert write(bench, NEXT[:20]) == [20]
    bench.mark()
    bench.echo(1, f"{CLIENT}/reset")
    assert bench.cat(STATE) == "RUNNING\n"
    assert [(record.before, record.after) for record in bench.records(Migration)] == [("RESUMING", "RUNNING")]
    # The place for the first 12 bytes is not made again.
    assert deliver(bench, NEXT) == ["EFAULT"]
    bench.run_guest(M1, 0)
    bench.run_guest(M1)
    assert deliver(bench, NEXT) == [112]


def test_a_reset_after_less_than_twelve_bytes_does_no_harm(bench: Bench) -> None:
    state(bench, "RESUMING")
    assert write(bench, NEXT[:11]) == [11]
    bench.echo(1, f"{CLIENT}/reset")
    assert deliver(bench, NEXT) == [112]


def test_a_reset_that_fails_changes_no_state(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    bench.console("fail-reset 05.0004")
    with refused("EIO"):
        bench.echo(1, f"{CLIENT}/reset")
    assert bench.cat(STATE) == "STOP_COPY\n"
    assert bytes(transfer(bench).read(0, 4096)) == NEXT


def test_the_buffer_outlives_its_session(bench: Bench) -> None:
    assert deliver(bench, NEXT) == [112]
    assert deliver(bench, NEXT + b"\0") == ["EIO"]  # measured by the stream before
    assert deliver(bench, next_stream(ENTRIES[:3])) == [96]  # which it does not fill
    assert bench.matrix(M1) == product((5, 6), (4, 0x47))
    assert deliver(bench, changed((104, "0604"))) == [112]


def test_an_open_file_keeps_the_device(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    again = transfer(bench)
    bench.run_guest(M1, 0)
    for opened in (file, again):
        with refused("EBUSY"):
            bench.put(M1, "remove", 1)
        with refused("EAGAIN"):
            bench.console("rmmod vfio_ap")
        opened.close()
    bench.put(M1, "remove", 1)


# -- secure execution -------------------------------------------------------------------------------------------------


def test_a_secure_execution_host_has_no_migration() -> None:
    bench = host("next", "secure_execution = true\n" + HOST)
    assert bench.cat(f"{MATRIX}/features") == "guest_matrix hotplug ap_config\n"
    check_without_migration(bench)
    assert bench.log() == []
    bench.echo(1, f"{CLIENT}/reset")


def test_words_of_ep11_are_whole() -> None:
    bench = host("next")
    bench.console("tapq 6 bs=1 class=0xc1 ml=15 qd=15")
    word = EP11_7 & ~(0xFF << 48 | 0xF << 8 | 0xF) | 0xC1 << 48 | 1 << 46 | 0xF << 8 | 0xF
    assert taken(bench) == next_stream([*ENTRIES[:2], (word, 0x0604), (word, 0x0647)])


def test_an_unbound_queue_takes_its_adapter_out(bench: Bench) -> None:
    bench.echo("05.0047", f"{AP_DRIVER}/unbind")
    assert taken(bench) == next_stream(ENTRIES[2:])

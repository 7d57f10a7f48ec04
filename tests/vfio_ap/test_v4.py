"""Revision 4 of the migration series as it was mailed: its stream, which a target takes at once or not at all."""

import pytest

from apfs.journal.records import Migration
from apfs.vfio_ap.migration.v4 import V4
from tests.calls import calls
from tests.hosts import M1, M2, MATRIX, Bench, config_text, product, refused

from .streams import (
    CCA8,
    ENTRIES,
    HOST,
    STREAM,
    Event,
    deliver,
    events,
    host,
    next_stream,
    pair,
    patched,
    state,
    transfer,
    v4_stream,
    write,
)

CLIENT = f"/dev/vfio-ap/{M1}"
STATE = f"{CLIENT}/migration_state"
WHOLE = v4_stream()
MANY = f"""
[qci]
domains = {list(range(64))}
[[card]]
adapters = [0, 1, 2, 3]
type = "CEX7P"
[masks]
apmask = "0x0"
[[mdev]]
uuid = "{M1}"
guest = true
"""
EFAULT, EIO, EINVAL, ENODEV = "EFAULT", "EIO", "EINVAL", "ENODEV"


def changed(*changes: tuple[int, str]) -> bytes:
    return patched(*changes, of=WHOLE)


@pytest.fixture
def bench() -> Bench:
    return host("v4")


@pytest.fixture
def empty() -> Bench:
    """A target whose device has control domains only."""
    bench = host("v4")
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((), (), (4,)))
    return bench


# -- what a source sends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 16, 79, 80, 4096])
def test_the_stream_of_four_queues(bench: Bench, size: int) -> None:
    expected = (
        "00000004000000000000000000000000"
        "928000000e5403070504000000000000"
        "928000000e5403070547000000000000"
        "868000000d5403070604000000000000"
        "868000000d5403070647000000000000"
    )
    assert WHOLE.hex() == expected
    state(bench, "STOP_COPY")
    data = b""
    while piece := bytes(transfer(bench).read(0, size)):
        data += piece
    assert data.hex() == expected
    assert bench.cat(f"{CLIENT}/data_size") == "80\n"


def test_it_is_made_again_with_every_read(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    file = transfer(bench)
    assert bytes(file.read(0, 16)) == WHOLE[:16]
    bench.put(M1, "unassign_adapter", 5)
    bench.console("tapq 06.0004 bs=2")
    word = ENTRIES[2][0] | 2 << 46
    assert bytes(file.read(0, 4096)) == v4_stream([(word, 0x0604), ENTRIES[3]])[16:]  # torn: it began with four
    assert bytes(file.read(0, 4096)) == b""


def test_a_queue_that_is_not_available(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    bench.console("unplug 5")
    bench.mark()
    with refused("ENODEV"):
        transfer(bench).read(0, 4096)
    assert events(bench) == [("R1", "05.0004")]


# -- what a target takes ----------------------------------------------------------------------------------------------

VECTORS: dict[str, tuple[list[bytes], list[int | str], list[Event]]] = {
    "as it was sent": ([WHOLE], [80], []),
    "in two pieces": ([WHOLE[:40], WHOLE[40:]], [40, EFAULT], []),
    "too short, then whole": ([WHOLE[:79], WHOLE], [79, EFAULT], []),
    "only the header": ([WHOLE[:16]], [16], []),
    "less than the header": ([WHOLE[:15]], [EIO], []),
    "nothing": ([b""], [EIO], []),
    "too long": ([WHOLE + b"\0"], [EIO], []),
    "and more": ([WHOLE, b"\0"], [80, EIO], []),
    "too many queues": ([changed((0, "00010001"))], [EINVAL], []),
    "little-endian": ([changed((0, "04000000"))], [EINVAL], []),
    "fewer queues than there are": ([changed((0, "00000003"))], [EIO], []),
    "more queues than there are": ([changed((0, "00000005"))], [80], []),
    "not bound": ([changed((72, "0747"), (24, "0904"))], [ENODEV], [("U1", "09.0004"), ("U1", "07.0047")]),
    "after a refusal": ([changed((72, "0747")), WHOLE], [ENODEV, EFAULT], [("U1", "07.0047")]),
    "a newer type": ([changed((20, "0f"))], [EFAULT], [("Q0", "05.0004"), ("T1", "0f", "0e")]),
    "all are told of": (
        [changed((20, "0f"), (32, "12"))],
        [EFAULT],
        [("Q0", "05.0004"), ("T1", "0f", "0e"), ("Q0", "05.0047"), *pair("F1", "absent", "05.0047")],
    ),
    "a stateless source": ([changed((17, "40"))], [EFAULT], [("Q0", "05.0004")]),
    "a bind state": ([changed((18, "80"))], [EFAULT], [("Q0", "05.0004"), ("B1", "2", "0", "05.0004")]),
    "a reserved bit": ([changed((18, "08"))], [80], []),
    "a reserved bit and an older type": ([changed((18, "08"), (20, "0d"))], [EFAULT], [("Q0", "05.0004")]),
    "all types older": ([changed((20, "0c"), (36, "0c"), (52, "0c"), (68, "0c"))], [80], []),
    "padding, and a size": ([changed((4, "01020304"), (8, "ffffffffffffffff"), (26, "01"))], [80], []),
    "of v2": ([STREAM], [72], []),
    "of next": ([next_stream()], [EINVAL], []),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(empty: Bench, name: str) -> None:
    pieces, results, log = VECTORS[name]
    assert deliver(empty, *pieces) == results
    assert events(empty) == log
    assert empty.cat(STATE) == "RESUMING\n"
    given = 80 in results and "fewer" not in name and "more queues" not in name
    state(empty, "RUNNING")
    assert empty.matrix(M1) == (product((5, 6), (4, 0x47)) if given else [])
    assert empty.show(M1, "control_domains") == "0004\n"
    assert len(empty.pushes()) == len(empty.interrupts()) == given


def test_words_are_compared_once() -> None:
    """Queues of a card have the same ones. The low bits make them different, and are not compared."""
    target = host("v4", MANY)
    apqns = [adapter << 8 | domain for adapter in range(4) for domain in range(64)]

    def work(differ: int) -> int:
        data = v4_stream([(CCA8 ^ (number * differ), apqn) for number, apqn in enumerate(apqns)])
        before = target.host.journal.last
        count = calls(lambda: deliver(target, data))
        assert target.host.journal.last - before > 2 * len(apqns)
        return count

    assert work(0) < 0.6 * work(1)


def test_equal_bind_states_are_accepted(bench: Bench) -> None:
    bench.console("tapq 05.0004 bs=2")
    assert deliver(bench, changed((18, "80"))) == [80]


def test_a_target_that_is_stateless(bench: Bench) -> None:
    bench.console("tapq 05.0004 class=0x40")
    assert deliver(bench, WHOLE) == [EFAULT]
    assert events(bench) == [("Q0", "05.0004"), *pair("K1", "native", "05.0004")]


def test_the_configuration_is_replaced_but_for_control_domains(bench: Bench) -> None:
    assert deliver(bench, v4_stream([ENTRIES[3]])) == [32]
    assert bench.show(M1, "ap_config") == config_text((6,), (0x47,), (4, 0x47))
    assert bench.guest_matrix(M1) == ["06.0047"]


def test_no_queue_at_all(bench: Bench) -> None:
    assert deliver(bench, v4_stream([])) == [16]
    assert bench.show(M1, "ap_config") == config_text((), (), (4, 0x47))


def test_what_would_be_filtered_is_refused(empty: Bench) -> None:
    empty.unbind("06.0004")
    before = empty.show(M1, "ap_config")
    assert deliver(empty, v4_stream([ENTRIES[0], ENTRIES[3]])) == ["ECANCELED"]
    assert empty.show(M1, "ap_config") == before


@pytest.mark.parametrize(
    ("errno", "masks", "other"),
    [("EADDRNOTAVAIL", 'apmask = "-5"\naqmask = "-0x47"', ""), ("EADDRINUSE", 'apmask = "0x0"', "06.0004")],
)
def test_what_cannot_be_assigned(errno: str, masks: str, other: str) -> None:
    bench = host("v4", HOST.partition("[[mdev]]")[0].replace('apmask = "0x0"', masks))
    bench.create(M1, M2)
    if other:
        bench.assign(M2, (6,), (4,))
    bench.run_guest(M1)
    assert deliver(bench, v4_stream([ENTRIES[0], ENTRIES[3]])) == [errno]
    assert bench.matrix(M1) == []
    warnings = [line for line in bench.log() if line.startswith("warn")]
    assert len(warnings) == bool(other)  # as for ap_config


@pytest.mark.parametrize(
    ("source", "target", "accepted"),
    [
        (CCA8, CCA8, True),
        (CCA8 | 2 << 46, CCA8 | 2 << 46, True),  # equal bind states pass, whatever they are
        (CCA8 | 2 << 46, CCA8 | 2 << 46 | 1 << 24, False),  # but not with a newer type
        (CCA8, CCA8 | 1 << 46, False),
        (CCA8, CCA8 | 1 << 24, True),
        (CCA8 | 1 << 24, CCA8, False),
        (CCA8 | 1 << 32, CCA8 | 1 << 24, False),
        (CCA8 ^ 0xC0 << 48, CCA8, False),
        (CCA8, CCA8 ^ 0xC0 << 48, False),
        *((CCA8 ^ 1 << bit, CCA8, False) for bit in range(46, 64)),
        *((CCA8 ^ 1 << bit, CCA8, True) for bit in (*range(24), *range(32, 46))),
    ],
)
def test_compatibility_of_words(bench: Bench, source: int, target: int, accepted: bool) -> None:  # noqa: FBT001
    migration = bench.host.vfio_ap.driver.mdevs[0].migration if bench.host.vfio_ap else None
    assert isinstance(migration, V4)
    assert migration.compatible(source, target) is accepted


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_stream_that_was_taken_is_in_the_way_of_others(bench: Bench) -> None:
    assert deliver(bench, WHOLE) == [80]
    assert deliver(bench, WHOLE) == [EFAULT]
    bench.echo(1, f"{CLIENT}/reset")
    assert deliver(bench, WHOLE) == [EFAULT]
    bench.run_guest(M1, 0)
    bench.run_guest(M1)
    assert deliver(bench, changed((72, "0747"))) == [ENODEV]
    assert deliver(bench, WHOLE[:40]) == [40]
    assert deliver(bench, WHOLE) == [80]


def test_a_reset_brings_running_and_keeps_the_files(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    saving = transfer(bench)
    assert len(saving.read(0, 10)) == 10
    bench.mark()
    bench.echo(1, f"{CLIENT}/reset")
    assert bench.cat(STATE) == "RUNNING\n"
    assert [(record.before, record.after) for record in bench.records(Migration)] == [("STOP_COPY", "RUNNING")]
    assert bytes(saving.read(0, 4096)) == WHOLE[10:]
    state(bench, "RESUMING")
    resuming = transfer(bench)
    bench.echo(1, f"{CLIENT}/reset")
    with refused("ENODEV"):
        transfer(bench)
    assert resuming.write(WHOLE) == 80


def test_files_outlive_their_session_but_not_the_device(bench: Bench) -> None:
    state(bench, "STOP_COPY")
    saving = transfer(bench)
    state(bench, "RESUMING")
    old = transfer(bench)
    state(bench, "STOP", "RESUMING")
    new = transfer(bench)
    state(bench, "RUNNING")
    assert len(saving.read(0, 4096)) == 80
    with refused("ENXIO"):
        old.write(WHOLE)
    assert new.write(WHOLE) == 80
    bench.run_guest(M1, 0)
    bench.put(M1, "remove", 1)  # open files do not keep it
    for act in (lambda: saving.read(0, 1), lambda: new.write(WHOLE)):
        with refused("ENODEV"):
            act()


def test_a_secure_execution_host_does_not_migrate() -> None:
    bench = host("v4", "secure_execution = true\n" + HOST)
    assert "migratable" in bench.cat(f"{MATRIX}/features").split()
    with refused("EPERM"):
        bench.echo("STOP", STATE)
    assert events(bench) == [("S1",)]


def test_leaving_is_always_possible(bench: Bench) -> None:
    state(bench, "RESUMING")
    assert write(bench, WHOLE[:20]) == [20]
    state(bench, "STOP_COPY")
    assert bench.cat(STATE) == "STOP_COPY\n"

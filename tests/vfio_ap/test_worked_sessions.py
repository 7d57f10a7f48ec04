"""Sessions as an administrator would have them, step by step: matrix, filtering, a guest, errors, nothing released."""

import pytest

from apfs.journal.records import GuestUpdate
from tests.hosts import (
    AP_DRIVER,
    CONSOLE,
    CREATE,
    M1,
    M2,
    MATRIX,
    RESERVED,
    TYPE,
    Bench,
    apqns_in,
    built,
    config_text,
    mask_text,
    product,
    queue,
    refused,
)

FOUR = ["05.0004", "05.00ab", "06.0004", "06.00ab"]
Z64 = "0x" + "0" * 64
THIRD_AB = "0x0000000000000000000000000000000000000000001000000000000000000000"
THIRD_BOTH = "0x0800000000000000000000000000000000000000001000000000000000000000"
FINAL = (
    "0x0600000000000000000000000000000000000000000000000000000000000000,"
    "0x0800000000000000000000000000000000000000001000000000000000000000,"
    "0x0800000000000000000000000000000000000000001000000000000000000000\n"
)


def test_the_helpers_write_masks_as_the_text_shows_them() -> None:
    assert mask_text((0xAB,)) == THIRD_AB
    assert config_text((5, 6), (4, 0xAB), (4, 0xAB)) == FINAL


def test_build_a_matrix() -> None:
    bench = Bench()
    bench.create(M1)
    five, both = "0x04" + "0" * 62, "0x06" + "0" * 62
    four = "0x08" + "0" * 62
    steps = [
        (None, "", [], [], f"{Z64},{Z64},{Z64}"),
        ("assign_adapter", "5", ["05."], [], f"{five},{Z64},{Z64}"),
        ("assign_domain", "0x4", ["05.0004"], [], f"{five},{four},{Z64}"),
        ("assign_domain", "0xab", ["05.0004", "05.00ab"], [], f"{five},{THIRD_BOTH},{Z64}"),
        ("assign_adapter", "06", FOUR, [], f"{both},{THIRD_BOTH},{Z64}"),
        ("assign_control_domain", "0xab", FOUR, ["00ab"], f"{both},{THIRD_BOTH},{THIRD_AB}"),
        ("assign_control_domain", "4", FOUR, ["0004", "00ab"], f"{both},{THIRD_BOTH},{THIRD_BOTH}"),
    ]
    for name, text, matrix, control_domains, config in steps:
        if name:
            assert bench.put(M1, name, text) == len(text) + 1
        assert bench.matrix(M1) == matrix
        assert bench.guest_matrix(M1) == matrix
        assert bench.lines(M1, "control_domains") == control_domains
        assert bench.show(M1, "ap_config") == config + "\n"
    assert bench.show(M1, "ap_config") == FINAL
    assert len(FINAL) == 201
    for apqn in FOUR:
        assert bench.queue_status(apqn) == "assigned\n"
    assert bench.queue_status("05.0047") == "unassigned\n"
    assert bench.cat(f"{TYPE}/available_instances") == "65535\n"


def test_filtering() -> None:
    bench = built()
    after_rewrite = ["05.0004", "06.0004"]
    four = product((5, 6), (4, 0x47))
    six = product((5, 6), (4, 9, 0x47))
    unbind, bind = f"{AP_DRIVER}/unbind", f"{AP_DRIVER}/bind"
    m1 = f"{MATRIX}/{M1}"
    steps: list[tuple[str, str, list[str], list[str]]] = [
        ("06.00ab", unbind, FOUR, ["05.0004", "05.00ab"]),
        ("05.0004", unbind, FOUR, [".0004", ".00ab"]),
        ("05.0004", bind, FOUR, ["05.0004", "05.00ab"]),
        ("0xab", f"{m1}/unassign_domain", after_rewrite, ["05.0004"]),
        (config_text((5, 6), (4,), (4, 0xAB)).rstrip(), f"{m1}/ap_config", after_rewrite, after_rewrite),
        ("0x47", f"{m1}/assign_domain", four, four),
        ("9", f"{m1}/assign_domain", six, four),
        ("unplug 6", CONSOLE, six, four),
        ("scan", CONSOLE, six, ["05.0004", "05.0047"]),
        ("plug 6 CEX8C", CONSOLE, six, ["05.0004", "05.0047"]),
        ("scan", CONSOLE, six, four),
    ]
    for text, path, matrix, guest_matrix in steps:
        if path == f"{m1}/ap_config":
            assert bench.show(M1, "ap_config") == f"{text}\n"
        bench.echo(text, path)
        assert (bench.matrix(M1), bench.guest_matrix(M1)) == (matrix, guest_matrix), (text, path)


def test_with_a_guest() -> None:
    bench = built()
    before = bench.dump(MATRIX)
    bench.run_guest(M1)
    for apqn in FOUR:
        assert bench.queue_status(apqn) == "in use\n"
    assert bench.dump(MATRIX) == before

    bench.mark()
    bench.put(M1, "assign_domain", "0x47")
    six = product((5, 6), (4, 0x47, 0xAB))
    assert bench.guest_matrix(M1) == six
    control = mask_text((4, 0xAB))
    assert bench.records(GuestUpdate) == [GuestUpdate(M1, mask_text((5, 6)), mask_text((4, 0x47, 0xAB)), control)]
    assert bench.interrupts() == [(M1, "config_changed")]
    assert bench.queue_status("05.0047") == bench.queue_status("06.0047") == "in use\n"

    bench.mark()
    bench.put(M1, "unassign_adapter", "6")
    assert bench.guest_matrix(M1) == product((5,), (4, 0x47, 0xAB))
    assert bench.resets() == [3]
    assert [bench.queue_status(f"06.{domain}") for domain in ("0004", "0047", "00ab")] == ["unassigned\n"] * 3

    bench.mark()
    with refused("EBUSY"):  # where Linux blocks the writer until the guest lets go
        bench.put(M1, "remove", "1")
    assert (M1, "request") in bench.interrupts()
    assert bench.guest_matrix(M1) == product((5,), (4, 0x47, 0xAB))
    bench.run_guest(M1, 0)
    assert bench.put(M1, "remove", "1") == 2
    assert not bench.exists(f"{MATRIX}/{M1}")


def test_errors() -> None:
    bench = built()
    bench.create(M2)
    adapter_64 = f"0x{'0' * 16}8,0x0,0x0"
    steps: list[tuple[str, str, str | None, list[str]]] = [
        ("assign_adapter", "5", None, ["05."]),
        ("assign_domain", "4", "EADDRINUSE", ["05."]),
        ("assign_domain", "0xff", None, ["05.00ff"]),
        ("assign_adapter", "6", None, ["05.00ff", "06.00ff"]),
        ("assign_adapter", "7", "EADDRNOTAVAIL", ["05.00ff", "06.00ff"]),
        ("assign_adapter", "64", "ENODEV", ["05.00ff", "06.00ff"]),
        ("assign_domain", "256", "ENODEV", ["05.00ff", "06.00ff"]),
        ("unassign_adapter", "200", "ENODEV", ["05.00ff", "06.00ff"]),
        ("unassign_adapter", "9", None, ["05.00ff", "06.00ff"]),
        *(("assign_adapter", text, "EINVAL", ["05.00ff", "06.00ff"]) for text in ("0x", "08", " 5", "-1")),
        ("assign_adapter", "18446744073709551616", "ERANGE", ["05.00ff", "06.00ff"]),
        ("assign_control_domain", "0xab", None, ["05.00ff", "06.00ff"]),
        ("ap_config", "0x04,0x08,0x08", "EADDRINUSE", ["05.00ff", "06.00ff"]),
        ("ap_config", "0x01,0x08,0x08", "EADDRNOTAVAIL", ["05.00ff", "06.00ff"]),
        ("ap_config", adapter_64, "ENODEV", ["05.00ff", "06.00ff"]),
        ("ap_config", ",", None, []),
    ]
    m1_before = bench.show(M1, "ap_config")
    for name, text, expected, matrix in steps:
        bench.mark()
        before = bench.show(M2, "ap_config")
        if expected:
            with refused(expected):
                bench.put(M2, name, text)
            assert bench.show(M2, "ap_config") == before
        else:
            bench.put(M2, name, text)
        assert bench.matrix(M2) == matrix, (name, text)
        if expected == "EADDRINUSE":
            (line,) = bench.log()
            assert line.startswith(f"warn vfio_ap_mdev {M2}: ")
            assert apqns_in(line) == ["05.0004"]
            assert line.endswith(M1)
        else:
            assert bench.log() == []
    assert bench.show(M1, "ap_config") == m1_before


@pytest.mark.parametrize(
    ("m2", "holder", "apqns"),
    [
        pytest.param(((), ()), M1, ["05.0004", "05.00ab"], id="only m1 has adapter 5"),
        pytest.param(((5,), (0xFF,)), M2, ["05.00ff"], id="m2 has it too, and is newer"),
        pytest.param(((5,), ()), M1, ["05.0004", "05.00ab"], id="m2 has it without a domain"),
    ],
)
def test_taking_back_an_adapter_in_use(
    m2: tuple[tuple[int, ...], tuple[int, ...]], holder: str, apqns: list[str]
) -> None:
    bench = built()
    bench.create(M2)
    bench.assign(M2, *m2)
    bench.mark()
    before = bench.dump()
    with refused("EBUSY"):
        bench.echo("+5", "/sys/bus/ap/apmask")
    assert bench.dump() == before
    assert [apqns_in(line) for line in bench.log()] == [[apqn] for apqn in apqns]
    assert all(line.startswith(f"warn vfio_ap_mdev {holder}: ") for line in bench.log())


def test_errors_of_create_and_remove() -> None:
    bench = built()
    before = bench.dump()
    for text, expected in ((M1.upper() + "\n", "EEXIST"), (M2[:35], "EINVAL"), (M2 + "\n\n", "EINVAL")):
        with refused(expected):
            bench.write(CREATE, text)
    with refused("EINVAL"):
        bench.put(M1, "remove", "yes")
    assert bench.put(M1, "remove", "0") == 2
    with refused("EACCES"):
        bench.cat(f"{MATRIX}/{M1}/assign_adapter")
    assert bench.dump() == before


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (("assign_adapter", "5"), ("assign_domain", "4"), ["05."]),
        (("assign_domain", "4"), ("assign_adapter", "5"), [".0004"]),
    ],
)
def test_everything_reserved(first: tuple[str, str], second: tuple[str, str], left: list[str]) -> None:
    bench = Bench(RESERVED)
    bench.create(M1)
    bench.put(M1, *first)
    with refused("EADDRNOTAVAIL"):
        bench.put(M1, *second)
    assert bench.matrix(M1) == left


def test_everything_reserved_but_what_is_overridden() -> None:
    bench = Bench(RESERVED)
    bench.create(M1)
    bench.give("05.0004")
    assert bench.readlink(f"{queue('05.0004')}/driver") == "../../../../bus/ap/drivers/vfio_ap"
    bench.assign(M1, (5,), (4,))
    assert bench.matrix(M1) == bench.guest_matrix(M1) == ["05.0004"]
    with refused("EADDRNOTAVAIL"):
        bench.put(M1, "assign_domain", "0x47")
    bench.give("05.0047")
    bench.put(M1, "assign_domain", "0x47")
    assert bench.matrix(M1) == bench.guest_matrix(M1) == ["05.0004", "05.0047"]

"""Whose queue it is: other devices' queues cannot be assigned, assigned queues cannot be taken back for the host."""

import pytest

from tests.hosts import (
    BARE,
    CREATE,
    M1,
    M2,
    M3,
    M4,
    MATRIX,
    RESERVED,
    ZCRYPT_DRIVER,
    Bench,
    apqns_in,
    built,
    config_text,
    product,
    queue,
    refused,
)

AP_BUS = "/sys/bus/ap"
Sides = tuple[tuple[int, ...], tuple[int, ...]]


def with_devices(*matrices: Sides) -> Bench:
    """Return a host without reservations, with devices M1, M2 ... in this order."""
    bench = Bench(BARE)
    for uuid, matrix in zip((M1, M2, M3, M4), matrices, strict=False):
        bench.create(uuid)
        bench.assign(uuid, *matrix)
    bench.mark()
    return bench


# -- sharing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (((5,), (4,)), ((5,), (4,)), ["05.0004"]),
        (((5,), (4,)), ((5,), (9,)), []),
        (((5,), (4,)), ((6,), (4,)), []),
        (((5,), (4,)), ((6,), (9,)), []),
        (((5,), ()), ((5,), (4,)), []),
        (((), (4,)), ((5,), (4,)), []),
        (((5,), ()), ((5,), ()), []),
        (((), (4,)), ((), (4,)), []),
        (((), ()), ((5,), (4,)), []),
        (((5, 6), (4, 9)), ((5,), (4, 9)), ["05.0004", "05.0009"]),
        (((5, 6), (4, 9)), ((4, 5, 6, 7), (3, 4, 9, 10)), product((5, 6), (4, 9))),
        (((255,), (255,)), ((0, 255), (0, 255)), ["ff.00ff"]),
    ],
)
def test_two_devices(first: Sides, second: Sides, shared: list[str]) -> None:
    bench = with_devices(first, ((), ()))
    before = bench.dump()
    if not shared:
        bench.write(f"{MATRIX}/{M2}/ap_config", config_text(*second))
        assert bench.log() == []
        return
    with refused("EADDRINUSE"):
        bench.write(f"{MATRIX}/{M2}/ap_config", config_text(*second))
    assert bench.dump() == before
    # One warning per queue, on the device that was written; the holder comes last.
    assert len(bench.log()) == len(shared)
    for line, apqn in zip(bench.log(), shared, strict=True):
        assert line.startswith(f"warn vfio_ap_mdev {M2}: ")
        assert apqns_in(line) == [apqn]
        assert line.endswith(f" {M1}")


@pytest.mark.parametrize(
    ("matrices", "holder", "apqns"),
    [
        # The newest other device with a conflict decides, and the search ends with it.
        ((((5,), (4,)), ((6,), (4,)), ((), ())), M2, ["06.0004"]),
        ((((6,), (4,)), ((5,), (4,)), ((), ())), M2, ["05.0004"]),
        ((((5,), (4,)), ((7,), (4,)), ((), ())), M1, ["05.0004"]),
        ((((5, 6), (4,)), ((7,), (9,)), ((), ())), M1, ["05.0004", "06.0004"]),
    ],
)
def test_the_newest_conflict_is_told(matrices: tuple[Sides, ...], holder: str, apqns: list[str]) -> None:
    bench = with_devices(*matrices)
    bench.assign(M3, (5, 6))
    bench.mark()
    with refused("EADDRINUSE"):
        bench.put(M3, "assign_domain", "4")
    assert [apqns_in(line) for line in bench.log()] == [[apqn] for apqn in apqns]
    assert all(line.endswith(f" {holder}") for line in bench.log())


def test_order_of_creation_counts_and_not_the_writer_s_age() -> None:
    bench = with_devices(((), ()), ((5,), (4,)), ((6,), (4,)))
    bench.assign(M1, (5, 6))
    bench.mark()
    with refused("EADDRINUSE"):
        bench.put(M1, "assign_domain", "4")
    (line,) = bench.log()
    assert line.startswith(f"warn vfio_ap_mdev {M1}: ")
    assert (apqns_in(line), line.endswith(M3)) == (["06.0004"], True)


def test_the_whole_product_is_compared() -> None:
    # Nothing can be shared already, so the new number is always in it, with everything on the other side.
    bench = with_devices(((5,), (1, 2, 3)), ((), (1, 3, 5)))
    with refused("EADDRINUSE"):
        bench.put(M2, "assign_adapter", "5")
    assert [apqns_in(line) for line in bench.log()] == [["05.0001"], ["05.0003"]]


def test_a_device_does_not_conflict_with_itself() -> None:
    bench = with_devices(((5,), (4,)))
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((5, 6), (4, 9)))
    assert bench.matrix(M1) == product((5, 6), (4, 9))


@pytest.mark.parametrize("way", ["unassign_adapter", "unassign_domain", "ap_config", "remove", "unbind"])
def test_what_was_let_go_can_be_had(way: str) -> None:
    bench = with_devices(((5,), (4,)), ((5,), ()))
    with refused("EADDRINUSE"):
        bench.put(M2, "assign_domain", "4")
    if way == "unbind":
        bench.echo(M1, "/sys/bus/mdev/drivers/vfio_ap_mdev/unbind")
    else:
        bench.put(M1, way, {"unassign_adapter": "5", "unassign_domain": "4", "ap_config": ",", "remove": "1"}[way])
    bench.put(M2, "assign_domain", "4")
    assert bench.matrix(M2) == ["05.0004"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("assign_adapter", "7", "EADDRNOTAVAIL"),
        ("assign_adapter", "64", "ENODEV"),
        ("assign_adapter", "x", "EINVAL"),
        ("assign_adapter", "18446744073709551616", "ERANGE"),
        ("ap_config", "0x01,0x08,", "EADDRNOTAVAIL"),
        ("ap_config", "0x01", "EINVAL"),
        ("remove", "x", "EINVAL"),
    ],
)
def test_other_refusals_are_not_logged(name: str, text: str, expected: str) -> None:
    bench = built()
    with refused(expected):
        bench.put(M1, name, text)
    assert bench.log() == []


def test_refusals_of_create_are_not_logged() -> None:
    bench = built()
    assert bench.host.vfio_ap is not None
    bench.host.vfio_ap.parent.instances = 1
    for uuid, expected in ((M1, "EEXIST"), (M2, "EUSERS"), ("x", "EINVAL")):
        with refused(expected):
            bench.echo(uuid, CREATE)
    assert bench.log() == []


# -- in use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", [0, 1])
@pytest.mark.parametrize(
    ("mask", "text", "apqns"),
    [
        ("apmask", "+5", ["05.0004", "05.00ab"]),
        ("apmask", "+6", ["06.0004", "06.00ab"]),
        ("apmask", "+5-6", ["05.0004", "05.00ab", "06.0004", "06.00ab"]),
        ("apmask", "0x" + "f" * 64, ["05.0004", "05.00ab", "06.0004", "06.00ab"]),
        ("apmask", "+5,-7", ["05.0004", "05.00ab"]),
        ("apmask", "+5,-5", []),  # the mask stays as it is
        ("apmask", "-7", []),
        ("apmask", "+7", []),
        ("apmask", "0x0", []),
        ("aqmask", "-4", []),
        ("aqmask", "0x0", []),
        ("aqmask", "+4", []),  # is set already
    ],
)
def test_turning_bits_on(mask: str, text: str, apqns: list[str], guest: int) -> None:
    bench = built()
    bench.run_guest(M1, guest)
    bench.mark()
    before = bench.dump()
    if not apqns:
        bench.echo(text, f"{AP_BUS}/{mask}")
        assert bench.log() == []
        return
    with refused("EBUSY"):
        bench.echo(text, f"{AP_BUS}/{mask}")
    assert bench.dump() == before
    assert [apqns_in(line) for line in bench.log()] == [[apqn] for apqn in apqns]
    assert all(line.startswith(f"warn vfio_ap_mdev {M1}: ") for line in bench.log())
    assert bench.uevents() == []


@pytest.mark.parametrize(
    ("text", "apqns"),
    [
        ("+4", ["05.0004", "06.0004"]),
        ("+0xab", ["05.00ab", "06.00ab"]),
        ("+0-255", ["05.0004", "05.00ab", "06.0004", "06.00ab"]),
        ("+0x47", []),
        ("+0xff", []),
    ],
)
def test_turning_domain_bits_on(text: str, apqns: list[str]) -> None:
    bench = Bench(RESERVED)
    bench.echo("-4,-0x47,-0xab,-0xff", f"{AP_BUS}/aqmask")
    bench.create(M1)
    bench.assign(M1, (5, 6), (4, 0xAB))
    bench.mark()
    if apqns:
        with refused("EBUSY"):
            bench.echo(text, f"{AP_BUS}/aqmask")
    else:
        bench.echo(text, f"{AP_BUS}/aqmask")
    assert [apqns_in(line) for line in bench.log()] == [[apqn] for apqn in apqns]
    assert bench.guest_matrix(M1) == product((5, 6), (4, 0xAB))


@pytest.mark.parametrize(("mask", "text"), [("apmask", "+5"), ("aqmask", "+4")])
def test_the_other_mask_does_not_matter(mask: str, text: str) -> None:
    bench = Bench(RESERVED)
    bench.echo("-5", f"{AP_BUS}/apmask")
    bench.echo("-4", f"{AP_BUS}/aqmask")
    bench.create(M1)
    bench.assign(M1, (5,), (4,))
    bench.mark()
    with refused("EBUSY"):  # although the queue would stay with vfio_ap because of the other mask
        bench.echo(text, f"{AP_BUS}/{mask}")
    assert [apqns_in(line) for line in bench.log()] == [["05.0004"]]


def test_queues_that_do_not_exist_are_in_use_too() -> None:
    bench = with_devices(((100,), (200,)))
    with refused("EBUSY"):
        bench.echo("+100", f"{AP_BUS}/apmask")
    bench.echo("+101", f"{AP_BUS}/apmask")


@pytest.mark.parametrize("matrix", [((5,), ()), ((), (4,)), ((), ())])
def test_half_a_matrix_keeps_nothing(matrix: Sides) -> None:
    bench = with_devices(matrix)
    bench.echo("+0-255", f"{AP_BUS}/apmask")
    assert bench.cat(f"{AP_BUS}/apmask") == "0x" + "f" * 64 + "\n"


def test_the_newest_holder_is_told() -> None:
    bench = with_devices(((5,), (4,)), ((5,), (9, 10)), ((6,), (4,)))
    with refused("EBUSY"):
        bench.echo("+5", f"{AP_BUS}/apmask")
    assert [apqns_in(line) for line in bench.log()] == [["05.0009"], ["05.000a"]]
    assert all(line.startswith(f"warn vfio_ap_mdev {M2}: ") for line in bench.log())


def test_without_the_module_nobody_is_asked() -> None:
    bench = with_devices(((5,), (4,)))
    bench.console("rmmod vfio_ap")
    bench.echo("+5", f"{AP_BUS}/apmask")


# -- masks and overrides exclude one another --------------------------------------------------------------------------


def test_no_masks_while_there_is_an_override() -> None:
    bench = Bench(RESERVED)
    override = f"{queue('07.0004')}/driver_override"
    bench.echo("anything", override)
    for mask in ("apmask", "aqmask"):
        for text in ("-5", "+5", "0x" + "f" * 64, "rubbish"):
            with refused("EINVAL"):
                bench.echo(text, f"{AP_BUS}/{mask}")
    bench.echo("", override)
    bench.echo("-5", f"{AP_BUS}/apmask")


def test_no_override_while_there_are_masks() -> None:
    bench = Bench(RESERVED)
    bench.echo("-200", f"{AP_BUS}/aqmask")
    for text in ("vfio_ap", ""):
        with refused("EINVAL"):
            bench.echo(text, f"{queue('07.0004')}/driver_override")
    bench.echo("+200", f"{AP_BUS}/aqmask")
    bench.echo("vfio_ap", f"{queue('07.0004')}/driver_override")
    with refused("ENODEV"):
        bench.echo("nothing", f"{ZCRYPT_DRIVER}/unbind")

"""The six files that assign and unassign: numbers, limits, the order of checks, idempotency, over-provisioning."""

import pytest

from apfs.errors import KernelError
from apfs.journal.records import GuestUpdate, Interrupt, QueuesReset, Record, Uevent
from tests.hosts import ASSIGN, BARE, M1, M2, MATRIX, RESERVED, UNASSIGN, WORKED, ZCRYPT_DRIVER, Bench, product, refused
from tests.hosts import config_text as config
from tests.hosts import queue as queue_path

OK = ""
LARGEST = 2**64 - 1

# What is written, as it is, to the number it stands for.
NUMBERS: dict[str, int] = {
    "5": 5,
    "5\n": 5,
    "+5": 5,
    "+5\n": 5,
    "0x5": 5,
    "0X5": 5,
    "0x0005": 5,
    "0xab": 0xAB,
    "0xAB\n": 0xAB,
    "0XaB": 0xAB,
    "+0xab": 0xAB,
    "05": 5,
    "0253": 171,
    "+0253": 171,
    "0": 0,
    "00": 0,
    "0x0": 0,
    "255": 255,
    "0x0000000000000000000000000000000ff": 255,
    "5\0junk": 5,
    "5\n\0junk": 5,
}
NO_NUMBERS: dict[str, str] = {
    **dict.fromkeys(
        (
            "08",
            "09",
            "0x",
            "0b101",
            "5u",
            "5 ",
            " 5",
            "5\t",
            "5,6",
            "5 6",
            "5\r\n",
            "5\n\n",
            "5\n6",
            "ab",
            "xab",
            "-1",
            "+ 5",
            "++5",
            "+-5",
            "-",
            "+",
            "\n",
            "\0",
            "0x5g",
            "0x+5",
            "5.0",
            "1_0",
            "5\u00a0",
            "\u0665",
            "\uff15",
        ),
        "EINVAL",
    ),
    "18446744073709551616": "ERANGE",
    "+18446744073709551616": "ERANGE",
    "0x10000000000000000": "ERANGE",
    "02000000000000000000000": "ERANGE",
    "18446744073709551616junk": "ERANGE",
    "99999999999999999999 5": "ERANGE",
    "9" * 4000: "ERANGE",
}
TOO_BIG = ("18446744073709551615", "0xffffffffffffffff", "01777777777777777777777", "4294967301", "256")


def shown(bench: Bench, name: str) -> list[int]:
    """Return the numbers that the file `name` has to do with and that are assigned."""
    if name.endswith("control_domain"):
        return [int(line, 16) for line in bench.lines(M1, "control_domains")]
    return [int(line.strip("."), 16) for line in bench.matrix(M1)]


def bare() -> Bench:
    bench = Bench(BARE)
    bench.create(M1)
    return bench


@pytest.mark.parametrize("name", ASSIGN)
def test_numbers_that_are_understood(name: str) -> None:
    for text, number in NUMBERS.items():
        bench = bare()
        assert bench.write(f"{MATRIX}/{M1}/{name}", text) == len(text), repr(text)
        assert shown(bench, name) == [number], repr(text)
        assert bench.write(f"{MATRIX}/{M1}/un{name}", text) == len(text), repr(text)
        assert shown(bench, name) == [], repr(text)


@pytest.mark.parametrize("name", [*ASSIGN, *UNASSIGN])
def test_numbers_that_are_not(name: str) -> None:
    bench = bare()
    bench.assign(M1, (5,), (), (5,))
    bench.mark()
    before = bench.dump()
    for text, expected in (*NO_NUMBERS.items(), *((text, "ENODEV") for text in TOO_BIG)):
        with refused(expected):
            bench.write(f"{MATRIX}/{M1}/{name}", text)
    assert bench.dump() == before
    assert bench.log() == []


@pytest.mark.parametrize("name", [*ASSIGN, *UNASSIGN])
def test_an_empty_write_is_no_write(name: str) -> None:
    bench = bare()
    bench.assign(M1, (5,), (), (5,))
    before = bench.dump()
    assert bench.write(f"{MATRIX}/{M1}/{name}", b"") == 0
    assert bench.dump() == before


QCI = {
    "APXA, small machine": ("max_adapter = 63\nmax_domain = 84", 63, 84),
    "APXA, big machine": ("", 255, 255),
    "APXA, lopsided": ("max_adapter = 15\nmax_domain = 255", 15, 255),
    "no APXA": ('facilities = ["APSC", "QACT"]', 63, 15),
    "no APXA, numbers do not matter": ("facilities = []\nmax_adapter = 200\nmax_domain = 200", 63, 15),
    "no QCI": ("supported = false", 63, 15),
}


@pytest.mark.parametrize("machine", QCI)
def test_limits(machine: str) -> None:
    lines, adapter, domain = QCI[machine]
    bench = Bench(f'[qci]\n{lines}\n[masks]\napmask = "0x0"\n')
    bench.create(M1)
    for name, limit in zip(ASSIGN, (adapter, domain, domain), strict=True):
        for file in (name, f"un{name}"):
            bench.put(M1, file, limit)
            with refused("ENODEV"):
                bench.put(M1, file, limit + 1)
            if file == name:
                assert shown(bench, name) == [limit]
        assert shown(bench, name) == []
    for over in (config((adapter + 1,)), config((), (domain + 1,)), config((), (), (domain + 1,))):
        if adapter + 1 < 256 and domain + 1 < 256:
            with refused("ENODEV"):
                bench.write(f"{MATRIX}/{M1}/ap_config", over)
    bench.write(f"{MATRIX}/{M1}/ap_config", config((adapter,), (domain,), (domain,)))
    assert bench.matrix(M1) == product((adapter,), (domain,))


def test_without_qci_every_guest_matrix_stays_empty() -> None:
    bench = Bench('[qci]\nsupported = false\ndomains = [4]\n[[card]]\nadapter = 5\ntype = "CEX8C"\n')
    bench.echo("-5", "/sys/bus/ap/apmask")
    assert bench.queue_status("05.0004") == "unassigned\n"
    bench.create(M1)
    bench.assign(M1, (5,), (4,), (4,))
    assert bench.matrix(M1) == ["05.0004"]
    assert bench.guest_matrix(M1) == []
    assert bench.guest_control_domains(M1) == []
    bench.run_guest(M1)
    assert bench.queue_status("05.0004") == "assigned\n"


def test_limits_are_those_of_the_machine_and_not_its_configuration() -> None:
    bench = Bench(WORKED)
    bench.create(M1)
    bench.assign(M1, (63,), (), (255,))
    bench.assign(M1, (6,), ())
    assert bench.matrix(M1) == ["06.", "3f."]


# -- the order of checks ----------------------------------------------------------------------------------------------


def crowded() -> Bench:
    """Return a host where M2 meets every obstacle: M1 has 05.0004, card 7 is reserved, 63 adapters, 255 domains."""
    bench = Bench()
    bench.create(M1, M2)
    bench.assign(M1, (5,), (4,))
    return bench


@pytest.mark.parametrize(
    ("assigned", "name", "text", "expected"),
    [
        # Parsing comes first, whatever the number would have met.
        (((7,), ()), "assign_domain", "4 ", "EINVAL"),
        (((7,), ()), "assign_domain", "18446744073709551616", "ERANGE"),
        # Then the range, before reservation and sharing, also where the product stays empty.
        (((), (4,)), "assign_adapter", "64", "ENODEV"),
        (((), ()), "assign_adapter", "64", "ENODEV"),
        (((7,), ()), "assign_domain", "256", "ENODEV"),
        (((), ()), "assign_control_domain", "256", "ENODEV"),
        # Reservation comes before sharing: the product has 05.0004 of M1 and 07.0004 of the host.
        (((5, 7), ()), "assign_domain", "4", "EADDRNOTAVAIL"),
        (((5,), ()), "assign_domain", "4", "EADDRINUSE"),
        (((), (4,)), "assign_adapter", "5", "EADDRINUSE"),
        (((), (4,)), "assign_adapter", "7", "EADDRNOTAVAIL"),
        # An empty product meets neither.
        (((), ()), "assign_adapter", "7", OK),
        (((5, 7), ()), "assign_adapter", "62", OK),
        (((), ()), "assign_domain", "4", OK),
        (((), (4,)), "assign_domain", "0x47", OK),
        # Control domains meet nothing at all.
        (((), ()), "assign_control_domain", "4", OK),
        (((), ()), "assign_control_domain", "254", OK),
        # Neither do numbers that are there already.
        (((5, 7), ()), "assign_adapter", "7", OK),
        # A rewrite of everything tells of the range last.
        (((), ()), "ap_config", config((7, 64), (4,)), "EADDRNOTAVAIL"),
        (((), ()), "ap_config", config((5, 64), (4,)), "EADDRNOTAVAIL"),
        (((), ()), "ap_config", config((64,), ()), "ENODEV"),
        (((), ()), "ap_config", config((5,), (4,)), "EADDRINUSE"),
        (((), ()), "ap_config", config((5, 7), (4,)), "EADDRNOTAVAIL"),
        (((), ()), "ap_config", "0x01", "EINVAL"),
    ],
)
def test_first_obstacle_decides(
    assigned: tuple[tuple[int, ...], tuple[int, ...]], name: str, text: str, expected: str
) -> None:
    bench = crowded()
    bench.assign(M2, *assigned)
    before = bench.dump()
    if expected:
        with refused(expected):
            bench.put(M2, name, text.rstrip("\n"))
        assert bench.dump() == before
    else:
        bench.put(M2, name, text)


def test_a_bit_beyond_the_limit_is_told_after_sharing_in_ap_config() -> None:
    # Adapters 5, 6 and all those above 7 are free, so only M1 prevents the number beyond the limit.
    bench = Bench(WORKED.replace('"-5-6"', '"0x01"'))
    bench.create(M1, M2)
    bench.assign(M1, (5,), (4,))
    with refused("EADDRINUSE"):
        bench.write(f"{MATRIX}/{M2}/ap_config", config((5, 64), (4,)))
    with refused("ENODEV"):
        bench.write(f"{MATRIX}/{M2}/ap_config", config((6, 64), (4,)))
    assert bench.matrix(M2) == []


def test_the_whole_product_is_checked_each_time() -> None:
    bench = Bench(RESERVED)
    bench.give("05.0004", "06.0004")
    bench.create(M1)
    bench.assign(M1, (5,), (4,))
    bench.unbind("05.0004")  # now nobody looks at its override, and the masks reserve it
    with refused("EADDRNOTAVAIL"):
        bench.put(M1, "assign_adapter", "6")
    bench.bind("05.0004")
    bench.put(M1, "assign_adapter", "6")
    assert bench.guest_matrix(M1) == ["05.0004", "06.0004"]


# -- reservation: 05.0004 in the state that the row describes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("apmask", "aqmask", "expected"),
    [
        ("+5", "+4", "EADDRNOTAVAIL"),
        ("-5", "+4", OK),
        ("+5", "-4", OK),
        ("-5", "-4", OK),
    ],
)
def test_reserved_by_both_masks_only(apmask: str, aqmask: str, expected: str) -> None:
    bench = Bench(RESERVED)
    for text, name in ((apmask, "apmask"), (aqmask, "aqmask")):
        bench.echo(text, f"/sys/bus/ap/{name}")
    for adapter in (5, 9):  # card 5 is there, card 9 is not: it makes no difference
        bench.mark()
        uuid = M1 if adapter == 5 else M2
        bench.create(uuid)
        if adapter == 9:
            bench.echo(apmask.replace("5", "9"), "/sys/bus/ap/apmask")
        bench.assign(uuid, (adapter,), ())
        if expected:
            with refused(expected):
                bench.put(uuid, "assign_domain", "4")
        else:
            bench.put(uuid, "assign_domain", "4")


@pytest.mark.parametrize(
    ("override", "driver", "expected"),
    [
        pytest.param("vfio_ap", "vfio_ap", OK, id="given away"),
        pytest.param("vfio_ap", "", "EADDRNOTAVAIL", id="unbound: nobody looks at the override"),
        pytest.param("vfio_ap", "cex4queue", "EADDRNOTAVAIL", id="not given away yet: its driver decides"),
        pytest.param("cex4queue", "cex4queue", "EADDRNOTAVAIL", id="kept by name"),
        pytest.param("nobody", "cex4queue", "EADDRNOTAVAIL", id="kept, and then named for an unknown driver"),
        pytest.param("nobody", "", "EADDRNOTAVAIL", id="without a driver"),
        pytest.param("", "cex4queue", "EADDRNOTAVAIL", id="plain"),
        pytest.param("", "", "EADDRNOTAVAIL", id="plain and unbound"),
    ],
)
def test_reserved_by_override(override: str, driver: str, expected: str) -> None:
    bench = Bench(RESERVED)
    directory = queue_path("05.0004")
    bench.echo(override, f"{directory}/driver_override")
    if driver != "cex4queue":
        bench.echo("05.0004", f"{ZCRYPT_DRIVER}/unbind")
        if driver:
            bench.bind("05.0004")
    bench.create(M1)
    bench.assign(M1, (5,), ())
    if expected:
        with refused(expected):
            bench.put(M1, "assign_domain", "4")
        assert bench.matrix(M1) == ["05."]
    else:
        bench.put(M1, "assign_domain", "4")
        assert bench.guest_matrix(M1) == ["05.0004"]


@pytest.mark.parametrize(
    ("override", "advice"), [("", "clear its bit in apmask or aqmask first"), ("vfio_ap", "bind it to vfio_ap first")]
)
def test_a_refusal_tells_how_to_free_the_queue(override: str, advice: str) -> None:
    bench = Bench(RESERVED)
    bench.echo(override, f"{queue_path('05.0004')}/driver_override")
    bench.create(M1)
    bench.assign(M1, (5,), ())
    with pytest.raises(KernelError) as caught:
        bench.put(M1, "assign_domain", "4")
    assert caught.value.why == f"queue 05.0004 is reserved for the host's zcrypt drivers: {advice}"


def test_an_override_renamed_while_vfio_ap_has_the_queue() -> None:
    bench = Bench(RESERVED)
    bench.give("05.0004")
    bench.echo("cex4queue", f"{queue_path('05.0004')}/driver_override")
    bench.create(M1)
    bench.assign(M1, (5,), (4,))  # bound to vfio_ap with an override: not the host's
    assert bench.guest_matrix(M1) == ["05.0004"]


# -- idempotency ------------------------------------------------------------------------------------------------------

EFFECTS: tuple[type[Record], ...] = (GuestUpdate, Interrupt, QueuesReset, Uevent)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("assign_adapter", "5"),
        ("assign_domain", "4"),
        ("assign_control_domain", "4"),
        ("unassign_adapter", "6"),
        ("unassign_domain", "0x47"),
        ("unassign_control_domain", "5"),
        ("unassign_adapter", "63"),
        ("unassign_domain", "255"),
    ],
)
def test_doing_it_again_does_nothing(name: str, text: str) -> None:
    bench = Bench()
    bench.create(M1)
    bench.assign(M1, (5,), (4,), (4,))
    bench.run_guest(M1)
    bench.mark()
    before = bench.dump()
    assert bench.put(M1, name, text) == len(text) + 1
    assert bench.dump() == before
    assert bench.story(*EFFECTS) == []


def test_doing_it_again_is_not_even_checked() -> None:
    bench = Bench(RESERVED)
    bench.give("05.0004")
    bench.create(M1)
    bench.assign(M1, (5,), (4,))
    bench.unbind("05.0004")
    bench.put(M1, "assign_adapter", "5")
    bench.put(M1, "assign_domain", "4")
    with refused("EADDRNOTAVAIL"):  # unlike this file, which checks what is there already
        bench.write(f"{MATRIX}/{M1}/ap_config", bench.show(M1, "ap_config"))
    assert bench.guest_matrix(M1) == [".0004"]


# -- over-provisioning ------------------------------------------------------------------------------------------------


def test_queues_need_not_exist() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.assign(M1, (0, 200), (0, 255), (7,))
    assert bench.matrix(M1) == product((0, 200), (0, 255))
    assert bench.guest_matrix(M1) == []
    assert bench.lines(M1, "control_domains") == ["0007"]
    assert bench.guest_control_domains(M1) == []


def test_queues_need_not_be_bound() -> None:
    bench = Bench()
    bench.unbind("05.0004")
    bench.create(M1)
    bench.assign(M1, (5,), (4,))
    assert bench.matrix(M1) == ["05.0004"]
    assert bench.guest_matrix(M1) == [".0004"]
    bench.bind("05.0004")
    assert bench.guest_matrix(M1) == ["05.0004"]


def test_domains_bring_no_control_domains() -> None:
    bench = Bench()
    bench.create(M1)
    bench.assign(M1, (5,), (4, 0x47))
    assert bench.show(M1, "control_domains") == ""
    bench.assign(M1, (), (), (0x47,))
    bench.put(M1, "unassign_domain", "0x47")
    assert bench.lines(M1, "control_domains") == ["0047"]


def test_control_domains_are_everybodys() -> None:
    bench = Bench()
    bench.create(M1, M2)
    for uuid in (M1, M2):
        bench.assign(uuid, (), (), (4, 9))
        assert bench.lines(uuid, "control_domains") == ["0004", "0009"]
        assert bench.guest_control_domains(uuid) == [4]


@pytest.mark.parametrize("guest", [0, 1])
def test_a_guest_changes_nothing_about_what_is_accepted(guest: int) -> None:
    bench = crowded()
    bench.assign(M2, (6,), (0xFF,))
    if guest:
        bench.run_guest(M1)
        bench.run_guest(M2)
    with refused("EADDRNOTAVAIL"):
        bench.put(M2, "assign_adapter", "7")
    bench.put(M2, "assign_adapter", "5")
    with refused("EADDRINUSE"):
        bench.put(M2, "assign_domain", "4")
    bench.put(M2, "unassign_adapter", "5")
    bench.put(M2, "assign_domain", "4")
    bench.write(f"{MATRIX}/{M1}/ap_config", config((5,), (4, 0x47), (4,)))
    assert bench.guest_matrix(M1) == ["05.0004", "05.0047"]
    assert bench.guest_matrix(M2) == ["06.0004", "06.00ff"]

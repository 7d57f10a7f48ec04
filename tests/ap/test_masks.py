"""The masks `apmask` and `aqmask`, overrides, and who gets which queue."""

from __future__ import annotations

import pytest

from tests.ap.machines import ALL_ONES, BUS, CARD0, CARD4, DEVICES, Q0, Q4, all_but, bits, sample, toml
from tests.hosts import Bench

MASKS = [("apmask", "4"), ("aqmask", "0x29")]
TYPE = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough"
UUID = "11111111-2222-4333-8444-555555555555"
MDEV = f"/sys/devices/vfio_ap/matrix/{UUID}"


@pytest.fixture
def box() -> Bench:
    return sample(vfio_ap=True)


def mdev(box: Bench, *assignments: tuple[str, str]) -> None:
    """Create a mediated device and assign resources to it."""
    assert box.store(f"{TYPE}/create", UUID) == ""
    for what, number in assignments:
        assert box.store(f"{MDEV}/assign_{what}", number) == ""
    box.heard()


# -- text and value ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["apmask", "aqmask"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0x29", all_but(0x29)),
        ("-5,-6\n", all_but(5, 6)),
        ("-0x10-0x1f", all_but(*range(16, 32))),
        ("-200", all_but(200)),
        ("5", bits(1, 3)),
        ("0xffff", bits(*range(16))),
        ("\n", bits()),
        ("0x", bits()),
        ("f" * 64, bits(*range(256))),
        ("+7", bits(*range(256))),
    ],
)
def test_written_and_read_back(box: Bench, name: str, text: str, shown: str) -> None:
    assert box.store(f"{BUS}/{name}", text) == ""
    assert box.cat(f"{BUS}/{name}") == shown
    other = "aqmask" if name == "apmask" else "apmask"
    assert box.cat(f"{BUS}/{other}") == f"{ALL_ONES}\n"
    assert box.cat(f"/sys/module/ap/parameters/{name}") == "(null)\n"


@pytest.mark.parametrize("name", ["apmask", "aqmask"])
@pytest.mark.parametrize("text", ["+5,-", "+256", "0-15", "0XF", "-5,x", "-6-5", "0x" + "0" * 65, " -5", "-5 "])
def test_refused_texts_change_nothing(box: Bench, name: str, text: str) -> None:
    before = box.dump()
    assert box.store(f"{BUS}/{name}", text) == "EINVAL"
    assert box.dump() == before
    assert box.events() == []


def test_a_mask_is_not_emptied_by_an_empty_write(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "") == ""
    assert box.cat(f"{BUS}/apmask") == f"{ALL_ONES}\n"


# -- who gets what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apmask", "aqmask", "given_away"),
    [
        ("", "", set()),
        ("-0", "", {"00.0029", "00.002a"}),
        ("", "-0x2a", {"00.002a", "04.002a"}),
        ("-4", "-0x29", {"04.0029", "04.002a", "00.0029"}),
        ("-7", "-7", set()),
        ("0", "0", {"00.0029", "00.002a", "04.0029", "04.002a"}),
    ],
)
def test_a_queue_is_the_hosts_if_both_bits_are_set(box: Bench, apmask: str, aqmask: str, given_away: set[str]) -> None:
    for name, text in (("apmask", apmask), ("aqmask", aqmask)):
        assert box.store(f"{BUS}/{name}", text) == ""
    assert box.drivers() == {
        queue: "vfio_ap" if queue in given_away else "cex4queue"
        for queue in ("00.0029", "00.002a", "04.0029", "04.002a")
    }
    for name in ("apmask", "aqmask"):
        assert box.store(f"{BUS}/{name}", ALL_ONES) == ""
    assert set(box.drivers().values()) == {"cex4queue"}


def test_cards_do_not_care_for_masks(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "0") == ""
    assert box.driver(CARD0) == box.driver(CARD4) == "cex4card"
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    assert box.store(f"{BUS}/drivers/cex4card/bind", "card00") == ""


def test_masks_decide_about_new_queues(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-9") == ""
    box.heard()
    box.host.plug(9, "CEX8A")
    box.host.scan()
    assert box.events()[2:4] == [
        "add card09/09.0029 DEVTYPE=ap_queue MODE=accel",
        "bind card09/09.0029 DEVTYPE=ap_queue DRIVER=vfio_ap MODE=accel",
    ]


# -- the order of a change ---------------------------------------------------------------------------------------------


def test_a_mask_that_stays_as_it_is_changes_nothing(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    box.heard()
    for text in (ALL_ONES, "+0-255", "-5,+5", "+41\n"):
        assert box.store(f"{BUS}/aqmask", text) == ""
    assert box.events() == []
    assert box.driver(Q0) is None
    assert box.store(f"{Q0}/driver_override", "x") == ""


@pytest.mark.parametrize(("name", "number"), MASKS)
def test_events_of_a_change(box: Bench, name: str, number: str) -> None:
    queues = ["04.0029", "04.002a"] if name == "apmask" else ["00.0029", "04.0029"]
    for sign, driver in (("-", "vfio_ap"), ("+", "cex4queue")):
        assert box.store(f"{BUS}/{name}", f"{sign}{number}\n") == ""
        expected = []
        for queue in queues:
            path, mode = f"card{queue[:2]}/{queue}", "cca" if queue.startswith("00") else "ep11"
            expected += [
                f"unbind {path} DEVTYPE=ap_queue MODE={mode}",
                f"bind {path} DEVTYPE=ap_queue DRIVER={driver} MODE={mode}",
            ]
        value = all_but(int(number, 0)) if sign == "-" else f"{ALL_ONES}\n"
        assert box.events() == [*expected, f"change /devices/ap {name.upper()}={value}"]


def test_without_a_driver_to_go_to_queues_are_just_unbound() -> None:
    box = sample()
    assert box.store(f"{BUS}/apmask", "-0") == ""
    assert box.short_events() == [
        "unbind card00/00.0029",
        "unbind card00/00.002a",
        f"change /devices/ap APMASK={all_but(0)}",
    ]
    assert box.drivers() == {"00.0029": None, "00.002a": None, "04.0029": "cex4queue", "04.002a": "cex4queue"}
    assert box.cat(f"{BUS}/bindings") == "2/4\n"
    assert box.store(f"{BUS}/apmask", "+0") == ""
    assert box.short_events() == [f"change /devices/ap APMASK={ALL_ONES}\n"]
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.short_events() == ["bind card00/00.0029"]


def test_a_change_that_concerns_no_queue_is_told_too(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-200") == ""
    assert box.events() == [f"change /devices/ap APMASK={all_but(200)}"]


def test_queues_are_moved_in_the_order_in_which_they_appeared(box: Bench) -> None:
    box.host.plug(2, "CEX8A")
    box.host.scan()
    box.host.change_domains(add=[5])
    box.host.scan()
    box.heard()
    assert box.store(f"{BUS}/apmask", "0") == ""
    moved = [event.split("/")[-1].split(" ")[0] for event in box.events() if event.startswith("unbind")]
    first = ["00.0029", "00.002a", "04.0029", "04.002a"]
    assert moved == [*first, "02.0029", "02.002a", "00.0005", "02.0005", "04.0005"]


def test_a_single_mask_write_can_move_queues_both_ways(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-0") == ""
    box.heard()
    assert box.store(f"{BUS}/apmask", "+0,-4") == ""
    assert box.drivers() == {"00.0029": "cex4queue", "00.002a": "cex4queue", "04.0029": "vfio_ap", "04.002a": "vfio_ap"}
    assert [event.split(" ")[1] for event in box.short_events()][::2] == [
        "card00/00.0029",
        "card00/00.002a",
        "card04/04.0029",
        "card04/04.002a",
        "/devices/ap",
    ]


# -- in use ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), MASKS)
def test_what_a_mediated_device_has_is_not_taken_back(box: Bench, name: str, number: str) -> None:
    assert box.store(f"{BUS}/{name}", f"-{number},-200") == ""
    mdev(box, ("adapter", "4"), ("domain", "0x29"))
    before = box.dump()
    for text in (f"+{number}", ALL_ONES, f"+{number},-7", f"-7,+{number}", "+0-255"):
        assert box.store(f"{BUS}/{name}", text) == "EBUSY"
        assert box.dump() == before
    assert box.events() == []
    # Other bits may be set, and clearing is never refused.
    assert box.store(f"{BUS}/{name}", "+200,-201") == ""
    assert box.cat(f"{BUS}/{name}") == all_but(int(number, 0), 201)
    other, value = ("domain", "0x29") if name == "apmask" else ("adapter", "4")
    assert box.store(f"{MDEV}/unassign_{other}", value) == ""
    # Adapters without domains (and the reverse) hold nothing.
    assert box.store(f"{BUS}/{name}", f"+{number}") == ""


def test_text_is_parsed_before_anybody_is_asked(box: Bench) -> None:
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    mdev(box, ("adapter", "4"), ("domain", "0x29"))
    assert box.store(f"{BUS}/aqmask", "+0x29,x") == "EINVAL"
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""


@pytest.mark.parametrize(("name", "number"), MASKS)
def test_the_other_mask_does_not_count(box: Bench, name: str, number: str) -> None:
    # The queue stays with vfio_ap whatever becomes of one mask, because of the other; it is refused all the same.
    assert box.store(f"{BUS}/apmask", "-4") == ""
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    mdev(box, ("adapter", "4"), ("domain", "0x29"))
    assert box.store(f"{BUS}/{name}", f"+{number}") == "EBUSY"


def test_what_is_not_even_installed_is_in_use_as_well(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-9") == ""
    mdev(box, ("adapter", "9"), ("domain", "0x50"))
    assert box.store(f"{BUS}/apmask", "+9") == "EBUSY"
    assert box.store(f"{BUS}/apmask", "-9,+8") == ""


def test_nobody_is_asked_once_vfio_ap_is_gone(box: Bench) -> None:
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    mdev(box, ("adapter", "4"), ("domain", "0x29"))
    box.host.rmmod("vfio_ap")
    assert box.driver(Q4) is None
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""
    assert box.store(f"{BUS}/drivers_probe", "04.0029") == ""
    assert box.driver(Q4) == "cex4queue"


# -- unbound queues, loading and unloading -----------------------------------------------------------------------------


def test_an_unbound_queue_goes_away_from_the_host_but_not_back_to_it(box: Bench) -> None:
    """__ap_revise_reserved reads the flags of no driver, and finds those of a default driver."""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    box.heard()
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.short_events()[:3] == ["bind card00/00.0029", "unbind card04/04.0029", "bind card04/04.0029"]
    assert box.drivers()["00.0029"] == box.drivers()["04.0029"] == "vfio_ap"
    assert box.store(f"{BUS}/drivers/vfio_ap/unbind", "00.0029") == ""
    box.heard()
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""
    assert box.drivers()["00.0029"] is None
    assert box.short_events() == [
        "unbind card04/04.0029",
        "bind card04/04.0029",
        f"change /devices/ap AQMASK={ALL_ONES}\n",
    ]


def test_loading_vfio_ap_takes_the_queues_that_wait_for_it() -> None:
    box = sample()
    assert box.store(f"{BUS}/apmask", "-4") == ""
    box.heard()
    box.host.modprobe("vfio_ap")
    assert box.drivers()["04.0029"] == box.drivers()["04.002a"] == "vfio_ap"
    events = [event for event in box.short_events() if "/0" in event or "/devices/ap" in event]
    assert events == [
        "bind card04/04.0029",
        "bind card04/04.002a",
        "change /devices/ap BINDINGS=complete COMPLETECOUNT=2",
    ]


def test_unloading_vfio_ap_leaves_its_queues_alone(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-4") == ""
    box.heard()
    box.host.rmmod("vfio_ap")
    assert {event for event in box.short_events() if "card" in event} == {
        "unbind card04/04.0029",
        "unbind card04/04.002a",
    }
    box.host.scan()
    assert box.drivers()["04.0029"] is None
    assert not box.exists(f"{BUS}/drivers/vfio_ap")
    assert box.cat(f"{BUS}/bindings") == "2/4\n"
    box.host.modprobe("vfio_ap")
    assert box.drivers()["04.0029"] == "vfio_ap"


# -- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vfio_ap", "vfio_ap"),
        ("vfio_ap\n", "vfio_ap"),
        ("vfio_ap\nmore", "vfio_ap"),
        ("no such driver", "no such driver"),
        (" x ", " x "),
        ("\xe9", "\xe9"),
        ("x" * 4094, "x" * 4094),
        ("\n", ""),
        ("\nx", ""),
    ],
)
def test_what_an_override_takes(box: Bench, text: str, shown: str) -> None:
    assert box.store(f"{Q0}/driver_override", "before") == ""
    assert box.store(f"{Q0}/driver_override", text) == ""
    assert box.shown(f"{Q0}/driver_override") == f"{shown}\n"
    assert box.cat(f"{Q4}/driver_override") == "\n"
    assert box.driver(Q0) == "cex4queue"
    assert box.events() == []
    assert box.store(f"{BUS}/apmask", "-9") == ("EINVAL" if shown else "")


@pytest.mark.parametrize("length", [4095, 4096, 5000])
def test_an_override_that_is_too_long(box: Bench, length: int) -> None:
    assert box.store(f"{Q0}/driver_override", "before") == ""
    for text in ("x" * length, "x\n" + "\0" * (length - 2)):
        assert box.store(f"{Q0}/driver_override", text) == "EINVAL"
    assert box.cat(f"{Q0}/driver_override") == "before\n"


def test_an_override_decides_who_may_have_the_queue(box: Bench) -> None:
    assert box.store(f"{Q0}/driver_override", "vfio_ap\n") == ""
    assert box.store(f"{BUS}/drivers/vfio_ap/bind", "00.0029") == "EBUSY"
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == "ENODEV"
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.driver(Q0) == "vfio_ap"
    assert box.store(f"{Q0}/driver_override", "\n") == ""
    assert box.driver(Q0) == "vfio_ap"
    assert box.store(f"{BUS}/drivers/vfio_ap/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/vfio_ap/bind", "00.0029") == "ENODEV"
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    # A driver that nobody has keeps everybody away.
    assert box.store(f"{Q0}/driver_override", "none") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.driver(Q0) is None


@pytest.mark.parametrize("name", ["apmask", "aqmask"])
def test_one_override_locks_both_masks(box: Bench, name: str) -> None:
    assert box.store(f"{Q0}/driver_override", "a") == ""
    assert box.store(f"{Q4}/driver_override", "b") == ""
    assert box.store(f"{Q4}/driver_override", "c") == ""
    for text in ("-5", ALL_ONES, "x", "\n"):
        assert box.store(f"{BUS}/{name}", text) == "EINVAL"
    assert box.store(f"{Q0}/driver_override", "\n") == ""
    assert box.store(f"{Q0}/driver_override", "\n") == ""
    assert box.store(f"{BUS}/{name}", "-5") == "EINVAL"
    assert box.events() == []
    assert box.store(f"{Q4}/driver_override", "\n") == ""
    assert box.store(f"{BUS}/{name}", "-5") == ""


@pytest.mark.parametrize("name", ["apmask", "aqmask"])
def test_masks_that_give_something_away_lock_overrides(box: Bench, name: str) -> None:
    assert box.store(f"{BUS}/{name}", "-255") == ""
    for text in ("vfio_ap", "\n"):
        assert box.store(f"{Q0}/driver_override", text) == "EINVAL"
    assert box.store(f"{BUS}/{name}", "y") == "EINVAL"
    assert box.store(f"{BUS}/{name}", "+255") == ""
    assert box.store(f"{Q0}/driver_override", "vfio_ap") == ""


def test_both_masks_must_be_all_ones_for_an_override(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-5") == ""
    assert box.store(f"{BUS}/aqmask", "-5") == ""
    assert box.store(f"{BUS}/apmask", "+5") == ""
    assert box.store(f"{Q0}/driver_override", "vfio_ap") == "EINVAL"
    assert box.store(f"{BUS}/aqmask", "+5") == ""
    assert box.store(f"{Q0}/driver_override", "vfio_ap") == ""


def test_a_queue_that_goes_with_its_override_leaves_the_masks_locked(box: Bench) -> None:
    assert box.store(f"{Q4}/driver_override", "vfio_ap") == ""
    box.host.unplug(4)
    box.host.scan()
    assert not box.exists(Q4)
    assert box.store(f"{BUS}/apmask", "-5") == "EINVAL"
    box.host.plug(4, "CEX8P")
    box.host.scan()
    assert box.cat(f"{Q4}/driver_override") == "\n"
    assert box.driver(Q4) == "cex4queue"
    assert box.store(f"{BUS}/apmask", "-5") == "EINVAL"


@pytest.mark.parametrize(
    ("override", "driver", "expected"),
    [
        ("vfio_ap", "vfio_ap", ""),
        ("vfio_ap", "cex4queue", "EADDRNOTAVAIL"),
        ("cex4queue", "vfio_ap", ""),
        ("vfio_ap", None, "EADDRNOTAVAIL"),
        ("cex4queue", "cex4queue", "EADDRNOTAVAIL"),
        ("", "cex4queue", "EADDRNOTAVAIL"),
        ("", "vfio_ap", "EADDRNOTAVAIL"),
    ],
)
def test_an_override_decides_whether_a_bound_queue_can_be_assigned(
    box: Bench, override: str, driver: str | None, expected: str
) -> None:
    if driver == "vfio_ap":
        # Taken by an override, which may be gone again.
        assert box.store(f"{Q0}/driver_override", "vfio_ap") == ""
    if driver != "cex4queue":
        assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    if driver == "vfio_ap":
        assert box.store(f"{BUS}/drivers/vfio_ap/bind", "00.0029") == ""
    assert box.store(f"{Q0}/driver_override", f"{override}\n") == ""
    assert box.driver(Q0) == driver
    mdev(box, ("domain", "0x29"))
    assert box.store(f"{MDEV}/assign_adapter", "0") == expected


def test_an_override_survives_hands_and_scans_but_not_the_queue() -> None:
    box = Bench(toml({0: "CEX8C"}, [0x29]))
    assert box.store(f"{Q0}/driver_override", "vfio_ap") == ""
    for _ in range(2):
        assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
        box.host.scan()
        assert box.cat(f"{Q0}/driver_override") == "vfio_ap\n"
    box.host.change_domains(remove=[0x29])
    box.host.scan()
    box.host.change_domains(add=[0x29])
    box.host.scan()
    assert box.cat(f"{DEVICES}/card00/00.0029/driver_override") == "\n"

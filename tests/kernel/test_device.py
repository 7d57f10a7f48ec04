"""Binding by hand, and synthetic uevents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from apfs.kernel.device import emit
from tests.ap.machines import BUS, CARD0, CARD4, DEVICES, Q0, sample

if TYPE_CHECKING:
    from tests.hosts import Bench

DRIVERS = f"{BUS}/drivers"
UUID = "12345678-1234-1234-1234-1234567890ab"


@pytest.fixture
def box() -> Bench:
    return sample(vfio_ap=True)


# -- bind --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "text", "expected"),
    [
        # Nothing has that name.
        ("cex4queue", "00.0001", "ENODEV"),
        ("cex4queue", "", ""),
        ("cex4queue", "\n", "ENODEV"),
        ("cex4queue", "00.29", "ENODEV"),
        ("cex4queue", "00.002A", "ENODEV"),
        ("cex4queue", " 00.0029", "ENODEV"),
        ("cex4queue", "00.0029 ", "ENODEV"),
        ("cex4queue", "00.0029\n\n", "ENODEV"),
        ("cex4card", "card05", "ENODEV"),
        ("cex4card", "card0", "ENODEV"),
        ("cex4card", "card000", "ENODEV"),
        # The driver is made for something else, which is noticed before the device's present driver.
        ("cex4queue", "card00", "ENODEV"),
        ("vfio_ap", "card00", "ENODEV"),
        ("cex4card", "00.0029", "ENODEV"),
        # The device is taken, even if by that driver, which is noticed before the masks.
        ("cex4queue", "00.0029", "EBUSY"),
        ("cex4queue", "00.0029\n", "EBUSY"),
        ("vfio_ap", "00.0029", "EBUSY"),
        ("cex4card", "card00\n", "EBUSY"),
    ],
)
def test_bind_is_refused(box: Bench, driver: str, text: str, expected: str) -> None:
    before = box.dump()
    assert box.store(f"{DRIVERS}/{driver}/bind", text) == expected
    assert box.dump() == before
    assert box.events() == []


def test_masks_decide_about_a_free_queue(box: Bench) -> None:
    assert box.store(f"{DRIVERS}/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{DRIVERS}/vfio_ap/bind", "00.0029") == "ENODEV"
    assert box.driver(Q0) is None
    # To Linux, a queue without a driver is one of a default driver (ap_bus_revise_bindings).
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.driver(Q0) == "vfio_ap"
    assert box.store(f"{DRIVERS}/vfio_ap/unbind", "00.0029") == ""
    assert box.store(f"{DRIVERS}/cex4queue/bind", "00.0029") == "ENODEV"
    assert box.store(f"{DRIVERS}/vfio_ap/bind", "00.0029\n") == ""
    assert box.driver(Q0) == "vfio_ap"


def test_a_probe_error_comes_last(box: Bench) -> None:
    # Without any mode of operation there is no driver for the card, nor for its queues.
    box.host.set_tapq(0, {"cca": 0})
    box.host.scan()
    assert box.driver(CARD0) is None
    assert box.store(f"{DRIVERS}/cex4card/bind", "card00") == "ENODEV"
    assert box.store(f"{DRIVERS}/cex4queue/bind", "00.0029") == "ENODEV"


def test_bind_and_unbind_of_a_queue(box: Bench) -> None:
    assert box.store(f"{DRIVERS}/cex4queue/unbind", "00.0029\n") == ""
    assert box.driver(Q0) is None
    assert "00.0029" not in box.names(f"{DRIVERS}/cex4queue")
    assert not {"driver", "online", "load", "mkvps"} & box.names(Q0)
    assert box.store(f"{DRIVERS}/cex4queue/bind", "00.0029\n") == ""
    assert box.driver(Q0) == "cex4queue"
    assert {"driver", "online", "load", "mkvps"} <= box.names(Q0)
    assert box.events() == [
        "unbind card00/00.0029 DEVTYPE=ap_queue MODE=cca",
        "bind card00/00.0029 DEVTYPE=ap_queue DRIVER=cex4queue MODE=cca",
    ]


def test_bind_and_unbind_of_a_card(box: Bench) -> None:
    with_driver = {"driver", "type", "online", "load", "serialnr", "API_ordinalnr", "FW_version", "op_modes"}
    assert with_driver <= box.names(CARD4)
    assert box.store(f"{DRIVERS}/cex4card/unbind", "card04\n") == ""
    assert not with_driver & box.names(CARD4)
    assert box.drivers()["04.0029"] == "cex4queue"
    assert box.store(f"{DRIVERS}/cex4card/bind", "card04\n") == ""
    assert with_driver <= box.names(CARD4)
    keys = "DEV_TYPE=000E MODALIAS=ap:t0E MODE=ep11"
    assert box.events() == [
        "unbind card04 DEVTYPE=ap_card DEV_TYPE=000E MODE=ep11",
        f"bind card04 DEVTYPE=ap_card DRIVER=cex4card {keys}",
    ]


# -- unbind ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("cex4queue", "00.0001"),
        ("cex4queue", "card00"),
        ("vfio_ap", "00.0029"),
        ("cex4card", "card05\n"),
        ("cex4card", "00.0029"),
        ("cex4queue", "00.002a"),
    ],
)
def test_unbind_of_what_the_driver_does_not_have(box: Bench, driver: str, text: str) -> None:
    assert box.store(f"{DRIVERS}/cex4queue/unbind", "00.002a") == ""
    before = box.dump()
    assert box.store(f"{DRIVERS}/{driver}/unbind", text) == "ENODEV"
    assert box.dump() == before


def test_unbind_leaves_the_device_alone_until_somebody_asks(box: Bench) -> None:
    assert box.store(f"{DRIVERS}/cex4queue/unbind", "00.0029") == ""
    box.host.scan()
    box.host.tick(100)
    assert box.driver(Q0) is None
    assert box.cat(f"{BUS}/bindings") == "3/4\n"


# -- drivers_probe, drivers_autoprobe ----------------------------------------------------------------------------------


def test_drivers_probe(box: Bench) -> None:
    probe = f"{BUS}/drivers_probe"
    for text in ("00.0001", "card05\n", "\n", "00.0029 "):
        assert box.store(probe, text) == "ENODEV"
    assert box.store(probe, "00.0029\n") == ""
    assert box.events() == []
    assert box.store(f"{DRIVERS}/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{DRIVERS}/cex4card/unbind", "card00") == ""
    for device in (CARD0, Q0):
        assert box.store(probe, device.rsplit("/", 1)[1] + "\n") == ""
        assert box.driver(device) is not None


def test_drivers_probe_succeeds_even_if_no_driver_takes_the_device() -> None:
    box = sample()
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.driver(Q0) is None
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.driver(Q0) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0", "0"),
        ("0\n", "0"),
        ("00", "0"),
        ("0x1", "0"),
        ("1", "1"),
        ("2", "1"),
        ("n", "1"),
        ("\n", "1"),
        ("off", "1"),
    ],
)
def test_drivers_autoprobe_looks_at_the_first_character(box: Bench, text: str, shown: str) -> None:
    for start in ("0", "1"):
        assert box.store(f"{BUS}/drivers_autoprobe", start) == ""
        assert box.store(f"{BUS}/drivers_autoprobe", text) == ""
        assert box.cat(f"{BUS}/drivers_autoprobe") == f"{shown}\n"


def test_without_autoprobe_new_devices_stay_unbound() -> None:
    box = sample()
    assert box.store(f"{BUS}/drivers_autoprobe", "0") == ""
    box.host.plug(7, "CEX8A")
    box.host.scan()
    assert box.driver(f"{DEVICES}/card07") is None
    assert box.drivers()["07.0029"] is None
    assert [event.action for event in box.heard()] == ["add", "add", "add"]
    for name in ("card07", "07.0029"):
        assert box.store(f"{BUS}/drivers_probe", name) == ""
    assert box.drivers()["07.0029"] == "cex4queue"


def test_without_autoprobe_a_new_driver_gets_nothing() -> None:
    box = sample()
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.store(f"{BUS}/drivers_autoprobe", "0") == ""
    box.host.modprobe("vfio_ap")
    assert box.driver(Q0) is None
    assert box.store(f"{DRIVERS}/vfio_ap/bind", "00.0029") == ""


# -- synthetic uevents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["add", "remove", "change", "move", "online", "offline", "bind", "unbind"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_synthetic_actions(box: Bench, action: str, end: str) -> None:
    assert box.store(f"{Q0}/uevent", action + end) == ""
    assert box.events() == [f"{action} card00/00.0029 SYNTH_UUID=0 DEVTYPE=ap_queue DRIVER=cex4queue MODE=cca"]
    assert box.driver(Q0) == "cex4queue"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("change", "SYNTH_UUID=0"),
        (f"change {UUID}", f"SYNTH_UUID={UUID}"),
        (f"change {UUID}\n", f"SYNTH_UUID={UUID}"),
        (f"change {UUID.upper()}", f"SYNTH_UUID={UUID.upper()}"),
        (f"change {UUID} A=1", f"SYNTH_UUID={UUID} SYNTH_ARG_A=1"),
        (f"change {UUID} A=1 b2=Cc3\n", f"SYNTH_UUID={UUID} SYNTH_ARG_A=1 SYNTH_ARG_b2=Cc3"),
        (f"change {UUID} A=1 A=2", f"SYNTH_UUID={UUID} SYNTH_ARG_A=1 SYNTH_ARG_A=2"),
    ],
)
def test_synthetic_arguments(box: Bench, text: str, keys: str) -> None:
    assert box.store(f"{DEVICES}/uevent", text) == ""
    (event,) = box.heard()
    assert (event.action, event.devpath, event.subsystem) == ("change", "/devices/ap", "ap")
    assert " ".join(f"{key}={value}" for key, value in event.keys) == keys


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "Add",
        "ADD",
        "added",
        "ad",
        " add",
        "add ",
        "add\n\n",
        "remove add",
        "change A=1",
        f"change  {UUID}",
        f"change {UUID} ",
        f"change {UUID}  A=1",
        f"change {UUID} A",
        f"change {UUID} A=",
        f"change {UUID} =1",
        f"change {UUID} A=1=2",
        f"change {UUID} A=a-b",
        f"change {UUID} A_B=1",
        f"change {UUID}A=1",
        f"change {UUID[:-1]}",
        f"change {UUID}0",
        f"change {UUID.replace('-', '')}",
        f"change {{{UUID}}}",
        "0",
    ],
)
def test_what_is_no_synthetic_event(box: Bench, text: str) -> None:
    for path in (f"{Q0}/uevent", f"{CARD0}/uevent", f"{BUS}/uevent", f"{DRIVERS}/cex4card/uevent"):
        assert box.store(path, text) == "EINVAL", path
    assert box.events() == []


@pytest.mark.parametrize(
    ("path", "devpath", "subsystem"),
    [
        (f"{BUS}/uevent", "/bus/ap", "bus"),
        (f"{DRIVERS}/cex4card/uevent", "/bus/ap/drivers/cex4card", "drivers"),
        (f"{DRIVERS}/vfio_ap/uevent", "/bus/ap/drivers/vfio_ap", "drivers"),
        (f"{DEVICES}/uevent", "/devices/ap", "ap"),
        ("/sys/module/zcrypt/uevent", "/module/zcrypt", "module"),
    ],
)
def test_where_synthetic_events_come_from(box: Bench, path: str, devpath: str, subsystem: str) -> None:
    assert box.store(path, "add\n") == ""
    (event,) = box.heard()
    assert event.environment() == (
        ("ACTION", "add"),
        ("DEVPATH", devpath),
        ("SUBSYSTEM", subsystem),
        ("SYNTH_UUID", "0"),
    )


def test_events_can_be_sent_by_whatever_has_a_place(box: Bench) -> None:
    emit(box.host.ap_bus.root, "change", ("A", "1"), ("B", "2"))
    assert [event.keys for event in box.heard()] == [(("A", "1"), ("B", "2"))]

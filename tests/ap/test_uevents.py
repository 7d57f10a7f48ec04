"""Contents of `uevent` files, and the exact keys of every event of the bus, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ap.machines import ALL_ONES, BUS, CARD0, CARD4, DEVICES, Q0, Q4, all_but, sample, toml
from tests.hosts import Bench

if TYPE_CHECKING:
    from collections.abc import Callable

CARD_KEYS = ("DEVTYPE=ap_card", "DRIVER=cex4card", "DEV_TYPE=000E", "MODALIAS=ap:t0E", "MODE=cca")
QUEUE_KEYS = ("DEVTYPE=ap_queue", "DRIVER=cex4queue", "MODE=cca")


@pytest.fixture
def box() -> Bench:
    return sample(vfio_ap=True)


def without_driver(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if not key.startswith("DRIVER="))


def unbinding(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in without_driver(keys) if not key.startswith("MODALIAS="))


def wire(box: Bench) -> list[str]:
    """Return the events as they go over the wire, without SEQNUM."""
    return [" ".join(f"{key}={value}" for key, value in event.environment()) for event in box.heard()]


def line(action: str, devpath: str, *keys: str) -> str:
    return " ".join((f"ACTION={action}", f"DEVPATH={devpath}", "SUBSYSTEM=ap", *keys))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (DEVICES, ""),
        (CARD0, "DEVTYPE=ap_card\nDRIVER=cex4card\nDEV_TYPE=000E\nMODALIAS=ap:t0E\nMODE=cca\n"),
        (CARD4, "DEVTYPE=ap_card\nDRIVER=cex4card\nDEV_TYPE=000E\nMODALIAS=ap:t0E\nMODE=ep11\n"),
        (Q0, "DEVTYPE=ap_queue\nDRIVER=cex4queue\nMODE=cca\n"),
        (Q4, "DEVTYPE=ap_queue\nDRIVER=cex4queue\nMODE=ep11\n"),
    ],
)
def test_uevent_files(box: Bench, path: str, content: str) -> None:
    assert box.cat(f"{path}/uevent") == content


def test_uevent_files_follow_the_driver(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.cat(f"{CARD0}/uevent") == "DEVTYPE=ap_card\nDEV_TYPE=000E\nMODALIAS=ap:t0E\nMODE=cca\n"
    assert box.cat(f"{Q0}/uevent") == "DEVTYPE=ap_queue\nMODE=cca\n"
    assert box.store(f"{BUS}/apmask", "-0") == ""
    assert box.cat(f"{CARD0}/00.002a/uevent") == "DEVTYPE=ap_queue\nDRIVER=vfio_ap\nMODE=cca\n"


def test_uevent_files_show_the_type_that_linux_takes_the_card_for() -> None:
    scenario = toml({0: "CEX5A", 1: "CEX8A"}, [4])
    box = Bench(scenario.replace('type = "CEX8A"', 'type = "CEX8A"\ntapq = { at = 20 }'))
    assert "DEV_TYPE=000B\nMODALIAS=ap:t0B\nMODE=accel\n" in box.cat(f"{CARD0}/uevent")
    assert "DEV_TYPE=000E\nMODALIAS=ap:t0E\nMODE=accel\n" in box.cat(f"{DEVICES}/card01/uevent")


# -- events ------------------------------------------------------------------------------------------------------------


def card_offline(box: Bench) -> None:
    assert box.store(f"{CARD0}/online", "0") == ""


def queue_offline(box: Bench) -> None:
    assert box.store(f"{Q0}/online", "0") == ""


def deconfigure(box: Bench) -> None:
    assert box.store(f"{CARD0}/config", "0") == ""
    box.host.scan()


def change_apmask(box: Bench) -> None:
    assert box.store(f"{BUS}/apmask", "-77") == ""


def change_aqmask(box: Bench) -> None:
    assert box.store(f"{BUS}/aqmask", "-77") == ""
    assert box.store(f"{BUS}/aqmask", "+77") == ""


def rebind_and_scan(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    box.host.scan()


def rebind_card(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    assert box.store(f"{BUS}/drivers_probe", "card00") == ""


def give_away(box: Bench) -> None:
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""


def pull(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.002a") == ""
    box.heard()
    box.host.unplug(0)
    box.host.scan()


def synthetic(box: Bench) -> None:
    for path in (CARD0, Q0, DEVICES):
        assert box.store(f"{path}/uevent", "add") == ""


UUID = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed"
C, Q, QA = "/devices/ap/card00", "/devices/ap/card00/00.0029", "/devices/ap/card00/00.002a"
ROOT = "/devices/ap"
EP11_QUEUE = "/devices/ap/card04/04.0029"
EP11_KEYS = ("DEVTYPE=ap_queue", "MODE=ep11")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            card_offline,
            [
                line("change", C, "ONLINE=0", *CARD_KEYS),
                line("change", Q, "ONLINE=0", *QUEUE_KEYS),
                line("change", QA, "ONLINE=0", *QUEUE_KEYS),
            ],
        ),
        (queue_offline, [line("change", Q, "ONLINE=0", *QUEUE_KEYS)]),
        (
            deconfigure,
            [
                line("change", C, "CONFIG=0", *CARD_KEYS),
                line("change", Q, "CONFIG=0", *QUEUE_KEYS),
                line("change", QA, "CONFIG=0", *QUEUE_KEYS),
            ],
        ),
        (change_apmask, [line("change", ROOT, f"APMASK={all_but(77)}")]),
        (
            change_aqmask,
            [line("change", ROOT, f"AQMASK={all_but(77)}"), line("change", ROOT, f"AQMASK={ALL_ONES}\n")],
        ),
        (
            rebind_and_scan,
            [
                line("unbind", Q, *without_driver(QUEUE_KEYS)),
                line("bind", Q, *QUEUE_KEYS),
                line("change", ROOT, "BINDINGS=complete", "COMPLETECOUNT=2"),
            ],
        ),
        (rebind_card, [line("unbind", C, *unbinding(CARD_KEYS)), line("bind", C, *CARD_KEYS)]),
        (
            give_away,
            [
                line("unbind", Q, *without_driver(QUEUE_KEYS)),
                line("bind", Q, "DEVTYPE=ap_queue", "DRIVER=vfio_ap", "MODE=cca"),
                line("unbind", EP11_QUEUE, *EP11_KEYS),
                line("bind", EP11_QUEUE, "DEVTYPE=ap_queue", "DRIVER=vfio_ap", "MODE=ep11"),
                line("change", ROOT, f"AQMASK={all_but(0x29)}"),
            ],
        ),
        (
            pull,
            [
                line("unbind", Q, *without_driver(QUEUE_KEYS)),
                line("remove", Q, *without_driver(QUEUE_KEYS)),
                line("remove", QA, *without_driver(QUEUE_KEYS)),
                line("unbind", C, *unbinding(CARD_KEYS)),
                line("remove", C, *without_driver(CARD_KEYS)),
            ],
        ),
        (
            synthetic,
            [
                line("add", C, "SYNTH_UUID=0", *CARD_KEYS),
                line("add", Q, "SYNTH_UUID=0", *QUEUE_KEYS),
                line("add", ROOT, "SYNTH_UUID=0"),
            ],
        ),
    ],
)
def test_events_with_all_their_keys(box: Bench, step: Callable[[Bench], None], expected: list[str]) -> None:
    step(box)
    assert wire(box) == expected


def test_the_value_of_a_mask_event_ends_with_a_newline(box: Bench) -> None:
    change_apmask(box)
    (event,) = box.heard()
    assert event.keys == (("APMASK", all_but(77)),)
    assert event.keys[0][1].endswith("f\n")
    assert len(event.keys[0][1]) == 67


def test_a_new_card_with_all_its_keys(box: Bench) -> None:
    box.host.change_domains(remove=[0x2A])
    box.host.scan()
    box.heard()
    box.host.plug(9, "CEX6P")
    box.host.scan()
    card, queue = "/devices/ap/card09", "/devices/ap/card09/09.0029"
    keys = ("DEV_TYPE=000C", "MODALIAS=ap:t0C", "MODE=ep11")
    assert wire(box) == [
        line("add", card, "DEVTYPE=ap_card", *keys),
        line("bind", card, "DEVTYPE=ap_card", "DRIVER=cex4card", *keys),
        line("add", queue, "DEVTYPE=ap_queue", "MODE=ep11"),
        line("bind", queue, "DEVTYPE=ap_queue", "DRIVER=cex4queue", "MODE=ep11"),
        line("change", ROOT, "BINDINGS=complete", "COMPLETECOUNT=2"),
    ]


def test_queues_go_on_and_offline_in_order_of_binding(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    for text in ("0", "1"):
        box.heard()
        assert box.store(f"{CARD0}/online", text) == ""
        assert [event.devpath for event in box.heard()] == [C, QA, Q]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("add", ""),
        ("add\n", ""),
        ("add\0", ""),
        ("add\n\0", "EINVAL"),
        ("online\0\n", "EINVAL"),
        (f"add {UUID}" + " A=b" * 63, "ENOMEM"),  # 63 and SYNTH_UUID are 64, but the event needs more
        (f"add {UUID}" + " A=b" * 64, "EINVAL"),
        (f"add {UUID}" + " A=b" * 58, "ENOMEM"),  # and ACTION, DEVPATH, SUBSYSTEM, DEV_TYPE, MODALIAS, MODE ...
        (f"add {UUID}" + " A=b" * 53, ""),
        (f"add {UUID} A=" + "b" * 1987, "ENOMEM"),
        (f"add {UUID} A=" + "b" * 1988, "EINVAL"),
        (f"add {UUID} A=" + "b" * 1700, ""),
    ],
)
def test_synthetic_events_have_limits(box: Bench, text: str, expected: str) -> None:
    assert box.store(f"{CARD0}/uevent", text) == expected
    assert len(box.heard()) == (not expected)


def test_an_event_without_room_for_all_keys_of_a_card_is_refused(box: Bench) -> None:
    """Only keys of the driver core may be left out."""
    outcomes = set()
    for length in range(1800, 1950):
        outcome = box.store(f"{CARD0}/uevent", f"add {UUID} A={'b' * length}")
        keys = {name for event in box.heard() for name, _ in event.keys}
        outcomes.add((outcome, {"DEV_TYPE", "MODALIAS", "MODE"} <= keys))
    assert outcomes == {("", True), ("ENOMEM", False)}


def test_a_synthetic_unbind_has_no_modalias(box: Bench) -> None:
    for action in ("bind", "unbind"):
        assert box.store(f"{CARD0}/uevent", action) == ""
        (event,) = box.heard()
        assert ("MODALIAS" in dict(event.keys)) == (action == "bind")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{BUS}/ap_domain", "42"),
        (f"{BUS}/config_time", "60"),
        (f"{BUS}/poll_timeout", "1"),
        (f"{BUS}/poll_thread", "1"),
        (f"{BUS}/drivers_autoprobe", "0"),
        (f"{BUS}/drivers_probe", "00.0029"),
        (f"{BUS}/scans", "1"),
        (f"{BUS}/apmask", ALL_ONES),
        (f"{CARD0}/request_count", "0"),
        (f"{Q0}/request_count", "0"),
        (f"{Q0}/reset", "1"),
        (f"{Q0}/driver_override", "vfio_ap"),
    ],
)
def test_what_makes_no_event(box: Bench, path: str, text: str) -> None:
    assert box.store(path, text) == ""
    assert wire(box) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{CARD0}/online", "2"),
        (f"{CARD0}/config", "2"),
        (f"{Q0}/online", "x"),
        (f"{BUS}/apmask", "+256"),
        (f"{BUS}/drivers/cex4queue/bind", "00.0029"),
        (f"{BUS}/drivers/vfio_ap/unbind", "00.0029"),
        (f"{Q0}/uevent", "nothing"),
        (f"{BUS}/ap_domain", "-1"),
    ],
)
def test_refusals_make_no_event(box: Bench, path: str, text: str) -> None:
    assert box.store(path, text) != ""
    assert wire(box) == []

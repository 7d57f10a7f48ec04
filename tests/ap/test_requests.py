"""Attributes that ask a card: who answers, and when asking in vain makes the bus scan (zcrypt_api.c)."""

from __future__ import annotations

import pytest

from tests.ap.machines import BUS, CARD0, CARD4, Q0, Q4, sample, toml
from tests.ap.test_secure_execution import ACCEL, CCA, EP11, GUEST, tapq
from tests.hosts import Bench, refused


@pytest.fixture
def box() -> Bench:
    return sample()


def scans_of(box: Bench, path: str) -> int:
    """Read an attribute that nobody answers, and return how often the bus has scanned for it."""
    before = box.host.ap_bus.scans
    shown = box.cat(path)
    assert "valid" not in shown
    assert shown == "\n" or {line.partition(":")[2] for line in shown.splitlines()} == {" - -"}
    return box.host.ap_bus.scans - before


# -- forced scans ------------------------------------------------------------------------------------------------------

ASKING = [f"{CARD0}/serialnr", f"{Q0}/mkvps"]
ASKING_EP11 = [f"{CARD4}/{name}" for name in ("serialnr", "API_ordinalnr", "FW_version", "op_modes")]
ASKING_EP11_QUEUE = [f"{Q4}/mkvps", f"{Q4}/op_modes"]


@pytest.mark.parametrize("path", [*ASKING, *ASKING_EP11, *ASKING_EP11_QUEUE])
def test_what_is_answered_makes_no_scan(box: Bench, path: str) -> None:
    scans = box.host.ap_bus.scans
    assert box.cat(path) != "\n"
    assert box.host.ap_bus.scans == scans


@pytest.mark.parametrize("path", [*ASKING, *ASKING_EP11, *ASKING_EP11_QUEUE])
@pytest.mark.parametrize("how", ["card offline", "deconfigured", "check-stopped"])
def test_asking_in_vain_makes_one_scan(box: Bench, how: str, path: str) -> None:
    """zcrypt_send_cprb and zcrypt_send_ep11_cprb: ENODEV, then ap_bus_force_rescan, once per read.

    Not for EP11 queues that are offline by software: ep11_mkvps_show and ep11_queue_op_modes_show look at zq->online.
    """
    for apid, card in ((0, CARD0), (4, CARD4)):
        if how == "card offline":
            assert box.store(f"{card}/online", "0") == ""
        elif how == "deconfigured":
            box.host.configure(apid, on=False)
        else:
            box.host.checkstop(apid, on=True)
    box.host.scan()
    assert scans_of(box, path) == int(path not in ASKING_EP11_QUEUE or how != "card offline")


@pytest.mark.parametrize("how", ["unbound", "bound again"])
@pytest.mark.parametrize(("card", "queue", "scans"), [("card00", Q0, 0), ("card04", Q4, 1)])
def test_queues_of_no_zcrypt_card(box: Bench, how: str, card: str, queue: str, scans: int) -> None:
    """zcrypt_device_status_ext gives ENODEV to CCA queues before anything is sent; EP11 has no such test."""
    assert box.store(f"{BUS}/drivers/cex4card/unbind", card) == ""
    if how == "bound again":
        assert box.store(f"{BUS}/drivers/cex4card/bind", card) == ""
    assert scans_of(box, f"{queue}/mkvps") == scans


def test_a_scan_that_changes_the_configuration_brings_the_answer(box: Bench) -> None:
    """zcrypt_process_rescan: one more try if ap_scan_bus has found a change."""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.002a") == ""
    assert scans_of(box, f"{CARD0}/serialnr") == 1
    box.host.change_domains(add=[0x30])
    box.heard()
    assert box.cat(f"{CARD0}/serialnr") == "93AABEET\n"
    assert box.short_events()[:2] == ["add card00/00.0030", "bind card00/00.0030"]


@pytest.mark.parametrize("how", ["pulled", "deconfigured", "check-stopped"])
def test_a_card_of_which_the_bus_does_not_know_that_it_is_gone_is_asked_without_a_scan(box: Bench, how: str) -> None:
    # Linux waits for the next scan, which flushes the request. Nothing waits here.
    if how == "pulled":
        box.host.unplug(0)
    elif how == "deconfigured":
        box.host.configure(0, on=False)
    else:
        box.host.checkstop(0, on=True)
    assert scans_of(box, f"{CARD0}/serialnr") == scans_of(box, f"{Q0}/mkvps") == 0


def test_a_forced_scan_starts_the_timer_again(box: Bench) -> None:
    box.host.tick(20)
    assert box.store(f"{CARD0}/online", "0") == ""
    assert scans_of(box, f"{CARD0}/serialnr") == 1
    assert box.host.until_scan == 30


def test_a_scan_that_removes_the_device_that_is_read(box: Bench) -> None:
    """ap_scan_adapter removes a card of other facilities, and removal waits for readers: in Linux for this one.

    That a card of the same name follows does not help the reader.
    """
    for queue in ("04.0029", "04.002a"):
        assert box.store(f"{BUS}/drivers/cex4queue/unbind", queue) == ""
    box.host.set_tapq(4, {"mex4k": 1})
    box.heard()
    with refused("ENODEV"):
        box.cat(f"{CARD4}/op_modes")
    assert box.short_events() == [
        "remove card04/04.0029",
        "remove card04/04.002a",
        "unbind card04",
        "remove card04",
        "add card04",
        "bind card04",
        "add card04/04.0029",
        "bind card04/04.0029",
        "add card04/04.002a",
        "bind card04/04.002a",
        "change /devices/ap BINDINGS=complete COMPLETECOUNT=2",
    ]
    assert box.cat(f"{CARD4}/op_modes") != "\n"


# -- modes and states --------------------------------------------------------------------------------------------------


def test_an_accelerator_with_attributes_of_cca_asks_in_vain() -> None:
    """The message type goes by the accelerator bit, and that of accelerators has no such requests."""
    box = Bench(toml({0: "CEX8C"}, [0x29], card="tapq = { accel = 1 }"))
    assert scans_of(box, f"{CARD0}/serialnr") == 1
    assert scans_of(box, f"{Q0}/mkvps") == 1


def test_a_queue_in_error_state_takes_no_request(box: Bench) -> None:
    """ap_queue_usable looks at the device state; a scan that finds the queue in order initialises it."""
    box.host.configure(4, on=False)
    assert box.store(f"{Q4}/reset", "1") == ""
    box.host.configure(4, on=True)
    assert scans_of(box, f"{Q4}/mkvps") == 1
    assert "valid" in box.cat(f"{Q4}/mkvps")


# -- secure execution --------------------------------------------------------------------------------------------------


@pytest.fixture
def guest() -> Bench:
    return Bench(GUEST)


def test_a_queue_of_a_secure_guest_answers_once_it_is_bound(guest: Bench) -> None:
    """ap_queue_usable: a bind state of usable or usable without a secret."""
    card = EP11.rpartition("/")[0]
    names = ("serialnr", "API_ordinalnr", "FW_version", "op_modes")
    assert [scans_of(guest, f"{card}/{name}") for name in names] == [1, 1, 1, 1]
    assert scans_of(guest, f"{EP11}/mkvps") == scans_of(guest, f"{EP11}/op_modes") == 1
    assert guest.store(f"{EP11}/se_bind", "1") == ""
    assert "valid" in guest.cat(f"{EP11}/mkvps")
    assert "\n" not in {guest.cat(f"{card}/{name}") for name in names}
    assert guest.store(f"{EP11}/se_associate", "1") == ""
    assert "valid" in guest.cat(f"{EP11}/mkvps")
    assert guest.store(f"{EP11}/se_bind", "0") == ""
    assert scans_of(guest, f"{EP11}/mkvps") == 1


def test_no_cca_queue_of_a_secure_guest_answers(guest: Bench) -> None:
    """ap_q_supported_in_se: only queues of EP11 cards and accelerators."""
    for bs in (2, 1, 0):
        tapq(guest, CCA, bs)
        guest.host.scan()
        assert scans_of(guest, f"{CCA}/mkvps") == 1
        assert scans_of(guest, f"{CCA.rpartition('/')[0]}/serialnr") == 1


def test_the_bind_state_is_that_of_the_last_look(guest: Bench) -> None:
    """se_bstate is refreshed by scans, by the end of a reset, and by reading and writing the two files."""
    tapq(guest, EP11, 0)
    assert scans_of(guest, f"{EP11}/mkvps") == 1
    assert "valid" in guest.cat(f"{EP11}/mkvps")
    tapq(guest, EP11, 2)
    assert "valid" in guest.cat(f"{EP11}/mkvps")
    assert guest.cat(f"{EP11}/se_bind") == "unbound\n"
    assert scans_of(guest, f"{EP11}/mkvps") == 1
    tapq(guest, EP11, 1)
    assert guest.cat(f"{EP11}/se_associate") == "unassociated\n"
    assert "valid" in guest.cat(f"{EP11}/mkvps")
    assert guest.cat(f"{ACCEL}/se_bind") == "unbound\n"

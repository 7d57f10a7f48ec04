"""How queues get through resets, errors and secure execution states (ap_queue.c), as far as their files show it."""

from __future__ import annotations

import pytest

from tests.ap.machines import BUS, CARD0, DEVICES, Q0, toml
from tests.ap.test_secure_execution import EP11, GUEST, state, tapq
from tests.hosts import M1, Bench

IN_PROGRESS, NO_TIMER = "Reset in progress.\n", "No Reset Timer set.\n"
ON, OFF = "Interrupts enabled.\n", "Interrupts disabled.\n"


@pytest.fixture
def box() -> Bench:
    return Bench(toml({0: "CEX8C"}, [0x29]))


def show(box: Bench, queue: str = Q0) -> tuple[str, ...]:
    return tuple(box.cat(f"{queue}/{name}") for name in ("reset", "interrupt", "request_count"))


# -- polling -----------------------------------------------------------------------------------------------------------


def test_a_queue_that_vfio_ap_gets_from_the_beginning_is_polled(box: Bench) -> None:
    """ap_scan_domains initialises a new queue whoever has it, and ap_tasklet_fn polls all that have a driver."""
    assert box.store(f"{BUS}/apmask", "-9") == ""
    box.host.plug(9, "CEX8A")
    box.host.scan()
    queue = f"{DEVICES}/card09/09.0029"
    assert box.driver(queue) == "vfio_ap"
    assert show(box, queue) == (NO_TIMER, ON, "0\n")
    assert box.store(f"{queue}/reset", "1") == ""
    assert show(box, queue) == (NO_TIMER, ON, "0\n")


def test_a_queue_without_a_driver_is_not_polled_and_later_only_with_others(box: Bench) -> None:
    """ap_device_probe puts a queue where ap_tasklet_fn finds it, but starts no timer."""
    assert box.store(f"{BUS}/drivers_autoprobe", "0") == ""
    box.host.plug(9, "CEX8A")
    box.host.scan()
    queue = f"{DEVICES}/card09/09.0029"
    assert show(box, queue) == (IN_PROGRESS, OFF, "0\n")
    assert box.store(f"{BUS}/apmask", "-9") == ""
    assert box.driver(queue) == "vfio_ap"
    assert show(box, queue) == (IN_PROGRESS, OFF, "0\n")
    assert box.store(f"{Q0}/reset", "1") == ""
    assert show(box, queue) == (NO_TIMER, ON, "0\n")


def test_the_timeout_starts_the_timer(box: Bench) -> None:
    """poll_timeout_store."""
    assert box.store(f"{BUS}/drivers_autoprobe", "0") == ""
    box.host.plug(9, "CEX8A")
    box.host.scan()
    assert box.store(f"{BUS}/apmask", "-9") == ""
    queue = f"{DEVICES}/card09/09.0029"
    assert box.store(f"{BUS}/poll_timeout", "120000000001") == "EINVAL"
    assert box.cat(f"{queue}/reset") == IN_PROGRESS
    assert box.store(f"{BUS}/poll_timeout", "250000") == ""
    assert box.cat(f"{queue}/reset") == NO_TIMER


@pytest.mark.parametrize("environment", ["lpar", "zvm"])
def test_under_zvm_no_queue_interrupts(environment: str) -> None:
    box = Bench(toml({0: "CEX8C"}, [0x29], top=f'environment = "{environment}"'))
    assert show(box) == (NO_TIMER, ON if environment == "lpar" else OFF, "0\n")


# -- interrupts --------------------------------------------------------------------------------------------------------


def test_interrupts_are_asked_of_the_hardware_now() -> None:
    """interrupt_show executes TAPQ: a zeroize of vfio_ap ends them, and the Linux of a guest turns them on."""
    box = Bench(toml({5: "CEX8C"}, [4]) + '[masks]\napmask = "-5"\n')
    queue = f"{DEVICES}/card05/05.0004"
    assert box.cat(f"{queue}/interrupt") == OFF
    box.create(M1)
    box.assign(M1, (5,), (4,))
    box.run_guest(M1)
    assert box.cat(f"{queue}/interrupt") == ON
    assert box.cat(f"/guests/{M1}{queue}/interrupt") == ON
    box.run_guest(M1, 0)
    assert box.cat(f"{queue}/interrupt") == OFF


@pytest.mark.parametrize("code", [2, 7])
def test_a_reset_that_fails_leaves_interrupts_on(code: int) -> None:
    """vfio_ap_mdev_reset_queue tries once more after 2, 5 and 10."""
    box = Bench(toml({5: "CEX8C"}, [4]) + '[masks]\napmask = "-5"\n')
    box.create(M1)
    box.assign(M1, (5,), (4,))
    box.run_guest(M1)
    box.console(f"fail-reset 05.0004 {code}")
    box.run_guest(M1, 0)
    assert box.cat(f"{DEVICES}/card05/05.0004/interrupt") == (ON if code == 7 else OFF)


@pytest.mark.parametrize("what", ["card", "domain"])
def test_what_was_away_between_two_scans_does_not_interrupt(box: Bench, what: str) -> None:
    """To the bus it is the same queue: nothing resets it."""
    assert box.cat(f"{Q0}/interrupt") == ON
    if what == "card":
        box.host.unplug(0)
        assert box.cat(f"{Q0}/interrupt") == OFF
        box.host.plug(0, "CEX8C")
    else:
        box.host.change_domains(remove=[0x29])
        assert box.cat(f"{Q0}/interrupt") == OFF
        box.host.change_domains(add=[0x29])
    box.host.scan()
    assert show(box) == (NO_TIMER, OFF, "0\n")
    assert box.store(f"{Q0}/reset", "1") == ""
    assert show(box) == (NO_TIMER, ON, "0\n")


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_second_scan_initialises_a_check_stopped_queue(box: Bench) -> None:
    """ap_scan_domains: a queue in error state that is configured; the reset waits for the end of the check-stop."""
    box.host.checkstop(0, on=True)
    box.host.scan()
    assert show(box) == (NO_TIMER, ON, "0\n")
    box.host.scan()
    assert show(box) == (IN_PROGRESS, ON, "0\n")
    box.host.scan()
    assert show(box) == (IN_PROGRESS, ON, "0\n")
    box.host.checkstop(0, on=False)
    box.host.scan()
    assert show(box) == (NO_TIMER, ON, "0\n")


def test_no_scan_initialises_a_deconfigured_queue(box: Bench) -> None:
    """ap_scan_domains: only a queue in error state that is configured."""
    box.host.configure(0, on=False)
    for _ in range(3):
        box.host.scan()
        assert show(box) == (NO_TIMER, ON, "0\n")
    box.host.configure(0, on=True)
    box.host.scan()
    assert show(box) == (NO_TIMER, ON, "0\n")


@pytest.mark.parametrize("how", ["configured = false", "checkstopped = true"])
def test_zcrypt_initialises_a_queue_that_cannot_be_used(how: str) -> None:
    """zcrypt_cex4_queue_probe: the device state is operating, and the reset has not begun."""
    box = Bench(toml({0: "CEX8C"}, [0x29], card=how))
    assert show(box) == (IN_PROGRESS, OFF, "0\n")


def test_hardware_that_is_gone_fails_a_reset(box: Bench) -> None:
    """ap_sm_reset: an error that the next scan which finds the hardware again ends."""
    box.host.configure(0, on=False)
    assert box.store(f"{Q0}/reset", "1") == ""
    assert show(box) == (IN_PROGRESS, ON, "0\n")
    box.host.configure(0, on=True)
    box.host.scan()
    assert show(box) == (NO_TIMER, ON, "0\n")


def test_a_queue_changes_once_in_a_scan(box: Bench) -> None:
    """ap_scan_domains: the end of a check-stop first, a deconfiguration with the scan that follows; cards do both."""
    box.host.checkstop(0, on=True)
    box.host.scan()
    box.host.configure(0, on=False)
    box.heard()
    box.host.scan()
    assert box.short_events() == ["change card00 CONFIG=0"]
    assert [box.cat(f"{path}/{name}") for path in (CARD0, Q0) for name in ("config", "chkstop")] == [
        "0\n",
        "0\n",
        "1\n",
        "0\n",
    ]
    assert box.cat(f"{Q0}/reset") == IN_PROGRESS
    box.host.scan()
    assert box.short_events() == ["change card00/00.0029 CONFIG=0"]
    assert box.cat(f"{Q0}/config") == "0\n"
    box.host.configure(0, on=True)
    box.host.scan()
    assert box.short_events() == ["change card00 CONFIG=1"]
    assert box.cat(f"{Q0}/chkstop") == "1\n"
    box.host.checkstop(0, on=False)
    box.host.scan()
    box.host.scan()
    assert box.short_events() == ["change card00/00.0029 CONFIG=1"]
    assert show(box) == (NO_TIMER, ON, "0\n")


# -- secure execution --------------------------------------------------------------------------------------------------


@pytest.fixture
def guest() -> Bench:
    box = Bench(GUEST)
    assert box.store(f"{EP11}/se_bind", "1") == ""
    assert box.store(f"{EP11}/se_associate", "7") == ""
    assert state(box, EP11) == ("bound", "associated 7")
    return box


@pytest.mark.parametrize("how", ["rebound", "check-stopped", "deconfigured"])
def test_an_association_is_forgotten_with_the_initialisation(guest: Bench, how: str) -> None:
    """_ap_queue_init_state: a bind state that is usable and no index of a secret are EIO (se_associate_show)."""
    if how == "rebound":
        assert guest.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
        assert state(guest, EP11) == ("bound", "associated 7")
        assert guest.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    else:
        for usable in (False, True):
            if how == "deconfigured":
                guest.host.configure(0, on=usable)
            else:
                guest.host.checkstop(0, on=not usable)
            guest.host.scan()
    assert state(guest, EP11) == ("bound", "EIO")
    assert guest.store(f"{EP11}/se_associate", "7") == "EINVAL"
    assert guest.store(f"{EP11}/se_bind", "0") == ""
    assert state(guest, EP11) == ("unbound", "unassociated")


def test_an_association_outlives_a_reset_and_what_the_hardware_says(guest: Bench) -> None:
    """reset_store leaves the index alone; se_associate_show goes by the hardware's bind state first."""
    assert guest.store(f"{EP11}/reset", "1") == ""
    assert state(guest, EP11) == ("bound", "associated 7")
    tapq(guest, EP11, 1)
    assert state(guest, EP11) == ("bound", "association pending")
    tapq(guest, EP11, 2)
    assert state(guest, EP11) == ("unbound", "unassociated")


def test_an_unbound_queue_of_a_guest_is_initialised_by_unbinding_it_from_the_guest(guest: Bench) -> None:
    """se_bind_store, 0: the device state is operating, whatever it was; nothing polls the reset."""
    assert guest.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert guest.cat(f"{EP11}/request_count") == "-\n"
    assert guest.store(f"{EP11}/se_bind", "0") == ""
    assert show(guest, EP11) == (IN_PROGRESS, OFF, "0\n")
    assert state(guest, EP11) == ("unbound", "unassociated")
    assert guest.store(f"{EP11}/se_bind", "1") == "EBUSY"


def test_a_deconfigured_queue_is_unbound_from_the_guest_when_it_is_configured_again(guest: Bench) -> None:
    """se_bind_store, 0: the F bit waits for the next reset that succeeds."""
    guest.host.configure(0, on=False)
    guest.host.scan()
    assert guest.store(f"{EP11}/se_bind", "0") == ""
    assert state(guest, EP11) == ("bound", "EIO")
    guest.host.configure(0, on=True)
    guest.host.scan()
    assert state(guest, EP11) == ("unbound", "unassociated")


def test_an_association_that_nothing_polls_is_not_told(guest: Bench) -> None:
    """ap_sm_assoc_wait is not reached: the queue is not idle again before it is initialised."""
    assert guest.store(f"{EP11}/se_bind", "0") == ""
    assert guest.store(f"{EP11}/se_bind", "1") == ""
    assert guest.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    guest.heard()
    assert guest.store(f"{EP11}/se_associate", "9") == ""
    assert guest.events() == []
    assert state(guest, EP11) == ("bound", "associated 9")
    tapq(guest, EP11, 1)
    assert guest.store(f"{EP11}/se_associate", "9") == "EBUSY"


def test_a_queue_that_appears_unusable_has_an_index_of_a_secret() -> None:
    """ap_queue_create: nothing has taken the 0 away with which it was made."""
    box = Bench(toml({0: "CEX8C"}, [0x29], top=GUEST.partition("\n[qci]")[0], qci='facilities = ["APXA", "APSB"]'))
    assert box.store(f"{BUS}/drivers_autoprobe", "0") == ""
    box.host.plug(9, "CEX8P")
    box.host.configure(9, on=False)
    box.host.scan()
    assert state(box, f"{DEVICES}/card09/09.0029") == ("bound", "associated 0")

"""Guests that are told of changes, and do not wait for their next scan (ap_bus_cfg_chg)."""

from __future__ import annotations

import pytest

from tests.hosts import M1, M2, MATRIX, Bench, mask_text, refused
from tests.vfio.client import Device
from tests.vfio.program import Program

from .guests import HOST, on, queues, started
from .test_nested import passing

BUS = "/sys/bus/ap"
CONFIG_CHANGED = 1
BEFORE, AFTER = ["05.0004", "05.00ab"], ["05.0004", "05.00ab", "06.0004", "06.00ab"]


def told() -> Bench:
    """Return a host whose M1, with adapter 5, has a guest whose VMM passes events on."""
    host = started(adapters=(5,))
    host.console(f"config-events {M1} on")
    host.mark()
    return host


def test_what_is_plugged_is_there_at_once() -> None:
    host = told()
    guest = on(host)
    host.assign(M1, (6,))
    assert host.interrupts() == [(M1, "config_changed")]
    assert queues(guest) == AFTER
    assert [event.devpath for event in guest.uevents("*/card06", "add")] == ["/devices/ap/card06"]
    host.put(M1, "unassign_adapter", 6)
    assert queues(guest) == BEFORE
    assert [event.devpath for event in guest.uevents("*/card06", "remove")] == ["/devices/ap/card06"]


def test_what_the_host_gains_and_loses_is_told_when_the_host_notices() -> None:
    host = told()
    guest = on(host)
    host.assign(M1, (8,))
    host.console("unplug 8")
    assert "08.0004" in queues(guest)
    host.console("scan")
    assert queues(guest) == BEFORE
    host.console("plug 8 CEX8A", "scan")
    assert "08.0004" in queues(guest)


def test_what_guests_cannot_be_told_of_waits_for_the_scan() -> None:
    host = told()
    guest = on(host)
    host.console("configure 5 off", "scan")
    assert not host.interrupts()
    assert guest.cat("/sys/devices/ap/card05/config") == "1\n"


def test_control_domains_are_told_of_as_well() -> None:
    host = told()
    host.assign(M1, control=(5,))
    assert on(host).cat(f"{BUS}/ap_control_domain_mask") == mask_text((4, 5)) + "\n"


def test_it_can_be_changed_while_the_guest_runs() -> None:
    host = told()
    host.console(f"config-events {M1} off")
    host.assign(M1, (6,))
    assert queues(on(host)) == BEFORE
    host.console(f"config-events {M1} on")
    host.assign(M1, (8,))
    assert queues(on(host)) == [*AFTER, "08.0004", "08.00ab"]
    with refused("ENODEV"):
        host.console(f"config-events {M2} on")


def test_one_guest_is_told_and_the_other_is_not() -> None:
    host = told()
    host.create(M2)
    host.assign(M2, (6,), (4,))
    host.run_guest(M2)
    host.console("remove-domain 4", "scan")
    assert queues(on(host)) == ["05.00ab"]
    assert queues(on(host, M2)) == ["06.0004"]


@pytest.mark.parametrize("seconds", [29, 30, 59, 60])
def test_the_timer_of_a_guest_starts_again_with_a_scan_for_an_event(seconds: int) -> None:
    host = told()
    guest = on(host)
    host.echo(20, f"{BUS}/config_time")
    scans = int(guest.cat(f"{BUS}/scans"))
    host.put(M1, "unassign_domain", 0xAB)
    host.console("remove-domain 4", f"tick {seconds}")
    # At once for the domain that is unassigned, after 20 s for the one that is removed, then every 30 s.
    assert int(guest.cat(f"{BUS}/scans")) == scans + 2 + (seconds - 20) // 30


def test_nested_guests_are_told_in_turn() -> None:
    host = told()
    guest = passing(host)
    guest.console(f"config-events {M2} on")
    inner = on(guest, M2)
    assert queues(inner) == ["05.0004"]
    host.put(M1, "unassign_adapter", 5)
    assert queues(inner) == queues(guest) == []
    assert guest.cat(f"{MATRIX}/{M2}/guest_matrix") == ".0004\n"


def test_a_scenario_may_say_so() -> None:
    text = f'[[mdev]]\nuuid = "{M1}"\nadapters = [5]\ndomains = [4]\nguest = true\nconfig_events = true\n'
    host = Bench(HOST + text)
    host.assign(M1, (6,))
    assert queues(on(host)) == ["05.0004", "06.0004"]


def test_a_program_that_asks_for_the_interrupt_tells_its_guest() -> None:
    program = Program()
    program.create(M1, adapters=(5,), domains=(4,))
    device = Device(program, M1)
    guest = program.shell.guest(M1)
    assign = f"{MATRIX}/{M1}/assign_domain"
    program.write(assign, "0x47")
    assert queues(guest) == ["05.0004"]
    device.eventfd(CONFIG_CHANGED)
    program.write(assign, "0xab")
    assert queues(guest) == ["05.0004", "05.0047", "05.00ab"]

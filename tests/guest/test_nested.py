"""A guest passes queues on to a guest of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from tests.hosts import CREATE, M1, M2, MATRIX, Bench

from .guests import on, queues, rescan, started

if TYPE_CHECKING:
    from apfs.testing.files import SystemShell


def passing(host: Bench) -> SystemShell:
    """Return the guest of a host, which passes 05.0004 on to the guest of its own M2."""
    guest = on(host)
    guest.console("modprobe vfio_ap")
    guest.echo("-5", "/sys/bus/ap/apmask")
    guest.echo(M2, CREATE)
    guest.echo(5, f"{MATRIX}/{M2}/assign_adapter")
    guest.echo(4, f"{MATRIX}/{M2}/assign_domain")
    guest.echo(1, f"/dev/vfio-ap/{M2}/guest")
    return guest


def test_two_levels() -> None:
    host = started()
    inner = on(passing(host), M2)
    assert queues(inner) == ["05.0004"]
    assert queues(on(host)) == ["05.0004", "05.00ab", "06.0004", "06.00ab"]


def test_what_happens_to_the_card_reaches_the_innermost_guest() -> None:
    host = started()
    guest = passing(host)
    inner = on(guest, M2)
    host.console("configure 5 off")
    rescan(inner)
    assert inner.cat("/sys/devices/ap/card05/config") == "0\n"


def test_what_the_outer_guest_loses_the_inner_one_loses() -> None:
    host = started()
    guest = passing(host)
    inner = on(guest, M2)
    host.put(M1, "unassign_adapter", 5)
    rescan(inner)
    assert queues(inner) == []
    rescan(guest)
    assert guest.cat(f"{MATRIX}/{M2}/guest_matrix") == ".0004\n"


def test_time_passes_for_all() -> None:
    host = started()
    guest = passing(host)
    inner = on(guest, M2)
    guest.echo(0xAB, f"{MATRIX}/{M2}/assign_domain")
    host.console("tick 30")
    assert queues(inner) == ["05.0004", "05.00ab"]


def test_guests_end_with_the_guest_that_runs_them() -> None:
    host = started()
    guest = passing(host)
    host.run_guest(M1, 0)
    with pytest.raises(KernelError, match="no guest runs"):
        on(guest, M2)
    host.run_guest(M1)
    assert not on(host).exists("/sys/devices/vfio_ap")

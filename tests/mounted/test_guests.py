"""The guests of a mounted host, as files."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from apfs.testing.mounted import MountedHost
from tests.guest.guests import FROM_THE_START
from tests.hosts import M1

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = f"/dev/vfio-ap/{M1}/guest"
GUEST = f"/guests/{M1}"


@pytest.fixture
def host() -> Iterator[MountedHost]:
    with MountedHost(FROM_THE_START) as host:
        yield host


def test_a_guest_is_a_directory(host: MountedHost) -> None:
    assert host.ls("/guests") == [M1]
    assert sorted(host.ls(GUEST)) == ["ctl", "dev", "guests", "sys"]
    assert host.cat(f"{GUEST}/sys/bus/ap/devices/05.00ab/config") == "1\n"
    walked = [place for place, _, _ in os.walk(host.path / GUEST.lstrip("/") / "sys/devices/ap")]
    assert sorted(os.path.basename(place) for place in walked) == ["05.0004", "05.00ab", "ap", "card05"]  # noqa: PTH119


def test_it_comes_and_goes_with_the_guest(host: MountedHost) -> None:
    place = host.path / GUEST.lstrip("/")
    reading = (place / "sys/bus/ap/apmask").open("rb", buffering=0)
    inode = (place / "sys").stat().st_ino
    host.echo(0, CLIENT)
    assert host.ls("/guests") == []
    assert not place.exists()
    with reading, pytest.raises(OSError, match="No such device"):
        reading.read()
    host.echo(1, CLIENT)
    assert (place / "sys/bus/ap/apmask").read_text().startswith("0xffff")
    assert (place / "sys").stat().st_ino != inode


def test_names_of_a_guest_follow_its_scans(host: MountedHost) -> None:
    devices = host.path / GUEST.lstrip("/") / "sys/bus/ap/devices"
    assert not (devices / "06.0004").exists()
    host.echo(6, f"/sys/devices/vfio_ap/matrix/{M1}/assign_adapter")
    assert not (devices / "06.0004").exists()
    host.echo(1, f"{GUEST}/sys/bus/ap/scans")
    assert (devices / "06.0004").exists()
    host.echo(6, f"/sys/devices/vfio_ap/matrix/{M1}/unassign_adapter")
    host.console("tick 30")
    assert not (devices / "06.0004").exists()
    assert len(list((devices.parent.parent.parent / "devices/ap").iterdir())) == 2


def test_who_waits_for_a_guests_journal_is_woken(host: MountedHost) -> None:
    with (host.path / GUEST.lstrip("/") / "ctl/uevents").open("rb", buffering=0) as uevents:
        poll = select.poll()
        poll.register(uevents, select.POLLIN)
        assert not poll.poll(0)
        host.echo(6, f"/sys/devices/vfio_ap/matrix/{M1}/assign_adapter")
        host.console("tick 30")
        assert poll.poll(10_000)
        assert uevents.read(65536).decode().startswith("add@/devices/ap/card06\n")


def test_what_a_guest_refuses_is_in_its_own_journal(host: MountedHost) -> None:
    with pytest.raises(OSError, match="Operation not supported"):
        host.echo(0, f"{GUEST}/sys/devices/ap/card05/config")
    assert not host.refusals()
    assert '"errno": "EOPNOTSUPP"' in host.cat(f"{GUEST}/ctl/journal")

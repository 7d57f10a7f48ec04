"""Recordings of hosts that have been in use: whatever was done, a host booted from one shows the outcome."""

from __future__ import annotations

import contextlib
import posixpath
from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from apfs.errors import KernelError
from apfs.host import Host
from apfs.recording.cards import LATE_QUEUES
from apfs.recording.recorder import record
from apfs.scenario.reader import gallery, load, loads
from apfs.testing.files import Shell
from tests.examples import times
from tests.recording.test_round_trip import sysfs

if TYPE_CHECKING:
    from collections.abc import Sequence

BUS = "/sys/bus/ap"
MATRIX = "/sys/devices/vfio_ap/matrix"
UUIDS = [f"{digit * 8}-aaaa-4aaa-8aaa-{digit * 12}" for digit in "12"]

# What is left of the past: counters, whether a queue was ever in use, and what a guest once lost.
HISTORY = {"scans", "bindings_complete_count", "request_count", "reset", "interrupt", "guest_matrix", "status"}

apids = st.sampled_from((5, 6, 0xA, 7))
apqis = st.sampled_from((4, 0x47, 0xAB, 0x10))
onoff = st.sampled_from(("on", "off"))
signs = st.sampled_from("+-")
bits = st.sampled_from("01")
uuids = st.sampled_from(UUIDS)
drivers = st.sampled_from(("vfio_ap", "cex4queue", "vfio_ap", "other", ""))
axes = st.sampled_from(("adapter", "domain", "control_domain"))

Deed = tuple[str, str]
"""A path and what is written to it."""


def console(verb: str) -> Deed:
    return "/ctl/console", verb


def device(apid: int, apqi: int | None = None) -> str:
    card = f"/sys/devices/ap/card{apid:02x}"
    return card if apqi is None else f"{card}/{apid:02x}.{apqi:04x}"


hardware = st.one_of(
    st.builds(lambda apid, kind: console(f"plug {apid} {kind}"), apids, st.sampled_from(("CEX8C", "CEX7P", "CEX5A"))),
    st.builds(lambda apid: console(f"unplug {apid}"), apids),
    st.builds(lambda apqi: console(f"add-domain {apqi}"), apqis),
    st.builds(lambda apqi: console(f"remove-domain {apqi}"), apqis),
    st.builds(lambda apqi: console(f"add-control-domain {apqi}"), apqis),
    st.builds(lambda apid, on: console(f"configure {apid} {on}"), apids, onoff),
    st.builds(lambda apid, on: console(f"checkstop {apid} {on}"), apids, onoff),
    st.builds(lambda apid, slcf: console(f"tapq {apid} slcf={slcf}"), apids, bits),
    st.builds(lambda apid, apqi: console(f"tapq {apid:02x}.{apqi:04x} bs=1"), apids, apqis),
    st.just(console("scan")),
)
settings_of_linux = st.one_of(
    st.builds(lambda sign, apid: (f"{BUS}/apmask", f"{sign}{apid}"), signs, apids),
    st.builds(lambda sign, apqi: (f"{BUS}/aqmask", f"{sign}{apqi}"), signs, apqis),
    st.builds(lambda apqi: (f"{BUS}/ap_domain", f"{apqi}"), apqis),
    st.builds(lambda seconds: (f"{BUS}/config_time", f"{seconds}"), st.integers(4, 121)),
    st.builds(lambda time: (f"{BUS}/poll_timeout", f"{time}"), st.integers(0, 10**6)),
    st.builds(lambda apid, on: (f"{device(apid)}/config", on), apids, bits),
    st.builds(lambda apid, on: (f"{device(apid)}/online", on), apids, bits),
    st.builds(lambda apid, apqi, on: (f"{device(apid, apqi)}/online", on), apids, apqis, bits),
)
mediated_devices = st.one_of(
    st.builds(lambda uuid: (f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", uuid), uuids),
    st.builds(lambda uuid, axis, apid: (f"{MATRIX}/{uuid}/assign_{axis}", f"{apid}"), uuids, axes, apids | apqis),
    st.builds(lambda uuid, axis, apid: (f"{MATRIX}/{uuid}/unassign_{axis}", f"{apid}"), uuids, axes, apids | apqis),
    st.builds(lambda uuid, on: (f"/dev/vfio-ap/{uuid}/guest", on), uuids, bits),
)
overrides = st.builds(
    # As driverctl does it.
    lambda apid, apqi, name: [
        (f"{device(apid, apqi)}/driver_override", f"{name}\n"),
        (f"{device(apid, apqi)}/driver/unbind", f"{apid:02x}.{apqi:04x}"),
        (f"{BUS}/drivers_probe", f"{apid:02x}.{apqi:04x}"),
    ],
    apids,
    apqis,
    drivers,
)


def do(host: Host, deeds: Sequence[Deed]) -> None:
    shell = Shell(host)
    for path, text in deeds:
        with contextlib.suppress(KernelError):  # refusals change nothing
            shell.write(path, text)


def outcome(host: Host) -> dict[str, str]:
    return {path: text for path, text in sysfs(host).items() if posixpath.basename(path) not in HISTORY}


def check(host: Host) -> None:
    recording = record(Shell(host))
    again = Host(loads(recording.text()))
    # No scenario has words for these; there is a test of its own.
    assume(not any(LATE_QUEUES in note for note in recording.notes))
    assert outcome(again) == outcome(host), recording.text()


def test_queues_that_are_online_although_their_card_is_not() -> None:
    host = Host(load("default"))
    do(host, [(f"{device(5)}/online", "0"), console("add-domain 0x10"), console("scan")])
    recording = record(Shell(host))
    assert f"05.0010: {LATE_QUEUES}." in recording.notes
    assert list(recording.scenario.offline_cards) == [5]


FEWER = times(0.4)
GIVEN_AWAY = (
    gallery()["default"]
    + f"""
[masks]
apmask = "-5"

[[mdev]]
uuid = "{UUIDS[0]}"
adapters = 5
domains = [4, 0x47]
"""
)


@FEWER
@given(st.lists(st.one_of(hardware, settings_of_linux, mediated_devices), min_size=6, max_size=20))
def test_hosts_whose_queues_were_given_away_by_masks(deeds: list[Deed]) -> None:
    host = Host(loads(GIVEN_AWAY))
    do(host, deeds)
    host.scan()
    check(host)


@FEWER
@given(
    st.lists(
        st.one_of(hardware.map(lambda deed: [deed]), mediated_devices.map(lambda deed: [deed]), overrides),
        min_size=6,
        max_size=20,
    )
)
def test_hosts_whose_queues_were_given_away_by_override(steps: list[list[Deed]]) -> None:
    host = Host(load("default"))
    for deeds in steps:
        do(host, deeds)
    host.scan()
    check(host)

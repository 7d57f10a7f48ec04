"""Whatever happens to a host, its guest has what `guest_matrix` says, as far as there is hardware for it."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from apfs.errors import KernelError
from tests.examples import times
from tests.hosts import M1, Bench, mask_text

from .guests import HOST, on, queues, rescan

ADAPTERS, DOMAINS = (5, 6, 7, 8), (4, 0x47, 0xAB)

_axis = st.sampled_from(("adapter", "domain", "control_domain"))
_number = st.sampled_from((*ADAPTERS, *DOMAINS))
_assignments = st.tuples(st.sampled_from(("assign", "unassign")), _axis, _number).map(
    lambda made: (f"/sys/devices/vfio_ap/matrix/{M1}/{made[0]}_{made[1]}", str(made[2]))
)
_guests = st.sampled_from("0111").map(lambda text: (f"/dev/vfio-ap/{M1}/guest", text))
_masks = st.tuples(st.sampled_from("+-"), st.sampled_from(ADAPTERS)).map(
    lambda made: ("/sys/bus/ap/apmask", f"{made[0]}{made[1]}")
)
_adapter = st.sampled_from(ADAPTERS)
_verbs = st.one_of(
    _adapter.map(lambda apid: f"unplug {apid}"),
    _adapter.map(lambda apid: f"plug {apid} CEX7P"),
    _adapter.map(lambda apid: f"configure {apid} off"),
    st.sampled_from(DOMAINS).flatmap(
        lambda apqi: st.sampled_from((f"add-domain {apqi}", f"remove-domain {apqi}", f"add-control-domain {apqi}"))
    ),
    st.just("scan"),
    st.sampled_from((1, 29, 30, 61)).map(lambda seconds: f"tick {seconds}"),
).map(lambda verb: ("/ctl/console", verb))
_queues = st.tuples(st.sampled_from(("bind", "unbind")), st.sampled_from(ADAPTERS), st.sampled_from(DOMAINS)).map(
    lambda made: (f"/sys/bus/ap/drivers/vfio_ap/{made[0]}", f"{made[1]:02x}.{made[2]:04x}")
)


@times(1.5)
@given(steps=st.lists(st.one_of(_assignments, _assignments, _guests, _masks, _verbs, _queues), max_size=25))
def test_a_guest_has_its_guest_matrix(steps: list[tuple[str, str]]) -> None:
    host = Bench(HOST)
    host.create(M1)
    host.assign(M1, (5, 6), (4, 0xAB), (4,))
    host.run_guest(M1)
    for path, text in steps:
        with suppress(KernelError):
            host.write(path, text)
        if not host.status()["mdevs"][M1]["guest"]:
            with suppress(KernelError):
                on(host)
                raise AssertionError("a guest without a device")
            continue
        guest = on(host)
        rescan(guest)
        matrix = host.status()["mdevs"][M1]["guest_matrix"]
        machine = host.host.machine
        there = [
            f"{apid:02x}.{apqi:04x}"
            for apid in matrix["adapters"]
            for apqi in matrix["domains"]
            if apqi in machine.domains_of(apid)
        ]
        assert queues(guest) == there
        assert guest.cat("/sys/bus/ap/ap_adapter_mask") == mask_text(matrix["adapters"]) + "\n"
        assert guest.cat("/sys/bus/ap/ap_control_domain_mask") == mask_text(matrix["control_domains"]) + "\n"
        for name in there:
            apid = int(name[:2], 16)
            config = guest.cat(f"/sys/devices/ap/card{apid:02x}/{name}/config")
            assert config == f"{int(machine.cards[apid].configured)}\n"

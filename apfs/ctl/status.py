"""`ctl/status`: the state of the host as one JSON object."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from apfs import __version__
from apfs.ap.mask import NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import card_type
from apfs.ap.zcrypt import card_online, online_queues
from apfs.errors import errno_name
from apfs.vfio_ap.attributes import matrix_mdev
from apfs.vfio_ap.client import Vm

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from apfs.ap.card import ApCard
    from apfs.sysfs.members import Registry
    from apfs.system import System
    from apfs.vfio_ap.matrix import Matrix
    from apfs.vfio_ap.ops import MatrixMdev

_T = TypeVar("_T")


def _matrix(matrix: Matrix) -> dict[str, Mask]:
    return matrix._asdict()


def _card(card: ApCard, assigned: Mask, in_use: Mask) -> dict[str, object]:
    """Return a card and its queues; `assigned` and `in_use` are what mediated devices and guests have of it."""
    to_vfio = card.all_bound() - card.zcrypt_bound()
    return {
        "type": card_type(card.hwtype, card.hwinfo),
        "mode": card.mode,
        "driver": card.driver.name if card.driver else None,
        "hwinfo": f"{card.hwinfo:016x}",
        "config": card.config,
        "online": card_online(card),
        "chkstop": card.chkstop,
        "drivers": {driver.name: domains for driver, domains in card.bound.items() if domains},
        "unbound": card.queues - card.all_bound(),
        "assigned": to_vfio & assigned,
        "in_use": to_vfio & in_use,
        "offline": card.zcrypt_bound() - online_queues(card),
        "deconfigured": card.queues - card.states.config,
        "checkstopped": card.states.chkstop,
    }


def _cards(system: System, mdevs: list[MatrixMdev]) -> dict[str, dict[str, object]]:
    assigned, in_use = defaultdict[int, Mask](Mask), defaultdict[int, Mask](Mask)
    for mdev in mdevs:
        for apid in mdev.matrix.adapters:
            assigned[apid] |= mdev.matrix.domains
        for apid in mdev.shadow.adapters if mdev.vm is not None else NONE:
            in_use[apid] |= mdev.shadow.domains
    cards = sorted(system.ap_bus.cards.items())
    return {f"{apid:02x}": _card(card, assigned[apid], in_use[apid]) for apid, card in cards}


def _mdev(mdev: MatrixMdev) -> dict[str, object]:
    group = mdev.vdev.group
    opener = "program" if group.opener is not None or mdev.vdev.in_use else None
    return {
        "group": group.number,
        "device": f"vfio{mdev.vdev.index}",
        "opener": "guest" if isinstance(group.opener, Vm) else opener,
        "guest": mdev.vm is not None,
        "migration_state": mdev.migration.state.name if mdev.migration else None,
        "matrix": _matrix(mdev.matrix),
        "guest_matrix": _matrix(mdev.shadow),
    }


def _guest(guest: System) -> dict[str, object]:
    bound, queues, complete = guest.ap_bus.bindings()
    return {
        "secure_execution": guest.machine.secure_execution,
        "cards": list(guest.ap_bus.cards),
        "bindings": {"bound": bound, "queues": queues, "complete": complete},
        "modules": [module.name for module in guest.modules.values() if module.loaded],
        "guests": [inner.name for inner in guest.guests],
    }


def _of(registry: Registry[_T], only: Collection[str] | None) -> Iterable[_T]:
    """Return what is in a registry, or of that only what has one of some names."""
    return registry if only is None else filter(None, map(registry.get, only))


def status(system: System) -> str:
    """Return the state of the host as one JSON object."""
    return json.dumps(document(system), indent=1, default=list) + "\n"


def document(system: System, only: Collection[str] | None = None) -> dict[str, Any]:
    """Return the state of the host: masks, cards, queues, mediated devices, guests and so on.

    Sets of adapters and of domains are `Mask`s, of which JSON makes lists: whoever asks often pays for none. With
    `only`, it is as if only the mediated devices with these UUIDs were there, and modules have no `refcnt`: then it
    does not take longer if there are thousands of devices.
    """
    bus = system.ap_bus
    bound, queues, complete = bus.bindings()
    devices = {mdev.uuid: matrix_mdev(mdev) for mdev in _of(system.mdev_bus.mdevs, only)}
    mdevs = {uuid: mdev for uuid, mdev in devices.items() if mdev}
    bad_resets = system.vfio_ap.driver.bad_resets if system.vfio_ap else {}
    return {
        "apfs": __version__,
        "scenario": system.name,
        "kernel": {"version": system.profile.version, "changes": system.profile.changes()},
        "driver": system.revision,
        "secure_execution": system.machine.secure_execution,
        "clock": system.clock,
        "config_time": bus.config_time,
        "kvm": system.vfio.kvm,
        "bindings": {"bound": bound, "queues": queues, "complete": complete},
        "ap_domain": bus.default_domain,
        "adapters": bus.qci.adapters if bus.heeds_qci else None,
        "usage_domains": bus.qci.domains if bus.heeds_qci else None,
        "control_domains": bus.qci.control_domains if bus.heeds_qci else None,
        "apmask": bus.reservation.apmask.hex256(),
        "aqmask": bus.reservation.aqmask.hex256(),
        "cards": _cards(system, list(mdevs.values())),
        "overrides": {
            str(Apqn(apid, apqi)): name
            for apid, names in sorted(bus.reservation.overrides.items())
            for apqi, name in sorted(names.items())
        },
        "bad_resets": {str(apqn): response for apqn, response in sorted(bad_resets.items())},
        "unanswered": {str(apqn): left for apqn, left in sorted(system.machine.unanswered.items())},
        "failing_resets": {str(apqn): response for apqn, response in sorted(system.machine.failing_resets.items())},
        "faults": {
            path: {"errno": errno_name(number), "accesses": accesses}
            for path, (number, accesses) in system.tree.faults.items()
        },
        "mdevs": {uuid: _mdev(mdev) for uuid, mdev in mdevs.items()},
        "guests": {guest.name: _guest(guest) for guest in _of(system.guests, only)},
        "unbound_mdevs": [uuid for uuid in devices if uuid not in mdevs],
        "modules": {
            module.name: {"refcnt": module.refcount} if only is None else {}
            for module in system.modules.values()
            if module.loaded
        },
    }

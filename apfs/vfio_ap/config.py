"""Effects of changes of the host's configuration on guests: what they lose, and what is filtered after additions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from apfs.ap.mask import Mask
from apfs.ap.qinfo import FIELDS, OLDEST
from apfs.vfio_ap.matrix import Matrix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apfs.ap.hardware import Machine
    from apfs.ap.qinfo import Qci
    from apfs.kernel.profile import Profile


class Assigned(Protocol):
    """A device with what is assigned to it, and what its guest has."""

    matrix: Matrix
    shadow: Matrix
    vm: object | None

    def push(self) -> None:
        """Program the guest."""


def difference(one: Qci, other: Qci) -> Matrix:
    """Return what one configuration has and another does not."""
    return Matrix(
        one.adapters - other.adapters, one.domains - other.domains, one.control_domains - other.control_domains
    )


def take_lost(mdevs: Iterable[Assigned], lost: Matrix, kernel: Profile) -> None:
    """Take from guests what the host has lost (vfio_ap_mdev_cfg_remove)."""
    hit = False
    for mdev in mdevs:
        before = mdev.shadow
        if kernel.config_changes == "followed":
            mdev.shadow = Matrix(*(had - gone for had, gone in zip(before, lost, strict=True)))
            pushed = mdev.shadow != before
        else:
            mdev.shadow, pushed, hit = lose_most(before, mdev.matrix, lost, hit=hit)
        if pushed:
            mdev.push()


class Loss(NamedTuple):
    """What is left to a guest when the host lost something."""

    shadow: Matrix
    pushed: bool
    """Whether the guest is programmed with it."""
    hit: bool
    """Whether the device, or one before it, had something of what was lost."""


def turns(mdevs: Iterable[Assigned], apid: int, domains: Mask) -> Mask:
    """Return at which queues, of a row that comes or goes, running guests may be programmed.

    When they come, Linux filters with each (vfio_ap_mdev_probe_queue): with the first one of a device, other adapters
    may come in that have waited for any filtering; with the last one comes the adapter itself. Those between change
    nothing. When they go, the first one that the guest has takes the adapter along (vfio_ap_mdev_remove_queue).
    """
    found = []
    for mdev in mdevs:
        if mdev.vm is not None:
            own, had = list(domains & mdev.matrix.domains), list(domains & mdev.shadow.domains)
            found += [*own[:1], *own[-1:], *(had[:1] if apid in mdev.shadow.adapters else ())]
    return Mask.from_numbers(found)


def lose_most(shadow: Matrix, assigned: Matrix, lost: Matrix, *, hit: bool) -> Loss:
    """Take away what the host lost as kernels from 6.0 to 7.1 do it (vfio_ap_mdev_cfg_remove).

    The guest is only told if adapters (or domains) remain of those that it had. Control domains go if they are not
    assigned, so they stay. Once one device was hit, those that come after it are told without a reason.
    """
    adapters, domains = lost.adapters & assigned.adapters, lost.domains & assigned.domains
    control = lost.control_domains - assigned.control_domains
    hit = hit or bool(adapters or domains or control)
    if not hit:
        return Loss(shadow, pushed=False, hit=False)
    left = Matrix(shadow.adapters - adapters, shadow.domains - domains, shadow.control_domains - control)
    pairs = ((adapters, left.adapters), (domains, left.domains), (control, left.control_domains))
    return Loss(left, pushed=any(gone and rest for gone, rest in pairs), hit=True)


def delta(pending: Matrix, assigned: Matrix, shadow: Matrix) -> Matrix:
    """Return which queues are looked at when the host gained something (vfio_ap_mdev_hot_plug_cfg up to 6.7)."""
    adapters, domains = pending.adapters & assigned.adapters, pending.domains & assigned.domains
    if adapters:
        return Matrix(adapters, domains or shadow.domains)
    return Matrix(shadow.adapters, domains)


def too_old(machine: Machine, adapters: Mask, domains: Mask) -> Mask:
    """Return the new adapters of a type that the driver does not serve (vfio_ap_filter_apid_by_qtype).

    Each is asked for its type on all new domains; without a new domain it is not.
    """
    types = FIELDS["at"]
    return Mask.from_numbers(
        apid for apid in adapters if any(types.get(machine.tapq(apid, apqi)[1]) < OLDEST for apqi in domains)
    )

"""Which queues are reserved for the host's own drivers, by the masks or by overrides of single queues.

Sources: drivers/s390/crypto/ap_bus.c (struct ap_perms, ap_device_probe, ap_owned_by_def_drv) and ap_queue.c
(driver_override).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.mask import ALL, NONE, Mask
from apfs.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apfs.ap.driver import ApDriver
    from apfs.ap.names import Apqn


class Reservation:
    """`apmask` and `aqmask`, which reserve a queue for the host if both have it, and the queues' overrides.

    The two exclude each other: with masks that are not all ones no override can be set, and with an override no mask
    can be changed.
    """

    def __init__(self) -> None:
        self.apmask = ALL
        self.aqmask = ALL
        self.overrides: dict[int, dict[int, str]] = {}
        """Names of the only drivers that may have a queue, by adapter and domain."""
        self._override_count = 0  # a queue that is unplugged with an override still counts, as in Linux

    def by_masks(self, apid: int) -> Mask:
        """Return the domains of an adapter that the masks reserve."""
        return self.aqmask if apid in self.apmask else NONE

    def eligible(self, apid: int, driver: ApDriver) -> Mask:
        """Return the domains of an adapter whose queues a driver may be given (ap_device_probe)."""
        reserved = self.by_masks(apid)
        eligible = reserved if driver.default else ~reserved
        for apqi, name in self.overrides.get(apid, {}).items():
            eligible = eligible.with_(apqi) if name == driver.name else eligible.without(apqi)
        return eligible

    def refusal(self, apqn: Apqn, driver: ApDriver) -> str:
        """Say why a driver may not be given a queue."""
        if apqn.apqi in self.overrides.get(apqn.apid, {}):
            return "an override names another driver"
        return "apmask and aqmask do not reserve it" if driver.default else "apmask and aqmask reserve it for zcrypt"

    def owned_by_host(self, apid: int, bound: Mapping[ApDriver, Mask]) -> Mask:
        """Return the domains of an adapter that cannot be assigned to guests (ap_owned_by_def_drv).

        `bound` are the domains whose queues a driver has. A bound queue with an override, whatever that says, belongs
        to the driver that it is bound to; the masks decide for all others, whether they exist or not.
        """
        owned = self.by_masks(apid)
        if apid in self.overrides:
            overridden = Mask.from_numbers(self.overrides[apid])
            for driver, domains in bound.items():
                owned = owned | overridden & domains if driver.default else owned - (overridden & domains)
        return owned

    def how_to_free(self, apqn: Apqn) -> str:
        """Say what makes a queue that the host owns available for guests."""
        overridden = apqn.apqi in self.overrides.get(apqn.apid, {})
        return "bind it to vfio_ap" if overridden else "clear its bit in apmask or aqmask"

    def check_masks_free(self) -> None:
        """Make sure that masks may be changed: EINVAL while there are overrides."""
        if self._override_count:
            reason = "a queue has a driver_override: clear all overrides before changing masks"
            raise KernelError(errno.EINVAL, reason)

    def override(self, apqn: Apqn, name: str) -> None:
        """Set or, with an empty name, clear the override of a queue. EINVAL while the masks are not all ones."""
        if not self.apmask == self.aqmask == ALL:
            reason = "apmask and aqmask are not both all ones: use either the masks or overrides"
            raise KernelError(errno.EINVAL, reason)
        names = self.overrides.setdefault(apqn.apid, {})
        self._override_count += bool(name) - (apqn.apqi in names)
        if name:
            names[apqn.apqi] = name
        else:
            names.pop(apqn.apqi, None)
            self._tidy(apqn.apid)

    def forget(self, apid: int, domains: Mask) -> None:
        """Drop the overrides of queues that were removed."""
        names = self.overrides.get(apid)
        if names:
            for apqi in domains:
                names.pop(apqi, None)
            self._tidy(apid)

    def _tidy(self, apid: int) -> None:
        if not self.overrides[apid]:
            del self.overrides[apid]

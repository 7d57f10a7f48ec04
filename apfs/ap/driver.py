"""The interface of a driver to the AP bus (struct ap_driver)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from apfs.ap.mask import NONE
from apfs.kernel.device import Driver

if TYPE_CHECKING:
    from apfs.ap.mask import Mask
    from apfs.ap.qinfo import Qci
    from apfs.kernel.device import Bus


class ApDriver(Driver):
    """An AP driver. Queues come and go in rows: some domains of one adapter at a time.

    `default` drivers get the queues that are reserved for the host, others the rest.
    """

    def __init__(
        self, bus: Bus, name: str, module: str | None, device_kind: Literal["card", "queue"], *, default: bool
    ) -> None:
        super().__init__(bus, name, module)
        self.device_kind = device_kind
        self.default = default
        self._serial = 0
        self._bound: dict[int, dict[int, Mask]] = {}
        """Rows of queues that it has, by adapter and by a number that tells the order of binding."""

    def gained(self, apid: int, domains: Mask) -> None:
        """Remember that queues were bound, in ascending order."""
        self._serial += 1
        self._bound.setdefault(apid, {})[self._serial] = domains

    def lost(self, apid: int, domains: Mask) -> None:
        """Remember that queues are no longer bound."""
        rows = ((serial, row - domains) for serial, row in self._bound.get(apid, {}).items())
        self._bound[apid] = {serial: row for serial, row in rows if row}

    def last_bound_first(self) -> list[tuple[int, Mask]]:
        """Return all queues that it has, in rows, the last bound first; within a row the highest was bound last."""
        rows = [(serial, apid, row) for apid, found in self._bound.items() for serial, row in found.items()]
        return [(apid, row) for _, apid, row in sorted(rows, key=lambda found: found[0], reverse=True)]

    def turns(self, _apid: int, _domains: Mask) -> Mask:
        """Return those queues at whose coming or going it does something that is told, between their uevents."""
        return NONE

    def probe(self, apid: int, domains: Mask) -> None:
        """Get queues, which are already bound to this driver."""

    def remove(self, apid: int, domains: Mask) -> None:
        """Lose queues, which are still bound to this driver."""

    def in_use(self, _adapters: Mask, _domains: Mask) -> bool:
        """Whether the driver cannot give up some queue of adapters x domains."""
        return False

    def on_config_changed(self, new: Qci, old: Qci) -> None:
        """Learn of a changed host configuration, before devices are removed and created."""

    def on_scan_complete(self, new: Qci, old: Qci) -> None:
        """Learn that all devices of a changed host configuration are there."""

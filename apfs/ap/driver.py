"""Drivers on the AP bus: what the bus wants of a driver, and zcrypt's cex4card and cex4queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from apfs.kernel.device import Driver

if TYPE_CHECKING:
    from apfs.ap.bus import ApBus
    from apfs.ap.card import ApCard
    from apfs.ap.mask import Mask
    from apfs.ap.qinfo import Qci


class ApDriver(Driver):
    """An AP driver (struct ap_driver). Queues come and go in rows: some domains of one card at a time.

    `default` drivers get the queues that `apmask` and `aqmask` reserve for the host, others the rest.
    """

    def __init__(
        self, bus: ApBus, name: str, module: str | None, device_kind: Literal["card", "queue"], *, default: bool
    ) -> None:
        super().__init__(bus, name, module)
        self.device_kind = device_kind
        self.default = default

    def probe(self, card: ApCard, domains: Mask) -> None:
        """Be given queues, which are bound to this driver already."""

    def remove(self, card: ApCard, domains: Mask) -> None:
        """Lose queues, which are still bound to this driver."""

    def in_use(self, _adapters: Mask, _domains: Mask) -> bool:
        """Whether the driver cannot let go of some queue of adapters x domains."""
        return False

    def on_config_changed(self, new: Qci, old: Qci) -> None:
        """Be told of a changed host configuration, before devices are removed and created."""

    def on_scan_complete(self, new: Qci, old: Qci) -> None:
        """Be told that all devices of a changed host configuration are there."""

"""What the AP bus wants of a driver (struct ap_driver)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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

    def probe(self, apid: int, domains: Mask) -> None:
        """Get queues, which are bound to this driver already."""

    def remove(self, apid: int, domains: Mask) -> None:
        """Lose queues, which are still bound to this driver."""

    def in_use(self, _adapters: Mask, _domains: Mask) -> bool:
        """Whether the driver cannot give up some queue of adapters x domains."""
        return False

    def on_config_changed(self, new: Qci, old: Qci) -> None:
        """Hear of a changed host configuration, before devices are removed and created."""

    def on_scan_complete(self, new: Qci, old: Qci) -> None:
        """Hear that all devices of a changed host configuration are there."""

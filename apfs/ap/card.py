"""A crypto card on the AP bus, the attributes that every card has, and the state of its queues.

A card keeps its queues' state in columns, one mask of domains per property: a statement about all of a card's queues
is one operation on masks, and a queue costs a bit per property. Source: drivers/s390/crypto/ap_card.c.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from apfs.ap.mask import NONE, Mask
from apfs.ap.qinfo import FIELDS, mode_of
from apfs.kernel.device import SYS

if TYPE_CHECKING:
    from apfs.ap.bus import ApBus
    from apfs.ap.driver import ApDriver
    from apfs.journal.records import Keys


class ApCard:
    """A card device, `/sys/devices/ap/cardXX` (struct ap_card)."""

    subsystem = "ap"

    def __init__(self, bus: ApBus, apid: int, hwinfo: int, hwtype: int, *, config: bool, chkstop: bool) -> None:
        self.bus = bus
        self.journal = bus.journal
        self.apid = apid
        self.hwinfo = hwinfo
        """The card's record: the TAPQ word of its first queue, reduced to what queues of a card share."""
        self.hwtype = hwtype
        self.config = config
        self.chkstop = chkstop
        self.driver: ApDriver | None = None
        self.online = True
        """Software state; what users see also depends on `config` and `chkstop`."""
        self.requests = 0
        # Columns: one mask of domains per property of a queue.
        self.queues = NONE
        self.bound: dict[ApDriver, Mask] = {}
        self.operating = NONE  # the others are in the state that the bus calls uninitiated
        self.resetting = NONE
        self.interrupts = NONE
        self.queue_config = NONE
        self.queue_chkstop = NONE
        self.queue_online = NONE
        # What few queues have.
        self.queue_requests: dict[int, int] = {}
        self.overrides: dict[int, str] = {}

    @property
    def name(self) -> str:
        """Device name, such as `card05`."""
        return f"card{self.apid:02x}"

    @property
    def path(self) -> str:
        """Directory in sysfs."""
        return f"{SYS}/devices/ap/card{self.apid:02x}"

    @property
    def raw_hwtype(self) -> int:
        """AP type as the hardware reports it."""
        return FIELDS["at"].get(self.hwinfo)

    @property
    def mode(self) -> str | None:
        """Mode of operation: `accel`, `cca`, `ep11`, or None."""
        return mode_of(self.hwinfo)

    @property
    def usable(self) -> bool:
        """Whether the card is configured and not check-stopped."""
        return self.config and not self.chkstop

    def all_bound(self) -> Mask:
        """Return the domains whose queues have a driver."""
        bits = 0
        for domains in self.bound.values():
            bits |= domains.bits
        return Mask(bits)

    def zcrypt_bound(self) -> Mask:
        """Return the domains whose queues are bound to cex4queue."""
        return self.bound.get(self.bus.cex4queue, NONE)

    def uevent_keys(self) -> Keys:
        """Return DEVTYPE, DRIVER, DEV_TYPE, MODALIAS, MODE, as far as they apply (ap_uevent)."""
        keys = [("DEVTYPE", "ap_card")]
        if self.driver:
            keys.append(("DRIVER", self.driver.name))
        keys += [("DEV_TYPE", f"{self.hwtype:04X}"), ("MODALIAS", f"ap:t{self.hwtype:02X}")]
        if self.mode:
            keys.append(("MODE", self.mode))
        return tuple(keys)


@lru_cache
def queue_uevent_keys(driver: str | None, mode: str | None) -> Keys:
    """Return DEVTYPE, DRIVER, MODE of a queue: the same tuple for all that are alike, as thousands are."""
    keys = [("DEVTYPE", "ap_queue"), ("DRIVER", driver), ("MODE", mode)]
    return tuple((key, value) for key, value in keys if value)

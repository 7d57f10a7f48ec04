"""A queue on the AP bus: a view of one bit in each of its card's columns, and the attributes every queue has.

Source: drivers/s390/crypto/ap_queue.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.card import ApCard, queue_uevent_keys
from apfs.ap.qinfo import Apqn

if TYPE_CHECKING:
    from apfs.ap.driver import ApDriver
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys


class ApQueue:
    """A queue device, `/sys/devices/ap/cardXX/XX.YYYY` (struct ap_queue); made when somebody looks, kept by nobody."""

    __slots__ = ("apqi", "card")

    subsystem = "ap"

    def __init__(self, card: ApCard, apqi: int) -> None:
        self.card = card
        self.apqi = apqi

    @property
    def journal(self) -> Journal:
        """Where its events go."""
        return self.card.journal

    @property
    def apqn(self) -> Apqn:
        """Its number."""
        return Apqn(self.card.apid, self.apqi)

    @property
    def path(self) -> str:
        """Directory in sysfs."""
        return f"{self.card.path}/{self.apqn}"

    @property
    def driver(self) -> ApDriver | None:
        """The driver it is bound to."""
        for driver, domains in self.card.bound.items():
            if self.apqi in domains:
                return driver
        return None

    @property
    def config(self) -> bool:
        """Whether it was configured when the bus last looked."""
        return self.apqi in self.card.queue_config

    @property
    def chkstop(self) -> bool:
        """Whether it was check-stopped when the bus last looked."""
        return self.apqi in self.card.queue_chkstop

    @property
    def uninitiated(self) -> bool:
        """Whether the bus does not operate it: never initialised, or unbound since."""
        return self.apqi not in self.card.operating

    def uevent_keys(self) -> Keys:
        """Return DEVTYPE, DRIVER, MODE, as far as they apply. Queues have no MODALIAS: modules load for the card."""
        driver = self.driver
        return queue_uevent_keys(driver.name if driver else None, self.card.mode)

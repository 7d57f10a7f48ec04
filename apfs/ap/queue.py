"""A queue on the AP bus: a view of one bit in each of its card's columns (drivers/s390/crypto/ap_queue.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.card import ApCard, queue_uevent_keys
from apfs.ap.hardware import BS_NO_KEY, BS_UNBOUND, BS_USABLE, SECRETS
from apfs.ap.names import Apqn, queue_name
from apfs.ap.qinfo import FIELDS, Response
from apfs.errors import KernelError
from apfs.kernel.device import emit

if TYPE_CHECKING:
    from apfs.ap.driver import ApDriver
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys


class ApQueue:
    """A queue device, `/sys/devices/ap/cardXX/XX.YYYY` (struct ap_queue); made on demand, and not kept."""

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
        return f"{self.card.path}/{queue_name(self.card.apid, self.apqi)}"

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
    def usable(self) -> bool:
        """Whether it was configured and not check-stopped when the bus last looked."""
        return self.apqi in self.card.usable_queues

    @property
    def uninitiated(self) -> bool:
        """Whether the bus does not operate it: never initialised, or unbound since."""
        return self.apqi not in self.card.operating

    @property
    def override(self) -> str:
        """Name of the only driver that may have it; empty if every driver may."""
        return self.card.reservation.overrides.get(self.card.apid, {}).get(self.apqi, "")

    def uevent_keys(self) -> Keys:
        """Return DEVTYPE, DRIVER, MODE, as far as they apply. Queues have no MODALIAS: modules load for the card."""
        driver = self.driver
        return queue_uevent_keys(driver.name if driver else None, self.card.mode)

    def reset(self) -> None:
        """Flush and reset. Only a driver of the host polls a reset to its end."""
        card = self.card
        if self.usable and self.apqi in card.zcrypt_bound():
            card.resetting = card.resetting.without(self.apqi)
        else:
            card.resetting = card.resetting.with_(self.apqi)

    # -- secure execution: what a guest does with its queues ---------------------------------------

    @property
    def can_be_bound(self) -> bool:
        """Whether it can be bound to this guest: no queue of a CCA card can, nor any without the facility."""
        return self.card.machine.secure_binding and self.card.mode in ("accel", "ep11")

    def tapq(self, *, clean: bool = False) -> int:
        """Read its word from the hardware now. EIO for a response without one, or (`clean`) not a normal one."""
        response, word = self.card.machine.tapq(*self.apqn)
        if response > Response.BUSY or (clean and response != Response.NORMAL):
            raise KernelError(errno.EIO, f"TAPQ of {self.apqn} answers {response:#04x}")
        return word

    def bind_to_guest(self) -> None:
        """Bind it to this guest, and send the event.

        EIO if TAPQ does not answer normally, EINVAL unless available, EBUSY in a reset.
        """
        if FIELDS["bs"].get(self.tapq(clean=True)) != BS_UNBOUND:
            raise KernelError(errno.EINVAL, f"{self.apqn} is not available for binding")
        self._check_idle()
        self.card.machine.set_bind_state(*self.apqn, BS_USABLE if self.card.mode == "accel" else BS_NO_KEY)
        emit(self, "change", ("SE_BIND", "1"))

    def unbind_from_guest(self) -> None:
        """Make it available for binding."""
        self.card.machine.set_bind_state(*self.apqn, BS_UNBOUND)

    @property
    def secret(self) -> int | None:
        """Index of the secret that it is associated with, None without one."""
        hardware = self.card.machine.cards.get(self.card.apid)
        return hardware.associations.get(self.apqi) if hardware else None

    def associate(self, secret: int) -> None:
        """Associate it with a secret.

        EINVAL above 65535 and unless it is bound without a secret, EIO if TAPQ does not answer normally, EBUSY in a
        reset.
        """
        if secret >= SECRETS:
            raise KernelError(errno.EINVAL, f"secret {secret} is above {SECRETS - 1}")
        if FIELDS["bs"].get(self.tapq(clean=True)) != BS_NO_KEY:
            raise KernelError(errno.EINVAL, f"{self.apqn} is not bound without a secret")
        self._check_idle()
        machine = self.card.machine
        machine.cards[self.card.apid].associations[self.apqi] = secret
        machine.set_bind_state(*self.apqn, BS_USABLE)
        emit(self, "change", ("SE_ASSOC", str(secret)))

    def _check_idle(self) -> None:
        if self.apqi in self.card.resetting:
            raise KernelError(errno.EBUSY, f"{self.apqn} is being reset")

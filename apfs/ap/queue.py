"""A queue on the AP bus: a view of one bit in each of its card's columns (drivers/s390/crypto/ap_queue.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.card import ApCard, queue_uevent_keys
from apfs.ap.hardware import BS_NO_KEY, BS_UNBOUND, BS_USABLE, SECRETS
from apfs.ap.mask import Mask
from apfs.ap.names import Apqn, queue_name
from apfs.ap.qinfo import FIELDS, Response, can_be_bound
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
        return self.apqi in self.card.states.config

    @property
    def chkstop(self) -> bool:
        """Whether it was check-stopped when the bus last looked."""
        return self.apqi in self.card.states.chkstop

    @property
    def usable(self) -> bool:
        """Whether it was configured and not check-stopped when the bus last looked."""
        return self.apqi in self.card.states.usable

    @property
    def uninitiated(self) -> bool:
        """Whether the bus does not operate it: never initialised, or unbound since."""
        return self.apqi not in self.card.states.operating

    @property
    def override(self) -> str:
        """Name of the only driver that may have it; empty if every driver may."""
        return self.card.reservation.overrides.get(self.card.apid, {}).get(self.apqi, "")

    def uevent_keys(self) -> Keys:
        """Return DEVTYPE, DRIVER, MODE, as far as they apply. Queues have no MODALIAS: modules load for the card."""
        driver = self.driver
        return queue_uevent_keys(driver.name if driver else None, self.card.mode)

    @property
    def resetting(self) -> bool:
        """Whether its reset has not been seen to end."""
        return self.apqi in self.card.states.resetting

    @property
    def interrupts(self) -> bool:
        """Whether the hardware says now that it interrupts; in old kernels, whether it did so when last initialised."""
        if self.card.profile.interrupt_live:
            return self.card.machine.interrupting(*self.apqn)
        return self.apqi in self.card.states.interrupts

    def reset(self) -> None:
        """Flush and reset. The end is seen only if it has a driver, is operated, and can be used."""
        self.card.states.reset(Mask.of(self.apqi))
        self.card.bus.poll()

    # -- secure execution: what a guest does with its queues ---------------------------------------

    @property
    def can_be_bound(self) -> bool:
        """Whether it can be bound to this guest: no queue of a CCA card can, nor any without the facility."""
        return self.card.machine.secure_binding and can_be_bound(self.card.hwinfo)

    @property
    def can_be_associated(self) -> bool:
        """Whether it can be associated with a secret: only that of an EP11 card can."""
        return bool(FIELDS["ep11"].get(self.card.hwinfo))

    @property
    def has_binding(self) -> bool:
        """Whether it has attributes to bind it, which old kernels show on CCA queues as well."""
        return self.can_be_bound or (self.card.machine.secure_binding and not self.card.profile.se_cca_excluded)

    def tapq(self, *, clean: bool = False) -> int:
        """Read its word from the hardware now. EIO for a response without one, or (`clean`) not a normal one."""
        response, word = self.card.machine.tapq(*self.apqn)
        if response > Response.BUSY or (clean and response != Response.NORMAL):
            raise KernelError(errno.EIO, f"TAPQ of {self.apqn} answers {response:#04x}")
        return word

    def bind_state(self, *, clean: bool = False) -> int:
        """Ask the hardware for its bind state, which the bus remembers. EIO as for `tapq`."""
        state = FIELDS["bs"].get(self.tapq(clean=clean))
        self.card.states.note_bind_states(Mask.of(self.apqi))
        return state

    def bind_to_guest(self) -> None:
        """Bind it to this guest, and send the event.

        EIO if TAPQ does not answer normally, EINVAL unless available, EBUSY in a reset. Old kernels do not ask before,
        so that EIO is what the hardware refuses.
        """
        profile = self.card.profile
        if profile.se_bind_state_checked and self.bind_state(clean=True) != BS_UNBOUND:
            raise KernelError(errno.EINVAL, f"{self.apqn} is not available for binding")
        self._check_reset_over()
        if self.bind_state(clean=True) != BS_UNBOUND:
            raise KernelError(errno.EIO, f"the hardware refuses to bind {self.apqn}: it is not available")
        bound = BS_NO_KEY if self.can_be_associated else BS_USABLE
        self.card.machine.set_bind_state(*self.apqn, bound)
        self.card.states.bind_to_guest(self.apqi)
        if profile.se_uevents:
            emit(self, "change", ("SE_BIND", "1"))

    def unbind_from_guest(self) -> None:
        """Make it available for binding, by a reset: once it is operated and can be used, if it is not yet."""
        self.card.states.unbind_from_guest(Mask.of(self.apqi))
        self.card.bus.poll()

    @property
    def secret(self) -> int | None:
        """Index of the secret with which it was associated since it was initialised."""
        return self.card.states.secrets.get(self.apqi)

    def associate(self, secret: int) -> None:
        """Associate it with a secret, and tell, unless nothing polls it.

        EINVAL above 65535 and unless it is bound without a secret, EIO if TAPQ does not answer normally, EBUSY unless
        it is idle.
        """
        if secret >= SECRETS:
            raise KernelError(errno.EINVAL, f"secret {secret} is above {SECRETS - 1}")
        profile, states = self.card.profile, self.card.states
        if profile.se_bind_state_checked and self.bind_state(clean=True) != BS_NO_KEY:
            raise KernelError(errno.EINVAL, f"{self.apqn} is not bound without a secret")
        self._check_reset_over()
        if self.apqi in states.associating:
            raise KernelError(errno.EBUSY, f"{self.apqn} is being associated")
        if not profile.se_bind_state_checked and self.secret is not None:
            raise KernelError(errno.EINVAL, f"{self.apqn} is associated with secret {self.secret} already")
        if self.bind_state(clean=True) != BS_NO_KEY:
            raise KernelError(errno.EIO, f"the hardware refuses to associate {self.apqn}: it is not bound")
        self.card.machine.set_bind_state(*self.apqn, BS_USABLE)
        if states.associate(self.apqi, secret) and profile.se_uevents:
            emit(self, "change", ("SE_ASSOC", str(secret)))

    def _check_reset_over(self) -> None:
        if self.resetting:
            raise KernelError(errno.EBUSY, f"{self.apqn} is being reset")

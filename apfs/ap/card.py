"""A crypto card on the AP bus, and the state of its queues (drivers/s390/crypto/ap_card.c).

A card stores its queues' properties in columns, one mask of domains per property: an operation on all of a card's
queues is one operation on masks, and a queue costs one bit per property.
"""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from apfs.ap.mask import NONE, Mask
from apfs.ap.names import card_name
from apfs.ap.qinfo import FIELDS, can_be_bound, coprocessor_of, mode_of
from apfs.ap.queue_states import QueueStates
from apfs.errors import KernelError
from apfs.kernel.device import SYS, emit

if TYPE_CHECKING:
    from apfs.ap.driver import ApDriver
    from apfs.ap.hardware import Machine
    from apfs.ap.queue_states import PollTimer
    from apfs.ap.reservation import Reservation
    from apfs.ap.zcrypt_card import ZcryptCard
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys
    from apfs.kernel.profile import Profile


LIFE_BITS = 16
"""Bits of the number of a card's or queue's life."""


class CardBus(Protocol):
    """What a card, its queues and requests to them need of the bus."""

    journal: Journal
    machine: Machine
    reservation: Reservation
    cex4queue: ApDriver
    cards: dict[int, ApCard]
    poll_timer: PollTimer
    profile: Profile
    default_domain: int
    scans: int
    removals: int

    def poll(self) -> None:
        """Let the poll timer run out if something has armed it."""

    def force_rescan(self) -> bool:
        """Scan for a request that found no queue; return whether it may be worth another try."""


class ApCard:
    """A card device, `/sys/devices/ap/cardXX` (struct ap_card)."""

    subsystem = "ap"

    def __init__(self, bus: CardBus, apid: int, hwinfo: int, hwtype: int, *, config: bool, chkstop: bool) -> None:
        self.bus = bus
        self.profile = bus.profile
        self.machine = bus.machine
        self.reservation = bus.reservation
        self.zcrypt = bus.cex4queue
        """The host's own driver for its queues."""
        self.journal = bus.journal
        self.apid = apid
        self.hwinfo = hwinfo
        """TAPQ word of its first queue, reduced to what queues of a card share."""
        self.hwtype = hwtype
        self.config = config
        self.chkstop = chkstop
        self.life = self._new_life()
        """Number that no card of this adapter has had before, within the last 65,535 removals of something."""
        self.driver: ApDriver | None = None
        self.zcrypt_card: ZcryptCard | None = None
        """What cex4card has made of it, while it is bound."""
        self.zcrypt_cards: list[ZcryptCard] = []
        """The same, and what was made of it before if there still are queues of that."""
        self.requests = 0
        # Columns: one mask of domains per property of a queue.
        self.queues = NONE
        self.bound: dict[ApDriver, Mask] = {}
        self.states = QueueStates(bus.machine, apid, bus.poll_timer, bus.profile)
        self.answered = NONE
        """Domains for which zcrypt has an answer of the card, where kernels keep them."""
        # What only a few queues have.
        self.queue_requests: dict[int, int] = {}
        self.lives: dict[int, int] = {}
        """The lives of queues that have come later than the card, by domain."""

    @property
    def name(self) -> str:
        """Device name, such as `card05`."""
        return card_name(self.apid)

    @property
    def path(self) -> str:
        """Directory in sysfs."""
        return f"{SYS}/devices/ap/{card_name(self.apid)}"

    def _new_life(self) -> int:
        return self.bus.removals & (1 << LIFE_BITS) - 1

    def life_of(self, apqi: int) -> int:
        """Return the number of a queue's life, another one than it had before if it has come back."""
        return self.lives.get(apqi, self.life)

    @property
    def raw_hwtype(self) -> int:
        """AP type as the hardware reports it."""
        return FIELDS["at"].get(self.hwinfo)

    @property
    def mode(self) -> str | None:
        """Mode of operation: `accel`, `cca`, `ep11`, or None."""
        return mode_of(self.hwinfo)

    @property
    def coprocessor(self) -> str | None:
        """Coprocessor whose attributes it has while zcrypt has it. Requests are answered only if `mode` is the same."""
        return coprocessor_of(self.hwinfo)

    @property
    def modalias(self) -> str:
        """Module alias by which udev loads zcrypt."""
        return f"ap:t{self.hwtype:02X}"

    @property
    def usable(self) -> bool:
        """Whether the card is configured and not check-stopped."""
        return self.config and not self.chkstop

    def usable_queues(self) -> Mask:
        """Return the domains whose queues take requests (ap_queue_usable).

        In a secure execution guest only queues that are bound to it do, and no queue of a CCA card. Kernels before
        that was so let the hardware refuse.
        """
        usable = self.states.usable & self.states.operating - self.states.failed
        if not self.machine.secure_binding:
            return usable
        if not can_be_bound(self.hwinfo):
            return NONE if self.profile.se_cca_excluded else usable
        states = {"any": usable, "bound_here": self.states.bound_here, "bound": self.states.bound_to_guest}
        return usable & states[self.profile.se_usable]

    def all_bound(self) -> Mask:
        """Return the domains whose queues have a driver."""
        bits = 0
        for domains in self.bound.values():
            bits |= domains.bits
        return Mask(bits)

    def bound_otherwise(self) -> Mask:
        """Return the domains whose queues a driver has that is not a default driver."""
        bits = 0
        for driver, domains in self.bound.items():
            if not driver.default:
                bits |= domains.bits
        return Mask(bits)

    def zcrypt_bound(self) -> Mask:
        """Return the domains whose queues are bound to cex4queue."""
        return self.bound.get(self.zcrypt, NONE)

    def configure(self, *, on: bool) -> None:
        """Configure or deconfigure it through SCLP. EOPNOTSUPP where the facility is missing, EIO on refusal.

        The event is sent even without a change; queues follow at the next scan.
        """
        if on != self.config:
            if not self.machine.sclp_configure:
                reason = f"a system under {self.machine.environment} cannot configure adapters itself"
                raise KernelError(errno.EOPNOTSUPP, reason)
            hardware = self.machine.cards.get(self.apid)
            if hardware is None:
                raise KernelError(errno.EIO, f"adapter {self.apid:02x} is no longer plugged")
            hardware.configured = self.config = on
        emit(self, "change", ("CONFIG", str(int(on))))

    def reset_counters(self) -> None:
        """Reset the counters of requests, its own and those of its bound queues."""
        self.requests = 0
        bound = self.all_bound()
        self.queue_requests = {apqi: count for apqi, count in self.queue_requests.items() if apqi not in bound}

    # -- changes of columns ------------------------------------------------------------------------

    def add_queues(self, domains: Mask, *, config: bool, chkstop: bool) -> None:
        """Add queues."""
        self.queues |= domains
        life = self._new_life()
        if life != self.life:
            self.lives.update(dict.fromkeys(domains, life))
        self.states.add(domains, config=config, chkstop=chkstop)

    def drop_queues(self, domains: Mask) -> None:
        """Drop queues that are not bound."""
        self.queues -= domains
        self.states.drop(domains)
        for apqi in domains:
            self.queue_requests.pop(apqi, None)
            self.lives.pop(apqi, None)

    def bind(self, driver: ApDriver, domains: Mask) -> None:
        """Give queues to a driver. zcrypt initialises them, and needs the card for it."""
        self.bound[driver] = self.bound.get(driver, NONE) | domains
        driver.gained(self.apid, domains)
        if driver is self.zcrypt:
            self.states.initialise(domains)
            assert self.zcrypt_card is not None  # noqa: S101 -- cex4queue takes no queue without
            self.zcrypt_card.add(domains)

    def unbind(self, driver: ApDriver, domains: Mask) -> None:
        """Take queues from a driver."""
        self.bound[driver] -= domains
        driver.lost(self.apid, domains)
        for zcrypt_card in self.zcrypt_cards:
            zcrypt_card.remove(domains)
        self._forget_empty()
        self.states.release(domains)

    def probed(self, driver: ApDriver, zcrypt_card: ZcryptCard) -> None:
        """Have a driver (zcrypt_cex4_card_probe). Queues that were bound before do not belong to what it makes."""
        self.driver = driver
        self.zcrypt_card = zcrypt_card
        self.zcrypt_cards.append(zcrypt_card)

    def removed(self) -> None:
        """Have no driver; its queues keep theirs (zcrypt_cex4_card_remove)."""
        self.driver = self.zcrypt_card = None
        self._forget_empty()

    def _forget_empty(self) -> None:
        self.zcrypt_cards = [found for found in self.zcrypt_cards if found.queues or found is self.zcrypt_card]

    def zcrypt_of(self, apqi: int) -> ZcryptCard | None:
        """Return what a queue of zcrypt belongs to."""
        return next((found for found in self.zcrypt_cards if apqi in found.queues), None)

    def uevent_keys(self) -> Keys:
        """Return DEVTYPE, DRIVER, DEV_TYPE, MODALIAS, MODE, as far as they apply (ap_uevent)."""
        keys = [("DEVTYPE", "ap_card")]
        if self.driver:
            keys.append(("DRIVER", self.driver.name))
        keys += [("DEV_TYPE", f"{self.hwtype:04X}"), ("MODALIAS", self.modalias)]
        if self.mode:
            keys.append(("MODE", self.mode))
        return tuple(keys)


@lru_cache
def queue_uevent_keys(driver: str | None, mode: str | None) -> Keys:
    """Return DEVTYPE, DRIVER, MODE of a queue: the same tuple for all that are alike, as thousands are."""
    keys = [("DEVTYPE", "ap_queue"), ("DRIVER", driver), ("MODE", mode)]
    return tuple((key, value) for key, value in keys if value)

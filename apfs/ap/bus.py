"""The AP bus: its devices, their drivers, and scans (drivers/s390/crypto/ap_bus.c).

Queues are handled in rows (several domains of one card), in the order in which Linux would process them one by one.
"""

from __future__ import annotations

import errno
from functools import reduce
from itertools import groupby
from operator import or_
from typing import TYPE_CHECKING, Literal

from apfs.ap.bindings import BindingsEvent
from apfs.ap.card import ApCard
from apfs.ap.driver import ApDriver
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.names import Apqn, parse_card_name
from apfs.ap.qinfo import CARD_HWINFO_MASKS, FIELDS, NEWEST, TAPQ_VALID, Response, compatible_type
from apfs.ap.queue import ApQueue
from apfs.ap.queue_events import QueueEvents, cut
from apfs.ap.queue_states import PollTimer
from apfs.ap.reservation import Reservation
from apfs.ap.zcrypt_card import ZcryptCard
from apfs.errors import KernelError
from apfs.kernel.device import SYS, Bus, Device, Driver, emit
from apfs.kernel.profile import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.ap.hardware import Machine
    from apfs.ap.qinfo import Qci
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys
    from apfs.kernel.profile import Profile
    from apfs.sysfs.tree import Tree

_CARD_IDENTITY, _OLD_CARD_IDENTITY = 0xFFFF0000FF000000, 0xFFFFFFFFFF000000
"""Bits of a TAPQ word that identify a card, so that a change makes it another one: type and facility bits 0 to 15.

Once it was bits 0 to 31.
"""

CONFIG_TIME_MIN, CONFIG_TIME_MAX = 5, 120
POLL_TIMEOUT_NS, POLL_TIMEOUT_ZVM_NS = 250_000, 1_500_000
POLL_TIMEOUT_MAX_NS = 120_000_000_000


class ApRoot:
    """The root device `/sys/devices/ap`. It sends bus-wide events, without DEVTYPE and the like."""

    subsystem = "ap"
    path = f"{SYS}/devices/ap"

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def uevent_keys(self) -> Keys:
        """Return nothing."""
        return ()


class ApBus(Bus):
    """The bus, its devices, and the state behind the attributes of `/sys/bus/ap`."""

    def __init__(self, tree: Tree, machine: Machine, profile: Profile = DEFAULT) -> None:
        super().__init__("ap", tree.journal)
        self.tree = tree
        self.machine = machine
        self.profile = profile
        self.root = ApRoot(tree.journal)
        self.qci: Qci = machine.qci()
        """The host configuration as the last scan found it; as of boot if the bus does not heed it."""
        self.heeds_qci = bool(self.qci.facilities) or (self.qci.supported and not profile.qci_by_flags)
        self.max_adapter, self.max_domain = self.qci.limits()
        self._newest = NEWEST if profile.cex8 else NEWEST - 1
        self._card_mask = CARD_HWINFO_MASKS[profile.card_functions]
        self._card_identity = self._card_mask & (_CARD_IDENTITY if profile.card_change_16bit else _OLD_CARD_IDENTITY)
        self.cards: dict[int, ApCard] = {}
        self._order: list[tuple[int, Mask]] = []  # rows of queues in order of creation
        self.reservation = Reservation()
        self.default_domain = -1
        self.config_time = 30
        self.until_scan = self.config_time
        """Seconds until the scan timer fires, which is set again at the end of each scan."""
        self.poll_thread = False
        self.poll_timeout = POLL_TIMEOUT_ZVM_NS if machine.environment == "zvm" else POLL_TIMEOUT_NS
        self.poll_timer = PollTimer()
        self.scans = 0
        self.removals = 0
        """How often cards or queues were removed."""
        self.bindings_event = BindingsEvent(self.root, profile, self.bindings)
        self._events = QueueEvents(tree.journal, self.bindings_event)
        self.cex4card = ApDriver(self, "cex4card", "zcrypt_cex4", "card", default=True)
        self.cex4queue = ApDriver(self, "cex4queue", "zcrypt_cex4", "queue", default=True)
        self.drivers: list[Driver] = [self.cex4card, self.cex4queue]

    # -- devices -----------------------------------------------------------------------------------

    def queue(self, apid: int, apqi: int) -> ApQueue | None:
        """Return a view of a queue device, None if there is none."""
        card = self.cards.get(apid)
        return ApQueue(card, apqi) if card is not None and apqi in card.queues else None

    def device(self, name: str) -> Device | None:
        """Return the card or queue of that name."""
        apid, apqn = parse_card_name(name), Apqn.parse(name)
        if apid is not None:
            return self.cards.get(apid)
        return None if apqn is None else self.queue(*apqn)

    def rows(self) -> Iterator[tuple[ApCard, Mask]]:
        """Yield all queues, in rows, in order of creation."""
        for apid, domains in list(self._order):
            yield self.cards[apid], domains

    def _queue_drivers(self) -> Iterator[ApDriver]:
        for driver in self.drivers:
            if isinstance(driver, ApDriver) and driver.device_kind == "queue":
                yield driver

    def _pieces(self, card: ApCard, domains: Mask) -> Iterator[Mask]:
        """Yield a row of queues cut where a driver programs a guest between the uevents of two of them."""
        turns = (driver.turns(card.apid, domains) for driver in self._queue_drivers())
        return cut(domains, reduce(or_, turns, NONE))

    def owned_by_host(self, apid: int) -> Mask:
        """Return the domains of an adapter, with or without queues, that cannot be assigned to guests."""
        card = self.cards.get(apid)
        return self.reservation.owned_by_host(apid, card.bound if card else {})

    # -- requests ----------------------------------------------------------------------------------

    def choose_domain(self, apqi: int) -> None:
        """Change the default domain. EINVAL outside 0..`max_domain`, and if `aqmask` does not have it."""
        if not 0 <= apqi <= self.max_domain:
            raise KernelError(errno.EINVAL, f"domain {apqi} is not in 0..{self.max_domain}")
        if apqi not in self.reservation.aqmask:
            raise KernelError(errno.EINVAL, f"aqmask does not reserve domain {apqi} for the host")
        self.default_domain = apqi

    def set_poll_thread(self, *, on: bool) -> None:
        """Start or stop the poll thread; starting it has no effect where interrupts are in use."""
        self.poll_thread = on and not self.machine.interrupts

    def set_poll_timeout(self, nanoseconds: int) -> None:
        """Change the period of the poll timer and start it. EINVAL above 120 s, and in old kernels for 0."""
        if not nanoseconds and not self.profile.poll_kstrto:
            raise KernelError(errno.EINVAL, "0 ns is not a valid period")
        if nanoseconds > POLL_TIMEOUT_MAX_NS:
            raise KernelError(errno.EINVAL, f"{nanoseconds} ns is more than {POLL_TIMEOUT_MAX_NS}")
        self.poll_timeout = nanoseconds
        self.poll_timer.armed = True
        self.poll()

    # -- binding -----------------------------------------------------------------------------------

    def match(self, device: Device, driver: Driver) -> bool:
        """Match by kind of device; hardware types older than CEX4 never get this far."""
        assert isinstance(driver, ApDriver)  # noqa: S101 -- no other driver registers here
        return driver.device_kind == ("card" if isinstance(device, ApCard) else "queue")

    def probe(self, device: Device, driver: Driver) -> None:
        """Bind one device, or ENODEV if masks or override forbid it, or the card lacks what the driver needs."""
        assert isinstance(driver, ApDriver)  # noqa: S101 -- no other driver registers here
        if isinstance(device, ApCard):
            self._probe_card(device, driver)
            return
        assert isinstance(device, ApQueue)  # noqa: S101 -- the only other kind of device
        apqn, card = device.apqn, device.card
        if apqn.apqi not in self.reservation.eligible(apqn.apid, driver):
            reason = f"{apqn} may not go to {driver.name}: {self.reservation.refusal(apqn, driver)}"
            raise KernelError(errno.ENODEV, reason)
        taken = self._offer(card, Mask.of(apqn.apqi), driver)
        if not taken:
            raise KernelError(
                errno.ENODEV, f"{driver.name} binds only queues of cards that are bound to {self.cex4card.name}"
            )
        self._events.send(card, ("bind", taken))
        self.poll()

    def _probe_card(self, card: ApCard, driver: ApDriver) -> None:
        self.bindings_event.armed = True
        if card.mode is None:
            raise KernelError(errno.ENODEV, f"{card.name} has no mode of operation that {driver.name} knows")
        card.probed(driver, ZcryptCard())
        self.bindings_event.check("probe")
        emit(card, "bind")

    def release(self, device: Device) -> None:
        """Take its driver away from a card or a queue."""
        if isinstance(device, ApCard):
            device.removed()
            emit(device, "unbind")
            self.tree.deactivate()
            return
        assert isinstance(device, ApQueue)  # noqa: S101 -- the only other kind of device
        self._events.send(device.card, ("unbind", self._detach(device.card, Mask.of(device.apqi))))
        self.tree.deactivate()

    # -- rows of queues ----------------------------------------------------------------------------

    def _offer(self, card: ApCard, domains: Mask, driver: ApDriver) -> Mask:
        """Bind those of the unbound queues that a driver may and will have, and return them. Sends no uevent."""
        taken = domains & self.reservation.eligible(card.apid, driver)
        if taken:
            self.bindings_event.armed = True
            if driver is self.cex4queue and card.zcrypt_card is None:
                return NONE  # without a mode there is none; with one, zcrypt_queue_register would use it all the same
            card.bind(driver, taken)
            driver.probe(card.apid, taken)
        return taken

    def _offer_around(self, card: ApCard, domains: Mask) -> Mask:
        """Offer unbound queues to all drivers; return those that one of them took. Sends no uevent."""
        unbound = domains
        for driver in self._queue_drivers():
            if unbound:
                unbound -= self._offer(card, unbound, driver)
        return domains - unbound

    def _detach(self, card: ApCard, domains: Mask) -> Mask:
        """Take queues from their drivers; return those that had one. Sends no uevent."""
        detached = NONE
        for driver, bound in list(card.bound.items()):
            leaving = bound & domains
            if leaving:
                driver.remove(card.apid, leaving)
                card.unbind(driver, leaving)
                detached |= leaving
        return detached

    # -- masks -------------------------------------------------------------------------------------

    def change_apmask(self, mask: Mask) -> None:
        """Replace `apmask` and rebind (apmask_commit). EINVAL while there are overrides, EBUSY for a queue in use."""
        self._change_mask("apmask", mask, "aqmask")

    def change_aqmask(self, mask: Mask) -> None:
        """Replace `aqmask` and rebind (aqmask_commit). EINVAL while there are overrides, EBUSY for a queue in use."""
        self._change_mask("aqmask", mask, "apmask")

    def _change_mask(self, name: Literal["apmask", "aqmask"], mask: Mask, other: Literal["apmask", "aqmask"]) -> None:
        reservation = self.reservation
        reservation.check_masks_free()
        gained = {name: mask - getattr(reservation, name), other: getattr(reservation, other)}
        if mask != getattr(reservation, name):
            if self.profile.veto_all:
                gained[other] = ALL
            adapters, domains = gained["apmask"], gained["aqmask"]
            for driver in self._queue_drivers() if self.profile.mask_veto else ():
                if adapters and domains and driver.in_use(adapters, domains):
                    reason = f"a mediated device of {driver.name} has a queue that the new mask reserves for the host"
                    raise KernelError(errno.EBUSY, reason)
            setattr(reservation, name, mask)
            self._revise_bindings()
            if self.profile.mask_uevents:
                emit(self.root, "change", (name.upper(), f"{mask.hex256()}\n"))

    def _revise_bindings(self) -> None:
        """Move the queues whose driver is not of the class that the masks want (ap_bus_revise_bindings).

        A queue without a driver counts as held by a default one: Linux reads the flags of a driver that is not there,
        where lowcore has a bit that is set. So it is offered around when it is not reserved, and else left alone.
        """
        for card, domains in self.rows():
            with_default = domains - card.bound_otherwise()
            misplaced = with_default ^ (domains & self.reservation.by_masks(card.apid))
            for row in self._pieces(card, misplaced):
                detached = told = self._detach(card, row)
                if detached:
                    self.tree.deactivate()
                if len(row) == 1:
                    self._events.send(card, ("unbind", detached))
                    told = NONE
                taken = self._offer_around(card, row)
                self._events.send(card, ("unbind", told), ("bind", taken), were_unbound=row - detached)
        self.poll()

    # -- polling -----------------------------------------------------------------------------------

    def poll(self) -> None:
        """Let the poll timer run out if something has armed it (ap_tasklet_fn)."""
        if self.poll_timer.armed:
            self.poll_timer.armed = False
            for card in self.cards.values():
                card.states.poll(card.all_bound())

    # -- scans -------------------------------------------------------------------------------------

    def set_config_time(self, seconds: int) -> None:
        """Change the scan period and restart the timer with it. EINVAL outside 5..120 seconds."""
        if not CONFIG_TIME_MIN <= seconds <= CONFIG_TIME_MAX:
            raise KernelError(errno.EINVAL, f"{seconds} s is not in {CONFIG_TIME_MIN}..{CONFIG_TIME_MAX}")
        self.config_time = self.until_scan = seconds

    def scan(self) -> None:
        """Look for changes of the hardware and follow them (ap_scan_bus)."""
        old, self.qci = self.qci, self.machine.qci() if self.heeds_qci else self.qci
        changed = old != self.qci
        if changed:
            if self.qci.adapters - old.adapters or self.qci.domains - old.domains:
                self.bindings_event.armed = True
            for driver in self._queue_drivers():
                driver.on_config_changed(self.qci, old)
        if self.default_domain < 0:
            self._select_domain()
        for apid in sorted(self.cards.keys() | self.machine.cards.keys()):
            if apid <= self.max_adapter:
                self._scan_adapter(apid)
        if changed:
            for driver in self._queue_drivers():
                driver.on_scan_complete(self.qci, old)
        self.scans += 1
        if self.scans == 1:
            emit(self.root, "change", ("INITSCAN", "done"))
        self.bindings_event.check("first scan" if self.scans == 1 else "scan")
        self.until_scan = self.config_time
        self.poll()

    def force_rescan(self) -> bool:
        """Scan for a request that found no queue; return whether it may be worth another try (ap_bus_force_rescan)."""
        before = self.qci
        self.scan()
        self.tree.nodes.stir()  # requests are made by reading, which changes nothing as a rule
        return self.qci != before

    def _select_domain(self) -> None:
        """Choose the lowest usable domain that some usable adapter of zcrypt has (ap_select_domain)."""
        for apqi in self.machine.configuration.domains & self.reservation.aqmask & Mask.up_to(self.max_domain):
            for apid in self.machine.configuration.adapters & self.reservation.apmask & Mask.up_to(self.max_adapter):
                if self.machine.tapq(apid, apqi)[0] == Response.NORMAL:
                    self.default_domain = apqi
                    return

    def _scan_adapter(self, apid: int) -> None:
        """Remove, create or update one card and its queues (ap_scan_adapter)."""
        domains = self.machine.domains_of(apid) & Mask.up_to(self.max_domain)
        card = self.cards.get(apid)
        response, word = self.machine.tapq(apid, domains.lowest()) if domains else (Response.Q_NOT_AVAIL, 0)
        hwtype = compatible_type(FIELDS["at"].get(word), self._newest, qact="QACT" in self.qci.facilities)
        if response not in TAPQ_VALID or hwtype is None:
            if card:
                self._remove_card(card)
            return
        config = response != Response.DECONFIGURED
        chkstop = response == Response.CHECKSTOPPED and self.profile.chkstop
        if card and (card.hwinfo ^ word) & self._card_identity:
            self._remove_card(card)
            card = None
        if card is None:
            card = ApCard(self, apid, word & self._card_mask, hwtype, config=config, chkstop=chkstop)
            self.cards[apid] = card
            emit(card, "add")
            if self.autoprobe:
                self.attach(card)
        else:
            card.chkstop = chkstop
            if card.config != config:
                card.config = config
                emit(card, "change", ("CONFIG", str(int(config))))
        self._scan_queues(card, domains, config=config, chkstop=chkstop)

    def _scan_queues(self, card: ApCard, domains: Mask, *, config: bool, chkstop: bool) -> None:
        """Remove, create and update the queues of a card, in ascending order (ap_scan_domains)."""
        gone, new = card.queues - domains, domains - card.queues
        reconfigured = card.states.follow(card.queues & domains, config=config, chkstop=chkstop)
        # In rows of what has the same fate: usually one, however many queues are in it.
        for (goes, comes), row in groupby(gone | reconfigured | new, lambda apqi: (apqi in gone, apqi in new)):
            queues = Mask.from_numbers(row)
            if goes:
                self._remove_queues(card, queues)
            elif comes:
                self._create_queues(card, queues, config=config, chkstop=chkstop)
            else:
                for apqi in queues:
                    emit(ApQueue(card, apqi), "change", ("CONFIG", str(int(config))))

    def _create_queues(self, card: ApCard, domains: Mask, *, config: bool, chkstop: bool) -> None:
        for row in self._pieces(card, domains):
            self._order.append((card.apid, row))
            card.add_queues(row, config=config, chkstop=chkstop)
            added = row
            if len(row) == 1:
                self._events.send(card, ("add", row))
                added = NONE
            bound = self._offer_around(card, row) if self.autoprobe else NONE
            if config and not chkstop and self.profile.operating_at_creation:
                card.states.initialise(row)
            self._events.send(card, ("add", added), ("bind", bound))

    def _remove_queues(self, card: ApCard, domains: Mask) -> None:
        for row in self._pieces(card, domains):
            self._events.send(card, ("unbind", self._detach(card, row)), ("remove", row))
        card.drop_queues(domains)
        self.removals += 1
        self.reservation.forget(card.apid, domains)
        rows = ((apid, row - domains if apid == card.apid else row) for apid, row in self._order)
        self._order = [(apid, row) for apid, row in rows if row]
        self.tree.deactivate()

    def _remove_card(self, card: ApCard) -> None:
        for _, domains in [row for row in self.rows() if row[0] is card]:
            self._remove_queues(card, domains)
        if card.driver:
            card.removed()
            emit(card, "unbind")
        emit(card, "remove")
        del self.cards[card.apid]
        self.removals += 1
        self.tree.deactivate()

    # -- bindings ----------------------------------------------------------------------------------

    def bindings(self) -> tuple[int, int, bool]:
        """Return queues with a driver, all queues, and whether the first is all of them after a finished scan."""
        total = sum(len(card.queues) for card in self.cards.values())
        bound = sum(len(card.all_bound()) for card in self.cards.values())
        return bound, total, bound == total and self.scans > 0

    # -- drivers -----------------------------------------------------------------------------------

    def register(self, driver: ApDriver) -> None:
        """Add a driver and offer it all unbound devices (ap_driver_register)."""
        self.drivers.append(driver)
        if self.autoprobe:
            for card, domains in self.rows():
                taken = self._offer(card, domains - card.all_bound(), driver)
                self._events.send(card, ("bind", taken), were_unbound=taken)
        driver.announce()
        self.bindings_event.check("register")
        self.poll()

    def unregister(self, driver: ApDriver) -> None:
        """Take a driver away; its queues stay unbound. The one that was bound last goes first (driver_detach)."""
        for apid, domains in driver.last_bound_first():
            card = self.cards[apid]
            self._detach(card, domains)
            for apqi in reversed(list(domains)):
                self._events.send(card, ("unbind", Mask.of(apqi)))
        for card in self.cards.values():
            card.bound.pop(driver, None)
        self.drivers.remove(driver)
        driver.retire()
        self.tree.deactivate()

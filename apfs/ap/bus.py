"""The AP bus: scans, reservation masks, binding of cards and queues (drivers/s390/crypto/ap_bus.c).

Queues are handled in rows, some domains of one card at a time, in the order in which the bus would come to them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.card import ApCard, queue_uevent_keys
from apfs.ap.driver import ApDriver
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.qinfo import CARD_HWINFO_MASK, FIELDS, NEWEST, OLDEST, TAPQ_VALID, Apqn, Response
from apfs.ap.queue import ApQueue
from apfs.errors import KernelError
from apfs.journal.records import Uevent
from apfs.kernel.device import SYS, Bus, Device, Driver, emit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.ap.hardware import Machine
    from apfs.ap.qinfo import Qci
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys
    from apfs.sysfs.tree import Tree

_MODE_BITS = 0x1C00_0000_0000_0000
_CARD_IDENTITY = 0xFFFF0000FF000000 & CARD_HWINFO_MASK
"""Bits of a card's record whose change makes it another card: type and facility bits 0 to 15."""

POLL_TIMEOUT_NS, POLL_TIMEOUT_ZVM_NS = 250_000, 1_500_000


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

    def __init__(self, tree: Tree, machine: Machine) -> None:
        super().__init__("ap", tree.journal)
        self.tree = tree
        self.machine = machine
        self.root = ApRoot(tree.journal)
        self.qci: Qci = machine.qci()
        """The host configuration as the last scan found it."""
        self.max_adapter, self.max_domain = self.qci.limits()
        self.cards: dict[int, ApCard] = {}
        self._order: list[tuple[int, Mask]] = []  # rows of queues in order of creation
        self.apmask = ALL
        self.aqmask = ALL
        self.masks_in_use = False
        """Whether the masks were not both all ones after the last change: then overrides are refused."""
        self.override_count = 0
        """How many overrides were set and not cleared; a queue unplugged with one stays counted, as in Linux."""
        self.default_domain = -1
        self.config_time = 30
        self._until_scan = self.config_time
        self.poll_thread = False
        self.poll_timeout = POLL_TIMEOUT_ZVM_NS if machine.environment == "zvm" else POLL_TIMEOUT_NS
        self.scans = 0
        self.bindings_complete_count = 0
        self._bindings_armed = True
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
        apqn = Apqn.parse(name)
        if apqn is not None:
            return self.queue(*apqn)
        return next((card for card in self.cards.values() if card.name == name), None)

    def rows(self) -> Iterator[tuple[ApCard, Mask]]:
        """Yield all queues, in rows, in order of creation."""
        for apid, domains in list(self._order):
            yield self.cards[apid], domains

    def _queue_drivers(self) -> Iterator[ApDriver]:
        for driver in self.drivers:
            if isinstance(driver, ApDriver) and driver.device_kind == "queue":
                yield driver

    # -- reservation -------------------------------------------------------------------------------

    def reserved(self, apid: int) -> Mask:
        """Return the domains that the masks reserve for default drivers on an adapter."""
        return self.aqmask if apid in self.apmask else NONE

    def reserved_for_host(self, apid: int) -> Mask:
        """Return the domains of an adapter that vfio_ap may not have (ap_owned_by_def_drv).

        A queue that is bound and has an override, whatever it says, belongs to the driver that it is bound to; the
        masks decide for all others, whether they exist or not.
        """
        owned = self.reserved(apid)
        card = self.cards.get(apid)
        if card and card.overrides:
            overridden = Mask.from_numbers(card.overrides)
            for driver, bound in card.bound.items():
                owned = owned | overridden & bound if driver.default else owned - (overridden & bound)
        return owned

    def _acceptable(self, card: ApCard, driver: ApDriver) -> Mask:
        """Return the domains whose queues may go to a driver (ap_device_probe)."""
        reserved = self.reserved(card.apid)
        acceptable = reserved if driver.default else ~reserved
        for apqi, name in card.overrides.items():
            acceptable = acceptable.with_(apqi) if name == driver.name else acceptable.without(apqi)
        return acceptable

    def match(self, device: Device, driver: Driver) -> bool:
        """Match by kind of device; hardware types older than CEX4 never get this far."""
        assert isinstance(driver, ApDriver)  # noqa: S101 -- no other driver registers here
        return driver.device_kind == ("card" if isinstance(device, ApCard) else "queue")

    def probe(self, device: Device, driver: Driver) -> None:
        """Bind one device, or ENODEV if masks or override forbid it or the card has no mode of operation."""
        assert isinstance(driver, ApDriver)  # noqa: S101 -- no other driver registers here
        if isinstance(device, ApCard):
            self._probe_card(device, driver)
            return
        assert isinstance(device, ApQueue)  # noqa: S101 -- the only other kind of device
        if device.apqi not in self._acceptable(device.card, driver):
            owner = (
                "an override names another driver"
                if device.apqi in device.card.overrides
                else self._mask_reason(driver)
            )
            raise KernelError(errno.ENODEV, f"{device.apqn} may not go to {driver.name}: {owner}")
        if not self._offer(device.card, Mask.of(device.apqi), driver):
            raise KernelError(errno.ENODEV, f"{device.card.name} has no mode of operation that {driver.name} knows")

    @staticmethod
    def _mask_reason(driver: ApDriver) -> str:
        return "apmask and aqmask do not reserve it" if driver.default else "apmask and aqmask reserve it for zcrypt"

    def _probe_card(self, card: ApCard, driver: ApDriver) -> None:
        self._bindings_armed = True
        if card.mode is None:
            raise KernelError(errno.ENODEV, f"{card.name} has no mode of operation that {driver.name} knows")
        card.driver = driver
        emit(card, "bind")

    def release(self, device: Device) -> None:
        """Take its driver away from a card or a queue."""
        if isinstance(device, ApCard):
            device.driver = None
            emit(device, "unbind")
            self.tree.deactivate()
            return
        assert isinstance(device, ApQueue)  # noqa: S101 -- the only other kind of device
        self._detach(device.card, Mask.of(device.apqi))
        self._tell(device.card, Mask.of(device.apqi), "unbind")
        self.tree.deactivate()

    # -- rows of queues ----------------------------------------------------------------------------

    def _offer(self, card: ApCard, domains: Mask, driver: ApDriver, *, tell: bool = True) -> Mask:
        """Bind those of the unbound queues that a driver may and will have, and return them."""
        taken = domains & self._acceptable(card, driver)
        if taken:
            self._bindings_armed = True
            if driver is self.cex4queue:
                if card.mode is None:
                    return NONE
                self._start_operation(card, taken)
            card.bound[driver] = card.bound.get(driver, NONE) | taken
            driver.probe(card, taken)
            if tell:
                self._tell(card, taken, "bind")
        return taken

    def _offer_to_all(self, card: ApCard, domains: Mask, *, tell: bool = True) -> None:
        for driver in self._queue_drivers():
            if not domains:
                break
            domains -= self._offer(card, domains, driver, tell=tell)

    def _start_operation(self, card: ApCard, domains: Mask) -> None:
        """Initialise queues for zcrypt: reset, interrupts on, software-online."""
        card.operating |= domains
        card.queue_online |= domains
        self._start_interrupts(card, (domains & card.queue_config) - card.queue_chkstop)

    def _start_interrupts(self, card: ApCard, domains: Mask) -> None:
        """Bring usable queues of zcrypt through their reset to the point where they interrupt."""
        card.resetting -= domains
        if self.machine.interrupts:
            card.interrupts |= domains

    def _detach(self, card: ApCard, domains: Mask) -> None:
        """Take queues from their drivers; each ends with a zeroizing reset, which turns its interrupt off."""
        for driver, bound in list(card.bound.items()):
            leaving = bound & domains
            if leaving:
                driver.remove(card, leaving)
                card.bound[driver] = bound - leaving
        card.operating -= domains
        card.interrupts -= domains

    def _tell(self, card: ApCard, domains: Mask, *actions: str) -> None:
        """Send uevents of a row of queues, queue by queue. Only `bind` and later ones know the driver."""
        if self.journal.muted:
            return
        for apqi in domains:
            queue = ApQueue(card, apqi)
            driver = queue.driver
            for action in actions:
                named = driver.name if driver and action not in ("add", "unbind") else None
                keys = queue_uevent_keys(named, card.mode)
                self.journal.add(Uevent(action, queue.path.removeprefix(SYS), "ap", keys))

    # -- masks -------------------------------------------------------------------------------------

    def change_masks(self, *, apmask: Mask | None = None, aqmask: Mask | None = None) -> None:
        """Replace one of the masks (apmask_commit, aqmask_commit). EBUSY if a driver cannot give a queue back."""
        new_apmask = self.apmask if apmask is None else apmask
        new_aqmask = self.aqmask if aqmask is None else aqmask
        adapters = ALL if apmask is None else new_apmask - self.apmask
        domains = ALL if aqmask is None else new_aqmask - self.aqmask
        if adapters and domains:
            for driver in self._queue_drivers():
                if driver.in_use(adapters, domains):
                    reason = f"a mediated device of {driver.name} has a queue that the new mask reserves for the host"
                    raise KernelError(errno.EBUSY, reason)
        self.apmask, self.aqmask = new_apmask, new_aqmask
        self.masks_in_use = not (new_apmask == ALL and new_aqmask == ALL)
        self._rebind()
        if apmask is not None:
            emit(self.root, "change", ("APMASK", f"{new_apmask.hex256()}\n"))
        if aqmask is not None:
            emit(self.root, "change", ("AQMASK", f"{new_aqmask.hex256()}\n"))

    def _rebind(self) -> None:
        """Move queues whose class of driver disagrees with the masks (ap_bus_revise_bindings).

        An unbound queue counts as held by a non-default driver: it is offered around when it has become reserved.
        """
        for card, domains in self.rows():
            reserved = self.reserved(card.apid)
            default = NONE
            for driver, bound in card.bound.items():
                if driver.default:
                    default |= bound
            wrong = (default - reserved | (reserved - default)) & domains
            if not wrong:
                continue
            bound = card.all_bound() & wrong
            if bound:
                self._detach(card, bound)
                self.tree.deactivate()
            self._offer_to_all(card, wrong, tell=False)
            if not self.journal.muted:
                taken = card.all_bound()
                for apqi in wrong:
                    one = Mask.of(apqi)
                    if apqi in bound:
                        self._tell(card, one, "unbind")
                    if apqi in taken:
                        self._tell(card, one, "bind")

    # -- scans -------------------------------------------------------------------------------------

    def tick(self, seconds: int) -> None:
        """Let time pass: the bus scans every `config_time` seconds."""
        while seconds >= self._until_scan:
            seconds -= self._until_scan
            self.scan()
        self._until_scan -= seconds

    @property
    def until_scan(self) -> int:
        """Seconds until the scan timer fires."""
        return self._until_scan

    def set_config_time(self, seconds: int) -> None:
        """Change the scan period and restart the timer with it."""
        self.config_time = self._until_scan = seconds

    def scan(self) -> None:
        """Look for changes of the hardware and follow them (ap_scan_bus)."""
        old, self.qci = self.qci, self.machine.qci()
        changed = old != self.qci
        if changed:
            if self.qci.adapters - old.adapters or self.qci.domains - old.domains:
                self._bindings_armed = True
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
        self.check_bindings_complete()
        self._until_scan = self.config_time

    def _select_domain(self) -> None:
        """Choose the lowest usable domain that some usable adapter of zcrypt has (ap_select_domain)."""
        for apqi in self.machine.configuration.domains & self.aqmask & Mask.up_to(self.max_domain):
            for apid in self.machine.configuration.adapters & self.apmask & Mask.up_to(self.max_adapter):
                if self.machine.tapq(apid, apqi)[0] == Response.NORMAL:
                    self.default_domain = apqi
                    return

    def _scan_adapter(self, apid: int) -> None:
        """Remove, create or update one card and its queues (ap_scan_adapter)."""
        domains = self.machine.domains_of(apid) & Mask.up_to(self.max_domain)
        card = self.cards.get(apid)
        response, word = self.machine.tapq(apid, domains.lowest()) if domains else (Response.Q_NOT_AVAIL, 0)
        hwtype = self._hwtype(FIELDS["at"].get(word))
        if response not in TAPQ_VALID or hwtype is None:
            if card:
                self._remove_card(card)
            return
        config, chkstop = response != Response.DECONFIGURED, response == Response.CHECKSTOPPED
        if card and (card.hwinfo ^ word) & _CARD_IDENTITY:
            self._remove_card(card)
            card = None
        if card is None:
            card = ApCard(self, apid, word & CARD_HWINFO_MASK, hwtype, config=config, chkstop=chkstop)
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

    def _hwtype(self, raw: int) -> int | None:
        """Return the type that Linux treats a card as: unknown newer ones as CEX8, if the hardware plays along."""
        if raw < OLDEST:
            return None
        if raw <= NEWEST:
            return raw
        return NEWEST if "QACT" in self.qci.facilities else None

    def _scan_queues(self, card: ApCard, domains: Mask, *, config: bool, chkstop: bool) -> None:
        """Remove, create and update the queues of a card, in ascending order (ap_scan_domains)."""
        gone, new = card.queues - domains, domains - card.queues
        kept = card.queues & domains
        reconfigured = kept - card.queue_config if config else kept & card.queue_config
        usable_before = card.queue_config - card.queue_chkstop
        card.queue_config = card.queue_config | kept if config else card.queue_config - kept
        card.queue_chkstop = card.queue_chkstop | kept if chkstop else card.queue_chkstop - kept
        self._start_interrupts(
            card, kept & (card.queue_config - card.queue_chkstop - usable_before) & card.zcrypt_bound()
        )
        if not gone and not reconfigured:
            if new:
                self._create_queues(card, new, config=config, chkstop=chkstop)
            return
        for apqi in gone | reconfigured | new:
            if apqi in gone:
                self._remove_queues(card, Mask.of(apqi))
            elif apqi in new:
                self._create_queues(card, Mask.of(apqi), config=config, chkstop=chkstop)
            else:
                emit(ApQueue(card, apqi), "change", ("CONFIG", str(int(config))))

    def _create_queues(self, card: ApCard, domains: Mask, *, config: bool, chkstop: bool) -> None:
        self._order.append((card.apid, domains))
        card.queues |= domains
        card.resetting |= domains  # each queue starts with a reset, which only a zcrypt driver polls to its end
        if config:
            card.queue_config |= domains
        if chkstop:
            card.queue_chkstop |= domains
        if self.autoprobe:
            self._offer_to_all(card, domains, tell=False)
        if config and not chkstop:
            card.operating |= domains
        if not self.journal.muted:
            bound = card.all_bound()
            for apqi in domains:
                self._tell(card, Mask.of(apqi), *(("add", "bind") if apqi in bound else ("add",)))

    def _remove_queues(self, card: ApCard, domains: Mask) -> None:
        bound = card.all_bound() & domains
        self._detach(card, domains)
        for apqi in domains:
            self._tell(card, Mask.of(apqi), *(("unbind", "remove") if apqi in bound else ("remove",)))
            card.queue_requests.pop(apqi, None)
            card.overrides.pop(apqi, None)
        for column in ("queues", "resetting", "queue_config", "queue_chkstop", "queue_online"):
            setattr(card, column, getattr(card, column) - domains)
        rows = ((apid, row - domains if apid == card.apid else row) for apid, row in self._order)
        self._order = [(apid, row) for apid, row in rows if row]
        self.tree.deactivate()

    def _remove_card(self, card: ApCard) -> None:
        for _, domains in [row for row in self.rows() if row[0] is card]:
            self._remove_queues(card, domains)
        if card.driver:
            card.driver = None
            emit(card, "unbind")
        emit(card, "remove")
        del self.cards[card.apid]
        self.tree.deactivate()

    # -- bindings ----------------------------------------------------------------------------------

    def bindings(self) -> tuple[int, int, bool]:
        """Return queues with a driver, all queues, and whether the first is all of them after a finished scan."""
        total = sum(len(card.queues) for card in self.cards.values())
        bound = sum(len(card.all_bound()) for card in self.cards.values())
        return bound, total, bound == total and self.scans > 0

    def check_bindings_complete(self) -> None:
        """Tell once that every queue has a driver, until something re-arms the event (ap_check_bindings_complete)."""
        if self._bindings_armed and self.bindings()[2]:
            self._bindings_armed = False
            self.bindings_complete_count += 1
            count = str(self.bindings_complete_count)
            emit(self.root, "change", ("BINDINGS", "complete"), ("COMPLETECOUNT", count))

    # -- drivers -----------------------------------------------------------------------------------

    def register(self, driver: ApDriver) -> None:
        """Add a driver and offer it all unbound devices (ap_driver_register)."""
        self.drivers.append(driver)
        if self.autoprobe:
            for card, domains in self.rows():
                self._offer(card, domains - card.all_bound(), driver)
        self.check_bindings_complete()

    def unregister(self, driver: ApDriver) -> None:
        """Take a driver away; its queues stay unbound."""
        for card, domains in self.rows():
            leaving = domains & card.bound.get(driver, NONE)
            if leaving:
                self._detach(card, leaving)
                self._tell(card, leaving, "unbind")
        for card in self.cards.values():
            card.bound.pop(driver, None)
        self.drivers.remove(driver)
        self.tree.deactivate()

"""A second, deliberately simple-minded opinion about one host: AP bus, vfio_ap driver and mediated devices.

It was written from the description of the behaviour alone, without a look at the emulator, so that agreement between
the two means something. Everything is a set of plain numbers, a dictionary or a loop; nothing is fast or clever, and
nothing is parsed: callers pass numbers and sets.

Every operation returns 0 or a positive error number and never raises. An operation on something that has no file in
sysfs (an unknown mediated device, the override of an absent queue) returns ENOENT, as opening that file would.

Left out on purpose: deconfigured and check-stopped cards, cards of different types, and the control domains of a guest
(no file shows them). A reset fails in one case only: when the hardware has gone, but no scan has noticed yet.
"""

import errno
from dataclasses import dataclass, field

DEFAULT_DRIVER = "cex4queue"
VFIO_DRIVER = "vfio_ap"
DRIVERS = (DEFAULT_DRIVER, VFIO_DRIVER)  # order of registration: drivers are tried in this order

MASK_BITS = 256
ALL_NUMBERS = frozenset(range(MASK_BITS))
ALL_INSTANCES = 65536
PAGE_LIMIT = 4095

Queue = tuple[int, int]  # adapter, domain


@dataclass
class NaiveMdev:
    """What one mediated device remembers."""

    adapters: set[int] = field(default_factory=set)
    domains: set[int] = field(default_factory=set)
    control: set[int] = field(default_factory=set)
    guest_adapters: set[int] = field(default_factory=set)
    guest_domains: set[int] = field(default_factory=set)
    new_adapters: set[int] = field(default_factory=set)  # gained by the host in the running scan, not filtered yet
    new_domains: set[int] = field(default_factory=set)
    running: bool = False  # a guest has it open


class NaiveHost:
    """One host: all queues on the default driver, vfio_ap loaded, both masks all ones."""

    def __init__(
        self, adapters: set[int], domains: set[int], control_domains: set[int], max_adapter: int, max_domain: int
    ) -> None:
        self.max_adapter = max_adapter
        self.max_domain = max_domain

        # What the hardware has now, and what the last scan saw of it.
        self.real_adapters = set(adapters)
        self.real_domains = set(domains)
        self.real_control = set(control_domains)
        self.host_adapters: set[int] = set()
        self.host_domains: set[int] = set()
        self.host_control: set[int] = set()

        self.apmask = set(ALL_NUMBERS)
        self.aqmask = set(ALL_NUMBERS)
        self.masks_are_special = False  # not all ones: overrides are refused
        self.override_count = 0  # not zero: mask changes are refused; only ever wrong upwards, see _remove_queue

        self.cards: set[int] = set()
        self.queues: dict[Queue, str | None] = {}  # in order of creation; the value is the driver
        self.overrides: dict[Queue, str] = {}  # only the ones that are set
        self.mdevs: dict[str, NaiveMdev] = {}  # in order of creation
        self.failed_resets: set[Queue] = set()  # queues of vfio_ap whose last reset found no hardware

        self.scan()

    # ---- mediated devices -------------------------------------------------------------------------------------------

    def create(self, uuid: str) -> int:
        """Make a mediated device without any resources."""
        if len(uuid) != len("00000000-0000-0000-0000-000000000000"):
            return errno.EINVAL
        for position, character in enumerate(uuid):
            wanted = "-" if position in (8, 13, 18, 23) else "0123456789abcdefABCDEF"
            if character not in wanted:
                return errno.EINVAL
        if uuid.lower() in self.mdevs:
            return errno.EEXIST
        if self.available_instances() == 0:
            return errno.EUSERS
        self.mdevs[uuid.lower()] = NaiveMdev()
        return 0

    def remove(self, uuid: str) -> int:
        """Remove a mediated device.

        Where a kernel would let the writer wait for the guest, the emulator refuses with EBUSY; this is the one place
        where this oracle follows the emulator instead of the kernel.
        """
        if uuid not in self.mdevs:
            return errno.ENOENT
        if self.mdevs[uuid].running:
            return errno.EBUSY
        self._reset_all(self.mdevs[uuid])
        del self.mdevs[uuid]
        return 0

    def open_guest(self, uuid: str) -> int:
        """Start a guest on the mediated device; nothing is filtered."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        self.mdevs[uuid].running = True
        return 0

    def close_guest(self, uuid: str) -> int:
        """Stop the guest; the guest matrix stays as it is."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        if self.mdevs[uuid].running:
            self._reset_all(self.mdevs[uuid])
        self.mdevs[uuid].running = False
        return 0

    def assign_adapter(self, uuid: str, number: int) -> int:
        """Add an adapter to the matrix."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        mdev = self.mdevs[uuid]
        if number > self.max_adapter:
            return errno.ENODEV
        if number in mdev.adapters:
            return 0
        refusal = self._refusal(uuid, mdev.adapters | {number}, mdev.domains)
        if refusal:
            return refusal
        mdev.adapters.add(number)
        self._filter(mdev)
        return 0

    def assign_domain(self, uuid: str, number: int) -> int:
        """Add a usage domain to the matrix."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        mdev = self.mdevs[uuid]
        if number > self.max_domain:
            return errno.ENODEV
        if number in mdev.domains:
            return 0
        refusal = self._refusal(uuid, mdev.adapters, mdev.domains | {number})
        if refusal:
            return refusal
        mdev.domains.add(number)
        self._filter(mdev)
        return 0

    def assign_control_domain(self, uuid: str, number: int) -> int:
        """Add a control domain; these are neither exclusive nor checked against the host."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        if number > self.max_domain:
            return errno.ENODEV
        self.mdevs[uuid].control.add(number)
        return 0

    def unassign_adapter(self, uuid: str, number: int) -> int:
        """Take an adapter away from the matrix and from the guest. Nothing filtered out earlier comes back."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        mdev = self.mdevs[uuid]
        if number > self.max_adapter:
            return errno.ENODEV
        if number in mdev.adapters:
            self._take_adapter_from_guest(mdev, number)
            mdev.adapters.discard(number)
        return 0

    def unassign_domain(self, uuid: str, number: int) -> int:
        """Take a usage domain away from the matrix and from the guest. Nothing filtered out earlier comes back."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        mdev = self.mdevs[uuid]
        if number > self.max_domain:
            return errno.ENODEV
        if number in mdev.domains:
            self._take_domain_from_guest(mdev, number)
            mdev.domains.discard(number)
        return 0

    def unassign_control_domain(self, uuid: str, number: int) -> int:
        """Take a control domain away."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        if number > self.max_domain:
            return errno.ENODEV
        self.mdevs[uuid].control.discard(number)
        return 0

    def ap_config(self, uuid: str, adapters: set[int], domains: set[int], control: set[int]) -> int:
        """Replace the whole matrix at once, or refuse and change nothing. Numbers out of range are noticed last."""
        if uuid not in self.mdevs:
            return errno.ENOENT
        mdev = self.mdevs[uuid]
        refusal = self._refusal(uuid, adapters, domains)
        if refusal:
            return refusal
        for number in adapters:
            if number > self.max_adapter:
                return errno.ENODEV
        for number in domains | control:
            if number > self.max_domain:
                return errno.ENODEV
        for number in mdev.adapters - adapters:
            self._take_adapter_from_guest(mdev, number)
        for number in mdev.domains - domains:
            self._take_domain_from_guest(mdev, number)
        mdev.adapters = set(adapters)
        mdev.domains = set(domains)
        mdev.control = set(control)
        self._filter(mdev)
        return 0

    def _refusal(self, uuid: str, adapters: set[int], domains: set[int]) -> int:
        """Why the mediated device may not have this product: reserved for the host first, then taken by another."""
        for adapter in adapters:
            for domain in domains:
                if self._owned_by_host((adapter, domain)):
                    return errno.EADDRNOTAVAIL
        for other_uuid, other in self.mdevs.items():
            if other_uuid == uuid:
                continue
            for adapter in adapters:
                for domain in domains:
                    if adapter in other.adapters and domain in other.domains:
                        return errno.EADDRINUSE
        return 0

    def _owned_by_host(self, queue: Queue) -> bool:
        """Whether the default drivers own the queue: the driver tells where an override is set, else the masks."""
        driver = self.queues.get(queue)
        if driver is not None and queue in self.overrides:
            return driver == DEFAULT_DRIVER
        return self._masks_reserve(queue)

    def _masks_reserve(self, queue: Queue) -> bool:
        adapter, domain = queue
        return adapter in self.apmask and domain in self.aqmask

    def _filter(self, mdev: NaiveMdev) -> None:
        """Work out afresh what a guest may have: one unusable queue costs the whole adapter, never the domain."""
        before = mdev.guest_adapters
        lost = set()
        mdev.guest_adapters = set()
        mdev.guest_domains = set()
        for domain in mdev.domains:
            if domain in self.host_domains:
                mdev.guest_domains.add(domain)
        for adapter in mdev.adapters:
            if adapter not in self.host_adapters:
                continue
            usable = True
            for domain in mdev.guest_domains:
                queue = (adapter, domain)
                if self.queues.get(queue) != VFIO_DRIVER or queue in self.failed_resets:
                    usable = False
            if usable:
                mdev.guest_adapters.add(adapter)
            elif adapter in before:
                lost.add(adapter)
        for adapter in lost:
            self._reset_adapter(mdev, adapter)

    def _take_adapter_from_guest(self, mdev: NaiveMdev, adapter: int) -> None:
        if adapter in mdev.guest_adapters:
            self._reset_adapter(mdev, adapter)
            mdev.guest_adapters.discard(adapter)

    def _take_domain_from_guest(self, mdev: NaiveMdev, domain: int) -> None:
        if domain in mdev.guest_domains:
            for adapter in mdev.guest_adapters:
                self._reset((adapter, domain))
            mdev.guest_domains.discard(domain)

    def _reset_adapter(self, mdev: NaiveMdev, adapter: int) -> None:
        for domain in mdev.guest_domains:
            self._reset((adapter, domain))

    def _reset_all(self, mdev: NaiveMdev) -> None:
        for adapter in mdev.adapters:
            for domain in mdev.domains:
                self._reset((adapter, domain))

    def _reset(self, queue: Queue) -> None:
        """Reset a queue if vfio_ap has it, and remember how it went."""
        if self.queues.get(queue) != VFIO_DRIVER:
            return
        adapter, domain = queue
        if adapter in self.real_adapters and domain in self.real_domains:
            self.failed_resets.discard(queue)
        else:
            self.failed_resets.add(queue)

    # ---- masks and overrides ----------------------------------------------------------------------------------------

    def set_apmask(self, mask: set[int]) -> int:
        """Write the adapter mask; `mask` is what the text comes to."""
        if self.override_count > 0:
            return errno.EINVAL
        if mask == self.apmask:
            return 0
        for adapter in mask - self.apmask:
            for mdev in self.mdevs.values():
                if adapter in mdev.adapters and mdev.domains:
                    return errno.EBUSY
        self.apmask = set(mask)
        self._masks_changed()
        return 0

    def set_aqmask(self, mask: set[int]) -> int:
        """Write the domain mask; `mask` is what the text comes to."""
        if self.override_count > 0:
            return errno.EINVAL
        if mask == self.aqmask:
            return 0
        for domain in mask - self.aqmask:
            for mdev in self.mdevs.values():
                if domain in mdev.domains and mdev.adapters:
                    return errno.EBUSY
        self.aqmask = set(mask)
        self._masks_changed()
        return 0

    def _masks_changed(self) -> None:
        """Move every queue that now is with the wrong kind of driver.

        A queue without a driver is treated as if a default driver held it: it moves when the masks give it away and
        otherwise is left alone.
        """
        self.masks_are_special = self.apmask != ALL_NUMBERS or self.aqmask != ALL_NUMBERS
        for queue in list(self.queues):
            is_with_default = self.queues[queue] != VFIO_DRIVER
            if is_with_default != self._masks_reserve(queue):
                self._detach(queue)
                self._offer(queue)

    def driver_override(self, adapter: int, domain: int, name: str) -> int:
        """Pin a queue to a driver by name; an empty name lets go. The queue is not moved."""
        queue = (adapter, domain)
        if queue not in self.queues:
            return errno.ENOENT
        if self.masks_are_special:
            return errno.EINVAL
        had_one = queue in self.overrides
        if name:
            self.overrides[queue] = name
            if not had_one:
                self.override_count += 1
        elif had_one:
            del self.overrides[queue]
            self.override_count -= 1
        return 0

    # ---- drivers ----------------------------------------------------------------------------------------------------

    def bind(self, driver: str, adapter: int, domain: int) -> int:
        """Give a queue that has no driver to this one."""
        queue = (adapter, domain)
        if driver not in DRIVERS:
            return errno.ENOENT
        if queue not in self.queues:
            return errno.ENODEV
        if self.queues[queue] is not None:
            return errno.EBUSY
        if not self._accepts(driver, queue):
            return errno.ENODEV
        self._attach(driver, queue)
        return 0

    def unbind(self, driver: str, adapter: int, domain: int) -> int:
        """Take a queue away from this driver; no other driver gets it."""
        queue = (adapter, domain)
        if driver not in DRIVERS:
            return errno.ENOENT
        if self.queues.get(queue) != driver:
            return errno.ENODEV
        self._detach(queue)
        return 0

    def drivers_probe(self, adapter: int, domain: int) -> int:
        """Offer a queue to all drivers; it is no error when none takes it or it has one already."""
        queue = (adapter, domain)
        if queue not in self.queues:
            return errno.ENODEV
        if self.queues[queue] is None:
            self._offer(queue)
        return 0

    def _accepts(self, driver: str, queue: Queue) -> bool:
        if queue in self.overrides:
            return self.overrides[queue] == driver
        if self._masks_reserve(queue):
            return driver == DEFAULT_DRIVER
        return driver != DEFAULT_DRIVER

    def _offer(self, queue: Queue) -> None:
        for driver in DRIVERS:
            if self._accepts(driver, queue):
                self._attach(driver, queue)
                return

    def _attach(self, driver: str, queue: Queue) -> None:
        self.queues[queue] = driver
        if driver != VFIO_DRIVER:
            return
        adapter, domain = queue
        for mdev in self.mdevs.values():
            if adapter not in mdev.adapters or domain not in mdev.domains:
                continue
            if mdev.new_adapters or mdev.new_domains:
                continue  # the end of the scan filters
            self._filter(mdev)

    def _detach(self, queue: Queue) -> None:
        """Take the driver away; a guest that could use the queue loses the whole adapter."""
        was = self.queues[queue]
        self.queues[queue] = None
        if was != VFIO_DRIVER:
            return
        self.failed_resets.discard(queue)  # whoever gets it next starts afresh
        adapter, domain = queue
        for mdev in self.mdevs.values():
            if adapter in mdev.guest_adapters and domain in mdev.guest_domains:
                self._take_adapter_from_guest(mdev, adapter)

    # ---- hardware ---------------------------------------------------------------------------------------------------

    def plug(self, adapter: int) -> int:
        """Give the machine a card; the next scan finds it."""
        self.real_adapters.add(adapter)
        return 0

    def unplug(self, adapter: int) -> int:
        """Take a card from the machine; the next scan notices."""
        self.real_adapters.discard(adapter)
        return 0

    def add_domain(self, domain: int) -> int:
        """Give the machine a usage domain, on every card."""
        self.real_domains.add(domain)
        return 0

    def remove_domain(self, domain: int) -> int:
        """Take a usage domain from the machine."""
        self.real_domains.discard(domain)
        return 0

    def add_control_domain(self, domain: int) -> int:
        """Give the machine a control domain."""
        self.real_control.add(domain)
        return 0

    def remove_control_domain(self, domain: int) -> int:
        """Take a control domain from the machine."""
        self.real_control.discard(domain)
        return 0

    def scan(self) -> int:
        """Look at the hardware: losses reach guests first, then devices come and go, then gains reach guests."""
        for mdev in self.mdevs.values():
            for adapter in self.host_adapters - self.real_adapters:
                mdev.guest_adapters.discard(adapter)
            for domain in self.host_domains - self.real_domains:
                mdev.guest_domains.discard(domain)
            mdev.new_adapters = mdev.adapters & (self.real_adapters - self.host_adapters)
            mdev.new_domains = mdev.domains & (self.real_domains - self.host_domains)
        self.host_adapters = set(self.real_adapters)
        self.host_domains = set(self.real_domains)
        self.host_control = set(self.real_control)

        for adapter in range(self.max_adapter + 1):
            self._scan_adapter(adapter)

        for mdev in self.mdevs.values():
            if mdev.new_adapters or mdev.new_domains:
                self._filter(mdev)
            mdev.new_adapters = set()
            mdev.new_domains = set()
        return 0

    def _scan_adapter(self, adapter: int) -> None:
        """Make and remove the devices of one adapter. A card without any domain does not answer, so it is not seen."""
        card_answers = adapter in self.host_adapters and len(self.host_domains) > 0
        if card_answers:
            self.cards.add(adapter)
        for queue in list(self.queues):
            if queue[0] == adapter and (not card_answers or queue[1] not in self.host_domains):
                self._remove_queue(queue)
        if not card_answers:
            self.cards.discard(adapter)
            return
        for domain in range(self.max_domain + 1):
            if domain in self.host_domains and (adapter, domain) not in self.queues:
                self.queues[adapter, domain] = None
                self._offer((adapter, domain))

    def _remove_queue(self, queue: Queue) -> None:
        """Forget a queue. An override it still has is forgotten, too, but goes on being counted."""
        self._detach(queue)
        del self.queues[queue]
        self.overrides.pop(queue, None)

    # ---- what can be read -------------------------------------------------------------------------------------------

    def mdev_exists(self, uuid: str) -> bool:
        """Whether there is such a mediated device."""
        return uuid in self.mdevs

    def matrix(self, uuid: str) -> str:
        """Contents of `matrix`."""
        return _matrix_text(self.mdevs[uuid].adapters, self.mdevs[uuid].domains)

    def guest_matrix(self, uuid: str) -> str:
        """Contents of `guest_matrix`."""
        return _matrix_text(self.mdevs[uuid].guest_adapters, self.mdevs[uuid].guest_domains)

    def control_domains(self, uuid: str) -> str:
        """Contents of `control_domains`."""
        text = ""
        for number in sorted(self.mdevs[uuid].control):
            text += f"{number:04x}\n"
        return text

    def ap_config_text(self, uuid: str) -> str:
        """Contents of `ap_config`."""
        mdev = self.mdevs[uuid]
        return ",".join([mask_text(mdev.adapters), mask_text(mdev.domains), mask_text(mdev.control)]) + "\n"

    def available_instances(self) -> int:
        """How many more mediated devices there could be."""
        return ALL_INSTANCES - len(self.mdevs)

    def apmask_text(self) -> str:
        """Contents of `apmask`."""
        return mask_text(self.apmask) + "\n"

    def aqmask_text(self) -> str:
        """Contents of `aqmask`."""
        return mask_text(self.aqmask) + "\n"

    def host_masks_text(self) -> tuple[str, str, str]:
        """Contents of the three masks of what the host has: adapters, usage domains, control domains."""
        return (
            mask_text(self.host_adapters) + "\n",
            mask_text(self.host_domains) + "\n",
            mask_text(self.host_control) + "\n",
        )

    def card_exists(self, adapter: int) -> bool:
        """Whether the card is in sysfs."""
        return adapter in self.cards

    def queue_exists(self, adapter: int, domain: int) -> bool:
        """Whether the queue is in sysfs."""
        return (adapter, domain) in self.queues

    def driver(self, adapter: int, domain: int) -> str | None:
        """Name of the driver of a queue, None for an unbound or absent one."""
        return self.queues.get((adapter, domain))

    def override_text(self, adapter: int, domain: int) -> str:
        """Contents of `driver_override`."""
        return self.overrides.get((adapter, domain), "") + "\n"

    def status(self, adapter: int, domain: int) -> str:
        """Word in `status`. The file exists only on queues that are with vfio_ap."""
        for mdev in self.mdevs.values():
            if adapter in mdev.adapters and domain in mdev.domains:
                if mdev.running and adapter in mdev.guest_adapters and domain in mdev.guest_domains:
                    return "in use"
                return "assigned"
        return "unassigned"

    def bindings(self) -> str:
        """Contents of `bindings`, without the newline."""
        bound = 0
        for driver in self.queues.values():
            if driver is not None:
                bound += 1
        text = f"{bound}/{len(self.queues)}"
        if bound == len(self.queues):
            text += " (complete)"
        return text


def mask_text(numbers: set[int]) -> str:
    """Spell a set of numbers as 64 hex digits; number 0 is the leftmost bit."""
    text = "0x"
    for first in range(0, MASK_BITS, 4):
        digit = 0
        for number, weight in ((first, 8), (first + 1, 4), (first + 2, 2), (first + 3, 1)):
            if number in numbers:
                digit += weight
        text += f"{digit:x}"
    return text


def _matrix_text(adapters: set[int], domains: set[int]) -> str:
    text = ""
    if adapters and domains:
        for adapter in sorted(adapters):
            for domain in sorted(domains):
                text += f"{adapter:02x}.{domain:04x}\n"
    elif adapters:
        for adapter in sorted(adapters):
            text += f"{adapter:02x}.\n"
    else:
        for domain in sorted(domains):
            text += f".{domain:04x}\n"
    return text[:PAGE_LIMIT]

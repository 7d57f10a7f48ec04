"""One emulated machine, wired up: hardware, AP bus, VFIO, the vfio_ap driver, and the tree that shows them.

Everything that a file system needs is in `Host.tree`; everything that a test author does to the machine is a method.
Nothing here waits, knows a clock, or does I/O.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from apfs import layout
from apfs.ap import zcrypt
from apfs.ap.bus import ApBus
from apfs.ap.hardware import CardHardware, Machine
from apfs.ap.qinfo import FIELDS, Apqn, hwinfo_of
from apfs.ap.queue_attributes import driver_override_store
from apfs.ap.zcdn import ZcdnClass
from apfs.errors import KernelError
from apfs.journal.log import Journal
from apfs.kernel.device import MiscDevice
from apfs.kernel.module import Module
from apfs.mdev.core import MdevBus
from apfs.scenario.model import Scenario, default_serial
from apfs.sysfs.members import Registry
from apfs.sysfs.tree import Tree
from apfs.vfio.device import VfioCore
from apfs.vfio_ap.attributes import matrix_mdev
from apfs.vfio_ap.client import guest_store
from apfs.vfio_ap.driver import VfioAp
from apfs.vfio_ap.matrix import Matrix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from apfs.ctl.channel import HandedFile
    from apfs.scenario.model import MdevSpec

_LAST = 255


class Host:
    """A machine that runs. Methods raise `KernelError` and then have changed nothing."""

    def __init__(self, scenario: Scenario | None = None) -> None:
        """Boot the machine that a scenario describes; `ScenarioError` if its mediated devices are not possible."""
        self.scenario = scenario or Scenario()
        self.journal = journal = Journal()
        self.clock: Literal["real", "manual"] = "manual"
        """Who lets time pass: a shell by `real` time, or only whoever calls `tick`."""
        self.tree = Tree(journal)
        self.machine = Machine(
            self.scenario.qci, self.scenario.environment, secure_execution=self.scenario.secure_execution
        )
        self.machine.cards = {
            apid: replace(card, queues=dict(card.queues), associations=dict(card.associations))
            for apid, card in self.scenario.cards.items()
        }
        self.ap_bus = ApBus(self.tree, self.machine)
        self.mdev_bus = MdevBus(self.tree)
        self.vfio = VfioCore(journal)
        self.handed: Registry[HandedFile] = Registry()
        """Files that ioctls made, until they are closed."""
        self.vfio_ap: VfioAp | None = None
        self.zcdn = ZcdnClass(self.tree)
        self.z90crypt = MiscDevice(journal, "z90crypt", 58, "z90crypt")
        self.vfio_misc = MiscDevice(journal, "vfio", 196, "vfio/vfio", 0o666)
        self.iommu_misc = MiscDevice(journal, "iommu", 127, "iommu", 0o660)
        self.ap_module = Module(journal, "ap", 0)
        sizes = {"zcrypt": 118784, "zcrypt_cex4": 20480, "mdev": 28672, "vfio": 69632}
        self.modules = {name: Module(journal, name, size) for name, size in sizes.items()}
        self.modules["mdev"].version = "0.1"
        self.modules["vfio_ap"] = Module(
            journal, "vfio_ap", 57344, lambda: self.vfio_ap.refcount if self.vfio_ap else 0
        )
        self.modules["zcrypt"].holders.append(self.modules["zcrypt_cex4"])
        for name in ("mdev", "vfio"):
            self.modules[name].holders.append(self.modules["vfio_ap"])
        layout.build(self)
        self._boot()

    def _boot(self) -> None:
        """Start up as far as udev and chzdev bring a machine before anybody could look: in silence."""
        self.journal.muted = True
        self.modules["zcrypt"].load()
        self.modules["zcrypt_cex4"].load()
        self.ap_bus.scan()
        if self.scenario.vfio_ap:
            self.modprobe("vfio_ap")
        if self.scenario.apmask != self.ap_bus.apmask:
            self.ap_bus.change_masks(apmask=self.scenario.apmask)
        if self.scenario.aqmask != self.ap_bus.aqmask:
            self.ap_bus.change_masks(aqmask=self.scenario.aqmask)
        self._set_up_devices()
        self._set_up_bus()
        for index, spec in enumerate(self.scenario.mdevs):
            try:
                self._create(spec)
            except KernelError as error:
                raise self.scenario.source.error(f"{error.why} ({error.name})", ("mdev", index)) from None
        self.journal.muted = False

    def _set_up_devices(self) -> None:
        """Give queues to drivers by override, as driverctl does, and switch cards and queues off."""
        bus = self.ap_bus
        for apqn, driver in self.scenario.overrides.items():
            queue = bus.queue(*apqn)
            if queue:
                driver_override_store(queue, driver)
                if queue.driver:
                    bus.release(queue)
                bus.attach(queue)
        for apid in self.scenario.offline_cards:
            card = bus.cards.get(apid)
            if card:
                zcrypt.card_online_store(card, "0")
        for apqn in sorted(self.scenario.offline_queues):
            queue = bus.queue(*apqn)
            if queue and zcrypt.queue_bound(queue):
                zcrypt.queue_online_store(queue, "0")

    def _set_up_bus(self) -> None:
        """Write settings to the bus."""
        bus, settings = self.ap_bus, self.scenario.bus
        bus.set_config_time(settings.config_time)
        bus.poll_thread = settings.poll_thread and not self.machine.interrupts
        if settings.ap_domain is not None:
            bus.default_domain = settings.ap_domain
        if settings.poll_timeout is not None:
            bus.poll_timeout = settings.poll_timeout

    def _create(self, spec: MdevSpec) -> None:
        if self.vfio_ap is None:
            raise KernelError(errno.ENODEV, "vfio_ap is not loaded, so there cannot be a mediated device")
        mdev = self.mdev_bus.create(self.vfio_ap.parent, spec.uuid)
        data = matrix_mdev(mdev)
        assert data is not None  # noqa: S101 -- creating it bound it
        data.replace(Matrix(spec.adapters, spec.domains, spec.control_domains))
        if spec.guest:
            guest_store(data, "1")

    # -- time --------------------------------------------------------------------------------------

    def tick(self, seconds: int) -> None:
        """Let time pass. The bus scans whenever its period is over."""
        self.ap_bus.tick(seconds)

    def scan(self) -> None:
        """Make the bus scan now."""
        self.ap_bus.scan()

    # -- hardware: seen by the bus at its next scan ------------------------------------------------

    def plug(self, apid: int, card: str, fields: Mapping[str, int] | None = None, serial: str | None = None) -> None:
        """Insert a card such as `CEX8C`. EEXIST if the adapter is there, EINVAL for an unknown type or value."""
        _in_range("adapter", apid)
        if apid in self.machine.cards:
            raise KernelError(errno.EEXIST, f"adapter {apid:02x} is plugged already")
        try:
            word = hwinfo_of(card)
        except ValueError as error:
            raise KernelError(errno.EINVAL, str(error)) from None
        self.machine.plug(apid, CardHardware(_with_fields(word, fields or {}), serial or default_serial(apid)))

    def unplug(self, apid: int) -> None:
        """Take a card out. ENODEV if there is none."""
        self._card(apid)
        self.machine.unplug(apid)

    def change_domains(self, *, add: Iterable[int] = (), remove: Iterable[int] = (), control: bool = False) -> None:
        """Give usage (or control) domains to the host or take them away."""
        configuration = self.machine.configuration
        mask = configuration.control_domains if control else configuration.domains
        for number in add:
            _in_range("domain", number)
            mask = mask.with_(number)
        for number in remove:
            _in_range("domain", number)
            mask = mask.without(number)
        if control:
            self.machine.change(control_domains=mask)
        else:
            self.machine.change(domains=mask)

    def configure(self, apid: int, *, on: bool) -> None:
        """Configure or deconfigure a card from outside, as an operator does. ENODEV if there is none."""
        self._card(apid).configured = on

    def checkstop(self, apid: int, *, on: bool) -> None:
        """Check-stop a card, or repair it. ENODEV if there is none."""
        self._card(apid).checkstopped = on

    def set_tapq(self, apid: int, fields: Mapping[str, int], apqi: int | None = None) -> None:
        """Change fields of the TAPQ word of a card, or of one of its queues. ENODEV, EINVAL."""
        card = self._card(apid)
        if apqi is None:
            word = _with_fields(card.hwinfo, fields)
            queues = {domain: _with_fields(queue, fields) for domain, queue in card.queues.items()}
            card.hwinfo, card.queues = word, queues
        elif apqi not in self.machine.configuration.domains:
            raise KernelError(errno.ENODEV, f"domain {apqi:04x} is not configured")
        else:
            card.queues[apqi] = _with_fields(card.word(apqi), fields)

    def fail_reset(self, apqn: Apqn, response: int) -> None:
        """Make the next reset of a queue end with a response code."""
        self._card(apqn.apid)
        self.machine.failing_resets[apqn] = response

    def inject(self, path: str, number: int, accesses: int = 1) -> None:
        """Make the next accesses of the attribute at `path` fail with an errno."""
        self.tree.inject(path, number, accesses)

    def clear_faults(self) -> None:
        """Take back what `inject` and `fail_reset` did."""
        self.tree.clear_faults()
        self.machine.failing_resets.clear()

    def _card(self, apid: int) -> CardHardware:
        card = self.machine.cards.get(apid)
        if card is None:
            raise KernelError(errno.ENODEV, f"no card is plugged as adapter {apid:02x}")
        return card

    # -- modules -----------------------------------------------------------------------------------

    def modprobe(self, name: str) -> None:
        """Load a module and what it needs; ENOENT if there is none of that name. Loading twice is no error."""
        module = self._module(name)
        if module.name == "vfio_ap" and not module.loaded:
            for needed in ("mdev", "vfio"):
                self.modules[needed].load()
            module.load()
            self.vfio_ap = VfioAp(self.tree, self.ap_bus, self.mdev_bus, self.vfio)
        module.load()

    def rmmod(self, name: str) -> None:
        """Unload a module. ENOENT if it is not loaded, EAGAIN while it is in use.

        EOPNOTSUPP for zcrypt's modules: they stay.
        """
        module = self._module(name)
        if not module.loaded:
            raise KernelError(errno.ENOENT, f"module {module.name} is not loaded")
        if module.refcount:
            raise KernelError(errno.EAGAIN, f"module {module.name} is in use")
        if module.name.startswith("zcrypt"):
            raise KernelError(errno.EOPNOTSUPP, f"module {module.name} cannot be unloaded from an emulated host")
        if module.name == "vfio_ap":
            assert self.vfio_ap is not None  # noqa: S101 -- it is loaded
            self.vfio_ap.unload()
            self.vfio_ap = None
        module.unload()
        self.tree.deactivate()

    def _module(self, name: str) -> Module:
        module = self.modules.get(name.replace("-", "_"))
        if module is None:
            raise KernelError(errno.ENOENT, f"no module {name!r} on this host: there are {', '.join(self.modules)}")
        return module


def _in_range(what: str, number: int) -> None:
    if not 0 <= number <= _LAST:
        raise KernelError(errno.EINVAL, f"{what} {number} is not in 0..{_LAST}")


def _with_fields(word: int, fields: Mapping[str, int]) -> int:
    for name, value in fields.items():
        if name not in FIELDS:
            raise KernelError(errno.EINVAL, f"no TAPQ field {name!r}: there are {', '.join(FIELDS)}")
        try:
            word = FIELDS[name].set(word, value)
        except ValueError as error:
            raise KernelError(errno.EINVAL, f"{name}: {error}") from None
    return word

"""A machine and its Linux: the parts, wired together, and an operator's actions.

Nothing here waits, uses a clock, or does I/O. `apfs.layout` presents the machine as a tree.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Literal

from apfs.ap.bus import ApBus
from apfs.ap.hardware import KEY_DIGITS, CardHardware, Machine, Traffic, default_serial
from apfs.ap.qinfo import coprocessor_of, hwinfo_of, with_fields
from apfs.ap.scan_timer import let_pass
from apfs.ap.zcdn import ZcdnClass
from apfs.errors import KernelError
from apfs.journal.log import GuestJournal, Journal
from apfs.journal.records import Time
from apfs.kernel.device import MiscDevice, SysClass
from apfs.kernel.machine import NoMachine
from apfs.kernel.module import Module
from apfs.mdev.core import MdevBus
from apfs.sysfs.members import Registry
from apfs.sysfs.tree import Tree
from apfs.vfio.device import VfioCore
from apfs.vfio_ap.attributes import matrix_mdev
from apfs.vfio_ap.client import Vm
from apfs.vfio_ap.driver import VfioAp
from apfs.vfio_ap.migration import REVISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from apfs.ap.names import Apqn
    from apfs.kernel.machine import RealMachine
    from apfs.kernel.profile import Profile
    from apfs.sysfs.nodes import Nodes
    from apfs.vfio.handed import HandedFile
    from apfs.vfio_ap.ops import MatrixMdev

_LAST = 255
_MISC_MINORS = {"low": {"iommu": 125, "z90crypt": 124}, "high": {"iommu": 258, "z90crypt": 259}}
"""Minor numbers that are given out at boot; those before them have other devices."""


class System:
    """The parts of a host. Methods raise `KernelError` and then have changed nothing."""

    def __init__(
        self,
        machine: Machine,
        profile: Profile,
        name: str,
        revision: str,
        start_guest: Callable[[System, MatrixMdev], System],
        host: System | None = None,
    ) -> None:
        """Connect the parts; nothing is loaded, scanned or shown yet.

        `profile` is the Linux that it runs, `name` what it is called, `revision` that of the driver's migration series;
        only `ctl/status` shows the latter two. `start_guest` boots the guest of this system that has opened a mediated
        device. A guest has a `host`, and shares its table of nodes.
        """
        self._start_guest = start_guest
        self.name = name
        self.revision = revision
        self.machine = machine
        self.profile = profile
        nodes: Nodes[Tree] | None = host.tree.nodes if host else None
        journal = GuestJournal(nodes.stir, host.journal, name) if host and nodes else Journal()
        self.journal: Journal = journal
        self.is_guest = host is not None
        self.scenario_text: Callable[[], str | None] = lambda: None
        self.clock: Literal["real", "manual"] = "manual"
        """Who lets time pass: a front end, in `real` time, or only callers of `tick`."""
        self.tree: Tree = Tree(journal, nodes)
        self.real_machine: RealMachine = NoMachine()
        """What sandboxes see beside this one."""
        self.ap_bus = ApBus(self.tree, machine, profile)
        self.mdev_bus = MdevBus(self.tree, profile)
        self.vfio = VfioCore(journal, profile)
        self.handed: Registry[HandedFile] = Registry(self.tree.nodes.changes)
        """Files that ioctls made, until they are closed."""
        self.guests: Registry[System] = Registry(self.tree.nodes.changes)
        """Guests by the UUID of their mediated device, from the opening of that to its close."""
        self.config_events = False
        """Whether the bus scans as soon as its hardware changes, as in an LPAR that is told of it."""
        self.ended = False
        self.vfio_ap: VfioAp | None = None
        self.zcdn = ZcdnClass(self.tree, profile)
        minors = _MISC_MINORS[profile.misc_minors]
        self.z90crypt = MiscDevice(journal, "z90crypt", minors["z90crypt"], "z90crypt")
        self.vfio_misc = MiscDevice(journal, "vfio", 196, "vfio/vfio", 0o666)
        self.iommu_misc = MiscDevice(journal, "iommu", minors["iommu"], "iommu", 0o660)
        self.ap_module = Module(journal, "ap", 0)
        self.modules = self._modules()
        self.vfio.has_type1 = lambda: self.modules["vfio_iommu_type1"].loaded

    def _modules(self) -> dict[str, Module]:
        """Return the modules that can be loaded, with what keeps each of them loaded."""
        journal = self.journal
        zcrypt, zcrypt_cex4 = Module(journal, "zcrypt", 118784), Module(journal, "zcrypt_cex4", 20480)
        virqfd = [Module(journal, "vfio_virqfd", 16384, version="0.1")] if self.profile.vfio_virqfd_module else []
        mdev, vfio = (
            Module(journal, "mdev", 28672, version="0.1"),
            Module(journal, "vfio", 69632, lambda: self.vfio.references, version="0.3", import_ns="IOMMUFD"),
        )
        type1 = Module(journal, "vfio_iommu_type1", 49152, lambda: self.vfio.backends, version="0.2")
        vfio_ap = Module(journal, "vfio_ap", 57344, lambda: self.vfio_ap.refcount if self.vfio_ap else 0)
        zcrypt.holders = [zcrypt_cex4]
        mdev.holders, vfio.holders = [vfio_ap], [vfio_ap, type1]
        type1.needs, vfio.followers, vfio_ap.needs = (vfio,), (type1,), (mdev, vfio)
        type1.init, vfio_ap.init = self.vfio.type1.reset, self._init_vfio_ap
        mdev.parts = [self.mdev_bus]
        vfio.parts = [self.vfio_misc, SysClass(journal, "vfio")]
        if self.profile.vfio_dev_class:
            vfio.parts.append(SysClass(journal, "vfio-dev"))
        return {module.name: module for module in (zcrypt, zcrypt_cex4, mdev, vfio, type1, vfio_ap, *virqfd)}

    def boot(self) -> None:
        """Load zcrypt and scan, as Linux does before anybody can look: the journal is muted."""
        self.journal.muted = True
        self.modules["zcrypt"].load()
        self.modules["zcrypt_cex4"].load()
        self.ap_bus.scan()

    def end(self) -> None:
        """End, as a VM does, and all guests with it: nothing happens on it any more."""
        self.ended = self.journal.ended = True
        for guest in self.guests:
            self.guests.discard(guest.name)
            guest.end()
        self.tree.close()

    # -- guests ------------------------------------------------------------------------------------

    def guest(self, uuid: str) -> System:
        """Return the running guest of a mediated device. ENODEV if there is no such device, or no guest has it open."""
        guest = self.guests.get(uuid)
        if guest is None:
            known = self.mdev_bus.mdevs.get(uuid) is not None
            raise KernelError(errno.ENODEV, no_guest(uuid) if known else f"there is no mediated device {uuid}")
        return guest

    def _matrix_mdev(self, uuid: str) -> MatrixMdev:
        device = self.mdev_bus.mdevs.get(uuid)
        mdev = matrix_mdev(device) if device else None
        if mdev is None:
            raise KernelError(errno.ENODEV, f"there is no mediated device {uuid}, or no driver has it")
        return mdev

    def set_guest_mode(self, uuid: str, *, secure_execution: bool) -> None:
        """Set whether guests of a mediated device are in Secure Execution mode, beginning with the next one.

        ENODEV if there is no such device, EBUSY while a guest runs, EOPNOTSUPP for such guests outside of an LPAR: to
        KVM in a guest, or under z/VM, the ultravisor is not offered.
        """
        mdev = self._matrix_mdev(uuid)
        if mdev.vm is not None:
            raise KernelError(errno.EBUSY, f"the guest of {uuid} runs: its mode is chosen before it starts")
        if secure_execution and self.machine.environment != "lpar":
            raise KernelError(errno.EOPNOTSUPP, "only a host in an LPAR has guests in Secure Execution mode")
        mdev.secure_execution = secure_execution

    def set_config_events(self, uuid: str, *, told: bool) -> None:
        """Say whether guests of a mediated device, started by its file `guest`, are told of configuration changes.

        ENODEV if there is no such device.
        """
        self._matrix_mdev(uuid).config_events = told

    def _programmed(self, mdev: MatrixMdev) -> None:
        """Start, end or change the guest of a mediated device, which the driver has just programmed."""
        guest = self.guests.get(mdev.mdev.uuid)
        if mdev.vm is None:
            if guest is not None:
                self.guests.discard(guest.name)
                guest.end()
        elif guest is not None:
            guest.machine.reprogrammed()
        elif not self.ended:
            guest = self._start_guest(self, mdev)
            guest.real_machine = self.real_machine
            self.guests.add(guest.name, guest)
            guest.tree.place = self.tree.resolve(f"/guests/{guest.name}")

    def _signalled(self, mdev: MatrixMdev) -> None:
        """Let the guest scan if its VMM, which has got the interrupt, makes an event of it for the guest.

        A program that wants the interrupt does (QEMU: css_generate_css_crws), and Linux then scans (ap_bus_cfg_chg).
        """
        guest = self.guests.get(mdev.mdev.uuid)
        if guest is not None and (mdev.config_events or not isinstance(mdev.vdev.group.opener, Vm)):
            guest.scan()

    # -- time --------------------------------------------------------------------------------------

    def follow_clock(self) -> None:
        """Take note that a shell lets time pass with the clock, for guests too."""
        self.clock = "real"
        for guest in self.guests:
            guest.follow_clock()

    def pass_time(self, seconds: int) -> None:
        """Let time pass, as it has by the clock of a front end."""
        self.tick(seconds)
        self.journal.add(Time(seconds))

    def tick(self, seconds: int) -> None:
        """Let time pass, for guests too. A bus scans whenever its period is over, that of a host before its guests'."""
        let_pass(seconds, self.buses)

    def buses(self) -> Iterator[ApBus]:
        """Yield the AP buses of this system and of its guests, that of a host before its guests'."""
        yield self.ap_bus
        for guest in self.guests:
            yield from guest.buses()

    @property
    def until_scan(self) -> int:
        """Seconds until the next scan, on this system or on a guest."""
        return min(bus.until_scan for bus in self.buses())

    def scan(self) -> None:
        """Make the bus scan now."""
        self.ap_bus.scan()

    def timers(self) -> tuple[object, ...]:
        """Return what restarts a timer of scans when it changes: periods and numbers of scans."""
        return (self.ap_bus.config_time, self.ap_bus.scans, *(guest.timers() for guest in self.guests))

    # -- hardware: seen by the bus at its next scan ------------------------------------------------

    def _tell(self) -> None:
        """Let the bus scan after a change of the configuration, if it is told of it (CHSC_NOTIFY_AP_CFG)."""
        if self.config_events:
            self.scan()

    def _hardware(self) -> Machine:
        """Return the machine, to plug cards into it and the like. EOPNOTSUPP where nobody can."""
        return self.machine

    def plug(self, apid: int, card: str, fields: Mapping[str, int] | None = None, serial: str | None = None) -> None:
        """Insert a card such as `CEX8C`. EEXIST if the adapter is there, EINVAL for an unknown type or value."""
        _in_range("adapter", apid)
        machine = self._hardware()
        if apid in machine.cards:
            raise KernelError(errno.EEXIST, f"adapter {apid:02x} is already plugged")
        try:
            word = with_fields(hwinfo_of(card), fields or {})
        except ValueError as error:
            raise KernelError(errno.EINVAL, str(error)) from None
        machine.plug(apid, CardHardware(word, serial or default_serial(apid, machine.serial)))
        self._tell()

    def unplug(self, apid: int) -> None:
        """Take a card out. ENODEV if there is none."""
        self._card(apid, self._hardware())
        self.machine.unplug(apid)
        self._tell()

    def change_domains(self, *, add: Iterable[int] = (), remove: Iterable[int] = (), control: bool = False) -> None:
        """Give usage (or control) domains to the host or take them away."""
        machine = self._hardware()
        configuration = machine.configuration
        mask = configuration.control_domains if control else configuration.domains
        for number in add:
            _in_range("domain", number)
            mask = mask.with_(number)
        for number in remove:
            _in_range("domain", number)
            mask = mask.without(number)
        if control:
            machine.change(control_domains=mask)
        else:
            machine.change(domains=mask)
        if machine.configuration != configuration:
            self._tell()

    def configure(self, apid: int, *, on: bool) -> None:
        """Configure or deconfigure a card from outside, as an operator does. ENODEV if there is none."""
        card = self._card(apid, self._hardware())
        changed = card.configured != on
        card.configured = on
        if changed:
            self._tell()

    def checkstop(self, apid: int, *, on: bool) -> None:
        """Check-stop a card, or repair it. ENODEV if there is none."""
        self._card(apid, self._hardware()).checkstopped = on

    def set_tapq(self, apid: int, fields: Mapping[str, int], apqi: int | None = None) -> None:
        """Change fields of the TAPQ word of a card, or of one of its queues. ENODEV, EINVAL."""
        card = self._card(apid, self._hardware())
        if apqi is not None and apqi not in self.machine.configuration.domains:
            raise KernelError(errno.ENODEV, f"domain {apqi:04x} is not configured")
        try:
            if apqi is None:
                word = with_fields(card.hwinfo, fields)
                queues = {domain: with_fields(queue, fields) for domain, queue in card.queues.items()}
                card.hwinfo, card.queues = word, queues
            else:
                card.queues[apqi] = with_fields(card.word(apqi), fields)
        except ValueError as error:
            raise KernelError(errno.EINVAL, str(error)) from None

    def load_key(self, apid: int, apqi: int | None, name: str, pattern: str, *, complete: bool = True) -> None:
        """Put the pattern of a new master key into its register, of a domain or of all; an empty one clears it.

        ENODEV if there is no such card or domain, EINVAL for a key that the card does not have or that is malformed.
        """
        card = self._card(apid, self._hardware())
        self._check_key(card, apqi, name)
        length = KEY_DIGITS[coprocessor_of(card.hwinfo) or ""][name]
        if pattern and not re.fullmatch(f"[0-9a-f]{{{length}}}", pattern):
            raise KernelError(
                errno.EINVAL, f"the pattern of {name} has {length} lower-case hex digits, not {pattern!r}"
            )
        card.change_keys(apqi, lambda keys: keys.loaded(name, pattern, complete=complete))

    def set_key(self, apid: int, apqi: int | None, name: str) -> None:
        """Make the new master key of a domain, or of all, the current one. ENODEV, EINVAL."""
        card = self._card(apid, self._hardware())
        self._check_key(card, apqi, name)
        try:
            card.change_keys(apqi, lambda keys: keys.rotated(name))
        except ValueError as error:
            raise KernelError(errno.EINVAL, f"{error}: load it first") from None

    def _check_key(self, card: CardHardware, apqi: int | None, name: str) -> None:
        if apqi is not None and apqi not in self.machine.configuration.domains:
            raise KernelError(errno.ENODEV, f"domain {apqi:04x} is not configured")
        known = KEY_DIGITS.get(coprocessor_of(card.hwinfo) or "", {})
        if name not in known:
            raise KernelError(errno.EINVAL, f"no master key {name!r} on this card: it has {', '.join(known) or 'none'}")

    def send(self, apqn: Apqn, *, count: int = 0, waiting: int = 0, pending: int = 0, load: int = 0) -> None:
        """Count more requests to a queue, as if users of zcrypt had sent them, and say what is under way now.

        ENODEV if zcrypt does not have the queue, or cannot use it.
        """
        queue = self.ap_bus.queue(*apqn)
        if queue is None or apqn.apqi not in queue.card.zcrypt_bound() & queue.card.usable_queues():
            raise KernelError(errno.ENODEV, f"nobody can send requests to {apqn}: zcrypt cannot use it")
        queue.card.requests += count
        queue.card.queue_requests[apqn.apqi] = queue.card.queue_requests.get(apqn.apqi, 0) + count
        self.machine.traffic[apqn] = Traffic(waiting, pending, load)

    def leave_unanswered(self, apqn: Apqn, requests: int) -> None:
        """Let the drivers' next requests to a queue get no answer. ENODEV if there is no such card."""
        self._card(apqn.apid, self.machine)
        self.machine.unanswered[apqn] = requests

    def fail_reset(self, apqn: Apqn, response: int) -> None:
        """Make the next reset of a queue end with a response code."""
        self._card(apqn.apid, self.machine)
        self.machine.failing_resets[apqn] = response

    def inject(self, path: str, number: int, accesses: int = 1) -> None:
        """Make the next accesses of the attribute at `path` fail with an errno. ENOENT if there can be none."""
        if not self.tree.root.may_have(path.removeprefix("/").split("/")):
            raise KernelError(errno.ENOENT, f"no attribute can exist at {path}: use a path without symbolic links")
        self.tree.faults.inject(path, number, accesses)

    def clear_faults(self) -> None:
        """Take back what `inject`, `fail_reset` and `leave_unanswered` did."""
        self.tree.faults.clear()
        self.machine.failing_resets.clear()
        self.machine.unanswered.clear()

    @staticmethod
    def _card(apid: int, machine: Machine) -> CardHardware:
        card = machine.cards.get(apid)
        if card is None:
            raise KernelError(errno.ENODEV, f"no card is plugged as adapter {apid:02x}")
        return card

    # -- modules -----------------------------------------------------------------------------------

    def modprobe(self, name: str) -> None:
        """Load a module and what it needs; ENOENT if there is none of that name. Loading twice is no error."""
        module = self._module(name)
        if not module.loaded:
            self._load(module)

    def _load(self, module: Module) -> None:
        """Load what is missing of what a module needs, of itself, and of what modprobe loads after each of these."""
        for needed in module.needs:
            self._load(needed)
        module.load()
        for follower in module.followers:
            follower.load()

    def _init_vfio_ap(self) -> None:
        revision = REVISIONS[self.revision] if self.profile.feature_ioctl else None
        self.vfio_ap = VfioAp(self.tree, self.ap_bus, self.mdev_bus, self.vfio, revision)
        self.vfio_ap.driver.programmed = self._programmed
        self.vfio_ap.driver.signalled = self._signalled
        self.vfio_ap.driver.session_changed = self.tree.nodes.stir

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

    @property
    def has_mdev_class(self) -> bool:
        """Whether there is `/sys/class/mdev_bus`."""
        seen = self.profile.mdev_class_at_load or self.mdev_bus.had_parent
        return self.modules["mdev"].loaded and seen

    def _module(self, name: str) -> Module:
        module = self.modules.get(name.replace("-", "_"))
        if module is None:
            raise KernelError(errno.ENOENT, f"no module {name!r} on this host: there are {', '.join(self.modules)}")
        return module


def no_guest(uuid: str) -> str:
    """Return the message for whoever looks for a guest that is not running."""
    return f"no guest runs on mediated device {uuid}: write 1 to /dev/vfio-ap/{uuid}/guest, or start a VMM"


def _in_range(what: str, number: int) -> None:
    if not 0 <= number <= _LAST:
        raise KernelError(errno.EINVAL, f"{what} {number} is not in 0..{_LAST}")

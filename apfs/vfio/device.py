"""VFIO devices and groups: their numbers, their paths in sysfs, and their openers (vfio_main.c, group.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from apfs.errors import KernelError
from apfs.journal.records import Interrupt, Transfer
from apfs.kernel.device import SYS, UEVENT, emit
from apfs.sysfs.entries import Attribute, Link
from apfs.sysfs.openfile import SpecialFile
from apfs.vfio.type1 import Parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apfs.journal.log import Journal
    from apfs.journal.records import Direction, Irq, Keys
    from apfs.kernel.profile import Profile
    from apfs.vfio.fsm import MigrationFlags
    from apfs.vfio.request import EventFd

GROUP_MAJOR, DEVICE_MAJOR = 243, 242
IRQ_REQUEST, IRQ_CONFIG_CHANGED = 0, 1
IRQ_NAMES: tuple[Irq, ...] = ("request", "config_changed")


class TransferFile(SpecialFile):
    """The file of a migration session, as a driver makes it."""

    seekable = False
    tracked = True
    inode: ClassVar[str]
    """What it is called in /proc/PID/fd, behind `anon_inode:`."""

    def __init__(self, journal: Journal, path: str) -> None:
        super().__init__(journal, path)
        self.opened = 0
        """How often it is open."""

    def take(self) -> Self:
        """Open it, which `close` undoes."""
        self.opened += 1
        return self

    def on_close(self) -> None:
        """Close it once."""
        self.opened -= 1

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the next bytes, and put them into the journal."""
        piece = super().read(offset, size)
        self._record("read", size, piece)
        return piece

    def write(self, data: bytes) -> int:
        """Take the next bytes, and put them into the journal."""
        taken = super().write(data)
        self._record("write", len(data), data)
        return taken

    def _record(self, direction: Direction, size: int, piece: bytes | memoryview) -> None:
        content = piece.hex()
        self._journal.add(Transfer(self.path, self.number(), direction, size, content), len(content))


class MigrationOps(Protocol):
    """What a driver does for the migration of its device (struct vfio_migration_ops)."""

    flags: MigrationFlags
    """What it can do."""

    @property
    def state(self) -> int:
        """The migration state."""

    def set_state(self, target: int) -> TransferFile | None:
        """Step to a migration state and return the transfer file if there is a new one. EPERM, EINVAL."""

    def data_size(self) -> int:
        """Return the bytes of a migration stream."""


class VfioOps(Protocol):
    """What a driver does for its VFIO device (struct vfio_device_ops)."""

    def open_device(self, vm: object | None) -> None:
        """Attach the device to a VM at its first open. EINVAL without one."""

    def close_device(self) -> None:
        """Detach at the last close."""

    def reset(self) -> None:
        """Reset the device. EIO."""

    @property
    def migration(self) -> MigrationOps | None:
        """Its migration, None if it has none."""


class VfioCore:
    """The VFIO core: hands out device and group numbers, the lowest free ones."""

    def __init__(self, journal: Journal, profile: Profile) -> None:
        self.journal = journal
        self.profile = profile
        self.devices: list[VfioDevice] = []
        self._groups: list[VfioGroup] = []
        self.references = 0
        """What open files keep the module vfio loaded with.

        An open container or device is one reference. An open node of a group or device is two: one of the device
        number (cdev_get), one of the file's operations (fops_get).
        """
        self.type1 = Parameters()
        self.backends = 0
        """Containers that have an IOMMU type, each of which keeps the module vfio_iommu_type1 loaded."""
        self.has_type1: Callable[[], bool] = lambda: True
        """Whether that module is loaded."""
        self.kvm: Literal["auto", "none"] = "auto"
        """Which VM a client has. Linux learns it from an ioctl of KVM, KVM_DEV_VFIO_FILE_ADD, which does not come here.

        `auto`: each container, or iommufd, is a VM of its own. `none`: there is no VM.
        """

    def vm_of(self, context: object) -> object | None:
        """Return the VM of a client that opens devices through a container or an iommufd."""
        return context if self.kvm == "auto" else None

    def register(self, path: str, name: str, ops: VfioOps) -> VfioDevice:
        """Register an emulated-IOMMU device, which gets a group of its own.

        An open file of a group whose device is gone still has its minor number (vfio_group_release), but not the number
        in its name, which is that of the IOMMU group.
        """
        index = _lowest_free(device.index for device in self.devices)
        self._groups = [group for group in self._groups if group.device or group.opener]
        minor = _lowest_free(group.minor for group in self._groups)
        device = VfioDevice(self, path, name, index, minor, ops)
        self.devices.append(device)
        self._groups.append(device.group)
        emit(device.group, "add")
        if self.profile.vfio_dev_class:
            emit(device, "add")
        return device

    def unregister(self, device: VfioDevice) -> None:
        """Unregister a device that is not open."""
        self.devices.remove(device)
        device.group.device = None
        device.group.revoke()
        for irq in range(len(IRQ_NAMES)):
            device.set_trigger(irq, None)
        if self.profile.vfio_dev_class:
            emit(device, "remove")
        emit(device.group, "remove")


class VfioGroup:
    """A group, `/sys/devices/virtual/vfio/N` and `/dev/vfio/N`, of exactly one device."""

    subsystem = "vfio"

    def __init__(self, core: VfioCore, number: int, minor: int, device: VfioDevice) -> None:
        self.core = core
        self.journal = core.journal
        self.number = number
        self.minor = minor
        self.path = f"{SYS}/devices/virtual/vfio/{number}"
        self.device: VfioDevice | None = device
        """None when the device was removed and only an open file of the group is left."""
        self.opener: object | None = None
        """What has the group open, if anything."""
        self.revoke: Callable[[], None] = lambda: None
        """Called when the device is removed, for what has the group open."""

    def uevent_keys(self) -> Keys:
        """Return device number and name."""
        return (("MAJOR", str(GROUP_MAJOR)), ("MINOR", str(self.minor)), ("DEVNAME", f"vfio/{self.number}"))

    def claim(self, opener: object) -> None:
        """Open the group. ENODEV if its device is gone, EBUSY if it is open or the device is bound to an iommufd."""
        if self.device is None:
            raise KernelError(errno.ENODEV, f"the device of group {self.number} was removed")
        if self.opener is not None:
            raise KernelError(errno.EBUSY, f"group {self.number} is open already")
        if self.device.bound:
            raise KernelError(errno.EBUSY, f"the device of group {self.number} is bound to an iommufd")
        self.opener = opener


class VfioDevice:
    """A device, `<parent>/vfio-dev/vfioK` and `/dev/vfio/devices/vfioK` (struct vfio_device)."""

    subsystem = "vfio-dev"

    def __init__(self, core: VfioCore, parent: str, name: str, index: int, minor: int, ops: VfioOps) -> None:
        self.journal = core.journal
        self.core = core
        self.name = name
        self.index = index
        self.path = f"{parent}/vfio-dev/vfio{index}"
        self.parent = parent
        # Nothing but emulated devices has an IOMMU group on this machine, and each has its own.
        self.group = VfioGroup(core, index, minor, self)
        self.ops = ops
        self.open_count = 0
        self.leave: Callable[[], None] = lambda: None
        """Lets go of what the first opener uses, if it came from a group: its container or its iommufd."""
        self.cdev_files = 0
        """Open files of the device node, bound or not."""
        self.bound = False
        """Whether one of them is bound to an iommufd."""
        self.pins = 0
        """What else keeps the device from being removed: open transfer files of some drivers."""
        self._triggers: dict[int, EventFd] = {}
        """eventfds of interrupts. Closing the device does not end them: who opens it next finds them still there."""

    def uevent_keys(self) -> Keys:
        """Return device number and name; nothing where devices have no node."""
        if not self.core.profile.vfio_cdev:
            return ()
        keys = (("MAJOR", str(DEVICE_MAJOR)), ("MINOR", str(self.index)))
        return (*keys, ("DEVNAME", f"vfio/devices/vfio{self.index}"))

    def open(self, vm: object | None) -> None:
        """Open the device; only the first open reaches the driver. Raises what the driver refuses."""
        if not self.open_count:
            self.ops.open_device(vm)
        self.open_count += 1

    def close(self) -> None:
        """Close it once; only the last close reaches the driver."""
        self.open_count -= 1
        if not self.open_count:
            self.ops.close_device()

    @property
    def in_use(self) -> bool:
        """Whether somebody has a file of it open, which keeps it from being removed."""
        return bool(self.open_count or self.cdev_files or self.pins)

    def set_trigger(self, irq: int, trigger: EventFd | None) -> None:
        """Set the eventfd of an interrupt, in place of the one before."""
        before = self._triggers.pop(irq, None)
        if before is not None:
            before.drop()
        if trigger is not None:
            self._triggers[irq] = trigger

    def signal(self, irq: int) -> bool:
        """Signal one of the device's interrupts, if it has an eventfd; return whether it has."""
        if irq not in self._triggers:
            return False
        self.journal.add(Interrupt(self.name, IRQ_NAMES[irq]))
        self._triggers[irq].signal()
        return True

    def request_release(self) -> None:
        """Ask the program that has the device open to let go, because it is to be taken away. EBUSY if there is one.

        Linux asks again every ten seconds and blocks the caller until it is done. A client of a file system server
        that waits cannot be killed, so here the request is made once and the caller is told to come back.
        """
        if not self.in_use:
            return
        if self.open_count and self.core.profile.request_clears_guest:
            self.signal(IRQ_CONFIG_CHANGED)
        text = "no device request registered: blocked until the user releases the device"
        if IRQ_REQUEST in self._triggers:
            self.signal(IRQ_REQUEST)
            text = "relaying device request to user (#0)"
        if self.core.profile.irqs:
            self.journal.log("notice", f"vfio_ap_mdev {self.name}: {text}")
        reason = f"{self.name} is in use by a guest: the guest was asked to release it; close it and try again"
        raise KernelError(errno.EBUSY, reason)


def _lowest_free(used: Iterable[int]) -> int:
    taken = set(used)
    return next(number for number in range(len(taken) + 1) if number not in taken)


GROUP_ATTRIBUTES = (
    UEVENT,
    Attribute("dev", 0o444, lambda group: f"{GROUP_MAJOR}:{group.minor}\n"),
    Link("subsystem", lambda _group: f"{SYS}/class/vfio"),
)
DEVICE_ATTRIBUTES = (
    UEVENT,
    Attribute("dev", 0o444, lambda device: f"{DEVICE_MAJOR}:{device.index}\n", kernels=lambda kernel: kernel.vfio_cdev),
    Link("subsystem", lambda _device: f"{SYS}/class/vfio-dev"),
    Link("device", lambda device: device.parent),
)


def type_store(_group: VfioGroup, _text: str) -> None:
    """Refuse with EINVAL, whatever is written: the group has no default domain (iommu_group_store_type)."""
    raise KernelError(errno.EINVAL, "the group of a mediated device has no default domain whose type could be changed")


IOMMU_GROUP_ATTRIBUTES = (
    Attribute("name", 0o444, lambda _group: "vfio-noiommu\n", kernels=lambda kernel: kernel.iommu_group_name),
    Attribute("type", 0o644, lambda _group: "unknown\n", type_store),
    Attribute("reserved_regions", 0o444, lambda _group: ""),
)

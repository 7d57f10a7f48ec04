"""VFIO devices and groups: their numbers, their places in sysfs, and who has them open (vfio_main.c, group.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from apfs.kernel.device import SYS, UEVENT, emit
from apfs.kernel.errors import KernelError
from apfs.kernel.journal import Interrupt
from apfs.kernel.kobject import Attribute, Link

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apfs.kernel.journal import Journal, Keys

GROUP_MAJOR, DEVICE_MAJOR = 243, 242
IRQ_REQUEST, IRQ_CONFIG_CHANGED = 0, 1
IRQ_NAMES = ("request", "config_changed")


class VfioOps(Protocol):
    """What a driver does for its VFIO device (struct vfio_device_ops)."""

    def open_device(self, vm: object | None) -> None:
        """Attach the device to a VM at its first open. EINVAL without one."""

    def close_device(self) -> None:
        """Detach at the last close."""


class VfioCore:
    """The VFIO core: hands out device and group numbers, the lowest free ones."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.devices: list[VfioDevice] = []

    def register(self, path: str, name: str, ops: VfioOps) -> VfioDevice:
        """Register an emulated-IOMMU device, which gets a group of its own."""
        index = _lowest_free(device.index for device in self.devices)
        device = VfioDevice(self, path, name, index, ops)
        self.devices.append(device)
        emit(device.group, "add")
        emit(device, "add")
        return device

    def unregister(self, device: VfioDevice) -> None:
        """Take a device away that nobody has open."""
        self.devices.remove(device)
        emit(device, "remove")
        emit(device.group, "remove")


class VfioGroup:
    """A group, `/sys/devices/virtual/vfio/N` and `/dev/vfio/N`, of exactly one device."""

    subsystem = "vfio"

    def __init__(self, journal: Journal, number: int) -> None:
        self.journal = journal
        self.number = number
        self.minor = number
        self.path = f"{SYS}/devices/virtual/vfio/{number}"

    def uevent_keys(self) -> Keys:
        """Return device number and name."""
        return (("MAJOR", str(GROUP_MAJOR)), ("MINOR", str(self.minor)), ("DEVNAME", f"vfio/{self.number}"))


class VfioDevice:
    """A device, `<parent>/vfio-dev/vfioK` and `/dev/vfio/devices/vfioK` (struct vfio_device)."""

    subsystem = "vfio-dev"

    def __init__(self, core: VfioCore, parent: str, name: str, index: int, ops: VfioOps) -> None:
        self.journal = core.journal
        self.name = name
        self.index = index
        self.path = f"{parent}/vfio-dev/vfio{index}"
        self.parent = parent
        # Nothing but emulated devices has an IOMMU group on this machine, and each has its own.
        self.group = VfioGroup(core.journal, index)
        self._ops = ops
        self.open_count = 0

    def uevent_keys(self) -> Keys:
        """Return device number and name."""
        keys = (("MAJOR", str(DEVICE_MAJOR)), ("MINOR", str(self.index)))
        return (*keys, ("DEVNAME", f"vfio/devices/vfio{self.index}"))

    def open(self, vm: object | None) -> None:
        """Open the device; only the first open reaches the driver. Raises what the driver refuses."""
        if not self.open_count:
            self._ops.open_device(vm)
        self.open_count += 1

    def close(self) -> None:
        """Close it once; only the last close reaches the driver."""
        self.open_count -= 1
        if not self.open_count:
            self._ops.close_device()

    def signal(self, irq: int) -> None:
        """Signal one of the device's interrupts."""
        self.journal.add(Interrupt(self.name, IRQ_NAMES[irq]))

    def request_release(self) -> None:
        """Ask whoever has the device open to let go, because it is to be taken away. EBUSY if somebody has.

        Linux asks again every ten seconds and blocks the caller until it is done. A client of a file system server
        that waits cannot be killed, so here the request is made once and the caller is told to come back.
        """
        if self.open_count:
            self.signal(IRQ_CONFIG_CHANGED)
            self.signal(IRQ_REQUEST)
            self.journal.log("notice", f"vfio_ap_mdev {self.name}: relaying device request to user (#0)")
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
    Attribute("dev", 0o444, lambda device: f"{DEVICE_MAJOR}:{device.index}\n"),
    Link("subsystem", lambda _device: f"{SYS}/class/vfio-dev"),
    Link("device", lambda device: device.parent),
)
IOMMU_GROUP_ATTRIBUTES = (
    Attribute("name", 0o444, lambda _group: "vfio-noiommu\n"),
    Attribute("type", 0o644, lambda _group: "unknown\n"),
    Attribute("reserved_regions", 0o444, lambda _group: ""),
)

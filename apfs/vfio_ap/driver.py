"""The module vfio_ap: the matrix device, the driver of mediated devices, loading and unloading.

Source: drivers/s390/crypto/vfio_ap_drv.c.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.kernel.device import SYS, UEVENT, Bus, Device, Driver, driver_link, emit
from apfs.kernel.s390dbf import DebugArea
from apfs.mdev.core import MdevDriver, MdevType
from apfs.sysfs.entries import Attribute, Link
from apfs.vfio_ap.ops import MODULE, MatrixMdev, VfioApDriver

if TYPE_CHECKING:
    from apfs.ap.bus import ApBus
    from apfs.ap.queue import ApQueue
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys
    from apfs.mdev.core import Mdev, MdevBus
    from apfs.sysfs.tree import Tree
    from apfs.vfio.device import VfioCore
    from apfs.vfio_ap.migration.revision import Migration

INSTANCES = 65536
_WARNINGS = 4
"""Level of warnings in debug areas (DBF_WARN)."""
MDEV_DRIVERS = {"vfio_mdev": "mdev", "vfio_ap_mdev": MODULE}
"""Names of the driver of mediated devices, each with the module that it belongs to."""
FEATURES = "guest_matrix hotplug ap_config"
"""What the attribute `features` announces, besides `migratable`, which came with the migration series."""


class VfioApMdevDriver(MdevDriver):
    """The driver of mediated matrix devices (struct vfio_ap_matrix_driver)."""

    def __init__(self, bus: MdevBus, driver: VfioApDriver, vfio: VfioCore) -> None:
        name = bus.profile.mdev_driver
        super().__init__(bus, name, MDEV_DRIVERS[name])
        self._driver = driver
        self._vfio = vfio

    def probe(self, mdev: Mdev) -> None:
        """Give a new device its matrix and its VFIO device."""
        data = MatrixMdev(self._driver, mdev)
        data.vdev = self._vfio.register(mdev.path, mdev.uuid, data)
        self._driver.mdevs.append(data)
        mdev.driver_data = data
        data.log("info", f"Adding to iommu group {data.vdev.group.number}")

    def remove(self, mdev: Mdev) -> None:
        """Reset the queues and forget everything that was assigned. EBUSY while a guest has the device."""
        data = mdev.driver_data
        assert isinstance(data, MatrixMdev)  # noqa: S101 -- set by probe
        data.vdev.request_release()
        self._vfio.unregister(data.vdev)
        data.log("info", f"Removing from iommu group {data.vdev.group.number}")
        data.release_queues()
        self._driver.mdevs.remove(data)
        mdev.driver_data = None


class MatrixBus(Bus):
    """The bus `matrix`, which exists only to carry the matrix device."""

    def __init__(self, journal: Journal) -> None:
        super().__init__("matrix", journal)
        self.drivers = [Driver(self, "vfio_ap", None)]
        self.matrix = MatrixParent(self)

    def device(self, name: str) -> Device | None:
        """Return the matrix device."""
        return self.matrix if name == "matrix" else None

    def match(self, _device: Device, _driver: Driver) -> bool:
        """Match everything: there is one device and one driver."""
        return True

    def probe(self, _device: Device, _driver: Driver) -> None:
        """Do nothing: the device is bound as long as it exists."""

    def release(self, _device: Device) -> None:
        """Do nothing: the driver has no bind and unbind files."""


class MatrixParent:
    """The matrix device, `/sys/devices/vfio_ap/matrix`: parent of all mediated devices."""

    subsystem = "matrix"
    path = f"{SYS}/devices/vfio_ap/matrix"
    instances = INSTANCES
    type_name = "vfio_ap-passthrough"

    def __init__(self, bus: MatrixBus) -> None:
        self.journal = bus.journal
        self._bus = bus
        self.bound = False
        self.ap_driver: VfioApDriver
        self.mdev_driver: MdevDriver

    @property
    def driver(self) -> Driver:
        """Its driver."""
        return self._bus.drivers[0]

    def uevent_keys(self) -> Keys:
        """Return DRIVER while it is bound."""
        return (("DRIVER", self.driver.name),) if self.bound else ()


class RootDevice:
    """The root device `/sys/devices/vfio_ap`, which belongs to no bus and never sends an event."""

    subsystem = None
    path = f"{SYS}/devices/vfio_ap"

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def uevent_keys(self) -> Keys:
        """Return nothing."""
        return ()


class VfioAp:
    """The loaded module."""

    def __init__(
        self, tree: Tree, ap_bus: ApBus, mdev_bus: MdevBus, vfio: VfioCore, revision: type[Migration] | None
    ) -> None:
        """Load it: the matrix device, then the AP driver, which gets the waiting queues, then the parent of mdevs."""
        self._tree = tree
        self._ap_bus = ap_bus
        self.mdev_bus = mdev_bus
        self.root = RootDevice(tree.journal)
        self.debug = DebugArea(_WARNINGS)
        """What would be recorded are requests for interrupts by guests that fail (handle_pqap), and none does."""
        self.matrix_bus = MatrixBus(tree.journal)
        self.parent = self.matrix_bus.matrix
        # The device is registered before its driver, which therefore is not named in the first event.
        self.matrix_bus.announce()
        emit(self.parent, "add")
        self.parent.bound = True
        emit(self.parent, "bind")
        self.parent.driver.announce()
        self.driver = self.parent.ap_driver = VfioApDriver(ap_bus, revision)
        ap_bus.register(self.driver)
        self.mdev_driver = VfioApMdevDriver(mdev_bus, self.driver, vfio)
        mdev_bus.drivers.append(self.mdev_driver)
        if self.mdev_driver.module == MODULE:
            self.mdev_driver.announce()
        mdev_bus.had_parent = True
        self.parent.mdev_driver = self.mdev_driver
        self.type = MdevType(mdev_bus, self.parent, "VFIO AP Passthrough Device", "vfio-ap")
        tree.journal.log("info", "vfio_ap matrix: MDEV: Registered")
        emit(self.parent, "change", ("MDEV_STATE", "registered"))

    @property
    def refcount(self) -> int:
        """How many mediated devices and transfer files are open; each keeps the module loaded.

        An open device node that is not bound to an iommufd does not (vfio_df_device_first_open).
        """
        files = sum(file.opened for file in self.driver.transfer_files)
        return sum(mdev.vdev.open_count > 0 for mdev in self.driver.mdevs) + files

    def unload(self) -> None:
        """Remove all mediated devices and both drivers.

        EAGAIN, with nothing changed, while a device or a transfer file is open, EBUSY while a device node is open.
        """
        if self.refcount:
            why = f"module {MODULE} is in use: {self.refcount} mediated devices or transfer files are open"
            raise KernelError(errno.EAGAIN, why)
        for data in self.driver.mdevs:
            data.vdev.request_release()
        self._tree.journal.log("info", "vfio_ap matrix: MDEV: Unregistering")
        for mdev in self.mdev_bus.mdevs:
            self.mdev_bus.remove(mdev)
        emit(self.parent, "change", ("MDEV_STATE", "unregistered"))
        self.mdev_bus.drivers.remove(self.mdev_driver)
        if self.mdev_driver.module == MODULE:
            self.mdev_driver.retire()
        self._ap_bus.unregister(self.driver)
        self.parent.bound = False
        emit(self.parent, "unbind")
        self.parent.driver.retire()
        emit(self.parent, "remove")
        self.matrix_bus.retire()


def status_show(queue: ApQueue) -> str:
    """Whether the queue is assigned to a mediated device, and whether a running guest has it."""
    driver = queue.driver
    assert isinstance(driver, VfioApDriver)  # noqa: S101 -- the attribute is there only while it is bound
    mdev = driver.owner(queue.apqn)
    if mdev is None:
        return "unassigned\n"
    exact = driver.kernel.status_in_use_exact
    return "in use\n" if (mdev.in_guest(queue.apqn) if exact else mdev.vm is not None) else "assigned\n"


QUEUE_ATTRIBUTES = (
    Attribute(
        "status",
        0o444,
        status_show,
        None,
        lambda queue: isinstance(queue.driver, VfioApDriver),
        kernels=lambda kernel: kernel.queue_status,
    ),
)


def features_show(parent: MatrixParent) -> str:
    """What the driver can do."""
    migratable = " migratable" if parent.ap_driver.migration else ""
    return f"{FEATURES}{migratable}\n"


PARENT_ATTRIBUTES = (
    UEVENT,
    Attribute("features", 0o444, features_show, kernels=lambda kernel: kernel.matrix_features),
    Link("driver", driver_link),
    Link("subsystem", lambda _parent: f"{SYS}/bus/matrix"),
)
ROOT_ATTRIBUTES = (UEVENT, Link("module", lambda _root: f"{SYS}/module/{MODULE}"))

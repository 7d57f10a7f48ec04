"""Mediated devices: one parent with one type, creation and removal by UUID (drivers/vfio/mdev)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from apfs.errors import KernelError
from apfs.kernel.device import SYS, UEVENT, Bus, Device, Driver, driver_link, emit
from apfs.kernel.kstrtox import kstrtoul
from apfs.kernel.uuid import UUID_LENGTH, is_uuid
from apfs.sysfs.entries import Attribute, Link
from apfs.sysfs.members import Registry

if TYPE_CHECKING:
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys
    from apfs.kernel.profile import Profile
    from apfs.sysfs.tree import Tree


class MdevDriver(Driver):
    """A driver of mediated devices (struct mdev_driver). The devices that its callbacks get are already in the tree."""

    def probe(self, mdev: Mdev) -> None:
        """Take a new device."""
        raise NotImplementedError

    def remove(self, mdev: Mdev) -> None:
        """Let go of a device. EBUSY, with nothing changed, while it is in use."""
        raise NotImplementedError


class MdevParent(Protocol):
    """A device that can be divided (struct mdev_parent), with the one type that it offers."""

    path: str
    mdev_driver: MdevDriver
    instances: int
    type_name: str
    """Directory name of the type, `<driver>-<type>`."""


class Mdev:
    """A mediated device, `<parent>/<uuid>` (struct mdev_device)."""

    subsystem = "mdev"

    def __init__(self, journal: Journal, parent: MdevParent, uuid: str) -> None:
        self.journal = journal
        self.parent = parent
        self.uuid = uuid
        self.path = f"{parent.path}/{uuid}"
        self.driver: MdevDriver | None = None
        self.driver_data: object | None = None

    def uevent_keys(self) -> Keys:
        """Return DRIVER while bound."""
        return (("DRIVER", self.driver.name),) if self.driver else ()


class MdevBus(Bus):
    """The bus `mdev`."""

    def __init__(self, tree: Tree, profile: Profile) -> None:
        super().__init__("mdev", tree.journal)
        self.profile = profile
        self._tree = tree
        self.mdevs: Registry[Mdev] = Registry()
        self.had_parent = False
        """Whether there was a parent since the module was loaded."""

    def announce(self) -> None:
        """Say that the module was loaded."""
        self.had_parent = False
        super().announce()

    def device(self, name: str) -> Mdev | None:
        """Return the device of that UUID, in lower case."""
        return self.mdevs.get(name)

    def match(self, _device: Device, _driver: Driver) -> bool:
        """Match nothing: a device gets its driver when it is created (mdev_match)."""
        return False

    def probe(self, device: Device, driver: Driver) -> None:
        """Bind a device to a driver."""
        assert isinstance(device, Mdev)  # noqa: S101 -- no other device is on this bus
        assert isinstance(driver, MdevDriver)  # noqa: S101 -- nor is there another driver
        device.driver = driver
        driver.probe(device)
        emit(device, "bind")

    def release(self, device: Device) -> None:
        """Take its driver away. EBUSY, with nothing changed, while the device is in use."""
        assert isinstance(device, Mdev)  # noqa: S101 -- no other device is on this bus
        if device.driver:
            device.driver.remove(device)
            device.driver = None
            emit(device, "unbind")
            self._tree.deactivate()

    def create(self, parent: MdevParent, uuid: str) -> Mdev:
        """Make a device (mdev_device_create).

        EEXIST if the UUID is in use; EUSERS, in old kernels EPERM, without an instance.
        """
        uuid = uuid.lower()
        if self.mdevs.get(uuid):
            raise KernelError(errno.EEXIST, f"mediated device {uuid} already exists")
        mdev = Mdev(self.journal, parent, uuid)
        if not self.available(parent):
            reason = f"all {parent.instances} instances of {parent.type_name} are taken"
            if self.profile.create_limit == "EUSERS":
                raise KernelError(errno.EUSERS, reason)
            if self.profile.mdev_driver == "vfio_ap_mdev":  # it is the driver that refuses the new device
                emit(mdev, "add")
                emit(mdev, "remove")
            raise KernelError(errno.EPERM, reason)
        self.mdevs.add(uuid, mdev)
        emit(mdev, "add")
        self.probe(mdev, parent.mdev_driver)
        return mdev

    def remove(self, mdev: Mdev) -> None:
        """Remove a device (mdev_device_remove). EBUSY, with nothing changed, while it is in use."""
        self.release(mdev)
        self.mdevs.discard(mdev.uuid)
        emit(mdev, "remove")
        self._tree.deactivate()

    def available(self, parent: MdevParent) -> int:
        """Return how many more devices the parent can have."""
        return parent.instances - len(self.mdevs)


class MdevType:
    """The subject of a type's attributes."""

    def __init__(self, bus: MdevBus, parent: MdevParent, pretty_name: str, device_api: str) -> None:
        self.bus = bus
        self.parent = parent
        self.pretty_name = pretty_name
        self.device_api = device_api


def create_store(kind: MdevType, text: str) -> None:
    """Create a device: a UUID of 36 characters, in either case, plus at most one byte. EINVAL otherwise."""
    if len(text) not in (UUID_LENGTH, UUID_LENGTH + 1):
        raise KernelError(errno.EINVAL, f"a UUID has {UUID_LENGTH} characters, not {len(text)}")
    if not is_uuid(text[:UUID_LENGTH]):
        raise KernelError(errno.EINVAL, f"not a UUID: {text[:UUID_LENGTH]!r}")
    kind.bus.create(kind.parent, text[:UUID_LENGTH])


def remove_store(mdev: Mdev, text: str) -> None:
    """Remove the device if a number other than zero is written. EINVAL for what is no number, EBUSY while in use."""
    try:
        wanted = kstrtoul(text)
    except KernelError as error:
        raise KernelError(errno.EINVAL, error.why) from None
    if wanted:
        bus = mdev.parent.mdev_driver.bus
        assert isinstance(bus, MdevBus)  # noqa: S101 -- drivers of mediated devices register nowhere else
        bus.remove(mdev)


TYPE_ATTRIBUTES = (
    Attribute("name", 0o444, lambda kind: f"{kind.pretty_name}\n"),
    Attribute("device_api", 0o444, lambda kind: f"{kind.device_api}\n"),
    Attribute("available_instances", 0o444, lambda kind: f"{kind.bus.available(kind.parent)}\n"),
    Attribute("create", 0o200, None, create_store, raw=True),
)
MDEV_ATTRIBUTES = (
    UEVENT,
    Attribute("remove", 0o200, None, remove_store),
    Link("subsystem", lambda _mdev: f"{SYS}/bus/mdev"),
    Link("driver", driver_link),
    Link("mdev_type", lambda mdev: f"{mdev.parent.path}/mdev_supported_types/{mdev.parent.type_name}"),
)

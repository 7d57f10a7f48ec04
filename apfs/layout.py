"""Where everything is: the directories of a host, top down, with what is linked to what.

The attributes themselves are declared beside the code that serves them; this is the only place that knows paths of
more than one subsystem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from apfs.ap import bus_attributes, card_attributes, queue_attributes, zcdn, zcrypt_attributes
from apfs.ap.mask import NONE
from apfs.ap.names import Apqn, card_name, parse_card_name, queue_name
from apfs.ap.queue import ApQueue
from apfs.ctl import files
from apfs.kernel.device import (
    BUS_ATTRIBUTES,
    DRIVER_ATTRIBUTES,
    MISC_ATTRIBUTES,
    MODULE_LINK,
    SYS,
    UEVENT,
    UEVENT_WRITE_ONLY,
)
from apfs.kernel.module import MODULE_ATTRIBUTES
from apfs.mdev import core as mdev_core
from apfs.sysfs.entries import Link, Special
from apfs.vfio import device as vfio
from apfs.vfio.container import Container, GroupFile
from apfs.vfio.device_file import CdevFile
from apfs.vfio.iommufd import Iommufd
from apfs.vfio_ap import attributes, client, driver
from apfs.vfio_ap.attributes import matrix_mdev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.ap.bus import ApBus
    from apfs.ap.card import ApCard
    from apfs.ap.mask import Mask
    from apfs.kernel.device import Bus, Driver
    from apfs.kernel.module import Module
    from apfs.mdev.core import Mdev
    from apfs.sysfs.directory import Directory
    from apfs.sysfs.entries import Entry
    from apfs.sysfs.members import Registry
    from apfs.system import System

_T = TypeVar("_T")


class _Cards:
    """Card devices, keyed by `apid << 16`."""

    def __init__(self, bus: ApBus) -> None:
        self._bus = bus

    def name(self, key: int) -> str:
        return card_name(key >> 16)

    def find(self, name: str) -> int | None:
        apid = parse_card_name(name)
        return None if apid is None else apid << 16

    def subject(self, key: int) -> ApCard | None:
        return self._bus.cards.get(key >> 16)

    def parent(self, _key: int) -> int:
        return 0

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        return (apid << 16 for apid in sorted(self._bus.cards) if apid << 16 > after)

    def count(self, _parent: int) -> int:
        return len(self._bus.cards)

    def has(self, key: int) -> bool:
        return key >> 16 in self._bus.cards


class _BoundCards(_Cards):
    """Cards that a driver has."""

    def keys(self, parent: int, after: int) -> Iterator[int]:
        return (key for key in super().keys(parent, after) if self.has(key))

    def has(self, key: int) -> bool:
        device = self.subject(key)
        return device is not None and device.driver is not None


class _Queues:
    """Queue devices, keyed by `apid << 16 | apqi`, in the directories of their cards."""

    def __init__(self, bus: ApBus) -> None:
        self._bus = bus

    def name(self, key: int) -> str:
        return queue_name(key >> 16, key & 0xFFFF)

    def find(self, name: str) -> int | None:
        apqn = Apqn.parse(name)
        return None if apqn is None else apqn.apid << 16 | apqn.apqi

    def subject(self, key: int) -> ApQueue | None:
        device = self._bus.cards.get(key >> 16)
        return ApQueue(device, key & 0xFFFF) if device is not None and key & 0xFFFF in device.queues else None

    def parent(self, key: int) -> int:
        return key & ~0xFFFF

    def keys(self, parent: int, after: int) -> Iterator[int]:
        device = self._bus.cards.get(parent >> 16)
        domains = device.queues.after(max(after - parent, -1)) if device else ()
        return (parent | apqi for apqi in domains)

    def count(self, parent: int) -> int:
        device = self._bus.cards.get(parent >> 16)
        return len(device.queues) if device else 0


class _QueueLinks:
    """All queues, or those whose domain `of(card)` contains, in one row."""

    def __init__(self, bus: ApBus, of: Callable[[ApCard], Mask]) -> None:
        self._bus = bus
        self._of = of

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        for apid in sorted(self._bus.cards):
            base = apid << 16
            if base | 0xFFFF > after:
                yield from map(base.__or__, self._of(self._bus.cards[apid]).after(max(after - base, -1)))

    def has(self, key: int) -> bool:
        device = self._bus.cards.get(key >> 16)
        return device is not None and (key & 0xFFFF) in device.queues and (key & 0xFFFF) in self._of(device)


class _Parts(Generic[_T]):
    """Parts of mediated devices, such as their VFIO devices, keyed as the mediated devices are.

    They stand together in one directory, or (`keyed`) each in the directory of its device. Without `name` they are
    called by the UUID.
    """

    def __init__(
        self,
        mdevs: Registry[Mdev],
        part: Callable[[Mdev], _T | None],
        name: Callable[[_T], str] | None = None,
        *,
        keyed: bool = False,
    ) -> None:
        self._mdevs = mdevs
        self._part = part
        self._name = name
        self._keyed = keyed

    def name(self, key: int) -> str:
        if self._name is None:
            return self._mdevs.name(key)
        part = self.subject(key)
        return "(removed)" if part is None else self._name(part)

    def find(self, name: str) -> int | None:
        if self._name is None:
            return self._mdevs.find(name)
        return next((key for key in self._mdevs.keys(0) if self.has(key) and self.name(key) == name), None)

    def subject(self, key: int) -> _T | None:
        mdev = self._mdevs.subject(key)
        return None if mdev is None else self._part(mdev)

    def parent(self, key: int) -> int:
        return key if self._keyed else 0

    def keys(self, parent: int, after: int) -> Iterator[int]:
        if self._keyed and parent:
            return iter((parent,) if parent > after and self.has(parent) else ())
        return (key for key in self._mdevs.keys(0, after) if self.has(key))

    def count(self, parent: int) -> int:
        return sum(1 for _ in self.keys(parent, -1))

    def has(self, key: int) -> bool:
        return self.subject(key) is not None


def _group(mdev: Mdev) -> vfio.VfioGroup | None:
    data = matrix_mdev(mdev)
    return data.vdev.group if data else None


def _vdev(mdev: Mdev) -> vfio.VfioDevice | None:
    data = matrix_mdev(mdev)
    return data.vdev if data else None


def build(system: System) -> None:
    """Declare the whole tree of a system."""
    sys = system.tree.root.fixed("sys")
    buses, devices, classes, modules = (sys.fixed(name) for name in ("bus", "devices", "class", "module"))
    virtual = devices.fixed("virtual")
    iommu = Special("iommu", 0o660, lambda _subject, _read, _write: Iommufd(system.journal))
    dev = system.tree.root.fixed("dev", (iommu,))
    _ap(system, buses, devices)
    _zcrypt(system, virtual, classes)
    mdevs = _matrix(system, buses, devices, classes)
    _misc(system, virtual, classes)
    _vfio(system, sys, mdevs, virtual, classes, dev)
    _modules(system, modules)
    dev.fixed("vfio-ap").dirs("0", _Parts(system.mdev_bus.mdevs, matrix_mdev), client.CLIENT_ENTRIES)
    ctl = system.tree.root.fixed("ctl", files.CTL_ENTRIES, always=system)
    handed = Special("fd", 0o600, lambda file, _read, _write: file.take())
    ctl.fixed("fds").files("0", system.handed, handed)


def _link(name: str, target: str, exists: Callable[[], object] = lambda: True) -> Link:
    return Link(name, lambda _subject: target if exists() else None)


def _registered(bus: Bus, name: str) -> Callable[[int], Driver | None]:
    return lambda _key: next((driver for driver in bus.drivers if driver.name == name), None)


def _bound_to(name: str) -> Callable[[ApCard], Mask]:
    return lambda device: next((domains for driver, domains in device.bound.items() if driver.name == name), NONE)


_DRIVER_ENTRIES = (*DRIVER_ATTRIBUTES, MODULE_LINK)


def _ap(system: System, buses: Directory, devices: Directory) -> None:
    """Declare the AP bus with its cards, queues and drivers."""
    bus = system.ap_bus
    root = devices.fixed("ap", (UEVENT,), always=bus.root)
    cards = root.dirs("card", _Cards(bus), (*card_attributes.CARD_ATTRIBUTES, *zcrypt_attributes.CARD_ATTRIBUTES))
    queue_entries: tuple[Entry, ...] = (
        *queue_attributes.QUEUE_ATTRIBUTES,
        *zcrypt_attributes.QUEUE_ATTRIBUTES,
        *driver.QUEUE_ATTRIBUTES,
    )
    queues = cards.dirs("00", _Queues(bus), queue_entries)

    directory = buses.fixed("ap", bus_attributes.BUS_ATTRIBUTES, always=bus)
    links = directory.fixed("devices")
    links.links("00", queues, _QueueLinks(bus, lambda device: device.queues))
    links.links("card", cards, _Cards(bus))

    drivers = directory.fixed("drivers")
    drivers.fixed("cex4card", _DRIVER_ENTRIES, _registered(bus, "cex4card")).links("card", cards, _BoundCards(bus))
    for name in ("cex4queue", "vfio_ap"):
        child = drivers.fixed(name, _DRIVER_ENTRIES, _registered(bus, name))
        child.links("00", queues, _QueueLinks(bus, _bound_to(name)))


def _zcrypt(system: System, virtual: Directory, classes: Directory) -> None:
    """Declare the class of additional zcrypt nodes."""
    nodes = virtual.fixed("zcrypt").dirs("0", system.zcdn.nodes, zcdn.NODE_ATTRIBUTES)
    classes.fixed("zcrypt", zcdn.CLASS_ATTRIBUTES, always=system.zcdn).links("0", nodes, system.zcdn.nodes)


def _matrix(system: System, buses: Directory, devices: Directory, classes: Directory) -> Directory:
    """Declare the matrix device, the buses matrix and mdev, and the mediated devices, which are returned."""
    path = driver.MatrixParent.path
    mdevs = system.mdev_bus.mdevs

    def loaded(part: Callable[[driver.VfioAp], object]) -> Callable[[int], object | None]:
        return lambda _key: part(system.vfio_ap) if system.vfio_ap else None

    def iommu_group(mdev: Mdev) -> str | None:
        group = _group(mdev)
        return f"{SYS}/kernel/iommu_groups/{group.number}" if group else None

    root = devices.fixed("vfio_ap", driver.ROOT_ATTRIBUTES, loaded(lambda module: module.root))
    matrix = root.fixed("matrix", driver.PARENT_ATTRIBUTES, loaded(lambda module: module.parent))
    mdev_entries: tuple[Entry, ...] = (
        *mdev_core.MDEV_ATTRIBUTES,
        *attributes.MDEV_ATTRIBUTES,
        Link("iommu_group", iommu_group),
    )
    mdev_dirs = matrix.dirs("0", mdevs, mdev_entries)
    types = matrix.fixed("mdev_supported_types")
    kind = types.fixed("vfio_ap-passthrough", mdev_core.TYPE_ATTRIBUTES, loaded(lambda module: module.type))
    kind.fixed("devices").links("0", mdev_dirs, mdevs)

    matrix_bus = buses.fixed("matrix", BUS_ATTRIBUTES, loaded(lambda module: module.matrix_bus))
    matrix_bus.fixed("devices", (_link("matrix", path),))
    entries = (UEVENT_WRITE_ONLY, _link("matrix", path))
    matrix_bus.fixed("drivers").fixed("vfio_ap", entries, loaded(lambda module: module.parent.driver))

    mdev_bus = buses.fixed(
        "mdev", BUS_ATTRIBUTES, lambda _key: system.mdev_bus if system.modules["mdev"].loaded else None
    )
    mdev_bus.fixed("devices").links("0", mdev_dirs, mdevs)
    mdev_driver = mdev_bus.fixed("drivers").fixed(
        "vfio_ap_mdev", _DRIVER_ENTRIES, _registered(system.mdev_bus, "vfio_ap_mdev")
    )
    mdev_driver.links("0", mdev_dirs, _Parts(mdevs, matrix_mdev))
    parent = _link("matrix", path, lambda: system.vfio_ap)
    classes.fixed("mdev_bus", (parent,), lambda _key: system if system.modules["mdev"].loaded else None)
    return mdev_dirs


def _misc(system: System, virtual: Directory, classes: Directory) -> None:
    """Declare the misc devices of zcrypt and VFIO."""
    misc = virtual.fixed("misc")
    z90crypt = f"{SYS}/devices/virtual/misc/z90crypt"
    misc.fixed("z90crypt", MISC_ATTRIBUTES, always=system.z90crypt)
    misc.fixed("vfio", MISC_ATTRIBUTES, lambda _key: system.vfio_misc if system.modules["vfio"].loaded else None)
    misc.fixed("iommu", MISC_ATTRIBUTES, always=system.iommu_misc)
    container = _link("vfio", f"{SYS}/devices/virtual/misc/vfio", lambda: system.modules["vfio"].loaded)
    iommu = _link("iommu", f"{SYS}/devices/virtual/misc/iommu")
    classes.fixed("misc", (iommu, _link("z90crypt", z90crypt), container))


def _vfio(
    system: System, sys: Directory, mdevs: Directory, virtual: Directory, classes: Directory, dev: Directory
) -> None:
    """Declare VFIO groups and devices with their nodes, device numbers and IOMMU groups."""
    registry = system.mdev_bus.mdevs
    groups = _Parts(registry, _group, lambda group: str(group.number))
    devices = _Parts(registry, _vdev, lambda device: f"vfio{device.index}")
    keyed_devices = _Parts(registry, _vdev, lambda device: f"vfio{device.index}", keyed=True)

    def loaded(_key: int) -> object | None:
        return system if system.modules["vfio"].loaded else None

    group_dirs = virtual.fixed("vfio", (), loaded).dirs("0", groups, vfio.GROUP_ATTRIBUTES)
    holder = mdevs.fixed("vfio-dev", (), lambda key: registry.subject(key) if devices.has(key) else None)
    device_dirs = holder.dirs("vfio", keyed_devices, vfio.DEVICE_ATTRIBUTES)
    classes.fixed("vfio", (), loaded).links("0", group_dirs, groups)
    classes.fixed("vfio-dev", (), loaded).links("vfio", device_dirs, devices)

    misc = (
        *(_link(f"{device.major}:{device.minor}", device.path) for device in (system.z90crypt, system.iommu_misc)),
        _link(
            f"{system.vfio_misc.major}:{system.vfio_misc.minor}",
            system.vfio_misc.path,
            lambda: system.modules["vfio"].loaded,
        ),
    )
    numbers = sys.fixed("dev").fixed("char", misc)
    device_numbers = _Parts(registry, _vdev, lambda device: f"{vfio.DEVICE_MAJOR}:{device.index}")
    numbers.links(f"{vfio.DEVICE_MAJOR}", device_dirs, devices, device_numbers)
    group_numbers = _Parts(registry, _group, lambda group: f"{vfio.GROUP_MAJOR}:{group.minor}")
    numbers.links(f"{vfio.GROUP_MAJOR}", group_dirs, groups, group_numbers)

    iommu = sys.fixed("kernel").fixed("iommu_groups").dirs("0", groups, vfio.IOMMU_GROUP_ATTRIBUTES)
    iommu.fixed("devices").links("0", mdevs, groups, registry, keyed=True)

    container_node = Special("vfio", 0o666, lambda _subject, _read, _write: Container(system.journal))
    group_node = Special("group", 0o600, lambda group, _read, _write: GroupFile(system.journal, group))
    device_node = Special("device", 0o600, lambda device, _read, _write: CdevFile(system.journal, device))
    nodes = dev.fixed("vfio", (container_node,), loaded)
    nodes.files("0", groups, group_node)
    nodes.fixed("devices").files("vfio", devices, device_node)


def _modules(system: System, directory: Directory) -> None:
    """Declare `/sys/module`; the AP bus is built in, and there for its parameters only."""
    ap = directory.fixed("ap", (UEVENT_WRITE_ONLY,), always=system.ap_module)
    ap.fixed("parameters", bus_attributes.MODULE_PARAMETERS, always=system.ap_bus)
    drivers = {
        "zcrypt_cex4": [("ap:cex4card", "ap/drivers/cex4card"), ("ap:cex4queue", "ap/drivers/cex4queue")],
        "vfio_ap": [("ap:vfio_ap", "ap/drivers/vfio_ap"), ("mdev:vfio_ap_mdev", "mdev/drivers/vfio_ap_mdev")],
    }
    for module in system.modules.values():
        child = directory.fixed(module.name, MODULE_ATTRIBUTES, _if_loaded(module))
        child.fixed("holders", [_link(holder.name, holder.path, _loaded(holder)) for holder in module.holders])
        if module.name in drivers:
            child.fixed("drivers", [_link(name, f"{SYS}/bus/{path}") for name, path in drivers[module.name]])


def _loaded(module: Module) -> Callable[[], bool]:
    return lambda: module.loaded


def _if_loaded(module: Module) -> Callable[[int], Module | None]:
    return lambda _key: module if module.loaded else None

"""The directory tree of a host: all directories, top down, and their links.

The attributes themselves are declared next to the code that serves them; this is the only place that knows paths of
more than one subsystem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from apfs.ap import bus_attributes, card_attributes, queue_attributes, zcdn, zcrypt_attributes
from apfs.ap.mask import NONE
from apfs.ap.members import BoundCards, Cards, QueueLinks, Queues
from apfs.ctl import files, sandbox
from apfs.ctl.migration import MIGRATION_ENTRIES
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
from apfs.kernel.s390dbf import DEBUG_ATTRIBUTES
from apfs.kernel.uuid import UUID
from apfs.kernel.uv import QUERY_ATTRIBUTES, UV_ATTRIBUTES, Ultravisor
from apfs.mdev import core as mdev_core
from apfs.mdev.members import Parts
from apfs.sysfs.entries import Attribute, Link, Node, Special
from apfs.vfio import device as vfio
from apfs.vfio import type1
from apfs.vfio.container import Container, GroupFile
from apfs.vfio.device_file import CdevFile
from apfs.vfio.iommufd import Iommufd
from apfs.vfio_ap import attributes, client, driver
from apfs.vfio_ap.attributes import matrix_mdev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apfs.ap.card import ApCard
    from apfs.ap.mask import Mask
    from apfs.kernel.device import Bus, Driver, MiscDevice
    from apfs.kernel.module import Module
    from apfs.mdev.core import Mdev
    from apfs.sysfs.directory import Directory
    from apfs.sysfs.entries import Entry
    from apfs.sysfs.members import Registry
    from apfs.system import System

_T = TypeVar("_T")

_NUMBER = "(?:0|[1-9][0-9]*)"
"""Regular expression of a number as the kernel writes it."""


class _Roots:
    """The roots of guests' trees, keyed as the guests are."""

    def __init__(self, guests: Registry[System]) -> None:
        self._guests = guests
        self.name, self.find = guests.name, guests.find
        self.parent, self.keys, self.count = guests.parent, guests.keys, guests.count
        self.place = guests.place

    def subject(self, key: int) -> Directory | None:
        guest = self._guests.subject(key)
        return None if guest is None else guest.tree.root


def _group(mdev: Mdev) -> vfio.VfioGroup | None:
    data = matrix_mdev(mdev)
    return data.vdev.group if data else None


def _vdev(mdev: Mdev) -> vfio.VfioDevice | None:
    data = matrix_mdev(mdev)
    return data.vdev if data else None


class _Tops(NamedTuple):
    """The directories in which several subsystems have something."""

    buses: Directory
    devices: Directory
    virtual: Directory
    classes: Directory
    numbers: tuple[Directory, Directory]
    """`/sys/dev/char`, and what a sandbox shows there."""
    kernel: Directory
    dev: Directory
    nodes: Directory
    """What a sandbox shows in `/dev`."""
    sandbox: Directory
    shown_virtual: Directory
    """What a sandbox shows of `/sys/devices/virtual` even if it is empty: nothing can be bound to what is not there."""

    def always(self, name: str) -> Directory:
        """Declare a class's directory for sandboxes."""
        return self.shown_virtual.fixed(name, shown_at=f"/sys/devices/virtual/{name}")


def build(system: System) -> None:
    """Declare the whole tree of a system."""
    root = system.tree.root
    sys = root.fixed("sys")
    buses, devices, classes, modules = (sys.fixed(name) for name in ("bus", "devices", "class", "module"))
    iommu = Special("iommu", 0o660, lambda _subject, _read, _write: Iommufd(system.journal, system.profile))
    has_iommufd = system.profile.iommufd
    ctl = root.fixed("ctl", files.CTL_ENTRIES, always=system)
    shown = ctl.fixed("sandbox", sandbox.ENTRIES)
    char = shown.fixed("char", _misc_numbers(system), shown_at="/sys/dev/char")
    nodes = [_misc_node(system.z90crypt, 0o600)]
    if has_iommufd:
        nodes.insert(0, _misc_node(system.iommu_misc, 0o660))
    tops = _Tops(
        buses=buses,
        devices=devices,
        virtual=devices.fixed("virtual"),
        classes=classes,
        numbers=(sys.fixed("dev").fixed("char", _misc_numbers(system)), char),
        kernel=sys.fixed("kernel"),
        dev=root.fixed("dev", (iommu,) if has_iommufd else ()),
        nodes=shown.fixed("dev", tuple(nodes)),
        sandbox=shown,
        shown_virtual=shown.fixed("virtual"),
    )
    real = sandbox.CharDevices(system)
    char.links("1:1", real, real, real)
    _ap(system, tops)
    _zcrypt(system, tops)
    mdevs = _matrix(system, tops)
    _misc(system, tops)
    _vfio(system, tops, mdevs)
    _modules(system, modules)
    _firmware(system, sys.fixed("firmware"))
    bound = Parts(system.mdev_bus.mdevs, matrix_mdev)
    tops.dev.fixed("vfio-ap").dirs("0", bound, client.CLIENT_ENTRIES)
    ctl.fixed("migration").dirs("0", bound, MIGRATION_ENTRIES)
    handed = Special("fd", 0o600, lambda file, _read, _write: file.take())
    ctl.fixed("fds").files("0", system.handed, handed)
    root.fixed("guests").trees("0", _Roots(system.guests))


def _of(system: System, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return those of the entries that the kernel of a system has."""
    return tuple(
        entry
        for entry in entries
        if not isinstance(entry, Attribute) or entry.kernels is None or entry.kernels(system.profile)
    )


def _link(name: str, target: str, exists: Callable[[], object] = lambda: True) -> Link:
    return Link(name, lambda _subject: target if exists() else None)


def _registered(bus: Bus, name: str) -> Callable[[int], Driver | None]:
    return lambda _key: next((driver for driver in bus.drivers if driver.name == name), None)


def _bound_to(name: str) -> Callable[[ApCard], Mask]:
    return lambda device: next((domains for driver, domains in device.bound.items() if driver.name == name), NONE)


_DRIVER_ENTRIES = (*DRIVER_ATTRIBUTES, MODULE_LINK)


def _ap(system: System, tops: _Tops) -> None:
    """Declare the AP bus with its cards, queues and drivers."""
    bus = system.ap_bus
    root = tops.devices.fixed("ap", (UEVENT,), always=bus.root)
    card_entries = (*card_attributes.CARD_ATTRIBUTES, *zcrypt_attributes.CARD_ATTRIBUTES)
    cards = root.dirs("card", Cards(bus), _of(system, card_entries))
    queue_entries: tuple[Entry, ...] = (
        *queue_attributes.QUEUE_ATTRIBUTES,
        *zcrypt_attributes.QUEUE_ATTRIBUTES,
        *driver.QUEUE_ATTRIBUTES,
    )
    queues = cards.dirs("00", Queues(bus), _of(system, queue_entries))

    directory = tops.buses.fixed("ap", _of(system, bus_attributes.BUS_ATTRIBUTES), always=bus)
    links = directory.fixed("devices")
    links.links("00", queues, QueueLinks(bus, lambda device: device.queues))
    links.links("card", cards, Cards(bus))

    drivers = directory.fixed("drivers")
    drivers.fixed("cex4card", _DRIVER_ENTRIES, _registered(bus, "cex4card")).links("card", cards, BoundCards(bus))
    for name in ("cex4queue", "vfio_ap"):
        child = drivers.fixed(name, _DRIVER_ENTRIES, _registered(bus, name))
        child.links("00", queues, QueueLinks(bus, _bound_to(name)))


def _zcrypt(system: System, tops: _Tops) -> None:
    """Declare the class of additional zcrypt nodes, which get into the /dev of a sandbox one by one."""
    used = tops.virtual.fixed("zcrypt", (), lambda _key: system if len(system.zcdn.nodes) else None)
    entries = _of(system, zcdn.NODE_ATTRIBUTES)
    nodes = used.dirs("0", system.zcdn.nodes, entries, may_come=".+")
    tops.always("zcrypt").dirs("0", system.zcdn.nodes, entries, may_come=".+")
    tops.classes.fixed("zcrypt", zcdn.CLASS_ATTRIBUTES, always=system.zcdn).links("0", nodes, system.zcdn.nodes)
    for directory in tops.numbers:
        directory.links(str(zcdn.MAJOR), nodes, system.zcdn.nodes, zcdn.Numbers(system.zcdn.nodes))
    node = Node("node", 0o600, lambda node: (zcdn.MAJOR, node.minor))
    tops.sandbox.fixed("zcrypt").files("0", system.zcdn.nodes, node)


def _matrix(system: System, tops: _Tops) -> Directory:
    """Declare the matrix device, the buses matrix and mdev, and the mediated devices, which are returned."""
    path = driver.MatrixParent.path
    mdevs = system.mdev_bus.mdevs

    def loaded(part: Callable[[driver.VfioAp], object]) -> Callable[[int], object | None]:
        return lambda _key: part(system.vfio_ap) if system.vfio_ap else None

    def iommu_group(mdev: Mdev) -> str | None:
        group = _group(mdev)
        return f"{SYS}/kernel/iommu_groups/{group.number}" if group else None

    root = tops.devices.fixed("vfio_ap", driver.ROOT_ATTRIBUTES, loaded(lambda module: module.root))
    matrix = root.fixed("matrix", _of(system, driver.PARENT_ATTRIBUTES), loaded(lambda module: module.parent))
    mdev_entries: tuple[Entry, ...] = (
        *mdev_core.MDEV_ATTRIBUTES,
        *attributes.MDEV_ATTRIBUTES,
        Link("iommu_group", iommu_group),
    )
    mdev_dirs = matrix.dirs("0", mdevs, _of(system, mdev_entries), may_come=UUID.replace("A-F", ""))
    types = matrix.fixed("mdev_supported_types")
    kind = types.fixed("vfio_ap-passthrough", mdev_core.TYPE_ATTRIBUTES, loaded(lambda module: module.type))
    kind.fixed("devices").links("0", mdev_dirs, mdevs)

    areas = tops.kernel.fixed("debug").fixed("s390dbf")
    if system.profile.debug_area:
        areas.fixed("vfio_ap", DEBUG_ATTRIBUTES, loaded(lambda module: module.debug))

    matrix_bus = tops.buses.fixed("matrix", BUS_ATTRIBUTES, loaded(lambda module: module.matrix_bus))
    matrix_bus.fixed("devices", (_link("matrix", path),))
    entries = (UEVENT_WRITE_ONLY, _link("matrix", path))
    matrix_bus.fixed("drivers").fixed("vfio_ap", entries, loaded(lambda module: module.parent.driver))

    mdev_bus = tops.buses.fixed("mdev", BUS_ATTRIBUTES, _while_loaded(system.modules["mdev"], system.mdev_bus))
    mdev_bus.fixed("devices").links("0", mdev_dirs, mdevs)
    name = system.profile.mdev_driver
    mdev_driver = mdev_bus.fixed("drivers").fixed(name, _DRIVER_ENTRIES, _registered(system.mdev_bus, name))
    mdev_driver.links("0", mdev_dirs, Parts(mdevs, matrix_mdev))
    parent = _link("matrix", path, lambda: system.vfio_ap)
    tops.classes.fixed("mdev_bus", (parent,), lambda _key: system if system.has_mdev_class else None)
    return mdev_dirs


def _misc(system: System, tops: _Tops) -> None:
    """Declare the misc devices of zcrypt and VFIO."""
    vfio_module = system.modules["vfio"]
    misc = tops.virtual.fixed("misc")
    misc.fixed("z90crypt", MISC_ATTRIBUTES, always=system.z90crypt)
    misc.fixed("vfio", MISC_ATTRIBUTES, _while_loaded(vfio_module, system.vfio_misc))
    links = [
        _link("z90crypt", system.z90crypt.path),
        _link("vfio", system.vfio_misc.path, _loaded(vfio_module)),
    ]
    if system.profile.iommufd:
        misc.fixed("iommu", MISC_ATTRIBUTES, always=system.iommu_misc)
        links.insert(0, _link("iommu", system.iommu_misc.path))
    tops.classes.fixed("misc", links)


def _misc_numbers(system: System) -> tuple[Link, ...]:
    """Return the links to the misc devices by number."""

    def link(device: MiscDevice, exists: Callable[[], object] = lambda: True) -> Link:
        return _link(f"{device.major}:{device.minor}", device.path, exists)

    vfio_module = system.modules["vfio"]
    links = [link(system.z90crypt), link(system.vfio_misc, _loaded(vfio_module))]
    if system.profile.iommufd:
        links.insert(1, link(system.iommu_misc))
    return tuple(links)


def _misc_node(device: MiscDevice, mode: int) -> Node:
    return Node(device.path.rpartition("/")[2], mode, lambda _subject: (device.major, device.minor))


def _vfio(system: System, tops: _Tops, mdevs: Directory) -> None:
    """Declare VFIO: the node of the container, and for each mediated device a group and a device."""
    module = system.modules["vfio"]
    container = Special("vfio", 0o666, lambda _subject, _read, _write: Container(system.vfio))
    nodes = tops.dev.fixed("vfio", (container,), _while_loaded(module, module))
    shown = tops.nodes.fixed("vfio", (_misc_node(system.vfio_misc, 0o666),), _while_loaded(module, module))
    _vfio_groups(system, tops, mdevs, (nodes, shown))
    if system.profile.vfio_dev_class:
        device_dirs = _vfio_devices(system, tops, mdevs)
        if system.profile.vfio_cdev:
            _vfio_nodes(system, tops, device_dirs, (nodes, shown))


def _vfio_groups(system: System, tops: _Tops, mdevs: Directory, nodes: tuple[Directory, Directory]) -> None:
    """Declare groups, with their class, numbers, files and nodes, and the IOMMU groups that they represent."""
    registry, loaded = system.mdev_bus.mdevs, _while_loaded(system.modules["vfio"], system)
    groups = Parts(registry, _group, lambda group: str(group.number))
    numbers = Parts(registry, _group, lambda group: f"{vfio.GROUP_MAJOR}:{group.minor}")
    file = Special("group", 0o600, lambda group, _read, _write: GroupFile(system.journal, group))
    node = Node("group", 0o600, lambda group: (vfio.GROUP_MAJOR, group.minor))

    used = tops.virtual.fixed("vfio", (), _with_devices(system))
    group_dirs = used.dirs("0", groups, vfio.GROUP_ATTRIBUTES, may_come=_NUMBER)
    tops.always("vfio").dirs("0", groups, vfio.GROUP_ATTRIBUTES, may_come=_NUMBER)
    tops.classes.fixed("vfio", (), loaded).links("0", group_dirs, groups)
    for directory in tops.numbers:
        directory.links(str(vfio.GROUP_MAJOR), group_dirs, groups, numbers)
    opened, shown = nodes
    opened.files("0", groups, file)
    shown.files("0", groups, node)

    entries = _of(system, vfio.IOMMU_GROUP_ATTRIBUTES)
    iommu_groups = tops.kernel.fixed("iommu_groups").dirs("0", groups, entries, may_come=_NUMBER)
    iommu_groups.fixed("devices").links("0", mdevs, groups, registry, keyed=True)


def _vfio_devices(system: System, tops: _Tops, mdevs: Directory) -> Directory:
    """Declare devices, each in the directory of its mediated device, with their class; return their directories."""
    registry, loaded = system.mdev_bus.mdevs, _while_loaded(system.modules["vfio"], system)
    devices = Parts(registry, _vdev, lambda device: f"vfio{device.index}")
    keyed_devices = Parts(registry, _vdev, lambda device: f"vfio{device.index}", keyed=True)
    holder = mdevs.fixed("vfio-dev", (), lambda key: registry.subject(key) if devices.has(key) else None)
    entries = _of(system, vfio.DEVICE_ATTRIBUTES)
    device_dirs = holder.dirs("vfio", keyed_devices, entries, may_come=f"vfio{_NUMBER}")
    tops.classes.fixed("vfio-dev", (), loaded).links("vfio", device_dirs, devices)
    return device_dirs


def _vfio_nodes(system: System, tops: _Tops, device_dirs: Directory, nodes: tuple[Directory, Directory]) -> None:
    """Declare the numbers, files and nodes of devices."""
    registry = system.mdev_bus.mdevs
    devices = Parts(registry, _vdev, lambda device: f"vfio{device.index}")
    numbers = Parts(registry, _vdev, lambda device: f"{vfio.DEVICE_MAJOR}:{device.index}")
    file = Special("device", 0o600, lambda device, _read, _write: CdevFile(system.journal, device))
    node = Node("device", 0o600, lambda device: (vfio.DEVICE_MAJOR, device.index))
    for directory in tops.numbers:
        directory.links(str(vfio.DEVICE_MAJOR), device_dirs, devices, numbers)
    opened, shown = nodes
    opened.fixed("devices", (), _with_devices(system)).files("vfio", devices, file)
    shown.fixed("devices", (), _with_devices(system)).files("vfio", devices, node)


def _with_devices(system: System) -> Callable[[int], System | None]:
    """Return the subject of a directory that exists only while there are VFIO devices (cleanup_glue_dir, devtmpfs)."""
    return lambda _key: system if system.vfio.devices else None


def _firmware(system: System, firmware: Directory) -> None:
    """Declare the Ultravisor, which LPARs and Secure Execution guests have."""
    machine = system.machine
    if machine.secure_execution or machine.environment == "lpar":
        ultravisor = Ultravisor(guest=machine.secure_execution)
        firmware.fixed("uv", UV_ATTRIBUTES, always=ultravisor).fixed("query", QUERY_ATTRIBUTES)


def _modules(system: System, directory: Directory) -> None:
    """Declare `/sys/module`; the AP bus is built in, and there for its parameters only."""
    ap = directory.fixed("ap", (UEVENT_WRITE_ONLY,), always=system.ap_module)
    ap.fixed("parameters", _of(system, bus_attributes.MODULE_PARAMETERS), always=system.ap_bus)
    parameters = {"zcrypt": _of(system, zcrypt_attributes.MODULE_PARAMETERS)}
    name = system.profile.mdev_driver
    drivers = {
        "zcrypt_cex4": [("ap:cex4card", "ap/drivers/cex4card"), ("ap:cex4queue", "ap/drivers/cex4queue")],
        "vfio_ap": [("ap:vfio_ap", "ap/drivers/vfio_ap")],
    }
    drivers.setdefault(driver.MDEV_DRIVERS[name], []).append((f"mdev:{name}", f"mdev/drivers/{name}"))
    for module in system.modules.values():
        child = directory.fixed(module.name, MODULE_ATTRIBUTES, _while_loaded(module, module))
        if parameters.get(module.name):
            child.fixed("parameters", parameters[module.name])
        elif module.name == "vfio_iommu_type1":
            child.fixed("parameters", type1.MODULE_PARAMETERS, _while_loaded(module, system.vfio.type1))
        child.fixed("holders", [_link(holder.name, holder.path, _loaded(holder)) for holder in module.holders])
        if module.name in drivers:
            child.fixed("drivers", [_link(name, f"{SYS}/bus/{path}") for name, path in drivers[module.name]])


def _loaded(module: Module) -> Callable[[], bool]:
    return lambda: module.loaded


def _while_loaded(module: Module, subject: _T) -> Callable[[int], _T | None]:
    """Return the subject of a directory that exists only while a module is loaded."""
    return lambda _key: subject if module.loaded else None

"""The driver core: buses, drivers, devices, binding, and uevents (drivers/base in Linux)."""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol, get_args

from apfs.errors import KernelError
from apfs.journal.records import Action, Uevent
from apfs.kernel.uuid import UUID
from apfs.sysfs.entries import Attribute, Link

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apfs.journal.log import Journal
    from apfs.journal.records import Keys

SYS = "/sys"

_ACTIONS: dict[str, Action] = {action: action for action in get_args(Action)}
_SYNTHETIC = re.compile(
    r"(?P<action>[a-z]+)"
    rf"(?: (?P<uuid>{UUID})"
    r"(?P<arguments>(?: [0-9a-zA-Z]+=[0-9a-zA-Z]+)*))?"
)


class EventSource(Protocol):
    """Anything with a place in sysfs that sends uevents."""

    @property
    def path(self) -> str:
        """Absolute path of its directory."""

    @property
    def subsystem(self) -> str | None:
        """Value of SUBSYSTEM; None for a device of no bus and no class, which never sends an event."""

    @property
    def journal(self) -> Journal:
        """The journal that its events go to."""

    def uevent_keys(self) -> Keys:
        """Return the keys of its uevent file, which all its events have as well."""


class Device(EventSource, Protocol):
    """A device on a bus."""

    @property
    def driver(self) -> Driver | None:
        """The driver it is bound to."""


class Kobject:
    """Something in sysfs that is not a device: a bus, a driver, a class, a module. It has no keys of its own."""

    def __init__(self, journal: Journal, path: str, subsystem: str) -> None:
        self.journal = journal
        self.path = path
        self.subsystem = subsystem
        self.removal_told = False
        """Whether a `remove` was sent, even a synthetic one: then there is no second one."""

    def uevent_keys(self) -> Keys:
        """Return nothing."""
        return ()

    def announce(self) -> None:
        """Say that it is there (kobject_uevent with KOBJ_ADD)."""
        self.removal_told = False
        emit(self, "add")

    def retire(self) -> None:
        """Say that it goes away, unless somebody has said so (__kobject_del)."""
        if not self.removal_told:
            emit(self, "remove")


class SysClass(Kobject):
    """A class of devices (struct class)."""

    def __init__(self, journal: Journal, name: str) -> None:
        super().__init__(journal, f"{SYS}/class/{name}", "class")


class Driver(Kobject):
    """A driver registered on a bus (struct device_driver)."""

    def __init__(self, bus: Bus, name: str, module: str | None) -> None:
        super().__init__(bus.journal, f"{bus.path}/drivers/{name}", "drivers")
        self.bus = bus
        self.name = name
        self.module = module


class Bus(Kobject, ABC):
    """A bus type: its drivers in registration order, and the rules by which they get devices."""

    def __init__(self, name: str, journal: Journal) -> None:
        super().__init__(journal, f"{SYS}/bus/{name}", "bus")
        self.name = name
        self.autoprobe = True
        self.drivers: list[Driver] = []

    def announce(self) -> None:
        """Say that it is there, with what every registration begins with (bus_register)."""
        self.autoprobe = True
        super().announce()

    @abstractmethod
    def device(self, name: str) -> Device | None:
        """Return the device of that name."""

    @abstractmethod
    def match(self, device: Device, driver: Driver) -> bool:
        """Whether the driver is made for that kind of device."""

    @abstractmethod
    def probe(self, device: Device, driver: Driver) -> None:
        """Bind a device that has no driver, or raise what the probe function of the bus or the driver returns."""

    @abstractmethod
    def release(self, device: Device) -> None:
        """Unbind a device."""

    def attach(self, device: Device) -> None:
        """Offer an unbound device to all drivers, in order of registration, until one takes it (device_attach)."""
        for driver in self.drivers:
            if self.match(device, driver):
                try:
                    self.probe(device, driver)
                except KernelError:
                    continue  # that a driver declines is not an error: the next one is asked
                return


def emit(source: EventSource, action: Action, *extra: tuple[str, str]) -> None:
    """Send a uevent: the specific keys first, then those of the device (kobject_uevent_env).

    No `unbind` has a MODALIAS: it would make udev load the module again (zap_modalias_env).
    """
    if source.subsystem is not None and not source.journal.muted:
        devpath = source.path.removeprefix(SYS)
        keys = source.uevent_keys()
        if action == "unbind":
            keys = tuple(key for key in keys if key[0] != "MODALIAS")
        source.journal.add(Uevent(action, devpath, source.subsystem, extra + keys))


class MiscDevice:
    """A device of the class `misc` (struct miscdevice)."""

    subsystem = "misc"
    major = 10

    def __init__(self, journal: Journal, name: str, minor: int, devname: str, mode: int | None = None) -> None:
        self.journal = journal
        self.minor = minor
        self.path = f"{SYS}/devices/virtual/misc/{name}"
        self._keys = [("MAJOR", str(self.major)), ("MINOR", str(minor)), ("DEVNAME", devname)]
        if mode is not None:
            self._keys.append(("DEVMODE", f"0{mode:o}"))

    def uevent_keys(self) -> Keys:
        """Return device number, name and mode."""
        return tuple(self._keys)

    def announce(self) -> None:
        """Say that it is there (device_add)."""
        emit(self, "add")

    def retire(self) -> None:
        """Say that it goes away (device_del)."""
        emit(self, "remove")


# -- uevent files ----------------------------------------------------------------------------------


def uevent_show(source: EventSource) -> str:
    """Return one KEY=value line per key; empty for a device without keys."""
    return "".join(f"{key}={value}\n" for key, value in source.uevent_keys())


def uevent_store(source: EventSource, text: str) -> None:
    """Send a synthetic event: `ACTION [UUID [KEY=value]...]` (kobject_synth_uevent).

    EINVAL for anything else and for too many arguments, ENOMEM for what does not fit into the event.
    """
    found = _SYNTHETIC.fullmatch(text[:-1] if text.endswith(("\n", "\0")) else text)
    action = _ACTIONS.get(found["action"]) if found else None
    if not found or not action:
        raise KernelError(
            errno.EINVAL, f"expected one of {', '.join(sorted(_ACTIONS))}, then optionally UUID and KEY=value"
        )
    arguments = [item.split("=") for item in (found["arguments"] or "").split()]
    extra = [("SYNTH_UUID", found["uuid"] or "0"), *((f"SYNTH_ARG_{key}", value) for key, value in arguments)]
    if _Environment().add_all(extra) < len(extra):
        raise KernelError(errno.EINVAL, f"more than {_ENTRIES} arguments, or more than {_BYTES} bytes of them")
    if action == "remove" and isinstance(source, Kobject):
        source.removal_told = True
    if source.subsystem is not None:
        _emit_if_it_fits(source, source.subsystem, action, tuple(extra))


def _emit_if_it_fits(source: EventSource, subsystem: str, action: Action, extra: Keys) -> None:
    """Send an event with a user's keys. ENOMEM if there is no room for them and for what the event needs."""
    devpath = source.path.removeprefix(SYS)
    head = (("ACTION", action), ("DEVPATH", devpath), ("SUBSYSTEM", subsystem))
    environment = _Environment()
    fitting = environment.add_all((*head, *extra)) == len(head) + len(extra)
    keys = []
    for key in source.uevent_keys():
        if environment.add(key):
            keys.append(key)
        elif key[0] not in _CORE_KEYS:
            fitting = False
    if not fitting or not environment.add(("SEQNUM", str(source.journal.uevents_sent + 1))):
        raise KernelError(errno.ENOMEM, f"the event has more than {_ENTRIES} entries, or more than {_BYTES} bytes")
    if action == "unbind":
        keys = [key for key in keys if key[0] != "MODALIAS"]
    if not source.journal.muted:
        source.journal.add(Uevent(action, devpath, subsystem, (*extra, *keys)))


_ENTRIES, _BYTES = 64, 2048
"""What an event has room for (UEVENT_NUM_ENVP, UEVENT_BUFFER_SIZE)."""
# Keys of the driver core are left out if there is no room; for others the event fails (dev_uevent).
_CORE_KEYS = frozenset(("MAJOR", "MINOR", "DEVNAME", "DEVMODE", "DEVTYPE", "DRIVER"))


class _Environment:
    """The room for the entries of one event (struct kobj_uevent_env)."""

    def __init__(self) -> None:
        self._entries = 0
        self._used = 0

    def add(self, key: tuple[str, str]) -> bool:
        """Add an entry if there is room for it and its NUL (add_uevent_var)."""
        length = len(key[0]) + 1 + len(key[1])
        if self._entries >= _ENTRIES or length >= _BYTES - self._used:
            return False
        self._entries += 1
        self._used += length + 1
        return True

    def add_all(self, keys: Iterable[tuple[str, str]]) -> int:
        """Add entries until one does not fit; return how many did."""
        return sum(1 for _ in takewhile(self.add, keys))


UEVENT = Attribute("uevent", 0o644, uevent_show, uevent_store, raw=True)
# Buses, drivers and modules take synthetic events but have nothing to show.
UEVENT_WRITE_ONLY = Attribute("uevent", 0o200, None, uevent_store, raw=True)
MISC_ATTRIBUTES = (
    UEVENT,
    Attribute("dev", 0o444, lambda device: f"{device.major}:{device.minor}\n"),
    Link("subsystem", lambda _device: f"{SYS}/class/misc"),
)


# -- files of buses and drivers --------------------------------------------------------------------


def drivers_autoprobe_show(bus: Bus) -> str:
    """Whether new devices are offered to drivers."""
    return f"{int(bus.autoprobe)}\n"


def drivers_autoprobe_store(bus: Bus, text: str) -> None:
    """Turn it off if the first character is `0`, otherwise on."""
    bus.autoprobe = not text.startswith("0")


def drivers_probe_store(bus: Bus, text: str) -> None:
    """Offer a device to the drivers of its bus. ENODEV if it is unknown; success even if no driver took it."""
    device = _named(bus, text)
    if device.driver is None:
        bus.attach(device)


def bind_store(driver: Driver, text: str) -> None:
    """Bind a device to this driver: ENODEV unknown or not matching, EBUSY if bound already, then the probe's errno."""
    device = _named(driver.bus, text)
    if not driver.bus.match(device, driver):
        raise KernelError(errno.ENODEV, f"{driver.name} does not support {_name(text)}")
    if device.driver is not None:
        raise KernelError(errno.EBUSY, f"{_name(text)} is bound to {device.driver.name} already")
    driver.bus.probe(device, driver)


def unbind_store(driver: Driver, text: str) -> None:
    """Unbind a device from this driver; no other driver is tried. ENODEV if it is not bound to this driver."""
    device = _named(driver.bus, text)
    if device.driver is not driver:
        raise KernelError(errno.ENODEV, f"{_name(text)} is not bound to {driver.name}")
    driver.bus.release(device)


def _name(text: str) -> str:
    # sysfs_streq() forgives one trailing newline.
    return text.removesuffix("\n")


def _named(bus: Bus, text: str) -> Device:
    device = bus.device(_name(text))
    if device is None:
        raise KernelError(errno.ENODEV, f"no device {_name(text)!r} on the {bus.name} bus")
    return device


BUS_ATTRIBUTES = (
    UEVENT_WRITE_ONLY,
    Attribute("drivers_probe", 0o200, None, drivers_probe_store),
    Attribute("drivers_autoprobe", 0o644, drivers_autoprobe_show, drivers_autoprobe_store),
)
DRIVER_ATTRIBUTES = (
    UEVENT_WRITE_ONLY,
    Attribute("bind", 0o200, None, bind_store),
    Attribute("unbind", 0o200, None, unbind_store),
)
MODULE_LINK = Link("module", lambda driver: f"{SYS}/module/{driver.module}" if driver.module else None)


def driver_link(device: Device) -> str | None:
    """Target of a device's `driver` link, which is absent while it is unbound."""
    return device.driver.path if device.driver else None

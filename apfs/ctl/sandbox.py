"""`/ctl/sandbox`: files with entries of both the real machine and the emulated host.

`/dev` has nodes, character devices with the numbers of the emulated host. They cannot be opened: the file system is
mounted `nodev`, because the kernel would open its own device. Elsewhere, a sandbox has bind mounts of real entries next
to ours. That is impossible for the links of `/sys/dev/char` and the lines of `/proc/modules`, so the real machine is
queried for these at each access.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from apfs.ap import zcdn
from apfs.kernel.device import MiscDevice
from apfs.sysfs.entries import Special
from apfs.sysfs.openfile import TextFile
from apfs.vfio import device as vfio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.kernel.module import Module
    from apfs.system import System

_MAJORS = (zcdn.MAJOR, vfio.DEVICE_MAJOR, vfio.GROUP_MAJOR)
_MINOR_BITS = 20
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,3}):(0|[1-9][0-9]{0,6})")


class CharDevices:
    """The real machine's entries in /sys/dev/char, keyed by device number, without numbers that the host uses.

    All that a directory of links needs: their names, which of them exist, and where they lead.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._ours = {device.minor for device in (system.z90crypt, system.iommu_misc, system.vfio_misc)}

    def _hidden(self, major: int, minor: int) -> bool:
        return major in _MAJORS or (major == MiscDevice.major and minor in self._ours)

    @property
    def members(self) -> CharDevices:
        """Their names."""
        return self

    def name(self, key: int) -> str:
        """Return `major:minor`."""
        return f"{key >> _MINOR_BITS}:{key & (1 << _MINOR_BITS) - 1}"

    def find(self, name: str) -> int | None:
        """Return the key of a name that could be one."""
        found = _NUMBER.fullmatch(name)
        if found is None:
            return None
        major, minor = int(found[1]), int(found[2])
        if major >> 32 - _MINOR_BITS or minor >> _MINOR_BITS or self._hidden(major, minor):
            return None
        return major << _MINOR_BITS | minor

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        """Yield the keys greater than `after`, ascending."""
        found = map(self.find, self._system.real_machine.char_devices())
        return iter(sorted(key for key in found if key is not None and key > after))

    def has(self, key: int) -> bool:
        """Whether there is such a device."""
        return self._system.real_machine.char_device(self.name(key)) is not None

    def path(self, key: int, _entry: int) -> str:
        """Return the directory of a device; its own name if it has gone in the meantime."""
        name = self.name(key)
        return self._system.real_machine.char_device(name) or f"/sys/dev/char/{name}"


def modules(emulated: Iterable[Module], real: str) -> str:
    """Return the text of /proc/modules (m_show): ours, the latest first, then the real ones."""
    ours = [module for module in emulated if module.loaded]
    lines = [_line(module) for module in reversed(ours)]
    names = {module.name for module in ours}
    return "".join((*lines, *(line for line in real.splitlines(keepends=True) if line.split(" ")[0] not in names)))


def _line(module: Module) -> str:
    users = "".join(f"{holder.name}," for holder in module.holders if holder.loaded) or "-"
    return f"{module.name} {module.size} {module.refcount} {users} Live 0x0000000000000000\n"


def _text(system: System) -> str:
    return modules(system.modules.values(), system.real_machine.modules())


ENTRIES = (
    Special(
        "modules",
        0o444,
        lambda system, _read, _write: TextFile(system.journal, "/ctl/sandbox/modules", partial(_text, system)),
    ),
)

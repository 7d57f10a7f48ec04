"""Everything that programs can do to a host, as steps that are possible at any time: what is wrong then is refused."""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from apfs.ctl import views
from apfs.ctl.header import head
from apfs.ctl.status import status
from apfs.errors import KernelError
from apfs.journal.history import History
from apfs.sysfs.entries import BOTH, READ, WRITE
from tests.hosts import CREATE, M1, M2, MATRIX
from tests.vfio.client import Cdev, Device
from tests.vfio.program import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.host import Host
    from apfs.sysfs.tree import OpenFile
    from apfs.testing.files import SystemShell

T = TypeVar("T")
CARDS = """
[qci]
domains = [0x04, 0x47, 0xab]
max_adapter = 63
facilities = ["APSC", "APXA", "QACT", "RC8A", "APSB"]
[[card]]
adapters = [5, 6]
type = "CEX8P"
[[card]]
adapter = 7
type = "CEX8C"
[masks]
apmask = "-5-6"
"""
PLACES = (
    *("/sys/bus/ap/apmask", "/sys/bus/ap/ap_domain", "/sys/bus/ap/scans", "/sys/bus/ap/bindings", CREATE),
    *(f"{MATRIX}/{M1}/{name}" for name in ("assign_adapter", "assign_domain", "unassign_adapter", "matrix", "remove")),
    *("/sys/devices/ap/card07/online", "/sys/devices/ap/card07/serialnr", "/sys/devices/ap/card07/07.0004/mkvps"),
    *("/sys/devices/ap/card05/05.0004/driver_override", "/sys/bus/ap/drivers/vfio_ap/unbind"),
    *(f"/dev/vfio-ap/{M1}/{name}" for name in ("guest", "migration_state", "data_stream", "reset")),
    *("/dev/vfio/0", "/dev/vfio/vfio", "/dev/vfio/devices/vfio0", "/dev/iommu"),
    *("/ctl/console", "/ctl/journal", f"/ctl/migration/{M1}/stream", f"/ctl/migration/{M1}/check", "/ctl/ioctl"),
)
TEXTS = (
    *("", "0", "1", "4", "5", "6", "0x47", "171", "-5", "+5-6", "05.0004", "vfio_ap", M1, M2, "STOP", "STOP_COPY"),
    *("RESUMING", "RUNNING", "\0", "5\0x", "x" * 5000, "{}", "\xff"),
)
VERBS = (
    *("scan", "tick 29", "tick 60", "plug 8 CEX7P", "unplug 6", "unplug 7", "configure 7 off", "configure 7 on"),
    *("checkstop 5 on", "add-domain 9", "remove-domain 0x47", "fail-reset 05.0004", "no-answer 07.0004 2", "kvm none"),
    *("fault /sys/bus/ap/apmask EIO 2", f"fault {MATRIX}/{M1}/matrix EBUSY", "clear-faults", "kvm auto", "nonsense"),
    *("load-key 07.0004 aes 0123456789abcdef", "set-key 07 aes", "requests 07.0004 count=3", f"se-guest {M1} on"),
    *(f"config-events {M1} on", "rmmod vfio_ap", "modprobe vfio_ap", "help", "tapq 5 apsc=0"),
)


class Actor:
    """Whoever works on a host, with what is open."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.program = Program(host.scenario)
        self.program.shell.system = self.program.shell.host = host
        self.program.shell._tree = host.tree  # noqa: SLF001 -- the host is this one
        self.files: list[OpenFile] = []
        self.unread: set[OpenFile] = set()
        """Files that are not open for reading: Linux itself refuses that with EBADF, and nobody is asked."""
        self.unwritten: set[OpenFile] = set()
        self.devices: list[Device] = []
        self.steps: tuple[Callable[[int, int], object], ...] = (
            *(
                self.write,
                self.write,
                self.read,
                self.verb,
                self.verb,
                self.assign,
                self.assign,
                self.guest,
                self.guest,
            ),
            *(self.guest, self.guest, self.open, self.use, self.use, self.close, self.inside),
            *(self.migrate, self.migrate, self.pass_time, self.chmod, self.device, self.ioctl, self.ioctl, self.leave),
        )

    def take(self, step: int, first: int, second: int) -> None:
        """Take a step."""
        with suppress(KernelError, OSError):
            self.steps[step % len(self.steps)](first, second)

    @property
    def shell(self) -> SystemShell:
        """A shell on the host."""
        return self.program.shell

    def write(self, place: int, text: int) -> None:
        self.shell.write(_one(PLACES, place), _one(TEXTS, text).encode("latin-1"))

    def read(self, place: int, _: int) -> None:
        file = self.host.tree.open(self.host.tree.resolve(_one(PLACES, place)), READ)
        try:
            file.read(0, 4096)  # once: ctl/ioctl has no end
        finally:
            file.close()

    def verb(self, verb: int, _: int) -> None:
        self.shell.console(_one(VERBS, verb))

    def assign(self, what: int, uuid: int) -> None:
        name, number = _one((("adapter", 5), ("adapter", 6), ("domain", 4), ("domain", 0x47), ("domain", 0xAB)), what)
        self.shell.echo(number, f"{MATRIX}/{_one((M1, M2), uuid)}/assign_{name}")

    def guest(self, uuid: int, on: int) -> None:
        self.shell.echo(int(on % 4 > 0), f"/dev/vfio-ap/{_one((M1, M1, M2), uuid)}/guest")

    def open(self, place: int, access: int) -> None:
        tree = self.host.tree
        way = _one((BOTH, READ, WRITE), access)
        file = tree.open(tree.resolve(_one(PLACES, place)), way)
        self.files.append(file)
        if not way.read:
            self.unread.add(file)
        if not way.write:
            self.unwritten.add(file)

    def use(self, file: int, text: int) -> None:
        """Use an open file, whatever has become of its node."""
        opened = _one(self.files, file)
        if text % 2 and opened not in self.unread:
            opened.read(0, 100)
        elif not text % 2 and opened not in self.unwritten:
            opened.write(_one(TEXTS, text // 2).encode("latin-1"))

    def close(self, file: int, _: int) -> None:
        opened = _one(self.files, file)
        self.files.remove(opened)
        opened.close()

    def inside(self, action: int, number: int) -> None:
        """Do something in a guest, or in a guest of it."""
        guest = self.shell.guest(_one((M1, M1, M2), number))
        actions: tuple[Callable[[], object], ...] = (
            lambda: guest.console("modprobe vfio_ap"),
            lambda: guest.echo("0x0", "/sys/bus/ap/apmask"),
            lambda: guest.echo(M2, CREATE),
            lambda: guest.echo("5", f"{MATRIX}/{M2}/assign_adapter"),
            lambda: guest.echo("4", f"{MATRIX}/{M2}/assign_domain"),
            lambda: guest.echo("1", f"/dev/vfio-ap/{M2}/guest"),
            lambda: guest.guest(M2).console("scan"),
            lambda: guest.echo("1", "/sys/devices/ap/card05/05.0004/se_bind"),
            lambda: guest.read("/sys/devices/ap/card05/serialnr"),
            lambda: guest.console(_one(VERBS, number)),
            lambda: self.files.append(guest.system.tree.open(guest.system.tree.resolve("/dev/vfio/0"), BOTH)),
            lambda: self.files.append(guest.system.tree.open(guest.system.tree.resolve("/sys/bus/ap/apmask"), BOTH)),
        )
        _one(actions, action)()

    def migrate(self, step: int, size: int) -> None:
        """Do a part of a migration by client files."""
        place = f"/dev/vfio-ap/{M1}"
        if step % 3 == 0:
            self.shell.echo(_one(("STOP_COPY", "RESUMING", "STOP", "RUNNING"), size), f"{place}/migration_state")
        elif step % 3 == 1:
            self.shell.read(f"{place}/data_stream", size=5 + size)
        else:
            stream = self.shell.read(f"/ctl/migration/{M1}/stream")
            self.shell.write(f"{place}/data_stream", stream[: len(stream) - size % 3])

    def pass_time(self, seconds: int, _: int) -> None:
        self.host.pass_time(1 + seconds % 60)

    def chmod(self, place: int, mode: int) -> None:
        tree = self.host.tree
        change = _one(({"mode": 0}, {"mode": 0o444}, {"mode": 0o666}, {"mode": 0o200}, {"atime": 5}), mode)
        tree.setattr(tree.resolve(_one(PLACES, place)), **change)

    def device(self, how: int, uuid: int) -> None:
        """Open a device as a VMM does."""
        self.devices.append(_one((Device, Cdev), how)(self.program, _one((M1, M2), uuid)))

    def ioctl(self, what: int, number: int) -> None:
        """Make an ioctl of an open device, or a file that it came with."""
        device = _one(self.devices, number)
        actions: tuple[Callable[[], object], ...] = (
            lambda: device.set_state(number % 7),
            lambda: device.eventfd(number % 3),
            lambda: device.set_irq(number % 2, -1),
            lambda: device.outcome(0x3B6F),
            lambda: device.outcome(0x3B64 + number, struct.pack("=6I", 24, number, 1, 0, 1, 0)),
            lambda: self.program.read(self._session(device, 3), 30),
            lambda: self.program.send(self._session(device, 4), b"\1" * number),
            lambda: self.program.close(max(self.program.files)),
        )
        if device.fd in self.program.files:
            _one(actions, what)()

    def _session(self, device: Device, state: int) -> int:
        """Return the file of a new migration session."""
        file = device.set_state(state)
        if file not in self.program.files:
            raise KernelError(errno.EBADF, "there is a session already")
        return file

    def leave(self, number: int, _: int) -> None:
        """Close an open device with everything that it came with."""
        device = _one(self.devices, number)
        self.devices.remove(device)
        for fd in (device.fd, device.iommufd if isinstance(device, Cdev) else device.group):
            if fd in self.program.files:
                self.program.close(fd)


def _one(things: Sequence[T], number: int) -> T:
    """Return one of some things; ENOENT without any."""
    if not things:
        raise KernelError(errno.ENOENT, "there is none")
    return things[number % len(things)]


def recording(host: Host) -> str:
    """Return the journal of a host with its header, as `apfs journal --json` prints it."""
    return head(host) + views.journal(host.journal, host.journal.since(0))


def state(host: Host) -> str:
    """Return `ctl/status`."""
    return status(host)


def history(host: Host) -> History:
    """Return the history of a host as it is read from a file."""
    return History.parse(recording(host))

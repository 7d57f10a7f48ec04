"""Machines to test with, and a few words for what tests do to them and see of them."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.records import Uevent
from apfs.scenario.reader import loads
from apfs.testing.files import Shell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BUS = "/sys/bus/ap"
DEVICES = "/sys/devices/ap"
CARD0, CARD4 = f"{DEVICES}/card00", f"{DEVICES}/card04"
Q0, Q4 = f"{CARD0}/00.0029", f"{CARD4}/04.0029"
ALL_ONES = "0x" + "f" * 64

SAMPLE = """
name = "sample"
vfio_ap = false

[qci]
domains = [0x29, 0x2a]
max_domain = 84

[[card]]
adapter = 0
type = "CEX8C"
serial = "93AABEET"

[[card]]
adapter = 4
type = "CEX8P"
serial = "93AABFKP00000000"
"""
"""A CCA card and an EP11 card with two domains, without vfio_ap."""


def toml(cards: Mapping[int, str], domains: Sequence[int], top: str = "", qci: str = "", card: str = "") -> str:
    """Return a scenario; `top`, `qci` and `card` are more lines for the top level, for QCI, and for every card."""
    tables = [f'[[card]]\nadapter = {apid}\ntype = "{kind}"\n{card}\n' for apid, kind in cards.items()]
    return f"{top}\n[qci]\ndomains = {list(domains)}\n{qci}\n" + "\n".join(tables)


def attempt(call: Callable[[], object]) -> str:
    """Return the name of the errno that a call is refused with, nothing if it succeeds."""
    try:
        call()
    except KernelError as error:
        return _name(error)
    return ""


def _name(error: KernelError) -> str:
    # The number has two names, and Python prefers the one that the kernel does not use.
    return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else error.name


class Box:
    """A machine with a shell on it, and an ear for its uevents."""

    def __init__(self, scenario: str = SAMPLE, *, vfio_ap: bool = False) -> None:
        self.host = Host(loads(scenario))
        self.sh = Shell(self.host)
        if vfio_ap:
            self.host.modprobe("vfio_ap")
        self._heard = self.host.journal.last

    def cat(self, path: str) -> str:
        """Return the content of a file as it is, newline included."""
        return self.sh.read(path).decode("latin-1")

    def read(self, path: str) -> str:
        """Return the content of a file, or the name of the errno that reading it gives."""
        try:
            return self.cat(path)
        except KernelError as error:
            return _name(error)

    def write(self, path: str, data: str | bytes) -> str:
        """Write to a file, and return the errno's name; success must have taken every byte."""
        raw = data.encode("latin-1") if isinstance(data, str) else data

        def store() -> None:
            assert self.sh.write(path, raw) == min(len(raw), 4096)

        return attempt(store)

    def names(self, path: str) -> set[str]:
        """Return the names in a directory."""
        return set(self.sh.ls(path))

    def driver(self, device: str) -> str | None:
        """Return the name of a device's driver."""
        return self.sh.readlink(f"{device}/driver").rsplit("/", 1)[1] if "driver" in self.names(device) else None

    def drivers(self) -> dict[str, str | None]:
        """Return the drivers of all queues, by name of the queue."""
        names = [name for name in self.sh.ls(f"{BUS}/devices") if "." in name]
        return {name: self.driver(f"{BUS}/devices/{name}") for name in names}

    def heard(self) -> list[Uevent]:
        """Return the uevents since the last time."""
        records = [record for _, record in self.host.journal.since(self._heard)]
        self._heard = self.host.journal.last
        return [record for record in records if isinstance(record, Uevent)]

    def events(self) -> list[str]:
        """Return the uevents since the last time, each as action, path below `/devices/ap` and keys, blanks between."""
        return [
            " ".join(
                (
                    event.action,
                    event.devpath.removeprefix("/devices/ap/"),
                    *(f"{key}={text}" for key, text in event.keys),
                )
            )
            for event in self.heard()
        ]

    def short_events(self) -> list[str]:
        """Return the uevents since the last time without the keys that every event of a device has."""
        common = ("DEVTYPE=", "DRIVER=", "DEV_TYPE=", "MODALIAS=", "MODE=")
        return [" ".join(word for word in event.split(" ") if not word.startswith(common)) for event in self.events()]

    def tree(self, *roots: str) -> dict[str, str]:
        """Return everything below some directories: modes, link texts and contents, by path."""
        found = {}
        for root in roots or ("/sys",):
            for path, node in self.sh.find(root):
                if stat.S_ISDIR(node.mode):
                    text = f"dir {node.nlink}"
                elif stat.S_ISLNK(node.mode):
                    text = f"link {self.sh.readlink(path)}"
                else:
                    text = f"{stat.S_IMODE(node.mode):04o} {self.read(path) if node.mode & 0o444 else ''}"
                found[path] = text
        return found


def bits(*numbers: int) -> str:
    """Return the text of a mask with these bits."""
    return f"0x{sum(1 << 255 - number for number in set(numbers)):064x}\n"


def all_but(*numbers: int) -> str:
    """Return the text of a mask with all bits but these."""
    return bits(*(set(range(256)) - set(numbers)))

"""Access of a test to an emulated host: reading, writing, and querying what happened.

`Files` is the interface of all hosts. `Shell` implements it for a `Host` or its guest in this process, without a mount;
`apfs.testing.mounted` implements it for mounted hosts.
"""

from __future__ import annotations

import errno
import json
import posixpath
import stat
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from apfs.errors import KernelError
from apfs.journal.history import History
from apfs.sysfs.entries import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.host import Host
    from apfs.journal.records import Action, Refusal, Uevent
    from apfs.sysfs.entries import Stat
    from apfs.system import System

_LINKS = 40


def _bytewise(name: str) -> str:
    """Return a name as the tree has it, with a character for each byte that the name has in a file system."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("latin-1")


def _as_text(name: str) -> str:
    """Return a name of the tree as Python tells names of files: bytes that are not UTF-8 as surrogates."""
    return name if name.isascii() else name.encode("latin-1").decode("utf-8", "surrogateescape")


class Files(ABC):
    """The files of a host, mounted or not. Paths are those on the host, `/sys/bus/ap/apmask`; links are followed.

    A refused request raises an exception with the `errno` of the system call: `KernelError`, which also has the
    reason, or `OSError` on a mount. The journal has the reason in both cases.
    """

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content of a file, read to its end."""

    @abstractmethod
    def write(self, path: str, data: str | bytes) -> int:
        """Write data in a single write and return the number of bytes accepted."""

    @abstractmethod
    def ls(self, path: str) -> list[str]:
        """Return the names in a directory, in the order of the listing."""

    @abstractmethod
    def readlink(self, path: str) -> str:
        """Return the target of a link."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a path exists."""

    def cat(self, path: str) -> str:
        """Return the content of a file as text."""
        return self.read(path).decode()

    def echo(self, text: object, path: str) -> int:
        """Write a text followed by a newline."""
        return self.write(path, f"{text}\n")

    def console(self, *verbs: str) -> None:
        """Execute console verbs, such as `plug 7 CEX7P`, `scan` or `tick 60` (docs/console.md lists all)."""
        for verb in verbs:
            self.write("/ctl/console", verb)

    @property
    def journal(self) -> History:
        """Everything that has happened so far."""
        return History.parse(self.cat("/ctl/journal"))

    def recording(self) -> str:
        """Return header and journal for `apfs replay` and `History.parse`: one JSON object per line."""
        return self.cat("/ctl/header") + self.cat("/ctl/journal")

    def refusals(self, path: str = "*") -> list[Refusal]:
        """Return the refused requests for a path or a glob pattern."""
        return self.journal.refusals(path)

    def uevents(self, devpath: str = "*", action: Action | None = None) -> list[Uevent]:
        """Return the uevents for a DEVPATH or a glob pattern, optionally of one action."""
        return self.journal.uevents(devpath, action)

    def kmsg(self) -> list[str]:
        """Return the lines of the kernel log."""
        return self.journal.kmsg()

    def status(self) -> dict[str, Any]:
        """Return the state behind sysfs: masks, cards, queues, mediated devices (docs/console.md has the keys)."""
        status: dict[str, Any] = json.loads(self.cat("/ctl/status"))
        return status


class SystemShell(Files):
    """The files of a host or a guest in this process; every refusal is a `KernelError`."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._tree = system.tree

    def guest(self, uuid: str) -> SystemShell:
        """Return a shell on the running guest of a mediated device. ENODEV without one."""
        return SystemShell(self.system.guest(uuid))

    @property
    def journal(self) -> History:
        """Everything that has happened so far."""
        return History.of(self.system.journal)

    def _walk(self, path: str, *, follow: bool = True) -> int:
        """Return the node at a path, as path_resolution(7) does."""
        node, rest, links = self._tree.root.id(0), path.split("/"), 0
        while rest:
            name = rest.pop(0)
            if name == "..":
                node = self._tree.parent(node)
            elif name not in ("", "."):
                child = self._tree.lookup(node, _bytewise(name))
                if stat.S_ISLNK(self._tree.stat(child).mode) and (rest or follow):
                    links += 1
                    if links > _LINKS:
                        raise KernelError(errno.ELOOP, f"too many links on the way to {path}")
                    rest = _as_text(self._tree.readlink(child)).split("/") + rest
                else:
                    node = child
        return node

    def read(self, path: str, size: int = 131072) -> bytes:
        """Return the content of a file, read to its end in pieces of `size` bytes."""
        file = self._tree.open(self._walk(path), READ)
        try:
            content = b""
            while piece := bytes(file.read(len(content), size)):
                content += piece
            return content
        finally:
            file.close()

    def write(self, path: str, data: str | bytes) -> int:
        """Write data in a single write and return the number of bytes accepted."""
        file = self._tree.open(self._walk(path), WRITE)
        try:
            return file.write(data.encode() if isinstance(data, str) else data)
        finally:
            file.close()

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory, in the order of the listing."""
        return [_as_text(entry.name) for entry in self._tree.readdir(self._walk(path))]

    def readlink(self, path: str) -> str:
        """Return the target of a link."""
        return _as_text(self._tree.readlink(self._walk(path, follow=False)))

    def stat(self, path: str) -> Stat:
        """Return type, mode and size, without following a last link."""
        return self._tree.stat(self._walk(path, follow=False))

    def exists(self, path: str) -> bool:
        """Whether a path exists."""
        try:
            self._walk(path)
        except KernelError:
            return False
        return True

    def find(self, path: str = "/") -> Iterator[tuple[str, Stat]]:
        """Yield every path at and below a directory with its stat, without following links."""
        yield from self._find(path.rstrip("/") or "/", self._walk(path))

    def _find(self, path: str, node: int) -> Iterator[tuple[str, Stat]]:
        found = self._tree.stat(node)
        yield path, found
        if stat.S_ISDIR(found.mode):
            for entry in self._tree.readdir(node):
                yield from self._find(posixpath.join(path, _as_text(entry.name)), entry.node)


class Shell(SystemShell):
    """The files of a host in this process."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.host = host

"""Helpers for tests that need a host but no mount: the tree as a shell sees it, without a file system in between."""

from __future__ import annotations

import errno
import posixpath
import stat
from typing import TYPE_CHECKING

from apfs.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.host import Host
    from apfs.kernel.kobject import Stat

_LINKS = 40


class Shell:
    """Reads and writes files of a host by absolute path, following links; every refusal is a `KernelError`."""

    def __init__(self, host: Host) -> None:
        self._tree = host.tree

    def _walk(self, path: str, *, follow: bool = True) -> int:
        """Return the node at a path, as path_resolution(7) does."""
        node, rest, links = self._tree.root.id(0), path.split("/"), 0
        while rest:
            name = rest.pop(0)
            if name == "..":
                node = self._tree.parent(node)
            elif name not in ("", "."):
                child = self._tree.lookup(node, name)
                if stat.S_ISLNK(self._tree.stat(child).mode) and (rest or follow):
                    links += 1
                    if links > _LINKS:
                        raise KernelError(errno.ELOOP, f"too many links on the way to {path}")
                    rest = self._tree.readlink(child).split("/") + rest
                else:
                    node = child
        return node

    def cat(self, path: str) -> str:
        """Return the content of a file, read as `cat` does."""
        return self.read(path).decode()

    def read(self, path: str, size: int = 131072) -> bytes:
        """Return the content of a file, read to its end in pieces of `size` bytes."""
        file = self._tree.open(self._walk(path), read=True, write=False)
        try:
            content = b""
            while piece := bytes(file.read(len(content), size)):
                content += piece
            return content
        finally:
            file.close()

    def write(self, path: str, data: str | bytes) -> int:
        """Write a text in one write and return the bytes taken."""
        file = self._tree.open(self._walk(path), read=False, write=True)
        try:
            return file.write(data.encode() if isinstance(data, str) else data)
        finally:
            file.close()

    def echo(self, text: object, path: str) -> int:
        """Write a text with a newline behind it."""
        return self.write(path, f"{text}\n")

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory, in its order."""
        return [entry.name for entry in self._tree.readdir(self._walk(path))]

    def readlink(self, path: str) -> str:
        """Return the text of a link."""
        return self._tree.readlink(self._walk(path, follow=False))

    def stat(self, path: str) -> Stat:
        """Return type, mode and size, without following a last link."""
        return self._tree.stat(self._walk(path, follow=False))

    def exists(self, path: str) -> bool:
        """Whether there is something at a path."""
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
                yield from self._find(posixpath.join(path, entry.name), entry.node)

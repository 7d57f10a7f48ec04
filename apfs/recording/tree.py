"""Sources of a recording: any directory tree with a machine's sysfs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class Tree(Protocol):
    """What recording needs of a machine. Paths are those on the machine; errors have an `errno`, as `OSError` has.

    `apfs.testing.Files` is one, so emulated hosts can be recorded with or without a mount.
    """

    def read(self, path: str) -> bytes:
        """Return the content of a file."""

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory."""


MOST = 1 << 20
"""Bytes that are read of a file. An attribute has a page."""


class Directory:
    """The tree below a directory that contains `sys`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes:
        """Return the content of a file: at most `MOST`, and nothing of a pipe, whatever somebody has put there."""
        descriptor = os.open(self._root / path.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 -- it is open already
            return file.read(MOST) or b""

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory."""
        return os.listdir(self._root / path.lstrip("/"))  # noqa: PTH208 -- names are wanted, not paths

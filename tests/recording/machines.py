"""Machines as plain trees of files: copies of emulated hosts' sysfs, changed to what other machines show."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.host import Host
from apfs.scenario.reader import loads
from apfs.testing.files import Shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def readable(path: str, mode: int) -> bool:
    # These have a mode that allows reading, but nothing to read.
    return bool(mode & 0o444) and path not in ("/sys/class/zcrypt/create", "/sys/class/zcrypt/destroy")


class Copy:
    """A copy of a tree's directories and contents, without links and modes; it can be changed and broken."""

    def __init__(self, files: dict[str, str], directories: dict[str, list[str]]) -> None:
        self.files = files
        self.directories = directories
        self.errors: dict[str, int] = {}
        """What reading a file fails with."""

    @classmethod
    def of(cls, scenario: str, change: Callable[[Host], None] = lambda _host: None) -> Copy:
        """Copy the sysfs of a host after something was done to it."""
        host = Host(loads(scenario))
        change(host)
        shell = Shell(host)
        files, directories = {}, {}
        for path, node in shell.find("/sys"):
            if stat.S_ISDIR(node.mode):
                directories[path] = shell.ls(path)
            elif stat.S_ISREG(node.mode) and readable(path, node.mode):
                try:
                    files[path] = shell.cat(path)
                except KernelError as error:
                    files[path] = error.name
        return cls(files, directories)

    def read(self, path: str) -> bytes:
        if path in self.errors:
            raise OSError(self.errors[path], os.strerror(self.errors[path]), path)
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.files[path].encode()

    def ls(self, path: str) -> list[str]:
        if path in self.errors:
            raise OSError(self.errors[path], os.strerror(self.errors[path]), path)
        if path not in self.directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.directories[path]

    def without(self, *names: str) -> Copy:
        """Take files away, by their last names, as if the kernel did not have them."""
        for path in [path for path in self.files if posixpath.basename(path) in names]:
            del self.files[path]
        for entries in self.directories.values():
            entries[:] = [entry for entry in entries if entry not in names]
        return self

    def put(self, path: str, text: str) -> Copy:
        """Give a file another content, or make it."""
        directory, name = posixpath.split(path)
        if path not in self.files:
            self.directories.setdefault(directory, []).append(name)
        self.files[path] = text
        return self

    def fail(self, number: int, *paths: str) -> Copy:
        """Make reading fail."""
        self.errors |= dict.fromkeys(paths, number)
        return self

    def on_disk(self, root: Path) -> Path:
        """Write the copy to a directory."""
        for path in self.directories:
            (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for path, text in self.files.items():
            (root / path.lstrip("/")).write_text(text)
        for path, names in self.directories.items():
            for name in names:
                # Links are not followed: names are all that is looked at.
                target = root / path.lstrip("/") / name
                if not target.exists():
                    target.touch()
        return root

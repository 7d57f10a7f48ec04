"""Nodes in /dev of a sandbox for devices that come and go, as devtmpfs creates them.

VFIO's nodes have their own directory, which is bind-mounted from the mount. Nodes created through
/sys/class/zcrypt/create are next to those of the real machine. Only root of the real machine can create device nodes,
but the creator of a mount namespace can bind-mount a node of the mount there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.sandbox import linux
from apfs.sandbox.compose import HOST, ZCRYPT_NODES

if TYPE_CHECKING:
    from apfs.sandbox.seccomp import Nodes
    from apfs.sandbox.uevents import Event

_HOST = HOST.removeprefix("/dev/")
_UMASK = 0o022


class Devtmpfs:
    """Does what events mean for /dev, in the mount namespace of a sandbox."""

    def __init__(self, dev: int, nodes: Nodes) -> None:
        """Use a descriptor of the directory: it is where it will be /dev only when bwrap is done."""
        self._dev = dev
        self._shows = nodes != "files"
        self._own = os.fstat(dev).st_dev
        self._device = os.stat(_HOST, dir_fd=dev).st_dev

    def follow(self, event: Event) -> None:
        """Make or remove the node of a zcrypt device."""
        synthetic = event.get("SYNTH_UUID")
        if (
            event.get("SUBSYSTEM") != "zcrypt"
            or event.get("ACTION") not in ("add", "remove")
            or synthetic
            or not self._shows
        ):
            return
        node = Path(_as_path(event.get("DEVNAME")))
        if node.is_absolute() or ".." in node.parts:
            return
        os.fchdir(self._dev)
        os.umask(_UMASK)
        try:
            if event.get("ACTION") == "remove":
                self._remove(node)
            elif not os.path.lexists(node):
                self._add(node, Path(_HOST, ZCRYPT_NODES, Path(_as_path(event.get("DEVPATH"))).name))
        except OSError as error:
            print(f"apfs: /dev/{node}: {error.strerror}", file=sys.stderr)  # noqa: T201

    def _add(self, node: Path, source: Path) -> None:
        above = next(directory for directory in node.parents if directory.exists())
        if above.stat().st_dev != self._own:
            return  # in a directory of the real machine
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch(exist_ok=False)
        try:
            linux.bind(str(source), str(node))
        except FileNotFoundError:  # it has gone in the meantime
            _unlink(node)

    def _remove(self, node: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISCHR(node.lstat().st_mode) and node.stat().st_dev == self._device:
                linux.detach(str(node))
                _unlink(node)


def _as_path(value: str) -> str:
    return os.fsdecode(value.encode("latin-1"))


def _unlink(node: Path) -> None:
    node.unlink()
    if node.parent != Path():
        with contextlib.suppress(OSError):  # there are others in it
            node.parent.rmdir()

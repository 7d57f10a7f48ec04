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
import time
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.sandbox import linux
from apfs.sandbox.compose import HOST, ZCRYPT_NODES

if TYPE_CHECKING:
    from apfs.sandbox.seccomp import Nodes
    from apfs.sandbox.uevents import Event


class Devtmpfs:
    """Does what events mean for /dev in the mount namespace of a process."""

    def __init__(self, mount: Path, pid: int, nodes: Nodes) -> None:
        """Open the namespace, which may be out of reach once others have been joined."""
        self._shows = nodes != "files"
        self._device = mount.stat().st_dev
        self._namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)

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
        # The process that comes from here is in the sandbox for good, and this one is not.
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            linux.die_with_parent(parent=parent)  # which is killed if the sandbox does not come about
            try:
                self._enter()
                _change(event)
            except OSError as error:
                print(f"apfs: /dev/{event.get('DEVNAME')}: {error.strerror}", file=sys.stderr)  # noqa: T201
            finally:
                os._exit(0)
        os.waitpid(child, 0)

    def _enter(self) -> None:
        """Join the namespace, and wait until its /dev is that of the sandbox."""
        linux.enter(self._namespace, linux.CLONE_NEWNS)
        while not (os.path.lexists(HOST) and Path(HOST).stat().st_dev == self._device):
            time.sleep(0.001)


def _change(event: Event) -> None:
    node = Path("/dev", _as_path(event.get("DEVNAME")))
    if ".." in node.parts:
        return
    if event.get("ACTION") == "remove":
        _remove(node)
    elif not os.path.lexists(node):
        _add(node, Path(HOST, ZCRYPT_NODES, Path(_as_path(event.get("DEVPATH"))).name))


def _as_path(value: str) -> str:
    return os.fsdecode(value.encode("latin-1"))


def _add(node: Path, source: Path) -> None:
    above = next(directory for directory in node.parents if directory.exists())
    if above.stat().st_dev != Path("/dev").stat().st_dev:
        return  # in a directory of the real machine
    node.parent.mkdir(parents=True, exist_ok=True)
    node.touch(exist_ok=False)
    try:
        linux.bind(str(source), str(node))
    except FileNotFoundError:  # it has gone in the meantime
        _unlink(node)


def _remove(node: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISCHR(node.lstat().st_mode) and node.stat().st_dev == Path(HOST).stat().st_dev:
            linux.detach(str(node))
            _unlink(node)


def _unlink(node: Path) -> None:
    node.unlink()
    if str(node.parent) != "/dev":
        with contextlib.suppress(OSError):  # there are others in it
            node.parent.rmdir()

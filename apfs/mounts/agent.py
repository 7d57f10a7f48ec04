"""The agent of a session: a process that forks hosts for the commands of a shell, which then need not import much.

`apfs agent` starts it for a command, and names it in that command's environment. Whoever starts a host looks there
first. An agent is used only if a host that it forks is what a fork of this process would be: same installation, same
user, same namespaces, same limits. Otherwise, and if it has ended, a host is started as if there were none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import apfs
from apfs.mounts import forks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INSTALLATION = f"{sys.executable}:{apfs.__path__[0]}"
_PEER = struct.Struct("=3i")
"""struct ucred: process, user and group."""
_STATUS = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed")
"""What lines of /proc/PID/status begin with that tell what forks inherit (proc_pid_status(5))."""


def new_socket() -> tuple[socket.socket, str]:
    """Return the socket of a new agent, which has to listen(2), and what its users are told of it.

    The socket is abstract (unix(7)): it goes with its process, and nothing is left in a directory.
    """
    name = f"apfs-agent-{os.urandom(8).hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    return listener, f"{name}:{_INSTALLATION}"


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end: who connected, or who called listen(2)."""
    process, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return process, user


def find(told: str) -> Callable[[Sequence[str], Sequence[int]], forks.Command] | None:
    """Return what has an agent start a command of apfs with some descriptors; None if it cannot be used."""
    name, _, installation = told.partition(":")
    if installation != _INSTALLATION:
        return None
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):
        control.connect(f"\0{name}")
        process, user = peer(control)
        if user == os.geteuid() and _inherited(str(process)) == _inherited("self"):
            return partial(_start, forks.Forker(control))
    control.close()
    return None


def _start(forker: forks.Forker, words: Sequence[str], descriptors: Sequence[int]) -> forks.Command:
    with forker:
        return forks.Command(words, talks=False, outlives=True, pass_fds=descriptors, forker=forker)


def _inherited(process: str) -> tuple[object, ...]:
    """Return what a fork of a process inherits and a request does not replace, as far as Linux shows it.

    `OSError` if this process may not look at that one.
    """
    directory = Path("/proc", process)
    root = (directory / "root").stat()
    status = (directory / "status").read_text(errors="replace").splitlines()
    label = None
    with contextlib.suppress(OSError):  # Linux without security modules
        label = (directory / "attr/current").read_bytes()
    return (
        {entry.name: str(entry.readlink()) for entry in (directory / "ns").iterdir()},
        (root.st_dev, root.st_ino),
        [line for line in status if line.startswith(_STATUS)],
        [(directory / name).read_bytes() for name in ("limits", "cgroup", "oom_score_adj")],
        label,
        os.getpriority(os.PRIO_PROCESS, 0 if process == "self" else int(process)),
    )

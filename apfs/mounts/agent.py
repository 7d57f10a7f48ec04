"""The agent of a session: a process that forks commands of apfs for a shell, so that these need not import anything.

`apfs agent` starts it for a command, and names it in that command's environment. The commands of apfs look there first
(`apfs.cli.relay`). An agent is used only if its fork is what a fork of the caller would be: same installation, user,
session, namespaces, limits. Otherwise, and if it has ended, everything is done as if there were none.

A command needs this before it knows whether it can save its imports, so little is imported here.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

import apfs
from apfs.mounts.forker import Forker

_INSTALLATION = f"{sys.hexversion:x}:{sys.executable}:{apfs.__path__[0]}"
_PEER = struct.Struct("=3i")
"""struct ucred: process, user and group."""
_STATUS = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed")
"""What lines of /proc/PID/status begin with that tell what forks inherit (proc_pid_status(5))."""
_FILES = ("limits", "cgroup", "oom_score_adj", "attr/current", "personality", "coredump_filter", "timerslack_ns")
"""Files below /proc/PID of which the same is true, as far as Linux has them."""
_EARLY = ("PYTHON", "LANG", "LC_", "LD_", "GLIBC_TUNABLES", "MALLOC_")
"""What variables begin with that an interpreter reads when it starts, or the dynamic linker or the C library does."""
_MOST = 1 << 18
"""How many bytes of that are read; what is longer is never the same."""


def new_socket() -> tuple[socket.socket, str]:
    """Return the socket of a new agent, which has to listen(2), and what its users are told of it.

    The socket is abstract (unix(7)): it goes with its process, and nothing is left in a directory.
    """
    name = f"apfs-agent-{os.urandom(8).hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    return listener, f"{name}:{_INSTALLATION}"


def user(connection: socket.socket) -> int:
    """Return the user at the other end: who connected, or who called listen(2)."""
    return int(_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1])


def introduce(control: socket.socket) -> None:
    """Tell a client that has connected what forks of this process are like. `OSError` if it has gone."""
    control.send(_inherited())


def find(told: str) -> Forker | None:
    """Return the agent that a variable tells of; None if it cannot be used."""
    name, _, installation = told.partition(":")
    if installation != _INSTALLATION:
        return None
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(f"\0{name}")
        if user(control) == os.geteuid() and control.recv(_MOST) == _inherited():
            return Forker(control)
    except OSError:
        pass
    control.close()
    return None


def _inherited() -> bytes:
    """Return what a fork of this process inherits and a request does not replace, as far as Linux shows it."""
    root = os.stat("/")  # noqa: PTH116 -- pathlib takes longer than all this
    namespaces = sorted(os.listdir("/proc/self/ns"))  # noqa: PTH208
    facts = (
        [os.readlink(f"/proc/self/ns/{name}") for name in namespaces],  # noqa: PTH115
        (root.st_dev, root.st_ino),
        [line for line in _read("status").splitlines() if line.startswith(_STATUS)],
        list(map(_read, _FILES)),
        (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
        os.getsid(0),
        sorted((name, value) for name, value in os.environ.items() if name.startswith(_EARLY)),
    )
    return repr(facts).encode()


def _read(name: str) -> str:
    """Return the text of a file about this process; none if Linux does not have it."""
    try:
        with open(f"/proc/self/{name}", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""

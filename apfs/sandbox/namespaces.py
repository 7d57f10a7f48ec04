"""Joining the namespaces of a sandbox."""

from __future__ import annotations

import os
import time
from pathlib import Path

from apfs.sandbox import linux

_KINDS = {"user": linux.CLONE_NEWUSER, "net": linux.CLONE_NEWNET, "mnt": linux.CLONE_NEWNS}


def join(pid: int, *names: str) -> bool:
    """Move this process into namespaces of another, by their names in /proc/PID/ns, and into its user namespace first.

    Returns whether that is another one. `FileNotFoundError` if the process is gone.
    """
    own = Path("/proc/self/ns/user").readlink() == Path(f"/proc/{pid}/ns/user").readlink()
    if not own:
        names = ("user", *names)
        while not is_mapped(pid):
            time.sleep(0.001)
    # Open all before entering the first: afterwards the others may be out of reach.
    descriptors = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), _KINDS[name]) for name in names]
    for descriptor, kind in descriptors:
        linux.enter(descriptor, kind)
        os.close(descriptor)
    return not own


def is_mapped(pid: int) -> bool:
    """Whether the user namespace of a process has its users and groups, without which no process can become root in it.

    bubblewrap tells of its child before it has written them.
    """
    return all(Path(f"/proc/{pid}/{name}").read_text() for name in ("uid_map", "gid_map"))

"""Assembles /sys, /dev and /run of a sandbox, inside the mount namespace that bwrap has created.

bwrap can do it too, but reads the whole table of mounts again for each bind: of 350 binds that makes half a second. So
it waits, and a process that joins its namespaces mounts what `apfs.sandbox.compose` says.

Its gate is a pipe that is full. bwrap makes a file of what it reads there, in the middle of its work and up to the end
of the pipe. That something can be written again tells that it has come so far; the end of the pipe lets it go on.
"""

from __future__ import annotations

import fcntl
import os
import select
from typing import TYPE_CHECKING

from apfs.mounts.server import close_others, end_with
from apfs.sandbox import compose, linux, namespaces

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from apfs.sandbox.seccomp import Nodes

_ROOT = "/newroot"
"""What is the root of the sandbox later, while bwrap works on it."""


def make_gate() -> tuple[int, int]:
    """Return the two ends of a gate: the one that bwrap reads, and the one that is closed to let it go on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    os.write(writer, bytes(size))
    return reader, writer


def start(mount: Path, nodes: Nodes, pid: int, gate: int) -> tuple[int, int]:
    """Start a process that waits at the gate and puts everything together for bwrap's child `pid`.

    Returns its own pid, and a descriptor that can be read when it is done: nothing, or why it could not be done. Its
    exit status is not 0 if it was killed, or found a defect, of which it then prints the traceback.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        end_with(lambda: _work(mount, nodes, pid, gate, writer))
    os.close(writer)
    return child, reader


def _work(mount: Path, nodes: Nodes, pid: int, gate: int, reason: int) -> None:
    try:
        close_others(reason, gate)
        trees = compose.trees(mount, nodes)
        if _wait(gate):
            namespaces.join(pid, "mnt")
            _assemble(trees, mount)
    except OSError as error:
        os.write(reason, f"{error.filename or ''}: {error.strerror}".removeprefix(": ").encode())


def _wait(gate: int) -> bool:
    """Wait until bwrap reads; False if it has ended."""
    poll = select.poll()
    poll.register(gate, select.POLLOUT)
    ((_, found),) = poll.poll()
    return not found & select.POLLERR


def _assemble(trees: Sequence[compose.Tree], mount: Path) -> None:
    os.umask(0)
    linux.detach(_ROOT + compose.GATE)
    host = _open(f"{_ROOT}{mount}")  # now: the mount may be in a directory that is about to be covered
    for tree in trees:
        covered = _open(_ROOT + tree.place)
        linux.mount_tmpfs(_ROOT + tree.place)
        for step in tree.steps:
            place = _ROOT + step.place
            match step:
                case compose.Bind():
                    os.fchdir(host if step.emulated else covered)
                    _bind(step, place)
                case compose.Link():
                    os.symlink(step.text, place)  # noqa: PTH211 -- faster
                case compose.Directory():
                    os.mkdir(place, step.mode)  # noqa: PTH102 -- faster
                case compose.Empty():
                    _make_file(place)


def _bind(step: compose.Bind, place: str) -> None:
    if step.is_dir:
        os.mkdir(place, 0o755)  # noqa: PTH102 -- faster
    else:
        _make_file(place)
    try:
        linux.bind(step.source, place)
    except FileNotFoundError:  # it has gone in the meantime
        (os.rmdir if step.is_dir else os.unlink)(place)


def _open(directory: str) -> int:
    return os.open(directory, os.O_PATH | os.O_DIRECTORY)


def _make_file(place: str) -> None:
    os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

"""The server that forks commands for a test program; `apfs.mounts.forks` is the program's side.

    python -m apfs.cli.forkserver DESCRIPTOR

It has imported what commands need, but runs nothing itself: it has no threads, and has started neither trio nor FUSE
when it forks. DESCRIPTOR is a socket over which it gets a connection for each command.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import socket
import sys
from functools import partial

from apfs import host
from apfs.cli import forking
from apfs.cli.main import main as program
from apfs.mounts.forks import NUMBER
from apfs.mounts.server import close_others, end_with
from apfs.sandbox import linux
from apfs.scenario import reader
from apfs.scenario.model import DEFAULT

_USED = ("apfs.mounts.private", "apfs.sandbox.run")
_MOST_DESCRIPTORS = 64


def serve(control: socket.socket) -> None:
    """Fork until the other end is closed. Commands that still run end with this process, or are told by other means."""
    server = os.getpid()
    running: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                _tell_end(ready, *running.pop(ready))
                continue
            said, (*connections,), _, _ = socket.recv_fds(control, 1, 1)
            if not said:
                return
            connection = socket.socket(fileno=connections[0])
            pid = os.fork()
            if pid == 0:
                end_with(partial(_run, connection, server))
            pidfd = os.pidfd_open(pid)
            poll.register(pidfd, select.POLLIN)
            running[pidfd] = pid, connection
            with contextlib.suppress(OSError):  # the caller has ended
                socket.send_fds(connection, (NUMBER.pack(pid),), (pidfd,))


def _warm_up() -> None:
    """Do once what every command does, short of what a fork must not inherit: threads, loops, mounts.

    Python specializes code when it first runs, and caches compiled patterns and answers of isinstance. Each fork would
    do all this again, on copies of the pages.
    """
    host.Host(reader.load(DEFAULT))
    program.make_context("apfs", ["exec", "true"]).close()
    program.commands["exec"].make_context("exec", ["--mount", "/", "true"]).close()
    program.commands["mount"].make_context("mount", ["--foreground", "/"]).close()


def _tell_end(pidfd: int, pid: int, connection: socket.socket) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pidfd)
    with connection, contextlib.suppress(OSError):
        connection.send(NUMBER.pack(status))


def _run(connection: socket.socket, server: int) -> None:
    """Become what a new process would be: all is taken from the request, but nothing from the server."""
    os.setsid()
    # From here on, so that it does not run if the server is killed before it has told anybody of this process.
    linux.die_with_parent(parent=server)
    size, (directory, *descriptors), _, _ = socket.recv_fds(connection, NUMBER.size, _MOST_DESCRIPTORS)
    with connection.makefile("rb") as file:
        request = json.loads(file.read(*NUMBER.unpack(size)))
    connection.close()
    if request["outlives"]:
        linux.outlive_parent()
    os.fchdir(directory)
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    numbers = request["numbers"]
    # First to where none is in the way of another.
    highest = max(*numbers, *descriptors) + 1
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, highest) for descriptor in descriptors]
    for descriptor, number in zip(high, numbers, strict=True):
        os.dup2(descriptor, number)
    close_others(*numbers)
    forking.run(request["words"])


if __name__ == "__main__":
    for module in _USED:
        importlib.import_module(module)
    with contextlib.suppress(ImportError):  # a command will say what to install
        importlib.import_module("apfs.fuse.session")
    _warm_up()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))

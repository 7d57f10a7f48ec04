"""The server that forks commands, for a test program or for a session; `apfs.mounts.forks` is the other side.

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
from typing import TYPE_CHECKING

from apfs.cli import booting, forking
from apfs.cli.main import main as program
from apfs.mounts import agent
from apfs.mounts.forks import NUMBER
from apfs.mounts.server import close_others, end_with
from apfs.sandbox import linux, seccomp
from apfs.scenario.model import DEFAULT
from apfs.vfio import uapi

if TYPE_CHECKING:
    from collections.abc import Callable

_USED = ("apfs.mounts.private", "apfs.sandbox.run")
_MOST_DESCRIPTORS = 64


class Server:
    """What forks, and what it waits for meanwhile: descriptors, each with what to do when it can be read."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._over = False

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call a function whenever a descriptor can be read."""
        self._watched[descriptor] = ready
        self._poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        del self._watched[descriptor]
        self._poll.unregister(descriptor)

    def serve(self) -> None:
        """Fork until it is told to end. Commands that still run end with this process, or are told by other means."""
        while not self._over:
            for descriptor, _ in self._poll.poll():
                self._watched[descriptor]()

    def end(self) -> None:
        """Have `serve` return."""
        self._over = True

    def accept(self, listener: socket.socket) -> None:
        """Fork for one more process of this user, as long as that wants it."""
        control, _ = listener.accept()
        if agent.peer(control)[1] == os.geteuid():
            self.watch(control.fileno(), partial(self.fork, control, self._forget))
        else:
            control.close()

    def fork(self, control: socket.socket, ended: Callable[[int], None]) -> None:
        """Fork a command for the connection that arrives at a socket; if the other end is closed, say so."""
        said, connections, _, _ = socket.recv_fds(control, 1, 1)
        if not said:
            ended(control.fileno())
            control.close()
            return
        connection = socket.socket(fileno=connections[0])
        pid = os.fork()
        if pid == 0:
            end_with(partial(_run, connection, self._pid))
        pidfd = os.pidfd_open(pid)
        self.watch(pidfd, partial(self._tell_end, pidfd, pid, connection))
        with contextlib.suppress(OSError):  # the caller has ended
            socket.send_fds(connection, (NUMBER.pack(pid),), (pidfd,))

    def _tell_end(self, pidfd: int, pid: int, connection: socket.socket) -> None:
        self._forget(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        with connection, contextlib.suppress(OSError):
            connection.send(NUMBER.pack(status))


def prepare() -> None:
    """Import what commands need, and do once what each would do, short of threads, loops and mounts.

    Python specializes code when it first runs, and caches compiled patterns and answers of isinstance. Each fork would
    do all this again, on copies of the pages.
    """
    for module in _USED:
        importlib.import_module(module)
    with contextlib.suppress(ImportError):  # a command will say what to install
        importlib.import_module("apfs.fuse.session")
    booting.boot_early(DEFAULT)
    seccomp.program(uapi.TYPE, "devices")
    program.make_context("apfs", ["exec", "true"]).close()
    program.commands["exec"].make_context("exec", ["--mount", "/", "true"]).close()
    program.commands["mount"].make_context("mount", ["--foreground", "/"]).close()
    gc.freeze()


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


def _serve_program(control: socket.socket) -> None:
    prepare()
    server = Server()
    server.watch(control.fileno(), partial(server.fork, control, lambda _descriptor: server.end()))
    server.serve()


if __name__ == "__main__":
    _serve_program(socket.socket(fileno=int(sys.argv[1])))

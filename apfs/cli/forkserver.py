"""The server that forks commands, for a test program or for a session; `apfs.mounts.forks` is the other side.

    python -m apfs.cli.forkserver DESCRIPTOR

It has imported what commands need, but runs nothing itself: it has no threads, and has started neither trio nor FUSE
when it forks. DESCRIPTOR is a socket over which it gets a connection for each command.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import marshal
import os
import resource
import select
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from apfs.cli import booting, forking
from apfs.cli.ctrl_c import at_once
from apfs.cli.main import main as program
from apfs.mounts import agent
from apfs.mounts.forker import MOST_DESCRIPTORS, NEW_SESSION, NUMBER, STAND_IN
from apfs.mounts.server import close_others, end_with
from apfs.sandbox import linux, seccomp
from apfs.scenario.model import DEFAULT
from apfs.vfio import uapi

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_RESERVE = 8
"""How many descriptors a server keeps free, so that it can always accept a connection, if only to close it."""
_USED = ("apfs.mounts.private", "apfs.sandbox.run")


class Server:
    """What forks, and what it waits for meanwhile: descriptors, each with what to do when something happens to it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._stand_ins: dict[int, int] = {}
        self._over = False
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVE

    def has_room(self, descriptor: int) -> bool:
        """Whether there is room for more than this descriptor, which has got the lowest number that was free."""
        return descriptor < self._most

    def watch(self, descriptor: int, happens: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call a function whenever a descriptor can be read; without events, when its other end is closed."""
        self._watched[descriptor] = happens
        self._poll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Do not wait for a descriptor any more."""
        del self._watched[descriptor]
        self._poll.unregister(descriptor)

    def serve(self) -> None:
        """Fork until it is told to end, and until those have ended that stand in for others.

        Other commands that still run end with this process, or are told by other means.
        """
        while not self._over or self._stand_ins:
            ready = [(descriptor, self._watched[descriptor]) for descriptor, _ in self._poll.poll()]
            for descriptor, happens in ready:
                # Unless one before has closed it, and perhaps opened another.
                if self._watched.get(descriptor) is happens:
                    happens()

    def end(self) -> None:
        """Have `serve` return."""
        self._over = True

    def hang_up(self) -> None:
        """Do what the kernel does when a shell ends that has stopped jobs: SIGHUP and SIGCONT for those.

        It does so for the process groups of which no process has a parent elsewhere in the session, which this one is.
        """
        for pid in self._stand_ins.values():
            # Each is a child that has not been waited for, so it has a number and a group.
            if _is_stopped(pid):
                group = os.getpgid(pid)
                os.killpg(group, signal.SIGHUP)
                os.killpg(group, signal.SIGCONT)

    def fork(self, control: socket.socket, ended: Callable[[], None]) -> None:
        """Fork a command for the connection that arrives at a socket; if the other end is closed, say so.

        Who asks gets its pid before it says what to run, and no more than the end of the connection if it cannot be.
        """
        kind, connections, _, _ = socket.recv_fds(control, 1, 1)
        if not kind:
            self.forget(control.fileno())
            control.close()
            ended()
            return
        if not connections:  # the kernel has closed it, for want of a descriptor
            return
        connection = socket.socket(fileno=connections[0])
        try:
            pid = os.fork()
        except OSError:  # too many processes, or not enough memory
            connection.close()
            return
        if pid == 0:
            end_with(partial(_run, connection, self._pid, kind))
        pidfd = os.pidfd_open(pid)
        self.watch(pidfd, partial(self._tell_end, pidfd, pid, connection))
        if kind == STAND_IN:
            self._stand_ins[pidfd] = pid
            self.watch(connection.fileno(), partial(self._kill, pidfd, connection), 0)
        if not self.has_room(pidfd):
            connection.shutdown(socket.SHUT_RDWR)  # the fork ends as well: it waits for what it is to run
            return
        with contextlib.suppress(OSError):  # the caller has ended
            socket.send_fds(connection, (NUMBER.pack(pid),), (pidfd,))

    def _kill(self, pidfd: int, connection: socket.socket) -> None:
        """Kill a command together with the process that it stands in for."""
        self.forget(connection.fileno())
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _tell_end(self, pidfd: int, pid: int, connection: socket.socket) -> None:
        self.forget(pidfd)
        if connection.fileno() in self._watched:
            self.forget(connection.fileno())
        self._stand_ins.pop(pidfd, None)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        with connection, contextlib.suppress(OSError):
            connection.send(NUMBER.pack(status))


def _is_stopped(pid: int) -> bool:
    """Whether a child of this process has been stopped by a signal, and not continued."""
    options = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
    found = os.waitid(os.P_PID, pid, options)
    return found is not None and found.si_code == os.CLD_STOPPED


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
    with program.make_context("apfs", ["exec", "true"]) as context:
        for name, words in (("exec", ["--mount", "/", "true"]), ("mount", ["--foreground", "/"]), ("umount", ["/"])):
            program.commands[name].make_context(name, words, parent=context).close()
    gc.freeze()


def _run(connection: socket.socket, server: int, kind: bytes) -> None:
    """Become what a new process would be: all is taken from the request, but nothing from the server."""
    if kind == NEW_SESSION:
        os.setsid()
    else:
        signal.signal(signal.SIGINT, at_once)
    # From here on, so that it does not run if the server is killed before it has told anybody of this process.
    linux.die_with_parent(parent=server)
    close_others(connection.fileno())
    size, received, _, _ = socket.recv_fds(connection, NUMBER.size, MOST_DESCRIPTORS)
    if not size:  # who has asked has ended, or does without
        return
    directory, *descriptors = received
    with connection.makefile("rb") as file:
        request = marshal.loads(file.read(*NUMBER.unpack(size)))  # noqa: S302 -- it is what the same user wants to run
    connection.close()
    if request.get("outlives"):
        linux.outlive_parent()
    os.fchdir(directory)
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    numbers = request["numbers"]
    # First to where none is in the way of another, for which there may be no higher number.
    moved = [_moved_out_of(numbers, descriptor) for descriptor in descriptors]
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
    close_others(*numbers)
    if kind == STAND_IN:
        try:
            os.setpgid(0, request["group"])
        except PermissionError:  # the group has gone, and so has the process that this one stands in for
            return
        _take_signals(request["ignored"], request["blocked"])
    forking.run(request["words"])


def _moved_out_of(numbers: Collection[int], descriptor: int) -> int:
    """Return a duplicate that has none of some numbers. Those that it had to step over are in use then."""
    while descriptor in numbers:
        descriptor = os.dup(descriptor)
    return descriptor


def _take_signals(ignored: Collection[int], blocked: Collection[int]) -> None:
    """Have the signals ignored and blocked that another process has, where Python has just started, too."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if (signal.getsignal(number) is signal.SIG_IGN) != (number in ignored):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def serve_session(listener: socket.socket, owner: int) -> None:
    """Fork for whoever connects and is of this user, until the process ends that a pidfd names as the owner."""
    server = Server()

    def accept() -> None:
        try:
            control, _ = listener.accept()
        except OSError:
            return
        try:
            if agent.user(control) != os.geteuid() or not server.has_room(control.fileno()):
                raise ConnectionRefusedError
            agent.introduce(control)
        except OSError:
            control.close()
        else:
            server.watch(control.fileno(), partial(server.fork, control, lambda: None))

    def end() -> None:
        for descriptor in (owner, listener.fileno()):
            server.forget(descriptor)
        listener.close()
        server.hang_up()
        server.end()

    server.watch(owner, end)
    server.watch(listener.fileno(), accept)
    server.serve()


def _serve_program(control: socket.socket) -> None:
    prepare()
    server = Server()
    server.watch(control.fileno(), partial(server.fork, control, server.end))
    server.serve()


if __name__ == "__main__":
    _serve_program(socket.socket(fileno=int(sys.argv[1])))

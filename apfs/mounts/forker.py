"""Asking a process that forks for a command of apfs; `apfs.cli.forkserver` is the other side.

A command needs this before it knows whether it can save its imports, so little is imported here.
"""

from __future__ import annotations

import marshal
import os
import socket
import struct

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

NUMBER = struct.Struct("=i")
"""What comes back: the pid, with a pidfd, and in the end the exit status. In between, the size of a request is sent."""
NEW_SESSION, STAND_IN = b"n", b"s"
"""What is forked: a process in a session of its own, or one that takes the place of who asks, and ends with that."""
MOST_DESCRIPTORS = 253
"""How many can be in one message (SCM_MAX_FD)."""


class Fork:
    """A process that was forked."""

    def __init__(self, connection: socket.socket, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._connection = connection

    def wait(self) -> int | None:
        """Wait for its end; return the exit status (a negative signal number if one ended it), None if nobody knows."""
        try:
            said = self._connection.recv(NUMBER.size)
        except ConnectionResetError:  # it was killed before it had read the request
            said = b""
        self._connection.close()
        os.close(self.pidfd)
        return NUMBER.unpack(said)[0] if said else None


class Forker:
    """A process that forks, at the other end of a socket. As a context manager, the socket is closed at the end.

    It is of type SOCK_SEQPACKET: messages arrive as a whole, so that several processes and threads may send.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fork(self, kind: bytes, request: Mapping[str, object], descriptors: Sequence[int]) -> Fork:
        """Have a process forked, and return when it was. `OSError` if nobody is there; then it does not run.

        It has the umask of this process. The first descriptor is its directory; the others get the `numbers` of the
        request.
        """
        text = marshal.dumps({**request, "umask": _umask()})
        connection, other = socket.socketpair()
        pidfds: list[int] = []
        try:
            with other:
                socket.send_fds(self._control, (kind,), (other.fileno(),))
            said, pidfds, _, _ = socket.recv_fds(connection, NUMBER.size, 1)
            if not pidfds:
                raise ConnectionResetError
            socket.send_fds(connection, (NUMBER.pack(len(text)),), descriptors)
            connection.sendall(text)
        except OSError:
            connection.close()
            for pidfd in pidfds:
                os.close(pidfd)
            raise
        os.set_inheritable(pidfds[0], False)  # noqa: FBT003 -- takes no keywords
        return Fork(connection, NUMBER.unpack(said)[0], pidfds[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()


def _umask() -> int:
    """Return the umask of this process, which umask(2) only tells when it changes it."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 -- read line by line
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))

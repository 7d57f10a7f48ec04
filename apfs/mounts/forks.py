"""Commands of apfs that start at once: forks of a server process that has imported everything.

The server of a test program is started when it is first needed, and ends with that program in any case. (A session of a
shell can have one, too: `apfs.mounts.agent`.) A server knows nothing about the commands: each has its own connection,
over which it gets what a new process would inherit from this one, and which reports how it ended
(`apfs.mounts.forker`). `apfs.cli.forkserver` is the other side.

A fork inherits from the server what was set when that started: resource limits, niceness and namespaces.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import selectors
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, BinaryIO, cast

from apfs.mounts.forker import NEW_SESSION, Forker
from apfs.mounts.server import PYTHON
from apfs.mounts.table import MountsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHUNK = 1 << 16
_ENDED = "the process that starts hosts and commands has ended"


class _Server(Forker):
    """The process that forks for this one."""

    def __init__(self) -> None:
        self._owner = _identity()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(control)
        with theirs:
            self._process = subprocess.Popen(
                [*PYTHON, "-m", "apfs.cli.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def serves(self) -> bool:
        """Whether it runs, and for this process as it is: its forks are the same users."""
        return self._owner == _identity() and self._process.poll() is None

    def end(self) -> None:
        """End it, at the end of the process that has started it."""
        if self._owner[0] == os.getpid():
            # Not by closing alone: a process forked from this one may have the socket too.
            with contextlib.suppress(OSError):  # it has ended already
                self._control.shutdown(socket.SHUT_RDWR)
            self._process.wait()
        self._control.close()


def _identity() -> tuple[int, tuple[int, int, int], tuple[int, int, int]]:
    return os.getpid(), os.getresuid(), os.getresgid()


_lock = threading.Lock()
_servers: list[_Server] = []
"""The server in use comes last. Others belong to the process that this one was forked from, or to another user."""


def _server() -> _Server:
    with _lock:
        if not _servers or not _servers[-1].serves():
            if not _servers:
                atexit.register(_end_all)
            _servers.append(_Server())
        return _servers[-1]


def _end_all() -> None:
    while _servers:
        _servers.pop().end()


class Command:
    """A running command of apfs. It has of `subprocess.Popen` what is needed."""

    def __init__(
        self,
        words: Sequence[str | os.PathLike[str]],
        *,
        talks: bool = True,
        outlives: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start `apfs` with these words, in a session of its own. It ends with the server, unless it `outlives` that.

        Its standard error is a pipe, and standard input and output are too if it `talks`; else they are nothing.
        `pass_fds` have the same numbers there. `OSError` if there is no directory `cwd`; `MountsError` if nobody forks.
        """
        self.args = [os.fspath(word) for word in words]
        self.pid: int
        self.returncode: int | None = None
        self.lost = False
        """Whether nobody knows how it ended, because the server was killed meanwhile."""
        self._input: BinaryIO | None = None
        self._outputs: list[tuple[BinaryIO, list[bytes]]] = []
        with contextlib.ExitStack() as theirs:
            directory = os.open("." if cwd is None else cwd, os.O_PATH | os.O_DIRECTORY)
            theirs.callback(os.close, directory)
            if talks:
                reader, writer = os.pipe()
                theirs.callback(os.close, reader)
                self._input = open(writer, "wb", buffering=0)  # noqa: PTH123, SIM115 -- a descriptor, until it is closed
                standard = [reader, self._output(theirs)]
            else:
                nothing = theirs.enter_context(open(os.devnull, "r+b", buffering=0)).fileno()  # noqa: PTH123
                standard = [nothing, nothing]
            descriptors = [directory, *standard, self._output(theirs), *pass_fds]
            request = {
                "words": self.args,
                "outlives": outlives,
                "environment": dict(os.environ if env is None else env),
                "numbers": [*range(3), *pass_fds],
            }
            self._send_request(request, descriptors)

    def _output(self, theirs: contextlib.ExitStack) -> int:
        """Return the end of a new pipe that the command writes to."""
        reader, writer = os.pipe()
        theirs.callback(os.close, writer)
        self._outputs.append((open(reader, "rb", buffering=0), []))  # noqa: PTH123, SIM115 -- until its end
        return writer

    def _send_request(self, request: dict[str, object], descriptors: list[int]) -> None:
        try:
            self._fork = _server().fork(NEW_SESSION, request, descriptors)
        except OSError:
            for file in (self._input, *(output for output, _ in self._outputs)):
                if file is not None:
                    file.close()
            raise MountsError(_ENDED) from None
        self.pid = self._fork.pid

    def poll(self) -> int | None:
        """Return the exit status (a negative signal number if one ended it), None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM; nothing if it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; nothing if it has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fork.pidfd, number)

    def communicate(self, said: bytes = b"", timeout: float | None = None) -> tuple[bytes, ...]:
        """Say something, read all that is written up to its end, and wait; return standard output, if any, and error.

        `TimeoutExpired` after `timeout` seconds; nothing is lost then: call again, with nothing to say.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for file, pieces in self._outputs:
                if not file.closed:
                    selector.register(file, selectors.EVENT_READ, pieces)
            if self._input and not self._input.closed:
                os.set_blocking(self._input.fileno(), False)
                selector.register(self._input, selectors.EVENT_WRITE)
            while selector.get_map():
                ready = selector.select(_left(until))
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                for key, _ in ready:
                    if key.data is None:
                        said = self._say(said)
                        done = not said
                    else:
                        key.data.append(os.read(key.fd, _CHUNK))
                        done = not key.data[-1]
                    if done:
                        selector.unregister(key.fileobj)
                        cast("BinaryIO", key.fileobj).close()
        self._wait(_left(until))
        return tuple(b"".join(pieces) for _, pieces in self._outputs)

    def _say(self, text: bytes) -> bytes:
        """Say as much as there is room for, and return the rest; nothing more if nobody listens."""
        if not text or self._input is None:
            return b""
        try:
            return text[self._input.write(text) or 0 :]
        except BrokenPipeError:
            return b""

    def _wait(self, timeout: float | None) -> None:
        if self.returncode is not None:
            return
        poll = select.poll()
        poll.register(self._fork.pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        status = self._fork.wait()
        self.lost = status is None
        self.returncode = -signal.SIGKILL if status is None else status


def _left(until: float | None) -> float | None:
    """Return how many seconds are left, None for no limit."""
    return None if until is None else max(until - time.monotonic(), 0)


def run(
    words: Sequence[str | os.PathLike[str]],
    *,
    stdin: str,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of apfs and return what it said, as `subprocess.run` does.

    `TimeoutExpired` after `timeout` seconds. `MountsError` if nobody forks, or nobody knows how it ended.
    """
    command = Command(words, env=env, cwd=cwd)
    try:
        said = command.communicate(stdin.encode(), timeout)
    except BaseException:
        command.kill()
        command.communicate()
        raise
    assert command.returncode is not None  # noqa: S101 -- it has ended
    if command.lost:
        raise MountsError(_ENDED)
    # With the encoding and the newlines of a text file.
    output, error = (io.TextIOWrapper(io.BytesIO(text)).read() for text in said)
    return subprocess.CompletedProcess(command.args, command.returncode, output, error)

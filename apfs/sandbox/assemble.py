"""Assembles /sys, /dev and /run of a sandbox, inside the mount namespace that bwrap has created.

bwrap can do that too, but it rereads the whole mount table for each bind, which takes half a second for 350 binds. So
it waits, and a process that joins its namespaces mounts what `apfs.sandbox.compose` has determined.

bwrap waits at a full pipe. In the middle of its work, it copies the content of the pipe to a file, until the end of the
pipe. When the pipe becomes writable, bwrap has reached that point; closing the pipe lets it continue.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from apfs.mounts.server import close_others, end_with
from apfs.sandbox import compose, linux, namespaces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apfs.sandbox.seccomp import Nodes

_ROOT = "/newroot"
"""What is the root of the sandbox later, while bwrap works on it."""
_DONE, _CHROOT = b".", b"/"
_PAUSE_MS, _ATTEMPTS = 10, 500
"""How often the guard looks for processes that it may have missed, because they were just made."""


def make_gate() -> tuple[int, int]:
    """Return the two ends of a gate: the one that bwrap reads, and the one that is closed to let it go on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    os.write(writer, bytes(size))
    return reader, writer


class Assembler:
    """The process that waits at a gate and puts everything together; it goes on until the end of its `with` block.

    It also guards the sandbox. If this process is killed, bwrap is too, but not bwrap's child: that asks for it only
    when it has started the command. So the guard ends it, and until then keeps it from starting the command.
    """

    def __init__(self, mount: Path, nodes: Nodes) -> None:
        """Start it."""
        self.gate, self._gate = make_gate()
        """For bwrap's --file."""
        self.block, self._block = os.pipe()
        """For bwrap's --block-fd."""
        told, self._tell = os.pipe()
        self.done, done = os.pipe()
        """Can be read when all is put together, or when that has failed."""
        self.pid = os.fork()
        if self.pid == 0:
            end_with(lambda: _work(_Guard(told, self._block), mount, nodes, self._gate, done))
        for descriptor in (told, done):
            os.close(descriptor)

    def open_gate(self) -> None:
        """Let bwrap go on from the gate."""
        os.close(self._gate)

    def start_command(self) -> None:
        """Let bwrap start the command."""
        with contextlib.suppress(BrokenPipeError):  # it has ended
            os.write(self._block, b"\0")
        os.close(self._block)

    def tell(self, pid: int) -> None:
        """Tell it of bwrap's child, in whose namespaces it is to work."""
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self._tell, f"{pid}\n".encode())

    def problem(self) -> str:
        """Wait until all is put together. Return why that has failed, and nothing if it has not."""
        said = b""
        while piece := os.read(self.done, select.PIPE_BUF):
            said += piece
        if said == _CHROOT:  # that process cannot import, as it is not in the chroot any more
            from apfs.mounts import environment  # noqa: PLC0415 -- takes as long as a tenth of all other imports

            return str(environment.CHROOT)
        return "" if said == _DONE else said.decode() or "a process of apfs was killed, or failed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for descriptor in (self.done, self._tell):
            os.close(descriptor)


class _Guard:
    """Ends the sandbox when the process that made it has been killed: then the other end of `told` is closed."""

    def __init__(self, told: int, block: int) -> None:
        self.descriptors = told, block
        self._told, self._block = told, block
        self._pidfd: int | None = None

    def wait_for_pid(self) -> int:
        """Return the process id of bwrap's child, once it is told."""
        text = b""
        while not text.endswith(b"\n"):
            piece = os.read(self._told, select.PIPE_BUF)
            if not piece:
                self._end()
            text += piece
        pid = int(text)
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        return pid

    def wait(self, gate: int | None = None) -> bool:
        """Wait until bwrap reads at the gate; False if it has ended. Without a gate, wait for the end of everything."""
        poll = select.poll()
        poll.register(self._told, 0)
        if gate is not None:
            poll.register(gate, select.POLLOUT)
        found = dict(poll.poll())
        if self._told in found:
            self._end()
        return not any(events & select.POLLERR for events in found.values())

    def _end(self) -> NoReturn:
        """End bwrap's child, and with it all processes of the sandbox."""
        if self._pidfd is None:
            self._end_readers()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        raise SystemExit

    def _end_readers(self) -> None:
        """End whoever has the other end of `block`: bwrap, which was killed, and its child, if it has made one."""
        mine = Path(f"/proc/self/fd/{self._block}").readlink()
        poll = select.poll()
        poll.register(self._block, 0)
        for _ in range(_ATTEMPTS):
            if poll.poll(_PAUSE_MS):
                return
            for process in Path("/proc").glob("[0-9]*"):
                if int(process.name) != os.getpid():
                    _end_if_open(process, mine)


def _end_if_open(process: Path, file: Path) -> None:
    """Kill a process, by its directory in /proc, if it has a file open."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(int(process.name))
        try:
            if any(descriptor.readlink() == file for descriptor in (process / "fd").iterdir()):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _work(guard: _Guard, mount: Path, nodes: Nodes, gate: int, done: int) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):  # they are for others
        signal.signal(number, signal.SIG_IGN)
    close_others(gate, done, *guard.descriptors)
    said = _DONE
    try:
        trees = compose.trees(mount, nodes)
        pid = guard.wait_for_pid()
        if guard.wait(gate):
            root = os.stat(f"/proc/{pid}/root")  # noqa: PTH116 -- faster
            namespaces.join(pid, "mnt")
            if os.path.samestat(root, os.stat("/")):  # noqa: PTH116 -- faster
                _assemble(trees, mount)
            else:
                said = _CHROOT
        os.close(gate)
    except OSError as error:
        said = f"{error.filename or ''}: {error.strerror}".removeprefix(": ").encode()
    with contextlib.suppress(BrokenPipeError):
        os.write(done, said)
    os.close(done)
    guard.wait()


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

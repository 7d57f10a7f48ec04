"""Assembles /sys, /dev and /run of a sandbox, inside the mount namespace that bwrap has created.

The process that does so stays: it guards the sandbox, and carries the host's events there.

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
from typing import TYPE_CHECKING, NoReturn, Self, cast

from apfs.mounts.server import close_others, end_with
from apfs.sandbox import compose, linux, namespaces, uevents
from apfs.sandbox.devtmpfs import Devtmpfs

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

    def __init__(self, mount: Path, *, network: bool) -> None:
        """Start it, for a sandbox on a mount, with a private `network` or without."""
        self.gate, self._gate = make_gate()
        """For bwrap's --file."""
        self.block, self._block = os.pipe()
        """For bwrap's --block-fd."""
        told, self._tell = os.pipe()
        self.done, done = os.pipe()
        """Can be read when all is put together and events are carried, or when that has failed."""
        self.pid = os.fork()
        if self.pid == 0:
            end_with(lambda: _work(_Guard(told, self._block), mount, self._gate, done, network=network))
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

    def tell(self, fact: Nodes | int) -> None:
        """Tell it first how nodes are shown, and then of bwrap's child, in whose namespaces it is to work."""
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self._tell, f"{fact}\n".encode())

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
        self._heard = b""
        self._pidfd: int | None = None

    def wait_for_nodes(self) -> Nodes:
        """Return how nodes are shown, once it is told."""
        return cast("Nodes", self._hear())

    def wait_for_pid(self) -> int:
        """Return the process id of bwrap's child, once it is told."""
        pid = int(self._hear())
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        return pid

    def _hear(self) -> str:
        while b"\n" not in self._heard:
            piece = os.read(self._told, select.PIPE_BUF)
            if not piece:
                self._end()
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def wait(self, other: int | None = None, events: int = 0) -> int:
        """Wait for events of a descriptor, and return which there are. Without one, wait for the end of everything."""
        poll = select.poll()
        poll.register(self._told, 0)
        if other is not None:
            poll.register(other, events)
        found = dict(poll.poll())
        if other is None or self._told in found:
            self._end()
        return found[other]

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


def _work(guard: _Guard, mount: Path, gate: int, done: int, *, network: bool) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):  # they are for others
        signal.signal(number, signal.SIG_IGN)
    close_others(gate, done, *guard.descriptors)
    said, carrier = _DONE, None
    try:
        nodes = guard.wait_for_nodes()
        carrier = uevents.Carrier(mount) if network or nodes != "files" else None
        trees = compose.trees(mount, nodes)
        pid = guard.wait_for_pid()
        if not guard.wait(gate, select.POLLOUT) & select.POLLERR:  # else bwrap has ended
            said = _work_inside(pid, trees, mount, nodes, carrier, network=network)
        os.close(gate)
    except OSError as error:
        said = f"{error.filename or ''}: {error.strerror}".removeprefix(": ").encode()
    with contextlib.suppress(BrokenPipeError):
        os.write(done, said)
    os.close(done)
    while carrier and carrier.source is not None and said == _DONE:
        carrier.carry(guard.wait(carrier.source, select.POLLIN))
    guard.wait()


def _work_inside(
    pid: int,
    trees: Sequence[compose.Tree],
    mount: Path,
    nodes: Nodes,
    carrier: uevents.Carrier | None,
    *,
    network: bool,
) -> bytes:
    """Join the sandbox, where nothing of /proc can be found any more, and put it together; return what to say."""
    root = os.stat(f"/proc/{pid}/root")  # noqa: PTH116 -- faster
    net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) if network else None
    is_other_user = namespaces.join(pid, "mnt")
    if not os.path.samestat(root, os.stat("/")):  # noqa: PTH116 -- faster
        return _CHROOT
    dev = _assemble(trees, mount)
    if carrier:
        carrier.start(Devtmpfs(dev, nodes).follow, net, become_root=is_other_user)
    return _DONE


def _assemble(trees: Sequence[compose.Tree], mount: Path) -> int:
    """Put the trees together, and return a descriptor of the directory that will be /dev."""
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
                case compose.Cover():
                    os.fchdir(host)
                    linux.bind(step.source if step.emulated else _ROOT + step.source, place)
                    linux.protect(place)
    return _open(f"{_ROOT}/dev")


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
    os.mknod(place, 0o644)  # in fewer calls than open(2)

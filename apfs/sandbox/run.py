"""Running a command in a sandbox."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.mounts import guests, table
from apfs.mounts.interrupts import interrupts
from apfs.sandbox import assemble, compose, linux, signals, supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.mounts.private import PrivateHost
    from apfs.sandbox.compose import Sandbox
    from apfs.sandbox.seccomp import Nodes

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit statuses for failures that are not the command's, as env(1) and docker have them."""


class SandboxError(Exception):
    """The sandbox could not be made; the message says what is missing and how to get it."""


def _is_there(path: str) -> bool:
    """Whether there is a file of that name, as far as this user may know."""
    try:
        os.stat(path)  # noqa: PTH116 -- text wanted
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _resolve(command: str, sandbox: Sandbox) -> None:
    """End with the right exit status if there is no such command."""
    if command not in compose.MODULE_TOOLS and shutil.which(command, path=compose.search_path(sandbox)) is None:
        exists = "/" in command and _is_there(command)
        print(f"apfs: {command}: {'permission denied' if exists else 'command not found'}", file=sys.stderr)  # noqa: T201
        raise SystemExit(NOT_EXECUTABLE if exists else NOT_FOUND)


def run(command: list[str], sandbox: Sandbox, host: Path | PrivateHost, guest_of: Sequence[str] = ()) -> int:
    """Run a command in a sandbox on a mount, or else on a host of its own, and return its exit status.

    With the UUID of a mediated device, it runs on the guest that has the device; with more, on a guest of that one.
    `SandboxError`, and `MountsError` if there is no host. `SystemExit` if the command cannot be run at all.
    """
    if shutil.which("bwrap") is None:
        raise SandboxError("; ".join(_problems()))
    _resolve(command[0], sandbox)
    interrupts.note()
    linux.adopt_orphans()
    if isinstance(host, Path):
        table.check_answers(str(host))
        mount = table.absolute(str(host))
    else:
        mount = host.wait()
    return _run_if_alive(Path(mount), guest_of, command, sandbox)


def _run_if_alive(host: Path, guest_of: Sequence[str], command: list[str], sandbox: Sandbox) -> int:
    """Run a command on a mount. `MountsError` if its server ends before the command has started."""
    try:
        return _run_on(guests.place(host, *guest_of), command, sandbox)
    except (OSError, SandboxError):
        if table.is_apfs(str(host)) and not table.is_dead(str(host)):
            raise
        raise table.gone(str(host), OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))) from None


def _run_on(mount: Path, command: list[str], sandbox: Sandbox) -> int:
    with assemble.Assembler(mount, network=sandbox.private_network) as assembler:
        return _run_in_box(mount, command, sandbox, assembler)


def _run_in_box(mount: Path, command: list[str], sandbox: Sandbox, assembler: assemble.Assembler) -> int:
    status_reader, status_writer = os.pipe()
    words = ["--json-status-fd", str(status_writer), "--block-fd", str(assembler.block)]
    words += compose.arguments(sandbox, assembler.gate)
    terminal = signals.take()
    restored = [f"--default-signal={number.name[3:]}" for number in sorted(terminal)]
    for descriptor in (status_writer, assembler.block, assembler.gate):
        os.set_inheritable(descriptor, True)  # noqa: FBT003 -- takes no keywords
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    # The command keeps the descriptors that it would have without a sandbox, hence close_fds. Nobody else runs in
    # this process, so that running Python between fork and exec is safe.
    box = subprocess.Popen(
        ["bwrap", *words, "--", "env", *restored, "--", *command],
        close_fds=False,
        preexec_fn=lambda: _prepare(parent, theirs, sandbox.nodes, terminal),  # noqa: PLW1509 -- see above
    )
    for descriptor in (status_writer, assembler.block, assembler.gate):
        os.close(descriptor)
    theirs.close()

    watch = None
    try:
        watch, nodes = supervisor.supervise(ours, mount, sandbox.nodes)
        assembler.tell(nodes)
        wait = partial(_wait, box, watch)
        with open(status_reader, "rb", buffering=0):  # noqa: PTH123 -- to close it
            with interrupts.heeded():
                line, newline, reports = _read(status_reader, wait, b"\n").partition(b"\n")
            pid = json.loads(line)["child-pid"] if newline else None
            if pid is not None:
                _put_together(assembler, pid, wait)
            signals.let_go(assembler.start_command, pid)
            reports += _read(status_reader, wait)
        interrupts.ignore()
        status = box.wait()
    finally:
        _end_box(box)
        if watch is not None:
            watch.close()
    # Without a last line that is not whole: bwrap was killed while it wrote that.
    lines = map(json.loads, reports[: reports.rfind(b"\n") + 1].splitlines())
    codes = [report["exit-code"] for report in lines if "exit-code" in report]
    if not codes:
        raise SandboxError(f"bwrap was killed by signal {-status}" if status < 0 else _advice())
    return int(codes[0])


def _read(descriptor: int, wait: Callable[[int], None], end: bytes | None = None) -> bytes:
    """Read, after waiting for each piece, up to the end of the file, or until there is a certain end in the text."""
    text = b""
    while end is None or end not in text:
        wait(descriptor)
        piece = os.read(descriptor, select.PIPE_BUF)
        if not piece:
            break
        text += piece
    return text


def _wait(box: subprocess.Popen[bytes], watch: supervisor.Supervisor | None, descriptor: int) -> None:
    """Wait until a descriptor can be read. In the meantime bwrap, too, may be stopped at one of its calls.

    If bwrap ends, its child is ended: else nobody would let that go on, nor those that wait for it.
    """
    if box.returncode is None:
        ended = os.pidfd_open(box.pid)
        try:
            if _serve(watch, descriptor, ended) == {descriptor}:
                return
        finally:
            os.close(ended)
        _end_box(box)
    _serve(watch, descriptor)


def _serve(watch: supervisor.Supervisor | None, *descriptors: int) -> set[int]:
    """Serve until one of some descriptors can be read, and return those that can be."""
    if watch is not None:
        return watch.serve(*descriptors)
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll()}


def _put_together(assembler: assemble.Assembler, pid: int, wait: Callable[[int], None]) -> None:
    """Have the directories of the sandbox put together while bwrap, whose child is `pid`, waits at the gate."""
    assembler.tell(pid)
    with interrupts.heeded():
        wait(assembler.done)
    problem = assembler.problem()
    if problem:
        # The gate stays closed: bwrap would fail as well, and be killed in the middle of saying so.
        raise SandboxError(f"the sandbox could not be created: {problem}")
    assembler.open_gate()


def _prepare(parent: int, channel: socket.socket, nodes: Nodes, blocked: set[signal.Signals]) -> None:
    """Do, between fork and exec of bwrap, what only the process itself can do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    linux.die_with_parent(parent=parent)  # bwrap asks for it, too, but later
    linux.drop_ambient_capabilities()
    supervisor.stop_calls(channel, nodes)


def _end_box(box: subprocess.Popen[bytes]) -> None:
    """End bwrap, and its child: until bwrap has told it to go on, that child does not notice that bwrap was killed.

    Nothing if bwrap has ended by itself.
    """
    box.kill()
    if box.wait() >= 0:
        return
    with contextlib.suppress(OSError):
        for pid in signals.children(os.getpid()):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "bwrap":
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _advice() -> str:
    """Return what to do when bwrap could not make the namespaces; it has printed its own reason."""
    return "; ".join(["the sandbox could not be created (bwrap's reason is above)", *_problems()])


def _problems() -> list[str]:
    """Return why there can be no sandbox here."""
    from apfs.mounts import environment  # noqa: PLC0415 -- takes as long as a tenth of all other imports

    facts = environment.look()
    return list(map(str, environment.sandbox_problems(facts) or environment.filter_problems(facts)))

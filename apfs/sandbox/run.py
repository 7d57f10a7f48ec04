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
from apfs.sandbox import assemble, compose, linux, signals, supervisor, uevents
from apfs.sandbox.devtmpfs import Devtmpfs

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


def _resolve(command: str) -> None:
    """End with the right exit status if there is no such command."""
    found = shutil.which(command)
    if found is None:
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
    _resolve(command[0])
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
    status_reader, status_writer = os.pipe()
    block_reader, block_writer = os.pipe()
    gate_reader, gate = assemble.make_gate()
    words = ["--json-status-fd", str(status_writer), "--block-fd", str(block_reader)]
    sandbox.nodes = supervisor.possible(sandbox.nodes, mount)
    words += compose.arguments(mount, sandbox, gate_reader)
    terminal = signals.take()
    restored = [f"--default-signal={number.name[3:]}" for number in sorted(terminal)]
    for descriptor in (status_writer, block_reader, gate_reader):
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
    for descriptor in (status_writer, block_reader, gate_reader):
        os.close(descriptor)
    theirs.close()
    watch = supervisor.supervise(ours, mount, sandbox.nodes)

    wait = partial(_wait, watch)
    pump = None
    try:
        with os.fdopen(status_reader) as statuses:
            with interrupts.heeded():
                wait(status_reader)
            first = _whole(statuses.readline())
            pid = json.loads(first)["child-pid"] if first else None
            if pid is not None:
                _put_together(mount, sandbox, pid, gate, wait)
            if pid is not None and (sandbox.private_network or sandbox.nodes != "files"):
                pump, ready = uevents.start(
                    mount, pid, lambda: Devtmpfs(mount, pid, sandbox.nodes).follow, network=sandbox.private_network
                )
                with interrupts.heeded():
                    wait(ready)
                os.close(ready)
            signals.let_go(block_writer, pid)
            wait(status_reader)
            rest = _whole(statuses.read())
        status = box.wait()
    finally:
        _end_box(box)
        if watch is not None:
            watch.close()
        if pump is not None:
            os.kill(pump, signal.SIGKILL)
            os.waitpid(pump, 0)
    codes = [report["exit-code"] for report in map(json.loads, rest.splitlines()) if "exit-code" in report]
    if not codes:
        raise SandboxError(f"bwrap was killed by signal {-status}" if status < 0 else _advice())
    return int(codes[0])


def _whole(lines: str) -> str:
    """Return what bwrap has reported without a last line that is not whole: it was killed while it wrote that."""
    return lines[: lines.rfind("\n") + 1]


def _wait(watch: supervisor.Supervisor | None, descriptor: int) -> None:
    """Wait until a descriptor can be read. In the meantime bwrap, too, may be stopped at one of its calls."""
    if watch is not None:
        watch.serve(descriptor)
    else:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()


def _put_together(mount: Path, sandbox: Sandbox, pid: int, gate: int, wait: Callable[[int], None]) -> None:
    """Have the directories of the sandbox put together while bwrap, whose child is `pid`, waits at the gate."""
    child, done = assemble.start(mount, sandbox.nodes, pid, gate)
    try:
        with interrupts.heeded():
            wait(done)
        with os.fdopen(done) as reasons:
            reason = reasons.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if reason or status:
        # The gate stays closed: bwrap would fail as well, and be killed in the middle of saying so.
        raise SandboxError(f"the sandbox could not be created: {reason or 'a process of apfs was killed, or failed'}")
    os.close(gate)


def _prepare(parent: int, channel: socket.socket, nodes: Nodes, blocked: set[signal.Signals]) -> None:
    """Do, between fork and exec of bwrap, what only the process itself can do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    linux.die_with_parent(parent=parent)  # bwrap asks for it, too, but later
    linux.drop_ambient_capabilities()
    supervisor.stop_calls(channel, nodes)


def _end_box(box: subprocess.Popen[bytes]) -> None:
    """End bwrap, and its child: until bwrap has told it to go on, that child does not notice that bwrap was killed."""
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

"""Running a command in a sandbox."""

from __future__ import annotations

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
from typing import TYPE_CHECKING, NoReturn

from apfs.mounts import environment, guests, table
from apfs.sandbox import assemble, compose, linux, supervisor, uevents
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
        raise SandboxError("; ".join(map(str, environment.sandbox_problems(environment.look()))))
    _resolve(command[0])
    if isinstance(host, Path):
        table.check_answers(str(host))
        mount = table.absolute(str(host))
    else:
        mount = host.wait()
    return _run_on(guests.place(mount, *guest_of), command, sandbox)


def _run_on(mount: Path, command: list[str], sandbox: Sandbox) -> int:
    status_reader, status_writer = os.pipe()
    block_reader, block_writer = os.pipe()
    gate_reader, gate = assemble.make_gate()
    words = ["--json-status-fd", str(status_writer), "--block-fd", str(block_reader)]
    sandbox.nodes = supervisor.possible(sandbox.nodes, mount)
    words += compose.arguments(mount, sandbox, gate_reader)
    # The terminal's signals are for the command alone: this process and bwrap, which only wait for it, ignore them.
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    restored = [
        f"--default-signal={signal.Signals(number).name[3:]}"
        for number, handler in ignored.items()
        if handler != signal.SIG_IGN
    ]
    for descriptor in (status_writer, block_reader, gate_reader):
        os.set_inheritable(descriptor, True)  # noqa: FBT003 -- takes no keywords
    ours, theirs = socket.socketpair()
    # The command keeps the descriptors that it would have without a sandbox, hence close_fds. Nobody else runs in
    # this process, so that running Python between fork and exec is safe.
    box = subprocess.Popen(
        ["bwrap", *words, "--", "env", *restored, "--", *command],
        close_fds=False,
        preexec_fn=lambda: _prepare(theirs, sandbox.nodes),  # noqa: PLW1509 -- see above
    )
    for descriptor in (status_writer, block_reader, gate_reader):
        os.close(descriptor)
    theirs.close()
    watch = supervisor.supervise(ours, mount, sandbox.nodes)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: _end(box, number))

    wait = partial(_wait, watch)
    pump = None
    try:
        with os.fdopen(status_reader) as statuses:
            wait(status_reader)
            first = statuses.readline()
            pid = json.loads(first)["child-pid"] if first else None
            if pid is not None:
                _put_together(mount, sandbox, pid, gate, wait)
            if pid is not None and (sandbox.private_network or sandbox.nodes != "files"):
                pump, ready = uevents.start(
                    mount, pid, lambda: Devtmpfs(mount, pid, sandbox.nodes).follow, network=sandbox.private_network
                )
                wait(ready)
                os.close(ready)
            os.close(block_writer)
            wait(status_reader)
            rest = statuses.read()
        status = box.wait()
    finally:
        if watch is not None:
            watch.close()
        if pump is not None:
            os.kill(pump, signal.SIGKILL)
            os.waitpid(pump, 0)
    if '"exit-code"' not in rest:
        raise SandboxError(_advice())
    return status


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
    os.close(gate)
    wait(done)
    with os.fdopen(done) as reasons:
        reason = reasons.read()
    os.waitpid(child, 0)
    if reason:
        raise SandboxError(f"the sandbox could not be made: {reason}")


def _prepare(channel: socket.socket, nodes: Nodes) -> None:
    """Do, between fork and exec of bwrap, what only the process itself can do."""
    linux.drop_ambient_capabilities()
    supervisor.stop_calls(channel, nodes)


def _end(box: subprocess.Popen[bytes], number: int) -> NoReturn:
    box.kill()
    raise SystemExit(128 + number)


def _advice() -> str:
    """Return what to do when bwrap could not make the namespaces; it has printed its own reason."""
    facts = environment.look()
    problems = environment.sandbox_problems(facts) or environment.filter_problems(facts)
    return "; ".join(["the sandbox could not be made (bwrap's reason is above)", *map(str, problems)])

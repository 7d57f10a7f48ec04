"""Running a command in a sandbox."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from apfs.mounts import environment, server, table
from apfs.sandbox import linux, seccomp, uevents
from apfs.sandbox.compose import arguments
from apfs.sandbox.supervisor import Supervisor
from apfs.vfio import uapi

if TYPE_CHECKING:
    from apfs.sandbox.compose import Options

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit statuses for failures that are not the command's, as env(1) and docker have them."""


class SandboxError(Exception):
    """The sandbox could not be made; the message says what is missing and how to get it."""


def _is_there(path: str) -> bool:
    """Whether there is a file of that name, as far as one is allowed to know."""
    try:
        os.stat(path)  # noqa: PTH116 -- text wanted
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _resolve(command: str) -> None:
    """End with the right status if there is no such command."""
    found = shutil.which(command)
    if found is None:
        exists = "/" in command and _is_there(command)
        print(f"apfs: {command}: {'permission denied' if exists else 'command not found'}", file=sys.stderr)  # noqa: T201
        raise SystemExit(NOT_EXECUTABLE if exists else NOT_FOUND)


def run(command: list[str], mount: Path | None, server_options: list[str], options: Options) -> int:
    """Run a command in a sandbox on a mount, or on a host of its own, and return its exit status."""
    if shutil.which("bwrap") is None:
        raise SandboxError("; ".join(map(str, environment.sandbox_problems(environment.look()))))
    _resolve(command[0])
    if mount is not None:
        table.check_answers(str(mount))
        return _run(command, Path(table.absolute(str(mount))), options)
    server.check_fuse()
    private = tempfile.mkdtemp(prefix="apfs-exec-")
    # When this process ends, however that happens, the pipe is closed, and the server unmounts and ends too.
    reader, writer = os.pipe()
    started = None
    try:
        started = server.start_server(private, server_options, lifeline=reader)
        return _run(command, Path(private), options)
    finally:
        os.close(reader)
        os.close(writer)
        if started is None:
            Path(private).rmdir()
        else:
            started.wait()


def _run(command: list[str], mount: Path, options: Options) -> int:
    status_reader, status_writer = os.pipe()
    block_reader, block_writer = os.pipe()
    empty = os.open(os.devnull, os.O_RDONLY)
    words = ["--json-status-fd", str(status_writer), "--block-fd", str(block_reader)]
    words += arguments(mount, options, empty)
    # The terminal's signals are for the command alone: this process and bwrap, which only wait for it, ignore them.
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    restored = [
        f"--default-signal={signal.Signals(number).name[3:]}"
        for number, handler in ignored.items()
        if handler != signal.SIG_IGN
    ]
    for descriptor in (status_writer, block_reader, empty):
        os.set_inheritable(descriptor, True)  # noqa: FBT003 -- takes no keywords
    ours, theirs = socket.socketpair()
    # The command keeps the descriptors that it would have without a sandbox, hence close_fds. Nobody else runs in
    # this process, so that running Python between fork and exec is safe.
    box = subprocess.Popen(
        ["bwrap", *words, "--", "env", *restored, "--", *command],
        close_fds=False,
        preexec_fn=lambda: _prepare(theirs),  # noqa: PLW1509 -- see above
    )
    for descriptor in (status_writer, block_reader, empty):
        os.close(descriptor)
    theirs.close()
    supervisor = _supervisor(ours, mount)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: _end(box, number))
    pump = None
    try:
        with os.fdopen(status_reader) as statuses:
            first = statuses.readline()
            if first and options.private_network:
                pump = _start_pump(mount, json.loads(first)["child-pid"])
            os.close(block_writer)
            if supervisor is not None:
                supervisor.serve(status_reader)
            rest = statuses.read()
        status = box.wait()
    finally:
        if supervisor is not None:
            supervisor.close()
        if pump is not None:
            os.kill(pump, signal.SIGKILL)
            os.waitpid(pump, 0)
    if '"exit-code"' not in rest:
        raise SandboxError(_advice())
    return status


def _prepare(channel: socket.socket) -> None:
    """Do, between fork and exec of bwrap, what only the process itself can do."""
    linux.drop_ambient_capabilities()
    _stop_at_ioctls(channel)


def _stop_at_ioctls(channel: socket.socket) -> None:
    """Install the filter and send its listener, or the errno of why there is none."""
    try:
        listener = seccomp.install(seccomp.program(uapi.TYPE))
    except OSError as error:
        channel.send(str(error.errno).encode())
        return
    socket.send_fds(channel, (b"0",), (listener,))
    os.close(listener)


def _supervisor(channel: socket.socket, mount: Path) -> Supervisor | None:
    """Return the supervisor of the processes in the sandbox; None, with a warning, if VFIO ioctls cannot be served."""
    with channel:
        said, listeners, _, _ = socket.recv_fds(channel, 16, 1)
    why = ""
    if not listeners:
        if int(said) == errno.EBUSY and _is_nested(mount):
            return None  # the supervisor of the outer sandbox serves this host as well
        why = os.strerror(int(said))
        if int(said) == errno.EBUSY:
            why = "another program, such as an outer apfs exec with another host, watches the system calls already"
    else:
        try:
            return Supervisor(listeners[0], mount)
        except OSError as error:
            os.close(listeners[0])
            why = f"{mount}/ctl/ioctl: {error.strerror}"
    print(f"apfs: VFIO ioctls are not served: {why}", file=sys.stderr)  # noqa: T201
    return None


def _is_nested(mount: Path) -> bool:
    """Whether this process is in a sandbox itself, with the same host."""
    outer = os.environ.get("APFS_MOUNT")
    return outer is not None and Path(outer).exists() and Path(outer).stat().st_dev == mount.stat().st_dev


def _end(box: subprocess.Popen[bytes], number: int) -> NoReturn:
    box.kill()
    raise SystemExit(128 + number)


def _start_pump(mount: Path, pid: int) -> int:
    """Start the process that sends uevents, and return when it listens."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        server.close_others(writer)  # above all the other end of the server's lifeline
        try:
            uevents.pump(mount, pid, writer)
        except FileNotFoundError:
            pass  # the sandbox is gone already, and the reason is told elsewhere
        except OSError as error:
            print(f"apfs: uevents are not delivered: {error}", file=sys.stderr)  # noqa: T201
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        ready.read()
    return child


def _advice() -> str:
    """Return what to do when bwrap could not make the namespaces; it has told its own reason before."""
    facts = environment.look()
    problems = environment.sandbox_problems(facts) or environment.filter_problems(facts)
    return "; ".join(["the sandbox could not be made (bwrap's reason is above)", *map(str, problems)])

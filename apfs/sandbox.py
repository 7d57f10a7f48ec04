"""`apfs exec`: run a command that sees an emulated host at /sys and /dev, and else the real machine.

/sys, /dev and /run are put together anew in a private mount namespace by bubblewrap: what is emulated comes from the
mount, everything else is bound back from the real directory. The real ones are not touched.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import NoReturn

from apfs import environment, mounts, uevents
from apfs.ioctl import seccomp
from apfs.ioctl.supervisor import Supervisor
from apfs.vfio import uapi

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit statuses for failures that are not the command's, as env(1) and docker have them."""

HOST = "/dev/apfs"
"""Where the sandbox shows the whole mount, with its ctl directory."""

# Directories of /sys that hold both real and emulated entries; all others come from one side only.
MERGED = frozenset(
    ("", "bus", "class", "class/misc", "devices", "devices/virtual", "devices/virtual/misc", "kernel", "module")
)
# What a host without the module vfio_ap does not have yet. A link leads there, so that it appears when it is loaded.
LATER = frozenset(
    (
        *("bus/matrix", "bus/mdev", "class/mdev_bus", "class/vfio", "class/vfio-dev", "devices/vfio_ap"),
        *("devices/virtual/vfio", "devices/virtual/misc/vfio", "module/mdev", "module/vfio", "module/vfio_ap"),
    )
)
# The real /sys/dev stays: what is emulated has no device numbers that a file could show.
KEPT = frozenset(("dev",))
_MODULE_TOOLS = ("modprobe", "rmmod", "insmod")
_READ_ONLY_TOOLS = ("kmod", "lsmod", "modinfo", "depmod")
_TOOLS = "/run/apfs/bin"
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4


class SandboxError(Exception):
    """The sandbox could not be made; the message says what is missing and how to get it."""


@dataclass(slots=True)
class Options:
    """What a user can choose."""

    private_network: bool = True
    keep_id: bool = False
    binds: list[tuple[str, str]] = field(default_factory=list)
    tmpfs: list[str] = field(default_factory=list)


def _entries(directory: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
    except OSError:
        return {}


def _keep(entry: os.DirEntry[str], destination: str) -> list[str]:
    """Return the arguments that show a real entry at its own place again."""
    if entry.is_symlink():
        return ["--symlink", str(Path(entry.path).readlink()), destination]
    return ["--dev-bind-try", entry.path, destination]


def compose_sys(mount: Path) -> list[str]:
    """Return the arguments that put /sys together."""
    arguments = ["--tmpfs", "/sys"]
    for merged in sorted(MERGED):
        emulated = _entries(mount / "sys" / merged)
        for name, entry in _entries(Path("/sys") / merged).items():
            path = f"{merged}/{name}".lstrip("/")
            if (name not in emulated or path in KEPT) and path not in LATER and path not in MERGED:
                arguments += _keep(entry, f"/sys/{path}")
        for name, entry in emulated.items():
            path = f"{merged}/{name}".lstrip("/")
            if path in KEPT:
                continue
            if path in MERGED:
                arguments += ["--dir", f"/sys/{path}"]
            elif entry.is_symlink():
                arguments += ["--symlink", str(Path(entry.path).readlink()), f"/sys/{path}"]
            else:
                arguments += ["--bind", entry.path, f"/sys/{path}"]
    for path in sorted(LATER):
        if not os.path.lexists(mount / "sys" / path):
            arguments += ["--symlink", f"{HOST}/sys/{path}", f"/sys/{path}"]
    return arguments


def compose_dev(mount: Path) -> list[str]:
    """Return the arguments that put /dev together: the real one, the emulated nodes, and the mount itself."""
    arguments = ["--tmpfs", "/dev"]
    ours = {"vfio", "vfio-ap", "iommu", "apfs"}
    for name, entry in _entries(Path("/dev")).items():
        if name not in ours:
            arguments += _keep(entry, f"/dev/{name}")
    arguments += ["--bind", str(mount), HOST, "--bind", str(mount / "dev/vfio-ap"), "/dev/vfio-ap"]
    arguments += ["--bind", str(mount / "dev/iommu"), "/dev/iommu"]
    if (mount / "dev/vfio").is_dir():
        return [*arguments, "--bind", str(mount / "dev/vfio"), "/dev/vfio"]
    return [*arguments, "--symlink", f"{HOST}/dev/vfio", "/dev/vfio"]


def compose_run(empty: int) -> list[str]:
    """Return the arguments that put /run together: lock and udev are private, the rest is the real one's.

    libudev's monitors turn themselves off unless /run/udev/control exists; `empty` is a descriptor to copy it from.
    An udevd that is started replaces it.
    """
    arguments = ["--tmpfs", "/run"]
    for name, entry in _entries(Path("/run")).items():
        if name not in ("lock", "udev", "apfs"):
            arguments += _keep(entry, f"/run/{name}")
    arguments += ["--perms", "1777", "--dir", "/run/lock", "--dir", "/run/udev/data", "--dir", _TOOLS]
    return [*arguments, "--file", str(empty), "/run/udev/control"]


def compose_module_tools() -> list[str]:
    """Return the arguments that let modprobe and its like act on the emulated host and never on the real kernel.

    They are usually links to one program, kmod; a script stands in its place, and the real one aside for its uses
    that only read.
    """
    script = str(resources.files("apfs") / "module-tools.sh")
    arguments = []
    for name in _MODULE_TOOLS:
        arguments += ["--ro-bind", script, f"{_TOOLS}/{name}"]
    places = [
        f"{directory}/{name}" for directory in ("/usr/sbin", "/sbin", "/usr/bin", "/bin") for name in _MODULE_TOOLS
    ]
    programs = {os.path.realpath(place) for place in places if os.path.exists(place)}  # noqa: PTH110 -- text wanted
    for program in sorted(programs):
        for name in _READ_ONLY_TOOLS:
            arguments += ["--ro-bind", program, f"{_TOOLS}/real/{name}"]
        arguments += ["--ro-bind", script, program]
    return arguments


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
        mounts.check_answers(str(mount))
        return _run(command, Path(mounts.absolute(str(mount))), options)
    mounts.check_fuse()
    private = tempfile.mkdtemp(prefix="apfs-exec-")
    # When this process ends, however that happens, the pipe is closed, and the server unmounts and ends too.
    reader, writer = os.pipe()
    server = None
    try:
        server = mounts.start_server(private, server_options, lifeline=reader)
        return _run(command, Path(private), options)
    finally:
        os.close(reader)
        os.close(writer)
        if server is None:
            Path(private).rmdir()
        else:
            server.wait()


def _arguments(mount: Path, options: Options, empty: int) -> list[str]:
    arguments = ["--die-with-parent", "--dev-bind", "/", "/"]
    arguments += compose_sys(mount) + compose_dev(mount) + compose_run(empty) + compose_module_tools()
    arguments += namespaces(options)
    arguments += _make_room([destination for _, destination in options.binds] + options.tmpfs)
    for source, destination in options.binds:
        arguments += ["--bind", source, destination]
    for destination in options.tmpfs:
        arguments += ["--tmpfs", destination]
    arguments += ["--setenv", "SYSTEMD_DEVICE_VERIFY_SYSFS", "0", "--setenv", "APFS_MOUNT", HOST]
    path = os.environ.get("PATH", os.defpath)
    return [*arguments, "--setenv", "PATH", f"{_TOOLS}:{path}"]


def namespaces(options: Options) -> list[str]:
    """Return the arguments that make the namespaces, and for ordinary users a user namespace around them."""
    arguments = ["--unshare-pid", "--proc", "/proc", "--cap-add", "ALL"]
    if options.private_network:
        arguments += ["--unshare-net"]
    if not environment.may_unshare(os.geteuid(), environment.capabilities(), network=options.private_network):
        arguments += ["--unshare-user"]
        if not options.keep_id:
            arguments += ["--uid", "0", "--gid", "0"]
    return arguments


def _make_room(destinations: list[str]) -> list[str]:
    """Return the arguments that let places exist which the real machine does not have.

    bwrap would create them there. Instead the directories that should contain them are put together anew.
    """
    arguments, renewed = [], set()
    for destination in destinations:
        parent = Path(destination)
        while not os.path.lexists(parent):
            parent = parent.parent
        if str(parent) != destination.rstrip("/") and parent not in renewed:
            renewed.add(parent)
            arguments += ["--tmpfs", str(parent)]
            for name, entry in _entries(parent).items():
                arguments += _keep(entry, f"{parent}/{name}")
    return arguments


def _run(command: list[str], mount: Path, options: Options) -> int:
    status_reader, status_writer = os.pipe()
    block_reader, block_writer = os.pipe()
    empty = os.open(os.devnull, os.O_RDONLY)
    arguments = ["--json-status-fd", str(status_writer), "--block-fd", str(block_reader)]
    arguments += _arguments(mount, options, empty)
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
        ["bwrap", *arguments, "--", "env", *restored, "--", *command],
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


def drop_ambient() -> None:
    """Give up capabilities that programs of a user other than root would inherit: bwrap refuses to run with them.

    podman gives them to such a user if it was told to add capabilities.
    """
    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def _prepare(channel: socket.socket) -> None:
    """Do, between fork and exec of bwrap, what only the process itself can do."""
    drop_ambient()
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
        mounts.close_others(writer)  # above all the other end of the server's lifeline
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

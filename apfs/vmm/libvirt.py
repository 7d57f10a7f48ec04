"""A libvirtd on an emulated host, inside `apfs exec`, with its own configuration, state and sockets.

The machine's own libvirtd, if there is one, is neither used nor changed. At the usual path of QEMU for s390x is the
program that adds vfio-ap to it (`apfs.vmm.emulator`), so domains need no other <emulator> than on a real host.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import select
import shlex
import shutil
import signal
import socket
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from apfs.mounts import credentials, places
from apfs.mounts.server import PYTHON
from apfs.sandbox import compose
from apfs.vmm import build, emulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

_SBIN = "/usr/sbin:/sbin"
# struct sockaddr_un has room for 107 characters; virsh and libvirtd add none to the name of the socket.
_SOCKET_NAME = 107

# Debian's libvirt wants a user of this name even if it is told another one, and makes it in a package of its own.
_USER = "libvirt-qemu"
_USER_ID = 64055

_PREFIX = "apfs-libvirt-"
_LAST_WORDS = 2
_SIGNALLED = 128
"""What a status of `apfs exec` has above the number of the signal that ended the command."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A device that the scenario's stand-in for a VMM has open would be busy for QEMU.
_START = """
for guest in /dev/vfio-ap/*/guest; do
    [ ! -e "$guest" ] || [ "$(cat "$guest")" = 0 ] || echo 0 > "$guest"
done
exec "$@"
"""


class LibvirtError(Exception):
    """libvirtd cannot be started, or has ended; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user can choose."""

    libvirtd: str = "libvirtd"
    tcp: int | None = None
    """Port of 127.0.0.1, on the network that this process has, where libvirtd listens in addition."""


def libvirtd_conf(wishes: Wishes) -> str:
    """Return libvirtd.conf: whoever reaches a socket may do everything."""
    lines = [
        # Two hosts between which guests migrate must not be taken for one.
        f'host_uuid = "{uuid.uuid4()}"',
        'unix_sock_group = "root"',
        'auth_unix_ro = "none"',
        'auth_unix_rw = "none"',
        'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"',
    ]
    if wishes.tcp is not None:
        lines += ["listen_tls = 0", "listen_tcp = 1", f'tcp_port = "{wishes.tcp}"']
        lines += ['listen_addr = "127.0.0.1"', 'auth_tcp = "none"']
    return "\n".join([*lines, ""])


def qemu_conf() -> str:
    """Return qemu.conf: QEMU runs as libvirtd does, in no namespace or control group of its own."""
    lines = [
        # The device nodes belong to whoever mounted the host, and take neither another owner nor a note of this one.
        'user = "root"',
        'group = "root"',
        "remember_owner = 0",
        'security_driver = "none"',
        # Otherwise libvirt would give QEMU a /dev of its own, in which nobody here may make nodes.
        "namespaces = []",
        "cgroup_controllers = []",
        # No virtlogd runs here.
        'stdio_handler = "file"',
    ]
    return "\n".join([*lines, ""])


def _prepare_qemu(directory: Path) -> list[tuple[str, str]]:
    """Put the program with vfio-ap in QEMU's place; return what to bind where.

    QEMU finds its files from its own path, so that it gets a prefix in which everything else is a link.
    """
    qemu = shutil.which(emulator.find())
    if qemu is None:
        raise LibvirtError(f"{emulator.find()}: no such program")
    # Where there is none, libvirt finds it in the first directory of PATH.
    place = shutil.which(emulator.NAME) or f"{compose.TOOLS}/{emulator.NAME}"
    prefix = directory / "prefix"
    (prefix / "bin").mkdir(parents=True)
    real = prefix / "bin" / Path(qemu).name
    real.touch()
    for name in os.listdir(Path(qemu).parents[1]):  # noqa: PTH208 -- names are wanted
        if name != "bin":
            (prefix / name).symlink_to(Path(qemu).parents[1] / name)
    launcher = directory / emulator.NAME
    # libvirt does not let QEMU have its own environment.
    variables = f"APFS_QEMU={shlex.quote(str(real))} APFS_QEMU_PLUGIN={shlex.quote(str(build.plugin()))}"
    launcher.write_text(f'#!/bin/sh\n{variables} exec {shlex.join(PYTHON)} -m apfs.vmm "$@"\n')
    launcher.chmod(0o755)
    return [(os.path.realpath(qemu), str(real)), (str(launcher), os.path.realpath(place))]


def _prepare_users(directory: Path) -> list[tuple[str, str]]:
    """Create the user that Debian's libvirt wants; return what to bind where."""
    binds = []
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        entry = f"{_USER}:x:{_USER_ID}:{_USER_ID}::/var/lib/libvirt:/usr/sbin/nologin\n"
        (directory / "passwd").write_text(Path("/etc/passwd").read_text() + entry)
        binds.append((str(directory / "passwd"), "/etc/passwd"))
    try:
        grp.getgrnam(_USER)
    except KeyError:
        (directory / "group").write_text(Path("/etc/group").read_text() + f"{_USER}:x:{_USER_ID}:\n")
        binds.append((str(directory / "group"), "/etc/group"))
    return binds


def prepare(directory: Path, wishes: Wishes) -> list[tuple[str, str]]:
    """Fill a directory with what libvirtd needs of its own, and return what to bind where."""
    places = {
        "etc": "/etc/libvirt",
        "lib": "/var/lib/libvirt",
        "cache": "/var/cache/libvirt",
        "log": "/var/log/libvirt",
        "run": "/run/libvirt",
        "mdevctl.d": "/etc/mdevctl.d",
    }
    for name in (*places, "mdevctl.d/scripts.d/callouts", "mdevctl.d/scripts.d/notifiers"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "etc/libvirtd.conf").write_text(libvirtd_conf(wishes))
    (directory / "etc/qemu.conf").write_text(qemu_conf())
    binds = [(str(directory / name), place) for name, place in places.items()]
    return binds + _prepare_users(directory) + _prepare_qemu(directory)


def _found(program: str, packages: str) -> str:
    """Return the path of a program. `LibvirtError` if it is not installed."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if path is None:
        raise LibvirtError(f"{program} is not installed: apt install {packages}")
    return path


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Yield a directory of its own. `LibvirtError` if there is no room for what is written there or into it."""
    try:
        with places.directory(_PREFIX, _place()) as made:
            yield made
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise LibvirtError(f"libvirtd's files cannot be written: {where}{error.strerror or error}") from None


def _command(directory: Path, options: Sequence[str], wishes: Wishes, libvirtd: str) -> list[str]:
    """Fill the directory, and return the command that runs libvirtd with it."""
    words = [*PYTHON, "-m", "apfs", "exec", "--die-with-parent", *options]
    for source, destination in prepare(directory, wishes):
        words += ["--bind", f"{source}:{destination}"]
    network, listen = ([], []) if wishes.tcp is None else (["--net", "host"], ["--listen"])
    return [*words, *network, "--", "sh", "-c", _START, "sh", libvirtd, *listen]


def _place() -> str:
    """Return where to make the directory: TMPDIR, or /tmp if its name is too long for sockets below it."""
    place = places.parent()
    longest = f"{place}/{_PREFIX}xxxxxxxx/run/libvirt-sock-ro"
    return place if len(os.fsencode(longest)) <= _SOCKET_NAME else "/tmp"  # noqa: S108 -- a new directory is made in it


def serve(options: Sequence[str], wishes: Wishes, ready: Callable[[Path], None]) -> None:
    """Run libvirtd inside `apfs exec` with these options until SIGINT, SIGTERM or SIGHUP; then nothing is left.

    `ready` is called with the directory when it answers: `run/libvirt-sock` is its socket, `log` its logs and QEMU's.
    `LibvirtError` if it does not get that far, or ends by itself.
    """
    libvirtd = _found(wishes.libvirtd, "libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients mdevctl")
    _found("virsh", "libvirt-clients")
    if not credentials.may_unshare(os.geteuid(), credentials.capabilities(), network=wishes.tcp is None):
        # libvirt calls setgroups(2) before it starts QEMU, which fails in the user namespace that others get.
        raise LibvirtError(
            "libvirt starts QEMU only for root: run as root, "
            "which in a container needs --cap-add SYS_ADMIN --cap-add NET_ADMIN"
        )
    with _Stop() as stopped, _directory() as directory:
        try:
            command = _command(directory, options, wishes, libvirtd)
        except build.PluginError:
            if stopped.asked:  # so was the compiler
                return
            raise
        _run(command, directory, stopped, lambda: ready(directory))


def _run(command: list[str], directory: Path, stopped: _Stop, ready: Callable[[], None]) -> None:
    variables = {
        **os.environ,
        "NOTIFY_SOCKET": str(directory / "notify"),
        # Without a system bus it does not ask the machine's systemd to look after QEMU.
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (directory / "log/output").open("wb") as output:
        notify.bind(variables["NOTIFY_SOCKET"])
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables, start_new_session=True
        )
        try:
            if _wait(daemon, stopped, notify.fileno()) and _answers(directory, daemon, stopped):
                ready()
                _wait(daemon, stopped)
            if not stopped.asked:
                raise LibvirtError(_what_happened(daemon.poll(), directory / "log"))
        finally:
            daemon.terminate()
            daemon.wait()


def _answers(directory: Path, daemon: subprocess.Popen[bytes], stopped: _Stop) -> bool:
    """Wait for the first answer, which comes when all drivers have started; return whether it came.

    What it tells systemd comes earlier, when its sockets are ready.
    """
    command = ["virsh", "--connect", uri(directory), "uri"]
    client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = os.pidfd_open(client.pid)
    try:
        return _wait(daemon, stopped, done) and client.wait() == 0
    finally:
        os.close(done)
        client.kill()
        client.wait()


def uri(directory: Path) -> str:
    """Return the URI of the libvirtd that has this directory."""
    return f"qemu+unix:///system?socket={directory}/run/libvirt-sock"


class _Stop:
    """Whether a signal has asked for an end."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.asked = False

    def fileno(self) -> int:
        """Return a descriptor that is readable when one has."""
        return self._reader

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True

    def __enter__(self) -> Self:
        self._woken = signal.set_wakeup_fd(self._writer)  # first: a signal must not be noted without waking
        self._handlers = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)
        os.close(self._reader)
        os.close(self._writer)


def _wait(daemon: subprocess.Popen[bytes], stopped: _Stop, event: int | None = None) -> bool:
    """Wait for the daemon's end, a signal, or a readable descriptor; return whether it was the descriptor."""
    ended = os.pidfd_open(daemon.pid)
    try:
        waited: list[int] = [stopped.fileno(), ended, *([] if event is None else [event])]
        ready, _, _ = select.select(waited, [], [])
        return not stopped.asked and ended not in ready
    finally:
        os.close(ended)


def _what_happened(status: int | None, log: Path) -> str:
    """Return what went wrong, by the exit status of the `apfs exec` in which libvirtd ran; None if that still runs."""
    if status is not None and status > _SIGNALLED:
        return f"libvirtd was killed by signal {status - _SIGNALLED}, and its guests with it"
    return f"libvirtd failed: {_last_words(log)}"


def _last_words(log: Path) -> str:
    """Return the last errors of its log, as the very last one says little by itself, or else its standard error."""
    for name, mark in (("libvirtd.log", " error : "), ("output", "")):
        if (log / name).is_file():
            lines = [line for line in (log / name).read_text(errors="replace").splitlines() if line and mark in line]
            if lines:
                return "; ".join(line[line.index(mark) + len(mark) :] for line in lines[-_LAST_WORDS:])
    return "it said nothing"

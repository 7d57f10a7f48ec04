"""libvirtd on mounted hosts, for tests: start, hot-plug and migrate domains with a vfio-ap device.

A libvirtd exists as long as its `with` block and the program that created it. Its guests end with it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.mounts.server import PYTHON
from apfs.testing.processes import COMMAND_SECONDS, Closing, end, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apfs.testing.mounted import MountedHost

_FIRST_PORT = 16509
_LOG_LINES = 40


class LibvirtError(Exception):
    """libvirt cannot be used; the message says why, and what to do."""


class Network(Closing):
    """A network with only loopback, for libvirts that connect to each other by TCP. Only root can create it."""

    def __init__(self) -> None:
        """Create it. `LibvirtError` if bwrap is missing or fails; then bwrap has printed the reason."""
        if shutil.which("bwrap") is None:
            raise LibvirtError("bwrap is missing: install the package bubblewrap")
        reader, writer = os.pipe()
        command = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--die-with-parent", "--info-fd", str(writer)]
        self._holder = subprocess.Popen([*command, "--", "cat"], stdin=subprocess.PIPE, pass_fds=[writer])
        os.close(writer)
        with os.fdopen(reader) as described:
            said = described.read()
        if not said:
            self.close()
            raise LibvirtError("bwrap could not create a network: run as root, in a container with --cap-add NET_ADMIN")
        pid = json.loads(said)["child-pid"]
        self.enter = ("nsenter", f"--net=/proc/{pid}/ns/net", "--")
        """What to put before a command that is to be in it."""
        self._ports = itertools.count(_FIRST_PORT)

    def port(self) -> int:
        """Return a port that is not in use."""
        return next(self._ports)

    def close(self) -> None:
        """Remove it as soon as no process uses it any more."""
        self._holder.communicate()


class Libvirt(Closing):
    """A libvirtd on a mounted host, started with `apfs libvirtd`; this ends a guest that the scenario started."""

    def __init__(self, host: MountedHost, *, options: Sequence[str] = (), network: Network | None = None) -> None:
        """Start it. `options` are those of `apfs libvirtd`; in a `network` it also listens on TCP.

        `LibvirtError` says what is missing on this machine.
        """
        self.host = host
        self._enter = () if network is None else network.enter
        words = [*PYTHON, "-m", "apfs", "libvirtd", "--die-with-parent", "--mount", str(host.path), *options]
        self.tcp_uri = ""
        """URI in the network, for those that are in it too; empty without one."""
        if network is not None:
            port = network.port()
            words += ["--tcp", str(port)]
            self.tcp_uri = f"qemu+tcp://127.0.0.1:{port}/system"
        self._server = subprocess.Popen(
            [*self._enter, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._server.stdout is not None  # noqa: S101 -- as asked for
        self.uri = self._server.stdout.readline().rstrip()
        """URI for `virsh --connect` and `libvirt.open`."""
        if not self.uri:
            _, said = self._server.communicate()
            raise LibvirtError(said.removeprefix("apfs: ").rstrip())
        self.directory = Path(self.uri.partition("socket=")[2]).parents[1]
        """Its own files: `log`, for example, is /var/log/libvirt for it and its guests."""
        self._migrations = itertools.count()

    def close(self) -> None:
        """End it and all guests, which closes their devices. Can be called twice."""
        end(self._server)
        # Its own work, unless it was killed.
        shutil.rmtree(self.directory, ignore_errors=True)

    def virsh(
        self, *arguments: str, check: bool = False, stdin: str = "", timeout: float | None = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run virsh on it and return its output, in English.

        With `check`, an exit status other than 0 raises `CalledProcessError`, which also shows standard error. With
        the file name /dev/stdin, virsh reads the text `stdin`. `TimeoutExpired` after `timeout` seconds.
        """
        return run(
            [*self._enter, "virsh", "--quiet", "--connect", self.uri, *arguments],
            ("virsh", *arguments),
            check=check,
            stdin=stdin,
            env={**os.environ, "LC_ALL": "C"},
            timeout=timeout,
        )

    def define(self, xml: str) -> None:
        """Define a domain from its XML. `CalledProcessError` if libvirt refuses it."""
        self.virsh("define", "/dev/stdin", stdin=xml, check=True)

    def state(self, domain: str) -> str:
        """Return the state of a domain, such as `running` or `shut off`."""
        return self.virsh("domstate", domain, check=True).stdout.strip()

    def log(self, domain: str) -> str:
        """Return QEMU's log of a domain: its command lines and messages."""
        return (self.directory / "log/qemu" / f"{domain}.log").read_text(errors="replace")

    def migrate(
        self, domain: str, target: Libvirt, *options: str, tcp: bool = False, timeout: float | None = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Live-migrate a domain with `virsh migrate` and these options, and return its output.

        Exit status 0 is success. It uses unix sockets, or with `tcp` the network of both libvirtds.
        """
        if tcp:
            uri, through = target.tcp_uri, "tcp://127.0.0.1"
        else:
            uri, through = target.uri, f"unix://{target.directory}/migration{next(target._migrations)}"
        # A tunnel goes through the connection of the two libvirtd, which is libvirt's to choose.
        route = [] if "--tunnelled" in options else ["--migrateuri", through]
        return self.virsh("migrate", "--live", domain, "--desturi", uri, *route, *options, timeout=timeout)

    def report(self) -> str:
        """Return the ends of libvirtd's log and of QEMU's."""
        files = [self.directory / "log/libvirtd.log", *sorted(self.directory.glob("log/qemu/*.log"))]
        ends = [
            f"{file.relative_to(self.directory)}:\n"
            + "\n".join(file.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            for file in files
            if file.is_file()
        ]
        return "\n".join(ends)


@dataclass(frozen=True, slots=True)
class LibvirtPair:
    """Two libvirtds on two hosts, between which domains migrate."""

    source: Libvirt
    target: Libvirt

    def migrate(self, domain: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Live-migrate a domain from source to target, like `Libvirt.migrate`.

        For the way back, use `pair.target.migrate(domain, pair.source)`.
        """
        return self.source.migrate(domain, self.target, *options)

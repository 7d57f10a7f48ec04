"""QEMU on a mounted host, driven by its monitor protocol (QMP)."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apfs.testing.processes import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apfs.testing.mounted import MountedHost

U = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
OTHER = "11111111-2222-4333-8444-555555555555"
# Far beyond anything that works; only keeps a QEMU that hangs from hanging the run.
PATIENCE_SECONDS = 60

# A guest that waits for an interrupt that never comes, and so needs no time of the machine that runs the tests. At 4 is
# the address at which QEMU starts it, 0x20: there is `lpswe 0x10`, and at 0x10 a PSW that waits, interrupts enabled.
GUEST = bytes.fromhex("00000000 80000020 0000000000000000 0102000180000000 0000000000000000 b2b20010")


def host(card: str = "CEX8C", top: str = "") -> str:
    """Return a scenario with two mediated devices that can be passed through, the first with four queues."""
    return f"""
name = "vmm"
{top}
[qci]
domains = [0x04, 0x47]
[[card]]
adapter = 5
type = "{card}"
[[card]]
adapters = [6, 7]
type = "CEX7P"
[masks]
apmask = "-5,-6,-7"
[[mdev]]
uuid = "{U}"
adapters = [5, 6]
domains = [0x04, 0x47]
[[mdev]]
uuid = "{OTHER}"
adapters = [7]
domains = [0x04]
"""


def device(uuid: str = U, name: str = "ap0") -> dict[str, str]:
    """Return the arguments of device_add for a mediated device."""
    return {"driver": "vfio-ap", "id": name, "sysfsdev": f"/sys/bus/mdev/devices/{uuid}"}


class QmpError(Exception):
    """QEMU refused a command."""


class Qemu(Closing):
    """A QEMU that runs inside `apfs exec` on a host, until the end of its `with` block."""

    def __init__(
        self,
        mount: MountedHost,
        program: str,
        *arguments: str,
        passed: str | None = U,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, with the device `passed`, if any."""
        self.host = mount
        self._directory = tempfile.TemporaryDirectory(prefix="apfs-qemu-")
        self.place = Path(self._directory.name)
        (self.place / "guest").write_bytes(GUEST)
        options = () if passed is None else ("-device", ",".join(f"{k}={v}" for k, v in device(passed).items()))
        self._closing = contextlib.ExitStack()
        self._closing.callback(self._directory.cleanup)
        with (
            self._closing,  # unless all of this succeeds
            socket.socket(socket.AF_UNIX) as listener,
            (self.place / "log").open("w") as log,
        ):
            listener.bind(str(self.place / "qmp"))
            listener.listen()
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "apfs", "exec", "--die-with-parent", "--mount", str(mount.path), "--"),
                    *(sys.executable, "-m", "apfs.vmm", "-machine", "s390-ccw-virtio", "-m", "32", "-nodefaults"),
                    *("-display", "none", "-no-user-config", "-kernel", str(self.place / "guest")),
                    *("-qmp", f"unix:{self.place / 'qmp'}", *options, *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **(env or {}), "APFS_QEMU": program},
            )
            self._closing.callback(self._end)
            resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))  # one test makes QEMU abort
            self._connection = self._closing.enter_context(self._accept(listener))
            self._messages = self._closing.enter_context(self._connection.makefile("r", encoding="utf-8"))
            self._events: list[dict[str, Any]] = []
            self._read()
            self.do("qmp_capabilities")
            # As libvirt does. Without a way back for its answer, a target that refuses is not noticed by the source.
            self.enable("events", "return-path")
            self._closing = self._closing.pop_all()

    def _accept(self, listener: socket.socket) -> socket.socket:
        end = os.pidfd_open(self.process.pid)
        try:
            ready, _, _ = select.select([listener.fileno(), end], [], [], PATIENCE_SECONDS)
        finally:
            os.close(end)
        if listener.fileno() not in ready:
            raise EOFError(self.log)
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE_SECONDS)
        return connection

    def close(self) -> None:
        """End it. Twice is no error."""
        self._closing.close()

    def _end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)

    @property
    def log(self) -> str:
        """What it has said on standard error."""
        return (self.place / "log").read_text()

    def ended(self) -> str:
        """Wait until it has ended by itself, and return its log."""
        self.process.wait(PATIENCE_SECONDS)
        return self.log

    def pid(self) -> int:
        """Return the number of QEMU's own process, as seen from here."""
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if f"unix:{self.place / 'qmp'}".encode() in words and b"-plugin" in words:
                return int(entry.parent.name)
        raise LookupError(self.log)

    def _read(self) -> dict[str, Any]:
        try:
            line = self._messages.readline()
        except ConnectionError:
            line = ""
        if not line:
            raise EOFError(self.ended())
        message: dict[str, Any] = json.loads(line)
        return message

    def do(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 -- JSON
        """Execute a command and return its result."""
        try:
            self._connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except ConnectionError:
            raise EOFError(self.ended()) from None
        while True:
            message = self._read()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(message["error"]["desc"])
            else:
                return message["return"]

    def event(self, name: str) -> dict[str, Any]:
        """Return the data of the next event of that name, waiting for it."""
        while True:
            for number, message in enumerate(self._events):
                if message["event"] == name:
                    del self._events[number]
                    data: dict[str, Any] = message.get("data", {})
                    return data
            self._events.append(self._read())

    def monitor(self, line: str) -> str:
        """Return what the monitor for people answers."""
        answer: str = self.do("human-monitor-command", **{"command-line": line})
        return answer

    def enable(self, *capabilities: str, state: bool = True) -> None:
        """Switch capabilities of migration on, or off."""
        wanted = [{"capability": name, "state": state} for name in capabilities]
        self.do("migrate-set-capabilities", capabilities=wanted)

    def migration_until(self, *wanted: str) -> str:
        """Wait until the migration has one of these states."""
        while (state := self.event("MIGRATION")["status"]) not in wanted:
            pass
        text: str = state
        return text

    def begin_migration(self, target: Qemu) -> None:
        """Begin to migrate the VM to a QEMU that was started with `-incoming defer`."""
        uri = f"unix:{self.place / 'migration'}"
        target.do("migrate-incoming", uri=uri)
        self.do("migrate", uri=uri)

    def migrate(self, target: Qemu) -> str:
        """Migrate the VM to a QEMU that was started with `-incoming defer`, and return how that ended."""
        self.begin_migration(target)
        return self.migration_until("completed", "failed")

    def wait_until_running(self) -> None:
        """Wait until the guest runs, and its devices have been told: the event alone comes before that."""
        while not self.is_running():
            self.event("RESUME")

    def is_running(self) -> bool:
        """Whether the guest runs."""
        running: bool = self.do("query-status")["running"]
        return running

"""A guest that counts on its console, as a domain of libvirt."""

from __future__ import annotations

import itertools
import re
import subprocess
from typing import TYPE_CHECKING

from tests.conftest import UUID

if TYPE_CHECKING:
    from pathlib import Path

    from apfs.testing.libvirt import Libvirt

NAME = "zguest"
# Each host has its own.
CONSOLE = "/var/log/libvirt/console.log"
HOSTDEV = f"""
<hostdev mode='subsystem' type='mdev' model='vfio-ap'>
  <source><address uuid='{UUID}'/></source>
</hostdev>
"""
# A domain with nothing to boot: it is started paused.
SMALL = f"""
<domain type='qemu'>
  <name>small</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='s390x' machine='s390-ccw-virtio'>hvm</type></os>
  <devices><memballoon model='none'/>{HOSTDEV}</devices>
</domain>
"""
# Far beyond anything that works; only keeps a guest that hangs from hanging the run.
PATIENCE_SECONDS = "120"


def domain(directory: Path, *, name: str = NAME, devices: str = HOSTDEV) -> str:
    """Return the XML of a domain with the kernel and initrd in a directory."""
    return f"""
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <os>
    <type arch='s390x' machine='s390-ccw-virtio'>hvm</type>
    <kernel>{directory}/kernel</kernel>
    <initrd>{directory}/initrd</initrd>
    <cmdline>quiet console=ttysclp0</cmdline>
  </os>
  <devices>
    <console type='file'><source path='{CONSOLE}' append='on'/><target type='sclp'/></console>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


class Console:
    """What a guest has said, wherever it was."""

    def __init__(self) -> None:
        self.text = ""
        self._read: dict[Path, int] = {}

    def begin(self, libvirt: Libvirt) -> None:
        """Forget what was: the guest has been started, on this host."""
        self.hear(libvirt)
        self.text = ""

    def hear(self, libvirt: Libvirt) -> None:
        """Add what is new in the file of one host, which the guest is on, or has just left."""
        path = file_of(libvirt)
        content = path.read_bytes()
        self.text += content[self._read.get(path, 0) :].decode()
        self._read[path] = len(content)

    @property
    def counts(self) -> list[int]:
        """The numbers that it has counted to, without one that may not be complete."""
        return [int(number) for number in re.findall(r"^count (\d+)\r?\n", self.text, re.MULTILINE)]

    def wait_for_more(self, libvirt: Libvirt) -> None:
        """Wait until the guest has counted on since the host's file was read the last time."""
        self.wait_for(libvirt, "count ", 3)  # one number may be a rest of before

    def wait_for(self, libvirt: Libvirt, beginning: str, times: int = 1) -> None:
        """Wait until the guest has said so many lines more that begin so, and hear it."""
        path = file_of(libvirt)
        first = str(self._read.get(path, 0) + 1)
        tail = f"timeout {PATIENCE_SECONDS} tail --bytes=+{first} --follow=name --retry {path}"
        command = f"{tail} | grep -m {times} '^{beginning}'"
        done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
        assert len(done.stdout.splitlines()) == times, (libvirt.state(NAME), done, path.read_text(), libvirt.report())
        self.hear(libvirt)


def file_of(libvirt: Libvirt) -> Path:
    """Return the file behind the console of the guest on this host."""
    return libvirt.directory / "log" / CONSOLE.rpartition("/")[2]


def follows(numbers: list[int]) -> bool:
    """Whether each number is the one before plus 1."""
    return len(numbers) > 1 and all(after == before + 1 for before, after in itertools.pairwise(numbers))

"""What the benchmark compares: hosts of apfs, the same tree in C and in a tmpfs, and the machine's own sysfs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.host import Host
from apfs.scenario.reader import loads
from apfs.testing.files import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

APFS = [sys.executable, "-m", "apfs"]
UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
MDEV = f"sys/devices/vfio_ap/matrix/{UUID}"
CLIENT = f"dev/vfio-ap/{UUID}"
QUEUE = "sys/devices/ap/card05/05.0003"
ALL_CPUS = os.sched_getaffinity(0)
ONE_CPU = {min(ALL_CPUS)}
_START_SECONDS = 60

_SCENARIO = """
[qci]
domains = {domains}
max_adapter = 255
max_domain = 255
[[card]]
adapters = {adapters}
type = "CEX8C"
[masks]
apmask = "0x0"
[[mdev]]
uuid = "{uuid}"
"""


def scenario(cards: int, domains: int) -> str:
    """Return the text of a host with cards x domains queues, all of them vfio_ap's, and one mediated device."""
    return _SCENARIO.format(adapters=list(range(cards)), domains=list(range(domains)), uuid=UUID)


@dataclass(frozen=True)
class Node:
    """A node of a host's tree; `text` is what a link says, or what can be read."""

    path: str
    kind: str
    mode: int
    text: str


def nodes(text: str, below: str) -> Iterator[Node]:
    """Yield what leads to a directory of a host, and all that is in it, directories first."""
    shell = Shell(Host(loads(text)))
    parents = below.split("/")
    for depth in range(1, len(parents)):
        yield Node("/".join(parents[: depth + 1]), "D", 0o755, "")
    for path, found in shell.find(below):
        kind = {0o04: "D", 0o12: "L"}.get(found.mode >> 12, "F")
        content = ""
        if kind == "L":
            content = shell.readlink(path)
        elif kind == "F":
            with contextlib.suppress(KernelError):
                content = shell.cat(path)
        if path != below:
            yield Node(path, kind, found.mode & 0o777, content)


class Peer:
    """A tree that is compared with others."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.attribute = root / QUEUE / "chkstop"
        self.stores = (root / MDEV / "assign_domain", root / MDEV / "unassign_domain")
        self.number = b"1"

    def pin(self, cpus: set[int]) -> None:
        """Let what serves it run on these CPUs."""

    def stop(self) -> None:
        """Take it away."""


class Server(Peer):
    """A mounted tree, and the process behind it."""

    def __init__(self, name: str, root: Path, command: list[str]) -> None:
        super().__init__(name, root)
        root.mkdir()
        start = time.perf_counter()
        self._process = subprocess.Popen([*command, str(root)])
        while not (root / "sys").is_dir():
            if self._process.poll() is not None or time.perf_counter() - start > _START_SECONDS:
                raise SystemExit(f"{name} did not start")
            time.sleep(0.001)
        self.pid = self._process.pid

    def pin(self, cpus: set[int]) -> None:
        """Let it run on these CPUs."""
        os.sched_setaffinity(self.pid, cpus)

    def resident(self) -> int:
        """Return its resident memory in KiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024

    def cpu_seconds(self) -> float:
        """Return the CPU time that it used, to the nanosecond: clock ticks are samples."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def stop(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.root)], check=True)
        self._process.wait()
        self.root.rmdir()


def apfs(name: str, root: Path, text: str, *options: str) -> Server:
    """Mount a host, whose mediated device has adapter 5."""
    file = root.with_suffix(".toml")
    file.write_text(text)
    command = [*APFS, "mount", "--foreground", "--clock", "manual", "--scenario", str(file), *options]
    server = Server(name, root, command)
    (root / MDEV / "assign_adapter").write_text("5")
    return server


def yardstick(program: Path, root: Path, text: str, below: str = "/sys") -> Server:
    """Mount the same tree, or a directory of it, with the C server."""
    file = root.with_suffix(".manifest")
    with file.open("w") as manifest:
        for node in nodes(text, below):
            mode = f" {node.mode:o}" if node.kind == "F" else ""
            escaped = node.text.replace("\n", "\\n")
            tab = "" if node.kind == "D" else f"\t{escaped}"
            manifest.write(f"{node.kind}{mode} {node.path}{tab}\n")
    return Server("C", root, [str(program), str(file)])


def tmpfs(root: Path, text: str) -> Peer:
    """Copy the tree into a tmpfs, where files are just files."""
    for node in nodes(text, "/sys"):
        place = root / node.path[1:]
        if node.kind == "D":
            place.mkdir(parents=True)
        elif node.kind == "L":
            place.symlink_to(node.text)
        else:
            place.write_text(node.text)
    return Peer("tmpfs", root)


def sysfs() -> Peer | None:
    """Return two attributes of the machine's own sysfs that can be read and written, None if it has none."""
    peer = Peer("sysfs", Path("/sys"))
    peer.attribute = Path("/sys/kernel/mm/ksm/run")
    peer.stores = (Path("/sys/kernel/mm/ksm/sleep_millisecs"),) * 2
    return peer if os.access(peer.stores[0], os.W_OK) and os.access(peer.attribute, os.R_OK) else None

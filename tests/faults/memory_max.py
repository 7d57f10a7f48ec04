"""What happens when the kernel kills processes of apfs because their cgroup has reached its memory.max.

Needs root, and a memory controller that it may use, which containers do not give. So it is not collected with the other
tests, but run by its name, and by tests/vm/inside.sh in a virtual machine. Where the controller is one of cgroup v1,
memory.max is that one's limit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conftest import TIMEOUT, apfs, server_of
from tests.faults.points import APFS, line_of, mounts_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path("/sys/fs/cgroup")
V1 = ROOT / "memory"
JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
KILLED = -signal.SIGKILL
LITTLE = 1 << 20
SHARES = (10, 30, 50, 70, 80)
"""Of the memory that a command needs, in percent. With the least not even Python starts."""


class Files(NamedTuple):
    """What a controller calls its files."""

    limit: str
    peak: str
    events: str
    swap: str


FILES = {
    1: Files("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "memory.swappiness"),
    2: Files("memory.max", "memory.peak", "memory.events", "memory.swap.max"),
}


class Group:
    """A new cgroup, without swap."""

    def __init__(self, name: str) -> None:
        version = 1 if V1.is_dir() else 2
        self._path = (V1 if version == 1 else ROOT) / name
        self._files = FILES[version]
        self._path.mkdir()
        swap = self._path / self._files.swap
        if swap.exists():  # the kernel may have been built without swap
            swap.write_text("0")

    def limit(self, size: int) -> None:
        """Set the bytes that its processes can have together."""
        (self._path / self._files.limit).write_text(str(size))

    def add(self, pid: int) -> None:
        """Move a process here; what it has already counts where it was."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def run(self, tmp: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of apfs here, with a TMPDIR."""
        command = ["sh", "-c", JOIN, str(self._path), *APFS, *words]
        env = {**os.environ, "TMPDIR": str(tmp)}
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)

    @property
    def peak(self) -> int:
        """The most bytes that its processes have had together."""
        file = self._path / self._files.peak
        if not file.exists():
            pytest.skip(f"before Linux 5.19, cgroup v2 has no {file.name}")
        return int(file.read_text())

    @property
    def killed(self) -> int:
        """How many processes the kernel has killed for their memory."""
        events = dict(line.split() for line in (self._path / self._files.events).read_text().splitlines())
        return int(events["oom_kill"])

    def wait_until_empty(self) -> None:
        """Wait for the end of all processes."""
        while pids := (self._path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                wait_for(os.pidfd_open(int(pids[0])))

    def remove(self) -> None:
        """Remove it, which works only without processes."""
        self._path.rmdir()


def wait_for(pidfd: int) -> None:
    """Wait for the end of a process, and close its descriptor."""
    assert select.select([pidfd], [], [], TIMEOUT)[0]
    os.close(pidfd)


@pytest.fixture
def group() -> Iterator[Callable[[], Group]]:
    """Return a function that makes cgroups, which are removed afterwards."""
    if not V1.is_dir():
        (ROOT / "cgroup.subtree_control").write_text("+memory")
    made: list[Group] = []

    def make() -> Group:
        made.append(Group(f"apfs-{os.getpid()}-{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        each.remove()


def store(file: int) -> int:
    """Return the errno of a store, of which the journal keeps the text."""
    try:
        os.write(file, b"x" * 4096)
    except OSError as error:
        return error.errno or 0
    return 0


def test_the_server_of_a_mount(mount: Callable[..., Path], group: Callable[[], Group]) -> None:
    """It ends in the middle of a store, which gets no answer from it; the next mount works."""
    host = mount()
    pid = server_of(host)
    ended = os.pidfd_open(pid)
    little = group()
    little.limit(LITTLE)
    little.add(pid)
    mask = os.open(host / "sys/bus/ap/apmask", os.O_WRONLY)
    while (refusal := store(mask)) == errno.EINVAL:
        pass
    assert refusal in (errno.ECONNABORTED, errno.ENOTCONN)
    with contextlib.suppress(OSError):
        os.close(mask)
    wait_for(ended)
    assert little.killed == 1
    apfs("mount", str(host))
    assert (host / "sys/bus/ap/apmask").read_text().startswith("0xffff")
    apfs("umount", str(host))
    assert not mounts_in(host)


STORING = """
echo ready
printf -v text %4096s x
while read -r _ < /sys/bus/ap/scans; do
    echo "$text" > /sys/bus/ap/apmask
done 2> /dev/null
exit 5
"""


def test_the_server_of_a_command_that_runs(tmp_path: Path, group: Callable[[], Group]) -> None:
    """The command gets errors from then on, and its status is that of `apfs exec`."""
    little = group()
    little.limit(LITTLE)
    with subprocess.Popen(
        [*APFS, "exec", "bash", "-c", STORING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert line_of(process) == "ready\n"
        (place,) = tmp_path.iterdir()
        little.add(server_of(place / "host"))
        _, said = process.communicate(timeout=TIMEOUT)
    assert little.killed == 1
    assert process.returncode == 5
    assert "its server has ended" in said
    assert said.count("\n") == 1
    assert not mounts_in(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_mount_with_too_little(tmp_path: Path, group: Callable[[], Group]) -> None:
    """Killed is the command, or its server, which it says."""
    host = tmp_path / "host"
    host.mkdir()
    enough = group()
    assert enough.run(tmp_path, "mount", str(host)).returncode == 0
    apfs("umount", str(host))
    enough.wait_until_empty()
    outcomes = []
    for share in SHARES:
        little = group()
        little.limit(enough.peak * share // 100)
        done = little.run(tmp_path, "mount", str(host))
        outcomes.append((done.returncode, done.stderr))
        assert little.killed
        apfs("mount", str(host))
        apfs("umount", str(host))
        little.wait_until_empty()
        assert not mounts_in(tmp_path)
    assert set(outcomes) == {
        (KILLED, ""),
        (1, "apfs: the server was killed by signal 9, as Linux does when memory runs out\n"),
    }


def test_exec_with_too_little(tmp_path: Path, group: Callable[[], Group]) -> None:
    """Killed is `apfs exec`, or another of its processes, and then there is one line; the next one cleans up."""
    enough = group()
    assert enough.run(tmp_path, "exec", "true").returncode == 0
    enough.wait_until_empty()
    statuses = []
    for share in SHARES:
        little = group()
        little.limit(enough.peak * share // 100)
        done = little.run(tmp_path, "exec", "true")
        statuses.append(done.returncode)
        assert little.killed
        assert done.stderr.count("\n") == (done.returncode == 125), done
        assert done.stderr.startswith("apfs: " if done.returncode == 125 else ""), done
        little.wait_until_empty()
        assert not mounts_in(tmp_path)
        assert done.returncode == KILLED or list(tmp_path.iterdir()) == []
    assert set(statuses) == {KILLED, 125}
    assert enough.run(tmp_path, "exec", "true").returncode == 0
    enough.wait_until_empty()
    assert list(tmp_path.iterdir()) == []

"""Faults at counted places: a signal at the n-th system call of one of the processes that a command starts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import TIMEOUT, apfs

HERE = Path(__file__).parent
APFS = (sys.executable, "-P", "-m", "apfs")
COMMAND = "0"
"""The process of the command itself. "1" is the first one that it starts, "1.2" the second one that that starts."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal for a process or, if `group`, for the command's process group, at a system call of the process."""

    call: int
    child: str = COMMAND
    number: signal.Signals = signal.SIGKILL
    group: bool = False
    changing: bool = False
    """Whether only calls are counted that change something, as tests/faults/changes.c has it."""
    until_fork: bool = False
    """Whether the signal comes at the latest at the first call that starts a process."""

    @property
    def words(self) -> list[str]:
        return [
            "-c",
            self.child,
            "-n",
            str(self.call),
            "-s",
            str(int(self.number)),
            *(["-g"] if self.group else []),
            *(["-w"] if self.changing else []),
            *(["-f"] if self.until_fork else []),
        ]

    def met(self, outcome: Outcome) -> bool:
        """Whether the process came to the call, and got the signal there."""
        return self.call == (outcome.changes if self.changing else outcome.calls)


NONE = Fault(-1)


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    calls: int
    changes: int
    """How many of the calls change something."""
    first_mkdir: int
    first_fork: int
    said: str
    printed: str


def compile_program(directory: Path) -> Path:
    program = directory / "faultpoint"
    command = ["gcc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run([*command, "-o", program, *sorted(HERE.glob("*.c"))], check=True)
    return program


def mounts_in(place: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(place) in line]


def spread(first: int, last: int, count: int) -> list[int]:
    """Some numbers from first to last, both included, at equal distances; all of them if that is fewer."""
    if last - first < count:
        return list(range(first, last + 1))
    return [first + (last - first) * step // (count - 1) for step in range(count)]


def below(pid: int) -> list[int]:
    """Return a process and all that it has started: the server is a fork, whose command line is that of its parent."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in below(int(child)))]


def line_of(process: subprocess.Popen[str]) -> str:
    """Read a line of standard output and nothing more, which `communicate` would miss."""
    assert process.stdout
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(process.stdout.fileno(), 1)
        assert piece, line
        line += piece
    return line.decode()


class Commands:
    """Runs commands with faults, with a TMPDIR of their own."""

    def __init__(self, program: Path, tmp: Path) -> None:
        self.program = program
        self.tmp = tmp

    def start(self, fault: Fault, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.program, *fault.words, "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Were bytecode written, the first run of a checkout would make more calls than the next.
            env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def run(self, fault: Fault, *words: str) -> Outcome:
        """Run a command, and wait until all of its processes have ended."""
        with self.start(fault, *words) as process:
            try:
                printed, said = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                for pid in below(process.pid):  # else the end of the with statement waits for them
                    os.kill(pid, signal.SIGKILL)
                raise
        return outcome_of(printed, said)

    def mount(self, fault: Fault, mountpoint: Path, *before: str) -> Outcome:
        """Mount; whatever has become of that, mount again, use it, unmount; wait for the end of all processes.

        Words that come before make it the command of another one. If the server was killed only then, as its calls are
        counted to the last, yet another mount has to work.
        """
        with self.start(fault, *before, *APFS, "mount", str(mountpoint)) as process:
            try:
                printed = line_of(process)
                mounted = mounts_in(mountpoint)
                if printed == "130\n":
                    assert not mounted
                again = apfs("mount", str(mountpoint), status=None)
                if again.returncode:
                    assert (again.returncode, len(mounted)) == (2, 1), again
                    assert "already has an apfs mounted" in again.stderr
                answered = _answers(mountpoint)
            finally:
                unmounted = apfs("umount", str(mountpoint), status=None)
            rest, said = process.communicate(timeout=TIMEOUT)
        assert not mounts_in(mountpoint)
        outcome = outcome_of(printed + rest, said)
        if not answered or unmounted.returncode:
            assert fault.child != COMMAND, unmounted
            assert fault.met(outcome), unmounted
            apfs("mount", str(mountpoint))
            assert _answers(mountpoint)
            apfs("umount", str(mountpoint))
        return outcome


def _answers(mountpoint: Path) -> bool:
    """Whether a host is mounted, only one, and its server lives."""
    try:
        scans = (mountpoint / "sys/bus/ap/scans").read_text()
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT):
            raise
        return False
    assert int(scans) > 0
    assert len(mounts_in(mountpoint)) == 1
    return True


def started(commands: Commands) -> int:
    """How many calls there are before the first line of apfs runs, and a little more: until then Python decides."""
    return commands.run(NONE, *APFS[:2], "-c", "import apfs.cli.start").calls + 30


def outcome_of(printed: str, said: str) -> Outcome:
    """Return the outcome from what faultpoint, the command and its processes have written."""
    assert "Traceback" not in said, said
    *lines, status, counts = printed.splitlines()
    calls, changes, first_mkdir, first_fork = map(int, counts.split())
    printed = "".join(f"{line}\n" for line in lines)
    return Outcome(int(status), calls, changes, first_mkdir, first_fork, said, printed)

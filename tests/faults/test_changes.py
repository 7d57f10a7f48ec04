"""Which system calls change something: what the long form of the faults leaves out, and what it does not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.faults.points import NONE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.points import Commands

BEFORE = """
import fcntl, mmap, os, select, signal, sys
os.chdir(sys.argv[1])
host = sys.argv[2]
"""
HARMLESS = """
os.stat("."), os.listdir("/proc"), os.readlink("/proc/self/exe"), os.getppid(), os.access("/etc", os.R_OK)
with open("/etc/passwd") as file: file.read()
os.isatty(os.open("/dev/null", os.O_WRONLY)), os.stat(host)
left, right = os.pipe()
fcntl.fcntl(left, fcntl.F_GETFL), os.dup(left)
select.select([], [], [], 0)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
mmap.mmap(-1, 1 << 20).close()
os.umask(0o22)
"""
CHANGES = [
    'os.mkdir("made")',
    'os.rename("made", "named")',
    'made = os.open("file", os.O_CREAT | os.O_WRONLY)',
    'os.write(made, b"text")',
    "fcntl.flock(made, fcntl.LOCK_EX)",
    "os.close(made)",
    'os.unlink("file")',
    'os.write(right, b"text")',
    "os.read(left, 4)",
    "os.close(right)",
    "os.kill(os.getpid(), 0)",
    'read = os.open(f"{host}/ctl/status", os.O_RDONLY)',
    "os.read(read, 1)",
    "os.close(read)",
]


def test_calls_that_change_something(commands: Commands, mount: Callable[..., Path], tmp_path: Path) -> None:
    scripts = (BEFORE, BEFORE + HARMLESS, BEFORE + HARMLESS + "\n".join(CHANGES))
    words = ("-I", "-c")
    host = str(mount())
    runs = [commands.run(NONE, sys.executable, *words, script, str(tmp_path), host) for script in scripts]
    assert [run.status for run in runs] == [0, 0, 0]
    nothing, harmless, changing = (run.changes for run in runs)
    assert harmless == nothing
    assert changing == nothing + len(CHANGES)

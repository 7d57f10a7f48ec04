"""What apfs does when it gets no more memory: it ends, as if it was killed, and leaves nothing behind.

Limits count from what a process has: how much that is depends on the machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, apfs, server_of
from tests.faults.points import mounts_in

if TYPE_CHECKING:
    from collections.abc import Callable

_LITTLE = 1 << 20


def size(pid: int) -> int:
    """Return how many bytes of address space a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def store(file: int, text: bytes) -> int:
    """Return the errno of a store, 0 if it was none."""
    try:
        os.write(file, text)
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_server_without_memory_ends(mount: Callable[..., Path]) -> None:
    """Nobody gets an answer from a host in the middle of a change."""
    host = mount()
    pid = server_of(host)
    ended = os.pidfd_open(pid)
    resource.prlimit(pid, resource.RLIMIT_AS, (size(pid) + _LITTLE, resource.RLIM_INFINITY))
    mask = os.open(host / "sys/bus/ap/apmask", os.O_WRONLY)
    while (refusal := store(mask, b"x" * 4096)) == errno.EINVAL:
        pass  # the journal has more and more to keep
    assert refusal in (errno.ECONNABORTED, errno.ENOTCONN)
    with contextlib.suppress(OSError):
        os.close(mask)
    assert select.select([ended], [], [], TIMEOUT)[0]
    os.close(ended)
    apfs("mount", str(host))
    assert (host / "sys/bus/ap/apmask").read_text().startswith("0xffff")
    apfs("umount", str(host))
    assert not mounts_in(host)


COMMAND = """
import resource, sys
import apfs.cli.exec, apfs.sandbox.run, apfs.mounts.private
from apfs.cli.main import main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv.pop(1)) * 1024, resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize("kibibytes", [0, 500, 4000])
def test_exec_without_memory(tmp_path: Path, kibibytes: int) -> None:
    """Whoever of its processes it is that gets none."""
    command = [sys.executable, "-P", "-c", COMMAND, str(kibibytes), "exec", "true"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    assert done.returncode == 125, done
    assert done.stderr.startswith("apfs: ")
    assert done.stderr.count("\n") == 1
    assert not mounts_in(tmp_path)
    assert list(tmp_path.iterdir()) == []

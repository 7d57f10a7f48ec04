"""Mounts whose requests can be counted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.conftest import TIMEOUT, apfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINUX = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""The version of the kernel of this machine."""
EPOCHS = LINUX >= (6, 16)
"""Whether the kernel of this machine knows FUSE_NOTIFY_INC_EPOCH."""
FORGETS_MODES = LINUX < (5, 16)
"""Whether this kernel forgets all about a file that was written or truncated, and not only its size and times.

If so, it asks for the mode when the file is opened again (fuse_permission).
"""
_DEBIAN_12 = {"ls": (9, 1), "find": (4, 9), "grep": (3, 8), "mdevctl": (1, 2)}
OLDER_KERNEL = """
import struct
from apfs.fuse import cache
cache._INC_EPOCH = struct.pack("=IiQ", 16, 99, 0)
"""
"""Python that makes any kernel one that does not know it: this notification no kernel knows."""

_REQUEST = re.compile(r"^unique: \d+, opcode: (\w+) ", re.MULTILINE)
# Sent when the last user is gone, which is after the command has ended; what leads there is counted.
_LATER = {"RELEASE", "RELEASEDIR", "FORGET", "BATCH_FORGET", "INTERRUPT"}


def newer(tool: str) -> bool:
    """Whether a tool of this machine is newer than that of Debian 12. Then it is as in Debian 13."""
    said = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2])) > _DEBIAN_12[tool]


class Counted:
    """A mounted host and its log."""

    def __init__(self, root: Path, log: Path, pid: int) -> None:
        self.root = root
        self.pid = pid
        self.log = log
        """What the server prints on standard error: requests with --debug, and warnings."""

    def requests(self) -> list[str]:
        """Return the names of all requests so far."""
        return _REQUEST.findall(self.log.read_text())

    def of(self, *command: str) -> dict[str, int]:
        """Run a command at the root of the mount; return how many requests of each kind it made."""
        before = len(self.requests())
        subprocess.run(command, cwd=self.root, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
        return self.counts(before)

    def counts(self, before: int) -> dict[str, int]:
        """Return how many requests of each kind there were after the first `before` ones."""
        return dict(Counter(name for name in self.requests()[before:] if name not in _LATER))

    def warnings(self) -> list[str]:
        """Return the warnings that the server printed."""
        return [line for line in self.log.read_text().splitlines() if "RuntimeWarning" in line]


@contextmanager
def served(root: Path, prelude: str = "", how: str = "--foreground") -> Iterator[subprocess.Popen[bytes]]:
    """Mount the default host on `root`, after some lines of Python; yield its server when it answers.

    What the server prints on standard error is beside the mount point. Whoever uses this ends the server.
    """
    root.mkdir()
    program = f"{prelude}\nfrom apfs.cli.main import main\nmain()"
    log = root.with_suffix(".log")
    command = [sys.executable, "-c", program, "mount", how, "--clock", "manual", "--ready-fd", "1", str(root)]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as server:
        assert server.stdout is not None
        assert server.stdout.read(1), log.read_text()
        yield server


@contextmanager
def counted(root: Path, prelude: str = "", how: str = "--debug") -> Iterator[Counted]:
    """Mount a host as `served` does, and unmount it.

    With `how` as --foreground, requests are served in the fast loop, and not counted.
    """
    with served(root, prelude, how) as server:
        try:
            yield Counted(root, root.with_suffix(".log"), server.pid)
        finally:
            apfs("umount", str(root))

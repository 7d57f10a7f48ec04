"""Limits of locked memory in `apfs exec`, for processes that may not raise them on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import TIMEOUT

LIMIT = 65536
# Root without the capability, as in most containers; nobody else has it anyway.
DROP = ("setpriv", "--bounding-set=-sys_resource") if os.geteuid() == 0 else ()
PRINT = "print(resource.getrlimit(resource.RLIMIT_MEMLOCK))"


def limited(program: str, *, sandbox: bool = True) -> str:
    """Run Python with a limit of 64 KiB that it cannot raise, and return what it printed."""
    command = ["prlimit", f"--memlock={LIMIT}:{LIMIT}", *DROP, sys.executable]
    if sandbox:
        command += ["-m", "apfs", "exec", "--", sys.executable]
    done = subprocess.run(
        [*command, "-c", f"import resource\nLOCK = resource.RLIMIT_MEMLOCK\n{program}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(soft: int, hard: int, resource: str = "LOCK") -> str:
    return f"""
try:
    resource.setrlimit({resource}, ({soft}, {hard}))
    print("set")
except (OSError, ValueError) as error:
    print(error)
"""


def test_it_can_be_raised_as_root_of_a_machine_can() -> None:
    huge = attempt(1 << 40, 1 << 40)
    assert limited(huge, sandbox=False) == "not allowed to raise maximum limit\n"
    assert limited(huge + attempt(-1, -1)) == "set\nset\n"


def test_that_changes_nothing_outside_the_emulated_host() -> None:
    assert limited(attempt(1 << 40, 1 << 40) + PRINT) == f"set\n({LIMIT}, {LIMIT})\n"


@pytest.mark.parametrize(
    ("soft", "hard", "resource", "says"),
    [
        (5, 4, "LOCK", "current limit exceeds maximum limit\n"),
        (1 << 40, 1 << 39, "LOCK", "current limit exceeds maximum limit\n"),
        (1, -1, "resource.RLIMIT_NOFILE", "not allowed to raise maximum limit\n"),
    ],
)
def test_what_root_cannot_do_and_other_limits_are_the_kernels(soft: int, hard: int, resource: str, says: str) -> None:
    assert limited(attempt(soft, hard, resource)) == says


def test_it_can_be_lowered() -> None:
    assert limited(attempt(1, 4096) + PRINT) == "set\n(1, 4096)\n"

"""Ioctls that no sane program makes, inside `apfs exec`: answers as from Linux, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

from tests.conftest import UUID, create_mdev, server_of
from tests.fuzz.corpus import HERE
from tests.sandbox.conftest import EXEC

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS = 300
EVENTFDS = 2
"""How many eventfds a device keeps when it is closed, one of each interrupt: the driver does so, too."""


def descriptors(process: int) -> Counter[str]:
    """Return what a process has open."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208 -- names
        found[os.readlink(f"/proc/{process}/fd/{fd}").split("[")[-1]] += 1  # noqa: PTH115
    return found


def hammer(host: Path, program: Path, rounds: int, seed: int) -> str:
    """Let the program loose in a sandbox on a mounted host; return how often which errno came."""
    command = [*EXEC, "--mount", str(host), "--", str(program), str(rounds), str(seed)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as sandbox:
        assert sandbox.stdin
        assert sandbox.stdout
        assert sandbox.stderr
        assert sandbox.stdout.readline() == "ready\n"
        before = descriptors(sandbox.pid), descriptors(server_of(host))
        print(file=sandbox.stdin, flush=True)
        lines = []
        while (line := sandbox.stdout.readline()) not in ("done\n", ""):
            lines.append(line)
        assert line, sandbox.stderr.read()
        after = descriptors(sandbox.pid), descriptors(server_of(host))
        print(file=sandbox.stdin, flush=True)
        assert sandbox.wait() == 0, lines
        assert sandbox.stderr.read() == ""
    assert (after[0] - before[0]).keys() <= {"eventfd]"}
    assert after[0]["eventfd]"] - before[0]["eventfd]"] <= EVENTFDS
    assert after[1] == before[1]
    assert list((host / "ctl/fds").iterdir()) == []
    assert '"type": "crash"' not in (host / "ctl/journal").read_text()
    return "".join(lines)


def test_ioctls(mount: Callable[..., Path], tmp_path: Path) -> None:
    program = tmp_path / "ioctls"
    flags = ["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", program, HERE.parent / "ioctls.c"], check=True)
    host = mount()
    create_mdev(host)
    said = hammer(host, program, ROUNDS, 1)
    for kind in ("container", "group", "device", "iommu"):
        assert f"{kind} EFAULT" in said, said
    (host / f"dev/vfio-ap/{UUID}/guest").write_text("1")  # it can still be opened

"""`apfs exec` in a container: which privileges are enough, and what is said when one is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT
from tests.tools.conftest import need

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = "cat /sys/bus/ap/bindings; echo -5 > /sys/bus/ap/apmask; readlink /sys/devices/ap/card05/05.0004/driver"
FUSE, SYS_ADMIN, NET_ADMIN = "--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN"


def in_container(tmp_path: Path, *privileges: str) -> subprocess.CompletedProcess[str]:
    """Run apfs exec in a container whose root file system is this machine's, seen through a bind mount."""
    if os.geteuid():
        pytest.skip("podman with this machine's root file system needs root")
    need("podman", "runc")
    root = tmp_path / "root"
    root.mkdir()
    options = ["--runtime=runc", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--rm"]
    # podman insists on a short path for its state.
    with tempfile.TemporaryDirectory(prefix="p") as state:
        kept = [f"--root={state}/s", f"--runroot={state}/r", "--cgroup-manager=cgroupfs"]
        podman = ["podman", *kept, "run", *options, *privileges, "--rootfs", str(root)]
        command = [*podman, sys.executable, "-m", "apfs", "exec", "--", "sh", "-c", SCRIPT]
        wrapped = ["unshare", "--mount", "sh", "-c", 'mount --bind / "$0" && exec "$@"', str(root), *command]
        return subprocess.run(wrapped, check=False, capture_output=True, text=True, timeout=TIMEOUT, cwd="/")


def test_enough_privileges(tmp_path: Path) -> None:
    result = in_container(tmp_path, FUSE, SYS_ADMIN, NET_ADMIN)
    assert result.returncode == 0, result
    assert result.stdout.splitlines() == ["12/12 (complete)", "../../../../bus/ap/drivers/vfio_ap"]


@pytest.mark.parametrize(
    ("privileges", "advice"),
    [
        ((), "--device /dev/fuse"),
        ((FUSE,), "--cap-add SYS_ADMIN"),
        ((FUSE, SYS_ADMIN), "--cap-add NET_ADMIN"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, privileges: tuple[str, ...], advice: str) -> None:
    result = in_container(tmp_path, *privileges)
    assert result.returncode == 125, result
    assert advice in result.stderr.splitlines()[-1]
    assert result.stdout == ""

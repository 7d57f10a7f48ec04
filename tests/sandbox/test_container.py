"""apfs in a container: which privileges are enough, and what is said when one is missing."""

from __future__ import annotations

import json
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


def in_container(
    tmp_path: Path, *privileges: str, command: tuple[str, ...] = ("exec", "--", "sh", "-c", SCRIPT)
) -> subprocess.CompletedProcess[str]:
    """Run apfs in a container whose root file system is this machine's, seen through a bind mount."""
    if os.geteuid():
        pytest.skip("podman with this machine's root file system needs root")
    need("podman", "runc")
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    options = ["--runtime=runc", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--rm"]
    # podman insists on a short path for its state.
    with tempfile.TemporaryDirectory(prefix="p") as state:
        kept = [f"--root={state}/s", f"--runroot={state}/r", "--cgroup-manager=cgroupfs"]
        podman = ["podman", *kept, "run", *options, *privileges, "--rootfs", str(root)]
        inside = [*podman, sys.executable, "-m", "apfs", *command]
        # Podman goes on cleaning up when it has returned. With this namespace all its processes have ended.
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        wrapped = [*unshare, "sh", "-c", 'mount --bind / "$0" && exec "$@"', str(root), *inside]
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


@pytest.mark.parametrize(
    ("given", "capabilities", "missing"),
    [
        ((), ("mount",), ["--device=/dev/fuse", "--cap-add=SYS_ADMIN"]),
        ((FUSE, SYS_ADMIN), (), ["--cap-add=NET_ADMIN"]),
        (
            ("--user=65534",),
            ("mount", "exec", "uevents", "vfio"),
            ["--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--security-opt=unmask=ALL"],
        ),
    ],
)
def test_what_the_doctor_prescribes_is_enough(
    tmp_path: Path, given: tuple[str, ...], capabilities: tuple[str, ...], missing: list[str]
) -> None:
    command = ("doctor", "--json", *capabilities)
    first = in_container(tmp_path, *given, command=command)
    assert first.returncode == 1, first
    report = json.loads(first.stdout)
    assert (report["situation"]["place"], report["situation"]["engine"]) == ("container", "podman")
    assert report["flags"] == missing
    second = in_container(tmp_path, *given, *missing, command=command)
    assert second.returncode == 0, second
    assert json.loads(second.stdout)["ok"] is True


def test_without_net_admin_the_network_of_the_machine_is_left(tmp_path: Path) -> None:
    report = json.loads(in_container(tmp_path, FUSE, SYS_ADMIN, command=("doctor", "--json", "exec")).stdout)
    assert "`apfs exec --net host` works" in report["capabilities"]["exec"]["note"]
    alone = ("exec", "--net", "host", "--", "cat", "/sys/bus/ap/bindings")
    assert in_container(tmp_path, FUSE, SYS_ADMIN, command=alone).stdout == "12/12 (complete)\n"


def test_a_seccomp_filter_that_refuses_is_named(tmp_path: Path) -> None:
    """A profile that allows everything but seccomp(2): commands run, and VFIO ioctls are not served."""
    profile = tmp_path / "profile.json"
    refused = [{"names": ["seccomp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": refused}))
    given = (FUSE, SYS_ADMIN, NET_ADMIN, f"--security-opt=seccomp={profile}")
    result = in_container(tmp_path, *given, command=("doctor", "--json", "exec", "uevents", "vfio"))
    report = json.loads(result.stdout)
    assert {name: one["works"] for name, one in report["capabilities"].items()} == {
        "exec": True,
        "uevents": True,
        "vfio": False,
    }
    assert report["capabilities"]["vfio"]["said"] == "VFIO ioctls are not served: Operation not permitted"
    assert report["flags"] == ["--security-opt=seccomp=unconfined"]
    assert in_container(tmp_path, *given[:3], *report["flags"], command=("doctor", "vfio")).returncode == 0

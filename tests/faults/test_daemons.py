"""libvirtd or udevd is killed on an emulated host: what the user is told, what is left, and that the next one works."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.testing.libvirt import Libvirt
from tests.conftest import TIMEOUT, UUID, apfs
from tests.faults.points import APFS
from tests.vmm.libvirt.guest import SMALL

if TYPE_CHECKING:
    from apfs.testing import MountedHost

CREATE = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"


def below(pid: int, name: str) -> int:
    """Return the process of a name that another has started, or one that it has started, and so on; 0 without one."""
    if Path(f"/proc/{pid}/comm").read_text().strip() == name:
        return pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next((found for child in children if (found := below(int(child), name))), 0)


def start(uri: str, host: MountedHost) -> None:
    virsh = ["virsh", "--quiet", "--connect", uri, "create", "--paused", "/dev/stdin"]
    subprocess.run(virsh, check=True, input=SMALL, text=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
    assert host.status()["mdevs"][UUID]["opener"] == "program"


def test_libvirtd_is_killed(apfs_mount: MountedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("libvirtd is for root only")
    apfs_mount.echo(UUID, CREATE)
    with tempfile.TemporaryDirectory() as tmp:
        monkeypatch.setenv("TMPDIR", tmp)
        words = [*APFS, "libvirtd", "--mount", str(apfs_mount.path)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
            assert first.stdout
            start(first.stdout.readline().strip(), apfs_mount)
            os.kill(below(first.pid, "libvirtd"), signal.SIGKILL)
            _, said = first.communicate(timeout=TIMEOUT)
        assert (first.returncode, said) == (1, "apfs: libvirtd was killed by signal 9, and its guests with it\n")
        assert list(Path(tmp).iterdir()) == []
        assert apfs_mount.status()["mdevs"][UUID]["opener"] is None
        with Libvirt(apfs_mount) as second:
            start(second.uri, apfs_mount)


def test_udevd_is_killed() -> None:
    """As on a real machine: nobody makes links then, until it is started again; the devices go on."""
    if shutil.which("udevadm") is None:
        pytest.skip("there is no udev")
    script = """
        until_() { until eval "$1"; do :; done; }
        mkdir -p /run/udev/rules.d
        echo 'SUBSYSTEM=="vfio", SYMLINK+="mine"' > /run/udev/rules.d/99-test.rules
        udevd() {
            /lib/systemd/systemd-udevd > /dev/null 2>&1 &
            disown  # else bash tells of its end
            until_ 'udevadm control --ping 2> /dev/null'
        }
        udevd
        kill -KILL $!
        until_ '! kill -0 $! 2> /dev/null'
        echo add > /sys/class/vfio/0/uevent
        ls /dev/mine 2> /dev/null
        udevd
        udevadm trigger --action=add --subsystem-match=vfio
        udevadm settle
        readlink /dev/mine
        kill $!
    """
    result = apfs("exec", "--scenario", "migration-source", "--", "bash", "-c", script)
    assert (result.stdout, result.stderr) == ("vfio/0\n", "")

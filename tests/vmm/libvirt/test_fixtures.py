"""The fixtures of the pytest plugin that have a libvirtd, and what stays when they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.testing import LibvirtError, Network
from apfs.testing.libvirt import Libvirt
from tests.conftest import TIMEOUT, UUID, apfs
from tests.vmm.libvirt.guest import SMALL

if TYPE_CHECKING:
    from apfs.testing import LibvirtPair, MountedHost

OTHER = "11111111-2222-4333-8444-555555555555"
QUEUE = "/sys/devices/ap/card05/05.0004/status"


@pytest.mark.usefixtures("for_root")
def test_a_libvirt(apfs_libvirt: Libvirt) -> None:
    apfs_libvirt.define(SMALL)
    assert apfs_libvirt.state("small") == "shut off"
    apfs_libvirt.virsh("start", "--paused", "small", check=True)
    assert apfs_libvirt.state("small") == "paused"
    assert apfs_libvirt.host.cat(QUEUE) == "in use\n"
    with pytest.raises(subprocess.CalledProcessError, match="'start', 'small'") as refused:
        apfs_libvirt.virsh("start", "small", check=True)
    assert refused.value.__notes__ == ["error: Domain is already active"]


@pytest.mark.usefixtures("for_root")
def test_libvirt_for_python(apfs_libvirt: Libvirt) -> None:
    """By Debian's package, which is for the system's interpreter."""
    script = """
import sys, libvirt
connection = libvirt.open(sys.argv[1])
domain = connection.createXML(sys.argv[2], libvirt.VIR_DOMAIN_START_PAUSED)
print(domain.name(), domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)
print([device.name() for device in connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV)])
"""
    command = ["/usr/bin/python3", "-c", script, apfs_libvirt.uri, SMALL]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"small True\n['mdev_{UUID.replace('-', '_')}_matrix']\n"


@pytest.mark.usefixtures("for_root")
@pytest.mark.apfs_scenario("migration-source", "target-other-queues")
def test_a_pair(apfs_libvirt_pair: LibvirtPair) -> None:
    source, target = apfs_libvirt_pair.source, apfs_libvirt_pair.target
    source.define(SMALL)
    source.virsh("start", "--paused", "small", check=True)
    refused = apfs_libvirt_pair.migrate("small")
    assert refused.returncode == 1
    # QEMU 10 tells libvirt what 7.2 says in its log.
    assert "load of migration failed: No such device" in target.log("small") + refused.stderr
    # QEMU does not try again with a guest that was paused before, and refused.
    source.virsh("destroy", "small", check=True)
    source.virsh("start", "--paused", "small", check=True)
    target.host.echo("0xab", f"/sys/devices/vfio_ap/matrix/{UUID}/unassign_domain")
    target.host.echo("0x47", f"/sys/devices/vfio_ap/matrix/{UUID}/assign_domain")
    done = apfs_libvirt_pair.migrate("small", "--persistent", "--undefinesource")
    assert (done.returncode, done.stderr) == (0, "")
    assert source.virsh("list", "--all", "--name").stdout.split() == []
    assert target.state("small") == "paused"
    assert target.migrate("small", source).returncode == 0
    assert source.state("small") == "paused"


@pytest.mark.usefixtures("for_root")
def test_nothing_stays(apfs_mount: MountedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    apfs_mount.echo(UUID, "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create")
    with Libvirt(apfs_mount) as libvirt:
        libvirt.define(SMALL)
        libvirt.virsh("start", "--paused", "small", check=True)
        assert [path.name for path in tmp_path.iterdir()] == [libvirt.directory.name]
        assert apfs_mount.status()["mdevs"][UUID]["opener"] == "program"
    assert list(tmp_path.iterdir()) == []
    assert apfs_mount.status()["mdevs"][UUID]["opener"] is None
    libvirt.close()


KILLED = """
import os, signal
def test_killed(apfs_libvirt):
    print(apfs_libvirt.directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("for_root")
def test_nothing_stays_of_a_run_that_is_killed(tmp_path: Path) -> None:
    directory = run(tmp_path, KILLED).split()[-1]
    # It is told of the end, and nobody of its own. The run's time limit ends a wait that never would.
    while Path(directory).exists():
        os.sched_yield()


FAILED = f"""
SMALL = {SMALL.replace(UUID, OTHER)!r}
def test_failed(apfs_libvirt):
    assert apfs_libvirt.virsh("create", "/dev/stdin", stdin=SMALL).returncode == 0
"""


@pytest.mark.usefixtures("for_root")
def test_a_failure_shows_the_logs(tmp_path: Path) -> None:
    said = run(tmp_path, FAILED)
    assert "apfs journal of apfs_libvirt.host" in said
    assert "apfs logs of apfs_libvirt" in said
    assert f"mediated device '{OTHER}' not found" in said


def run(directory: Path, text: str) -> str:
    """Run a test file by pytest, in a process of its own, and return what it printed when all its processes ended."""
    (directory / "test_it.py").write_text(text)
    options = ["-s", "-p", "no:cacheprovider", f"--basetemp={directory / 'tmp'}"]
    command = [sys.executable, "-m", "pytest", *options, str(directory / "test_it.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    return done.stdout


@pytest.mark.usefixtures("for_root")
def test_a_qemu_that_is_not_in_path(apfs_mount: MountedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("bwrap", "virsh", "sh", "env", "cat", "cc"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("APFS_QEMU", "/usr/bin/qemu-system-s390x")
    apfs_mount.echo(UUID, "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create")
    with Libvirt(apfs_mount) as libvirt:
        libvirt.define(SMALL)
        assert "<emulator>/run/apfs/bin/qemu-system-s390x</emulator>" in libvirt.virsh("dumpxml", "small").stdout
        libvirt.virsh("start", "--paused", "small", check=True)


def test_a_network_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LibvirtError, match=r"^bwrap is missing: install the package bubblewrap$"):
        Network()
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(LibvirtError, match=r"^bwrap could not create a network: "):
        Network()


@pytest.mark.usefixtures("for_root")
def test_missing_programs_are_named(apfs_mount: MountedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("bwrap", "virsh", "sh", "cc"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LibvirtError, match=r"^no qemu-system-s390x: apt install qemu-system-misc"):
        Libvirt(apfs_mount)
    with pytest.raises(LibvirtError, match=r"^nosuch is not installed: apt install libvirt-daemon "):
        Libvirt(apfs_mount, options=["--libvirtd", "nosuch"])
    (tmp_path / "virsh").unlink()
    with pytest.raises(LibvirtError, match=r"^virsh is not installed: apt install libvirt-clients"):
        Libvirt(apfs_mount)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--scenario", "default", "--mount", "/x"), "--scenario and --mount exclude each other"),
        (("--bind", "/x"), "--bind takes SRC:DEST, and DEST is absolute"),
        (("--tcp", "70000"), "70000 is not in the range 1<=x<=65535"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], says: str) -> None:
    assert says in apfs("libvirtd", *words, status=2).stderr


def test_users_are_told_that_it_is_for_root() -> None:
    command = [sys.executable, "-m", "apfs", "libvirtd"]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("apfs: libvirt starts QEMU only for root: run as root, ")


@pytest.mark.usefixtures("for_root")
def test_a_libvirtd_that_fails_tells_why(apfs_mount: MountedHost, tmp_path: Path) -> None:
    (tmp_path / "libvirtd").write_text("#!/bin/sh\necho first >&2; echo it is broken >&2; exit 1\n")
    (tmp_path / "libvirtd").chmod(0o755)
    with pytest.raises(LibvirtError, match=r"^libvirtd failed: first; it is broken$"):
        Libvirt(apfs_mount, options=["--libvirtd", str(tmp_path / "libvirtd")])


@pytest.mark.usefixtures("for_root")
def test_long_names_of_directories(apfs_mount: MountedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets have short ones."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    with Libvirt(apfs_mount) as libvirt:
        assert libvirt.directory.parent == Path("/tmp")  # noqa: S108 -- whose name is short
    assert not libvirt.directory.exists()
    assert list(deep.iterdir()) == []

"""`apfs exec --guest`: commands on a guest of a mounted host."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from apfs.mounts.table import MountsError
from apfs.testing.mounted import MountedHost
from tests.conftest import TIMEOUT, apfs
from tests.guest.guests import FROM_THE_START
from tests.hosts import M1, M2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def host() -> Iterator[MountedHost]:
    with MountedHost(FROM_THE_START) as host:
        yield host


def test_a_command_sees_the_guest_as_the_machine(host: MountedHost) -> None:
    script = "ls /sys/bus/ap/devices /dev/apfs; cat /sys/bus/ap/bindings; [ -e /sys/devices/vfio_ap ] || echo none"
    result = host.guest(M1).sh(script)
    assert result.stdout.split() == [
        *("/dev/apfs:", "ctl", "dev", "guests", "sys", "/sys/bus/ap/devices:", "05.0004", "05.00ab", "card05"),
        *("2/2", "(complete)", "none"),
    ]
    assert host.sh("ls /sys/bus/ap/devices").stdout.split()[-1] == "card06"


def test_hot_plug_reaches_it_and_its_uevents_are_the_kernels(host: MountedHost, tmp_path: Path) -> None:
    guest = host.guest(M1)
    script = """
        python3 - <<END &
import socket
heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
heard.bind((0, 1))
open("$1", "w").close()
while b"@/devices/virtual/bdi/" in (event := heard.recv(4096)):
    pass  # the machine's own: whenever anything is mounted anywhere
print(event.split(b"\\\\0")[0].decode(), flush=True)
END
        until [ -e "$1" ]; do :; done
        echo 1 > /sys/bus/ap/scans
        wait
        ls /sys/bus/ap/devices | tail -1
    """
    host.echo(6, f"/sys/devices/vfio_ap/matrix/{M1}/assign_adapter")
    said = guest.sh(script, tmp_path / "ready", check=True).stdout
    assert said.splitlines() == ["add@/devices/ap/card06", "card06"]
    host.echo(6, f"/sys/devices/vfio_ap/matrix/{M1}/unassign_adapter")
    guest.echo(1, "/sys/bus/ap/scans")


def test_module_tools_act_on_the_guest(host: MountedHost) -> None:
    guest = host.guest(M1)
    guest.sh("modprobe vfio_ap && rmmod vfio_ap && modprobe vfio_ap", check=True)
    assert guest.exists("/sys/devices/vfio_ap/matrix")
    guest.sh("rmmod vfio_ap", check=True)
    assert host.exists("/sys/devices/vfio_ap/matrix")


def test_a_guest_of_a_guest(host: MountedHost) -> None:
    guest = host.guest(M1)
    guest.sh(
        """
        modprobe vfio_ap
        echo -5 > /sys/bus/ap/apmask
        cd /sys/devices/vfio_ap/matrix
        echo "$1" > mdev_supported_types/vfio_ap-passthrough/create
        echo 5 > $1/assign_adapter
        echo 4 > $1/assign_domain
        echo 1 > /dev/vfio-ap/$1/guest
        """,
        M2,
        check=True,
    )
    try:
        assert guest.guest(M2).sh("ls /sys/bus/ap/devices").stdout.split() == ["05.0004", "card05"]
        inside = guest.exec(sys.executable, "-m", "apfs", "exec", "--guest", M2, "--", "ls", "/sys/bus/ap/devices")
        assert inside.stdout.split() == ["05.0004", "card05"], inside.stderr
        assert "VFIO ioctls are not served" not in inside.stderr
        place = f"{host.path}/guests/{M1}/guests/{M2}"
        assert apfs("status", place).stdout.startswith(f"host\nscenario         {M2}")
    finally:
        guest.echo(0, f"/dev/vfio-ap/{M2}/guest")
        guest.console("rmmod vfio_ap")


def test_inside_a_sandbox_of_the_host_it_is_found_there(host: MountedHost) -> None:
    result = host.exec(sys.executable, "-m", "apfs", "exec", "--guest", M1.upper(), "--", "ls", "/sys/bus/ap/devices")
    assert result.stdout.split() == ["05.0004", "05.00ab", "card05"], result.stderr


def test_a_scenario_may_have_a_guest_from_the_start(tmp_path: Path) -> None:
    scenario = tmp_path / "guest.toml"
    scenario.write_text(FROM_THE_START)
    words = ("exec", "--scenario", str(scenario), "--guest", M1, "--", "ls", "/sys/bus/ap/devices")
    assert apfs(*words).stdout.split() == ["05.0004", "05.00ab", "card05"]


@pytest.mark.parametrize(
    ("uuid", "message"),
    [
        (M2, f"no guest runs on mediated device {M2}: `echo 1 > MOUNT/dev/vfio-ap/{M2}/guest` or start a VMM"),
        ("nonsense", f"MOUNT has no mediated device nonsense: guests run on {M1}"),
        ("../..", f"MOUNT has no mediated device ../..: guests run on {M1}"),
    ],
)
def test_without_a_guest_one_line_says_what_to_do(host: MountedHost, uuid: str, message: str) -> None:
    result = apfs("exec", "--mount", str(host.path), "--guest", uuid, "--", "true", status=125)
    assert result.stderr == f"apfs: {message}\n".replace("MOUNT", str(host.path))
    with pytest.raises(MountsError, match=uuid.replace(".", "[.]")):
        host.guest(uuid)


def test_a_guest_of_no_host() -> None:
    result = apfs("exec", "--guest", M1, "true", status=125)
    assert result.stderr.endswith("Error: --guest needs the host on which the guest runs: --mount DIR\n")


def test_status_names_guests(host: MountedHost) -> None:
    rows = apfs("status", str(host.path)).stdout.partition("\nguests\n")[2].splitlines()
    assert rows[1].split()[:3] == [M1, "05", "2"]
    guest = f"{host.path}/guests/{M1}"
    shown = apfs("status", guest).stdout
    assert shown.startswith(f"host\nscenario         {M1}")
    assert apfs("status", f"{guest}/guests/..").stdout == shown
    assert host.guest(M1).exec(sys.executable, "-m", "apfs", "status").stdout == shown
    missing = apfs("status", f"{host.path}/guests/{M2}", status=2).stderr
    assert missing.startswith(f"apfs: no guest runs on mediated device {M2}: ")
    assert apfs("status", f"{host.path}/sys", status=2).stderr.startswith(f"apfs: {host.path}/sys is not an apfs mount")


def test_the_journal_of_a_guest_is_followed_to_its_end(host: MountedHost) -> None:
    guest = host.path / "guests" / M1
    command = [sys.executable, "-m", "apfs", "journal", "--follow", "--lines", "1", str(guest)]
    host.guest(M1).echo(1, "/sys/bus/ap/scans")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert "/sys/bus/ap/scans '1" in follower.stdout.readline()
        host.echo(0, f"/dev/vfio-ap/{M1}/guest")
        assert follower.communicate(timeout=TIMEOUT)[1] == f"apfs: the guest {guest} has ended\n"
        assert follower.returncode == 1
    host.echo(1, f"/dev/vfio-ap/{M1}/guest")


def test_a_command_outlives_its_guest(host: MountedHost) -> None:
    """No more uevents arrive then, and what was open is gone."""
    with host.path.joinpath("dev/vfio-ap", M1, "guest").open("w") as client:
        script = "exec 3< /sys/bus/ap/scans; echo started; read -r; cat <&3 || echo gone"
        words = [sys.executable, "-m", "apfs", "exec", *host.selection, "--guest", M1, "--", "bash", "-c", script]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            client.write("0")
            client.flush()
            assert process.communicate("\n", timeout=TIMEOUT)[0] == "gone\n"
    host.echo(1, f"/dev/vfio-ap/{M1}/guest")


def test_the_guest_of_a_migrated_device_has_the_same_queues(host: MountedHost, tmp_path: Path) -> None:
    """On the other host by the same UUID, with the same names, types and masks; no longer on the first."""
    script = "cd /sys/bus/ap; ls devices; cat devices/*/type ap_*_mask bindings; lsmod | grep vfio_ap || echo none"
    (tmp_path / "target.toml").write_text(FROM_THE_START)
    with MountedHost(tmp_path / "target.toml") as target:
        target.echo(0, f"/dev/vfio-ap/{M1}/guest")
        seen = host.guest(M1).sh(script, check=True).stdout
        assert seen.split()[:4] == ["05.0004", "05.00ab", "card05", "CEX8P"]
        apfs("migrate", str(host.path), str(target.path), M1)
        with pytest.raises(MountsError, match="no guest runs"):
            host.guest(M1)
        assert target.guest(M1).sh(script, check=True).stdout == seen
        apfs("migrate", str(target.path), str(host.path), M1)
    assert host.guest(M1).sh(script, check=True).stdout == seen

"""Real tools on the oldest and the newest kernel: they find what is there, and do without what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from apfs.kernel.profile import NEWEST, OLDEST, Profile
from tests.tools.conftest import EXAMPLE, U1, U2, M, inside, need

BOTH = pytest.mark.parametrize("version", [OLDEST, NEWEST])
CALLOUT = Path(__file__).with_name("callout.py")
MDEVCTL = """
mkdir -p /etc/mdevctl.d/scripts.d/{callouts,notifiers}
mdevctl types
mdevctl define --uuid $1 --parent matrix --type vfio_ap-passthrough
mdevctl modify --uuid $1 --addattr=assign_adapter --value=0x2
mdevctl modify --uuid $1 --addattr=assign_domain --value=0x1f
mdevctl start --uuid $1
mdevctl list -v
cat /sys/bus/mdev/devices/$1/matrix
echo 1 > /dev/vfio-ap/$1/guest
echo 0x0b > /sys/bus/mdev/devices/$1/assign_control_domain || echo busy
echo 0 > /dev/vfio-ap/$1/guest
mdevctl stop --uuid $1
mdevctl list
"""


@pytest.fixture
def host(tmp_path: Path, version: str) -> Path:
    """The host of the examples with a kernel."""
    path = tmp_path / "host.toml"
    path.write_text(f'kernel = "{version}"\n{EXAMPLE.read_text()}')
    return path


@BOTH
def test_mdevctl(host: Path, version: str) -> None:
    need("mdevctl")
    result = inside(MDEVCTL, U1, scenario=host, options=("--tmpfs", "/etc/mdevctl.d"))
    lines = result.stdout.splitlines()
    assert lines[:3] == ["matrix", "  vfio_ap-passthrough", "    Available instances: 65535"]
    assert f"{U1} matrix vfio_ap-passthrough manual (defined)" in lines
    assert lines.count("02.001f") == 1
    hotplug = Profile.of(version).hotplug
    assert ("busy" in lines, "Device or resource busy" in result.stderr) == (not hotplug, not hotplug)
    assert f"{M} matrix vfio_ap-passthrough manual" in lines


@BOTH
def test_lszcrypt(host: Path, version: str, s390x_binaries: Path) -> None:
    need("qemu-s390x-static")
    script = 'qemu-s390x-static -L "$1" "$1/sbin/lszcrypt" -V'
    result = inside(script, str(s390x_binaries), scenario=host)
    rows = [re.split(" +", line) for line in result.stdout.splitlines()[2:]]
    kernel = Profile.of(version)
    kind, depth = ("CEX8", "09") if kernel.cex8 else ("CEX7", "08")
    assert {row[1][:4] for row in rows} == {kind}
    assert {row[7] for row in rows} == {depth}
    assert [row[0] for row in rows[:2]] == ["00", "00.0006"]
    assert "vfio_ap" in rows[-1]


@BOTH
def test_libvirt_and_udev(host: Path, version: str) -> None:
    need("libvirtd", "virsh", "udevadm")
    script = """
    mkdir -p $LIBVIRT_DRIVER_DIR /run/libvirt /etc/mdevctl.d/scripts.d/{callouts,notifiers}
    cp /usr/lib/*/libvirt/connection-driver/libvirt_driver_nodedev.so $LIBVIRT_DRIVER_DIR
    settings=('auth_unix_rw = "none"' 'auth_unix_ro = "none"' 'unix_sock_group = "root"')
    printf '%s\\n' "${settings[@]}" > /etc/libvirt/libvirtd.conf
    libvirtd --timeout 60 > /run/libvirtd.log 2>&1 &
    nodes() { virsh --quiet --connect nodedev:///system nodedev-list --cap $1; }
    until [ -S /run/libvirt/libvirt-sock ] && [ "$(nodes ap_queue 2> /dev/null | grep -c ap_)" = 9 ]; do
        kill -0 %1 || exit 1
        read -rt 0.05 <> <(:) || :
    done
    for kind in ap_card ap_matrix mdev_types mdev; do nodes $kind | sed /^$/d; done
    kill %1
    udevadm info --query=property --path=/devices/ap/card00
    ls /dev/iommu /dev/vfio/devices 2> /dev/null
    """
    options = ("--tmpfs", "/etc/mdevctl.d", "--tmpfs", "/etc/libvirt", "--tmpfs", "/var/lib/libvirt")
    result = inside(f"export LIBVIRT_DRIVER_DIR=/run/drivers\n{script}", scenario=host, options=options, status=None)
    lines = result.stdout.split()
    assert lines[:5] == ["ap_card00", "ap_card01", "ap_card02", "ap_matrix", "ap_matrix"], result
    assert lines[5] == "mdev_669d9b23_fe1b_4ecb_be08_a2fabca99b71_matrix"
    kernel = Profile.of(version)
    assert f"MODALIAS=ap:t{14 if kernel.cex8 else 13:02X}" in lines
    assert ("/dev/iommu" in lines) == kernel.iommufd
    assert ("vfio0" in lines) == kernel.vfio_cdev


@BOTH
def test_callouts_of_mdevctl(host: Path) -> None:
    """What s390-tools' callout asks of sysfs before a device starts is there in every kernel."""
    need("mdevctl")
    script = """
    mkdir -p /etc/mdevctl.d/scripts.d/{callouts,notifiers}
    cp "$3" /etc/mdevctl.d/scripts.d/callouts
    for uuid in $1 $2; do
        mdevctl define --uuid $uuid --parent matrix --type vfio_ap-passthrough
        mdevctl modify --uuid $uuid --addattr=assign_adapter --value=0x2
        mdevctl modify --uuid $uuid --addattr=assign_domain --value=0x1f
    done
    mdevctl start --uuid $1
    mdevctl start --uuid $2 && exit 1
    mdevctl modify --uuid $2 --delattr --index=1
    mdevctl modify --uuid $2 --delattr --index=0
    mdevctl modify --uuid $2 --addattr=assign_adapter --value=5
    mdevctl modify --uuid $2 --addattr=assign_domain --value=6
    mdevctl start --uuid $2 && exit 1
    mdevctl list --dumpjson
    mdevctl --version >&2
    """
    result = inside(script, U1, U2, str(CALLOUT), scenario=host, options=("--tmpfs", "/etc/mdevctl.d"))
    assert f"APQN 2.31 already in use by {U1}\n" in result.stderr
    assert "APQN 5.6 is the host's\n" in result.stderr
    ((_, devices),) = json.loads(result.stdout)[0].items()
    running = {uuid: device["attrs"] for found in devices for uuid, device in found.items()}
    # As defined; later releases of mdevctl than Debian 12's show what the callout says instead.
    texts = [[{"assign_adapter": "0x2"}, {"assign_domain": "0x1f"}], [{"assign_adapter": "2"}, {"assign_domain": "31"}]]
    assert running[U1] == texts["mdevctl 1.2." not in result.stderr]
    domains = [{"assign_domain": "6"}, {"assign_domain": "11"}]
    assert running[M] == [{"assign_adapter": "2"}, *domains, {"assign_control_domain": "6"}]
    assert U2 not in running

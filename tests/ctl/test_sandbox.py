"""What `/ctl/sandbox` shows beside the real machine's entries."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from apfs import Host, KernelError, Shell

if TYPE_CHECKING:
    from collections.abc import Iterable

LINKS = {
    "1:3": "/sys/devices/virtual/mem/null",
    "4095:1048575": "/sys/devices/last",
    "10:229": "/sys/devices/virtual/misc/fuse",
    "7:196": "/sys/devices/seven",
    "243:0": "/sys/devices/hidden",
}


class Machine:
    """A real machine with a few devices and modules."""

    def char_devices(self) -> Iterable[str]:
        return (*LINKS, "10:196", "nonsense", "1:03", "4096:0", "1:1048576")

    def char_device(self, name: str) -> str | None:
        return LINKS.get(name)

    def modules(self) -> str:
        return "fuse 1 2 - Live 0x0\nvfio 9 9 - Live 0x0\n"


@pytest.fixture
def host() -> Host:
    host = Host()
    host.real_machine = Machine()
    return host


def make_mdev(host: Host) -> None:
    types = "/sys/devices/vfio_ap/matrix/mdev_supported_types"
    Shell(host).echo("669d9b23-fe1b-4ecb-be08-a2fabca99b71", f"{types}/vfio_ap-passthrough/create")


def test_numbers_of_both_machines(host: Host) -> None:
    shell = Shell(host)
    make_mdev(host)
    shell.echo("node", "/sys/class/zcrypt/create")
    misc = {"10:258", "10:196", f"10:{host.z90crypt.minor}"}
    ours = misc | {"240:0", "242:0", "243:0"}
    assert sorted(shell.ls("/ctl/sandbox/char")) == sorted(ours | {"1:3", "4095:1048575", "10:229", "7:196"})
    assert set(shell.ls("/sys/dev/char")) == ours
    assert {name: shell.readlink(f"/ctl/sandbox/char/{name}") for name in ("1:3", "4095:1048575", "243:0")} == {
        "1:3": "../../devices/virtual/mem/null",
        "4095:1048575": "../../devices/last",
        "243:0": "../../devices/virtual/vfio/0",
    }
    for number in ours:
        assert shell.readlink(f"/ctl/sandbox/char/{number}") == shell.readlink(f"/sys/dev/char/{number}")


def test_a_listing_of_numbers_can_be_resumed_anywhere(host: Host) -> None:
    directory = host.tree.resolve("/ctl/sandbox/char")
    names = [entry.name for entry in host.tree.readdir(directory)]
    for place, entry in enumerate(host.tree.readdir(directory), 1):
        assert [rest.name for rest in host.tree.readdir(directory, entry.next)] == names[place:]


@pytest.mark.parametrize("name", ["1:4", "nonsense", "1:03", "4096:0", "1:1048576", "243:1"])
def test_what_is_no_number_of_a_device(host: Host, name: str) -> None:
    with pytest.raises(KernelError):
        host.tree.resolve(f"/ctl/sandbox/char/{name}")


def test_nodes_follow_devices(host: Host) -> None:
    shell = Shell(host)
    assert shell.ls("/ctl/sandbox/dev/vfio") == ["vfio"]
    make_mdev(host)
    shell.echo("node", "/sys/class/zcrypt/create")
    nodes = {
        "dev/iommu": (0o660, (10, 258)),
        "dev/z90crypt": (0o600, (10, host.z90crypt.minor)),
        "dev/vfio/vfio": (0o666, (10, 196)),
        "dev/vfio/0": (0o600, (243, 0)),
        "dev/vfio/devices/vfio0": (0o600, (242, 0)),
        "zcrypt/node": (0o600, (240, 0)),
    }
    for path, (mode, number) in nodes.items():
        found = host.tree.stat(host.tree.resolve(f"/ctl/sandbox/{path}"))
        assert (found.mode, found.device) == (stat.S_IFCHR | mode, number)
    shell.echo("1", "/sys/devices/vfio_ap/matrix/669d9b23-fe1b-4ecb-be08-a2fabca99b71/remove")
    shell.echo("node", "/sys/class/zcrypt/destroy")
    assert shell.ls("/ctl/sandbox/dev/vfio") == ["vfio"]
    assert shell.ls("/ctl/sandbox/zcrypt") == []
    for module in ("vfio_ap", "mdev", "vfio_iommu_type1", "vfio"):
        shell.echo(f"rmmod {module}", "/ctl/console")
    assert shell.ls("/ctl/sandbox/dev") == ["iommu", "z90crypt"]


def test_every_node_has_a_number_that_leads_to_it(host: Host) -> None:
    """As the program does that opens nodes: number, sysfs, DEVNAME."""
    shell = Shell(host)
    make_mdev(host)
    for path in ("iommu", "z90crypt", "vfio/vfio", "vfio/0", "vfio/devices/vfio0"):
        number = host.tree.stat(host.tree.resolve(f"/ctl/sandbox/dev/{path}")).device
        assert number is not None
        uevent = shell.cat("/sys" + shell.readlink(f"/sys/dev/char/{number[0]}:{number[1]}")[5:] + "/uevent")
        assert f"DEVNAME={path}\n" in uevent


def test_modules_of_both_machines(host: Host) -> None:
    shell = Shell(host)
    lines = shell.cat("/ctl/sandbox/modules").splitlines()
    assert lines[0].startswith("vfio_ap ")
    assert [line for line in lines if line.startswith("vfio ")] == [
        "vfio 69632 2 vfio_ap,vfio_iommu_type1, Live 0x0000000000000000"
    ]
    assert [line.split()[3] for line in lines if line.startswith("vfio_ap ")] == ["-"]
    assert lines[-1] == "fuse 1 2 - Live 0x0"
    shell.echo("rmmod vfio_iommu_type1", "/ctl/console")
    lines = shell.cat("/ctl/sandbox/modules").splitlines()
    assert "vfio 69632 1 vfio_ap, Live 0x0000000000000000" in lines
    shell.echo("modprobe vfio_iommu_type1", "/ctl/console")
    for module in ("vfio_ap", "mdev", "vfio_iommu_type1", "vfio"):
        shell.echo(f"rmmod {module}", "/ctl/console")
    lines = shell.cat("/ctl/sandbox/modules").splitlines()
    assert lines[-2:] == ["fuse 1 2 - Live 0x0", "vfio 9 9 - Live 0x0"]

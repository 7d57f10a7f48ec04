"""Domains with a vfio-ap device on one host, by the machine's virsh and libvirt of both releases."""

from __future__ import annotations

import select
import subprocess
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from apfs.journal.records import Migration, QueuesReset
from apfs.testing.mounted import MountedHost
from tests.conftest import UUID
from tests.vmm.libvirt.guest import HOSTDEV, NAME, Console, domain, follows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from apfs.testing.libvirt import Libvirt
    from tests.vmm.libvirt.conftest import Release

QUEUE = "/sys/devices/ap/card05/05.0004/status"
OTHER = "11111111-2222-4333-8444-555555555555"
MDEV = f"/sys/devices/vfio_ap/matrix/{UUID}"
VERSIONS = {"bookworm": ("9.0.0", "7.2"), "trixie": ("11.3.0", "10.0")}
"""libvirt and QEMU of each release of Debian."""


class Guest:
    """The domain that the tests of one release share."""

    def __init__(self, libvirt: Libvirt) -> None:
        self.libvirt = libvirt
        self.host = libvirt.host
        self.console = Console()

    def queue(self) -> str:
        return self.host.cat(QUEUE).strip()


@pytest.fixture(scope="module")
def defined(release: Release, guest: Path) -> Iterator[Guest]:
    with (
        MountedHost("migration-source") as host,
        release.start(host) as libvirt,
    ):
        libvirt.define(domain(guest))
        yield Guest(libvirt)


@pytest.fixture
def running(defined: Guest) -> Guest:
    """The domain, which runs and has its device."""
    if defined.libvirt.state(NAME) == "running" and defined.queue() != "in use":
        defined.libvirt.virsh("destroy", NAME, check=True)
    if defined.libvirt.state(NAME) != "running":
        defined.libvirt.virsh("start", NAME, check=True)
    return defined


def test_versions(running: Guest, release: Release) -> None:
    """The tests run with what they say that they run with."""
    if release.name not in VERSIONS:
        pytest.skip(f"the versions of {release.name} are not known")
    libvirt, qemu = VERSIONS[release.name]
    log = running.libvirt.log(NAME)
    assert f"starting up libvirt version: {libvirt}, " in log
    assert f"qemu version: {qemu}." in log


def test_a_domain_has_what_it_was_defined_with(defined: Guest) -> None:
    described = ET.fromstring(defined.libvirt.virsh("dumpxml", NAME, check=True).stdout)  # noqa: S314 -- libvirt's own
    hostdev = described.find("devices/hostdev")
    assert hostdev is not None
    assert hostdev.attrib == {"mode": "subsystem", "type": "mdev", "managed": "no", "model": "vfio-ap"}
    address = hostdev.find("source/address")
    assert address is not None
    assert address.attrib == {"uuid": UUID}
    assert described.findtext("devices/emulator") == "/usr/bin/qemu-system-s390x"


def test_start_and_destroy(running: Guest) -> None:
    assert running.queue() == "in use"
    running.libvirt.virsh("destroy", NAME, check=True)
    assert (running.libvirt.state(NAME), running.queue()) == ("shut off", "assigned")


def test_the_guest_runs(running: Guest) -> None:
    running.console.wait_for_more(running.libvirt)
    assert follows(running.console.counts[-3:])


def test_a_device_is_for_one_domain(running: Guest, guest: Path) -> None:
    other = running.libvirt.virsh("create", "/dev/stdin", stdin=domain(guest, name="other"))
    assert other.returncode == 1
    assert f"mediated device /sys/bus/mdev/devices/{UUID} is in use by driver QEMU, domain {NAME}" in other.stderr


def test_hot_plug(running: Guest) -> None:
    running.console.wait_for_more(running.libvirt)
    virsh = running.libvirt.virsh
    virsh("detach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV, check=True)
    assert running.queue() == "assigned"
    assert "<hostdev" not in virsh("dumpxml", NAME, check=True).stdout
    virsh("attach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV, check=True)
    assert running.queue() == "in use"
    assert f"uuid='{UUID}'" in virsh("dumpxml", NAME, check=True).stdout


NODE_DEVICE = f"""
<device>
  <parent>ap_matrix</parent>
  <capability type='mdev'>
    <type id='vfio_ap-passthrough'/>
    <uuid>{OTHER}</uuid>
    <attr name='assign_adapter' value='5'/>
    <attr name='assign_domain' value='0xab'/>
  </capability>
</device>
"""


def test_a_device_that_libvirt_has_made(running: Guest) -> None:
    virsh = running.libvirt.virsh
    name = f"mdev_{OTHER.replace('-', '_')}_matrix"
    virsh("nodedev-create", "/dev/stdin", stdin=NODE_DEVICE, check=True)
    assert f"mdev_{UUID.replace('-', '_')}_matrix" in virsh("nodedev-list", "--cap", "mdev", check=True).stdout.split()
    virsh("detach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV, check=True)
    virsh("attach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV.replace(UUID, OTHER), check=True)
    assert running.host.cat("/sys/devices/ap/card05/05.00ab/status").strip() == "in use"
    virsh("detach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV.replace(UUID, OTHER), check=True)
    virsh("nodedev-destroy", name, check=True)
    assert not running.host.exists(f"/sys/bus/mdev/devices/{OTHER}")
    virsh("attach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV, check=True)


def test_a_device_that_is_not_there(running: Guest) -> None:
    virsh = running.libvirt.virsh
    refused = virsh("attach-device", NAME, "/dev/stdin", "--live", stdin=HOSTDEV.replace(UUID, OTHER))
    assert refused.returncode == 1
    assert f"mediated device '{OTHER}' not found" in refused.stderr


def test_configuration_changes_while_it_runs(running: Guest) -> None:
    """A write to `ap_config` plugs and unplugs queues of the running guest."""
    host = running.host
    before = host.cat(f"{MDEV}/ap_config").strip()
    assert host.cat(f"{MDEV}/guest_matrix").split() == ["05.0004", "05.0047", "06.0004", "06.0047"]
    masks = before.split(",")
    adapters = int(masks[0], 16) & ~(1 << (255 - 6))
    host.echo(",".join([f"0x{adapters:064x}", *masks[1:]]), f"{MDEV}/ap_config")
    assert host.cat(f"{MDEV}/guest_matrix").split() == ["05.0004", "05.0047"]
    assert host.cat("/sys/devices/ap/card06/06.0004/status").strip() != "in use"
    host.echo(before, f"{MDEV}/ap_config")
    assert host.cat(f"{MDEV}/guest_matrix").split() == ["05.0004", "05.0047", "06.0004", "06.0047"]
    running.console.wait_for_more(running.libvirt)


def test_suspend_and_resume(running: Guest) -> None:
    host, virsh = running.host, running.libvirt.virsh
    before = host.journal.last
    virsh("suspend", NAME, check=True)
    assert (running.libvirt.state(NAME), running.queue()) == ("paused", "in use")
    virsh("resume", NAME, check=True)
    assert running.libvirt.state(NAME) == "running"
    assert [step.after for step in host.journal.since(before).of_kind(Migration)] == ["STOP", "RUNNING"]


def test_save_and_restore(running: Guest, tmp_path: Path) -> None:
    running.console.wait_for_more(running.libvirt)
    running.libvirt.virsh("save", NAME, str(tmp_path / "guest"), check=True)
    running.console.hear(running.libvirt)
    assert (running.libvirt.state(NAME), running.queue()) == ("shut off", "assigned")
    saved = len(running.console.counts)
    running.libvirt.virsh("restore", str(tmp_path / "guest"), check=True)
    assert (running.libvirt.state(NAME), running.queue()) == ("running", "in use")
    running.console.wait_for_more(running.libvirt)
    assert follows(running.console.counts[saved - 2 :])


def test_managed_save(running: Guest) -> None:
    """The AP configuration is in the file, and the guest goes on where it was."""
    running.console.wait_for_more(running.libvirt)
    running.libvirt.virsh("managedsave", NAME, check=True)
    running.console.hear(running.libvirt)
    assert (running.libvirt.state(NAME), running.queue()) == ("shut off", "assigned")
    saved = len(running.console.counts)
    running.libvirt.virsh("start", NAME, check=True)
    assert running.queue() == "in use"
    running.console.wait_for_more(running.libvirt)
    assert follows(running.console.counts[saved - 2 :])


def test_a_saved_guest_does_not_start_with_other_queues(running: Guest) -> None:
    running.libvirt.virsh("managedsave", NAME, check=True)
    running.host.echo("6", f"{MDEV}/unassign_adapter")
    try:
        refused = running.libvirt.virsh("start", NAME)
        assert refused.returncode == 1
        assert "load of migration failed: Input/output error" in refused.stderr
        assert "(72 bytes) is larger than the target's (40 bytes)" in running.host.cat("ctl/kmsg")
    finally:
        running.host.echo("6", f"{MDEV}/assign_adapter")
    running.libvirt.virsh("start", NAME, check=True)
    assert running.queue() == "in use"


def test_shutdown(running: Guest) -> None:
    running.console.wait_for_more(running.libvirt)
    command = ["virsh", "--connect", running.libvirt.uri, "event", NAME, "--all", "--timeout", "60", "--loop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        while not select.select([events.stdout], [], [], 0)[0]:  # until it hears of changes, and of these first
            running.libvirt.virsh("metadata", NAME, "urn:test", "--key", "test", "--set", "<heard/>", check=True)
        running.libvirt.virsh("shutdown", NAME, check=True)
        heard = next(line for line in events.stdout if "Stopped" in line or "timeout" in line)
        events.kill()
    assert heard == f"event 'lifecycle' for domain '{NAME}': Stopped Shutdown\n"
    assert (running.libvirt.state(NAME), running.queue()) == ("shut off", "assigned")


def test_reboot_and_reset(running: Guest) -> None:
    """Both start the machine again, by which all of its queues are reset and stay its own.

    The last test, and nothing waits until Linux is up: QEMU takes long to write over code that it has translated.
    """
    running.console.wait_for_more(running.libvirt)
    for how in ("reboot", "reset"):
        before = running.host.journal.last
        running.libvirt.virsh(how, NAME, check=True)
        running.console.wait_for(running.libvirt, "KASLR disabled")
        resets = running.host.journal.since(before).of_kind(QueuesReset)
        assert {reset.count for reset in resets} == {4}  # QEMU 10 does it twice in one of the two
        assert (running.libvirt.state(NAME), running.queue()) == ("running", "in use")

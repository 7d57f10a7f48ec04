"""vfio-ap in unmodified QEMU: what the driver is asked for, and what becomes of the VM."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING

import pytest

from apfs.journal.records import Migration, QueuesReset
from tests.vmm.machines import OTHER, Qemu, QmpError, U, device, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.testing.mounted import MountedHost

SECURE = host(top='secure_execution = true\nenvironment = "kvm"')
OLDER = host(card="CEX7C")
# All queues that there can be, passed through: a stream of 8 bytes and 16 per queue.
LARGEST = f"""
name = "%s"
[qci]
domains = "0-255"
[[card]]
adapters = "0-255"
type = "CEX8C"
[masks]
apmask = "0x{0:064x}"
[[mdev]]
uuid = "{U}"
adapters = "0-255"
domains = "0-255"
"""


class Steps:
    """The states through which a host's devices go, from now on."""

    def __init__(self, mount: MountedHost) -> None:
        self._host = mount
        self._last = mount.journal.last

    def __call__(self) -> list[str]:
        return [step.after for step in self._host.journal.since(self._last).of_kind(Migration)]

    def resets(self) -> int:
        """How often the device was reset."""
        return len(self._host.journal.since(self._last).of_kind(QueuesReset))


@contextlib.contextmanager
def incoming(mount: MountedHost, program: str, *arguments: str) -> Iterator[Qemu]:
    """A QEMU that waits for a VM."""
    with Qemu(mount, program, "-incoming", "defer", *arguments) as vm:
        yield vm


@contextlib.contextmanager
def before_switchover(vm: Qemu, target: MountedHost, qemu: str) -> Iterator[None]:
    """A migration that has come to the moment at which the VM has stopped, and waits there."""
    with incoming(target, qemu) as never:
        vm.enable("pause-before-switchover")
        vm.begin_migration(never)
        vm.migration_until("pre-switchover")
        yield


def in_use(mount: MountedHost) -> bool:
    """Whether a guest has the queues."""
    return mount.cat("/sys/devices/ap/card05/05.0004/status") == "in use\n"


def after_cleanup(vm: Qemu, steps: Steps, last: str) -> list[str]:
    """Return the steps once QEMU has cleaned up, which it does after it has told how a migration ended.

    With each answer its main loop has gone on. `last` is the state in which the device then is.
    """
    for _ in range(200):
        if steps()[2:] and steps()[-1] == last:
            break
        assert not vm.is_running()
    return steps()


def reasons(vm: Qemu) -> str:
    """Why the migration failed: versions of QEMU say it here or there."""
    return vm.log + str(vm.do("query-migrate").get("error-desc"))


def test_device_is_on_its_bus_and_does_not_forbid_migration(vm: Qemu) -> None:
    tree = vm.monitor("info qtree")
    assert "dev: ap-bridge" in tree
    assert f'sysfsdev = "/sys/bus/mdev/devices/{U}"' in tree
    assert in_use(vm.host)
    assert "blocked-reasons" not in vm.do("query-migrate")


def test_device_stops_and_runs_with_the_vm(vm: Qemu) -> None:
    steps = Steps(vm.host)
    vm.do("stop")
    assert steps() == ["STOP"]
    vm.do("cont")
    assert steps() == ["STOP", "RUNNING"]


def test_second_device_finds_the_bus_full(vm: Qemu) -> None:
    with pytest.raises(QmpError, match="No 'ap-bus' bus found"):
        vm.do("device_add", **device(OTHER, "ap1"))
    assert "blocked-reasons" not in vm.do("query-migrate")


def test_device_is_unplugged_and_another_plugged(vm: Qemu) -> None:
    vm.do("device_del", id="ap0")
    assert vm.event("DEVICE_DELETED")["device"] == "ap0"
    steps = Steps(vm.host)
    vm.do("stop")
    vm.do("cont")
    assert steps() == []
    vm.do("device_add", **device(OTHER, "ap1"))
    assert "blocked-reasons" not in vm.do("query-migrate")
    vm.do("stop")
    vm.do("cont")
    assert steps() == ["STOP", "RUNNING"]
    vm.do("device_del", id="ap1")
    vm.event("DEVICE_DELETED")
    vm.do("device_add", **device())
    assert in_use(vm.host)


def test_migration_there_and_back(vm: Qemu, target: MountedHost, qemu: str) -> None:
    source, there = Steps(vm.host), Steps(target)
    with incoming(target, qemu) as arrived:
        assert vm.migrate(arrived) == "completed"
        assert after_cleanup(vm, source, "STOP") == ["STOP", "STOP_COPY", "STOP"]
        assert vm.do("query-migrate")["vfio"] == {"transferred": 72}
        assert not vm.is_running()
        arrived.wait_until_running()
        assert there() == ["STOP", "RESUMING", "STOP", "RUNNING"]
        assert in_use(target)
        home, vm_host = Steps(vm.host), vm.host
        vm.close()
        with incoming(vm_host, qemu) as back:
            assert arrived.migrate(back) == "completed"
            back.wait_until_running()
            assert home() == ["STOP", "RESUMING", "STOP", "RUNNING"]


def test_refused_stream_ends_the_target_and_the_guest_goes_on(
    vm: Qemu, mounted: Callable[[str], MountedHost], qemu: str
) -> None:
    older = mounted(OLDER)
    source, there = Steps(vm.host), Steps(older)
    with incoming(older, qemu) as refusing:
        assert vm.migrate(refusing) == "failed"
        assert "load of migration failed: Bad address" in refusing.ended()
    assert there()[:2] == ["STOP", "RESUMING"]
    assert "RUNNING" not in there()
    assert any("05.0004 does not fit" in line for line in older.kmsg())
    vm.wait_until_running()
    assert source() == ["STOP", "STOP_COPY", "STOP", "RUNNING"]
    assert in_use(vm.host)


def test_failed_migration_of_a_paused_guest_leaves_the_device_running(
    vm: Qemu, mounted: Callable[[str], MountedHost], qemu: str
) -> None:
    steps, older = Steps(vm.host), mounted(OLDER)
    vm.do("stop")
    with incoming(older, qemu) as refusing:
        assert vm.migrate(refusing) == "failed"
        refusing.ended()
    assert after_cleanup(vm, steps, "RUNNING") == ["STOP", "STOP_COPY", "STOP", "RUNNING"]
    vm.do("cont")


def test_cancelled_migration_leaves_the_device_running(vm: Qemu, target: MountedHost, qemu: str) -> None:
    steps = Steps(vm.host)
    with before_switchover(vm, target, qemu):
        assert steps() == ["STOP"]
        with pytest.raises(QmpError, match="device_del not allowed while migrating"):
            vm.do("device_del", id="ap0")
        vm.do("migrate_cancel")
        vm.migration_until("cancelled")
    vm.wait_until_running()
    assert steps() == ["STOP", "RUNNING"]


def test_source_without_a_descriptor_for_the_stream_goes_back_to_stop(vm: Qemu, target: MountedHost, qemu: str) -> None:
    steps = Steps(vm.host)
    with before_switchover(vm, target, qemu):
        soft, hard = resource.prlimit(vm.pid(), resource.RLIMIT_NOFILE)
        resource.prlimit(vm.pid(), resource.RLIMIT_NOFILE, (3, hard))
        vm.do("migrate-continue", state="pre-switchover")
        assert vm.migration_until("completed", "failed") == "failed"
        resource.prlimit(vm.pid(), resource.RLIMIT_NOFILE, (soft, hard))
    vm.wait_until_running()
    assert steps() == ["STOP", "STOP_COPY", "STOP", "RUNNING"]
    assert f"{U}: Failed setting device" in vm.log


def test_secure_execution_host_resets_the_device_and_fails_the_migration(
    mounted: Callable[[str], MountedHost], target: MountedHost, qemu: str
) -> None:
    secure = mounted(SECURE)
    with Qemu(secure, qemu) as vm, incoming(target, qemu) as never:
        steps = Steps(secure)
        assert vm.migrate(never) == "failed"
        assert "Operation not permitted" in reasons(vm)
        assert steps() == []
        assert steps.resets() == 1
        vm.wait_until_running()


def test_secure_execution_target_refuses_before_the_stream(
    vm: Qemu, mounted: Callable[[str], MountedHost], qemu: str
) -> None:
    secure = mounted(SECURE)
    with incoming(secure, qemu) as refusing:
        assert vm.migrate(refusing) == "failed"
        assert "Operation not permitted" in refusing.ended()
    vm.wait_until_running()


def test_device_that_cannot_be_reset_ends_qemu(mounted: Callable[[str], MountedHost], qemu: str) -> None:
    secure = mounted(SECURE)
    with Qemu(secure, qemu) as vm:
        secure.console("fail-reset 05.0004")
        with pytest.raises(EOFError, match=f"hardware error: {U}: Failed resetting device"):
            vm.do("stop")


def test_postcopy_is_refused(vm: Qemu, target: MountedHost, qemu: str) -> None:
    with incoming(target, qemu) as never:
        vm.enable("postcopy-ram")
        try:
            assert vm.migrate(never) == "failed"
        except QmpError as error:
            why = str(error)
        else:
            why = reasons(vm)
    assert f"{U}: VFIO migration is not supported with postcopy migration" in why
    vm.wait_until_running()


def test_largest_stream(mounted: Callable[[str], MountedHost], qemu: str) -> None:
    here, there = mounted(LARGEST % "here"), mounted(LARGEST % "there")
    with Qemu(here, qemu) as vm, incoming(there, qemu) as arrived:
        # With the default, a machine that is slow at the wrong moment lets QEMU think that it never gets there.
        vm.do("migrate-set-parameters", **{"downtime-limit": 2_000_000})
        assert vm.migrate(arrived) == "completed"
        assert vm.do("query-migrate")["vfio"] == {"transferred": 8 + 16 * 65536}
        arrived.wait_until_running()

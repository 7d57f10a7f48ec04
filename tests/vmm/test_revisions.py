"""QEMU on hosts whose driver has another revision of the migration series than the default, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vmm.machines import Qemu, QmpError, U, host

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.testing.mounted import MountedHost

    Mounted = Callable[[str], MountedHost]

CONFIG = f"/sys/devices/vfio_ap/matrix/{U}/ap_config"
QUEUES = "05.0004\n05.0047\n06.0004\n06.0047\n"


def with_driver(driver: str, side: str, top: str = "") -> str:
    """Return a scenario with a revision, for one side of a migration: mounts of one scenario are one mount."""
    return host(top=f'driver = "{driver}"\ndescription = "{side}"\n{top}')


@pytest.mark.parametrize(("driver", "size"), [("v4", 80), ("next", 112)])
def test_target_is_given_what_the_source_has(mounted: Mounted, qemu: str, driver: str, size: int) -> None:
    source, target = mounted(with_driver(driver, "source")), mounted(with_driver(driver, "target"))
    target.write(CONFIG, ",,")
    with Qemu(source, qemu) as vm, Qemu(target, qemu, "-incoming", "defer") as arrived:
        assert vm.migrate(arrived) == "completed"
        assert vm.do("query-migrate")["vfio"] == {"transferred": size}
        arrived.wait_until_running()
        assert target.cat(f"/sys/devices/vfio_ap/matrix/{U}/guest_matrix") == QUEUES
        assert target.cat("/sys/devices/ap/card05/05.0004/status") == "in use\n"


def test_stream_of_another_revision_ends_the_target(mounted: Mounted, qemu: str) -> None:
    source, target = mounted(with_driver("v2", "source")), mounted(with_driver("next", "refuses"))
    with Qemu(source, qemu) as vm, Qemu(target, qemu, "-incoming", "defer") as refusing:
        assert vm.migrate(refusing) == "failed"
        assert "load of migration failed: Invalid argument" in refusing.ended()
        vm.wait_until_running()
    assert source.cat(CONFIG) == target.cat(CONFIG)


@pytest.mark.parametrize(("driver", "top"), [("none", ""), ("next", "secure_execution = true")])
def test_driver_without_migration_runs_and_does_not_migrate(mounted: Mounted, qemu: str, driver: str, top: str) -> None:
    with Qemu(mounted(with_driver(driver, "alone", top)), qemu) as vm:
        why = f"{U}: VFIO migration is not supported in kernel"
        assert vm.do("query-migrate")["blocked-reasons"] == [why]
        with pytest.raises(QmpError, match=why):
            vm.do("migrate", uri="exec:cat")
        assert vm.is_running()

"""Devices that cannot migrate: QEMU runs them, and says why it does not migrate them."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vmm.machines import Qemu, QmpError, U, host

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.testing.mounted import MountedHost

    Kernel = Callable[[int], dict[str, str]]

BLOCKERS = {
    errno.ENOTTY: f"{U}: VFIO migration is not supported in kernel",
    errno.EPERM: f"{U}: Migration couldn't be initialized for VFIO device, err: -1 (Operation not permitted)",
    0: f"{U}: Migration couldn't be initialized for VFIO device, err: -95 (Operation not supported)",
}


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Return a function that returns the environment in which the driver answers so; 0: without STOP_COPY."""
    library = tmp_path_factory.mktemp("kernel") / "feature.so"
    source = Path(__file__).with_name("feature.c")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", library, source], check=True)
    return lambda answer: {"LD_PRELOAD": str(library), "FEATURE_MIGRATION": str(answer)}


@pytest.mark.parametrize("answer", BLOCKERS)
def test_driver_without_migration(target: MountedHost, qemu: str, kernel: Kernel, answer: int) -> None:
    with Qemu(target, qemu, env=kernel(answer)) as vm:
        assert vm.do("query-migrate")["blocked-reasons"] == [BLOCKERS[answer]]
        with pytest.raises(QmpError) as refused:
            vm.do("migrate", uri="exec:cat")
        assert str(refused.value) == BLOCKERS[answer]
        vm.do("device_del", id="ap0")
        vm.event("DEVICE_DELETED")
        assert "blocked-reasons" not in vm.do("query-migrate")


def test_host_whose_driver_is_without_the_series(mounted: Callable[[str], MountedHost], qemu: str) -> None:
    with Qemu(mounted(host(top='driver = "none"')), qemu) as vm:
        assert "migratable" not in vm.host.cat("/sys/devices/vfio_ap/matrix/features")
        assert vm.do("query-migrate")["blocked-reasons"] == [BLOCKERS[errno.ENOTTY]]
        with pytest.raises(QmpError) as refused:
            vm.do("migrate", uri="exec:cat")
        assert str(refused.value) == BLOCKERS[errno.ENOTTY]


def test_only_migratable(target: MountedHost, qemu: str, kernel: Kernel) -> None:
    with Qemu(target, qemu, "-only-migratable") as vm:
        assert vm.is_running()
    with pytest.raises(EOFError, match=r"\(--only-migratable\).*: VFIO migration is not supported in kernel"):
        Qemu(target, qemu, "-only-migratable", env=kernel(errno.ENOTTY))

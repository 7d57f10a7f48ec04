"""The calls of a VMM, one by one, made by programs in C, with two libraries, Go and Rust that know nothing of apfs."""

from __future__ import annotations

import errno
import platform
from typing import TYPE_CHECKING

import pytest

from tests.sandbox.conftest import compiled
from tests.tools.conftest import inside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

U = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
SETUP = f"""
u={U} m=/sys/devices/vfio_ap/matrix
echo $u > $m/mdev_supported_types/vfio_ap-passthrough/create
echo -5 > /sys/bus/ap/apmask
echo 5 > $m/$u/assign_adapter
echo 0x47 > $m/$u/assign_domain
"""

# What every device does, whichever way it was opened. The stream: one queue, the word of a CEX8C, APQN 05.0047.
DEVICE = """\
DEVICE_GET_INFO: 0 argsz 20 flags 0x21 regions 0 irqs 2
DEVICE_GET_IRQ_INFO: 0 index 0 flags 0x1 count 1
DEVICE_SET_IRQS: 0
DEVICE_SET_IRQS drop: 0
DEVICE_GET_IRQ_INFO: 0 index 1 flags 0x1 count 1
DEVICE_SET_IRQS: 0
DEVICE_SET_IRQS drop: 0
DEVICE_GET_IRQ_INFO: error EINVAL index 2 flags 0 count 0
DEVICE_SET_IRQS: error EINVAL
DEVICE_SET_IRQS drop: error EINVAL
DEVICE_RESET: 0
FEATURE GET MIGRATION: 0 flags 1
FEATURE PROBE DMA_LOGGING_START: error ENOTTY
FEATURE SET MIG_DEVICE_STATE: 0 state 1 data_fd none
FEATURE SET MIG_DEVICE_STATE: 0 state 3 data_fd some
data_fd: close-on-exec
stream: 0000000100000000 928000000e540307 0547000000000000
read again: 0
write: EBADF
FEATURE SET RUNNING: 0 state 2 data_fd -1
read of the device: EINVAL
pread of the device: EINVAL
DEVICE_GET_REGION_INFO: error EINVAL
"""
LEGACY = f"""\
group opened again: EBUSY
GROUP_GET_STATUS: 0 flags 1
GET_API_VERSION: 0
CHECK_EXTENSION TYPE1v2: 1
SET_IOMMU without a group: error EINVAL
GROUP_GET_DEVICE_FD without a container: error EINVAL
GROUP_SET_CONTAINER: 0
GROUP_GET_STATUS: 0 flags 3
SET_IOMMU: 0
IOMMU_GET_INFO: 0 argsz 72 flags 3 pages 0xfffffffffffff000 caps at 0
IOMMU_GET_INFO: 0 cap 2 cap 3
IOMMU_MAP_DMA: 0
IOMMU_MAP_DMA again: error EEXIST
GROUP_GET_DEVICE_FD: close-on-exec
{DEVICE}\
GROUP_UNSET_CONTAINER: error EBUSY
IOMMU_UNMAP_DMA: 0 size 0x100000
GROUP_UNSET_CONTAINER: 0
"""
CDEV = f"""\
DEVICE_GET_INFO unbound: error EINVAL
BIND_IOMMUFD to itself: error EBADFD
BIND_IOMMUFD: 0 id 1
BIND_IOMMUFD again: error EINVAL
IOAS_ALLOC: 0 id 2
ATTACH_IOMMUFD_PT unknown: error ENOENT
ATTACH_IOMMUFD_PT: 0 id 2
IOAS_IOVA_RANGES: error EMSGSIZE count 1
IOAS_IOVA_RANGES: 0 0-ffffffffffffffff alignment 4096
IOAS_MAP: 0
{DEVICE}\
DESTROY in use: error EBUSY
DETACH_IOMMUFD_PT: 0
IOAS_UNMAP: 0 length 0x100000
DESTROY: 0
"""


@pytest.mark.parametrize("kind", ["dynamic", "static", "musl", "go", "rust"])
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ('legacy "/dev/vfio/$(basename "$(readlink $m/$u/iommu_group)")" $u', LEGACY),
        ("cdev /dev/vfio/devices/vfio0", CDEV),
    ],
    ids=["legacy", "cdev"],
)
def test_every_call_answers_as_linux_does(
    sequence: Callable[[str], Path], kind: str, calls: str, expected: str
) -> None:
    result = inside(f'{SETUP}\n"$1" {calls}', str(sequence(kind)), scenario="default")
    assert result.stdout == expected
    assert result.stderr == ""


def test_what_the_runtime_of_go_does(sequence: Callable[[str], Path]) -> None:
    """Threads that signals stop, an eventfd and a stream in its poller, and a child that has the device."""
    result = inside(f'{SETUP}\n"$1" runtime /dev/vfio/0 $u', str(sequence("go")), scenario="default")
    assert result.stdout == "threads: done\ninterrupt: 8 bytes, <nil>\nstream: 40 bytes, 00000002\nchild: 0 irqs 2\n"
    assert result.stderr == ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has a second interface that is always there")
def test_the_32_bit_interface(tmp_path: Path) -> None:
    """Only its ioctls are looked at: read, close and all else have other numbers there."""
    program = compiled(tmp_path, "compat.c")
    result = inside(f'{SETUP}\n"$1" /dev/vfio/0', str(program), scenario="default")
    assert result.stdout.splitlines() == [
        "VFIO_GROUP_GET_STATUS 0 flags 1",
        "VFIO_CHECK_EXTENSION 1",
        f"read {-errno.EINVAL}",
        "close 0",
        f"ioctl {-errno.EBADF}",
    ]


def test_group_and_device_node_exclude_each_other(sequence: Callable[[str], Path]) -> None:
    script = f'{SETUP}\nexec 7<>/dev/vfio/0; "$1" cdev /dev/vfio/devices/vfio0'
    result = inside(script, str(sequence("dynamic")), scenario="default", status=None)
    assert "BIND_IOMMUFD to itself: error EBUSY\n" in result.stdout

"""Containers and groups: who may join, what a container can do when, and what is left when something goes."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.vfio.client import (
    CHECK_EXTENSION,
    DEVICE_RESET,
    GROUP_GET_DEVICE_FD,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    GROUP_UNSET_CONTAINER,
    IOMMU_DIRTY_PAGES,
    IOMMU_GET_INFO,
    IOMMU_MAP_DMA,
    IOMMU_UNMAP_DMA,
    SECOND,
    SET_IOMMU,
    Device,
    U,
    outcome_of,
)

if TYPE_CHECKING:
    from tests.vfio.program import Program

ONCE = struct.pack("=II", 8, 1)
"""Argument of IOMMU_DIRTY_PAGES: start tracking."""


class Two:
    """Two groups and a container."""

    def __init__(self, program: Program) -> None:
        program.create(SECOND)
        self.program = program
        self.container = program.open("/dev/vfio/vfio")
        self.first, self.second = program.open(program.group_of()), program.open(program.group_of(SECOND))

    def join(self, group: int) -> str:
        return self.program.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", self.container))

    def leave(self, group: int) -> str:
        return self.program.outcome(group, GROUP_UNSET_CONTAINER)

    def choose(self, kind: int) -> str:
        return self.program.outcome(self.container, SET_IOMMU, kind)

    def extensions(self) -> list[int]:
        return [number for number in range(12) if self.program.ioctl(self.container, CHECK_EXTENSION, number)]


@pytest.fixture
def two(guest: Program) -> Two:
    return Two(guest)


def test_containers_and_groups_have_ioctls_only(two: Two) -> None:
    for file in (two.container, two.first):
        assert outcome_of(partial(two.program.read, file)) == "EINVAL"
        assert outcome_of(partial(two.program.send, file, b"x")) == "EINVAL"


def test_types_and_extensions(two: Two) -> None:
    assert two.extensions() == [1, 3, 9]
    assert two.program.ioctl(two.container, CHECK_EXTENSION, 2**32 + 1) == 0
    assert two.join(two.first) == "ok"
    for kind in (0, 2, 4, 7, 8, 10, 2**32 + 1):
        assert two.choose(kind) == "ENODEV"
    assert two.choose(9) == "EINVAL"
    assert (two.choose(1), two.choose(3)) == ("ok", "EINVAL")
    assert two.extensions() == [1, 3, 4, 9]


def test_a_container_starts_from_the_beginning_without_groups(two: Two) -> None:
    assert (two.join(two.first), two.choose(1)) == ("ok", "ok")
    assert two.program.outcome(two.container, IOMMU_DIRTY_PAGES, ONCE) == "EACCES"
    assert (two.join(two.second), two.join(two.second)) == ("ok", "EINVAL")
    assert (two.leave(two.second), two.leave(two.second)) == ("ok", "EINVAL")
    # As long as one group is in it, the type stays: the null pointer is all that is wrong.
    assert two.program.outcome(two.container, IOMMU_GET_INFO) == "EFAULT"
    assert two.leave(two.first) == "ok"
    assert two.program.outcome(two.container, IOMMU_GET_INFO) == "EINVAL"
    assert (two.join(two.first), two.choose(3)) == ("ok", "ok")
    assert two.program.outcome(two.container, IOMMU_DIRTY_PAGES, ONCE) == "ok"


def test_a_container_outlives_its_descriptor(two: Two) -> None:
    program = two.program
    assert (two.join(two.first), two.choose(3)) == ("ok", "ok")
    program.close(two.container)
    status = program.call(two.first, GROUP_GET_STATUS, struct.pack("=II", 64, 77))
    assert struct.unpack("=II", status) == (64, 3)
    assert program.outcome(two.first, GROUP_GET_STATUS, struct.pack("=II", 7, 0)) == "EINVAL"
    device = program.value(two.first, GROUP_GET_DEVICE_FD, U.encode() + b"\0")
    program.close(two.first)
    assert (program.opened(program.group_of()), program.outcome(device, DEVICE_RESET)) == ("EBUSY", "ok")
    program.close(device)
    assert isinstance(program.opened(program.group_of()), int)


def test_a_group_whose_device_was_removed(guest: Program) -> None:
    path, node = guest.group_of(), guest.node_of()
    group, container = guest.open(path), guest.open("/dev/vfio/vfio")
    assert guest.remove() == "ok"
    assert guest.outcome(group, GROUP_GET_STATUS, struct.pack("=II", 8, 0)) == "ENODEV"
    assert guest.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", container)) == "ENODEV"
    assert guest.outcome(group, GROUP_UNSET_CONTAINER) == "EINVAL"
    assert guest.outcome(group, GROUP_GET_DEVICE_FD, U.encode() + b"\0") == "ENODEV"
    assert (guest.opened(path), guest.opened(node)) == ("ENOENT", "ENOENT")


def test_what_can_be_a_container(program: Program) -> None:
    group = program.open(program.create())
    sysfs = program.open("/sys/bus/ap/apmask")
    cases = {900: "EBADF", -1: "EBADF", program.foreign(): "EBADFD", sysfs: "EBADFD", group: "EBADFD"}
    for fd, expected in cases.items():
        assert program.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", fd)) == expected
    container = struct.pack("=i", program.open("/dev/vfio/vfio"))
    assert [program.outcome(group, GROUP_SET_CONTAINER, container) for _ in range(2)] == ["ok", "EINVAL"]


def test_names_of_devices(program: Program) -> None:
    group = program.open(program.create())

    def device_fd(name: bytes) -> str:
        return program.outcome(group, GROUP_GET_DEVICE_FD, name)

    # One that never ends within readable memory, one that ends too late, and one that is not the group's.
    assert device_fd(b"none") == "EFAULT"
    assert device_fd(b"x" * 5000 + b"\0") == "EINVAL"
    assert device_fd(U.upper().encode() + b"\0") == "ENODEV"
    assert device_fd(U.encode() + b"\0") == "EINVAL"  # no container yet


def test_a_free_descriptor_is_looked_for_before_the_container_and_the_driver(program: Program) -> None:
    group = program.open(program.create())

    def device_fd(name: str = U, *, full: bool = False) -> str:
        program.full = full
        return program.outcome(group, GROUP_GET_DEVICE_FD, name.encode() + b"\0")

    assert (device_fd(), device_fd(full=True), device_fd("other", full=True)) == ("EINVAL", "EMFILE", "ENODEV")
    container = program.open("/dev/vfio/vfio")
    assert program.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", container)) == "ok"
    assert program.outcome(container, SET_IOMMU, 3) == "ok"
    program.shell.console("kvm none")
    assert (device_fd(full=True), device_fd()) == ("EMFILE", "EINVAL")


def test_which_vm_a_program_has(program: Program) -> None:
    program.create()
    program.create(SECOND)
    first = Device(program)
    assert outcome_of(lambda: Device(program, SECOND, container=first.container)) == "EPERM"
    program.shell.console("kvm none")
    first.close()
    assert outcome_of(lambda: Device(program)) == "EINVAL"
    program.shell.console("kvm auto")
    Device(program).close()


def test_the_mappings_of_a_container(guest: Program) -> None:
    container = Device(guest).container

    def map_dma(iova: int, size: int, flags: int = 3, argsz: int = 32, vaddr: int = 0x10000) -> str:
        return guest.outcome(container, IOMMU_MAP_DMA, struct.pack("=IIQQQ", argsz, flags, vaddr, iova, size))

    def unmap(iova: int, size: int, flags: int = 0) -> object:
        result, after = guest.tried(container, IOMMU_UNMAP_DMA, struct.pack("=IIQQ", 24, flags, iova, size))
        return struct.unpack("=IIQQ", after)[3] if result == "ok" else result

    assert map_dma(0, 8192) == "ok"
    assert map_dma(4096, 4096) == "EEXIST"
    assert map_dma(8192, 4096, argsz=31) == map_dma(8192, 4096, flags=8 | 3) == map_dma(8192, 4096, flags=0) == "EINVAL"
    assert map_dma(8192, 4096, flags=7) == map_dma(8192, 100) == map_dma(2**64 - 4096, 8192) == "EINVAL"
    assert map_dma(0, 4096, flags=4) == "EINVAL"
    assert map_dma(2**20, 4096, flags=4) == "ENOENT"
    assert unmap(4096, 4096) == "EINVAL"
    assert unmap(2**30, 4096) == 0
    assert unmap(0, 8192, flags=4) == "EBUSY"
    assert unmap(0, 0) == unmap(0, 4096, flags=2) == "EINVAL"
    assert (unmap(0, 0, flags=2), unmap(0, 0, flags=2)) == (8192, 0)
    info = guest.call(container, IOMMU_GET_INFO, struct.pack("=IIQII", 24, 0, 0, 5, 5))
    assert struct.unpack("=IIQII", info) == (72, 3, 2**64 - 4096, 0, 0)
    assert guest.outcome(container, IOMMU_GET_INFO, struct.pack("=IIQ", 15, 0, 0)) == "EINVAL"
    info = guest.call(container, IOMMU_GET_INFO, struct.pack("=I", 72) + bytes(68))
    answer = (72, 3, 2**64 - 4096, 24, 2, 1, 56, 0, 0, 4096, 1 << 28, 3, 1, 0, 65535)
    assert struct.unpack("=IIQI4xHHIIIQQHHII", info[:68]) == answer


def test_open_files_keep_the_modules_of_vfio(two: Two) -> None:
    """misc_open takes a reference of the operations, chrdev_open one more of the device number; SET_IOMMU of type 1."""

    def counts() -> list[int]:
        names = ("vfio_iommu_type1", "vfio")
        return [int(two.program.shell.cat(f"/sys/module/{name}/refcnt")) for name in names]

    holders = 2  # vfio_ap, vfio_iommu_type1
    assert counts() == [0, holders + 1 + 2 + 2]
    assert (two.join(two.first), two.choose(1)) == ("ok", "ok")
    assert counts() == [1, holders + 5]
    device = two.program.value(two.first, GROUP_GET_DEVICE_FD, U.encode() + b"\0")
    assert counts() == [1, holders + 6]
    two.program.close(two.container)  # the group still has it
    two.program.close(two.second)
    assert counts() == [1, holders + 3]
    two.program.close(device)
    two.program.close(two.first)
    assert counts() == [0, holders]


def test_without_the_module_a_container_has_no_type(two: Two) -> None:
    """vfio_ioctl_check_extension and vfio_ioctl_set_iommu ask the backends that there are."""
    two.program.shell.console("rmmod vfio_iommu_type1")
    assert two.extensions() == []
    assert two.join(two.first) == "ok"
    assert (two.choose(1), two.choose(9)) == ("ENODEV", "ENODEV")
    two.program.shell.console("modprobe vfio_iommu_type1")
    assert two.choose(1) == "ok"


def test_the_limit_of_mappings_is_that_of_the_module_at_set_iommu(two: Two) -> None:
    """vfio_iommu_type1_open: dma_avail is the parameter dma_entry_limit."""
    two.program.write("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "1")
    assert (two.join(two.first), two.choose(3)) == ("ok", "ok")
    two.program.write("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "7")
    mappings = [struct.pack("=IIQQQ", 32, 3, 0x10000, iova, 4096) for iova in (0, 4096)]
    assert [two.program.outcome(two.container, IOMMU_MAP_DMA, mapping) for mapping in mappings] == ["ok", "ENOSPC"]

"""Device nodes and iommufds: binding, address spaces, and an iommufd in the place of a container."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.vfio.client import (
    DEVICE_ATTACH_IOMMUFD_PT,
    DEVICE_BIND_IOMMUFD,
    DEVICE_DETACH_IOMMUFD_PT,
    DEVICE_RESET,
    GET_API_VERSION,
    GROUP_GET_DEVICE_FD,
    GROUP_SET_CONTAINER,
    GROUP_UNSET_CONTAINER,
    IOAS_ALLOC,
    IOAS_IOVA_RANGES,
    IOAS_MAP,
    IOAS_MAP_FILE,
    IOAS_UNMAP,
    IOMMU_DESTROY,
    IOMMU_MAP_DMA,
    SECOND,
    SET_IOMMU,
    Device,
    U,
)

if TYPE_CHECKING:
    from tests.vfio.program import Program


class Node:
    """An open device node that is not bound, and an iommufd."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.fd, self.iommufd = program.open(program.node_of()), program.open("/dev/iommu")

    def bind(self, number: int, fd: int | None = None, argsz: int = 16, flags: int = 0) -> str:
        packed = struct.pack("=IIiI", argsz, flags, number, 0)
        return self.program.outcome(self.fd if fd is None else fd, DEVICE_BIND_IOMMUFD, packed)

    def attach(self, pt_id: int, argsz: int = 12, flags: int = 0) -> str:
        return self.program.outcome(self.fd, DEVICE_ATTACH_IOMMUFD_PT, struct.pack("=4I", argsz, flags, pt_id, 0))

    def detach(self, argsz: int = 8, flags: int = 0) -> str:
        return self.program.outcome(self.fd, DEVICE_DETACH_IOMMUFD_PT, struct.pack("=3I", argsz, flags, 0))

    def alloc(self) -> int:
        number: int = struct.unpack("=3I", self.program.call(self.iommufd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0)))[2]
        return number

    def destroy(self, number: int) -> str:
        return self.program.outcome(self.iommufd, IOMMU_DESTROY, struct.pack("=2I", 8, number))


@pytest.fixture
def node(guest: Program) -> Node:
    return Node(guest)


def test_binding_a_node(node: Node) -> None:
    program = node.program
    container, pipe = program.open("/dev/vfio/vfio"), program.foreign()
    group = program.open(program.group_of())
    # EINVAL for the struct, EBUSY for the group, EBADF for the descriptor: each hides what comes after it.
    assert node.bind(900, argsz=15) == node.bind(900, flags=1 << 31) == node.bind(-1) == "EINVAL"
    assert node.bind(900) == "EBUSY"
    program.close(group)
    assert node.bind(900) == "EBADF"
    assert node.bind(pipe) == node.bind(container) == node.bind(node.fd) == "EBADFD"
    assert (node.bind(node.iommufd), node.bind(900)) == ("ok", "EINVAL")
    assert program.opened(program.group_of()) == "EBUSY"
    other = program.open(program.node_of())
    assert (node.bind(900, other), node.bind(pipe, other)) == ("EBADF", "EBADFD")
    assert node.bind(node.iommufd, other) == program.outcome(other, DEVICE_RESET) == "EINVAL"
    assert program.remove() == "EBUSY"
    program.close(node.fd)
    assert (node.bind(node.iommufd, other), program.outcome(other, DEVICE_RESET)) == ("ok", "ok")
    program.close(other)
    assert isinstance(program.opened(program.group_of()), int)


def test_an_iommufd_is_one_vm(node: Node) -> None:
    node.program.create(SECOND)
    second = node.program.open(node.program.node_of(SECOND))
    assert node.bind(node.iommufd) == "ok"
    assert node.bind(node.iommufd, second) == "EPERM"
    assert node.bind(node.program.open("/dev/iommu"), second) == "ok"


def test_attaching_and_detaching(node: Node) -> None:
    assert node.bind(node.iommufd) == "ok"
    one, two = node.alloc(), node.alloc()
    assert node.attach(one, 11) == node.attach(one, flags=2) == node.attach(one, flags=1) == "EINVAL"
    assert node.attach(one, 16, 1) == "ENOTSUP"
    assert (node.attach(99), node.attach(one)) == ("ENOENT", "ok")
    assert (node.attach(two), node.destroy(one), node.destroy(two)) == ("ok", "ok", "EBUSY")
    assert node.destroy(99) == node.destroy(one) == "ENOENT"
    assert node.detach(7) == node.detach(flags=2) == node.detach(flags=1) == "EINVAL"
    assert node.detach(12, 1) == "ENOTSUP"
    assert node.detach() == node.detach() == node.destroy(two) == "ok"


def test_address_spaces(program: Program) -> None:
    iommufd = program.open("/dev/iommu")
    ioas = struct.unpack("=3I", program.call(iommufd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0)))[2]

    def alloc(size: int, flags: int, rest: bytes = b"") -> str:
        return program.outcome(iommufd, IOAS_ALLOC, struct.pack("=3I", size, flags, 0) + rest)

    assert alloc(11, 0) == "EINVAL"
    assert alloc(12, 1) == "ENOTSUP"
    assert alloc(16, 0, bytes(4)) == alloc(1000, 0, bytes(988)) == alloc(12, 0) == "ok"
    assert alloc(16, 0, b"\1\0\0\0") == alloc(1000, 0, bytes(987) + b"\1") == "E2BIG"
    assert alloc(16, 0) == "EFAULT"  # memory ends in front of what it says is there

    def map_(length: int, iova: int = 0, flags: int = 7, number: int = ioas, start: int = 0x10000) -> str:
        packed = struct.pack("=4I3Q", 40, flags, number, 0, start, length, iova)
        return program.outcome(iommufd, IOAS_MAP, packed)

    assert (map_(4096), map_(4096)) == ("ok", "EEXIST")
    assert map_(4096, 4096, number=99) == "ENOENT"
    assert map_(4096, flags=8) == "ENOTSUP"
    assert (map_(0, 8192), map_(100, 12288)) == ("EINVAL", "ok")

    def map_file(fd: int, iova: int) -> str:
        packed = struct.pack("=3Ii3Q", 40, 7, ioas, fd, 0, 4096, iova)
        return program.outcome(iommufd, IOAS_MAP_FILE, packed)

    memfd = program.foreign()
    assert [map_file(memfd, 8192), map_file(memfd, 8192), map_file(900, 16384)] == ["ok", "EEXIST", "EBADF"]
    placed = program.call(iommufd, IOAS_MAP, struct.pack("=4I3Q", 40, 6, ioas, 0, 0x10000, 4096, 77))
    assert struct.unpack("=4I3Q", placed)[6] == 4096

    def unmap(iova: int, length: int) -> object:
        result, after = program.tried(iommufd, IOAS_UNMAP, struct.pack("=2I2Q", 24, ioas, iova, length))
        return struct.unpack("=2I2Q", after)[3] if result == "ok" else result

    assert [unmap(2**30, 4096), unmap(0, 4096), unmap(0, 2**64 - 1), unmap(0, 2**64 - 1)] == ["ENOENT", 4096, 8292, 0]

    def ranges(room: int, number: int = ioas, reserved: int = 0) -> tuple[str, int]:
        packed = struct.pack("=4I2Q", 32, number, room, reserved, 0x5000, 0)
        result, after = program.tried(iommufd, IOAS_IOVA_RANGES, packed)
        return result, struct.unpack("=4I2Q", after)[2]

    assert ranges(0) == ("EMSGSIZE", 1)
    assert (ranges(1, 99)[0], ranges(1, reserved=1)[0]) == ("ENOENT", "ENOTSUP")
    for room in (1, 7):
        assert ranges(room) == ("ok", 1)
        assert program.written == {0x5000: struct.pack("=2Q", 0, 2**64 - 1)}


def test_an_iommufd_plays_the_container(guest: Program) -> None:
    device = Device(guest, container=guest.open("/dev/iommu"))
    assert guest.ioctl(device.container, GET_API_VERSION) == 0
    assert (guest.outcome(device.container, SET_IOMMU, 3), guest.outcome(device.container, SET_IOMMU, 2)) == (
        "ok",
        "EINVAL",
    )
    mapping = struct.pack("=IIQQQ", 32, 3, 0, 0, 4096)
    assert (guest.outcome(device.container, IOMMU_MAP_DMA, mapping), device.outcome(DEVICE_RESET)) == ("ok", "ok")
    assert guest.opened(guest.group_of()) == "EBUSY"
    device.close()
    assert isinstance(guest.opened(guest.group_of()), int)


def test_an_iommufd_does_not_hold_its_group(guest: Program) -> None:
    # vfio_group_ioctl_unset_container asks for users of containers only; get_file of the group is in use_container.
    device = Device(guest, container=guest.open("/dev/iommu"))
    assert guest.outcome(device.group, GROUP_UNSET_CONTAINER) == "ok"
    assert guest.outcome(device.group, GROUP_UNSET_CONTAINER) == "EINVAL"
    assert device.outcome(DEVICE_RESET) == "ok"
    assert guest.outcome(device.group, GROUP_GET_DEVICE_FD, U.encode() + b"\0") == "EINVAL"
    guest.close(device.group)
    assert guest.refused(f"/dev/vfio-ap/{U}/guest", "1") == "EBUSY"
    group, other = guest.open(guest.group_of()), guest.open("/dev/iommu")
    guest.call(group, GROUP_SET_CONTAINER, struct.pack("=i", other))
    second = guest.value(group, GROUP_GET_DEVICE_FD, U.encode() + b"\0")
    guest.close(device.fd)
    assert guest.shell.cat(f"/dev/vfio-ap/{U}/guest") == "1\n"
    guest.close(second)
    assert guest.shell.cat(f"/dev/vfio-ap/{U}/guest") == "0\n"
    guest.close(group)
    assert Device(guest).outcome(DEVICE_RESET) == "ok"


def test_a_container_holds_the_group_until_the_device_is_closed(guest: Program) -> None:
    def references() -> int:
        return int(guest.shell.cat("/sys/module/vfio/refcnt"))

    before = references()
    device = Device(guest)
    assert references() - before == 4
    guest.close(device.group)  # get_file in vfio_group_use_container: two references of the module stay
    assert (references() - before, guest.opened(guest.group_of())) == (4, "EBUSY")
    guest.close(device.fd)
    assert references() - before == 1
    guest.close(device.container)
    assert references() == before


@pytest.mark.parametrize(("path", "again"), [("/dev/vfio/vfio", "ENODEV"), ("/dev/iommu", "EINVAL")])
def test_a_group_leaves_its_container_when_its_device_goes(guest: Program, path: str, again: str) -> None:
    # vfio_device_remove_group detaches containers, which lose their IOMMU type with the last group, but no iommufd.
    group, container = guest.open(guest.group_of()), guest.open(path)
    packed = struct.pack("=i", container)
    guest.call(group, GROUP_SET_CONTAINER, packed)
    guest.ioctl(container, SET_IOMMU, 3)
    assert guest.remove() == "ok"
    assert guest.shell.cat("/sys/module/vfio_iommu_type1/refcnt") == "0\n"
    assert guest.outcome(group, GROUP_SET_CONTAINER, packed) == again
    assert guest.outcome(group, GROUP_UNSET_CONTAINER) == ("EINVAL" if again == "ENODEV" else "ok")
    assert guest.outcome(group, GROUP_SET_CONTAINER, packed) == "ENODEV"
    guest.close(group)


def test_an_open_group_keeps_its_minor_number_when_its_device_goes(guest: Program) -> None:
    # vfio_group_release frees it; the number in the name is that of the IOMMU group, which is free at once.
    group = guest.open(guest.group_of())
    assert guest.remove() == "ok"
    assert guest.create() == "/dev/vfio/0"
    assert guest.shell.cat("/sys/class/vfio/0/dev") == "243:1\n"
    assert guest.readlink("/sys/dev/char/243:1") == "../../devices/virtual/vfio/0"
    assert "243:0" not in guest.ls("/sys/dev/char")
    guest.close(group)
    assert guest.remove() == "ok"
    guest.create()
    assert guest.shell.cat("/sys/class/vfio/0/dev") == "243:0\n"

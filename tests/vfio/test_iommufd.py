"""Requests of iommufd, as values: what is checked, in which order, and what comes back."""

from __future__ import annotations

import errno
import struct
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.errors import KernelError
from apfs.journal.log import Journal
from apfs.kernel.profile import DEFAULT, Profile
from apfs.vfio.iommu_hardware import HARDWARE
from apfs.vfio.iommufd import Access, Iommufd
from apfs.vfio.request import Foreign, Reply, Request
from apfs.vfio.uapi import IOVA_RANGE, POINTED_MOST, Cmd

ARG = 0x7000_0000
PAGE = 4096
LAST = 2**64 - 1
WRITEABLE, READABLE, FIXED = 2, 4, 1


class File:
    """An open iommufd with one address space, of id 1."""

    def __init__(self, profile: Profile = DEFAULT) -> None:
        self.iommufd = Iommufd(Journal(), profile)
        assert self.alloc() == 1

    def ask(self, cmd: int, memory: bytes, *, descriptor: object = None, pointed: bytes = b"", arg: int = ARG) -> Reply:
        return self.iommufd.ioctl(Request(cmd, arg, memory, descriptor, pointed=pointed))

    def __call__(self, cmd: int, layout: str, *values: int, **more: object) -> object:
        """Return the fields of the struct that is written back, or the name of the errno, or `ok`."""
        memory = struct.pack("=" + layout, *values)
        reply = self.ask(cmd, memory, **more)  # type: ignore[arg-type]
        if reply.value < 0:
            return KernelError(-reply.value, "").name
        back = next((write.data for write in reply.writes if write.address == ARG), None)
        return struct.unpack("=" + layout, back.ljust(len(memory), b"\0")) if back else "ok"

    def alloc(self) -> int:
        number = self(Cmd.IOMMU_IOAS_ALLOC, "3I", 12, 0, 0)
        assert isinstance(number, tuple)
        return int(number[2])

    def map(self, length: int, iova: int, flags: int = 7, ioas: int = 1, start: int = 0x10000) -> object:
        found = self(Cmd.IOMMU_IOAS_MAP, "4I3Q", 40, flags, ioas, 0, start, length, iova)
        return found[6] if isinstance(found, tuple) else found

    def unmap(self, iova: int, length: int, ioas: int = 1) -> object:
        found = self(Cmd.IOMMU_IOAS_UNMAP, "2I2Q", 24, ioas, iova, length)
        return found[3] if isinstance(found, tuple) else found

    def copy(self, length: int, to: int, source: int, flags: int = 7, to_ioas: int = 1, from_ioas: int = 1) -> object:
        found = self(Cmd.IOMMU_IOAS_COPY, "4I3Q", 40, flags, to_ioas, from_ioas, length, to, source)
        return found[5] if isinstance(found, tuple) else found

    def option(self, option: int, operation: int, number: int = 0, value: int = 0, reserved: int = 0) -> object:
        memory = struct.pack("=2I2HIQ", 24, option, operation, reserved, number, value)
        reply = self.ask(Cmd.IOMMU_OPTION, memory)
        if reply.value < 0:
            return KernelError(-reply.value, "").name
        (write,) = reply.writes
        assert write.address == ARG + 16
        return struct.unpack("=Q", write.data)[0]


@pytest.fixture
def file() -> File:
    return File()


def test_mappings(file: File) -> None:
    assert file.map(PAGE, 0) == 0
    assert file.map(PAGE, 0) == "EEXIST"
    assert file.map(1, PAGE) == PAGE  # nothing is attached: no alignment
    assert file.map(PAGE, 2 * PAGE, ioas=9) == "ENOENT"
    assert file.map(PAGE, 2 * PAGE, flags=8) == "EOPNOTSUPP"
    assert file.map(PAGE, 2 * PAGE, flags=FIXED) == "EINVAL"
    assert file.map(0, 2 * PAGE) == "EINVAL"
    assert file.map(PAGE, LAST) == file.map(LAST, 0) == "EOVERFLOW"
    assert file.map(PAGE, 0, start=LAST) == "EOVERFLOW"
    assert file.map(PAGE, 77, flags=READABLE, start=0x10000) == 2 * PAGE
    assert file.unmap(0, LAST) == 2 * PAGE + 1
    assert file.unmap(0, LAST) == 0
    assert file.unmap(0, PAGE) == "ENOENT"
    assert file.unmap(LAST, PAGE) == file.unmap(PAGE, LAST) == file.unmap(LAST - 1, 3) == "EOVERFLOW"
    assert file.unmap(PAGE, 0) == "EINVAL"


def test_files(file: File) -> None:
    def map_file(length: int, start: int = 0, descriptor: object = None, flags: int = 7) -> object:
        values = (40, flags, 1, 5, start, length, 0)
        found = file(Cmd.IOMMU_IOAS_MAP_FILE, "3Ii3Q", *values, descriptor=descriptor)
        return found[6] if isinstance(found, tuple) else found

    assert map_file(PAGE) == "EBADF"
    assert map_file(0) == "EINVAL"
    assert map_file(PAGE, LAST - 5) == "EOVERFLOW"
    assert map_file(PAGE, flags=8) == "EOPNOTSUPP"
    assert map_file(PAGE, descriptor=Foreign()) == 0
    assert file(Cmd.IOMMU_IOAS_CHANGE_PROCESS, "2I", 8, 1) == "EOPNOTSUPP"
    assert file(Cmd.IOMMU_IOAS_CHANGE_PROCESS, "2I", 8, 0) == "ok"
    assert file.map(PAGE, PAGE) == PAGE
    assert file(Cmd.IOMMU_IOAS_CHANGE_PROCESS, "2I", 8, 0) == "EINVAL"


def test_copies(file: File) -> None:
    other = file.alloc()
    assert file.map(2 * PAGE, PAGE, flags=FIXED | READABLE) == PAGE
    assert file.copy(PAGE, 0, PAGE, to_ioas=other) == "EPERM"
    assert file.copy(PAGE, 0, PAGE, flags=FIXED | READABLE, to_ioas=other) == 0
    assert file.copy(PAGE, 0, PAGE, flags=FIXED | READABLE, to_ioas=other) == "EEXIST"
    assert file.copy(PAGE, 0, 0, flags=FIXED | READABLE) == "ENOENT"
    assert file.copy(2 * PAGE, 0, 2 * PAGE, flags=FIXED | READABLE, to_ioas=other) == "ENOENT"
    assert file.copy(0, 0, PAGE) == file.copy(PAGE, 0, PAGE, flags=FIXED) == "EINVAL"
    assert file.copy(PAGE, 0, PAGE, flags=8) == "EOPNOTSUPP"
    assert file.copy(PAGE, 0, PAGE, from_ioas=9) == file.copy(PAGE, 0, PAGE, flags=5, to_ioas=9) == "ENOENT"
    assert file.copy(PAGE, LAST, PAGE) == file.copy(PAGE, 0, LAST) == file.copy(LAST, 0, PAGE) == "EOVERFLOW"
    assert file.copy(PAGE, 0, PAGE, flags=READABLE, to_ioas=other) == PAGE


def allow_in(
    file: File, *ranges: tuple[int, int], number: int = 1, count: int | None = None, reserved: int = 0
) -> object:
    pointed = b"".join(struct.pack("=2Q", *found) for found in ranges)
    values = (24, number, len(ranges) if count is None else count, reserved, 0x5000)
    return file(Cmd.IOMMU_IOAS_ALLOW_IOVAS, "4IQ", *values, pointed=pointed)


def test_where_addresses_may_be_chosen(file: File) -> None:
    allow = partial(allow_in, file)
    assert allow((8 * PAGE, 9 * PAGE - 1)) == "ok"
    assert file.map(PAGE, 0, flags=READABLE) == 8 * PAGE
    assert file.map(PAGE, 0, flags=READABLE) == "ENOSPC"
    assert file.map(PAGE, PAGE) == PAGE
    assert allow(reserved=1) == "EOPNOTSUPP"
    assert allow(number=9) == "ENOENT"
    assert allow((PAGE, PAGE)) == allow((0, PAGE), (PAGE, 2 * PAGE)) == "EINVAL"
    assert allow((0, PAGE - 1), count=2) == "EFAULT"
    assert allow() == "ok"
    assert file.map(PAGE, 0, flags=READABLE) == 2 * PAGE


def naive_allow(ranges: list[tuple[int, int]], count: int) -> str:
    """What the kernel answers, which looks at one range after the other."""
    for place in range(count):
        if place == len(ranges):
            return "EFAULT"
        first, last = ranges[place]
        if first >= last or any(first <= other[1] and other[0] <= last for other in ranges[:place]):
            return "EINVAL"
    return "ok"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4), st.integers(0, 5))
def test_ranges_are_refused_as_by_the_kernel(ranges: list[tuple[int, int]], count: int) -> None:
    assert allow_in(File(), *ranges, count=count) == naive_allow(ranges, count)


def test_as_many_ranges_as_are_looked_at(file: File) -> None:
    """Nobody else is served meanwhile."""
    ranges = [(2 * number, 2 * number + 1) for number in range(POINTED_MOST // IOVA_RANGE.size)]
    assert allow_in(file, *ranges) == "ok"
    assert allow_in(file, *ranges[:-1], ranges[0]) == "EINVAL"


def test_options(file: File) -> None:
    fresh = File.__new__(File)
    fresh.iommufd = Iommufd(Journal())
    assert [fresh.option(0, 1), fresh.option(0, 0, value=1), fresh.option(0, 1), fresh.option(0, 0)] == [0, 1, 1, 0]
    assert fresh.option(0, 0, value=2) == "EINVAL"
    assert file.option(0, 0, value=1) == file.option(0, 0, value=7) == "EBUSY"
    assert file.option(0, 0, number=1) == file.option(0, 2) == file.option(9, 1) == "EOPNOTSUPP"
    assert file.option(0, 1, reserved=1) == file.option(1, 2, number=1) == "EOPNOTSUPP"
    assert file.option(1, 1, number=9) == "ENOENT"
    assert file.option(1, 0, number=1, value=2) == "EINVAL"
    assert [file.option(1, 1, number=1), file.option(1, 0, number=1), file.option(1, 1, number=1)] == [1, 0, 0]
    assert file.map(1, 0) == "EINVAL"
    assert file.option(1, 0, number=1, value=1) == 1
    assert file.map(1, 0) == 0
    assert file.option(1, 0, number=1, value=0) == "EADDRINUSE"
    assert file.option(1, 1, number=1) == 1


def test_an_access_needs_whole_pages(file: File) -> None:
    other = file.alloc()
    access = Access(file.iommufd)
    assert access.id == 3
    assert file.map(1, 0) == 0
    with pytest.raises(KernelError, match="EADDRINUSE"):
        access.attach(1)
    access.attach(other)
    assert file.map(1, 0, ioas=other) == "EINVAL"
    with pytest.raises(KernelError, match="EADDRINUSE"):
        access.attach(1)
    assert file(Cmd.IOMMU_DESTROY, "2I", 8, other) == file(Cmd.IOMMU_DESTROY, "2I", 8, 3) == "EBUSY"
    access.attach(other)  # the one that it has is no change
    access.detach()
    assert file(Cmd.IOMMU_DESTROY, "2I", 8, other) == "ok"
    assert file(Cmd.IOMMU_DESTROY, "2I", 8, other) == "ENOENT"
    access.destroy()
    assert file.alloc() == 2


def compat(file: File, operation: int, number: int = 0, reserved: int = 0) -> object:
    found = file(Cmd.IOMMU_VFIO_IOAS, "2I2H", 12, number, operation, reserved)
    return found[1] if isinstance(found, tuple) else found


def test_the_address_space_of_groups(file: File) -> None:
    assert compat(file, 0) == "ENODEV"
    assert compat(file, 1, 9) == "ENOENT"
    assert compat(file, 3) == compat(file, 0, reserved=1) == "EOPNOTSUPP"
    assert compat(file, 1, 1) == "ok"
    assert compat(file, 0) == 1
    assert compat(file, 2) == "ok"
    assert compat(file, 0) == "ENODEV"
    group = object()
    file.iommufd.attach(group)
    assert compat(file, 0) == 2
    assert file(Cmd.IOMMU_DESTROY, "2I", 8, 2) == "ok"
    assert compat(file, 0) == "ENODEV"
    with pytest.raises(KernelError, match="ENODEV"):
        file.iommufd.enter()
    assert compat(file, 1, 1) == "ok"
    access = file.iommufd.enter()
    assert file(Cmd.IOMMU_DESTROY, "2I", 8, 1) == "EBUSY"
    access.destroy()


def test_requests_of_a_container_check_what_they_are_given_first(file: File) -> None:
    maps = (Cmd.VFIO_IOMMU_MAP_DMA, "2I3Q")
    unmaps = (Cmd.VFIO_IOMMU_UNMAP_DMA, "2I2Q")
    assert file(*maps, 31, 3, 0, 0, PAGE) == file(*maps, 32, 4, 0, 0, PAGE) == "EINVAL"
    assert file(*unmaps, 23, 0, 0, PAGE) == file(*unmaps, 24, 1, 0, PAGE) == "EINVAL"
    assert file(Cmd.VFIO_IOMMU_GET_INFO, "2IQ", 15, 0, 0) == "EINVAL"
    assert file.ask(Cmd.VFIO_IOMMU_MAP_DMA, bytes(31)).value == -errno.EFAULT
    assert file(*maps, 32, 3, 0, 0, PAGE) == file(*unmaps, 24, 0, 0, PAGE) == "ENODEV"
    assert file(Cmd.VFIO_IOMMU_GET_INFO, "2IQ", 16, 0, 0) == "ENODEV"
    assert [file.ask(Cmd.VFIO_CHECK_EXTENSION, b"", arg=kind).value for kind in (1, 3, 9, 10, 6)] == [1, 1, 1, 0, 0]
    assert file.ask(Cmd.VFIO_CHECK_EXTENSION, b"", arg=4).value == -errno.ENODEV
    assert [file.ask(Cmd.VFIO_SET_IOMMU, b"", arg=kind).value for kind in (2, 3)] == [-errno.EINVAL, -errno.ENODEV]
    assert file.ask(Cmd.VFIO_IOMMU_DIRTY_PAGES, bytes(64)).value == -errno.ENOTTY
    compat(file, 1, 1)
    assert file.ask(Cmd.VFIO_CHECK_EXTENSION, b"", arg=4).value == 1
    assert file(*maps, 32, 3, 0x10000, 0, 4 * PAGE) == "ok"
    assert file(*unmaps, 24, 0, 0, PAGE) == "ENOENT"
    assert file(*maps, 32, 3, 0x10000, 8 * PAGE, PAGE) == file(*maps, 32, 3, 0x10000, 9 * PAGE, 2 * PAGE) == "ok"
    cut = file.ask(Cmd.VFIO_IOMMU_UNMAP_DMA, struct.pack("=2I2Q", 24, 0, 8 * PAGE, 2 * PAGE))
    assert (cut.value, cut.writes[0].data) == (-errno.ENOENT, struct.pack("=2I2Q", 24, 0, 8 * PAGE, PAGE))
    assert file(*unmaps, 24, 0, 9 * PAGE, 2 * PAGE) == (24, 0, 9 * PAGE, 2 * PAGE)
    assert file(*unmaps, 24, 0, 9 * PAGE, 2 * PAGE) == (24, 0, 9 * PAGE, 0)
    assert file(*unmaps, 24, 0, PAGE, 0) == "EINVAL"
    assert file(*unmaps, 24, 2, 1, 0) == "EINVAL"
    assert file(*unmaps, 24, 2, 0, 0) == (24, 2, 0, 4 * PAGE)


def test_type_1_can_unmap_parts(file: File) -> None:
    compat(file, 1, 1)
    maps, unmaps = (Cmd.VFIO_IOMMU_MAP_DMA, "2I3Q"), (Cmd.VFIO_IOMMU_UNMAP_DMA, "2I2Q")
    assert file.ask(Cmd.VFIO_SET_IOMMU, b"", arg=1).value == 0
    assert file(*maps, 32, 3, 0x10000, 0, 8 * PAGE) == "ok"
    assert file(*unmaps, 24, 0, 2 * PAGE, 2 * PAGE) == (24, 0, 2 * PAGE, 2 * PAGE)
    assert file(*unmaps, 24, 0, 0, 8 * PAGE) == (24, 0, 0, 6 * PAGE)
    assert file(*maps, 32, 3, 0x10000, 0, 100) == "EINVAL"


@pytest.mark.parametrize("argsz", [16, 24, 35, 36, 39, 40, 67, 68, 71, 72, 100])
@pytest.mark.parametrize(("version", "second"), [("6.5", 36), ("7.2", 40)])
def test_information_for_groups(version: str, second: int, argsz: int) -> None:
    file = File(Profile.of(version))
    compat(file, 1, 1)
    reply = file.ask(Cmd.VFIO_IOMMU_GET_INFO, struct.pack("=2IQ", argsz, 0, 0).ljust(argsz, b"\0"))
    memory = bytearray(b"\xee" * 100)
    for write in reply.writes:
        memory[write.address - ARG : write.address - ARG + len(write.data)] = write.data
    size, flags, pages = struct.unpack("=2IQ", memory[:16])
    total = second + 32
    assert (size, flags, pages) == (total, 3, 2**64 - PAGE)
    if argsz >= 24:
        assert struct.unpack("=2I", memory[16:24]) == (24 if argsz >= total else 0, 0)
    if argsz >= 36:
        assert struct.unpack("=2H2I", memory[24:36]) == (3, 1, second if argsz >= second else 0, 2**32 - 1)
    if argsz >= total:
        assert struct.unpack("=2H3I2Q", memory[second:total]) == (1, 1, 0, 1, 0, 0, LAST)
    assert memory[argsz:] == b"\xee" * (100 - argsz)


def test_ranges(file: File) -> None:
    def ranges(room: int, number: int = 1, reserved: int = 0) -> tuple[int, dict[int, bytes]]:
        memory = struct.pack("=4I2Q", 32, number, room, reserved, 0x5000, 0)
        reply = file.ask(Cmd.IOMMU_IOAS_IOVA_RANGES, memory)
        return reply.value, {write.address: write.data for write in reply.writes}

    def answer(alignment: int) -> bytes:
        return struct.pack("=4I2Q", 32, 1, 1, 0, 0x5000, alignment)

    assert ranges(1) == (0, {0x5000: struct.pack("=2Q", 0, LAST), ARG: answer(1)})
    assert ranges(0) == (-errno.EMSGSIZE, {ARG: answer(1)})
    assert ranges(1, number=9)[0] == -errno.ENOENT
    assert ranges(1, reserved=1)[0] == -errno.EOPNOTSUPP
    Access(file.iommufd).attach(1)
    assert ranges(1)[1][ARG] == answer(PAGE)


HARDWARE_CASES: list[tuple[Cmd, str, tuple[int, ...], str]] = [
    (Cmd.IOMMU_GET_HW_INFO, "4IQIB3BQ", (40, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_GET_HW_INFO, "4IQIB3BQ", (40, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_GET_HW_INFO, "4IQIB3BQ", (40, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_GET_HW_INFO, "4IQIB3BQ", (40, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_GET_HW_INFO, "4IQIB3B", (32, 0, 7, 0, 0, 0, 0, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_HWPT_ALLOC, "8IQ2I", (48, 0, 7, 1, 0, 0, 0, 0, 0, 0, 0), "E2BIG"),
    (Cmd.IOMMU_HWPT_ALLOC, "6I", (24, 0, 7, 1, 0, 0), "ENOENT"),
    (Cmd.IOMMU_HWPT_ALLOC, "8IQ", (40, 0, 7, 1, 0, 0, 0, 5, 0), "EINVAL"),
    (Cmd.IOMMU_HWPT_ALLOC, "8IQ", (40, 0, 7, 1, 0, 0, 5, 0, 0), "EINVAL"),
    (Cmd.IOMMU_HWPT_ALLOC, "8IQ", (40, 0, 7, 1, 0, 1, 5, 0, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_HWPT_SET_DIRTY_TRACKING, "4I", (16, 1, 1, 0), "ENOENT"),
    (Cmd.IOMMU_HWPT_SET_DIRTY_TRACKING, "4I", (16, 2, 1, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_HWPT_GET_DIRTY_BITMAP, "4I4Q", (48, 1, 1, 0, 0, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_HWPT_GET_DIRTY_BITMAP, "4I4Q", (48, 1, 2, 0, 0, 0, 0, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_HWPT_INVALIDATE, "2IQ4I", (32, 9, 0, 0, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_HWPT_INVALIDATE, "2IQ4I", (32, 1, 0, 0, 0, 0, 0), "EINVAL"),
    (Cmd.IOMMU_HWPT_INVALIDATE, "2IQ4I", (32, 9, 0, 0, 8, 1, 0), "EINVAL"),
    (Cmd.IOMMU_HWPT_INVALIDATE, "2IQ4I", (32, 9, 5, 0, 8, 1, 1), "EOPNOTSUPP"),
    (Cmd.IOMMU_FAULT_QUEUE_ALLOC, "4I", (16, 0, 0, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_VIOMMU_ALLOC, "8IQ", (40, 0, 1, 7, 1, 0, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_VIOMMU_ALLOC, "6I", (24, 0, 0, 7, 1, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_VDEVICE_ALLOC, "4IQ", (24, 1, 7, 0, 0), "ENOENT"),
    (Cmd.IOMMU_VEVENTQ_ALLOC, "8I", (32, 0, 1, 1, 1, 0, 0, 0), "ENOENT"),
    (Cmd.IOMMU_VEVENTQ_ALLOC, "8I", (32, 0, 1, 1, 0, 0, 0, 0), "EINVAL"),
    (Cmd.IOMMU_VEVENTQ_ALLOC, "8I", (32, 0, 1, 0, 0, 0, 0, 0), "EOPNOTSUPP"),
    (Cmd.IOMMU_HW_QUEUE_ALLOC, "6I2Q", (40, 0, 1, 1, 0, 0, 0, 1), "ENOENT"),
    (Cmd.IOMMU_HW_QUEUE_ALLOC, "6I2Q", (40, 0, 1, 1, 0, 0, 0, 0), "EINVAL"),
    (Cmd.IOMMU_HW_QUEUE_ALLOC, "6I2Q", (40, 0, 1, 1, 0, 0, LAST, 2), "EOVERFLOW"),
    (Cmd.IOMMU_HW_QUEUE_ALLOC, "6I2Q", (40, 1, 1, 1, 0, 0, LAST, 2), "EOPNOTSUPP"),
]


@pytest.mark.parametrize(("cmd", "layout", "values", "expected"), HARDWARE_CASES)
def test_hardware_is_not_found(file: File, cmd: Cmd, layout: str, values: tuple[int, ...], expected: str) -> None:
    if cmd == Cmd.IOMMU_HWPT_ALLOC and expected == "E2BIG":
        assert file(cmd, layout, *values) == "ENOENT"  # newer callers, whose new fields are zero
        assert file(cmd, layout, *values[:-1], 1) == expected
    else:
        assert file(cmd, layout, *values) == expected


def test_every_request_for_hardware_is_tried() -> None:
    assert {cmd for cmd, *_ in HARDWARE_CASES} == set(HARDWARE)


@pytest.mark.parametrize(("size", "expected"), [(4096, "ok"), (4097, "E2BIG")])
def test_a_struct_may_be_as_large_as_a_page(file: File, size: int, expected: str) -> None:
    reply = file.ask(Cmd.IOMMU_IOAS_ALLOC, struct.pack("=3I", size, 0, 0).ljust(size, b"\0"))
    assert (KernelError(-reply.value, "").name if reply.value < 0 else "ok") == expected


def test_an_invalidation_says_that_nothing_was_done(file: File) -> None:
    memory = struct.pack("=2IQ4I", 32, 9, 0x5000, 1, 8, 4, 0)
    (write,) = file.ask(Cmd.IOMMU_HWPT_INVALIDATE, memory).writes
    assert struct.unpack("=2IQ4I", write.data) == (32, 9, 0x5000, 1, 8, 0, 0)


OWN = [cmd for cmd in Cmd if cmd >= Cmd.IOMMU_DESTROY]


@pytest.mark.parametrize("cmd", OWN)
def test_sizes(file: File, cmd: Cmd) -> None:
    assert file.ask(cmd, b"\0\0\0").value == -errno.EFAULT
    assert file.ask(cmd, struct.pack("=I", 4)).value == -errno.EINVAL
    assert file.ask(cmd, struct.pack("=I", 64)).value == -errno.EFAULT
    assert file.ask(cmd, struct.pack("=I", 100).ljust(99, b"\0") + b"\1").value == -errno.E2BIG
    assert file.ask(cmd, struct.pack("=I", 5000)).value == -errno.E2BIG


def test_unknown_requests(file: File) -> None:
    assert file.ask(0x3B95, struct.pack("=I", 8)).value == -errno.ENOTTY
    assert file.ask(0x3B6D, b"").value == -errno.ENOTTY
    # iommufd_fops_ioctl: EFAULT by the number alone, ENOTTY for another encoding of it.
    assert file.ask(0xC0043B81, b"").value == -errno.EFAULT
    assert file.ask(0xC0043B81, struct.pack("=3I", 12, 0, 0)).value == -errno.ENOTTY
    assert file.ask(0x40043B64, b"").value == -errno.ENOTTY

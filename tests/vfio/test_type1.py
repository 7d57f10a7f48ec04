"""Mappings of a container, against a model that knows single pages only."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apfs.errors import KernelError
from apfs.vfio.request import Reply, Request
from apfs.vfio.type1 import Type1

PAGE = 4096
ARG = 0x10000
PAGES = st.integers(0, 24)


def fails(call: object, *arguments: object) -> str:
    """Return the name of the errno that a call ends with, `ok` for none."""
    try:
        call(*arguments)  # type: ignore[operator]
    except KernelError as error:
        return error.name
    return "ok"


def map_dma(backend: Type1, iova: int, size: int, *, vaddr: int = 0x100000, flags: int = 3, argsz: int = 32) -> Reply:
    return backend.map_dma(Request(0x3B71, ARG, struct.pack("=IIQQQ", argsz, flags, vaddr, iova, size)))


def unmap_dma(backend: Type1, iova: int, size: int, *, flags: int = 0, argsz: int = 24, rest: bytes = b"") -> int:
    reply = backend.unmap_dma(Request(0x3B72, ARG, struct.pack("=IIQQ", argsz, flags, iova, size) + rest))
    unmapped: int = struct.unpack("=IIQQ", reply.writes[-1].data)[3]
    return unmapped


class Mappings(RuleBasedStateMachine):
    """The model: which page belongs to which mapping."""

    @initialize(v2=st.booleans())
    def start(self, v2: bool) -> None:  # noqa: FBT001 -- Hypothesis calls it by keyword
        self.v2 = v2
        self.backend = Type1(v2=v2)
        self.owner: dict[int, int] = {}

    @rule(first=PAGES, count=st.integers(1, 8))
    def map(self, first: int, count: int) -> None:
        pages = range(first, first + count)
        taken = any(page in self.owner for page in pages)
        assert fails(map_dma, self.backend, first * PAGE, count * PAGE) == ("EEXIST" if taken else "ok")
        if not taken:
            self.owner |= dict.fromkeys(pages, first)

    @rule(first=PAGES, count=st.integers(1, 12))
    def unmap(self, first: int, count: int) -> None:
        pages = set(range(first, first + count))
        touched = {self.owner[page] for page in pages if page in self.owner}
        whole = {page for page, owner in self.owner.items() if owner in touched}
        if self.v2 and not whole <= pages:
            with pytest.raises(KernelError) as refusal:
                unmap_dma(self.backend, first * PAGE, count * PAGE)
            assert refusal.value.errno == errno.EINVAL
            return
        if not self.v2 and touched and min(touched) < first:
            whole = set()
        assert unmap_dma(self.backend, first * PAGE, count * PAGE) == len(whole) * PAGE
        self.owner = {page: owner for page, owner in self.owner.items() if page not in whole}

    @rule()
    def unmap_all(self) -> None:
        assert unmap_dma(self.backend, 0, 0, flags=2) == len(self.owner) * PAGE
        self.owner = {}

    @invariant()
    def slots(self) -> None:
        if hasattr(self, "backend"):
            answer = self.backend.get_info(Request(0x3B70, ARG, struct.pack("=IIQ", 200, 0, 0))).writes[0].data
            assert struct.unpack_from("=HHII", answer, 56) == (3, 1, 0, 65535 - len(set(self.owner.values())))


TestMappings = Mappings.TestCase


@pytest.mark.parametrize(
    ("iova", "size", "vaddr", "flags", "argsz", "expected"),
    [
        (0, PAGE, 0, 3, 31, "EINVAL"),
        (0, PAGE, 0, 0, 32, "EINVAL"),
        (0, PAGE, 0, 8 | 3, 32, "EINVAL"),
        (0, PAGE, 0, 4 | 1, 32, "EINVAL"),
        (0, 0, 0, 3, 32, "EINVAL"),
        (1, PAGE, 0, 3, 32, "EINVAL"),
        (0, PAGE, 1, 3, 32, "EINVAL"),
        (0, PAGE + 1, 0, 3, 32, "EINVAL"),
        (2**64 - PAGE, 2 * PAGE, 0, 3, 32, "EINVAL"),
        (0, 2 * PAGE, 2**64 - PAGE, 3, 32, "EINVAL"),
        (2**64 - PAGE, PAGE, 2**64 - PAGE, 1, 32, "ok"),
        (0, PAGE, 0, 4, 32, "ENOENT"),
        (0, PAGE, 0, 2, 64, "ok"),
    ],
)
def test_map(iova: int, size: int, vaddr: int, flags: int, argsz: int, expected: str) -> None:
    request = Request(0x3B71, ARG, struct.pack("=IIQQQ", argsz, flags, vaddr, iova, size))
    assert fails(Type1(v2=True).map_dma, request) == expected


def test_there_are_as_many_mappings_as_slots() -> None:
    backend = Type1(v2=True)
    for number in reversed(range(65535)):
        map_dma(backend, 2 * number * PAGE, PAGE)
    assert fails(map_dma, backend, 1 * PAGE, PAGE) == "ENOSPC"
    assert fails(map_dma, backend, 2 * PAGE, PAGE) == "EEXIST"
    assert unmap_dma(backend, 0, PAGE) == PAGE
    assert fails(map_dma, backend, 1 * PAGE, PAGE) == "ok"
    assert unmap_dma(backend, 0, 0, flags=2) == 65535 * PAGE


def test_update_of_a_valid_address() -> None:
    backend = Type1(v2=True)
    map_dma(backend, 0, PAGE)
    assert fails(lambda: map_dma(backend, 0, PAGE, flags=4)) == "EINVAL"


def test_memory_that_cannot_be_read() -> None:
    assert fails(Type1(v2=True).map_dma, Request(0x3B71, ARG, bytes(31))) == "EFAULT"
    assert fails(Type1(v2=True).unmap_dma, Request(0x3B72, ARG, bytes(23))) == "EFAULT"
    assert fails(Type1(v2=True).get_info, Request(0x3B70, ARG, bytes(15))) == "EFAULT"


@pytest.mark.parametrize(
    ("iova", "size", "flags", "expected"),
    [
        (0, 0, 0, "EINVAL"),
        (1, PAGE, 0, "EINVAL"),
        (0, PAGE, 2, "EINVAL"),
        (PAGE, 0, 2, "EINVAL"),
        (0, PAGE, 4, "EBUSY"),
        (0, PAGE, 8, "EINVAL"),
        (0, 0, 1 | 2, "EINVAL"),
        (2**64 - PAGE, 2 * PAGE, 0, "EINVAL"),
        (8 * PAGE, PAGE, 0, "ok"),
    ],
)
def test_unmap(iova: int, size: int, flags: int, expected: str) -> None:
    assert fails(lambda: unmap_dma(Type1(v2=True), iova, size, flags=flags)) == expected


def test_info_in_a_buffer_that_is_too_small() -> None:
    reply = Type1(v2=True).get_info(Request(0x3B70, ARG, struct.pack("=IIQ", 24, 9, 9)))
    (write,) = reply.writes
    assert (write.address, struct.unpack("=IIQII", write.data)) == (ARG, (72, 3, 0xFFFFFFFFFFFFF000, 0, 0))
    (write,) = Type1(v2=True).get_info(Request(0x3B70, ARG, struct.pack("=IIQ", 16, 0, 0))).writes
    assert len(write.data) == 16
    assert fails(Type1(v2=True).get_info, Request(0x3B70, ARG, struct.pack("=IIQ", 15, 0, 0))) == "EINVAL"


def dirty(flags: int, iova: int = 0, size: int = PAGE, pgsize: int = PAGE, room: int = 8) -> Request:
    return Request(0x3B75, ARG, struct.pack("=IIQQQQQ", 48, flags, iova, size, pgsize, room, 0x900000))


def test_bitmaps_are_of_no_more_memory_than_can_be_told_at_once() -> None:
    backend = Type1(v2=True)
    half = 1 << 38
    map_dma(backend, 0, half)
    map_dma(backend, half, half)
    backend.dirty_pages(dirty(1))
    reply = backend.dirty_pages(dirty(4, 0, 2 * half, room=1 << 28))
    assert sum(len(write.data) for write in reply.writes) == 1 << 24
    map_dma(backend, 2 * half, PAGE)
    assert fails(backend.dirty_pages, dirty(4, 0, 4 * half, room=1 << 28)) == "ENOMEM"
    rest = struct.pack("=QQQ", PAGE, 1 << 28, 0x900000)
    assert fails(lambda: unmap_dma(backend, 0, 4 * half, flags=1, argsz=48, rest=rest)) == "ENOMEM"
    assert unmap_dma(backend, 0, 4 * half) == 2 * half + PAGE


def test_dirty_pages() -> None:
    assert fails(Type1(v2=False).dirty_pages, dirty(1)) == "EACCES"
    backend = Type1(v2=True)
    map_dma(backend, 2 * PAGE, 62 * PAGE)
    assert fails(backend.dirty_pages, dirty(4, 0, 64 * PAGE)) == "EINVAL"
    assert [fails(backend.dirty_pages, dirty(flags)) for flags in (0, 3, 8, 2, 1, 1)] == ["EINVAL"] * 3 + ["ok"] * 3
    # The first byte of the bitmap has bits of pages that are not mapped: they are left alone.
    (write,) = backend.dirty_pages(dirty(4, 0, 64 * PAGE)).writes
    assert (write.address, write.data) == (0x900001, bytes(7))
    assert fails(backend.dirty_pages, dirty(4, 4 * PAGE, 4 * PAGE)) == "EINVAL"
    assert fails(backend.dirty_pages, dirty(4, 0, 64 * PAGE, room=7)) == "EINVAL"
    assert fails(backend.dirty_pages, dirty(4, 0, 64 * PAGE, pgsize=2 * PAGE)) == "EINVAL"
    rest = struct.pack("=QQQ", PAGE, 8, 0x900000)
    assert fails(lambda: unmap_dma(backend, 2 * PAGE, 62 * PAGE, flags=1, argsz=24, rest=rest)) == "EINVAL"
    assert unmap_dma(backend, 2 * PAGE, 62 * PAGE, flags=1, argsz=48, rest=rest) == 62 * PAGE

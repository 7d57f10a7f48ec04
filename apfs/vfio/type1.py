"""The type 1 IOMMU backend, as far as mediated devices use it: mappings are stored, nothing is pinned.

Source: drivers/vfio/vfio_iommu_type1.c. Addresses and sizes are in bytes.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from apfs.errors import KernelError
from apfs.kernel.kstrtox import kstrtobool, kstrtoul
from apfs.kernel.profile import DEFAULT
from apfs.sysfs.entries import Attribute
from apfs.vfio import uapi
from apfs.vfio.request import DONE, Reply, Write
from apfs.vfio.uapi import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Mapping as Table

    from apfs.kernel.profile import Profile
    from apfs.vfio.request import Request

_TOP = 1 << 64
_LIMIT = 65535
# The largest bitmap that the kernel takes covers 2^31 pages.
_MAX_BITMAP_BYTES = 1 << 28
# How much of one apfs gives, for 512 GiB of mapped memory: more would keep all others waiting.
_MOST_BITMAP_BYTES = 1 << 24
_PAGE_MASK = _TOP - uapi.PAGE
_MAP_FLAGS = uapi.VFIO_DMA_MAP_FLAG_READ | uapi.VFIO_DMA_MAP_FLAG_WRITE | uapi.VFIO_DMA_MAP_FLAG_VADDR
_UNMAP_FLAGS = uapi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | uapi.VFIO_DMA_UNMAP_FLAG_ALL | uapi.VFIO_DMA_UNMAP_FLAG_VADDR


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapped range."""

    iova: int
    size: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.iova + self.size


class Mappings:
    """Ranges that do not overlap, in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, Mapping] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, iova: int, size: int) -> None:
        """Add a range that overlaps none."""
        self._starts.insert(bisect_left(self._starts, iova), iova)
        self._by_start[iova] = Mapping(iova, size)

    def remove(self, mapping: Mapping) -> None:
        """Forget a range."""
        del self._starts[bisect_left(self._starts, mapping.iova)]
        del self._by_start[mapping.iova]

    def overlapping(self, iova: int, size: int) -> Iterator[Mapping]:
        """Yield the ranges that share an address with the given one, lowest first."""
        start = bisect_left(self._starts, iova)
        if start and self._by_start[self._starts[start - 1]].end > iova:
            start -= 1
        end = bisect_left(self._starts, iova + size)
        yield from [self._by_start[first] for first in self._starts[start:end]]


def _check_bitmap(pages: int, size: int) -> None:
    if not pages or size > _MAX_BITMAP_BYTES or size < (pages + 63) // 64 * 8:
        raise KernelError(errno.EINVAL, f"a bitmap of {size} bytes does not suit {pages} pages")


def _clean_bitmap(base: int, data: int, mappings: list[Mapping]) -> tuple[Write, ...]:
    """Return the writes for a bitmap from address `base` on: no mediated device of this kind ever dirties a page.

    ENOMEM beyond 512 GiB, as of a kernel that has no room for such a bitmap.
    """
    if sum(mapping.size for mapping in mappings) > _MOST_BITMAP_BYTES * 8 * uapi.PAGE:
        raise KernelError(errno.ENOMEM, f"a bitmap of more than {_MOST_BITMAP_BYTES:,} bytes")
    writes = []
    for mapping in mappings:
        first, last = (mapping.iova - base) // uapi.PAGE, (mapping.end - base) // uapi.PAGE
        # Bits of a byte that is shared with the range before it stay as they are.
        start, end = (first + 7) // 8, (last + 63) // 64 * 8
        writes.append(Write(data + start, bytes(end - start)))
    return tuple(writes)


class Parameters:
    """The parameters of the module vfio_iommu_type1. The two truth values change nothing here: nothing is pinned."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set them to what they are when the module is loaded without any."""
        self.allow_unsafe_interrupts = False
        self.disable_hugepages = False
        self.dma_entry_limit = _LIMIT
        """How many mappings a container can have, if its IOMMU type is chosen from now on."""


class Type1:
    """The backend of one container. `v2` is what SET_IOMMU chose."""

    def __init__(self, *, v2: bool, limit: int = _LIMIT, profile: Profile = DEFAULT) -> None:
        self.v2 = v2
        self._limit = limit
        self._profile = profile
        self.mappings = Mappings()
        self.tracking = False
        self._without_address: set[int] = set()
        """Mappings, by their first address, whose memory is to be told again."""

    def get_info(self, request: Request) -> Reply:
        """Report page sizes and, if there is room, the capabilities migration and dma_avail. EFAULT, EINVAL."""
        head = uapi.TYPE1_INFO.offsets["cap_offset"]
        argsz, *_ = uapi.TYPE1_INFO.unpack(request.take(head) + bytes(uapi.TYPE1_INFO.size - head))
        if argsz < head:
            raise KernelError(errno.EINVAL, f"argsz {argsz} is less than {head}")
        info, migration = uapi.TYPE1_INFO.size, uapi.CAP_MIGRATION.size
        chain = uapi.CAP_MIGRATION.pack(
            uapi.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 1, info + migration, 0, 0, uapi.PAGE, _MAX_BITMAP_BYTES
        )
        chain += uapi.CAP_DMA_AVAIL.pack(uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, 0, self._limit - len(self.mappings))
        if self._profile.caps_aligned:
            chain += bytes(-len(chain) % 8)
        room = argsz >= info + len(chain)
        flags = uapi.VFIO_IOMMU_INFO_PGSIZES | uapi.VFIO_IOMMU_INFO_CAPS
        needed = argsz if room else info + len(chain)
        answer = uapi.TYPE1_INFO.pack(needed, flags, _PAGE_MASK, info if room else 0, 0)
        return Reply(writes=(Write(request.arg, answer[: min(argsz, info)] + (chain if room else b"")),))

    def map_dma(self, request: Request) -> Reply:
        """Add a mapping; nothing is pinned. EFAULT, EINVAL, ENOENT, EEXIST, ENOSPC."""
        _, flags, vaddr, iova, size = request.struct(uapi.DMA_MAP)
        if flags & ~_MAP_FLAGS:
            raise KernelError(errno.EINVAL, f"unknown flags {flags:#x}")
        update = bool(flags & uapi.VFIO_DMA_MAP_FLAG_VADDR)
        access = bool(flags & ~uapi.VFIO_DMA_MAP_FLAG_VADDR)
        if update == access:
            raise KernelError(errno.EINVAL, f"flags {flags:#x} ask for neither reading nor writing, or for VADDR too")
        if not size or (size | iova | vaddr) % uapi.PAGE or iova + size > _TOP or vaddr + size > _TOP:
            raise KernelError(errno.EINVAL, f"{size:#x} bytes at {iova:#x} from {vaddr:#x}: not whole pages, or wraps")
        found = list(self.mappings.overlapping(iova, size))
        if update:
            # Only where UNMAP can make addresses invalid they can be told again.
            if found and found[0] == Mapping(iova, size) and iova in self._without_address:
                self._without_address.discard(iova)
                return DONE
            raise KernelError(errno.EINVAL if found else errno.ENOENT, "no mapping with an invalid address there")
        if found:
            raise KernelError(errno.EEXIST, f"overlaps the mapping at {found[0].iova:#x}")
        if len(self.mappings) == self._limit:
            raise KernelError(errno.ENOSPC, f"all {self._limit} mappings are in use")
        self.mappings.add(iova, size)
        return DONE

    def unmap_dma(self, request: Request) -> Reply:
        """Remove mappings, and report their size in bytes. EFAULT, EINVAL, EBUSY, ENOMEM."""
        argsz, flags, iova, size = request.struct(uapi.DMA_UNMAP)
        whole = bool(flags & uapi.VFIO_DMA_UNMAP_FLAG_ALL)
        dirty = bool(flags & uapi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP)
        if flags & ~_UNMAP_FLAGS or (dirty and flags & ~uapi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP):
            raise KernelError(errno.EINVAL, f"flags {flags:#x} are unknown or exclude each other")
        data = self._unmap_bitmap(request, argsz, size) if dirty else None
        update = bool(flags & uapi.VFIO_DMA_UNMAP_FLAG_VADDR)
        if update and not self._profile.update_vaddr:
            raise KernelError(errno.EBUSY, "addresses cannot be updated while a mediated device uses the container")
        if whole:
            if iova or size:
                raise KernelError(errno.EINVAL, "with ALL, address and size must be 0")
            size = _TOP
        elif not size or (size | iova) % uapi.PAGE or iova + size > _TOP:
            raise KernelError(errno.EINVAL, f"{size:#x} bytes at {iova:#x}: not whole pages, or wraps")
        found = list(self.mappings.overlapping(iova, size))
        if self.v2:
            bisected = [mapping for mapping in found if mapping.iova < iova or mapping.end > iova + size]
            if bisected:
                raise KernelError(errno.EINVAL, f"would cut the mapping at {bisected[0].iova:#x} in two")
        else:
            # The first version never cuts: it stops before a mapping that starts earlier than the wanted range.
            found = [] if found and found[0].iova < iova else found
        if update:
            return self._invalidate(request, (argsz, flags, iova), found)
        clean = () if data is None else _clean_bitmap(iova, data, found)
        for mapping in found:
            self.mappings.remove(mapping)
            self._without_address.discard(mapping.iova)
        unmapped = sum(mapping.size for mapping in found) % _TOP
        return Reply(writes=(*clean, *request.answer(uapi.DMA_UNMAP, argsz, flags, iova, unmapped).writes))

    def _invalidate(self, request: Request, head: tuple[int, int, int], found: list[Mapping]) -> Reply:
        """Take their memory from mappings, which stay. EINVAL if one has none already."""
        if any(mapping.iova in self._without_address for mapping in found):
            raise KernelError(errno.EINVAL, "a mapping there has no address already")
        self._without_address.update(mapping.iova for mapping in found)
        return request.answer(uapi.DMA_UNMAP, *head, sum(mapping.size for mapping in found) % _TOP)

    def _unmap_bitmap(self, request: Request, argsz: int, size: int) -> int:
        if argsz < uapi.DMA_UNMAP.size + uapi.BITMAP.size:
            raise KernelError(errno.EINVAL, f"argsz {argsz} has no room for a bitmap")
        pgsize, length, data = uapi.BITMAP.unpack(request.take(uapi.BITMAP.size, uapi.DMA_UNMAP.size))
        _check_bitmap(size // pgsize if pgsize else 0, length)
        if not self.tracking or pgsize != uapi.PAGE:
            raise KernelError(errno.EINVAL, f"dirty pages are not tracked, or not in pages of {pgsize}")
        return data

    def dirty_pages(self, request: Request) -> Reply:
        """Start, stop or report the tracking of dirty pages; there never are any.

        EFAULT, EINVAL, ENOMEM; EACCES in a container of version 1.
        """
        if not self.v2:
            raise KernelError(errno.EACCES, "dirty pages are tracked in type 1 v2 containers only")
        argsz, flags = request.struct(uapi.DIRTY_BITMAP)
        if flags == uapi.VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
            self.tracking = True
        elif flags == uapi.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
            self.tracking = False
        elif flags == uapi.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
            return self._dirty_bitmap(request, argsz)
        else:
            raise KernelError(errno.EINVAL, f"flags {flags:#x} are not exactly one of START, STOP and GET_BITMAP")
        return DONE

    def _dirty_bitmap(self, request: Request, argsz: int) -> Reply:
        layout = uapi.DIRTY_BITMAP_GET
        if argsz < uapi.DIRTY_BITMAP.size + layout.size:
            raise KernelError(errno.EINVAL, f"argsz {argsz} has no room for a range")
        iova, size, pgsize, length, data = layout.unpack(request.take(layout.size, uapi.DIRTY_BITMAP.size))
        if iova + size >= _TOP:
            raise KernelError(errno.EINVAL, f"{size:#x} bytes at {iova:#x} wrap")
        _check_bitmap(size // pgsize if pgsize else 0, length)
        if pgsize != uapi.PAGE or (iova | size) % uapi.PAGE or not size:
            raise KernelError(errno.EINVAL, f"{size:#x} bytes at {iova:#x} are not whole pages of {pgsize}")
        if not self.tracking:
            raise KernelError(errno.EINVAL, "dirty pages are not tracked: START first")
        found = list(self.mappings.overlapping(iova, size))
        if any(mapping.iova < iova or mapping.end > iova + size for mapping in found):
            raise KernelError(errno.EINVAL, "the range cuts a mapping in two")
        return Reply(writes=_clean_bitmap(iova, data, found))

    ioctls: ClassVar[Table[int, Callable[[Type1, Request], Reply]]] = {
        Cmd.VFIO_IOMMU_GET_INFO: get_info,
        Cmd.VFIO_IOMMU_MAP_DMA: map_dma,
        Cmd.VFIO_IOMMU_UNMAP_DMA: unmap_dma,
        Cmd.VFIO_IOMMU_DIRTY_PAGES: dirty_pages,
    }
    """The requests of a container that its backend answers, by number."""


def _switch(name: str) -> Attribute:
    def show(parameters: Parameters) -> str:
        return "Y\n" if getattr(parameters, name) else "N\n"

    def store(parameters: Parameters, text: str) -> None:
        setattr(parameters, name, kstrtobool(text))

    return Attribute(name, 0o644, show, store)


def dma_entry_limit_show(parameters: Parameters) -> str:
    """Mappings that a container can have."""
    return f"{parameters.dma_entry_limit}\n"


def dma_entry_limit_store(parameters: Parameters, text: str) -> None:
    """Change it for containers that get their IOMMU type from now on. EINVAL, ERANGE above 32 bits."""
    parameters.dma_entry_limit = kstrtoul(text, 32)


MODULE_PARAMETERS = (
    _switch("allow_unsafe_interrupts"),
    _switch("disable_hugepages"),
    Attribute("dma_entry_limit", 0o644, dma_entry_limit_show, dma_entry_limit_store),
)

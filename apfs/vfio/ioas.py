"""I/O address spaces of iommufd: mappings (drivers/iommu/iommufd/io_pagetable.c).

Nothing is pinned, and there is no hardware with page tables. So no range is reserved, and the only users of an address
space are the accesses of mediated devices. Addresses and lengths are in bytes; an address has 64 bits.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from apfs.errors import KernelError
from apfs.vfio.uapi import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

LAST = (1 << 64) - 1
"""The highest address, which is also the largest length."""
_TOP = LAST + 1
# How far the kernel aligns an address of its own choice: huge pages of s390.
_HUGE_PAGE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """Memory of a caller or a part of a file, which several areas can show (struct iopt_pages)."""

    base: int
    """Address, or offset in the file, of the first page."""
    writable: bool
    file: bool


class Slice(NamedTuple):
    """A part of some pages."""

    pages: Pages
    start: int
    """Bytes from the beginning of the pages."""
    length: int


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping (struct iopt_area)."""

    iova: int
    part: Slice
    writable: bool

    @property
    def last(self) -> int:
        """Its last address."""
        return self.iova + self.part.length - 1


class Unmapped(NamedTuple):
    """The outcome of unmapping a range."""

    length: int
    """How many bytes are no longer mapped."""
    whole: bool
    """Whether nothing is left in the range: it did not cut a mapping in two."""


class Ioas:
    """An I/O address space (struct iommufd_ioas with its io_pagetable)."""

    def __init__(self) -> None:
        self.users = 0
        """Accesses of mediated devices that are attached."""
        self._starts: list[int] = []
        self._areas: dict[int, Area] = {}
        self._allowed: list[tuple[int, int]] = []
        """Where addresses may be chosen: first and last ones, ascending; anywhere if there is none."""
        self.huge_pages = True

    # -- alignment ---------------------------------------------------------------------------------

    @property
    def alignment(self) -> int:
        """What addresses, lengths and starts must be multiples of: 1 until a device or VFIO's rules need more."""
        return PAGE if self.users or not self.huge_pages else 1

    def _check_whole_pages(self) -> None:
        for area in self._areas.values():
            if (area.iova | area.part.length | area.part.start) % PAGE:
                raise KernelError(
                    errno.EADDRINUSE, f"{area.part.length:#x} bytes at {area.iova:#x} are not whole pages"
                )

    def add_user(self) -> None:
        """Attach an access (iopt_add_access). EADDRINUSE if something that is mapped is not whole pages."""
        if self.alignment < PAGE:
            self._check_whole_pages()
        self.users += 1

    def remove_user(self) -> None:
        """Detach an access."""
        self.users -= 1

    def disable_huge_pages(self) -> None:
        """Let areas be cut from now on (iopt_disable_large_pages). EADDRINUSE as for an access."""
        if self.alignment < PAGE:
            self._check_whole_pages()
        self.huge_pages = False

    # -- areas -------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Area]:
        """Yield what is mapped, by address."""
        return (self._areas[start] for start in self._starts)

    def _overlapping(self, first: int, last: int) -> Iterator[Area]:
        start = bisect_left(self._starts, first)
        if start and self._areas[self._starts[start - 1]].last >= first:
            start -= 1
        end = bisect_left(self._starts, last + 1)
        return iter([self._areas[iova] for iova in self._starts[start:end]])

    def _insert(self, area: Area) -> None:
        self._starts.insert(bisect_left(self._starts, area.iova), area.iova)
        self._areas[area.iova] = area

    def _remove(self, area: Area) -> None:
        del self._starts[bisect_left(self._starts, area.iova)]
        del self._areas[area.iova]

    def map(self, parts: list[Slice], iova: int | None, *, writable: bool) -> int:
        """Map parts of pages, one behind the other, and return where (iopt_map_pages).

        `iova` None leaves the choice of the address to the address space. EINVAL for what is not aligned, EOVERFLOW
        behind the last address, EEXIST where something is mapped, ENOSPC, EPERM to write to what may only be read.
        """
        length = sum(part.length for part in parts)
        if length % self.alignment or not length:
            raise KernelError(errno.EINVAL, f"a length of {length:#x} is not a multiple of {self.alignment}")
        if iova is None:
            iova = self._choose(parts[0].pages.base + parts[0].start, length)
        else:
            self._check_free(iova, length)
        areas, here = [], iova
        for part in parts:
            if writable and not part.pages.writable:
                raise KernelError(errno.EPERM, "what may only be read there cannot become writable here")
            if part.start % PAGE % self.alignment:
                raise KernelError(errno.EINVAL, f"offset {part.start:#x} is not a multiple of {self.alignment}")
            areas.append(Area(here, part, writable))
            here += part.length
        for area in areas:
            self._insert(area)
        return iova

    def _check_free(self, iova: int, length: int) -> None:
        if iova % self.alignment:
            raise KernelError(errno.EINVAL, f"address {iova:#x} is not a multiple of {self.alignment}")
        if iova + length > _TOP:
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {iova:#x} end behind the last address")
        if next(self._overlapping(iova, iova + length - 1), None):
            raise KernelError(errno.EEXIST, f"something is mapped within {length:#x} bytes at {iova:#x}")

    def get(self, iova: int, length: int) -> list[Slice]:
        """Return what is mapped in a range without a gap (iopt_get_pages). EINVAL, EOVERFLOW, ENOENT."""
        if not length:
            raise KernelError(errno.EINVAL, "no length")
        last = iova + length - 1
        if last > LAST:
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {iova:#x} end behind the last address")
        parts, here = [], iova
        for area in self._overlapping(iova, last):
            if area.iova > here:
                break
            end = min(last, area.last) + 1
            parts.append(Slice(area.part.pages, area.part.start + here - area.iova, end - here))
            here = end
        if here <= last:
            raise KernelError(errno.ENOENT, f"nothing is mapped at {here:#x}")
        return parts

    def unmap(self, iova: int, length: int) -> Unmapped:
        """Unmap whole areas, up to the first that extends beyond the range (iopt_unmap_iova). EINVAL, EOVERFLOW."""
        if not length:
            raise KernelError(errno.EINVAL, "no length")
        last = iova + length - 1
        if last > LAST:
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {iova:#x} end behind the last address")
        unmapped = 0
        for area in self._overlapping(iova, last):
            if area.iova < iova or area.last > last:
                return Unmapped(unmapped, whole=False)
            self._remove(area)
            unmapped += area.part.length
        return Unmapped(unmapped, whole=True)

    def unmap_all(self) -> int:
        """Unmap everything and return how many bytes, modulo 2**64 (iopt_unmap_all)."""
        unmapped = sum(area.part.length for area in self)
        self._starts.clear()
        self._areas.clear()
        return unmapped % _TOP

    def cut(self, last: int) -> None:
        """Cut in two the area that goes on behind an address (iopt_cut_iova). EINVAL where none can begin."""
        area = next(self._overlapping(last, last), None)
        if area is None or last in (area.iova, area.last):
            return
        part, left = area.part, last + 1 - area.iova
        if (last + 1) % self.alignment or (part.start + left) % self.alignment:
            raise KernelError(errno.EINVAL, f"no mapping can begin at {last + 1:#x}")
        self._remove(area)
        self._insert(Area(area.iova, part._replace(length=left), area.writable))
        right = Slice(part.pages, part.start + left, part.length - left)
        self._insert(Area(last + 1, right, area.writable))

    # -- choosing addresses ------------------------------------------------------------------------

    def allow(self, ranges: list[tuple[int, int]]) -> None:
        """Say where addresses may be chosen: ranges of first and last ones, or anywhere (iopt_set_allow_iova)."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and merged[-1][1] + 1 == first:
                merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
        self._allowed = merged

    def _choose(self, address: int, length: int) -> int:
        """Return a free place for memory at an address of the caller (iopt_alloc_iova): never 0, nor the last page.

        It is aligned as length and address are, which lets huge pages be used.
        """
        if length >= LAST // 2:
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes are too many to look for a place")
        alignment = min(1 << (length - 1).bit_length(), _HUGE_PAGE)
        if address:
            alignment = min(alignment, address & -address)
        if alignment < self.alignment:
            raise KernelError(errno.EINVAL, f"neither {address:#x} nor {length:#x} is a multiple of {self.alignment}")
        offset = address % PAGE

        def fit(first: int, last: int) -> int | None:
            if last - first < length - 1:
                return None
            start = (first + alignment - 1) // alignment * alignment | offset
            return start if start + length - 1 <= last else None

        for first, last in self._allowed or [(0, LAST)]:
            start = fit(max(first, PAGE), min(last, LAST - PAGE))
            if start is None:
                continue
            for hole in self._holes(start, min(last, LAST - PAGE)):
                found = fit(*hole)
                if found is not None:
                    return found
        raise KernelError(errno.ENOSPC, f"there is no room for {length:#x} bytes")

    def _holes(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        for area in self._overlapping(first, last):
            if area.iova > first:
                yield first, area.iova - 1
            first = area.last + 1
        if first <= last:
            yield first, last

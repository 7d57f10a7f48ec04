"""iommufd, `/dev/iommu`, as far as a VMM needs it for a mediated device (drivers/iommu/iommufd).

Address spaces record what is mapped; nothing is pinned. An iommufd can also play the container of a group.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from apfs.errors import KernelError
from apfs.vfio import uapi
from apfs.vfio.request import DONE, IoctlFile, Reply, Request, Write
from apfs.vfio.type1 import Mappings, Type1
from apfs.vfio.uapi import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apfs.journal.log import Journal
    from apfs.vfio.uapi import CStruct

_TOP = 1 << 64
_LAST = _TOP - 1
_MAP_FLAGS = uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_WRITEABLE | uapi.IOMMU_IOAS_MAP_READABLE


class Ioas:
    """An I/O address space."""

    def __init__(self) -> None:
        self.mappings = Mappings()
        self.users = 0
        """Accesses that are attached to it."""

    def place(self, length: int) -> int:
        """Return the lowest free address for a mapping; ENOSPC."""
        iova = 0
        for mapping in self.mappings.overlapping(0, _TOP):
            if mapping.iova - iova >= length:
                return iova
            iova = mapping.end
        if iova + length > _TOP:
            raise KernelError(errno.ENOSPC, f"no room for {length:#x} bytes")
        return iova


class Access:
    """What a bound mediated device is to an iommufd: something that may use one address space."""

    def __init__(self, iommufd: Iommufd) -> None:
        self._iommufd = iommufd
        self.id = iommufd.add(self)
        self._ioas: Ioas | None = None

    def attach(self, pt_id: int) -> None:
        """Use an address space instead of the one before. ENOENT if there is none of that id."""
        ioas = self._iommufd.ioas(pt_id)
        self.detach()
        self._ioas = ioas
        ioas.users += 1

    def detach(self) -> None:
        """Use none any more."""
        if self._ioas is not None:
            self._ioas.users -= 1
            self._ioas = None

    def destroy(self) -> None:
        """Detach, and give the id back."""
        self.detach()
        self._iommufd.discard(self.id)


class Iommufd(IoctlFile):
    """An open iommufd with its objects."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal, "/dev/iommu")
        self._objects: dict[int, Ioas | Access] = {}
        self._groups: list[object] = []
        self._compatible: Type1 | None = None

    def add(self, item: Ioas | Access) -> int:
        """Give an object the lowest free id, from 1."""
        number = next(number for number in range(1, len(self._objects) + 2) if number not in self._objects)
        self._objects[number] = item
        return number

    def discard(self, number: int) -> None:
        """Take an object out."""
        del self._objects[number]

    def ioas(self, number: int) -> Ioas:
        """Return an address space; ENOENT if the id is unknown or another kind of object."""
        found = self._objects.get(number)
        if not isinstance(found, Ioas):
            raise KernelError(errno.ENOENT, f"no address space has the id {number}")
        return found

    # -- the container that it can play ------------------------------------------------------------

    def attach(self, group: object) -> None:
        """Take a group in, as a container would; it is usable at once, without SET_IOMMU."""
        self._groups.append(group)
        if self._compatible is None:
            self._compatible = Type1(v2=True)

    def detach(self, group: object) -> None:
        """Let a group go."""
        self._groups.remove(group)

    def check_ready(self) -> None:
        """Do nothing: there is always an address space."""

    def _compat(self) -> Type1:
        if self._compatible is None:
            raise KernelError(errno.ENODEV, "no group was ever put into this iommufd")
        return self._compatible

    def _get_api_version(self, _request: Request) -> Reply:
        """Return 0."""
        return Reply(uapi.VFIO_API_VERSION)

    def _check_extension(self, request: Request) -> Reply:
        """Return 1 for types 1 and 3 and for UNMAP_ALL, else 0."""
        return Reply(int(request.arg in (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU, uapi.VFIO_UNMAP_ALL)))

    def _set_iommu(self, request: Request) -> Reply:
        """Accept types 1 and 3. ENODEV without a group; EINVAL for other types."""
        self._compat()
        if request.arg not in (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU):
            raise KernelError(errno.EINVAL, f"no IOMMU type {request.arg}")
        return DONE

    def _get_info(self, request: Request) -> Reply:
        """Report page sizes and capabilities of the address space that groups use."""
        return self._compat().get_info(request)

    def _map_dma(self, request: Request) -> Reply:
        """Record a mapping in the address space that groups use."""
        return self._compat().map_dma(request)

    def _unmap_dma(self, request: Request) -> Reply:
        """Forget mappings of it."""
        return self._compat().unmap_dma(request)

    # -- its own requests --------------------------------------------------------------------------

    def _read(self, request: Request, layout: CStruct) -> tuple[int, ...]:
        """Copy a struct in: EFAULT, EINVAL if it is too small, E2BIG for bytes behind it that are not zero."""
        (size,) = uapi.U32.unpack(request.take(uapi.U32.size))
        if size < layout.size:
            raise KernelError(errno.EINVAL, f"size {size} is less than the {layout.size} bytes of {layout.name}")
        if size > uapi.PAGE:
            raise KernelError(errno.E2BIG, f"size {size} is more than a page")
        values = layout.unpack(request.take(layout.size))
        if any(request.memory[layout.size : size]):
            raise KernelError(errno.E2BIG, f"bytes behind the {layout.size} of {layout.name} are not zero")
        request.take(size)
        return values

    def _ioas_alloc(self, request: Request) -> Reply:
        """Make an address space and return its id. EOPNOTSUPP for flags."""
        size, flags, _ = self._read(request, uapi.IOAS_ALLOC)
        if flags:
            raise KernelError(errno.EOPNOTSUPP, f"unknown flags {flags:#x}")
        return request.answer(uapi.IOAS_ALLOC, size, flags, self.add(Ioas()))

    def _ioas_iova_ranges(self, request: Request) -> Reply:
        """Report the usable ranges: everything, in one range. EMSGSIZE, with the number, if there is no room."""
        layout = uapi.IOAS_IOVA_RANGES
        size, ioas_id, room, reserved, address, _ = self._read(request, layout)
        if reserved:
            raise KernelError(errno.EOPNOTSUPP, "a reserved field is not zero")
        ioas = self.ioas(ioas_id)
        alignment = uapi.PAGE if ioas.users else 1
        answer = Write(request.arg, layout.pack(size, ioas_id, 1, reserved, address, alignment))
        if not room:
            return Reply(-errno.EMSGSIZE, (answer,), why="no room for one range")
        return Reply(writes=(Write(address, uapi.IOVA_RANGE.pack(0, _LAST)), answer))

    def _ioas_map(self, request: Request) -> Reply:
        """Record a mapping of memory. EOPNOTSUPP, ENOENT, EINVAL, EEXIST, ENOSPC."""
        layout = uapi.IOAS_MAP
        size, flags, ioas_id, reserved, start, length, iova = self._read(request, layout)
        if reserved:
            raise KernelError(errno.EOPNOTSUPP, "a reserved field is not zero")
        iova = self._map(flags, ioas_id, start, length, iova)
        return request.answer(layout, size, flags, ioas_id, reserved, start, length, iova)

    def _ioas_map_file(self, request: Request) -> Reply:
        """Record a mapping of a file. As for memory, and EBADF."""
        layout = uapi.IOAS_MAP_FILE
        size, flags, ioas_id, number, start, length, iova = self._read(request, layout)
        if request.descriptor is None:
            raise KernelError(errno.EBADF, f"descriptor {number} is not open")
        iova = self._map(flags, ioas_id, start, length, iova)
        return request.answer(layout, size, flags, ioas_id, number, start, length, iova)

    def _map(self, flags: int, ioas_id: int, start: int, length: int, iova: int) -> int:
        if flags & ~_MAP_FLAGS:
            raise KernelError(errno.EOPNOTSUPP, f"unknown flags {flags:#x}")
        ioas = self.ioas(ioas_id)
        fixed = bool(flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA)
        if not fixed:
            iova = ioas.place(length)
        if not length or (start | length | iova) % uapi.PAGE:
            raise KernelError(errno.EINVAL, f"{length:#x} bytes at {iova:#x} from {start:#x} are not whole pages")
        if iova + length > _TOP or start + length > _TOP:
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {iova:#x} from {start:#x} wrap")
        if next(ioas.mappings.overlapping(iova, length), None):
            raise KernelError(errno.EEXIST, f"{length:#x} bytes at {iova:#x} overlap a mapping")
        ioas.mappings.add(iova, length)
        return iova

    def _ioas_unmap(self, request: Request) -> Reply:
        """Forget whole mappings and report how many bytes; everything for address 0 and the largest length. ENOENT."""
        size, ioas_id, iova, length = self._read(request, uapi.IOAS_UNMAP)
        ioas = self.ioas(ioas_id)
        everything = iova == 0 and length == _LAST
        if not length or iova + length > _TOP:
            raise KernelError(errno.EOVERFLOW if length else errno.EINVAL, f"{length:#x} bytes at {iova:#x}")
        found = list(ioas.mappings.overlapping(iova, length))
        if not found and not everything:
            raise KernelError(errno.ENOENT, f"nothing is mapped in {length:#x} bytes at {iova:#x}")
        if any(mapping.iova < iova or mapping.end > iova + length for mapping in found):
            raise KernelError(errno.ENOENT, "the range cuts a mapping in two")
        for mapping in found:
            ioas.mappings.remove(mapping)
        unmapped = sum(mapping.size for mapping in found) % _TOP
        return request.answer(uapi.IOAS_UNMAP, size, ioas_id, iova, unmapped)

    def _destroy(self, request: Request) -> Reply:
        """Destroy an object. ENOENT, EBUSY while it is in use."""
        _, number = self._read(request, uapi.DESTROY)
        found = self._objects.get(number)
        if found is None:
            raise KernelError(errno.ENOENT, f"no object has the id {number}")
        if not isinstance(found, Ioas) or found.users:
            raise KernelError(errno.EBUSY, f"object {number} is in use")
        self.discard(number)
        return DONE

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        Cmd.VFIO_GET_API_VERSION: _get_api_version,
        Cmd.VFIO_CHECK_EXTENSION: _check_extension,
        Cmd.VFIO_SET_IOMMU: _set_iommu,
        Cmd.VFIO_IOMMU_GET_INFO: _get_info,
        Cmd.VFIO_IOMMU_MAP_DMA: _map_dma,
        Cmd.VFIO_IOMMU_UNMAP_DMA: _unmap_dma,
        Cmd.IOMMU_DESTROY: _destroy,
        Cmd.IOMMU_IOAS_ALLOC: _ioas_alloc,
        Cmd.IOMMU_IOAS_IOVA_RANGES: _ioas_iova_ranges,
        Cmd.IOMMU_IOAS_MAP: _ioas_map,
        Cmd.IOMMU_IOAS_UNMAP: _ioas_unmap,
        Cmd.IOMMU_IOAS_MAP_FILE: _ioas_map_file,
    }

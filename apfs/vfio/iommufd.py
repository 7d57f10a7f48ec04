"""iommufd, `/dev/iommu`: address spaces for devices, and a replacement for a group's container.

Source: drivers/iommu/iommufd. Nothing on an emulated host is behind an IOMMU: the only objects are address spaces and
the accesses of mediated devices. Requests for a device behind an IOMMU, a hardware page table or a virtual IOMMU fail
with ENOENT.
"""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from apfs.errors import KernelError
from apfs.kernel.profile import DEFAULT
from apfs.vfio import uapi
from apfs.vfio.ioas import LAST, Ioas, Pages, Slice
from apfs.vfio.iommu_hardware import HARDWARE, require_zero
from apfs.vfio.request import DONE, IoctlFile, Reply, Request, Write
from apfs.vfio.uapi import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apfs.journal.log import Journal
    from apfs.kernel.profile import Profile

_MAP_FLAGS = uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_WRITEABLE | uapi.IOMMU_IOAS_MAP_READABLE
_COMPATIBLE = (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU, uapi.VFIO_UNMAP_ALL)


class Access:
    """A bound mediated device, as an iommufd sees it: something that may use one address space."""

    def __init__(self, iommufd: Iommufd) -> None:
        self._iommufd = iommufd
        self.id = iommufd.add(self)
        self._ioas: Ioas | None = None

    def attach(self, pt_id: int) -> None:
        """Use an address space instead of the one before (iommufd_access_change_ioas).

        ENOENT if there is none of that id, EADDRINUSE if something that is mapped in it is not whole pages.
        """
        self.use(self._iommufd.ioas(pt_id))

    def use(self, ioas: Ioas) -> None:
        """Use an address space. EADDRINUSE."""
        if ioas is not self._ioas:
            ioas.add_user()
            self.detach()
            self._ioas = ioas

    def detach(self) -> None:
        """Stop using one."""
        if self._ioas is not None:
            self._ioas.remove_user()
            self._ioas = None

    def destroy(self) -> None:
        """Detach, and give the id back."""
        self.detach()
        self._iommufd.discard(self.id)


class Iommufd(IoctlFile):
    """An open iommufd with its objects."""

    def __init__(self, journal: Journal, profile: Profile = DEFAULT) -> None:
        super().__init__(journal, "/dev/iommu")
        self._profile = profile
        self._objects: dict[int, Ioas | Access] = {}
        self._groups: list[object] = []
        self._vfio_ioas: Ioas | None = None
        """The address space that groups, and the requests of a container, use."""
        self._account_mm = False

    def add(self, item: Ioas | Access) -> int:
        """Give an object the lowest free id, from 1."""
        number = next(number for number in range(1, len(self._objects) + 2) if number not in self._objects)
        self._objects[number] = item
        return number

    def discard(self, number: int) -> None:
        """Remove an object."""
        del self._objects[number]

    def has(self, number: int) -> bool:
        """Whether an object has the id."""
        return number in self._objects

    def ioas(self, number: int) -> Ioas:
        """Return an address space; ENOENT if the id is unknown or another kind of object."""
        found = self._objects.get(number)
        if not isinstance(found, Ioas):
            raise KernelError(errno.ENOENT, f"no address space has the id {number}")
        return found

    # -- acting as a container ---------------------------------------------------------------------

    def attach(self, group: object) -> None:
        """Attach a group, as a container would; it is usable at once, without SET_IOMMU."""
        self._groups.append(group)
        if self._vfio_ioas is None:
            self._vfio_ioas = Ioas()
            self.add(self._vfio_ioas)

    def detach(self, group: object) -> None:
        """Detach a group."""
        self._groups.remove(group)

    def check_ready(self) -> None:
        """Do nothing: whether there is an address space is checked when the device is opened."""

    def enter(self) -> Access:
        """Let the device of a group use the address space. ENODEV if it was taken away, EADDRINUSE."""
        access = Access(self)
        try:
            access.use(self._compat())
        except KernelError:
            access.destroy()
            raise
        return access

    def _compat(self) -> Ioas:
        if self._vfio_ioas is None:
            raise KernelError(errno.ENODEV, "no address space for groups: IOMMU_VFIO_IOAS or VFIO_GROUP_SET_CONTAINER")
        return self._vfio_ioas

    def _get_api_version(self, _request: Request) -> Reply:
        """Return 0."""
        return Reply(uapi.VFIO_API_VERSION)

    def _check_extension(self, request: Request) -> Reply:
        """Return 1 for types 1 and 3, UNMAP_ALL and DMA_CC, else 0. ENODEV for DMA_CC without an address space."""
        if request.arg == uapi.VFIO_DMA_CC_IOMMU:
            self._compat()
            return Reply(1)
        return Reply(int(request.arg in _COMPATIBLE))

    def _set_iommu(self, request: Request) -> Reply:
        """Accept types 1, whose mappings can be cut, and 3. EINVAL for others, then ENODEV; EADDRINUSE."""
        if request.arg not in (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU):
            raise KernelError(errno.EINVAL, f"no IOMMU type {request.arg}")
        ioas = self._compat()
        if request.arg == uapi.VFIO_TYPE1_IOMMU:
            ioas.disable_huge_pages()
        return DONE

    def _get_info(self, request: Request) -> Reply:
        """Report page sizes, dma_avail and the range of addresses of the address space that groups use.

        Each capability is written if there is room for it, and its number of the next one if there is for its padding.
        """
        info, least = uapi.TYPE1_INFO, uapi.TYPE1_INFO.offsets["cap_offset"]
        argsz, *_ = info.unpack(request.take(least).ljust(info.size, b"\0"))
        if argsz < least:
            raise KernelError(errno.EINVAL, f"argsz {argsz} is less than {least}")
        self._compat()
        padding = -uapi.CAP_DMA_AVAIL.size % 8 if self._profile.caps_aligned else 0
        second = info.size + uapi.CAP_DMA_AVAIL.size + padding
        total = second + uapi.CAP_IOVA_RANGE.size + uapi.IOVA_RANGE.size
        writes = []
        if argsz >= second - padding:
            following = second if argsz >= second else 0
            chain = uapi.CAP_DMA_AVAIL.pack(uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, following, (1 << 32) - 1)
            writes.append(Write(request.arg + info.size, chain))
        if argsz >= total:
            chain = uapi.CAP_IOVA_RANGE.pack(uapi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, 0, 1, 0)
            writes.append(Write(request.arg + second, chain + uapi.IOVA_RANGE.pack(0, LAST)))
        flags = uapi.VFIO_IOMMU_INFO_PGSIZES | uapi.VFIO_IOMMU_INFO_CAPS
        offset = info.size if argsz >= total else 0
        answer = info.pack(total, flags, LAST - uapi.PAGE + 1, offset, 0)
        writes.append(Write(request.arg, answer[: min(argsz, info.size)]))
        return Reply(writes=tuple(writes))

    def _map_dma(self, request: Request) -> Reply:
        """Map memory in the address space that groups use. EFAULT, EINVAL, ENODEV, EOVERFLOW, EEXIST."""
        _, flags, address, iova, size = request.struct(uapi.DMA_MAP)
        if flags & ~(uapi.VFIO_DMA_MAP_FLAG_READ | uapi.VFIO_DMA_MAP_FLAG_WRITE):
            raise KernelError(errno.EINVAL, f"unknown flags {flags:#x}")
        writable = bool(flags & uapi.VFIO_DMA_MAP_FLAG_WRITE)
        self._compat().map([_memory(address, size, writable=writable)], iova, writable=writable)
        return DONE

    def _unmap_dma(self, request: Request) -> Reply:
        """Unmap a range, or everything, and report how many bytes. EFAULT, EINVAL, ENODEV, EOVERFLOW, ENOENT."""
        argsz, flags, iova, size = request.struct(uapi.DMA_UNMAP)
        if flags & ~uapi.VFIO_DMA_UNMAP_FLAG_ALL:
            raise KernelError(errno.EINVAL, f"unknown flags {flags:#x}")
        ioas = self._compat()
        number, why = 0, ""
        unmapped = 0
        if flags:
            if iova or size:
                raise KernelError(errno.EINVAL, "everything has neither address nor size")
            unmapped = ioas.unmap_all()
        else:
            if not ioas.huge_pages:
                for last in [iova + size - 1, *([iova - 1] if iova else [])]:
                    ioas.cut(last & LAST)
            try:
                unmapped, whole = ioas.unmap(iova, size)
            except KernelError as error:
                number, why = error.errno, error.why
            else:
                if not whole:
                    number, why = errno.ENOENT, "the range cuts a mapping in two"
                elif not unmapped and not self._profile.iommufd_unmap_nothing:
                    number, why = errno.ENOENT, "nothing is mapped there"
        # What was unmapped is written back even if something was wrong.
        answer = Write(request.arg, uapi.DMA_UNMAP.pack(argsz, flags, iova, unmapped))
        return Reply(-number, (answer,), why=why)

    # -- address spaces ----------------------------------------------------------------------------

    def _ioas_alloc(self, request: Request) -> Reply:
        """Create an address space and return its id. EOPNOTSUPP for flags."""
        size, flags, _ = request.sized(uapi.IOAS_ALLOC)
        require_zero(flags, "flags")
        return request.answer(uapi.IOAS_ALLOC, size, flags, self.add(Ioas()))

    def _ioas_iova_ranges(self, request: Request) -> Reply:
        """Report the usable ranges: everything, in one range. EMSGSIZE, with the number, if there is no room."""
        layout = uapi.IOAS_IOVA_RANGES
        size, ioas_id, room, reserved, address, _ = request.sized(layout)
        require_zero(reserved, "a reserved field")
        alignment = self.ioas(ioas_id).alignment
        answer = Write(request.arg, layout.pack(size, ioas_id, 1, reserved, address, alignment))
        if not room:
            return Reply(-errno.EMSGSIZE, (answer,), why="no room for one range")
        return Reply(writes=(Write(address, uapi.IOVA_RANGE.pack(0, LAST)), answer))

    def _ioas_allow_iovas(self, request: Request) -> Reply:
        """Set the ranges of addresses to choose from. EOPNOTSUPP, ENOENT, EFAULT; EINVAL if empty or overlapping."""
        _, ioas_id, count, reserved, _ = request.sized(uapi.IOAS_ALLOW_IOVAS)
        require_zero(reserved, "a reserved field")
        ioas = self.ioas(ioas_id)
        ranges: list[tuple[int, int]] = []
        wrong = None
        size = uapi.IOVA_RANGE.size
        for place in range(count):
            piece = request.pointed[place * size : (place + 1) * size]
            if len(piece) < size:
                wrong = KernelError(errno.EFAULT, f"range {place} cannot be read")
                break
            first, last = uapi.IOVA_RANGE.unpack(piece)
            if first >= last:
                wrong = KernelError(errno.EINVAL, f"range {first:#x} to {last:#x} is empty")
                break
            ranges.append((first, last))
        # The kernel looks for overlaps with each range that it reads. All at once it is the same, and not the square.
        for (_, before), (first, last) in pairwise(sorted(ranges)):
            if first <= before:
                raise KernelError(errno.EINVAL, f"range {first:#x} to {last:#x} overlaps another")
        if wrong:
            raise wrong
        ioas.allow(ranges)
        return DONE

    def _check_map(self, flags: int, *numbers: int) -> bool:
        """Check what all requests that map have in common; return whether the mapping is to be writable."""
        require_zero(flags & ~_MAP_FLAGS, "flags")
        if LAST in numbers:
            raise KernelError(errno.EOVERFLOW, "addresses and lengths end before 2**64 - 1")
        access = flags & (uapi.IOMMU_IOAS_MAP_WRITEABLE | uapi.IOMMU_IOAS_MAP_READABLE)
        if not access and self._profile.iommufd_access_needed:
            raise KernelError(errno.EINVAL, "neither READABLE nor WRITEABLE")
        return bool(flags & uapi.IOMMU_IOAS_MAP_WRITEABLE)

    def _ioas_map(self, request: Request) -> Reply:
        """Map memory. EOPNOTSUPP, EOVERFLOW, EINVAL, ENOENT, EEXIST, ENOSPC."""
        layout = uapi.IOAS_MAP
        size, flags, ioas_id, reserved, start, length, iova = request.sized(layout)
        require_zero(reserved, "a reserved field")
        writable = self._check_map(flags, length, iova)
        ioas = self.ioas(ioas_id)
        part = _memory(start, length, writable=writable)
        placed = ioas.map([part], _wanted(flags, iova), writable=writable)
        return request.answer(layout, size, flags, ioas_id, reserved, start, length, placed)

    def _ioas_map_file(self, request: Request) -> Reply:
        """Map a part of a file. Errors as for memory, and EBADF."""
        layout = uapi.IOAS_MAP_FILE
        size, flags, ioas_id, number, start, length, iova = request.sized(layout)
        writable = self._check_map(flags, length, iova)
        ioas = self.ioas(ioas_id)
        missing = KernelError(errno.EBADF, f"descriptor {number} is not open")
        if request.descriptor is None and not self._profile.iommufd_length_first:
            raise missing
        if not length:
            raise KernelError(errno.EINVAL, "no length")
        if start + length - 1 > LAST:
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes from {start:#x} on are beyond any file")
        if request.descriptor is None:
            raise missing
        pages = Pages(start - start % uapi.PAGE, writable, file=True)
        part = Slice(pages, start % uapi.PAGE, length)
        placed = ioas.map([part], _wanted(flags, iova), writable=writable)
        return request.answer(layout, size, flags, ioas_id, number, start, length, placed)

    def _ioas_copy(self, request: Request) -> Reply:
        """Map memory of another address space. Errors as for memory, and EPERM to write to read-only memory."""
        layout = uapi.IOAS_COPY
        size, flags, to_id, from_id, length, to_iova, from_iova = request.sized(layout)
        writable = self._check_map(flags, length, to_iova, from_iova)
        parts = self.ioas(from_id).get(from_iova, length)
        placed = self.ioas(to_id).map(parts, _wanted(flags, to_iova), writable=writable)
        return request.answer(layout, size, flags, to_id, from_id, length, placed, from_iova)

    def _ioas_unmap(self, request: Request) -> Reply:
        """Unmap whole mappings and report how many bytes; everything for address 0 and the largest length.

        ENOENT, EOVERFLOW, EINVAL.
        """
        size, ioas_id, iova, length = request.sized(uapi.IOAS_UNMAP)
        ioas = self.ioas(ioas_id)
        if iova == 0 and length == LAST:
            unmapped = ioas.unmap_all()
        elif LAST in (iova, length):
            raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {iova:#x}")
        else:
            unmapped, whole = ioas.unmap(iova, length)
            if not whole or not unmapped:
                raise KernelError(errno.ENOENT, f"no whole mappings in {length:#x} bytes at {iova:#x}")
        return request.answer(uapi.IOAS_UNMAP, size, ioas_id, iova, unmapped)

    def _ioas_change_process(self, request: Request) -> Reply:
        """Charge another process for mapped memory. EINVAL unless only files are mapped."""
        _, reserved = request.sized(uapi.IOAS_CHANGE_PROCESS)
        require_zero(reserved, "a reserved field")
        spaces = [item for item in self._objects.values() if isinstance(item, Ioas)]
        if any(not area.part.pages.file for ioas in spaces for area in ioas):
            raise KernelError(errno.EINVAL, "memory of the old process is mapped: only files can change hands")
        return DONE

    def _vfio_ioas_request(self, request: Request) -> Reply:
        """Get, set or clear the address space that groups use. EOPNOTSUPP, ENODEV, ENOENT."""
        size, ioas_id, operation, reserved = request.sized(uapi.VFIO_IOAS)
        require_zero(reserved, "a reserved field")
        if operation == uapi.IOMMU_VFIO_IOAS_GET:
            used = self._compat()
            number = next(number for number, item in self._objects.items() if item is used)
            return request.answer(uapi.VFIO_IOAS, size, number, operation, reserved)
        if operation == uapi.IOMMU_VFIO_IOAS_SET:
            self._vfio_ioas = self.ioas(ioas_id)
        elif operation == uapi.IOMMU_VFIO_IOAS_CLEAR:
            self._vfio_ioas = None
        else:
            raise KernelError(errno.EOPNOTSUPP, f"no operation {operation}")
        return DONE

    def _option(self, request: Request) -> Reply:
        """Get or set who is charged for pinned memory, or whether an address space uses huge pages.

        EOPNOTSUPP, ENOENT, EINVAL; EBUSY to change who is charged once there are objects, EADDRINUSE as for an access.
        """
        layout = uapi.OPTION
        _, option, operation, reserved, number, value = request.sized(layout)
        require_zero(reserved, "a reserved field")
        if option == uapi.IOMMU_OPTION_RLIMIT_MODE:
            require_zero(number, "the id of an object")
        elif option != uapi.IOMMU_OPTION_HUGE_PAGES:
            raise KernelError(errno.EOPNOTSUPP, f"no option {option}")
        ioas = self.ioas(number) if option == uapi.IOMMU_OPTION_HUGE_PAGES else None
        if operation == uapi.IOMMU_OPTION_OP_GET:
            value = int(self._account_mm if ioas is None else ioas.huge_pages)
        elif operation == uapi.IOMMU_OPTION_OP_SET:
            self._set_option(ioas, value)
        else:
            raise KernelError(errno.EOPNOTSUPP, f"no operation {operation}")
        return Reply(writes=(Write(request.arg + layout.offsets["val64"], uapi.U64.pack(value)),))

    def _set_option(self, ioas: Ioas | None, value: int) -> None:
        if ioas is None and self._objects:
            raise KernelError(errno.EBUSY, "there are objects already")
        if value not in (0, 1):
            raise KernelError(errno.EINVAL, f"{value} is neither 0 nor 1")
        if ioas is None:
            self._account_mm = bool(value)
        elif value:
            ioas.huge_pages = True
        else:
            ioas.disable_huge_pages()

    def _destroy(self, request: Request) -> Reply:
        """Destroy an object. ENOENT, EBUSY while it is in use."""
        _, number = request.sized(uapi.DESTROY)
        found = self._objects.get(number)
        if found is None:
            raise KernelError(errno.ENOENT, f"no object has the id {number}")
        if not isinstance(found, Ioas) or found.users:
            raise KernelError(errno.EBUSY, f"object {number} is in use")
        if found is self._vfio_ioas:
            self._vfio_ioas = None
        self.discard(number)
        return DONE

    def _carry_out(self, request: Request) -> Reply:
        if self._profile.iommufd_last < request.cmd & _NUMBER <= max(_OWN):
            return super().unknown(request)
        return super()._carry_out(request)

    def unknown(self, request: Request) -> Reply:
        """Answer ENOTTY; for a number in iommufd's own range EFAULT first, if no size can be read.

        The range is that of the low byte: direction and size, which are 0 in all that it knows, are looked at later.
        """
        if request.cmd & _NUMBER in _OWN:
            request.take(uapi.U32.size)
        return super().unknown(request)

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        Cmd.VFIO_GET_API_VERSION: _get_api_version,
        Cmd.VFIO_CHECK_EXTENSION: _check_extension,
        Cmd.VFIO_SET_IOMMU: _set_iommu,
        Cmd.VFIO_IOMMU_GET_INFO: _get_info,
        Cmd.VFIO_IOMMU_MAP_DMA: _map_dma,
        Cmd.VFIO_IOMMU_UNMAP_DMA: _unmap_dma,
        Cmd.IOMMU_DESTROY: _destroy,
        Cmd.IOMMU_IOAS_ALLOC: _ioas_alloc,
        Cmd.IOMMU_IOAS_ALLOW_IOVAS: _ioas_allow_iovas,
        Cmd.IOMMU_IOAS_COPY: _ioas_copy,
        Cmd.IOMMU_IOAS_IOVA_RANGES: _ioas_iova_ranges,
        Cmd.IOMMU_IOAS_MAP: _ioas_map,
        Cmd.IOMMU_IOAS_UNMAP: _ioas_unmap,
        Cmd.IOMMU_OPTION: _option,
        Cmd.IOMMU_VFIO_IOAS: _vfio_ioas_request,
        Cmd.IOMMU_IOAS_MAP_FILE: _ioas_map_file,
        Cmd.IOMMU_IOAS_CHANGE_PROCESS: _ioas_change_process,
        **HARDWARE,
    }


_NUMBER = 0xFF
_OWN = range(Cmd.IOMMU_DESTROY & _NUMBER, (Cmd.IOMMU_HW_QUEUE_ALLOC & _NUMBER) + 1)


def _wanted(flags: int, iova: int) -> int | None:
    return iova if flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA else None


def _memory(address: int, length: int, *, writable: bool) -> Slice:
    """Return memory of the caller. EOVERFLOW, EINVAL."""
    if address + length > LAST:
        raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {address:#x} are beyond any memory")
    if not 0 < length <= LAST - uapi.PAGE:
        raise KernelError(errno.EINVAL, f"a length of {length:#x}")
    return Slice(Pages(address - address % uapi.PAGE, writable, file=False), address % uapi.PAGE, length)

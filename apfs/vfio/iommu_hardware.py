"""iommufd requests that need hardware: devices behind an IOMMU, page tables, virtual IOMMUs.

An emulated host has none of these, so every lookup fails. Checks that Linux makes before the lookup are made here in
the same order (drivers/iommu/iommufd/{device,hw_pagetable,viommu,eventq}.c).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from apfs.errors import KernelError
from apfs.vfio import uapi
from apfs.vfio.ioas import LAST
from apfs.vfio.request import Reply, Request, Write
from apfs.vfio.uapi import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ENTRIES_MOST = 1 << 19
"""Entries of an invalidation, and events of a queue of events."""


class Objects(Protocol):
    """What these requests need of an iommufd."""

    def has(self, number: int) -> bool:
        """Whether an object has the id."""


def require_zero(value: int, what: str) -> None:
    """Refuse what must be zero, as new fields and flags must be until a kernel knows them. EOPNOTSUPP."""
    if value:
        raise KernelError(errno.EOPNOTSUPP, f"not supported: {what}")


def _missing(what: str, number: int) -> KernelError:
    return KernelError(errno.ENOENT, f"no {what} has the id {number}: nothing here is behind an IOMMU")


def _get_hw_info(_iommufd: Objects, request: Request) -> Reply:
    """Find no device: ENOENT, after EOPNOTSUPP for unknown flags."""
    _, flags, device, _, _, _, _, *reserved, _ = request.sized(uapi.HW_INFO, least="out_capabilities")
    require_zero(flags & ~uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE, "flags")
    require_zero(any(reserved), "a reserved field")
    raise _missing("device", device)


def _hwpt_alloc(_iommufd: Objects, request: Request) -> Reply:
    """Find no device: ENOENT, after EOPNOTSUPP, and EINVAL for data without a type or the other way round."""
    _, _, device, _, _, reserved, kind, length, _ = request.sized(uapi.HWPT_ALLOC, least="data_type")
    require_zero(reserved, "a reserved field")
    if bool(kind) != bool(length):
        raise KernelError(errno.EINVAL, f"{length} bytes of data of type {kind}")
    raise _missing("device", device)


def _hwpt_set_dirty_tracking(_iommufd: Objects, request: Request) -> Reply:
    """Find no page table: ENOENT, after EOPNOTSUPP for unknown flags."""
    _, flags, number, _ = request.sized(uapi.HWPT_SET_DIRTY_TRACKING)
    require_zero(flags & ~uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE, "flags")
    raise _missing("page table", number)


def _hwpt_get_dirty_bitmap(_iommufd: Objects, request: Request) -> Reply:
    """Find no page table: ENOENT, after EOPNOTSUPP for unknown flags."""
    _, number, flags, reserved, *_ = request.sized(uapi.HWPT_GET_DIRTY_BITMAP)
    require_zero(flags & ~uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or reserved, "flags")
    raise _missing("page table", number)


def _hwpt_invalidate(iommufd: Objects, request: Request) -> Reply:
    """Invalidate nothing: ENOENT for an unknown id, EINVAL for other objects than page tables."""
    layout = uapi.HWPT_INVALIDATE
    size, number, address, kind, entry, count, reserved = request.sized(layout)
    answer = Write(request.arg, layout.pack(size, number, address, kind, entry, 0, reserved))
    if reserved:
        return Reply(-errno.EOPNOTSUPP, (answer,), why="a reserved field is not zero")
    if count and (not address or not 0 < entry <= uapi.PAGE or count > _ENTRIES_MOST):
        return Reply(-errno.EINVAL, (answer,), why=f"{count} entries of {entry} bytes at {address:#x}")
    known = iommufd.has(number)
    why = f"object {number} is no page table" if known else f"no object has the id {number}"
    return Reply(-(errno.EINVAL if known else errno.ENOENT), (answer,), why=why)


def _fault_queue_alloc(_iommufd: Objects, request: Request) -> Reply:
    """Refuse with EOPNOTSUPP: no device here has page faults to be told of."""
    request.sized(uapi.FAULT_ALLOC)
    raise KernelError(errno.EOPNOTSUPP, "no device of an emulated host has page faults")


def _viommu_alloc(_iommufd: Objects, request: Request) -> Reply:
    """Find no device: ENOENT, after EOPNOTSUPP for flags and the default type."""
    _, flags, kind, device, *_ = request.sized(uapi.VIOMMU_ALLOC, least="data_len")
    require_zero(flags or not kind, "flags, or the lack of a type")
    raise _missing("device", device)


def _vdevice_alloc(_iommufd: Objects, request: Request) -> Reply:
    """Find no virtual IOMMU: ENOENT."""
    _, number, *_ = request.sized(uapi.VDEVICE_ALLOC)
    raise _missing("virtual IOMMU", number)


def _veventq_alloc(_iommufd: Objects, request: Request) -> Reply:
    """Find no virtual IOMMU: ENOENT, after EOPNOTSUPP, and EINVAL for a bad depth."""
    _, flags, number, kind, depth, _, _, reserved = request.sized(uapi.VEVENTQ_ALLOC)
    require_zero(flags or reserved or not kind, "flags, or the lack of a type")
    if not 0 < depth <= _ENTRIES_MOST:
        raise KernelError(errno.EINVAL, f"a queue of {depth} events")
    raise _missing("virtual IOMMU", number)


def _hw_queue_alloc(_iommufd: Objects, request: Request) -> Reply:
    """Find no virtual IOMMU: ENOENT, after EOPNOTSUPP, and EINVAL and EOVERFLOW for a bad length."""
    _, flags, number, kind, _, _, iova, length = request.sized(uapi.HW_QUEUE_ALLOC)
    require_zero(flags or not kind, "flags, or the lack of a type")
    if not length:
        raise KernelError(errno.EINVAL, "no length")
    if iova + length - 1 > LAST:
        raise KernelError(errno.EOVERFLOW, f"{length:#x} bytes at {iova:#x}")
    raise _missing("virtual IOMMU", number)


HARDWARE: Mapping[int, Callable[..., Reply]] = {
    Cmd.IOMMU_HWPT_ALLOC: _hwpt_alloc,
    Cmd.IOMMU_GET_HW_INFO: _get_hw_info,
    Cmd.IOMMU_HWPT_SET_DIRTY_TRACKING: _hwpt_set_dirty_tracking,
    Cmd.IOMMU_HWPT_GET_DIRTY_BITMAP: _hwpt_get_dirty_bitmap,
    Cmd.IOMMU_HWPT_INVALIDATE: _hwpt_invalidate,
    Cmd.IOMMU_FAULT_QUEUE_ALLOC: _fault_queue_alloc,
    Cmd.IOMMU_VIOMMU_ALLOC: _viommu_alloc,
    Cmd.IOMMU_VDEVICE_ALLOC: _vdevice_alloc,
    Cmd.IOMMU_VEVENTQ_ALLOC: _veventq_alloc,
    Cmd.IOMMU_HW_QUEUE_ALLOC: _hw_queue_alloc,
}

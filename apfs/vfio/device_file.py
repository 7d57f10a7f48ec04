"""An open VFIO device: the ioctls of a device file, regardless of how it was opened.

Source: drivers/vfio/vfio_main.c (features), device_cdev.c, and vfio_ap_mdev_ioctl in vfio_ap_ops.c.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from apfs.errors import KernelError
from apfs.vfio import uapi
from apfs.vfio.device import IRQ_NAMES
from apfs.vfio.fsm import State
from apfs.vfio.iommufd import Access, Iommufd
from apfs.vfio.request import DONE, EventFd, IoctlFile, NewFile, Reply, Request, Write
from apfs.vfio.uapi import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apfs.journal.log import Journal
    from apfs.vfio.device import MigrationOps, VfioDevice

_IRQ_SET_FLAGS = uapi.VFIO_IRQ_SET_DATA_TYPE_MASK | uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK
_VALUE_SIZES = {
    uapi.VFIO_IRQ_SET_DATA_NONE: 0,
    uapi.VFIO_IRQ_SET_DATA_BOOL: 1,
    uapi.VFIO_IRQ_SET_DATA_EVENTFD: 4,
}
_U32_MAX = (1 << 32) - 1
_FEATURE_FLAGS = (
    uapi.VFIO_DEVICE_FEATURE_MASK
    | uapi.VFIO_DEVICE_FEATURE_GET
    | uapi.VFIO_DEVICE_FEATURE_SET
    | uapi.VFIO_DEVICE_FEATURE_PROBE
)
_FEATURE_DATA = 8


class DeviceFile(IoctlFile):
    """An open file of a device."""

    # Reading and writing at an offset give EINVAL as well, not ESPIPE.
    seekable = True
    is_device = True

    def __init__(self, journal: Journal, device: VfioDevice, path: str) -> None:
        super().__init__(journal, path)
        self.device = device

    def unknown(self, request: Request) -> Reply:
        """Answer EOPNOTSUPP, as the driver does; PCI and graphics requests are among these."""
        raise KernelError(errno.EOPNOTSUPP, f"vfio_ap has no ioctl {request.cmd:#x}")

    def _get_info(self, request: Request) -> Reply:
        """Report an AP device that can be reset, without regions, with two interrupts. EFAULT, EINVAL."""
        argsz, *_ = request.struct(uapi.DEVICE_INFO)
        flags = uapi.VFIO_DEVICE_FLAGS_AP | uapi.VFIO_DEVICE_FLAGS_RESET
        return request.answer(uapi.DEVICE_INFO, argsz, flags, 0, self.device.core.profile.irqs)

    def _get_region_info(self, request: Request) -> Reply:
        """Refuse: there are no regions. EINVAL by VFIO itself (vfio_get_region_info), in old kernels by the driver."""
        if self.device.core.profile.region_info == "EOPNOTSUPP":
            return self.unknown(request)
        raise KernelError(errno.EINVAL, "vfio_ap has no regions")

    def _get_irq_info(self, request: Request) -> Reply:
        """Report that interrupts 0 (request) and 1 (configuration changed) take one eventfd each. EFAULT, EINVAL."""
        self._check_irqs(request)
        argsz, _, index, _ = request.struct(uapi.IRQ_INFO)
        self._check_irq(index)
        return request.answer(uapi.IRQ_INFO, argsz, uapi.VFIO_IRQ_INFO_EVENTFD, index, 1)

    def _set_irqs(self, request: Request) -> Reply:
        """Register the eventfd of an interrupt, or (-1) drop it. EFAULT, EINVAL, EBADF."""
        self._check_irqs(request)
        argsz, flags, index, start, count = request.struct(uapi.IRQ_SET)
        self._check_irq(index)
        data = flags & uapi.VFIO_IRQ_SET_DATA_TYPE_MASK
        if flags & ~_IRQ_SET_FLAGS or data not in _VALUE_SIZES:
            raise KernelError(errno.EINVAL, f"flags {flags:#x} are unknown or have not exactly one type of data")
        if count >= _U32_MAX - start or start >= 1 or start + count > 1:
            raise KernelError(errno.EINVAL, f"interrupt {index} has no {count} vectors from {start} on")
        if argsz - uapi.IRQ_SET.size < count * _VALUE_SIZES[data]:
            raise KernelError(errno.EINVAL, f"argsz {argsz} has no room for {count} values")
        if not flags & uapi.VFIO_IRQ_SET_ACTION_TRIGGER:
            raise KernelError(errno.EINVAL, "interrupts can be triggered, neither masked nor unmasked")
        if data != uapi.VFIO_IRQ_SET_DATA_EVENTFD:
            raise KernelError(errno.EINVAL, "interrupts take an eventfd; the descriptor -1 drops it")
        (number,) = uapi.S32.unpack(request.take(uapi.S32.size, uapi.IRQ_SET.size))
        trigger = request.descriptor
        if number < -1:
            raise KernelError(errno.EINVAL, f"{number} is no descriptor")
        if number == -1:
            self.device.set_trigger(index, None)
            return DONE
        if trigger is None:
            raise KernelError(errno.EBADF, f"descriptor {number} is not open")
        if not isinstance(trigger, EventFd):
            raise KernelError(errno.EINVAL, f"descriptor {number} is not an eventfd")
        self.device.set_trigger(index, trigger)
        return DONE

    def _check_irqs(self, request: Request) -> None:
        if not self.device.core.profile.irqs:
            self.unknown(request)

    def _check_irq(self, index: int) -> None:
        irqs = IRQ_NAMES[: self.device.core.profile.irqs]
        if index >= len(irqs):
            raise KernelError(errno.EINVAL, f"no interrupt {index}: there are {dict(enumerate(irqs))}")

    def _reset(self, _request: Request) -> Reply:
        """Reset all queues of the device. EIO if the reset of one fails."""
        self.device.ops.reset()
        return DONE

    def _feature(self, request: Request) -> Reply:
        """Probe, get or set a feature: MIGRATION, MIG_DEVICE_STATE, MIG_DATA_SIZE. EFAULT, EINVAL, ENOTTY, EPERM."""
        if not self.device.core.profile.feature_ioctl:
            return self.unknown(request)
        argsz, flags = request.struct(uapi.FEATURE)
        index = flags & uapi.VFIO_DEVICE_FEATURE_MASK
        get, put = bool(flags & uapi.VFIO_DEVICE_FEATURE_GET), bool(flags & uapi.VFIO_DEVICE_FEATURE_SET)
        probe = bool(flags & uapi.VFIO_DEVICE_FEATURE_PROBE)
        if flags & ~_FEATURE_FLAGS:
            raise KernelError(errno.EINVAL, f"unknown flags {flags:#x}")
        if get and put and not probe:
            raise KernelError(errno.EINVAL, "GET and SET exclude each other")
        self._check_known(index)
        getter, setter = _FEATURES[index]
        if (get and getter is None) or (put and setter is None):
            raise KernelError(errno.EINVAL, f"feature {index} cannot be {'set' if put else 'got'}")
        if probe:
            return DONE
        act = getter if get else setter if put else None
        if act is None:
            raise KernelError(errno.EINVAL, "neither GET nor SET")
        if argsz < uapi.FEATURE.size + _FEATURE_DATA:
            raise KernelError(errno.EINVAL, f"argsz {argsz} has no room for the data of feature {index}")
        return act(self, request)

    def _check_known(self, index: int) -> None:
        kernel = self.device.core.profile
        if index in _NO_LOGGING and kernel.dma_logging:
            raise KernelError(errno.ENOTTY, "the driver does not track dirty pages")
        if index == uapi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 and kernel.precopy_info_v2:
            # VFIO itself knows this one, and asks what the driver's migration can do.
            raise KernelError(errno.EINVAL, f"no feature {index}")
        unsized = index == uapi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE and not kernel.mig_data_size
        if index not in _FEATURES or unsized:
            raise KernelError(_UNKNOWN_FEATURE[kernel.unknown_feature], f"no feature {index}")
        if self.device.ops.migration is None:
            raise KernelError(errno.ENOTTY, "the driver has no live migration")

    @property
    def _migration(self) -> MigrationOps:
        migration = self.device.ops.migration
        assert migration is not None  # noqa: S101 -- checked before any feature that needs it
        return migration

    def _get_migration(self, request: Request) -> Reply:
        return _data(request, uapi.FEATURE_MIGRATION.pack(self._migration.flags))

    def _get_state(self, request: Request) -> Reply:
        request.take(uapi.FEATURE_MIG_STATE.size, uapi.FEATURE.size)
        return _data(request, uapi.FEATURE_MIG_STATE.pack(self._migration.state, -1))

    def _set_state(self, request: Request) -> Reply:
        layout = uapi.FEATURE_MIG_STATE
        target, _ = layout.unpack(request.take(layout.size, uapi.FEATURE.size))
        # The state that was asked for is written back even if it was not reached.
        write = Write(request.arg + uapi.FEATURE.size, layout.pack(target, -1))
        try:
            file = self._migration.set_state(target)
        except KernelError as error:
            return Reply(-error.errno, (write,), why=error.why)
        if file is None:
            return Reply(writes=(write,))
        saving = self._migration.state == State.STOP_COPY
        at = write.address + layout.offsets["data_fd"]
        return Reply(writes=(write,), file=NewFile(file.take(), file.inode, saving, not saving, at))

    def _get_data_size(self, request: Request) -> Reply:
        return _data(request, uapi.FEATURE_MIG_DATA_SIZE.pack(self._migration.data_size()))

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        Cmd.VFIO_DEVICE_GET_INFO: _get_info,
        Cmd.VFIO_DEVICE_GET_REGION_INFO: _get_region_info,
        Cmd.VFIO_DEVICE_GET_IRQ_INFO: _get_irq_info,
        Cmd.VFIO_DEVICE_SET_IRQS: _set_irqs,
        Cmd.VFIO_DEVICE_RESET: _reset,
        uapi.VFIO_DEVICE_FEATURE: _feature,
    }

    features: ClassVar[Mapping[int, tuple[Callable[..., Reply] | None, Callable[..., Reply] | None]]] = {
        uapi.VFIO_DEVICE_FEATURE_MIGRATION: (_get_migration, None),
        uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: (_get_state, _set_state),
        uapi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: (_get_data_size, None),
    }
    """Features by number, with their getters and setters; the data of each has eight bytes."""


_FEATURES = DeviceFile.features
_UNKNOWN_FEATURE = {"EINVAL": errno.EINVAL, "ENOTTY": errno.ENOTTY}
_NO_LOGGING = (
    uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
    uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
)
"""Features that need a table of operations which the driver does not have."""


class CdevFile(DeviceFile):
    """An open device node `/dev/vfio/devices/vfioK`, which does nothing until it is bound to an iommufd."""

    def __init__(self, journal: Journal, device: VfioDevice) -> None:
        super().__init__(journal, device, f"/dev/vfio/devices/vfio{device.index}")
        self._access: Access | None = None
        device.cdev_files += 1
        device.core.references += 2

    def on_close(self) -> None:
        """Unbind and close the device."""
        if self._access is not None:
            self.device.bound = False
            self.device.close()
            self._access.destroy()
            self._access = None
        self.device.cdev_files -= 1
        self.device.core.references -= 2

    def _carry_out(self, request: Request) -> Reply:
        if self._access is None and request.cmd != Cmd.VFIO_DEVICE_BIND_IOMMUFD:
            raise KernelError(errno.EINVAL, "not bound: VFIO_DEVICE_BIND_IOMMUFD first")
        return super()._carry_out(request)

    def _bind_iommufd(self, request: Request) -> Reply:
        """Bind the device to an iommufd and open it. EFAULT, EINVAL, EBUSY, EBADF, EBADFD, EPERM."""
        argsz, flags, number, _ = request.struct(uapi.BIND_IOMMUFD)
        if flags or number < 0:
            raise KernelError(errno.EINVAL, f"unknown flags {flags:#x}, or {number} is no descriptor")
        if self.device.group.opener is not None:
            raise KernelError(errno.EBUSY, f"group {self.device.group.number} is open")
        if self._access is not None:
            raise KernelError(errno.EINVAL, "bound already")
        iommufd = request.descriptor
        if iommufd is None:
            raise KernelError(errno.EBADF, f"descriptor {number} is not open")
        if not isinstance(iommufd, Iommufd):
            raise KernelError(errno.EBADFD, f"descriptor {number} is not an iommufd")
        if self.device.open_count:
            raise KernelError(errno.EINVAL, "another file of the device is bound")
        self.device.open(self.device.core.vm_of(iommufd))
        self.device.bound = True
        self._access = Access(iommufd)
        return request.answer(uapi.BIND_IOMMUFD, argsz, flags, number, self._access.id)

    def _attach(self, request: Request) -> Reply:
        """Attach the device to an address space, replacing the previous one. EFAULT, EINVAL, EOPNOTSUPP, ENOENT."""
        assert self._access is not None  # noqa: S101 -- checked before any request but BIND
        argsz, flags, pt_id = request.struct(uapi.ATTACH_PT)
        self._check_pasid(flags, argsz, uapi.ATTACH_PT)
        self._access.attach(pt_id)
        return request.answer(uapi.ATTACH_PT, argsz, flags, pt_id)

    def _detach(self, request: Request) -> Reply:
        """Detach the device, whether or not it is attached. EFAULT, EINVAL, EOPNOTSUPP."""
        assert self._access is not None  # noqa: S101 -- checked before any request but BIND
        argsz, flags = request.struct(uapi.DETACH_PT)
        self._check_pasid(flags, argsz, uapi.DETACH_PT)
        self._access.detach()
        return DONE

    def _check_pasid(self, flags: int, argsz: int, layout: uapi.CStruct) -> None:
        known = uapi.VFIO_DEVICE_ATTACH_PASID if self.device.core.profile.attach_pasid else 0
        if flags & ~known or (flags and argsz < layout.size + uapi.U32.size):
            raise KernelError(errno.EINVAL, f"unknown flags {flags:#x}, or argsz {argsz} has no room for a PASID")
        if flags:
            raise KernelError(errno.EOPNOTSUPP, "vfio_ap knows no PASIDs")

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        **DeviceFile.ioctls,
        Cmd.VFIO_DEVICE_BIND_IOMMUFD: _bind_iommufd,
        Cmd.VFIO_DEVICE_ATTACH_IOMMUFD_PT: _attach,
        Cmd.VFIO_DEVICE_DETACH_IOMMUFD_PT: _detach,
    }


def _data(request: Request, data: bytes) -> Reply:
    """Write the data of a feature back, behind its header."""
    return Reply(writes=(Write(request.arg + uapi.FEATURE.size, data),))

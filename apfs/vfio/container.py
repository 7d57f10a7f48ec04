"""Containers and groups: `/dev/vfio/vfio` and `/dev/vfio/N` (drivers/vfio/container.c, group.c)."""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, ClassVar

from apfs.errors import KernelError
from apfs.vfio import uapi
from apfs.vfio.device_file import DeviceFile
from apfs.vfio.iommufd import Iommufd
from apfs.vfio.request import DONE, IoctlFile, NewFile, Reply, Request, descriptor_number
from apfs.vfio.type1 import Type1
from apfs.vfio.uapi import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apfs.journal.log import Journal
    from apfs.vfio.device import VfioCore, VfioDevice, VfioGroup

_ALWAYS = (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU, uapi.VFIO_UNMAP_ALL)


def _by_backend(act: Callable[[Type1, Request], Reply]) -> Callable[[Container, Request], Reply]:
    """Return a handler that has the container's backend carry out a request; EINVAL before SET_IOMMU."""

    @functools.wraps(act)
    def forward(container: Container, request: Request) -> Reply:
        return act(container.get_backend(), request)

    return forward


class Container(IoctlFile):
    """An open container. It goes on without its file as long as groups are in it."""

    def __init__(self, core: VfioCore) -> None:
        super().__init__(core.journal, "/dev/vfio/vfio")
        self._core = core
        core.references += 1
        self._groups: list[GroupFile] = []
        self.backend: Type1 | None = None

    def on_close(self) -> None:
        """Close the file."""
        self._core.references -= 1

    def attach(self, group: GroupFile) -> None:
        """Attach a group."""
        self._groups.append(group)

    def detach(self, group: GroupFile) -> None:
        """Detach a group; with the last one go the backend and its mappings."""
        self._groups.remove(group)
        if not self._groups and self.backend is not None:
            self.backend = None
            self._core.backends -= 1

    def check_ready(self) -> None:
        """Make sure that devices can be opened; EINVAL before SET_IOMMU."""
        self.get_backend()

    def _get_api_version(self, _request: Request) -> Reply:
        """Return 0, the only version."""
        return Reply(uapi.VFIO_API_VERSION)

    def _check_extension(self, request: Request) -> Reply:
        """Return 1 for types 1 and 3 and for UNMAP_ALL, for DMA_CC once an IOMMU type is set, else 0.

        Old kernels have UPDATE_VADDR too. Without the module vfio_iommu_type1: 0.
        """
        known = request.arg in _ALWAYS
        if request.arg == uapi.VFIO_UPDATE_VADDR:
            known = self._core.profile.update_vaddr
        supported = known and self._core.has_type1()
        if request.arg == uapi.VFIO_DMA_CC_IOMMU:
            supported = self.backend is not None
        return Reply(int(supported))

    def _set_iommu(self, request: Request) -> Reply:
        """Set type 1 or 1v2. EINVAL without a group or the second time, ENODEV for a type without a backend."""
        if not self._groups or self.backend is not None:
            raise KernelError(errno.EINVAL, "no group is attached to the container, or it has an IOMMU type already")
        if not self._core.has_type1():
            raise KernelError(errno.ENODEV, "no backend: the module vfio_iommu_type1 is not loaded")
        if request.arg not in (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU):
            # UNMAP_ALL is an extension of the type 1 backend, but not a type that can be chosen.
            number = errno.EINVAL if request.arg == uapi.VFIO_UNMAP_ALL else errno.ENODEV
            raise KernelError(number, f"no backend for IOMMU type {request.arg}")
        self.backend = Type1(
            v2=request.arg == uapi.VFIO_TYPE1v2_IOMMU,
            limit=self._core.type1.dma_entry_limit,
            profile=self._core.profile,
        )
        self._core.backends += 1
        return DONE

    def get_backend(self) -> Type1:
        """Return the backend; EINVAL before SET_IOMMU."""
        if self.backend is None:
            raise KernelError(errno.EINVAL, "the container has no IOMMU type: VFIO_SET_IOMMU first")
        return self.backend

    def unknown(self, request: Request) -> Reply:
        """Answer EINVAL before SET_IOMMU, ENOTTY afterwards."""
        self.get_backend()
        return super().unknown(request)

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        Cmd.VFIO_GET_API_VERSION: _get_api_version,
        Cmd.VFIO_CHECK_EXTENSION: _check_extension,
        Cmd.VFIO_SET_IOMMU: _set_iommu,
        **{number: _by_backend(act) for number, act in Type1.ioctls.items()},
    }


class GroupFile(IoctlFile):
    """An open group. Its file stays open while its device is open and uses a container; an iommufd does not hold it."""

    def __init__(self, journal: Journal, group: VfioGroup) -> None:
        """Open a group; ENODEV if it has gone, EBUSY if it is open or its device is bound to an iommufd."""
        super().__init__(journal, f"/dev/vfio/{group.number}")
        group.claim(self)
        group.revoke = self._revoke
        group.core.references += 2
        self._group = group
        self._container: Container | Iommufd | None = None
        self._references = 1

    def on_close(self) -> None:
        """Close the group's own file."""
        self._release()

    def _enter(self, container: Container | Iommufd) -> Callable[[], None]:
        """Let the open device use a container or an iommufd; return what ends that (vfio_group_use_container)."""
        if isinstance(container, Iommufd):
            return container.enter().destroy
        self._references += 1
        return self._release

    def _release(self) -> None:
        self._references -= 1
        if not self._references:
            self._leave()
            self._group.core.references -= 2
            self._group.opener = None

    def _revoke(self) -> None:
        """Leave the container, but no iommufd, as the device is removed (vfio_device_remove_group)."""
        if isinstance(self._container, Container):
            self._leave()

    def _leave(self) -> None:
        if self._container is not None:
            self._container.detach(self)
            self._container = None

    def _device(self) -> VfioDevice:
        if self._group.device is None:
            raise KernelError(errno.ENODEV, f"the device of group {self._group.number} was removed")
        return self._group.device

    def _get_status(self, request: Request) -> Reply:
        """Report VIABLE, and CONTAINER_SET when it is."""
        argsz, _ = request.struct(uapi.GROUP_STATUS)
        self._device()
        flags = uapi.VFIO_GROUP_FLAGS_VIABLE
        if self._container is not None:
            flags |= uapi.VFIO_GROUP_FLAGS_CONTAINER_SET
        return request.answer(uapi.GROUP_STATUS, argsz, flags)

    def _set_container(self, request: Request) -> Reply:
        """Put the group into a container, or an iommufd that acts as one. EFAULT, EBADF, EINVAL, ENODEV, EBADFD."""
        number = descriptor_number(request)
        container = request.descriptor
        if container is None:
            raise KernelError(errno.EBADF, f"descriptor {number} is not open")
        if self._container is not None:
            raise KernelError(errno.EINVAL, "the group has a container already")
        self._device()
        if not isinstance(container, Container | Iommufd):
            error = errno.EBADFD if self._device().core.profile.iommufd else errno.EINVAL
            raise KernelError(error, f"descriptor {number} is neither a VFIO container nor an iommufd")
        container.attach(self)
        self._container = container
        return DONE

    def _unset_container(self, _request: Request) -> Reply:
        """Take the group out. EINVAL without a container, EBUSY while its device is open and uses one.

        An iommufd can be removed anyway: the device keeps using it.
        """
        if self._container is None:
            raise KernelError(errno.EINVAL, "the group has no container")
        if self._references > 1:
            raise KernelError(errno.EBUSY, "the device of the group is open")
        self._leave()
        return DONE

    def _ready_container(self) -> Container | Iommufd:
        if self._container is None:
            raise KernelError(errno.EINVAL, "the group has no container: VFIO_GROUP_SET_CONTAINER first")
        self._container.check_ready()
        return self._container

    def _get_device_fd(self, request: Request) -> Reply:
        """Open the device of that name, a UUID, and return its descriptor. EFAULT, EINVAL, ENODEV, EMFILE, EPERM."""
        end = request.memory.find(b"\0") + 1
        text, nul, _ = request.look(end or len(request.memory)).partition(b"\0")
        if not nul or len(text) >= uapi.PAGE:
            raise KernelError(
                errno.EINVAL if len(text) >= uapi.PAGE else errno.EFAULT, "the name has no end within a readable page"
            )
        device = self._device()
        name_first = device.core.profile.group_name_first
        container = None if name_first else self._ready_container()
        if text.decode("latin-1") != device.name:
            why = f"group {self._group.number} has the device {device.name}, not {text.decode('latin-1')!r}"
            raise KernelError(errno.ENODEV, why)
        if request.full:
            raise KernelError(errno.EMFILE, "the caller has no descriptor left: close some, or raise RLIMIT_NOFILE")
        container = container or self._ready_container()
        device.open(device.core.vm_of(container))
        if device.open_count == 1:
            try:
                device.leave = self._enter(container)
            except KernelError:
                device.close()
                raise
        return Reply(file=NewFile(GroupDeviceFile(self._journal, device), "vfio-device"))

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        Cmd.VFIO_GROUP_GET_STATUS: _get_status,
        Cmd.VFIO_GROUP_SET_CONTAINER: _set_container,
        Cmd.VFIO_GROUP_UNSET_CONTAINER: _unset_container,
        Cmd.VFIO_GROUP_GET_DEVICE_FD: _get_device_fd,
    }


class GroupDeviceFile(DeviceFile):
    """A device file that came from a group; it is open from the start."""

    def __init__(self, journal: Journal, device: VfioDevice) -> None:
        super().__init__(journal, device, device.name)
        device.core.references += 1

    def on_close(self) -> None:
        """Close the device once; the last close lets go of the container or iommufd."""
        self.device.core.references -= 1
        self.device.close()
        if not self.device.open_count:
            self.device.leave()

    def _bind_iommufd(self, _request: Request) -> Reply:
        """Refuse with EINVAL: a device of a group cannot be bound."""
        raise KernelError(errno.EINVAL, "a device file that came from a group cannot be bound to an iommufd")

    ioctls: ClassVar[Mapping[int, Callable[..., Reply]]] = {
        **DeviceFile.ioctls,
        Cmd.VFIO_DEVICE_BIND_IOMMUFD: _bind_iommufd,
    }

"""What a VMM does, call by call: ioctls by number, structs by layout.

Written from linux/vfio.h and linux/iommufd.h, and sharing nothing with apfs: the system's interpreter can run it inside
`apfs exec`. Where the calls go is for subclasses of `Vmm`: to a kernel (tests/sandbox/programs/libc.py), or to a host
in the process of the test (tests/vfio/program.py).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

U = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
SECOND = "22222222-2222-4222-8222-222222222222"
MATRIX = "/sys/devices/vfio_ap/matrix"
CONSOLE = "/ctl/console"
GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B69, 0x3B6A
DEVICE_GET_INFO, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, DEVICE_RESET = 0x3B6B, 0x3B6D, 0x3B6E, 0x3B6F
DEVICE_GET_REGION_INFO = 0x3B6C
DEVICE_FEATURE = 0x3B75
IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, IOMMU_DIRTY_PAGES = 0x3B70, 0x3B71, 0x3B72, 0x3B75
DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_DETACH_IOMMUFD_PT = 0x3B76, 0x3B77, 0x3B78
IOMMU_DESTROY, IOAS_ALLOC, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP = 0x3B80, 0x3B81, 0x3B84, 0x3B85, 0x3B86
IOAS_MAP_FILE = 0x3B8F
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
STOP, RUNNING, STOP_COPY, RESUMING = 1, 2, 3, 4


def name_of(error: OSError) -> str:
    """Return the name of an error's number."""
    return errno.errorcode[error.errno or 0]


def outcome_of(call: Callable[[], object]) -> str:
    """Return the name of the errno that a call ends with, `ok` for none."""
    try:
        call()
    except OSError as error:
        return name_of(error)
    return "ok"


class Vmm:
    """A program that speaks VFIO. What a subclass has to know comes first; all refusals are `OSError`."""

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        """Return a new descriptor."""
        raise NotImplementedError

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        raise NotImplementedError

    def eventfd(self) -> int:
        """Return a new eventfd that does not block."""
        raise NotImplementedError

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """Make an ioctl with a number, or with an address where nothing can be read."""
        raise NotImplementedError

    def transfer(self, fd: int, request: int, data: bytes) -> tuple[int, bytes]:
        """Make an ioctl with a struct in memory; return its value or (negative) errno, and the struct afterwards."""
        raise NotImplementedError

    def write(self, path: str, text: str) -> None:
        """Write a text with one write(2)."""
        raise NotImplementedError

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory."""
        raise NotImplementedError

    def readlink(self, path: str) -> str:
        """Return the text of a link."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------------

    def value(self, fd: int, request: int, data: bytes) -> int:
        """Make an ioctl with a struct in memory and return its value."""
        value, _ = self.transfer(fd, request, data)
        if value < 0:
            raise OSError(-value, os.strerror(-value))
        return value

    def call(self, fd: int, request: int, data: bytes) -> bytes:
        """Make an ioctl with a struct in memory; return it as it is afterwards."""
        value, after = self.transfer(fd, request, data)
        if value < 0:
            raise OSError(-value, os.strerror(-value))
        return after

    def outcome(self, fd: int, request: int, arg: int | bytes = 0) -> str:
        """Return the name of the errno that a call ends with, `ok` for none."""
        if isinstance(arg, bytes):
            return outcome_of(lambda: self.value(fd, request, arg))
        return outcome_of(lambda: self.ioctl(fd, request, arg))

    def tried(self, fd: int, request: int, data: bytes) -> tuple[str, bytes]:
        """Return how a call ends, and the struct afterwards."""
        value, after = self.transfer(fd, request, data)
        return errno.errorcode[-value] if value < 0 else "ok", after

    def refused(self, path: str, text: str) -> str:
        """Return the name of the errno that writing a text ends with, `ok` for none."""
        return outcome_of(lambda: self.write(path, text))

    def opened(self, path: str) -> int | str:
        """Return a new descriptor, or the name of the errno."""
        try:
            return self.open(path)
        except OSError as error:
            return name_of(error)

    def create(self, uuid: str = U, adapters: tuple[int, ...] = (), domains: tuple[int, ...] = ()) -> str:
        """Create a mediated device and return the path of its group."""
        self.write(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", uuid)
        for adapter in adapters:
            self.write("/sys/bus/ap/apmask", f"-{adapter}")
            self.write(f"{MATRIX}/{uuid}/assign_adapter", str(adapter))
        for domain in domains:
            self.write(f"{MATRIX}/{uuid}/assign_domain", str(domain))
        return self.group_of(uuid)

    def guest(self) -> None:
        """Create a device with one queue, 05.0047."""
        self.create(adapters=(5,), domains=(0x47,))

    def group_of(self, uuid: str = U) -> str:
        """Return the path of a device's group."""
        return f"/dev/vfio/{self.readlink(f'/sys/bus/mdev/devices/{uuid}/iommu_group').rpartition('/')[2]}"

    def node_of(self, uuid: str = U) -> str:
        """Return the path of a device's node."""
        (name,) = self.ls(f"/sys/bus/mdev/devices/{uuid}/vfio-dev")
        return f"/dev/vfio/devices/{name}"

    def remove(self, uuid: str = U) -> str:
        """Remove a mediated device; return the name of the errno, `ok` for none."""
        return self.refused(f"/sys/bus/mdev/devices/{uuid}/remove", "1")


class Device:
    """A device opened through a container."""

    fd: int

    def __init__(self, vmm: Vmm, uuid: str = U, container: int | None = None) -> None:
        self.vmm = vmm
        self.group = vmm.open(vmm.group_of(uuid))
        self.container = vmm.open("/dev/vfio/vfio") if container is None else container
        try:
            vmm.call(self.group, GROUP_SET_CONTAINER, struct.pack("=i", self.container))
            if container is None:
                vmm.ioctl(self.container, SET_IOMMU, 3)
            self.fd = self.another_fd(uuid)
        except OSError:
            vmm.close(self.group)
            raise

    def another_fd(self, uuid: str = U) -> int:
        """Return a (further) descriptor of the device."""
        return self.vmm.value(self.group, GROUP_GET_DEVICE_FD, uuid.encode() + b"\0")

    def close(self) -> None:
        """Close everything."""
        for fd in (self.fd, self.group, self.container):
            self.vmm.close(fd)

    def outcome(self, request: int, arg: int | bytes = 0) -> str:
        """Return the name of the errno that a call of the device ends with, `ok` for none."""
        return self.vmm.outcome(self.fd, request, arg)

    def set_state(self, state: int) -> int:
        """Set a migration state and return data_fd."""
        answer = self.vmm.call(self.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, SET | 2, state, 99))
        fd: int = struct.unpack("=IIIi", answer)[3]
        return fd

    def state(self) -> int:
        """Return the migration state."""
        answer = self.vmm.call(self.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, GET | 2, 0, 0))
        state: int = struct.unpack("=IIIi", answer)[2]
        return state

    def data_size(self) -> int:
        """Return the size of the stream that would be made now."""
        answer = self.vmm.call(self.fd, DEVICE_FEATURE, struct.pack("=IIQ", 16, GET | 9, 0))
        size: int = struct.unpack("=IIQ", answer)[2]
        return size

    def eventfd(self, index: int) -> int:
        """Register a new eventfd for an interrupt and return it."""
        fd = self.vmm.eventfd()
        self.set_irq(index, fd)
        return fd

    def set_irq(self, index: int, fd: int) -> None:
        """Register an eventfd, or drop it (-1)."""
        self.vmm.call(self.fd, DEVICE_SET_IRQS, struct.pack("=5Ii", 24, 4 | 32, index, 0, 1, fd))


class Cdev(Device):
    """A device opened through its node and an iommufd."""

    def __init__(self, vmm: Vmm, uuid: str = U) -> None:
        self.vmm = vmm
        self.fd = vmm.open(vmm.node_of(uuid))
        self.iommufd = vmm.open("/dev/iommu")
        self.id = struct.unpack("=IIiI", vmm.call(self.fd, DEVICE_BIND_IOMMUFD, self.bind()))[3]
        ioas = struct.unpack("=3I", vmm.call(self.iommufd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0)))[2]
        vmm.call(self.fd, DEVICE_ATTACH_IOMMUFD_PT, struct.pack("=3I", 12, 0, ioas))

    def bind(self) -> bytes:
        """Return the argument of BIND_IOMMUFD."""
        return struct.pack("=IIiI", 16, 0, self.iommufd, 0)

    def close(self) -> None:
        """Close everything."""
        self.vmm.close(self.fd)
        self.vmm.close(self.iommufd)

"""A VFIO client in Python, for scripts that run inside `apfs exec`: ioctls by number, structs by offset.

Written from linux/vfio.h, and sharing nothing with apfs: it runs with the system's interpreter.
"""

import ctypes
import errno
import mmap
import os
import struct
from pathlib import Path

U = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
MATRIX = "/sys/devices/vfio_ap/matrix"
GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B69, 0x3B6A
DEVICE_GET_INFO, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, DEVICE_RESET = 0x3B6B, 0x3B6D, 0x3B6E, 0x3B6F
DEVICE_FEATURE = 0x3B75
IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, IOMMU_DIRTY_PAGES = 0x3B70, 0x3B71, 0x3B72, 0x3B75
DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_DETACH_IOMMUFD_PT = 0x3B76, 0x3B77, 0x3B78
IOMMU_DESTROY, IOAS_ALLOC, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP = 0x3B80, 0x3B81, 0x3B84, 0x3B85, 0x3B86
IOAS_MAP_FILE = 0x3B8F
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
STOP, RUNNING, STOP_COPY, RESUMING = 1, 2, 3, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def ioctl(fd: int, request: int, arg: int | None = 0) -> int:
    """Call ioctl(2) with an integer or an address; raise OSError."""
    result: int = _libc.ioctl(fd, request, arg)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(fd: int, request: int, data: bytes) -> bytes:
    """Call ioctl(2) with a struct; return it as it is afterwards."""
    buffer = ctypes.create_string_buffer(data, len(data))
    ioctl(fd, request, ctypes.addressof(buffer))
    return buffer.raw


def outcome(fd: int, request: int, arg: int | bytes = 0) -> str:
    """Return the name of the errno that a call ends with, `ok` for none."""
    try:
        if isinstance(arg, bytes):
            call(fd, request, arg)
        else:
            ioctl(fd, request, arg)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def write(path: str, text: str) -> None:
    """Write a text with one write(2)."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def create(uuid: str = U, adapters: tuple[int, ...] = (), domains: tuple[int, ...] = ()) -> str:
    """Create a mediated device and return the path of its group."""
    write(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", uuid)
    for adapter in adapters:
        write("/sys/bus/ap/apmask", f"-{adapter}")
        write(f"{MATRIX}/{uuid}/assign_adapter", str(adapter))
    for domain in domains:
        write(f"{MATRIX}/{uuid}/assign_domain", str(domain))
    return group_of(uuid)


def group_of(uuid: str = U) -> str:
    """Return the path of a device's group."""
    return f"/dev/vfio/{Path(f'/sys/bus/mdev/devices/{uuid}/iommu_group').readlink().name}"


def node_of(uuid: str = U) -> str:
    """Return the path of a device's node."""
    (entry,) = Path(f"/sys/bus/mdev/devices/{uuid}/vfio-dev").iterdir()
    return f"/dev/vfio/devices/{entry.name}"


def refused(path: str, text: str) -> str:
    """Return the name of the errno that writing a text ends with, `ok` for none."""
    try:
        write(path, text)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def opened(path: str, flags: int = os.O_RDWR) -> int | str:
    """Return a new descriptor, or the name of the errno."""
    try:
        return os.open(path, flags)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Device:
    """A device opened through a container."""

    def __init__(self, uuid: str = U, container: int | None = None) -> None:
        self.group = os.open(group_of(uuid), os.O_RDWR)
        self.container = os.open("/dev/vfio/vfio", os.O_RDWR) if container is None else container
        try:
            call(self.group, GROUP_SET_CONTAINER, struct.pack("=i", self.container))
            if container is None:
                ioctl(self.container, SET_IOMMU, 3)
            self.fd = self.another_fd(uuid)
        except OSError:
            os.close(self.group)
            raise

    def another_fd(self, uuid: str = U) -> int:
        """Return a (further) descriptor of the device."""
        name = ctypes.create_string_buffer(uuid.encode())
        return ioctl(self.group, GROUP_GET_DEVICE_FD, ctypes.addressof(name))

    def close(self) -> None:
        """Close everything."""
        for fd in (self.fd, self.group, self.container):
            os.close(fd)

    def set_state(self, state: int) -> int:
        """Set a migration state and return data_fd."""
        answer = call(self.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, SET | 2, state, 99))
        fd: int = struct.unpack("=IIIi", answer)[3]
        return fd

    def state(self) -> int:
        """Return the migration state."""
        answer = call(self.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, GET | 2, 0, 0))
        state: int = struct.unpack("=IIIi", answer)[2]
        return state

    def eventfd(self, index: int) -> int:
        """Register a new eventfd for an interrupt and return it."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.set_irq(index, fd)
        return fd

    def set_irq(self, index: int, fd: int) -> None:
        """Register an eventfd, or drop it (-1)."""
        call(self.fd, DEVICE_SET_IRQS, struct.pack("=5Ii", 24, 4 | 32, index, 0, 1, fd))


class Cdev(Device):
    """A device opened through its node and an iommufd."""

    def __init__(self, uuid: str = U) -> None:
        self.fd = os.open(node_of(uuid), os.O_RDWR)
        self.iommufd = os.open("/dev/iommu", os.O_RDWR)
        self.id = struct.unpack("=IIiI", call(self.fd, DEVICE_BIND_IOMMUFD, self.bind()))[3]
        ioas = struct.unpack("=3I", call(self.iommufd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0)))[2]
        call(self.fd, DEVICE_ATTACH_IOMMUFD_PT, struct.pack("=3I", 12, 0, ioas))

    def bind(self) -> bytes:
        """Return the argument of BIND_IOMMUFD."""
        return struct.pack("=IIiI", 16, 0, self.iommufd, 0)

    def close(self) -> None:
        """Close everything."""
        os.close(self.fd)
        os.close(self.iommufd)


class Pages:
    """Two pages, the second of which has another protection: what is at the end of the first is at its edge."""

    def __init__(self, second: int) -> None:
        self._size = mmap.PAGESIZE
        self._map = mmap.mmap(-1, 2 * self._size)
        self._second = second
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.edge = self.start + self._size
        self._protect(second)

    def put(self, address: int, data: bytes) -> None:
        """Write to the pages, whatever protection the second has."""
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)
        ctypes.memmove(address, data, len(data))
        self._protect(self._second)

    def _protect(self, protection: int) -> None:
        if _libc.mprotect(ctypes.c_void_p(self.edge), ctypes.c_size_t(self._size), protection):
            raise OSError(ctypes.get_errno(), "mprotect")

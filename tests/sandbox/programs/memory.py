"""What a process passes: memory that ends somewhere, and descriptors that are not what they should be."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import termios

from tests.sandbox.programs.libc import Pages, say, vmm, without_descriptors
from tests.vfio.client import (
    DEVICE_FEATURE,
    DEVICE_GET_INFO,
    DEVICE_SET_IRQS,
    GET_API_VERSION,
    GROUP_GET_DEVICE_FD,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    IOAS_ALLOC,
    SET,
    SET_IOMMU,
    STOP,
    STOP_COPY,
    Device,
    U,
)


def edges() -> None:
    """Pass structs that end where memory does."""
    vmm.create()
    device = Device(vmm)
    hole, readonly = Pages(0), Pages(mmap.PROT_READ)
    say("null", vmm.outcome(device.group, GROUP_GET_STATUS), device.outcome(DEVICE_GET_INFO))
    # A struct that ends at the edge, and one that lacks its last byte.
    for missing in (0, 1):
        address = hole.edge - 8 + missing
        hole.put(address, struct.pack("=II", 8, 0)[: 8 - missing])
        say("edge", missing, vmm.outcome(device.group, GROUP_GET_STATUS, address))
    # Behind the edge is memory that may be read only: the answer cannot be written.
    address = readonly.edge - 8
    readonly.put(address, struct.pack("=II", 16, 0))
    say("readonly", device.outcome(DEVICE_GET_INFO, address))
    # EFAULT hides the errno of the transition.
    readonly.put(address, struct.pack("=II", 16, SET | 2))
    say("feature", device.outcome(DEVICE_FEATURE, address), device.state())
    # A name that never ends, one that ends too late, and one that does not.
    hole.put(hole.edge - 4, b"none")
    names = hole.edge - 4, b"x" * 5000 + b"\0", U.upper().encode() + b"\0"
    say("name", *(vmm.outcome(device.group, GROUP_GET_DEVICE_FD, name) for name in names))
    # No vectors, but a descriptor is looked for behind the struct.
    hole.put(hole.edge - 20, struct.pack("=5I", 20, 4 | 32, 0, 0, 0))
    say("irqs", *(device.outcome(DEVICE_SET_IRQS, hole.edge - size) for size in (20, 19)))
    # A struct of iommufd says itself how long it is.
    iommufd = vmm.open("/dev/iommu")
    for size in (16, 12):
        hole.put(hole.edge - 12, struct.pack("=3I", size, 0, 0))
        say("size", size, vmm.outcome(iommufd, IOAS_ALLOC, hole.edge - 12))
    # A request with a direction and a size is another one.
    say("encoded", *(vmm.outcome(iommufd, bits | GET_API_VERSION) for bits in (0, 0xC0040000)))


def descriptors() -> None:
    """Pass descriptors of all sorts where a container, and where an eventfd, is expected."""
    group = vmm.open(vmm.create())
    pipe, _ = os.pipe()
    sysfs = os.open("/sys/bus/ap/apmask", os.O_RDONLY)
    closed = 900
    for fd in (closed, -1, pipe, sysfs, group):
        say(vmm.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", fd)))
    container = os.open("/dev/vfio/vfio", os.O_RDONLY)
    for _ in range(2):
        say(vmm.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", container)))
    os.close(group)
    os.close(container)
    device = Device(vmm)
    for fd in (closed, pipe, sysfs, -2):
        say(device.outcome(DEVICE_SET_IRQS, struct.pack("=5Ii", 24, 36, 0, 0, 1, fd)))


def paths_only() -> None:
    """Pass descriptors that were opened with O_PATH."""
    group = vmm.open(vmm.create())
    paths = [os.open(path, os.O_PATH) for path in ("/dev/vfio/vfio", "/dev/null")]
    say(*(vmm.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", path)) for path in paths))
    say(*(vmm.outcome(path, GET_API_VERSION) for path in paths))
    os.close(group)
    device = Device(vmm)
    say(*(device.outcome(DEVICE_SET_IRQS, struct.pack("=5Ii", 24, 36, 0, 0, 1, path)) for path in paths))


def file_that_cannot_be_told_of() -> None:
    """Ask for a migration file with a struct that cannot be written back."""
    vmm.guest()
    device = Device(vmm)
    readonly = Pages(mmap.PROT_READ)
    readonly.put(readonly.edge - 8, struct.pack("=IIIi", 16, SET | 2, STOP_COPY, 55))

    def ask() -> str:
        return device.outcome(DEVICE_FEATURE, readonly.edge - 8)

    numbers = vmm.ls("/proc/self/fd")
    say(ask(), device.state(), numbers == vmm.ls("/proc/self/fd"))
    say(len(vmm.handed_out()), device.set_state(STOP_COPY), device.set_state(STOP))
    say(without_descriptors(ask), device.state())


def no_free_descriptor() -> None:
    """Ask for a device while no descriptor is free."""
    group = vmm.open(vmm.create())

    def device_fd(name: str = U) -> str:
        return vmm.outcome(group, GROUP_GET_DEVICE_FD, name.encode() + b"\0")

    say(device_fd(), without_descriptors(device_fd), without_descriptors(lambda: device_fd("other")))
    container = vmm.open("/dev/vfio/vfio")
    say(
        vmm.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", container)),
        vmm.outcome(container, SET_IOMMU, 3),
    )
    vmm.console("kvm none")
    say(without_descriptors(device_fd), device_fd())


def other_files() -> None:
    """Make ioctls of VFIO on files of the kernel, and ioctls of the kernel on files of the host."""
    pipe, other = os.pipe()
    os.write(other, b"12345")
    random = os.open("/dev/urandom", os.O_RDONLY)
    say(*(vmm.outcome(fd, request) for fd, request in ((pipe, GROUP_GET_STATUS), (-1, GROUP_GET_STATUS))))
    say(vmm.outcome(999, GET_API_VERSION))
    # Its driver has an errno of its own for what it does not know.
    say(vmm.outcome(random, GROUP_GET_STATUS), vmm.outcome(random, GET_API_VERSION))
    say(struct.unpack("=i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))))
    mask = os.open("/sys/bus/ap/apmask", os.O_RDONLY)
    container = vmm.open("/dev/vfio/vfio")
    say(vmm.outcome(mask, GET_API_VERSION), vmm.outcome(container, termios.TCGETS, bytes(64)))
    say(vmm.outcome(container, 0x3BFF))

"""Device and migration files as descriptors: duplicated, inherited, passed on, polled, closed."""

from __future__ import annotations

import os
import select
import socket
import struct

from tests.sandbox.programs.libc import say, vmm, without_descriptors
from tests.vfio.client import (
    DEVICE_FEATURE,
    GET,
    GROUP_GET_DEVICE_FD,
    GROUP_UNSET_CONTAINER,
    SET,
    STOP,
    STOP_COPY,
    Device,
    U,
    outcome_of,
)


def stream() -> None:
    """Read a stream through duplicates, a child, and a process to which the file is sent."""
    vmm.guest()
    data = Device(vmm).set_state(STOP_COPY)
    for attempt in (lambda: os.pread(data, 4, 0), lambda: os.lseek(data, 0, 0), lambda: os.write(data, b"x")):
        say(outcome_of(attempt))
    poll = select.poll()
    poll.register(data, select.POLLIN)
    say(bool(poll.poll(0)[0][1] & select.POLLIN), os.get_inheritable(data), vmm.outcome(data, 0x3B79, bytes(64)))
    copy = os.dup(data)
    pieces = [os.read(data, 4), os.read(copy, 4)]
    if os.fork() == 0:
        os.write(1, os.read(data, 8).hex().encode() + b"\n")
        os._exit(0)
    os.wait()
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        os.write(1, os.read(fds[0], 100).hex().encode() + b"\n")
        os._exit(0)
    socket.send_fds(ours, [b"x"], [data])
    os.wait()
    say(b"".join(pieces).hex(), os.read(data, 1))


def spliced() -> None:
    """Read one stream by read, splice and sendfile, then ask for fsync."""
    vmm.guest()
    data = Device(vmm).set_state(STOP_COPY)
    out, into = os.pipe()
    start = os.read(data, 4)
    say(start.hex(), os.splice(data, into, 12), os.sendfile(into, data, None, 100), os.splice(data, into, 100))
    say(os.read(out, 100).hex(), os.read(data, 1), outcome_of(lambda: os.fsync(data)))


def last_descriptor() -> None:
    """Close the descriptors of a device one after the other."""
    vmm.guest()
    device = Device(vmm)
    second = device.another_fd()
    device.set_state(STOP)
    answer = vmm.call(second, DEVICE_FEATURE, struct.pack("=IIIi", 16, GET | 2, 0, 0))
    say("shared state", struct.unpack("=IIIi", answer)[2])
    copy = os.dup(device.fd)
    os.close(device.fd)
    os.close(second)
    say(vmm.is_open(), vmm.outcome(device.group, GROUP_UNSET_CONTAINER))
    os.close(copy)
    say(vmm.is_open(), vmm.outcome(device.group, GROUP_UNSET_CONTAINER))
    os.close(device.group)
    say(Device(vmm).state(), vmm.handed_out() != [])


def too_many() -> None:
    """Ask for files while no descriptor is free."""
    vmm.guest()
    device = Device(vmm)
    packed = struct.pack("=IIIi", 16, SET | 2, STOP_COPY, 55)
    result, after = without_descriptors(lambda: vmm.tried(device.fd, DEVICE_FEATURE, packed))
    say(result)
    say("unchanged", struct.unpack("=Ii", after[8:]), "state", device.state())
    say(without_descriptors(lambda: vmm.outcome(device.group, GROUP_GET_DEVICE_FD, U.encode() + b"\0")))
    device.close()
    say(vmm.handed_out(), vmm.is_open())
    say(vmm.remove())


def many_closed_at_once() -> None:
    """Close hundreds of descriptors, and open the group again."""
    vmm.guest()
    device = Device(vmm)
    path = vmm.group_of()
    for _ in range(3):
        fds = [device.another_fd() for _ in range(200)]
        os.closerange(min(fds), max(fds) + 1)
        device.close()
        group = vmm.opened(path)
        say(isinstance(group, int))
        assert isinstance(group, int)
        os.close(group)
        device = Device(vmm)


def opened_again() -> None:
    """Open the file of a device by the names that it has."""
    vmm.guest()
    device = Device(vmm)
    for path in (f"/proc/self/fd/{device.fd}", *(f"/dev/apfs/ctl/fds/{name}" for name in vmm.handed_out())):
        say(vmm.opened(path))

"""Callers that die, multiply, get signals, or are somewhere else."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from tests.sandbox.programs.libc import say, told, vmm
from tests.vfio.client import (
    CHECK_EXTENSION,
    DEVICE_FEATURE,
    DEVICE_GET_INFO,
    DEVICE_RESET,
    GET,
    GET_API_VERSION,
    GROUP_GET_STATUS,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
    Cdev,
    Device,
    name_of,
)

WAYS = {"Device": Device, "Cdev": Cdev}
INFO = struct.pack("=4I", 16, 0, 0, 0)


def left(count: int) -> int:
    """Return how many files are open that the host has made, when it has heard that all others are closed.

    That is later than close(2) returns if more than a dozen are closed at once. One that is never closed would be
    waited for in vain.
    """
    while (found := len(vmm.handed_out())) > count:
        os.sched_yield()
    return found


def in_a_state(state: str) -> None:
    """Bring a device into a state and wait."""
    vmm.guest()
    Device(vmm).set_state(int(state))
    say("there")
    told()


def killed_in_any_state(way: str) -> None:
    """Have a child for each state killed in it, and look what is left."""
    vmm.guest()
    for state in (RUNNING, STOP, STOP_COPY, RESUMING):
        ready, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            data = WAYS[way](vmm).set_state(state)
            if state == STOP_COPY:
                os.read(data, 8)
            if state == RESUMING:
                os.write(data, bytes(3))
            os.write(write_end, b"x")
            signal.pause()
        os.read(ready, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        say(vmm.is_open(), vmm.handed_out())
        device = WAYS[way](vmm)
        say(device.state(), device.outcome(DEVICE_RESET))
        device.close()
    say(vmm.remove())


def child_in_an_ioctl() -> None:
    """Start a child, which makes its ioctls when told to; tell how it ended, and then the state of the device."""
    vmm.guest()
    device = Device(vmm)
    pid = os.fork()
    if pid == 0:
        say(os.getpid())
        told()
        device.set_state(STOP_COPY)
        device.another_fd()
        os._exit(0)
    say("killed by", os.waitpid(pid, 0)[1])
    say(device.state())
    device.set_state(STOP)
    device.close()


def another_user() -> None:
    """Use a container of the same host; when told to, use it again."""
    container = vmm.open("/dev/vfio/vfio")
    say(vmm.ioctl(container, GET_API_VERSION))
    told()
    say(vmm.ioctl(container, GET_API_VERSION), vmm.ioctl(container, CHECK_EXTENSION, 1))


def killed_anywhere() -> None:
    """Kill children that do nothing but ioctls."""
    vmm.create()
    for turn in range(40):
        pid = os.fork()
        if pid == 0:
            while True:
                device = Device(vmm)
                # More files than these few at once would be closed late where fusectl is not mounted.
                os.close(device.set_state(STOP_COPY))
                device.close()
        # Long enough for it to be anywhere: as many calls of our own as the turn says.
        for _ in range(turn % 20):
            Path(vmm.group_of()).stat()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    device = Device(vmm)
    say(device.state())
    device.close()


def threads() -> None:
    """Make ioctls in many threads at once."""
    vmm.guest()
    device = Device(vmm)
    results = []

    def work(number: int) -> None:
        mine = vmm.open("/dev/vfio/vfio")
        for _ in range(10):
            answer = vmm.call(device.fd, DEVICE_GET_INFO, struct.pack("=4I", 16 + number, 0, 0, 0))
            results.append(struct.unpack("=4I", answer) == (16 + number, 0x21, 0, 2))
            results.append(vmm.ioctl(mine, CHECK_EXTENSION, number) == (number in (1, 3, 9)))
        another = device.another_fd()
        results.append(Path(f"/proc/self/fd/{another}").readlink().name.startswith("vfio-device"))
        size = vmm.call(another, DEVICE_FEATURE, struct.pack("=IIQ", 16, GET | 9, number))
        results.append(struct.unpack("=IIQ", size)[2] == 24)
        os.close(another)
        os.close(mine)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    say(len(results), all(results), left(1))


def grandchild() -> None:
    """Have a grandchild, another program, make an ioctl on a device that it has inherited."""
    vmm.guest()
    device = Device(vmm)
    os.set_inheritable(device.fd, True)
    program = f"from {__name__} import flags; flags('{device.fd}')"
    command = ["sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", program]
    subprocess.run(command, close_fds=False, check=True)


def flags(fd: str) -> None:
    """Print the flags of a device."""
    say(struct.unpack("=4I", vmm.call(int(fd), DEVICE_GET_INFO, INFO))[1])


def descriptors_of_its_own() -> None:
    """Have a thread that does not share its descriptors with the others."""
    vmm.create()
    group = vmm.open(vmm.group_of())
    clone_files = 0x400

    def work() -> None:
        ctypes.CDLL(None).unshare(clone_files)
        # Here the number means another file from now on.
        container = vmm.open("/dev/vfio/vfio")
        os.dup2(container, group)
        say(vmm.ioctl(group, CHECK_EXTENSION, 1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    say(struct.unpack("=II", vmm.call(group, GROUP_GET_STATUS, struct.pack("=II", 8, 0)))[1])


def signals() -> None:
    """Get signals all the time while descriptors are asked for."""
    vmm.guest()
    device = Device(vmm)
    caught = []

    def another_fd(*, restart: bool) -> int:
        while True:
            try:
                return device.another_fd()
            except InterruptedError:
                assert not restart

    signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    for restart in (True, False):
        signal.siginterrupt(signal.SIGALRM, not restart)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        fds = [another_fd(restart=restart) for _ in range(50)]
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(sorted(fds) == list(range(min(fds), min(fds) + 50)))
        for fd in fds:
            os.close(fd)
    say(len(caught) > 0, left(1))


def cycles() -> None:
    """Open and close everything that there is to open, a few times, and when told to, many times."""
    vmm.create()

    def everything() -> None:
        device = Device(vmm)
        os.close(device.eventfd(0))
        os.close(device.set_state(STOP_COPY))
        device.close()
        bound = Cdev(vmm)
        os.close(bound.set_state(RESUMING))
        bound.close()

    def turn(whole: int, devices: int) -> None:
        for _ in range(whole):
            everything()
        device = Device(vmm)
        for _ in range(devices):
            os.close(device.another_fd())
        device.close()

    turn(5, 100)
    say("ready")
    told()
    turn(100, 10_000)
    say("done")
    told()


def without_server() -> None:
    """When told to, make ioctls on a device whose server is gone."""
    vmm.guest()
    device = Device(vmm)
    say("there")
    told()
    say(device.outcome(DEVICE_RESET), device.outcome(DEVICE_GET_INFO, INFO))


def two_queues() -> None:
    """Create a device with two queues."""
    vmm.create(adapters=(5,), domains=(4, 0x47))


def migrate_out(pipe: str) -> None:
    """Write a guest's stream to a pipe, in small pieces."""
    device = Device(vmm)
    device.set_state(STOP)
    data = device.set_state(STOP_COPY)
    while piece := os.read(data, 7):
        os.write(int(pipe), piece)
    os.close(int(pipe))
    device.set_state(STOP)


def migrate_in(pipe: str) -> None:
    """Read a guest's stream from a pipe, and resume it if it is taken."""
    device = Cdev(vmm)
    data, result = device.set_state(RESUMING), "ok"
    while piece := os.read(int(pipe), 11):
        try:
            os.write(data, piece)
        except OSError as error:
            result = name_of(error)
            break
    if result == "ok":
        device.set_state(RUNNING)
    say(result, device.state())


def give(meeting: str) -> None:
    """Give a device and a migration file to two others, who come to a socket."""
    vmm.guest()
    device = Device(vmm)
    data = device.set_state(STOP_COPY)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(meeting)
    listening.listen()
    say("there")
    for _ in range(2):
        taker, _ = listening.accept()
        socket.send_fds(taker, [b"x"], [device.fd, data])
        taker.recv(1)


def take(meeting: str) -> None:
    """Take them, and use both."""
    giver = socket.socket(socket.AF_UNIX)
    giver.connect(meeting)
    _, (device, data), _, _ = socket.recv_fds(giver, 1, 2)
    say(vmm.outcome(device, DEVICE_GET_INFO, INFO), os.read(data, 12).hex())
    giver.send(b"x")


def a_device() -> None:
    """Create a device and open it."""
    vmm.create()
    say(Device(vmm).state())


def a_container() -> None:
    """Ask a container for its version."""
    say(vmm.outcome(vmm.open("/dev/vfio/vfio"), GET_API_VERSION))

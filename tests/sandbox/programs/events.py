"""Interrupts on real eventfds."""

from __future__ import annotations

import os
import resource
import select
import uuid
from pathlib import Path

from tests.sandbox.programs.libc import say, vmm
from tests.vfio.client import MATRIX, Device, U


def fired(fd: int) -> int:
    """Wait for an eventfd and return its count. One that never fires hangs, and the run's limit ends it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
    return os.eventfd_read(fd)


def both() -> None:
    """Wait for a changed configuration and for a request to release the device."""
    vmm.guest()
    device = Device(vmm)
    request, changed = device.eventfd(0), device.eventfd(1)
    vmm.write(f"{MATRIX}/{U}/assign_control_domain", "3")
    vmm.console("add-control-domain 3", "scan")
    vmm.write(f"{MATRIX}/{U}/unassign_domain", "0x47")
    say("changed", fired(changed))
    vmm.console("unplug 5", "scan")
    say("unplugged", fired(changed) > 0)
    say(vmm.remove(), fired(request), fired(changed) > 0)
    device.close()
    vmm.remove()
    say(Path(f"/sys/bus/mdev/devices/{U}").exists())


def silent() -> None:
    """Replace one eventfd, drop another, and see which is signalled."""
    vmm.guest()
    device = Device(vmm)
    old, new, other = device.eventfd(0), device.eventfd(0), device.eventfd(1)
    device.set_irq(1, -1)
    say(vmm.remove(), fired(new))
    say([fd for fd in (old, other) if select.select((fd,), (), (), 0)[0]])


def many(count: str) -> None:
    """Register two eventfds for each of many devices."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    vmm.write("/sys/bus/ap/apmask", "-5")
    names = [str(uuid.UUID(int=number)) for number in range(1, int(count) + 1)]
    for name in names:
        vmm.create(name)
    devices = [Device(vmm, name) for name in names]
    fds = [device.eventfd(irq) for device in devices for irq in (0, 1)]
    say(len(fds), *(vmm.remove(name) for name in {names[0], names[-1]}))
    for fd in {fds[0], fds[-2]}:
        say(fired(fd))


def registered_by_a_child() -> None:
    """Have a child, which ends, register an eventfd."""
    vmm.guest()
    device, event = Device(vmm), vmm.eventfd()
    if os.fork() == 0:
        device.set_irq(0, event)
        os._exit(0)
    os.wait()
    say(vmm.remove(), fired(event))

"""The attributes common to all queues (drivers/s390/crypto/ap_queue.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.card_attributes import DRIVER, SUBSYSTEM
from apfs.ap.hardware import BS_NO_KEY, BS_USABLE
from apfs.ap.qinfo import FAC
from apfs.ap.traffic import queue_traffic
from apfs.errors import KernelError
from apfs.kernel.device import UEVENT
from apfs.kernel.kstrtox import kstrtobool, kstrtoul
from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from apfs.ap.queue import ApQueue
    from apfs.kernel.profile import Profile

_OVERRIDE_MAX = 4095


def request_count_show(queue: ApQueue) -> str:
    """Requests sent to the queue; `-` while the queue is not initialised."""
    return "-\n" if queue.uninitiated else f"{queue.card.queue_requests.get(queue.apqi, 0)}\n"


def requestq_count_show(queue: ApQueue) -> str:
    """Waiting requests."""
    return f"{queue_traffic(queue).waiting}\n"


def pendingq_count_show(queue: ApQueue) -> str:
    """Running requests."""
    return f"{queue_traffic(queue).pending}\n"


def request_count_store(queue: ApQueue, _text: str) -> None:
    """Reset the counter, whatever is written."""
    queue.card.queue_requests.pop(queue.apqi, None)


def reset_show(queue: ApQueue) -> str:
    """Whether a reset is under way; nothing ever arms the timer, since there are no requests."""
    return "Reset in progress.\n" if queue.resetting else "No Reset Timer set.\n"


def reset_store(queue: ApQueue, _text: str) -> None:
    """Flush and reset, whatever is written. Its end is seen only if the queue has a driver and is operated."""
    queue.reset()


def interrupt_show(queue: ApQueue) -> str:
    """Whether the queue interrupts the host after a request, queried from the hardware at each read."""
    return "Interrupts enabled.\n" if queue.interrupts else "Interrupts disabled.\n"


def config_show(queue: ApQueue) -> str:
    """Whether the queue is configured."""
    return f"{int(queue.config)}\n"


def chkstop_show(queue: ApQueue) -> str:
    """Whether the queue is check-stopped."""
    return f"{int(queue.chkstop)}\n"


def ap_functions_show(queue: ApQueue) -> str:
    """Facility word of the queue, queried from the hardware at each read."""
    return f"0x{FAC.get(queue.tapq()):08X}\n"


def driver_override_show(queue: ApQueue) -> str:
    """Name of the only driver that may bind the queue; an empty line if any driver may."""
    return f"{queue.override}\n"


def driver_override_store(queue: ApQueue, text: str) -> None:
    """Set or (empty) clear the override. The name is not checked, and nothing is rebound.

    EINVAL while the masks, the other way of giving queues to drivers, are not all ones; EINVAL for 4095 bytes or more.
    """
    if len(text) >= _OVERRIDE_MAX:
        raise KernelError(errno.EINVAL, f"a driver name of {len(text)} bytes is too long")
    queue.card.reservation.override(queue.apqn, text.split("\0", 1)[0].split("\n", 1)[0])


def se_bind_show(queue: ApQueue) -> str:
    """Whether the queue is bound to this secure execution guest; EIO if the hardware does not tell."""
    if not queue.can_be_bound:
        return "-\n"
    return "bound\n" if queue.bind_state() in (BS_USABLE, BS_NO_KEY) else "unbound\n"


def se_bind_store(queue: ApQueue, text: str) -> None:
    """Bind, or (0) unbind by a reset.

    EIO if TAPQ does not answer normally, EINVAL unless available, EBUSY during a reset.
    """
    if not queue.can_be_bound:
        raise KernelError(errno.EINVAL, "queues of CCA cards cannot be bound")
    if kstrtobool(text, queue.card.profile):
        queue.bind_to_guest()
    else:
        queue.unbind_from_guest()


def se_associate_show(queue: ApQueue) -> str:
    """Return the secret that the queue is associated with; accelerators need none.

    EIO if the hardware does not tell, and if it says that there is a secret of which the bus does not know.
    """
    if not queue.can_be_associated:
        return "-\n"
    state, secret = queue.bind_state(), queue.secret
    if state == BS_USABLE:
        if secret is None:
            raise KernelError(errno.EIO, f"{queue.apqn} is usable, but was not associated since it was initialised")
        return f"associated {secret}\n"
    return "association pending\n" if state == BS_NO_KEY and secret is not None else "unassociated\n"


def se_associate_store(queue: ApQueue, text: str) -> None:
    """Associate the queue with a secret.

    EINVAL on accelerators, above 65535, and unless it is bound without a secret; EIO if TAPQ does not answer normally,
    EBUSY unless it is idle.
    """
    if not queue.can_be_associated:
        raise KernelError(errno.EINVAL, "only queues of EP11 cards have a secret")
    queue.associate(kstrtoul(text, 32))


def se_visible(queue: ApQueue) -> bool:
    """Only secure execution guests with the facility bind queues, and CCA queues cannot be bound."""
    return queue.has_binding


def _binds(kernel: Profile) -> bool:
    return kernel.se_attributes


QUEUE_ATTRIBUTES = (
    UEVENT,
    SUBSYSTEM,
    DRIVER,
    Attribute("request_count", 0o644, request_count_show, request_count_store),
    Attribute("requestq_count", 0o444, requestq_count_show),
    Attribute("pendingq_count", 0o444, pendingq_count_show),
    Attribute("reset", 0o644, reset_show, reset_store),
    Attribute("interrupt", 0o444, interrupt_show),
    Attribute("config", 0o444, config_show),
    Attribute("chkstop", 0o444, chkstop_show, kernels=lambda kernel: kernel.chkstop),
    Attribute("ap_functions", 0o444, ap_functions_show, kernels=lambda kernel: kernel.queue_ap_functions),
    Attribute(
        "driver_override",
        0o644,
        driver_override_show,
        driver_override_store,
        raw=True,
        kernels=lambda kernel: kernel.driver_override,
    ),
    Attribute("se_bind", 0o644, se_bind_show, se_bind_store, se_visible, kernels=_binds),
    Attribute("se_associate", 0o644, se_associate_show, se_associate_store, se_visible, kernels=_binds),
)

"""The attributes that every queue has (drivers/s390/crypto/ap_queue.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.card_attributes import DRIVER, SUBSYSTEM, no_requests_show
from apfs.ap.hardware import BS_NO_KEY, BS_UNBOUND, BS_USABLE
from apfs.ap.qinfo import FIELDS, Response
from apfs.errors import KernelError
from apfs.kernel.device import UEVENT
from apfs.kernel.kstrtox import kstrtobool, kstrtoul
from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from apfs.ap.queue import ApQueue

_OVERRIDE_MAX = 4095
_SECRETS = 65536


def request_count_show(queue: ApQueue) -> str:
    """Requests sent to the queue; `-` while uninitiated."""
    return "-\n" if queue.uninitiated else f"{queue.card.queue_requests.get(queue.apqi, 0)}\n"


def request_count_store(queue: ApQueue, _text: str) -> None:
    """Reset the counter, whatever is written."""
    queue.card.queue_requests.pop(queue.apqi, None)


def reset_show(queue: ApQueue) -> str:
    """Whether a reset is under way; nothing ever arms the timer, since there are no requests."""
    return "Reset in progress.\n" if queue.apqi in queue.card.resetting else "No Reset Timer set.\n"


def reset_store(queue: ApQueue, _text: str) -> None:
    """Flush and reset, whatever is written. Only a driver of the host polls a reset to its end."""
    card = queue.card
    operated = queue.apqi in card.zcrypt_bound() and queue.config and not queue.chkstop
    card.resetting = card.resetting.without(queue.apqi) if operated else card.resetting.with_(queue.apqi)


def interrupt_show(queue: ApQueue) -> str:
    """Whether the queue interrupts the host when it has finished a request."""
    return "Interrupts enabled.\n" if queue.apqi in queue.card.interrupts else "Interrupts disabled.\n"


def config_show(queue: ApQueue) -> str:
    """Whether the queue is configured."""
    return f"{int(queue.config)}\n"


def chkstop_show(queue: ApQueue) -> str:
    """Whether the queue is check-stopped."""
    return f"{int(queue.chkstop)}\n"


def ap_functions_show(queue: ApQueue) -> str:
    """Facility word of the queue, asked of the hardware now."""
    response, word = queue.card.bus.machine.tapq(*queue.apqn)
    if response > Response.BUSY:
        raise KernelError(errno.EIO, f"TAPQ of {queue.apqn} answers {response:#04x}")
    return f"0x{word >> 32:08X}\n"


def driver_override_show(queue: ApQueue) -> str:
    """Name of the only driver that may have the queue; a lone newline if every driver may."""
    return f"{queue.card.overrides.get(queue.apqi, '')}\n"


def driver_override_store(queue: ApQueue, text: str) -> None:
    """Set or (empty) clear the override, which nothing checks and which rebinds nothing.

    EINVAL while the masks are not all ones, which is the other way of giving queues away, and for 4095 bytes or more.
    """
    if len(text) >= _OVERRIDE_MAX:
        raise KernelError(errno.EINVAL, f"a driver name of {len(text)} bytes is too long")
    bus, overrides = queue.card.bus, queue.card.overrides
    if bus.masks_in_use:
        reason = "apmask and aqmask are not both all ones: queues are given away by mask or by override, not both"
        raise KernelError(errno.EINVAL, reason)
    name = text.split("\0", 1)[0].split("\n", 1)[0]
    had = queue.apqi in overrides
    if name:
        overrides[queue.apqi] = name
    else:
        overrides.pop(queue.apqi, None)
    bus.override_count += int(bool(name)) - int(had)


def se_bind_show(queue: ApQueue) -> str:
    """Whether the queue is bound to this secure execution guest; EIO if the hardware does not tell."""
    return "bound\n" if _bind_state(queue) in (BS_USABLE, BS_NO_KEY) else "unbound\n"


def se_bind_store(queue: ApQueue, text: str) -> None:
    """Bind or (0) unbind. EIO if TAPQ does not answer normally, EINVAL unless available, EBUSY during a reset."""
    machine = queue.card.bus.machine
    if not kstrtobool(text):
        machine.set_bind_state(*queue.apqn, BS_UNBOUND)
        return
    if _bind_state(queue, clean=True) != BS_UNBOUND:
        raise KernelError(errno.EINVAL, f"{queue.apqn} is not available for binding")
    _check_idle(queue)
    machine.set_bind_state(*queue.apqn, BS_USABLE if queue.card.mode == "accel" else BS_NO_KEY)


def se_associate_show(queue: ApQueue) -> str:
    """Return the secret that the queue is associated with; accelerators need none."""
    state = _bind_state(queue)
    if queue.card.mode == "accel":
        return "-\n"
    card = queue.card.bus.machine.cards.get(queue.card.apid)
    secret = card.associations.get(queue.apqi) if card else None
    return f"associated {secret}\n" if state == BS_USABLE and secret is not None else "unassociated\n"


def se_associate_store(queue: ApQueue, text: str) -> None:
    """Associate the queue with a secret.

    EINVAL on accelerators, above 65535, and unless bound without a secret; EIO if TAPQ does not answer normally,
    EBUSY during a reset.
    """
    if queue.card.mode == "accel":
        raise KernelError(errno.EINVAL, "accelerators have no secret")
    secret = kstrtoul(text, 32)
    if secret >= _SECRETS:
        raise KernelError(errno.EINVAL, f"secret {secret} is above {_SECRETS - 1}")
    if _bind_state(queue, clean=True) != BS_NO_KEY:
        raise KernelError(errno.EINVAL, f"{queue.apqn} is not bound without a secret")
    _check_idle(queue)
    machine = queue.card.bus.machine
    machine.cards[queue.card.apid].associations[queue.apqi] = secret
    machine.set_bind_state(*queue.apqn, BS_USABLE)


def se_visible(queue: ApQueue) -> bool:
    """Only secure execution guests with the facility bind queues, and CCA queues cannot be bound."""
    bus = queue.card.bus
    return bus.machine.secure_execution and "APSB" in bus.qci.facilities and queue.card.mode in ("accel", "ep11")


def _bind_state(queue: ApQueue, *, clean: bool = False) -> int:
    response, word = queue.card.bus.machine.tapq(*queue.apqn)
    if response > Response.BUSY or (clean and response != Response.NORMAL):
        raise KernelError(errno.EIO, f"TAPQ of {queue.apqn} answers {response:#04x}")
    return FIELDS["bs"].get(word)


def _check_idle(queue: ApQueue) -> None:
    if queue.apqi in queue.card.resetting:
        raise KernelError(errno.EBUSY, f"{queue.apqn} is being reset")


QUEUE_ATTRIBUTES = (
    UEVENT,
    SUBSYSTEM,
    DRIVER,
    Attribute("request_count", 0o644, request_count_show, request_count_store),
    Attribute("requestq_count", 0o444, no_requests_show),
    Attribute("pendingq_count", 0o444, no_requests_show),
    Attribute("reset", 0o644, reset_show, reset_store),
    Attribute("interrupt", 0o444, interrupt_show),
    Attribute("config", 0o444, config_show),
    Attribute("chkstop", 0o444, chkstop_show),
    Attribute("ap_functions", 0o444, ap_functions_show),
    Attribute("driver_override", 0o644, driver_override_show, driver_override_store, raw=True),
    Attribute("se_bind", 0o644, se_bind_show, se_bind_store, se_visible),
    Attribute("se_associate", 0o644, se_associate_show, se_associate_store, se_visible),
)

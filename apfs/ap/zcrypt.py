"""What the zcrypt drivers do with the cards and queues that are bound to them (zcrypt_card.c, zcrypt_queue.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.queue import ApQueue
from apfs.errors import KernelError
from apfs.kernel.device import emit

if TYPE_CHECKING:
    from apfs.ap.card import ApCard
    from apfs.ap.hardware import CardHardware
    from apfs.ap.mask import Mask


def card_online(card: ApCard) -> bool:
    """Whether a card is online by software, configured and not check-stopped."""
    return card.online and card.usable


def online_queues(card: ApCard) -> Mask:
    """Return the domains whose queues zcrypt has, online by software, configured and not check-stopped.

    The state of the card does not matter: a queue can be online on a card that is not.
    """
    return card.zcrypt_bound() & card.queue_online & card.states.usable


def queue_online(queue: ApQueue) -> bool:
    """Whether a queue that zcrypt has is online."""
    return queue.apqi in online_queues(queue.card)


def card_hardware(card: ApCard) -> CardHardware | None:
    """Return the card behind the device, if some online queue can be used to ask it."""
    able = card.mode == card.coprocessor and card_online(card) and online_queues(card)
    return card.machine.cards.get(card.apid) if able else None


def queue_hardware(queue: ApQueue) -> CardHardware | None:
    """Return the card behind a queue, if the queue itself can be used to ask it."""
    card = queue.card
    return card.machine.cards.get(card.apid) if card.mode == card.coprocessor and queue_online(queue) else None


def switch_card(card: ApCard, *, online: bool) -> None:
    """Switch a card and all its queues of zcrypt. ENODEV to bring up what is deconfigured or check-stopped.

    The card's event is sent always, a queue's only if its own state changes, in the order of zcrypt's list, which is
    that of binding.
    """
    if online and not card.usable:
        raise KernelError(errno.ENODEV, f"{card.name} is deconfigured or check-stopped")
    card.online = online
    emit(card, "change", ("ONLINE", str(int(online))))
    switched = card.zcrypt_bound() & (~card.queue_online if online else card.queue_online)
    card.queue_online = card.queue_online | switched if online else card.queue_online - switched
    for row in card.zcrypt.in_order_of_binding(card.apid):
        for apqi in row & switched:
            emit(ApQueue(card, apqi), "change", ("ONLINE", str(int(online))))


def switch_queue(queue: ApQueue, *, online: bool) -> None:
    """Switch a queue. To bring one up: ENODEV if it or its card is not usable, EINVAL if its card is offline."""
    card = queue.card
    if online and not (queue.usable and card.usable):
        raise KernelError(errno.ENODEV, f"{queue.apqn} or {card.name} is deconfigured or check-stopped")
    if online and not card.online:
        raise KernelError(errno.EINVAL, f"{card.name} is offline: set it online first")
    card.queue_online = card.queue_online.with_(queue.apqi) if online else card.queue_online.without(queue.apqi)
    emit(queue, "change", ("ONLINE", str(int(online))))

"""The zcrypt drivers' operations on the cards and queues bound to them (zcrypt_card.c, zcrypt_queue.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.queue import ApQueue
from apfs.errors import KernelError
from apfs.kernel.device import emit

if TYPE_CHECKING:
    from apfs.ap.card import ApCard, CardBus
    from apfs.ap.hardware import CardHardware


def card_online(card: ApCard) -> bool:
    """Whether a card is online by software, configured and, as far as the kernel minds, not check-stopped."""
    return card.zcrypt_card is not None and card.zcrypt_card.online and _can_be_online(card)


def _can_be_online(card: ApCard) -> bool:
    return card.usable if card.profile.online_checkstop else card.config


def online_queues(card: ApCard) -> Mask:
    """Return the domains whose queues zcrypt has, online by software, configured and not check-stopped.

    The state of the card does not matter: a queue can be online on a card that is not.
    """
    online = NONE
    for zcrypt_card in card.zcrypt_cards:
        online |= zcrypt_card.online_queues
    return online & (card.states.usable if card.profile.online_checkstop else card.states.config)


def queue_online(queue: ApQueue) -> bool:
    """Whether a queue that zcrypt has is online."""
    return queue.apqi in online_queues(queue.card)


def card_hardware(card: ApCard, domains: Mask = ALL) -> CardHardware | None:
    """Ask a card through any of its queues in some domains. None if none can be used, which makes the bus scan."""
    return _kept(card, domains, _ask(card, domains))


def queue_hardware(queue: ApQueue) -> CardHardware | None:
    """Ask a card through one queue of cex4queue. None if that cannot be used.

    This makes the bus scan, but not for a CCA queue that belongs to no card of zcrypt (zcrypt_device_status_ext), nor
    for an EP11 queue that is offline by software (ep11_mkvps_show, ep11_queue_op_modes_show).
    """
    card, own = queue.card, Mask.of(queue.apqi)
    if card.coprocessor == "cca":
        known = card.zcrypt_card is not None and queue.apqi in card.zcrypt_card.queues
        return _kept(card, own, _ask(card, own) if known else None)
    zcrypt_card = card.zcrypt_of(queue.apqi)
    known = zcrypt_card is not None and queue.apqi in zcrypt_card.online_queues
    return _ask(card, own) if known else None


def _kept(card: ApCard, domains: Mask, answer: CardHardware | None) -> CardHardware | None:
    """Return an answer or, where kernels keep answers, that there was before (cca_get_info, ep11_get_card_info).

    Of a CCA card they keep one for each domain, of an EP11 card a single one.
    """
    if not card.profile.info_cache:
        return answer
    if answer is not None:
        card.answered = card.answered.with_((online_queues(card) & domains).lowest())
    return answer or (None if card.answered.isdisjoint(domains) else card.machine.cards.get(card.apid))


def _ask(card: ApCard, domains: Mask) -> CardHardware | None:
    """Send a request to a card through some queue of `domains`; return who answers.

    If there is no queue that takes it, the bus scans, and if that changes the configuration there is one more try
    (zcrypt_send_cprb, zcrypt_send_ep11_cprb). A request to hardware that is gone would wait until a scan flushes it.
    """
    bus, apid, kind = card.bus, card.apid, card.coprocessor
    queues = _taking(bus, apid, kind, domains)
    if not queues and bus.force_rescan():
        queues = _taking(bus, apid, kind, domains)
    return bus.machine.cards[apid] if bus.machine.answering(apid, queues) else None


def _taking(bus: CardBus, apid: int, kind: str | None, domains: Mask) -> Mask:
    """Return the queues of an adapter that take a request of that kind."""
    card = bus.cards.get(apid)
    zcrypt_card = card.zcrypt_card if card else None
    if card is None or zcrypt_card is None or not zcrypt_card.online or not card.usable or card.mode != kind:
        return NONE
    return zcrypt_card.online_queues & card.usable_queues() & domains


def switch_card(card: ApCard, *, online: bool) -> None:
    """Switch a card of zcrypt and its queues. ENODEV to bring up what is deconfigured or check-stopped.

    The card's event is sent always, a queue's only if its own state changes, in order of binding (online_store).
    """
    zcrypt_card = card.zcrypt_card
    assert zcrypt_card is not None  # noqa: S101 -- only cards of zcrypt can be switched
    if online and not _can_be_online(card):
        raise KernelError(errno.ENODEV, f"{card.name} is deconfigured or check-stopped")
    zcrypt_card.online = online
    emit(card, "change", ("ONLINE", str(int(online))))
    switched = zcrypt_card.queues - zcrypt_card.online_queues if online else zcrypt_card.online_queues
    zcrypt_card.online_queues = zcrypt_card.queues if online else NONE
    for row in zcrypt_card.rows:
        for apqi in row & switched:
            emit(ApQueue(card, apqi), "change", ("ONLINE", str(int(online))))


def switch_queue(queue: ApQueue, *, online: bool) -> None:
    """Switch a queue of zcrypt. To bring one up: ENODEV if it or its card is not usable, EINVAL if its card is offline.

    That card is the one that it belongs to, which may be one that was unbound.
    """
    card, zcrypt_card = queue.card, queue.card.zcrypt_of(queue.apqi)
    assert zcrypt_card is not None  # noqa: S101 -- only queues of zcrypt can be switched
    usable = queue.usable if card.profile.online_checkstop else queue.config
    if online and not (usable and _can_be_online(card)):
        raise KernelError(errno.ENODEV, f"{queue.apqn} or {card.name} is deconfigured or check-stopped")
    if online and not zcrypt_card.online:
        advice = "set it online" if zcrypt_card is card.zcrypt_card else f"bind {queue.apqn} to it again"
        raise KernelError(errno.EINVAL, f"{card.name} is offline: {advice} first")
    states = zcrypt_card.online_queues
    zcrypt_card.online_queues = states.with_(queue.apqi) if online else states.without(queue.apqi)
    emit(queue, "change", ("ONLINE", str(int(online))))

"""Requests of zcrypt users, as counted by the bus and the drivers (ap_queue.c, ap_card.c, zcrypt_api.c).

Nothing sends messages to an emulated card; requests exist only as set on the console. Only a usable queue of cex4queue
has requests; the bus flushes the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.hardware import Traffic
from apfs.ap.queue import ApQueue

if TYPE_CHECKING:
    from apfs.ap.card import ApCard

_NONE = Traffic()


def queue_traffic(queue: ApQueue) -> Traffic:
    """Return what a queue has under way."""
    card = queue.card
    if not card.machine.traffic or queue.apqi not in card.zcrypt_bound() & card.usable_queues():
        return _NONE
    return card.machine.traffic.get(queue.apqn, _NONE)


def card_traffic(card: ApCard) -> list[Traffic]:
    """Return what the queues of a card have under way."""
    apqis = [apqi for apid, apqi in card.machine.traffic if apid == card.apid and apqi in card.queues]
    return [queue_traffic(ApQueue(card, apqi)) for apqi in apqis]

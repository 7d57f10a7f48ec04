"""Enumeration of cards and queues, for directories and links.

Keys are `apid << 24 | apqi << 16 | life`; keys of cards have no domain. A card or queue that comes back has a new life,
and so a new directory. The life does not affect the position in listings.
"""

# ruff: noqa: D102 -- the methods are those of Members and Selection, which describe them

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.card import LIFE_BITS
from apfs.ap.names import Apqn, card_name, parse_card_name, queue_name
from apfs.ap.queue import ApQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.ap.bus import ApBus
    from apfs.ap.card import ApCard
    from apfs.ap.mask import Mask

_APID_SHIFT = LIFE_BITS + 8
_LIFE = (1 << LIFE_BITS) - 1
_DOMAINS = tuple(apqi << LIFE_BITS for apqi in range(256))


def _apqi(key: int) -> int:
    return key >> LIFE_BITS & 0xFF


def _card_key(bus: ApBus, apid: int) -> int:
    """Return the key that a card has at present, or could have."""
    device = bus.cards.get(apid)
    return apid << _APID_SHIFT | (device.life if device else 0)


def _queue_keys(device: ApCard, domains: Mask) -> Iterator[int]:
    """Yield the keys of queues of one card. Without Python code for each if all of them have come with their card."""
    if not device.lives:
        return map((device.apid << _APID_SHIFT | device.life).__or__, map(_DOMAINS.__getitem__, domains))
    base = device.apid << _APID_SHIFT
    return (base | _DOMAINS[apqi] | device.life_of(apqi) for apqi in domains)


class Cards:
    """Card devices."""

    def __init__(self, bus: ApBus) -> None:
        self._bus = bus

    def name(self, key: int) -> str:
        return card_name(key >> _APID_SHIFT)

    def find(self, name: str) -> int | None:
        apid = parse_card_name(name)
        return None if apid is None else _card_key(self._bus, apid)

    def subject(self, key: int) -> ApCard | None:
        device = self._bus.cards.get(key >> _APID_SHIFT)
        return device if device is not None and device.life == key & _LIFE else None

    def parent(self, _key: int) -> int:
        return 0

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        return (_card_key(self._bus, apid) for apid in sorted(self._bus.cards) if apid > after >> _APID_SHIFT)

    def count(self, _parent: int) -> int:
        return len(self._bus.cards)

    def has(self, key: int) -> bool:
        return self.subject(key) is not None


class BoundCards(Cards):
    """Cards that a driver has."""

    def keys(self, parent: int, after: int) -> Iterator[int]:
        return (key for key in super().keys(parent, after) if self.has(key))

    def has(self, key: int) -> bool:
        device = self.subject(key)
        return device is not None and device.driver is not None


class Queues:
    """Queue devices, in the directories of their cards."""

    def __init__(self, bus: ApBus) -> None:
        self._bus = bus

    def name(self, key: int) -> str:
        return queue_name(key >> _APID_SHIFT, _apqi(key))

    def find(self, name: str) -> int | None:
        apqn = Apqn.parse(name)
        if apqn is None:
            return None
        device = self._bus.cards.get(apqn.apid)
        return apqn.apid << _APID_SHIFT | _DOMAINS[apqn.apqi] | (device.life_of(apqn.apqi) if device else 0)

    def subject(self, key: int) -> ApQueue | None:
        # Each lookup and stat asks twice: without the calls of `_apqi` and `life_of` it takes a tenth less time.
        device, apqi = self._bus.cards.get(key >> _APID_SHIFT), key >> LIFE_BITS & 0xFF
        if device is None or apqi not in device.queues:
            return None
        life = device.lives.get(apqi, device.life) if device.lives else device.life
        return ApQueue(device, apqi) if life == key & _LIFE else None

    def parent(self, key: int) -> int:
        return _card_key(self._bus, key >> _APID_SHIFT)

    def keys(self, parent: int, after: int) -> Iterator[int]:
        device = self._bus.cards.get(parent >> _APID_SHIFT)
        return _queue_keys(device, device.queues.after(-1 if after < 0 else _apqi(after))) if device else iter(())

    def count(self, parent: int) -> int:
        device = self._bus.cards.get(parent >> _APID_SHIFT)
        return len(device.queues) if device else 0


class QueueLinks:
    """All queues, or those whose domain `of(card)` contains, in one row."""

    def __init__(self, bus: ApBus, of: Callable[[ApCard], Mask]) -> None:
        self._bus = bus
        self._queues = Queues(bus)
        self._of = of

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        reached = after >> _APID_SHIFT
        for apid in sorted(self._bus.cards):
            if apid >= reached:
                device = self._bus.cards[apid]
                yield from _queue_keys(device, self._of(device).after(_apqi(after) if apid == reached else -1))

    def has(self, key: int) -> bool:
        queue = self._queues.subject(key)
        return queue is not None and queue.apqi in self._of(queue.card)

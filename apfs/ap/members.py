"""Which cards and queues there are, as directories and links show them."""

# ruff: noqa: D102 -- the methods are those of Members and Selection, which describe them

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.names import Apqn, card_name, parse_card_name, queue_name
from apfs.ap.queue import ApQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.ap.bus import ApBus
    from apfs.ap.card import ApCard
    from apfs.ap.mask import Mask


class Cards:
    """Card devices, keyed by `apid << 16`."""

    def __init__(self, bus: ApBus) -> None:
        self._bus = bus

    def name(self, key: int) -> str:
        return card_name(key >> 16)

    def find(self, name: str) -> int | None:
        apid = parse_card_name(name)
        return None if apid is None else apid << 16

    def subject(self, key: int) -> ApCard | None:
        return self._bus.cards.get(key >> 16)

    def parent(self, _key: int) -> int:
        return 0

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        return (apid << 16 for apid in sorted(self._bus.cards) if apid << 16 > after)

    def count(self, _parent: int) -> int:
        return len(self._bus.cards)

    def has(self, key: int) -> bool:
        return key >> 16 in self._bus.cards


class BoundCards(Cards):
    """Cards that a driver has."""

    def keys(self, parent: int, after: int) -> Iterator[int]:
        return (key for key in super().keys(parent, after) if self.has(key))

    def has(self, key: int) -> bool:
        device = self.subject(key)
        return device is not None and device.driver is not None


class Queues:
    """Queue devices, keyed by `apid << 16 | apqi`, in the directories of their cards."""

    def __init__(self, bus: ApBus) -> None:
        self._bus = bus

    def name(self, key: int) -> str:
        return queue_name(key >> 16, key & 0xFFFF)

    def find(self, name: str) -> int | None:
        apqn = Apqn.parse(name)
        return None if apqn is None else apqn.apid << 16 | apqn.apqi

    def subject(self, key: int) -> ApQueue | None:
        device = self._bus.cards.get(key >> 16)
        return ApQueue(device, key & 0xFFFF) if device is not None and key & 0xFFFF in device.queues else None

    def parent(self, key: int) -> int:
        return key & ~0xFFFF

    def keys(self, parent: int, after: int) -> Iterator[int]:
        device = self._bus.cards.get(parent >> 16)
        domains = device.queues.after(max(after - parent, -1)) if device else ()
        return (parent | apqi for apqi in domains)

    def count(self, parent: int) -> int:
        device = self._bus.cards.get(parent >> 16)
        return len(device.queues) if device else 0


class QueueLinks:
    """All queues, or those whose domain `of(card)` contains, in one row."""

    def __init__(self, bus: ApBus, of: Callable[[ApCard], Mask]) -> None:
        self._bus = bus
        self._of = of

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        for apid in sorted(self._bus.cards):
            base = apid << 16
            if base | 0xFFFF > after:
                yield from map(base.__or__, self._of(self._bus.cards[apid]).after(max(after - base, -1)))

    def has(self, key: int) -> bool:
        device = self._bus.cards.get(key >> 16)
        return device is not None and (key & 0xFFFF) in device.queues and (key & 0xFFFF) in self._of(device)

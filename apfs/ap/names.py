"""Names of devices on the AP bus: `card05`, and `05.00ab` for the queue of adapter 5 and domain 0xab."""

from __future__ import annotations

from typing import NamedTuple

_CARDS = tuple(f"card{apid:02x}" for apid in range(256))
_CARD_NUMBERS = {name: apid for apid, name in enumerate(_CARDS)}

# Listings name thousands of queues: joining two parts takes a third of the time that formatting takes.
_ADAPTERS = tuple(f"{apid:02x}" for apid in range(256))
_DOMAINS = tuple(f".{apqi:04x}" for apqi in range(256))
_APIDS = {name: apid for apid, name in enumerate(_ADAPTERS)}
_APQIS = {name: apqi for apqi, name in enumerate(_DOMAINS)}


def card_name(apid: int) -> str:
    """Return the device name of a card, such as `card05`."""
    return _CARDS[apid]


def parse_card_name(name: str) -> int | None:
    """Return the adapter of a card's device name, None if the text is not exactly one."""
    return _CARD_NUMBERS.get(name)


def queue_name(apid: int, apqi: int) -> str:
    """Return the device name of a queue, such as `05.00ab`."""
    return _ADAPTERS[apid] + _DOMAINS[apqi]


class Apqn(NamedTuple):
    """An AP queue number: the pair of an adapter and a domain, each 0..255."""

    apid: int
    apqi: int

    def __str__(self) -> str:
        return queue_name(*self)

    @classmethod
    def parse(cls, name: str) -> Apqn | None:
        """Return the number of a queue's device name, None if the text is not exactly one."""
        apid, apqi = _APIDS.get(name[:2]), _APQIS.get(name[2:])
        return None if apid is None or apqi is None else cls(apid, apqi)

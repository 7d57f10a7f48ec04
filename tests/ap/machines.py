"""Machines to test the AP bus with, and how their masks read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.hosts import Bench

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BUS = "/sys/bus/ap"
DEVICES = "/sys/devices/ap"
CARD0, CARD4 = f"{DEVICES}/card00", f"{DEVICES}/card04"
Q0, Q4 = f"{CARD0}/00.0029", f"{CARD4}/04.0029"
ALL_ONES = "0x" + "f" * 64

SAMPLE = """
name = "sample"
vfio_ap = false

[qci]
domains = [0x29, 0x2a]
max_domain = 84

[[card]]
adapter = 0
type = "CEX8C"
serial = "93AABEET"

[[card]]
adapter = 4
type = "CEX8P"
serial = "93AABFKP00000000"
"""
"""A CCA card and an EP11 card with two domains, without vfio_ap."""


def toml(cards: Mapping[int, str], domains: Sequence[int], top: str = "", qci: str = "", card: str = "") -> str:
    """Return a scenario; `top`, `qci` and `card` are more lines for the top level, for QCI, and for every card."""
    tables = [f'[[card]]\nadapter = {apid}\ntype = "{kind}"\n{card}\n' for apid, kind in cards.items()]
    return f"{top}\n[qci]\ndomains = {list(domains)}\n{qci}\n" + "\n".join(tables)


def sample(*, vfio_ap: bool = False) -> Bench:
    """Return the sample machine, if wanted with the module vfio_ap."""
    return Bench(SAMPLE, vfio_ap=vfio_ap)


def bits(*numbers: int) -> str:
    """Return the text of a mask with these bits."""
    return f"0x{sum(1 << 255 - number for number in set(numbers)):064x}\n"


def all_but(*numbers: int) -> str:
    """Return the text of a mask with all bits but these."""
    return bits(*(set(range(256)) - set(numbers)))

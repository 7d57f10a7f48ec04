"""TAPQ and QCI: hardware information of queues, the host's AP configuration, and the types of cards.

Bits are numbered as by IBM: bit 0 is the most significant one. Sources: arch/s390/include/asm/ap.h (ap_tapq_hwinfo,
ap_queue_status, ap_config_info).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from apfs.ap.mask import NONE, Mask

if TYPE_CHECKING:
    from collections.abc import Mapping


class Response(IntEnum):
    """Response codes of PQAP instructions (AP_RESPONSE_*)."""

    NORMAL = 0x00
    Q_NOT_AVAIL = 0x01
    RESET_IN_PROGRESS = 0x02
    DECONFIGURED = 0x03
    CHECKSTOPPED = 0x04
    BUSY = 0x05
    OTHERWISE_CHANGED = 0x07
    STATE_CHANGE_IN_PROGRESS = 0x0A


TAPQ_VALID = frozenset(
    (Response.NORMAL, Response.RESET_IN_PROGRESS, Response.DECONFIGURED, Response.CHECKSTOPPED, Response.BUSY)
)
"""Responses that come with queue information; any other one means that there is no such queue."""


class Field(NamedTuple):
    """A bit field of the TAPQ information word (GR2, 64 bits)."""

    shift: int
    width: int

    def get(self, word: int) -> int:
        """Return the field's value."""
        return word >> self.shift & ((1 << self.width) - 1)

    def set(self, word: int, value: int) -> int:
        """Return the word with the field replaced; `ValueError` if the value is too big for it."""
        if not 0 <= value < 1 << self.width:
            msg = f"{value:#x} does not fit into {self.width} bits"
            raise ValueError(msg)
        return word & ~(((1 << self.width) - 1) << self.shift) | value << self.shift


FIELDS = {
    "apsc": Field(63, 1),  # special-command facility
    "mex4k": Field(62, 1),  # 4096-bit modulus-exponent
    "crt4k": Field(61, 1),  # 4096-bit CRT
    "cca": Field(60, 1),
    "accel": Field(59, 1),
    "ep11": Field(58, 1),
    "apxa": Field(57, 1),  # extended addressing
    "slcf": Field(56, 1),  # stateless-command filtering
    "class": Field(48, 8),  # 0x80 full native function, 0x40 stateless functions only
    "bs": Field(46, 2),  # secure execution bind state
    "at": Field(24, 8),  # AP type: 10 is CEX4, 14 is CEX8
    "nd": Field(16, 8),  # domain limit
    "ml": Field(8, 4),  # message limit in units of 4096 bytes, 0 for the default of 12288
    "qd": Field(0, 4),  # queue depth minus one
}
"""Fields by the name that scenarios and the console give them."""
FAC = Field(32, 32)
"""All of the upper word, the facility bits."""


def with_fields(word: int, values: Mapping[str, int]) -> int:
    """Return a TAPQ word with fields replaced; `ValueError` for an unknown name, or a value that does not fit."""
    for name, value in values.items():
        if name not in FIELDS:
            msg = f"no TAPQ field {name!r}: there are {', '.join(FIELDS)}"
            raise ValueError(msg)
        try:
            word = FIELDS[name].set(word, value)
        except ValueError as error:
            msg = f"{name}: {error}"
            raise ValueError(msg) from None
    return word


CARD_HWINFO_MASK = 0xFFFF0000FFFF0F0F
"""The bits of a queue's word that the bus keeps for the whole card (TAPQ_CARD_HWINFO_MASK)."""
CARD_HWINFO_MASKS = {"raw": 0xFFFFFFFFFFFF0F0F, "noslcf": 0xFEFF0000FFFF0F0F, "slcf": CARD_HWINFO_MASK}
"""The same by the feature `card_functions` of the kernel."""

MODES = {"A": "accel", "C": "cca", "P": "ep11"}
"""Modes of operation by the letter that card types have for them."""
_LETTERS = {mode: letter for letter, mode in MODES.items()}
GENERATIONS = {f"CEX{generation}": generation + 6 for generation in range(4, 9)}
OLDEST, NEWEST = min(GENERATIONS.values()), max(GENERATIONS.values())
"""AP types that Linux knows: 10 is CEX4, 14 is CEX8."""
_FACILITIES = {"A": 0x6A800000, "C": 0x92800000, "P": 0x06800000}
_DOMAIN_LIMIT, _MESSAGE_LIMIT, _QUEUE_DEPTH = 0x54, 3, 7


def hwinfo_of(card: str) -> int:
    """Return the usual TAPQ word of a card such as `CEX8C`; `ValueError` for an unknown type."""
    generation, mode = card[:-1], card[-1:]
    if generation not in GENERATIONS or mode not in _FACILITIES:
        msg = f"unknown card type {card!r}: expected CEX4 to CEX8 and A (accelerator), C (CCA) or P (EP11)"
        raise ValueError(msg)
    return (
        _FACILITIES[mode] << FAC.shift
        | GENERATIONS[generation] << FIELDS["at"].shift
        | _DOMAIN_LIMIT << FIELDS["nd"].shift
        | _MESSAGE_LIMIT << FIELDS["ml"].shift
        | _QUEUE_DEPTH << FIELDS["qd"].shift
    )


@cache  # there are few different words, and every listing asks
def mode_of(hwinfo: int) -> str | None:
    """Mode of operation, `accel`, `cca` or `ep11` in that order of priority; None if no mode bit is set."""
    for name in ("accel", "cca", "ep11"):
        if FIELDS[name].get(hwinfo):
            return name
    return None


@cache
def coprocessor_of(hwinfo: int) -> str | None:
    """Coprocessor whose attributes zcrypt adds, `cca` before `ep11`, even to accelerators (zcrypt_cex4_card_probe)."""
    for name in ("cca", "ep11"):
        if FIELDS[name].get(hwinfo):
            return name
    return None


def can_be_bound(hwinfo: int) -> bool:
    """Whether secure execution guests can have such queues, and bind them (ap_q_supports_bind)."""
    return bool(FIELDS["accel"].get(hwinfo) or FIELDS["ep11"].get(hwinfo))


def card_type(hwtype: int, hwinfo: int) -> str:
    """Return zcrypt's name for cards such as this, for example `CEX8C`."""
    return f"CEX{hwtype - 6}{_LETTERS[mode_of(hwinfo) or 'cca']}"


def nearest_type(hwinfo: int) -> str:
    """Return the card type, such as `CEX8C`, whose usual TAPQ word is nearest to a word."""
    return card_type(min(max(FIELDS["at"].get(hwinfo), OLDEST), NEWEST), hwinfo)


def compatible_type(raw: int, newest: int, *, qact: bool) -> int | None:
    """Return the type that Linux treats a card as (ap_get_compatible_type), None if it does not know it.

    Types above the newest that it knows are treated as that one if QACT is installed.
    """
    if raw < OLDEST or (raw > newest and not qact):
        return None
    return min(raw, newest)


FACILITIES = ("APSC", "APXA", "QACT", "RC8A", "APSB")
"""Facilities of QCI in the order in which the bus attribute `features` names them."""


@dataclass(frozen=True, slots=True)
class Qci:
    """The host's AP configuration (PQAP(QCI), struct ap_config_info).

    `facilities` empty together with `supported` False is a machine without the instruction: then every mask is empty
    and the limits are 63 adapters and 15 domains.
    """

    adapters: Mask = NONE
    domains: Mask = NONE
    control_domains: Mask = NONE
    max_adapter: int = 255
    max_domain: int = 255
    facilities: frozenset[str] = field(default_factory=lambda: frozenset(("APSC", "APXA", "QACT", "RC8A")))
    supported: bool = True

    @property
    def apxa(self) -> bool:
        """Whether extended addressing is installed, which the two maxima need."""
        return "APXA" in self.facilities

    def limits(self) -> tuple[int, int]:
        """Return the highest adapter and domain numbers that the bus scans (ap_init_qci_info)."""
        adapter = self.max_adapter if self.apxa and self.max_adapter else 63
        domain = self.max_domain if self.apxa and self.max_domain else 15
        return adapter, domain

    def limits_of_matrix(self) -> tuple[int, int]:
        """Return the highest numbers that can be assigned, of which 0 is one, too (vfio_ap_matrix_init)."""
        return (self.max_adapter, self.max_domain) if self.apxa else (63, 15)

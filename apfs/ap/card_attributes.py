"""The attributes common to all cards (drivers/s390/crypto/ap_card.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.qinfo import FIELDS
from apfs.ap.traffic import card_traffic
from apfs.errors import KernelError
from apfs.kernel.device import SYS, UEVENT, driver_link
from apfs.kernel.kstrtox import scan_d
from apfs.sysfs.entries import Attribute, Link

if TYPE_CHECKING:
    from apfs.ap.card import ApCard
    from apfs.kernel.profile import Profile

DEFAULT_MESSAGE_SIZE = 12288


def parse_switch(text: str, kernel: Profile) -> bool:
    """Parse 0 or 1, as sscanf does. EINVAL for anything else."""
    value = scan_d(text, kernel)
    if value not in (0, 1):
        raise KernelError(errno.EINVAL, f"{value} is neither 0 nor 1")
    return bool(value)


def hwtype_show(card: ApCard) -> str:
    """AP type that Linux treats the card as, 10 to 14."""
    return f"{card.hwtype}\n"


def raw_hwtype_show(card: ApCard) -> str:
    """AP type that the hardware reports."""
    return f"{card.raw_hwtype}\n"


def depth_show(card: ApCard) -> str:
    """Queue depth: the TAPQ field holds it minus one, which is what old kernels show."""
    return f"{FIELDS['qd'].get(card.hwinfo) + card.profile.depth_plus_one}\n"


def ap_functions_show(card: ApCard) -> str:
    """Facility word of the card, of which only bits 0 to 15 are card-wide."""
    return f"0x{card.hwinfo >> 32:08X}\n"


def request_count_show(card: ApCard) -> str:
    """Requests since the card appeared or since the last reset of the counter."""
    return f"{card.requests}\n"


def request_count_store(card: ApCard, _text: str) -> None:
    """Reset the counters of the card and of its bound queues, whatever is written."""
    card.reset_counters()


def requestq_count_show(card: ApCard) -> str:
    """Waiting requests in all queues."""
    return f"{sum(traffic.waiting for traffic in card_traffic(card))}\n"


def pendingq_count_show(card: ApCard) -> str:
    """Running requests in all queues."""
    return f"{sum(traffic.pending for traffic in card_traffic(card))}\n"


def modalias_show(card: ApCard) -> str:
    """Module alias by which udev loads zcrypt."""
    return f"{card.modalias}\n"


def config_show(card: ApCard) -> str:
    """Whether the card is configured."""
    return f"{int(card.config)}\n"


def config_store(card: ApCard, text: str) -> None:
    """Configure or deconfigure through SCLP. EINVAL, EOPNOTSUPP where the facility is missing, EIO on refusal.

    The event is sent even without a change; queues follow at the next scan.
    """
    card.configure(on=parse_switch(text, card.profile))


def chkstop_show(card: ApCard) -> str:
    """Whether the card is check-stopped."""
    return f"{int(card.chkstop)}\n"


def max_msg_size_show(card: ApCard) -> str:
    """Longest message in bytes: a multiple of 4096, or the default."""
    return f"{FIELDS['ml'].get(card.hwinfo) * 4096 or DEFAULT_MESSAGE_SIZE}\n"


SUBSYSTEM = Link("subsystem", lambda _device: f"{SYS}/bus/ap")
DRIVER = Link("driver", driver_link)

CARD_ATTRIBUTES = (
    UEVENT,
    SUBSYSTEM,
    DRIVER,
    Attribute("hwtype", 0o444, hwtype_show),
    Attribute("raw_hwtype", 0o444, raw_hwtype_show),
    Attribute("depth", 0o444, depth_show),
    Attribute("ap_functions", 0o444, ap_functions_show),
    Attribute("request_count", 0o644, request_count_show, request_count_store),
    Attribute("requestq_count", 0o444, requestq_count_show),
    Attribute("pendingq_count", 0o444, pendingq_count_show),
    Attribute("modalias", 0o444, modalias_show),
    Attribute("config", 0o644, config_show, config_store),
    Attribute("chkstop", 0o444, chkstop_show, kernels=lambda kernel: kernel.chkstop),
    Attribute("max_msg_size", 0o444, max_msg_size_show),
)

"""The attributes that the zcrypt drivers add to cards and queues bound to them (zcrypt_cex4.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.card_attributes import parse_switch
from apfs.ap.hardware import OLD_OP_MODES, OP_MODES
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.qinfo import card_type
from apfs.ap.traffic import card_traffic, queue_traffic
from apfs.ap.zcrypt import card_hardware, card_online, queue_hardware, queue_online, switch_card, switch_queue
from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from apfs.ap.card import ApCard
    from apfs.ap.hardware import CardHardware
    from apfs.ap.queue import ApQueue
    from apfs.kernel.profile import Profile

_CCA_PATTERNS = (("AES", "aes", 16), ("APKA", "apka", 16), ("ASYM", "asym", 32))


# -- cards -----------------------------------------------------------------------------------------


def card_bound(card: ApCard) -> bool:
    """Whether cex4card has the card."""
    return card.driver is not None


def card_coprocessor(card: ApCard) -> bool:
    """Whether it is a coprocessor of cex4card."""
    return card.driver is not None and card.coprocessor is not None


def card_ep11(card: ApCard) -> bool:
    """Whether it is an EP11 card of cex4card."""
    return card.driver is not None and card.coprocessor == "ep11"


def type_show(card: ApCard) -> str:
    """Generation and mode, such as `CEX8C`."""
    return f"{card_type(card.hwtype, card.hwinfo)}\n"


def card_online_show(card: ApCard) -> str:
    """1 if the card is online by software, configured and not check-stopped."""
    return f"{int(card_online(card))}\n"


def card_online_store(card: ApCard, text: str) -> None:
    """Switch the card and all its zcrypt queues on or off. EINVAL, ENODEV if it is not usable.

    The card's event is always sent, a queue's only if its own state changes.
    """
    switch_card(card, online=parse_switch(text, card.profile))


def card_load_show(card: ApCard) -> str:
    """Weight of the requests under way, in all queues."""
    return f"{sum(traffic.load for traffic in card_traffic(card))}\n"


def queue_load_show(queue: ApQueue) -> str:
    """Weight of the requests under way."""
    return f"{queue_traffic(queue).load}\n"


def serialnr_show(card: ApCard) -> str:
    """Serial number, 8 characters (CCA) or 16 columns (EP11); empty if no queue can be used to ask for it."""
    any_domain = card.mode == "ep11" or card.profile.serialnr_any_domain
    default = card.bus.default_domain
    hardware = card_hardware(card, ALL if any_domain else NONE if default < 0 else Mask.of(default))
    if hardware is None:
        return "\n"
    return f"{hardware.serial[:8]}\n" if card.coprocessor == "cca" else f"{hardware.serial[:16]:>16}\n"


def api_ordinalnr_show(card: ApCard) -> str:
    """EP11 API ordinal number; empty if it cannot be queried."""
    hardware = card_hardware(card)
    return f"{hardware.api_ordinal}\n" if hardware else "\n"


def fw_version_show(card: ApCard) -> str:
    """EP11 firmware version; empty if it cannot be queried."""
    hardware = card_hardware(card)
    return f"{hardware.firmware[0]}.{hardware.firmware[1]}\n" if hardware else "\n"


def _op_modes(hardware: CardHardware | None, kernel: Profile) -> str:
    known = OP_MODES if kernel.op_modes_full else OLD_OP_MODES
    names = [name for name in known if hardware and name in hardware.op_modes]
    return " ".join(names) + "\n"


def card_op_modes_show(card: ApCard) -> str:
    """EP11 operational modes, in bit order."""
    return _op_modes(card_hardware(card), card.profile)


def _effects(card: ApCard) -> tuple[object, ...]:
    """Return what asking a card can change: the bus scans for want of a queue, and kernels keep answers."""
    return card.bus.scans, card.answered, tuple(card.machine.unanswered.items())


def _queue_effects(queue: ApQueue) -> tuple[object, ...]:
    return _effects(queue.card)


CARD_ATTRIBUTES = (
    Attribute("type", 0o444, type_show, None, card_bound),
    Attribute("online", 0o644, card_online_show, card_online_store, card_bound),
    Attribute("load", 0o444, card_load_show, None, card_bound),
    Attribute("serialnr", 0o444, serialnr_show, None, card_coprocessor, effects=_effects),
    Attribute("API_ordinalnr", 0o444, api_ordinalnr_show, None, card_ep11, effects=_effects),
    Attribute("FW_version", 0o444, fw_version_show, None, card_ep11, effects=_effects),
    Attribute("op_modes", 0o444, card_op_modes_show, None, card_ep11, effects=_effects),
)

# -- queues ----------------------------------------------------------------------------------------


def queue_bound(queue: ApQueue) -> bool:
    """Whether cex4queue has the queue."""
    return queue.apqi in queue.card.zcrypt_bound()


def queue_has_keys(queue: ApQueue) -> bool:
    """Whether it is a queue of cex4queue on a card with master keys."""
    return queue.card.coprocessor is not None and queue_bound(queue)


def queue_ep11(queue: ApQueue) -> bool:
    """Whether it is an EP11 queue of cex4queue."""
    return queue.card.coprocessor == "ep11" and queue_bound(queue)


def queue_online_show(queue: ApQueue) -> str:
    """1 if the queue itself is online by software, configured and not check-stopped."""
    return f"{int(queue_online(queue))}\n"


def queue_online_store(queue: ApQueue, text: str) -> None:
    """Switch the queue. EINVAL, ENODEV for a queue or card that is not usable, EINVAL if its card is offline."""
    switch_queue(queue, online=parse_switch(text, queue.card.profile))


def _ask(queue: ApQueue) -> CardHardware | None:
    """Ask a queue for what only the card knows; None without an answer."""
    hardware = queue_hardware(queue)
    return None if hardware and queue.card.machine.stays_silent(queue.apqn) else hardware


def mkvps_show(queue: ApQueue) -> str:
    """Verification patterns of the master keys: nine lines for CCA, two for EP11; dashes if they cannot be queried."""
    hardware = _ask(queue)
    if queue.card.coprocessor == "ep11":
        if hardware is None:
            return "WK CUR: - -\nWK NEW: - -\n"
        keys = hardware.keys(queue.apqi)
        state = "uncommitted" if "wk" in keys.incomplete else "committed"
        new = f"{state} 0x{keys.new_wk}" if keys.new_wk else "empty -"
        return f"WK CUR: {f'valid 0x{keys.wk}' if keys.wk else 'invalid -'}\nWK NEW: {new}\n"
    lines = []
    for name, register, digits in _CCA_PATTERNS if queue.card.profile.mkvps_asym else _CCA_PATTERNS[:-1]:
        if hardware is None:
            lines += [f"{name} {state}: - -\n" for state in ("NEW", "CUR", "OLD")]
        else:
            keys, zero = hardware.keys(queue.apqi), "0" * digits
            new, current, old = (getattr(keys, f"{which}{register}") for which in ("new_", "", "old_"))
            lines += [
                f"{name} NEW: {'partial' if register in keys.incomplete else 'full'} 0x{new}\n"
                if new
                else f"{name} NEW: empty 0x{zero}\n",
                *(
                    f"{name} {which}: valid 0x{pattern}\n" if pattern else f"{name} {which}: invalid 0x{zero}\n"
                    for which, pattern in (("CUR", current), ("OLD", old))
                ),
            ]
    return "".join(lines)


def queue_op_modes_show(queue: ApQueue) -> str:
    """EP11 operational modes of the queue's domain; empty while offline."""
    return _op_modes(_ask(queue), queue.card.profile)


def _pool(mode: int, *, readable: bool) -> Attribute:
    return Attribute(
        "mempool_threshold",
        mode,
        lambda _module: "5\n",
        kernels=lambda kernel: kernel.zcrypt_pool_parameter and kernel.parameters_readable == readable,
    )


MODULE_PARAMETERS = (
    _pool(0o400, readable=True),
    _pool(0o440, readable=False),
    Attribute("hwrng_seed", 0o440, lambda _module: "1\n", kernels=lambda kernel: kernel.hwrng_seed_parameter),
)
QUEUE_ATTRIBUTES = (
    Attribute("online", 0o644, queue_online_show, queue_online_store, queue_bound),
    Attribute("load", 0o444, queue_load_show, None, queue_bound),
    Attribute("mkvps", 0o444, mkvps_show, None, queue_has_keys, effects=_queue_effects),
    Attribute("op_modes", 0o444, queue_op_modes_show, None, queue_ep11, effects=_queue_effects),
)

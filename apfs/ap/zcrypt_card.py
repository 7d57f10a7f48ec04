"""The state that zcrypt keeps for a card bound to it, and for its queues."""

from __future__ import annotations

from apfs.ap.mask import NONE, Mask


class ZcryptCard:
    """What cex4card makes of a card when it is bound, and its queues (struct zcrypt_card, struct zcrypt_queue).

    A queue belongs to the one that the card had when the queue was bound. If the card is unbound, nobody asks or
    switches the old one any more, but its queues stay in it until they are unbound.
    """

    def __init__(self) -> None:
        self.online = True
        """Software state; what users see also depends on the device."""
        self.rows: list[Mask] = []
        """Its queues, in order of binding."""
        self.queues = NONE
        self.online_queues = NONE
        """Those that are online by software."""

    def add(self, domains: Mask) -> None:
        """Have more queues, which are online (zcrypt_queue_register)."""
        self.rows.append(domains)
        self.queues |= domains
        self.online_queues |= domains

    def remove(self, domains: Mask) -> None:
        """Have queues no longer (zcrypt_queue_unregister)."""
        if not domains.isdisjoint(self.queues):
            self.rows = [row - domains for row in self.rows if not domains.issuperset(row)]
            self.queues -= domains
            self.online_queues -= domains

"""Uevents of rows of queues, and where to split a row so that actions of drivers come in between."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from apfs.ap.card import queue_uevent_keys
from apfs.ap.mask import NONE, Mask
from apfs.ap.queue import ApQueue
from apfs.journal.records import Uevent
from apfs.kernel.device import SYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.ap.bindings import BindingsEvent
    from apfs.ap.card import ApCard
    from apfs.journal.log import Journal
    from apfs.journal.records import Action


def cut(domains: Mask, alone: Mask) -> Iterator[Mask]:
    """Yield a row of queues, in ascending order, in pieces: each queue of `alone` by itself."""
    for apqi in alone:
        before = domains - domains.after(apqi - 1)
        if before:
            yield before
        yield Mask.of(apqi)
        domains = domains.after(apqi)
    if domains:
        yield domains


class QueueEvents:
    """Sends the uevents of queues, and between them the one that tells that all queues have a driver."""

    def __init__(self, journal: Journal, bindings: BindingsEvent) -> None:
        self._journal = journal
        self._bindings = bindings

    def send(self, card: ApCard, *actions: tuple[Action, Mask], were_unbound: Mask = NONE) -> None:
        """Send uevents, queue by queue: for each queue the actions whose mask contains it, in the order given.

        Only `bind` knows the driver: the others are sent before it, or when it is gone. `were_unbound` are those of the
        queues that existed without a driver before.
        """
        event = self._bindings
        if self._journal.muted and not event.at_probes:
            return
        row = reduce(or_, (domains for _, domains in actions))
        completed = event.completed_by(row, dict(actions).get("bind", NONE), were_unbound)
        for apqi in row:
            queue = ApQueue(card, apqi)
            devpath = queue.path.removeprefix(SYS)
            complete = card.bus.scans and event.at_probes and next(completed)
            for action, domains in actions:
                if apqi in domains:
                    if action == "bind" and complete:
                        event.send()
                    if self._journal.muted:
                        continue
                    driver = queue.driver if action == "bind" else None
                    keys = queue_uevent_keys(driver.name if driver else None, card.mode)
                    self._journal.add(Uevent(action, devpath, "ap", keys))

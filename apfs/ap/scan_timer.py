"""Time on AP buses: the timers that trigger scans (ap_scan_bus_timer_callback)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apfs.ap.bus import ApBus


def let_pass(seconds: int, buses: Callable[[], Iterable[ApBus]]) -> None:
    """Let time pass on buses. One scans whenever its period is over, in the order in which `buses()` has them then.

    For all of them the time has passed before the first one scans: a scan may make another bus scan, and its timer
    starts again then.

    The hardware stays as it is meanwhile. So once all buses have scanned twice and nothing came of it, the scans of the
    rest of the time are only counted: a day of a bus with 65,536 queues takes a minute otherwise.
    """
    quiet: Counter[ApBus] = Counter()
    while seconds:
        present = list(buses())
        if all(quiet[bus] > 1 for bus in present):
            for bus in present:
                _count(bus, seconds)
            return
        step = min(seconds, *(bus.until_scan for bus in present))
        seconds -= step
        for bus in present:
            bus.until_scan -= step
        before = _happened(present)
        for bus in present:
            if not bus.until_scan:
                bus.scan()
                quiet[bus] += 1
        if _happened(present) != before:
            quiet.clear()


def _happened(buses: Iterable[ApBus]) -> list[tuple[int, int]]:
    """Return numbers of which one grows when anything happens on a bus, or any name changes."""
    return [(bus.journal.last, bus.tree.nodes.changes.count) for bus in buses]


def _count(bus: ApBus, seconds: int) -> None:
    """Let time pass on a bus whose scans find nothing new."""
    scans, passed = divmod(seconds - bus.until_scan + bus.config_time, bus.config_time)
    bus.scans += scans
    bus.until_scan = bus.config_time - passed

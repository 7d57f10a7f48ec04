"""The uevent BINDINGS=complete: every queue has a driver; and when each kernel sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from apfs.kernel.device import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.ap.mask import Mask
    from apfs.kernel.device import EventSource
    from apfs.kernel.profile import Profile

Moment = Literal["first scan", "scan", "register", "probe"]

_MOMENTS: dict[str, tuple[Moment, ...]] = {
    "probe": ("first scan", "probe"),
    "scan": ("first scan", "scan"),
    "armed": ("first scan", "scan"),
    "armed_register": ("first scan", "scan", "register"),
}
"""When a kernel looks whether all bindings are complete, by its feature `bindings_event`: at the end of these."""


class BindingsEvent:
    """The event, and how often it was sent. `state` returns queues with a driver, all queues, and `complete`.

    Kernels that arm it tell once until it is armed again, by new hardware or a probe.
    """

    def __init__(self, root: EventSource, profile: Profile, state: Callable[[], tuple[int, int, bool]]) -> None:
        self._root = root
        self._state = state
        self._moments = _MOMENTS[profile.bindings_event]
        self._arms = profile.bindings_event in ("armed", "armed_register")
        self.at_probes = "probe" in self._moments
        """Whether each probe is such a moment."""
        self.armed = True
        self.count = 0

    def check(self, moment: Moment) -> None:
        """Announce that every queue has a driver, if so (ap_check_bindings_complete)."""
        if moment in self._moments and (self.armed or not self._arms) and self._state()[2]:
            self.send()

    def send(self) -> None:
        """Announce it."""
        self.armed = False
        self.count += 1
        emit(self._root, "change", ("BINDINGS", "complete"), ("COMPLETECOUNT", str(self.count)))

    def completed_by(self, row: Mask, bound: Mask, were_unbound: Mask) -> Iterator[bool]:
        """Yield of each queue of a row whether its probe was one after which every queue had a driver.

        `bound` are those that were bound, `were_unbound` those that existed without a driver before. Here the whole row
        has its new state already; in Linux the queues behind are still what they were.
        """
        with_driver, total, _ = self._state()
        for apqi in row:
            behind = row.after(apqi)
            yield total - with_driver == len(behind - bound) - len(behind & were_unbound)

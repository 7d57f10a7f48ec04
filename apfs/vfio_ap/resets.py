"""Meaning of response codes of resets, which differs between kernels (vfio_ap_mdev_reset_queue)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.mask import NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import Response
from apfs.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apfs.ap.hardware import Machine
    from apfs.kernel.profile import Profile

_AWAY = frozenset((Response.Q_NOT_AVAIL, Response.DECONFIGURED, Response.CHECKSTOPPED))
_PASSING = {
    "clean": frozenset((Response.NORMAL,)),
    "deconfigured": frozenset((Response.NORMAL, Response.DECONFIGURED)),
    "checkstopped": frozenset((Response.NORMAL, Response.DECONFIGURED, Response.CHECKSTOPPED)),
}
_SILENT = {"busy": _AWAY, "short": frozenset((Response.DECONFIGURED,)), "wait": frozenset((Response.Q_NOT_AVAIL,))}


# After one of these the driver resets once more (apq_reset_check), and an injected response is given once.
_RETRIED = (Response.RESET_IN_PROGRESS, Response.BUSY, Response.STATE_CHANGE_IN_PROGRESS)


def zeroize(machine: Machine, apid: int, domains: Mask) -> dict[Apqn, int]:
    """Zeroize queues of an adapter and wait; return those that ended with another response than 0."""
    failed: dict[Apqn, int] = {}
    responses = machine.zapq_row(apid, domains)
    while responses:
        unfinished = Mask.from_numbers(apqi for apqi, response in responses.items() if response in _RETRIED)
        failed |= {Apqn(apid, apqi): code for apqi, code in responses.items() if apqi not in unfinished}
        responses = machine.zapq_row(apid, unfinished) if unfinished else {}
    return failed


class ResetRules:
    """How a kernel judges resets."""

    def __init__(self, kernel: Profile) -> None:
        self.passing = _PASSING[kernel.passable]
        """Response codes with which a queue can be passed to a guest."""
        self.silent = _SILENT[kernel.reset_model]
        """Response codes of which nothing is logged."""
        self._model = kernel.reset_model
        # While these can be passed and check-stopped ones cannot, 0 is recorded for deconfigured queues.
        self._forgives = self._model == "short" or kernel.passable == "deconfigured"

    def remember(
        self, bad: Mapping[Apqn, int], rows: Sequence[tuple[int, Mask]], failed: Mapping[Apqn, int]
    ) -> dict[Apqn, int]:
        """Return which queues have a reset behind them that keeps them from guests: of those before, and of now."""
        again = dict(rows)
        kept = {apqn: code for apqn, code in bad.items() if apqn.apqi not in again.get(apqn.apid, NONE)}
        return kept | {apqn: code for apqn, code in failed.items() if code not in self.passing}

    def check(self, failed: Mapping[Apqn, int]) -> None:
        """Refuse a request to reset queues that ended with these response codes, none of them 0: EIO, EBUSY."""
        bad = {
            apqn: response
            for apqn, response in failed.items()
            if not (self._forgives and response == Response.DECONFIGURED)
        }
        if bad:
            # Where all are waited for at the end, any of them does; else the last one decides.
            apqn, response = list(bad.items())[0 if self._model == "wait" else -1]
            number = errno.EBUSY if self._model == "busy" and response in _AWAY else errno.EIO
            raise KernelError(number, f"reset of queue {apqn} ended with response code {response}")

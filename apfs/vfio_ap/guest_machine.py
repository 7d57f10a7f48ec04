"""The AP hardware of a guest: the host's hardware as seen through the guest's AP control block (APCB).

Nothing is copied. The host's hardware answers each instruction of the guest in its current state, if the APCB gives the
queue to the guest. So changes of a card are visible in the guest, and the guest's operations on a queue act on the
host's queue.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from apfs.ap.hardware import BS_UNBOUND, BS_USABLE, CardHardware, Machine
from apfs.ap.mask import NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import FIELDS, Qci, Response, mode_of
from apfs.errors import KernelError
from apfs.vfio_ap.matrix import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.vfio_ap.ops import MatrixMdev


class _PassedCards(Mapping[int, CardHardware]):
    """The host's cards that the guest has at present, by adapter."""

    def __init__(self, host: Machine, mdev: MatrixMdev) -> None:
        self._host = host
        self._mdev = mdev

    def __getitem__(self, apid: int) -> CardHardware:
        if apid not in self._mdev.apcb.adapters:
            raise KeyError(apid)
        return self._host.cards[apid]

    def __iter__(self) -> Iterator[int]:
        return (apid for apid in self._mdev.apcb.adapters if apid in self._host.cards)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class GuestMachine(Machine):
    """The machine of the guest that has a mediated device."""

    def __init__(self, host: Machine, mdev: MatrixMdev) -> None:
        super().__init__(host.configuration, "kvm", secure_execution=mdev.secure_execution)
        self._host = host
        self._mdev = mdev
        self.cards = _PassedCards(host, mdev)
        self._had = EMPTY
        self._unbound: set[Apqn] = set()
        """Queues that became available for binding because this guest got them."""

    @property
    def interrupts(self) -> bool:
        """Whether AP adapter interrupts can be used: if the host can use them."""
        return self._host.interrupts

    @property
    def configuration(self) -> Qci:
        """What QCI reports: limits and facilities of the host, and the masks of the APCB."""
        host, apcb = self._host.configuration, self._mdev.apcb
        return Qci(
            apcb.adapters,
            apcb.domains,
            apcb.control_domains,
            host.max_adapter,
            host.max_domain,
            host.facilities,
            host.supported,
        )

    def change(
        self, *, adapters: Mask | None = None, domains: Mask | None = None, control_domains: Mask | None = None
    ) -> NoReturn:
        """Refuse with EOPNOTSUPP: the host's driver programs the APCB."""
        del adapters, domains, control_domains
        raise KernelError(errno.EOPNOTSUPP, "a guest's hardware belongs to its host")

    def domains_of(self, apid: int) -> Mask:
        """Return the domains of an adapter for which TAPQ gives information."""
        apcb = self._mdev.apcb
        return self._host.domains_of(apid) & apcb.domains if apid in apcb.adapters else NONE

    def tapq(self, apid: int, apqi: int) -> tuple[Response, int]:
        """Execute PQAP(TAPQ): the host's answer for what the APCB has."""
        if self._mdev.apcb.has(Apqn(apid, apqi)):
            return self._host.tapq(apid, apqi)
        return Response.Q_NOT_AVAIL, 0

    def zapq_row(self, apid: int, domains: Mask) -> dict[int, int]:
        """Execute PQAP(ZAPQ) on the host's queues; return response codes other than 0."""
        passed = domains & self.domains_of(apid)
        bad = {apqi: int(Response.Q_NOT_AVAIL) for apqi in domains - passed}
        bad |= self._host.zapq_row(apid, passed)
        for apqn in [apqn for apqn in self.failing_resets if apqn.apid == apid and apqn.apqi in domains]:
            bad[apqn.apqi] = self.failing_resets.pop(apqn)
        return {apqi: response for apqi, response in sorted(bad.items()) if response}

    def set_bind_state(self, apid: int, apqi: int, state: int) -> None:
        """Keep the outcome of a bind or an association with the host's queue, if the guest has that queue."""
        if self._mdev.apcb.has(Apqn(apid, apqi)):
            self._host.set_bind_state(apid, apqi, state)

    def reprogrammed(self) -> None:
        """Do what firmware does when the APCB has changed: queues that a Secure Execution guest gets can be bound.

        A queue is bound to this very guest: binding and association end when the guest no longer has the queue.
        """
        had, self._had = self._had, self._mdev.apcb
        if not self.secure_binding:
            return
        for apqn in set(had.apqns()) - set(self._had.apqns()):
            if apqn in self._unbound:
                self._unbound.discard(apqn)
                self._host.set_bind_state(*apqn, BS_USABLE)
        for apqn in set(self._had.apqns()) - set(had.apqns()):
            response, word = self._host.tapq(*apqn)
            bindable = mode_of(word) in ("accel", "ep11") and FIELDS["bs"].get(word) == BS_USABLE
            if response != Response.Q_NOT_AVAIL and bindable:
                self._unbound.add(apqn)
                self._host.set_bind_state(*apqn, BS_UNBOUND)

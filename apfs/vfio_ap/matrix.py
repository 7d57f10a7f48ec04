"""The rules of the vfio_ap driver: who may be assigned what, and what of it a guest gets (vfio_ap_ops.c).

Of every mediated device there are two matrices. `matrix` is what was assigned; `shadow` is what the guest has or would
have: what the host has of it, less the adapters with a queue that is not bound to the driver. Which queues are linked
to a device is not stored: they are those that are bound to the driver and assigned.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from apfs.ap.mask import NONE, Mask
from apfs.ap.qinfo import FIELDS, OLDEST, Apqn, Response
from apfs.errors import KernelError
from apfs.journal.records import GuestUpdate, Migration, QueuesReset
from apfs.vfio.device import IRQ_CONFIG_CHANGED
from apfs.vfio.fsm import State, next_state
from apfs.vfio_ap.migration import MigrationFile, ResumingFile, Row, SavingFile, Target, make_stream, stream_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.ap.bus import ApBus
    from apfs.ap.card import ApCard
    from apfs.ap.driver import ApDriver
    from apfs.ap.qinfo import Qci
    from apfs.mdev.core import Mdev
    from apfs.vfio.device import VfioDevice

Axis = Literal["adapter", "domain", "control_domain"]
_PASSING = (Response.NORMAL, Response.DECONFIGURED, Response.CHECKSTOPPED)


class Matrix(NamedTuple):
    """Adapters, usage domains and control domains (struct ap_matrix)."""

    apm: Mask = NONE
    aqm: Mask = NONE
    adm: Mask = NONE

    def apqns(self) -> Iterator[Apqn]:
        """Yield the product of adapters and domains, ascending."""
        return (Apqn(apid, apqi) for apid in self.apm for apqi in self.aqm)

    @property
    def size(self) -> int:
        """The number of APQNs."""
        return len(self.apm) * len(self.aqm)

    def shared(self, other: Matrix) -> Matrix:
        """Return the APQNs that both have, as a matrix."""
        return Matrix(self.apm & other.apm, self.aqm & other.aqm)

    def without(self, axis: Axis, number: int) -> Matrix:
        """Return the matrix with a number taken out."""
        return self.with_mask(axis, self.mask(axis).without(number))

    def mask(self, axis: Axis) -> Mask:
        """Return one of the masks."""
        if axis == "adapter":
            return self.apm
        return self.aqm if axis == "domain" else self.adm

    def with_mask(self, axis: Axis, mask: Mask) -> Matrix:
        """Return the matrix with one of its masks replaced."""
        if axis == "adapter":
            return Matrix(mask, self.aqm, self.adm)
        return Matrix(self.apm, mask, self.adm) if axis == "domain" else Matrix(self.apm, self.aqm, mask)


EMPTY = Matrix()


@dataclass(frozen=True, slots=True)
class Limits:
    """Highest numbers that can be assigned, fixed when the device is created."""

    adapter: int
    domain: int
    control_domain: int


class MatrixDevice:
    """What all mediated devices of the driver share (struct ap_matrix_dev)."""

    def __init__(self, bus: ApBus, driver: ApDriver) -> None:
        self.bus = bus
        self.journal = bus.journal
        self.driver = driver
        self.info: Qci = bus.machine.qci()
        """The host configuration as the driver knows it: read at load, replaced when a scan reports a change."""
        self.mdevs: list[MatrixMdev] = []
        """Oldest first."""
        self.bad_resets: dict[Apqn, int] = {}
        """Queues whose last reset ended with a response that keeps them from guests."""

    def bound(self, apid: int) -> Mask:
        """Return the domains whose queues on an adapter are bound to the driver."""
        card = self.bus.cards.get(apid)
        return card.bound.get(self.driver, NONE) if card else NONE

    def passable(self, apid: int) -> Mask:
        """Return the domains whose queues on an adapter can be passed to a guest."""
        bound = self.bound(apid)
        for apqn in self.bad_resets:
            if apqn.apid == apid:
                bound = bound.without(apqn.apqi)
        return bound

    def owner(self, apqn: Apqn) -> MatrixMdev | None:
        """Return the device that an APQN is assigned to."""
        return next(
            (mdev for mdev in self.mdevs if apqn.apid in mdev.matrix.apm and apqn.apqi in mdev.matrix.aqm), None
        )

    def reset(self, rows: Iterable[tuple[int, Mask]]) -> dict[Apqn, int]:
        """Zeroize queues and wait (vfio_ap_mdev_reset_queue); return those that ended with another response than 0."""
        failed: dict[Apqn, int] = {}
        count = 0
        for apid, domains in rows:
            count += len(domains)
            for apqi, response in self.bus.machine.zapq_row(apid, domains).items():
                failed[Apqn(apid, apqi)] = response
            if self.bad_resets:
                self.bad_resets = {
                    apqn: response
                    for apqn, response in self.bad_resets.items()
                    if apqn.apid != apid or apqn.apqi not in domains
                }
        for apqn, response in failed.items():
            if response not in _PASSING:
                self.bad_resets[apqn] = response
                self.journal.log("warn", f"vfio_ap: reset of queue {apqn} failed, response code {response}")
        if count:
            self.journal.add(QueuesReset(count, {str(apqn): response for apqn, response in failed.items()}))
        return failed

    # -- what the AP bus tells ---------------------------------------------------------------------

    def probe_queues(self, card: ApCard, domains: Mask) -> None:
        """Get queues: devices that they are assigned to may now pass them (vfio_ap_mdev_probe_queue).

        Not while additions to the host configuration wait for the end of the scan.
        """
        for mdev in self._assignees(card.apid, domains):
            if not mdev.pending.apm and not mdev.pending.aqm:
                mdev.refilter()

    def remove_queues(self, card: ApCard, domains: Mask) -> None:
        """Lose queues (vfio_ap_mdev_remove_queue): a guest that has one of them loses the whole adapter, at once."""
        rest = domains
        for mdev in self._assignees(card.apid, domains):
            if card.apid in mdev.shadow.apm and not domains.isdisjoint(mdev.shadow.aqm):
                mdev.shadow = mdev.shadow.without("adapter", card.apid)
                mdev.push()
                zeroized = mdev.linked(card.apid) & mdev.shadow.aqm
                self.reset([(card.apid, zeroized)])
                rest -= zeroized
        if card.apid in self.info.adapters:
            self.reset([(card.apid, rest & self.info.domains)])
        for apqi in domains:
            self.bad_resets.pop(Apqn(card.apid, apqi), None)

    def _assignees(self, apid: int, domains: Mask) -> list[MatrixMdev]:
        return [mdev for mdev in self.mdevs if apid in mdev.matrix.apm and not domains.isdisjoint(mdev.matrix.aqm)]

    def in_use(self, adapters: Mask, domains: Mask) -> bool:
        """Whether a device has an APQN of adapters x domains assigned; the newest such one is named in the log."""
        for mdev in reversed(self.mdevs):
            shared = mdev.matrix.shared(Matrix(adapters, domains))
            if shared.size:
                for apqn in shared.apqns():
                    mdev.log("warn", f"queue {apqn} is assigned to this device and cannot be reserved for the host")
                return True
        return False

    def on_config_changed(self, new: Qci, old: Qci) -> None:
        """Take what the host lost from guests, and remember what it gained until the scan is complete."""
        added = Matrix(
            new.adapters - old.adapters, new.domains - old.domains, new.control_domains - old.control_domains
        )
        added = added._replace(apm=added.apm - self._too_old(added))
        for mdev in self.mdevs:
            before = mdev.shadow
            mdev.shadow = before._replace(
                apm=before.apm - (old.adapters - new.adapters), aqm=before.aqm - (old.domains - new.domains)
            )
            if mdev.shadow != before:
                mdev.push()
            mdev.pending = Matrix(
                *(getattr(added, mask) & getattr(mdev.matrix, mask) for mask in ("apm", "aqm", "adm"))
            )
        self.info = new

    def _too_old(self, added: Matrix) -> Mask:
        """Return the adapters of a type that the driver does not serve (vfio_ap_filter_apid_by_qtype)."""
        if not added.aqm:
            return NONE
        types = {apid: FIELDS["at"].get(self.bus.machine.tapq(apid, added.aqm.lowest())[1]) for apid in added.apm}
        return Mask.from_numbers(apid for apid, card_type in types.items() if card_type < OLDEST)

    def on_scan_complete(self) -> None:
        """Give guests what the host gained."""
        for mdev in self.mdevs:
            pending, mdev.pending = mdev.pending, EMPTY
            if pending != EMPTY:
                mdev.refilter(matrix=bool(pending.apm or pending.aqm), control_domains=bool(pending.adm))


class MatrixMdev:
    """A mediated matrix device (struct ap_matrix_mdev)."""

    def __init__(self, matrix_dev: MatrixDevice, mdev: Mdev) -> None:
        self.matrix_dev = matrix_dev
        self.mdev = mdev
        self.journal = matrix_dev.journal
        limits = matrix_dev.info.limits()
        self.limits = Limits(limits[0], limits[1], limits[1])
        self.matrix = EMPTY
        self.shadow = EMPTY
        self.pending = EMPTY
        """Assigned numbers that the host gained and that the guest gets when the scan is complete."""
        self.vm: object | None = None
        """The VM that has the device, None without a guest."""
        self.vdev: VfioDevice
        self.state = State.RUNNING
        self.transfer: MigrationFile | None = None

    def log(self, level: str, text: str) -> None:
        """Write a line to the kernel log with the device's name in front."""
        self.journal.log(level, f"vfio_ap_mdev {self.mdev.uuid}: {text}")

    # -- assignment --------------------------------------------------------------------------------

    def assign(self, axis: Axis, number: int) -> None:
        """Assign an adapter, a domain or a control domain.

        ENODEV above the limit; for adapters and domains EADDRNOTAVAIL if an APQN of the new product is reserved for
        the host and EADDRINUSE if another device has one. Assigning again succeeds without any check.
        """
        self._check_range(axis, number)
        assigned = self.matrix.mask(axis)
        if number in assigned:
            return
        prospective = self.matrix.with_mask(axis, assigned.with_(number))
        if axis != "control_domain":
            self._validate(prospective)
        self.matrix = prospective
        self.refilter(matrix=axis != "control_domain", control_domains=axis == "control_domain")

    def unassign(self, axis: Axis, number: int) -> None:
        """Take a number back, from the guest at once; nothing else is filtered. ENODEV above the limit."""
        self._check_range(axis, number)
        assigned = self.matrix.mask(axis)
        if number not in assigned:
            return
        linked = self._linked_rows()
        self.matrix = self.matrix.with_mask(axis, assigned.without(number))
        if number in self.shadow.mask(axis):
            self._unplug(axis, NONE.with_(number), linked)

    def replace(self, matrix: Matrix) -> None:
        """Replace all three masks (ap_config_store). EADDRNOTAVAIL, EADDRINUSE, then ENODEV above a limit."""
        self._validate(matrix)
        axes: tuple[Axis, ...] = ("adapter", "domain", "control_domain")
        for axis in axes:
            for number in matrix.mask(axis):
                self._check_range(axis, number)
        for axis in axes[:2]:
            linked = self._linked_rows()
            kept = self.matrix.mask(axis) & matrix.mask(axis)
            gone = self.shadow.mask(axis) - kept
            self.matrix = self.matrix.with_mask(axis, kept)
            if gone:
                self._unplug(axis, gone, linked)
        self.matrix = matrix
        self.refilter(control_domains=True)

    def _check_range(self, axis: Axis, number: int) -> None:
        limit: int = getattr(self.limits, axis)
        if number > limit:
            raise KernelError(errno.ENODEV, f"{axis.replace('_', ' ')} {number} is above the limit of {limit}")

    def _validate(self, prospective: Matrix) -> None:
        """Check a whole product for APQNs of the host and of other devices (vfio_ap_mdev_validate_masks)."""
        bus = self.matrix_dev.bus
        for apid in prospective.apm:
            reserved = bus.reserved_for_host(apid)
            if not reserved.isdisjoint(prospective.aqm):
                apqn = Apqn(apid, (reserved & prospective.aqm).lowest())
                card = bus.cards.get(apid)
                overridden = card is not None and apqn.apqi in card.overrides
                advice = "bind it to vfio_ap" if overridden else "clear its bit in apmask or aqmask"
                reason = f"queue {apqn} is reserved for the host's zcrypt drivers: {advice} first"
                raise KernelError(errno.EADDRNOTAVAIL, reason)
        for other in reversed(self.matrix_dev.mdevs):
            shared = EMPTY if other is self else prospective.shared(other.matrix)
            if shared.size:
                for apqn in shared.apqns():
                    self.log("warn", f"queue {apqn} is already assigned to {other.mdev.uuid}")
                first = next(shared.apqns())
                raise KernelError(errno.EADDRINUSE, f"queue {first} is assigned to {other.mdev.uuid}")

    # -- the guest's matrix ------------------------------------------------------------------------

    def linked(self, apid: int) -> Mask:
        """Return the domains of an adapter whose queues are linked to the device."""
        return self.matrix_dev.bound(apid) & self.matrix.aqm if apid in self.matrix.apm else NONE

    def _linked_rows(self) -> list[tuple[int, Mask]]:
        assigned = self.matrix.aqm
        return [(apid, self.matrix_dev.bound(apid) & assigned) for apid in self.matrix.apm]

    def refilter(self, *, matrix: bool = True, control_domains: bool = False) -> None:
        """Compute what the guest gets anew, give it to the guest if it changed, and reset what was taken out."""
        before = self.shadow
        if matrix:
            self._filter_matrix()
        if control_domains:
            self.shadow = self.shadow._replace(adm=self.matrix.adm & self.matrix_dev.info.control_domains)
        if self.shadow != before:
            self.push()
            out = before.apm - self.shadow.apm
            if out:
                self.matrix_dev.reset((apid, self.linked(apid) & self.shadow.aqm) for apid in out & self.matrix.apm)

    def _filter_matrix(self) -> None:
        """Keep of what the host has the adapters all of whose queues can be passed (vfio_ap_mdev_filter_matrix)."""
        info = self.matrix_dev.info
        aqm = self.matrix.aqm & info.domains
        candidates = self.matrix.apm & info.adapters
        if aqm:
            for apid in candidates:
                if not self.matrix_dev.passable(apid).issuperset(aqm):
                    candidates = candidates.without(apid)
        self.shadow = Matrix(candidates, aqm, self.shadow.adm)

    def _unplug(self, axis: Axis, numbers: Mask, linked: list[tuple[int, Mask]]) -> None:
        """Take numbers out of the guest's matrix, then reset the linked queues that the guest had of them."""
        before = self.shadow
        had = before.mask(axis)
        self.shadow = before.with_mask(axis, had - numbers)
        self.push()
        if axis != "control_domain":
            lost = before.with_mask(axis, had & numbers)
            self.matrix_dev.reset([(apid, domains & lost.aqm) for apid, domains in linked if apid in lost.apm])

    def push(self) -> None:
        """Program a running guest with its matrix and tell its VMM (vfio_ap_mdev_update_guest_apcb)."""
        if self.vm is not None:
            self._program(self.shadow)
            self.vdev.signal(IRQ_CONFIG_CHANGED)

    def _program(self, matrix: Matrix) -> None:
        masks = (mask.hex256() for mask in (matrix.apm, matrix.aqm, matrix.adm))
        self.journal.add(GuestUpdate(self.mdev.uuid, *masks))

    def in_guest(self, apqn: Apqn) -> bool:
        """Whether a running guest has this queue."""
        return self.vm is not None and apqn.apid in self.shadow.apm and apqn.apqi in self.shadow.aqm

    # -- the VFIO device ---------------------------------------------------------------------------

    def open_device(self, vm: object | None) -> None:
        """Attach to a VM (vfio_ap_mdev_set_kvm). EINVAL without one, EPERM if the VM has another such device."""
        if vm is None:
            raise KernelError(errno.EINVAL, "no VM is associated with the device")
        if any(other.vm is vm for other in self.matrix_dev.mdevs):
            raise KernelError(errno.EPERM, "the VM has a vfio_ap device already")
        self.vm = vm
        self.state = State.RUNNING
        self.push()

    def close_device(self) -> None:
        """Detach from the VM: the guest loses everything, all linked queues are reset, a migration session ends."""
        self._end_session()
        self.state = State.RUNNING
        self._program(EMPTY)
        self.vm = None
        self.matrix_dev.reset(self._linked_rows())

    def release_queues(self) -> None:
        """Reset all linked queues because the device goes away."""
        self.matrix_dev.reset(self._linked_rows())

    def reset(self) -> None:
        """Reset all linked queues (VFIO_DEVICE_RESET). EIO if any ends with a response other than 0.

        Revision 2 leaves the migration state alone.
        """
        failed = self.matrix_dev.reset(self._linked_rows())
        if failed:
            apqn, response = next(iter(failed.items()))
            raise KernelError(errno.EIO, f"reset of queue {apqn} ended with response code {response}")

    # -- migration ---------------------------------------------------------------------------------

    def data_size(self) -> int:
        """Return the bytes of a stream of the guest matrix as it is now (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE)."""
        return stream_size(self.shadow.size)

    def set_state(self, target: int) -> MigrationFile | None:
        """Walk to a migration state; return the new transfer file if the last step makes one.

        EPERM on a secure execution host, EINVAL for a state that cannot be reached; then nothing has moved.
        """
        if self.matrix_dev.bus.machine.secure_execution:
            why = "live migration from or to a secure execution host is not allowed"
            self.log("err", why)
            raise KernelError(errno.EPERM, why)
        made = None
        next_state(self.state, target)
        while self.state != target:
            step = next_state(self.state, target)
            made = self._arc(step)
            self.journal.add(Migration(self.mdev.uuid, self.state.name, step.name))
            self.state = step
        return made

    def _arc(self, step: State) -> MigrationFile | None:
        if step == State.STOP:
            self._end_session()
        elif step == State.STOP_COPY:
            self.transfer = SavingFile(make_stream(self.shadow.size, self._guest_rows()))
            return self.transfer
        elif step == State.RESUMING:
            self.transfer = ResumingFile(self.shadow.size, self._as_target, self._log_error)
            return self.transfer
        return None

    def _end_session(self) -> None:
        if self.transfer:
            self.transfer.disable()
            self.transfer = None

    def _guest_rows(self) -> Iterator[Row]:
        cards = self.matrix_dev.bus.cards
        for apid in self.shadow.apm:
            domains = self.shadow.aqm & self.matrix_dev.bound(apid)
            if domains:
                yield Row(apid, domains, cards[apid].hwinfo)

    def _as_target(self) -> Target:
        return Target(self.shadow.size, self._guest_rows)

    def _log_error(self, line: str, *, prefix: bool = True) -> None:
        if prefix:
            self.log("err", line)
        else:
            self.journal.log("err", line)

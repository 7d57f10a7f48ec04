"""The rules of the vfio_ap driver: what can be assigned, and how much of it a guest gets (vfio_ap_ops.c).

Every mediated device has two matrices. `matrix` is what was assigned; `shadow` is what the guest has or would have: the
part of `matrix` that the host has, without adapters that have a queue not bound to the driver. The queues linked to a
device are not stored: they are those that are both bound to the driver and assigned.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.driver import ApDriver
from apfs.ap.mask import NONE, Mask
from apfs.ap.names import Apqn
from apfs.errors import KernelError
from apfs.journal.records import GuestUpdate, QueuesReset
from apfs.vfio.device import IRQ_CONFIG_CHANGED
from apfs.vfio_ap import config
from apfs.vfio_ap.bound import check_bound
from apfs.vfio_ap.matrix import AXES, EMPTY, Axis, Limits, Matrix
from apfs.vfio_ap.migration.stream import Row
from apfs.vfio_ap.resets import ResetRules, zeroize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apfs.ap.bus import ApBus
    from apfs.ap.qinfo import Qci, Response
    from apfs.journal.records import Level
    from apfs.mdev.core import Mdev
    from apfs.vfio.device import VfioDevice
    from apfs.vfio_ap.migration.revision import Migration, MigrationFile

MODULE = "vfio_ap"
_RESERVING = "is assigned to this device and cannot be reserved for the host"


class VfioApDriver(ApDriver):
    """The AP driver: gets the queues that are not reserved for the host, and gives them to guests.

    It has what all mediated devices share (struct ap_matrix_dev).
    """

    def __init__(self, bus: ApBus, revision: type[Migration] | None) -> None:
        """Be the driver with a revision of the migration series, None without any."""
        super().__init__(bus, MODULE, MODULE, "queue", default=False)
        self.ap_bus = bus
        self.kernel = bus.profile
        self.resets = ResetRules(self.kernel)
        self._revision = revision
        self.info: Qci = bus.machine.qci()
        """The host configuration as the driver knows it: read at load, replaced when a scan reports a change."""
        self.mdevs: list[MatrixMdev] = []
        """Oldest first."""
        self.transfer_files: list[MigrationFile] = []
        """Those of sessions under way, and those that outlive theirs because somebody has them open."""
        self.session_changed: Callable[[], None] = lambda: None
        """Called when a migration session begins or ends, because it has a file with a size."""
        self.bad_resets: dict[Apqn, int] = {}
        """Queues whose last reset ended with a response that keeps them from guests."""
        self.programmed: Callable[[MatrixMdev], None] = lambda _mdev: None
        """Called whenever a guest's matrix was programmed: at its start, at each change, at its end."""
        self.signalled: Callable[[MatrixMdev], None] = lambda _mdev: None
        """Called when a VMM was told by interrupt that what its guest has was programmed."""

    @property
    def migration(self) -> type[Migration] | None:
        """What it does for migration, None if it offers none here."""
        revision = self._revision
        if revision and self.ap_bus.machine.secure_execution and not revision.on_secure_execution_hosts:
            return None
        return revision

    def bound(self, apid: int) -> Mask:
        """Return the domains whose queues on an adapter are bound to the driver."""
        card = self.ap_bus.cards.get(apid)
        return card.bound.get(self, NONE) if card else NONE

    def passable(self, apid: int) -> Mask:
        """Return the domains whose queues on an adapter can be passed to a guest."""
        bound = self.bound(apid)
        for apqn in self.bad_resets:
            if apqn.apid == apid:
                bound = bound.without(apqn.apqi)
        return bound

    def owner(self, apqn: Apqn) -> MatrixMdev | None:
        """Return the device that an APQN is assigned to."""
        return next((mdev for mdev in self.mdevs if mdev.matrix.has(apqn)), None)

    def reset(self, rows: Sequence[tuple[int, Mask]]) -> dict[Apqn, int]:
        """Zeroize queues and wait (vfio_ap_mdev_reset_queue); return those that ended with another response than 0."""
        failed: dict[Apqn, int] = {}
        count = 0
        for apid, domains in rows:
            count += len(domains)
            failed |= zeroize(self.ap_bus.machine, apid, domains)
        if failed or self.bad_resets:
            self.bad_resets = self.resets.remember(self.bad_resets, rows, failed)
        for apqn, response in failed.items():
            if response not in self.resets.passing | self.resets.silent:
                self.journal.log("warn", f"vfio_ap: reset of queue {apqn} failed, response code {response}")
        if count:
            self.journal.add(QueuesReset(count, {str(apqn): response for apqn, response in failed.items()}))
        return failed

    # -- what the AP bus tells ---------------------------------------------------------------------

    def turns(self, apid: int, domains: Mask) -> Mask:
        """Return the queues at which running guests may be programmed."""
        return config.turns(self._assignees(apid, domains), apid, domains)

    def probe(self, apid: int, domains: Mask) -> None:
        """Get queues: devices that they are assigned to may now pass them (vfio_ap_mdev_probe_queue).

        Not while additions to the host configuration wait for the end of the scan, if the filter looks at everything.
        """
        for mdev in self._assignees(apid, domains):
            if not self.kernel.filter_whole or not (mdev.pending.adapters or mdev.pending.domains):
                mdev.refilter(added=mdev.matrix)

    def remove(self, apid: int, domains: Mask) -> None:
        """Lose queues (vfio_ap_mdev_remove_queue): a guest that has one of them loses the whole adapter at once."""
        rest = domains
        for mdev in self._assignees(apid, domains) if self.kernel.hotplug else ():
            shadow = mdev.shadow
            if apid in shadow.adapters and not domains.isdisjoint(shadow.domains):
                mdev.shadow = shadow.with_mask("adapters", shadow.adapters.without(apid))
                mdev.push()
                zeroized = mdev.linked(apid) & shadow.domains if self.kernel.reset_filtered else NONE
                self.reset([(apid, zeroized)])
                rest -= zeroized
        if not self.kernel.reset_filtered:
            self.reset([(apid, domains)])
        elif apid in self.info.adapters:
            self.reset([(apid, rest & self.info.domains)])
        for apqi in domains:
            self.bad_resets.pop(Apqn(apid, apqi), None)

    def _assignees(self, apid: int, domains: Mask) -> list[MatrixMdev]:
        return [mdev for mdev in self.mdevs if apid in mdev.matrix.adapters and domains & mdev.matrix.domains]

    def in_use(self, adapters: Mask, domains: Mask) -> bool:
        """Whether a device has an APQN of adapters x domains assigned; the newest such one is named in the log."""
        for mdev in reversed(self.mdevs):
            shared = mdev.matrix.shared(Matrix(adapters, domains))
            if shared.size:
                own_text = self.kernel.sharing_logged == "writer"
                mdev.log_queues(shared, _RESERVING if own_text else f"is already assigned to {mdev.mdev.uuid}")
                return True
        return False

    def on_config_changed(self, new: Qci, old: Qci) -> None:
        """Take what the host has lost away from guests, and remember what it has gained until the scan is complete."""
        if self.kernel.config_changes == "ignored":
            return
        lost, gained = config.difference(old, new), config.difference(new, old)
        if self.kernel.added_type_checked:
            kept = gained.adapters - config.too_old(self.ap_bus.machine, gained.adapters, gained.domains)
            gained = gained.with_mask("adapters", kept)
        config.take_lost(reversed(self.mdevs), lost, self.kernel)
        for mdev in self.mdevs:
            mdev.pending = Matrix(*(mine & assigned for mine, assigned in zip(gained, mdev.matrix, strict=True)))
        self.info = new

    def on_scan_complete(self, _new: Qci, _old: Qci) -> None:
        """Give guests what the host gained."""
        for mdev in reversed(self.mdevs):
            pending, mdev.pending = mdev.pending, EMPTY
            if pending != EMPTY:
                mdev.refilter(
                    matrix=bool(pending.adapters or pending.domains),
                    control_domains=bool(pending.control_domains),
                    added=config.delta(pending, mdev.matrix, mdev.shadow),
                )


class MatrixMdev:
    """A mediated matrix device (struct ap_matrix_mdev)."""

    def __init__(self, driver: VfioApDriver, mdev: Mdev) -> None:
        self.driver = driver
        self.mdev = mdev
        self.journal = driver.journal
        # Fixed when the device is created.
        self._limits = Limits(*driver.info.limits_of_matrix())
        self.matrix = EMPTY
        self.shadow = EMPTY
        self.pending = EMPTY
        """Assigned numbers that the host gained and that the guest gets when the scan is complete."""
        self.vm: object | None = None
        """The VM that has the device, None without a guest."""
        self.apcb = EMPTY
        """What the VM was programmed with last; without one nothing."""
        self.secure_execution = False
        """Whether its guests run in Secure Execution mode."""
        self.config_events = False
        """Whether the VMM behind the file `guest` tells its guest of configuration changes."""
        self.vdev: VfioDevice
        self.migration = self._new_migration()
        """What is kept of migrations since the device was opened; None if the driver offers none."""

    def _new_migration(self) -> Migration | None:
        return self.driver.migration(self) if self.driver.migration else None

    def log(self, level: Level, text: str) -> None:
        """Write a line to the kernel log with the device's name in front."""
        self.journal.log(level, f"vfio_ap_mdev {self.mdev.uuid}: {text}")

    def log_queues(self, queues: Matrix, text: str) -> None:
        """Write a line to the kernel log for each of some queues."""
        for apqn in queues.apqns():
            self.log("warn", f"queue {apqn} {text}")

    # -- assignment --------------------------------------------------------------------------------

    def assign(self, axis: Axis, number: int) -> None:
        """Assign an adapter, a domain or a control domain.

        ENODEV above the limit; for adapters and domains EADDRNOTAVAIL if an APQN of the new product is reserved for
        the host and EADDRINUSE if another device has one. Assigning again succeeds without any check.
        """
        self._limits.check(axis, number)
        assigned = self.matrix.mask(axis)
        if number in assigned and self.driver.kernel.hotplug:
            return
        new = NONE.with_(number)
        prospective, added = self.matrix.with_mask(axis, assigned | new), self.matrix.with_mask(axis, new)
        if axis != "control_domains":
            self._validate(prospective, added)
        self.matrix = prospective
        self.refilter(matrix=axis != "control_domains", control_domains=axis == "control_domains", added=added)

    def unassign(self, axis: Axis, number: int) -> None:
        """Take a number back, also from a guest, at once; nothing else is filtered. ENODEV above the limit."""
        self._limits.check(axis, number)
        assigned = self.matrix.mask(axis)
        if number not in assigned:
            return
        linked, gone = self._linked_rows(), NONE.with_(number)
        self.matrix = self.matrix.with_mask(axis, assigned - gone)
        if not self.driver.kernel.hotplug:
            self.shadow = self.matrix
        elif number in self.shadow.mask(axis):
            self._unplug(axis, gone, linked)

    def replace(self, matrix: Matrix) -> None:
        """Replace all three masks (ap_config_store). EADDRNOTAVAIL, EADDRINUSE, then ENODEV above a limit."""
        self._validate(matrix, matrix)
        self._limits.check_all(matrix)
        for axis in AXES[:2]:
            linked = self._linked_rows()
            kept = self.matrix.mask(axis) & matrix.mask(axis)
            gone = self.shadow.mask(axis) - kept
            self.matrix = self.matrix.with_mask(axis, kept)
            if gone:
                self._unplug(axis, gone, linked)
        self.matrix = matrix
        self.refilter(control_domains=True, added=matrix)

    def outcome(self, matrix: Matrix, *, log: bool) -> Matrix:
        """Return what a guest would get if all three masks were replaced. Raises, and logs if wanted, as `replace`."""
        self._validate(matrix, matrix, log=log)
        self._limits.check_all(matrix)
        guest = self._filtered(matrix, matrix)
        return guest.with_mask("control_domains", matrix.control_domains & self.driver.info.control_domains)

    def _validate(self, prospective: Matrix, added: Matrix, *, log: bool = True) -> None:
        """Check a whole product, or in old kernels what is added (vfio_ap_mdev_validate_masks)."""
        bus, kernel = self.driver.ap_bus, self.driver.kernel
        if not kernel.overprovisioning:
            check_bound(added, bus.cards, self.driver.bound)
        for apid in prospective.adapters if kernel.overprovisioning else ():
            owned = bus.owned_by_host(apid)
            if not owned.isdisjoint(prospective.domains):
                apqn = Apqn(apid, (owned & prospective.domains).lowest())
                advice = bus.reservation.how_to_free(apqn)
                reason = f"queue {apqn} is reserved for the host's zcrypt drivers: {advice} first"
                raise KernelError(errno.EADDRNOTAVAIL, reason)
        for other in reversed(self.driver.mdevs):
            if other is self:
                continue
            shared = prospective.shared(other.matrix)
            if shared.size:
                if log and kernel.sharing_logged != "never":
                    told = self if kernel.sharing_logged == "writer" else other
                    told.log_queues(shared, f"is already assigned to {other.mdev.uuid}")
                first = next(shared.apqns())
                raise KernelError(errno.EADDRINUSE, f"queue {first} is assigned to {other.mdev.uuid}")

    # -- the guest's matrix ------------------------------------------------------------------------

    def linked(self, apid: int) -> Mask:
        """Return the domains of an adapter whose queues are linked to the device."""
        return self.driver.bound(apid) & self.matrix.domains if apid in self.matrix.adapters else NONE

    def _linked_rows(self) -> list[tuple[int, Mask]]:
        assigned = self.matrix.domains
        return [(apid, self.driver.bound(apid) & assigned) for apid in self.matrix.adapters]

    def refilter(self, *, matrix: bool = True, control_domains: bool = False, added: Matrix) -> None:
        """Work out what the guest gets, give it to the guest if that has changed, and reset what was taken out.

        `added` is what was assigned or became available: some kernels look at nothing else.
        """
        kernel = self.driver.kernel
        if not kernel.hotplug:
            self.shadow = self.matrix
            return
        before = self.shadow
        if matrix:
            self.shadow = self._filtered(self.matrix, added)
        if control_domains:
            control = self.matrix.control_domains & self.driver.info.control_domains
            self.shadow = self.shadow.with_mask("control_domains", control)
        if self.shadow != before:
            self.push()
            if kernel.reset_filtered and not self.shadow.adapters.issuperset(before.adapters):
                out = before.adapters - self.shadow.adapters
                self.driver.reset(
                    [(apid, self.linked(apid) & self.shadow.domains) for apid in out & self.matrix.adapters]
                )

    def _filtered(self, matrix: Matrix, added: Matrix) -> Matrix:
        """Return what the host has, with only the adapters whose queues can all be passed (vfio_ap_mdev_filter_matrix).

        Old kernels look only at the queues in `added`, also at those in domains that the host does not have.
        """
        kernel, info = self.driver.kernel, self.driver.info
        aqm = matrix.domains & info.domains
        candidates = matrix.adapters & info.adapters
        tested, needed = (candidates, aqm) if kernel.filter_whole else (candidates & added.adapters, added.domains)
        if needed:
            for apid in tested:
                if not self.driver.passable(apid).issuperset(needed):
                    candidates = candidates.without(apid)
        return Matrix(candidates, aqm, self.shadow.control_domains)

    def _unplug(self, axis: Axis, numbers: Mask, linked: list[tuple[int, Mask]]) -> None:
        """Take numbers out of the guest's matrix, then reset the linked queues that this takes from the guest."""
        before = self.shadow
        had = before.mask(axis)
        self.shadow = before.with_mask(axis, had - numbers)
        self.push()
        if axis != "control_domains":
            lost = before.with_mask(axis, had & numbers)
            self.driver.reset([(apid, domains & lost.domains) for apid, domains in linked if apid in lost.adapters])

    def push(self) -> None:
        """Program a running guest with its matrix and tell its VMM (vfio_ap_mdev_update_guest_apcb)."""
        if self.vm is not None:
            self._program(self.shadow)
            if self.vdev.signal(IRQ_CONFIG_CHANGED):
                self.driver.signalled(self)

    def _program(self, matrix: Matrix) -> None:
        self.apcb = matrix
        self.journal.add(GuestUpdate(self.mdev.uuid, *(mask.hex256() for mask in matrix)))
        self.driver.programmed(self)

    def in_guest(self, apqn: Apqn) -> bool:
        """Whether a running guest has this queue."""
        return self.vm is not None and self.shadow.has(apqn)

    # -- the VFIO device ---------------------------------------------------------------------------

    def open_device(self, vm: object | None) -> None:
        """Attach to a VM (vfio_ap_mdev_set_kvm). EINVAL without one, EPERM if it has a device; old kernels do not."""
        taken = vm is not None and any(other.vm is vm for other in self.driver.mdevs)
        if self.driver.kernel.open_without_kvm and (vm is None or taken):
            return
        if vm is None:
            raise KernelError(errno.EINVAL, "no VM is associated with the device")
        if taken:
            raise KernelError(errno.EPERM, "the VM already has a vfio_ap device")
        self.vm = vm
        self.push()

    def close_device(self) -> None:
        """Detach from the VM: the guest loses everything, all linked queues are reset, a migration session ends."""
        if self.migration:
            self.migration.close()
        self.migration = self._new_migration()
        if self.vm is None:
            return
        self.vm = None
        self._program(EMPTY)
        self.driver.reset(self._linked_rows())

    def release_queues(self) -> None:
        """Reset all linked queues because the device goes away."""
        self.driver.reset(self._linked_rows())

    def reset(self) -> None:
        """Reset all linked queues (VFIO_DEVICE_RESET). EIO if any ends badly, EBUSY in old kernels."""
        self.driver.resets.check(self.driver.reset(self._linked_rows()))
        if self.migration:
            self.migration.reset()

    # -- migration ---------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its UUID."""
        return self.mdev.uuid

    @property
    def secure_execution_host(self) -> bool:
        """Whether the host is itself a Secure Execution guest."""
        return self.driver.ap_bus.machine.secure_execution

    @property
    def host_control_domains(self) -> Mask:
        """The control domains of the host, as the driver knows them."""
        return self.driver.info.control_domains

    def session_changed(self, file: MigrationFile | None) -> None:
        """Hear that a migration session has begun, with a file, or has ended."""
        if file:
            files = self.driver.transfer_files
            self.driver.transfer_files = [*(other for other in files if other.opened), file]
        self.driver.session_changed()

    def bound(self, apid: int) -> Mask:
        """Return the domains whose queues on an adapter are bound to the driver."""
        return self.driver.bound(apid)

    def recorded(self) -> Iterator[Row]:
        """Yield the queues of the guest matrix, as far as they have a device, with the records of their cards."""
        cards = self.driver.ap_bus.cards
        for apid in self.shadow.adapters:
            domains = self.shadow.domains & self.bound(apid)
            if domains:
                yield Row(apid, domains, cards[apid].hwinfo)

    def tapq(self, apid: int, domains: Mask) -> Iterator[tuple[Response, int, Mask]]:
        """Ask queues of an adapter: response, word, and the neighbouring domains that have both."""
        return self.driver.ap_bus.machine.tapq_row(apid, domains)

    def pin(self, count: int) -> None:
        """Keep the device from being removed, once more (1) or once less (-1)."""
        self.vdev.pins += count

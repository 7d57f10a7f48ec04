"""`/dev/vfio-ap/<uuid>`: a VMM's operations on a VFIO device, as files for shells.

These files exist only in apfs, not in Linux. They do the same as the ioctls of VFIO_DEVICE_FEATURE, in the same order
and with the same errors.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.kernel.kstrtox import kstrtoul
from apfs.sysfs.entries import Attribute, Special
from apfs.vfio.device import IRQ_NAMES
from apfs.vfio.fsm import State

if TYPE_CHECKING:
    from apfs.vfio.device import VfioCore
    from apfs.vfio_ap.migration.revision import Migration, MigrationFile
    from apfs.vfio_ap.ops import MatrixMdev


class Vm:
    """A virtual machine whose VMM is the program that writes these files. It has the group open, as any VMM would."""

    def signal(self) -> None:
        """Do nothing when an interrupt is signalled: it is already in the journal."""

    def drop(self) -> None:
        """Do nothing when no interrupts are wanted any more."""


def _count(core: VfioCore, vmms: int) -> None:
    """Count what a VMM has open: a container with an IOMMU type, a group and a device (see `VfioCore.references`)."""
    core.references += 4 * vmms
    core.backends += vmms


def open_guest(mdev: MatrixMdev) -> None:
    """Have a guest open the device, unless one has. EBUSY while a program has the group or the device open."""
    group = mdev.vdev.group
    if not isinstance(group.opener, Vm):
        if mdev.vdev.open_count:
            raise _in_use(mdev)
        vm = Vm()
        group.claim(vm)
        mdev.vdev.open(vm)
        _count(mdev.vdev.core, 1)
        for irq in range(len(IRQ_NAMES)):
            mdev.vdev.set_trigger(irq, vm)


def close_guest(mdev: MatrixMdev) -> None:
    """Have the guest close the device, if there is one. EBUSY while a program has the device open."""
    group = mdev.vdev.group
    if isinstance(group.opener, Vm):
        mdev.vdev.close()
        group.opener = None
        _count(mdev.vdev.core, -1)
    elif mdev.vm is not None:
        raise _in_use(mdev)


def _in_use(mdev: MatrixMdev) -> KernelError:
    return KernelError(errno.EBUSY, f"a program has {mdev.mdev.uuid} open: it has to close it")


def guest_show(mdev: MatrixMdev) -> str:
    """Whether a guest has the device open."""
    return f"{int(mdev.vm is not None)}\n"


def guest_store(mdev: MatrixMdev, text: str) -> None:
    """1 opens the device with a VM attached, 0 closes it; no change is no error.

    EINVAL for anything else, EBUSY while a program has the group or the device open.
    """
    wanted = kstrtoul(text)
    if wanted not in (0, 1):
        raise KernelError(errno.EINVAL, f"{wanted} is neither 0 nor 1")
    if wanted:
        open_guest(mdev)
    else:
        close_guest(mdev)


def _opened(mdev: MatrixMdev) -> MatrixMdev:
    if mdev.vm is None:
        raise KernelError(errno.ENODEV, f"no guest has {mdev.mdev.uuid} open: write 1 to guest first")
    return mdev


def migration_of(mdev: MatrixMdev) -> Migration:
    """Return what is kept of migrations of a device. ENOTTY if its driver has no live migration."""
    if mdev.migration is None:
        raise KernelError(errno.ENOTTY, "the driver has no live migration")
    return mdev.migration


def migration_state_show(mdev: MatrixMdev) -> str:
    """Name of the migration state, RUNNING while the device is closed. ENOTTY without live migration."""
    return f"{migration_of(mdev).state.name}\n"


def migration_state_store(mdev: MatrixMdev, text: str) -> None:
    """Step to a state given by name or number.

    ENOTTY without live migration, EPERM on a Secure Execution host, EINVAL for what is no state or no way there, ENODEV
    without a guest.
    """
    migration = migration_of(mdev)
    if mdev.vm is not None:
        migration.permit()
    word = text.removesuffix("\n")
    if word in State.__members__:
        state = State[word]
    else:
        try:
            state = State(kstrtoul(word))
        except ValueError:
            raise KernelError(
                errno.EINVAL, f"{word} is not a migration state: {', '.join(State.__members__)}"
            ) from None
    _opened(mdev)
    migration.set_state(state)


def migration_flags_show(mdev: MatrixMdev) -> str:
    """Return what VFIO_DEVICE_FEATURE_MIGRATION reports. ENOTTY without live migration."""
    return f"{migration_of(mdev).flags.name}\n"


def data_size_show(mdev: MatrixMdev) -> str:
    """Size in bytes of a stream for the current guest matrix. ENOTTY without live migration."""
    return f"{migration_of(mdev).data_size()}\n"


def reset_store(mdev: MatrixMdev, _text: str) -> None:
    """Reset all queues, whatever is written. ENODEV without a guest, EIO if the reset of a queue fails."""
    _opened(mdev).reset()


def data_stream_open(mdev: MatrixMdev, _read: bool, _write: bool) -> MigrationFile:  # noqa: FBT001
    """Open the file of the current session; all openers share its position.

    ENOTTY without live migration, ENODEV outside a session.
    """
    migration = migration_of(mdev)
    if migration.session is None:
        why = f"no migration session in state {migration.state.name}: set STOP_COPY to read, RESUMING to write"
        raise KernelError(errno.ENODEV, why)
    return migration.session.take()


def data_stream_size(mdev: MatrixMdev) -> int:
    """Return how many bytes the current session has to read."""
    return mdev.migration.session.size if mdev.migration and mdev.migration.session else 0


CLIENT_ENTRIES = (
    Attribute("guest", 0o644, guest_show, guest_store),
    Attribute("migration_state", 0o644, migration_state_show, migration_state_store),
    Attribute("migration_flags", 0o444, migration_flags_show),
    Attribute("data_size", 0o444, data_size_show),
    Special("data_stream", 0o600, data_stream_open, data_stream_size),
    Attribute("reset", 0o200, None, reset_store),
)

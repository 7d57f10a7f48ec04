"""A guest: a system whose hardware is passed through by a mediated device of another system."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NoReturn

from apfs import layout
from apfs.errors import KernelError
from apfs.system import System
from apfs.vfio_ap.guest_machine import GuestMachine

if TYPE_CHECKING:
    from apfs.vfio_ap.ops import MatrixMdev


class Guest(System):
    """Linux in a VM. If it passes queues on, its own guests are made as those of its host are."""

    def __init__(self, host: System, mdev: MatrixMdev) -> None:
        """Boot it, as silently as a host: zcrypt is loaded and the bus has scanned; vfio_ap is not loaded."""
        machine = GuestMachine(host.machine, mdev)
        super().__init__(machine, host.profile, mdev.mdev.uuid, host.revision, Guest, host)
        self.clock = host.clock
        layout.build(self)
        machine.reprogrammed()
        self.boot()
        self.journal.muted = False

    def end(self) -> None:
        """End, as a VM does: its own guests first. No queue stays bound to it."""
        super().end()
        self.machine.reprogrammed()

    def _hardware(self) -> NoReturn:
        """Refuse with EOPNOTSUPP: nobody can plug cards into a guest."""
        raise KernelError(errno.EOPNOTSUPP, f"the hardware of guest {self.name} belongs to its host: change it there")

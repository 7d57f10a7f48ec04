"""The interface of a revision of the migration series: the common parts, and what each revision defines.

A revision is a subclass of `Migration` in its own module, and a row of `REVISIONS`. No other code checks which revision
it is.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from apfs.errors import KernelError
from apfs.journal import records
from apfs.vfio.device import TransferFile
from apfs.vfio.fsm import NAMES, MigrationFlags, State, next_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.ap.mask import Mask
    from apfs.ap.qinfo import Response
    from apfs.journal.log import Journal
    from apfs.journal.records import Level
    from apfs.vfio_ap.matrix import Matrix
    from apfs.vfio_ap.migration.stream import Row


class Device(Protocol):
    """What a revision asks of a mediated device and of its host, and does to them."""

    journal: Journal
    matrix: Matrix
    """What is assigned."""
    shadow: Matrix
    """What a guest has or would have."""

    @property
    def name(self) -> str:
        """Its UUID."""

    @property
    def secure_execution_host(self) -> bool:
        """Whether the host is itself a Secure Execution guest."""

    @property
    def host_control_domains(self) -> Mask:
        """The control domains of the host, as the driver knows them."""

    def log(self, level: Level, text: str) -> None:
        """Write a line to the kernel log with the device's name in front."""

    def recorded(self) -> Iterator[Row]:
        """Yield the queues of the guest matrix, as far as they have a device, with the records of their cards."""

    def bound(self, apid: int) -> Mask:
        """Return the domains whose queues on an adapter are bound to the driver."""

    def tapq(self, apid: int, domains: Mask) -> Iterator[tuple[Response, int, Mask]]:
        """Ask queues of an adapter: response, word, and the neighbouring domains that have both."""

    def outcome(self, matrix: Matrix, *, log: bool) -> Matrix:
        """Return what the guest would get if all were replaced. EADDRNOTAVAIL, EADDRINUSE, ENODEV, logged or not."""

    def session_changed(self, file: MigrationFile | None) -> None:
        """Hear that a session has begun, with a file, or has ended."""

    def pin(self, count: int) -> None:
        """Keep the device from being removed, once more (1) or once less (-1)."""

    def replace(self, matrix: Matrix) -> None:
        """Replace what is assigned. EADDRNOTAVAIL, EADDRINUSE, ENODEV."""


class Finding(NamedTuple):
    """What a target does not like: about a queue (None: about all of them) and a characteristic."""

    queue: str | None
    characteristic: str
    source: str
    target: str


class Verdict(NamedTuple):
    """Why a stream is refused: an errno, the reason, and the lines for the log; errno 0 if it is not refused."""

    errno: int
    why: str
    lines: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


ACCEPTED = Verdict(0, "", ())


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a target would answer to a stream that came in one write, as the first one of a session."""

    errno: int = 0
    findings: tuple[Finding, ...] = ()
    judged: bool = True
    """Whether it would be looked at: of a stream that is not complete nothing is."""
    assigned: Matrix | None = None
    """What the device would then have; None if the stream does not change that."""
    guest: Matrix | None = None
    """What its guest would then have."""


class MigrationFile(TransferFile):
    """A transfer file: the driver's and the user's common end of one migration session (struct vfio_ap_migration_file).

    It has one position for all who have it open. Closing it does not end the session, for which nobody gets a second
    file. While it is open, the module stays loaded.
    """

    def __init__(self, journal: Journal, path: str) -> None:
        super().__init__(journal, path)
        self.position = 0
        self.size = 0
        """Bytes that can be read in all."""

    def on_sync(self) -> None:
        """Refuse fsync(2) with EINVAL, as the driver has no operation for it (vfs_fsync_range)."""
        raise KernelError(errno.EINVAL, "a transfer file has no fsync operation")

    def _shown(self, data: bytes) -> str:
        """Return how much of a stream was refused, which nobody could read."""
        return f"{len(data)} bytes"


class Migration(ABC):
    """What the driver keeps of migrations while a device is open (struct vfio_ap_migration_data)."""

    name: ClassVar[str]
    """The word that scenarios have for the revision."""

    on_secure_execution_hosts: ClassVar[bool] = True
    """Whether a host that is itself a Secure Execution guest offers migration, only to refuse each change of state."""

    flags = MigrationFlags.STOP_COPY

    def __init__(self, device: Device) -> None:
        self.device = device
        self.state = State.RUNNING
        self.session: MigrationFile | None = None
        """The file of the session under way."""
        self.closed = False
        """Whether the device was closed since; open files outlive it."""

    @property
    def path(self) -> str:
        """Where shells find the file of a session."""
        return f"/dev/vfio-ap/{self.device.name}/data_stream"

    # -- what each revision has to say -------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def stream_size(count: int) -> int:
        """Return the bytes of a stream of `count` queues."""

    @abstractmethod
    def preview(self) -> bytes:
        """Return the stream that a session would give that began now. Raises what reading it would."""

    @abstractmethod
    def save(self) -> MigrationFile:
        """Enter STOP_COPY."""

    @abstractmethod
    def resume(self) -> MigrationFile:
        """Enter RESUMING."""

    @abstractmethod
    def forecast(self, stream: bytes) -> Forecast:
        """Return what a target would answer to a stream, without a trace."""

    @abstractmethod
    def leave(self) -> None:
        """Go from a session back to STOP."""

    @abstractmethod
    def reset(self) -> None:
        """Do what VFIO_DEVICE_RESET does besides resetting queues, after it has succeeded in that."""

    def close(self) -> None:
        """End with the last close of the device."""
        self.closed = True
        self.begin(None)

    # -- what all have -----------------------------------------------------------------------------

    def data_size(self) -> int:
        """Return the bytes of a stream of the guest matrix as it is now (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE)."""
        return self.stream_size(self.device.shadow.size)

    def permit(self) -> None:
        """Refuse with EPERM, and a line in the log, on a secure execution host."""
        if self.device.secure_execution_host:
            why = "live migration from or to a secure execution host is not allowed"
            self.device.log("err", why)
            raise KernelError(errno.EPERM, why)

    def set_state(self, target: int) -> MigrationFile | None:
        """Walk to a migration state; return the new transfer file if the last step makes one.

        EPERM on a secure execution host, EINVAL for a state that cannot be reached; then nothing has moved.
        """
        self.permit()
        made = None
        next_state(self.state, target)
        while self.state != target:
            step = next_state(self.state, target)
            made = self._arc(step)
            self.enter(step)
        return made

    def _arc(self, step: State) -> MigrationFile | None:
        if step == State.STOP:
            self.leave()
            self.begin(None)
        elif step == State.STOP_COPY:
            self.begin(self.save())
        elif step == State.RESUMING:
            self.begin(self.resume())
        return self.session

    def begin(self, session: MigrationFile | None) -> None:
        """Begin a session with a file, or end the one under way."""
        if session is not self.session:
            self.session = session
            self.device.session_changed(session)

    def enter(self, state: State) -> None:
        """Be in a state from now on."""
        self.device.journal.add(records.Migration(self.device.name, NAMES[self.state], NAMES[state]))
        self.state = state

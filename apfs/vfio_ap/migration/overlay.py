"""Common parts of the revisions whose stream configures the target: v4 and later.

The stream is both a proof and a configuration. Its queues must be bound to vfio_ap on the target and be compatible;
then its adapters and domains replace those of the mediated device. TAPQ words are the hardware's current answers, all
64 bits. Transfer files outlive their session.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

from apfs.ap.mask import Mask
from apfs.ap.qinfo import TAPQ_VALID, Response
from apfs.errors import KernelError
from apfs.vfio.fsm import State
from apfs.vfio_ap.migration import words
from apfs.vfio_ap.migration.revision import ACCEPTED, Finding, Forecast, Migration, MigrationFile, Verdict
from apfs.vfio_ap.migration.stream import Row, apqn_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.vfio_ap.matrix import Matrix
    from apfs.vfio_ap.migration.revision import Device

MAX_QUEUES = 65536


class Content(NamedTuple):
    """What a complete stream says."""

    queues: list[tuple[int, int]]
    """Word and number of the APQN of each queue."""
    control_domains: Mask | None
    """None if the stream has none of them, and the target's stay."""

    def matrix(self, device: Device) -> Matrix:
        """Return what a device is to have: the product of all adapters and domains in the stream."""
        assigned = device.matrix
        numbers = {number for _, number in self.queues}
        adapters = Mask.from_numbers({number >> 8 for number in numbers})
        domains = Mask.from_numbers({number & 0xFF for number in numbers})
        control_domains = assigned.control_domains if self.control_domains is None else self.control_domains
        return type(assigned)(adapters, domains, control_domains)


class Intake(Protocol):
    """What has come of a stream."""

    def take(self, file: MigrationFile, data: bytes) -> bytes | None:
        """Take the next bytes of a session's file. Return the whole stream if these were the last ones."""

    def refused(self) -> None:
        """Hear that the stream was refused that the last bytes completed."""

    def copy(self) -> Intake:
        """Return another one that is where this one is."""


class Overlay(Migration):
    """Such a revision. A session's file is known until there is another one of its kind."""

    pins_device: ClassVar[bool]
    """Whether an open file keeps the mediated device from being removed."""
    incompatible: ClassVar[int]
    """The errno for a queue that is not compatible."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.saving: MigrationFile | None = None
        self.resuming: MigrationFile | None = None
        self.intake = self.new_intake()

    # -- what each of them has to say --------------------------------------------------------------

    @abstractmethod
    def new_intake(self) -> Intake:
        """Return where a stream goes, of which nothing has come."""

    @abstractmethod
    def read(self, file: MigrationFile) -> bytes:
        """Return the stream that a file of STOP_COPY gives."""

    @abstractmethod
    def content(self, stream: bytes) -> Content:
        """Return what a complete stream says."""

    @abstractmethod
    def compatible(self, source: int, target: int) -> bool:
        """Whether a source queue's word is accepted for the target's."""

    def object_to(self, matrix: Matrix, guest: Matrix) -> None:
        """Refuse to give a device what the stream says because of what its guest would then have. None does it here."""

    # -- what they have in common ------------------------------------------------------------------

    def save(self) -> MigrationFile:
        """Enter STOP_COPY; the stream is made when it is read."""
        self.saving = SavingFile(self)
        return self.saving

    def resume(self) -> MigrationFile:
        """Enter RESUMING."""
        self.resuming = ResumingFile(self)
        return self.resuming

    def leave(self) -> None:
        """Let the files live on."""

    def reset(self) -> None:
        """Be RUNNING again."""
        self.begin(None)
        if self.state != State.RUNNING:
            self.enter(State.RUNNING)

    def ask(self) -> Iterator[Row]:
        """Yield the queues of the guest matrix with what the hardware answers (TAPQ).

        ENODEV for a queue that is not available, EIO for any other response without information.
        """
        shadow = self.device.shadow
        for apid in shadow.adapters:
            for response, word, domains in self.device.tapq(apid, shadow.domains & self.device.bound(apid)):
                if response not in TAPQ_VALID:
                    number, why = _unknown(response)
                    raise KernelError(number, f"queue {apqn_of(apid << 8 | domains.lowest())} {why}")
                yield Row(apid, domains, word)

    def logged_preview(self) -> bytes:
        """Return the stream of the guest matrix; tell the log why there is none."""
        try:
            return self.preview()
        except KernelError as error:
            self.device.log("err", error.why)
            raise

    def write(self, file: MigrationFile, data: bytes) -> int:
        """Take the next bytes for a file of RESUMING, and if they are the last ones, do what the stream says.

        ENODEV after the device was closed, ENXIO if there is a newer file. The others are those of `Intake.take`, of
        `judge`, and of assigning.
        """
        self.check_open()
        if file is not self.resuming:
            raise KernelError(errno.ENXIO, "this is not the file of the current session")
        stream = self.intake.take(file, data)
        if stream is not None:
            try:
                self._give(self.content(stream))
            except KernelError:
                self.intake.refused()
                raise
        return len(data)

    def check_open(self) -> None:
        """Refuse with ENODEV after the device was closed."""
        if self.closed:
            raise KernelError(errno.ENODEV, "the device of this file was closed")

    def _give(self, content: Content) -> None:
        verdict = self.judge(content)
        if verdict.errno:
            for line in verdict.lines:
                self.device.log("err", line)
            raise KernelError(verdict.errno, verdict.why)
        matrix = content.matrix(self.device)
        self.object_to(matrix, self.device.outcome(matrix, log=True))
        self.device.replace(matrix)

    def forecast(self, stream: bytes) -> Forecast:
        """Do all of it but for the last step."""
        try:
            complete = self.intake.copy().take(ResumingFile(self), stream)
        except KernelError as error:
            return Forecast(error.errno, (Finding(None, "stream", f"{len(stream)} bytes", error.why),))
        if complete is None:
            return Forecast(judged=False)
        content = self.content(complete)
        verdict = self.judge(content)
        if verdict.errno:
            return Forecast(verdict.errno, verdict.findings)
        matrix = content.matrix(self.device)
        try:
            guest = self.device.outcome(matrix, log=False)
            self.object_to(matrix, guest)
        except KernelError as error:
            return Forecast(error.errno, (Finding(None, "assignment", "-", error.why),))
        return Forecast(assigned=matrix, guest=guest)

    def judge(self, content: Content) -> Verdict:
        """Return why the host cannot have what a stream says.

        In this order, each with all that are meant: ENODEV for queues that are not bound to vfio_ap, ENODEV for control
        domains that the host lacks. Then all queues are asked and compared, and the errno is that of the last one with
        something wrong: ENODEV if it is not available, EIO for another response without information, or `incompatible`.
        """
        theirs = self._hardware({number for _, number in content.queues})
        unbound = [apqn_of(number) for _, number in content.queues if number not in theirs]
        if unbound:
            lines = tuple(f"queue {apqn} of the source is not bound to vfio_ap on the target" for apqn in unbound)
            findings = tuple(Finding(str(apqn), "queue", "present", "not bound to vfio_ap") for apqn in unbound)
            why = f"{len(unbound)} queues of the source are not bound to vfio_ap on the target"
            return Verdict(errno.ENODEV, why, lines, findings)
        missing = list((content.control_domains or Mask()) - self.device.host_control_domains)
        if missing:
            lines = tuple(f"control domain {number:04x} of the source is not the target host's" for number in missing)
            findings = tuple(Finding(None, f"control domain {number:04x}", "present", "missing") for number in missing)
            return Verdict(errno.ENODEV, f"{len(missing)} control domains are not the target host's", lines, findings)
        pairs = {(source, theirs[number]) for source, number in content.queues}
        if all(response in TAPQ_VALID and self.compatible(source, target) for source, (response, target) in pairs):
            return ACCEPTED
        return self._blame(content.queues, theirs)

    def _hardware(self, numbers: set[int]) -> dict[int, tuple[Response, int]]:
        """Return response and word of those queues that are bound, by the number of the APQN."""
        wanted, found = defaultdict[int, list[int]](list), {}
        for number in numbers:
            wanted[number >> 8].append(number & 0xFF)
        for apid, apqis in wanted.items():
            bound = Mask.from_numbers(apqis) & self.device.bound(apid)
            for response, word, domains in self.device.tapq(apid, bound):
                found.update(dict.fromkeys((apid << 8 | apqi for apqi in domains), (response, word)))
        return found

    def _blame(self, queues: list[tuple[int, int]], theirs: dict[int, tuple[Response, int]]) -> Verdict:
        """Return what is wrong with which queues, one after the other; most have the same words as others."""

        @cache
        def compared(source: int, target: int) -> list[words.Difference] | None:
            return None if self.compatible(source, target) else differences(source, target)

        verdict, lines, findings = ACCEPTED, [], []
        for source, number in queues:
            apqn, (response, target) = apqn_of(number), theirs[number]
            if response not in TAPQ_VALID:
                code, why = _unknown(response)
                verdict = Verdict(code, f"queue {apqn} {why}", ())
                lines.append(verdict.why)
                findings.append(Finding(str(apqn), "queue", "present", why))
            elif (found := compared(source, target)) is not None:
                verdict = Verdict(self.incompatible, f"source queue {apqn} is not compatible with the target's", ())
                lines += [words.headline(apqn), *(line for difference in found for line in difference.lines(apqn))]
                told = [Finding(str(apqn), each.characteristic, each.source, each.target) for each in found]
                findings += told or [Finding(str(apqn), "card class", f"{source:016x}", f"{target:016x}")]
        return verdict._replace(lines=tuple(lines), findings=tuple(findings))


def differences(source: int, target: int) -> list[words.Difference]:
    """Return what is logged about an incompatible pair, in the order of the log; types if the source's is newer."""
    found = words.of_facilities(source, target)
    if words.newer(source, target):
        found += words.of_type(source, target)
    return found + words.of_states(source, target) + words.of_class(source, target)


def _unknown(response: Response) -> tuple[int, str]:
    """Return errno and reason for a response of TAPQ that comes without information."""
    if response == Response.Q_NOT_AVAIL:
        return errno.ENODEV, "is not available"
    return errno.EIO, f"answers with response code {int(response)}"


class _OverlayFile(MigrationFile):
    """A transfer file. Who has it open may keep the device."""

    inode = "vfio_ap_mig_file"

    def __init__(self, migration: Overlay) -> None:
        super().__init__(migration.device.journal, migration.path)
        self._migration = migration

    def take(self) -> Self:
        """Open it, and pin the device, if the revision does it."""
        if self._migration.pins_device:
            self._migration.device.pin(1)
        return super().take()

    def on_close(self) -> None:
        """Close it once, and let go of the device."""
        super().on_close()
        if self._migration.pins_device:
            self._migration.device.pin(-1)


class SavingFile(_OverlayFile):
    """The file of STOP_COPY. Its size is that of a stream that is made when it is."""

    is_stream = True

    def __init__(self, migration: Overlay) -> None:
        super().__init__(migration)
        self.size = migration.data_size()

    def on_read(self, _offset: int, size: int) -> bytes:
        """Return the next bytes, none at the end. ENODEV, EIO, EINVAL."""
        piece = self._migration.read(self)[self.position : self.position + size]
        self.position += len(piece)
        return piece


class ResumingFile(_OverlayFile):
    """The file of RESUMING."""

    def on_write(self, data: bytes) -> int:
        """Take the next bytes."""
        return self._migration.write(self, data)

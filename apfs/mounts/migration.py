"""The work of `apfs migrate`: drive two hosts like a VMM, or predict the outcome.

A `Source` and a `Target` are mounts, used only through their files, as by any other program. The target can be on
another machine: `apfs.mounts.remote` has a proxy for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from apfs.errors import errno_name
from apfs.mounts import monitor, table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_CHUNK = 1 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LISTED = 5
"""How many devices a message names."""
STOPPED = ("STOP", "STOP_COPY")
"""States of a device whose guest does not run, and may run elsewhere."""


class NotPossibleError(Exception):
    """The request makes no sense here: not a mount, no such device, no guest. The message says which."""


class StepError(Exception):
    """A step of a migration that failed: by the name of an errno and the file that gave it, or with another reason."""

    @classmethod
    def of(cls, name: str, path: str) -> StepError:
        """Return the error of a file. The name may come from another machine: EIO if it is none."""
        return cls(f"{_strerror(name)} ({path})", name, path)

    def __init__(self, reason: str, name: str = "", path: str = "") -> None:
        super().__init__(reason)
        self.name = name
        self.path = path


class UnsureError(Exception):
    """The target was told to run the guest and has not answered."""


class Facts(NamedTuple):
    """What one end of a migration has to know of the other."""

    host: str
    """Its root directory, by the boot of the machine and the numbers there: two paths with the same are one host."""
    driver: str
    migratable: bool
    secure_execution: bool


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why the target would refuse: about a queue (None: about all of them) and a characteristic."""

    queue: str | None
    characteristic: str
    source: str
    target: str


@dataclass(slots=True)
class Check:
    """The answer of `apfs migrate --check`."""

    uuid: str
    errno: str | None
    """Error that the driver would give for the stream, sent in one write; None if it would take it."""
    reasons: list[Reason] = field(default_factory=list)
    drivers: dict[str, str] = field(default_factory=dict)
    """Revisions of the migration series, of `source` and `target`."""
    judged: bool = True
    """Whether the target would look at the stream; one that is not complete it takes without doing anything."""
    matrix: dict[str, list[int]] | None = None
    """What the target's device would have assigned afterwards; None if that does not change."""
    guest_matrix: dict[str, list[int]] | None = None
    """What its guest would then have."""

    @property
    def ok(self) -> bool:
        """Whether the target would accept the stream, and look at it."""
        return self.errno is None and self.judged

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        findings = [asdict(reason) for reason in self.reasons]
        return {
            "uuid": self.uuid,
            "compatible": self.ok,
            "errno": self.errno,
            "findings": findings,
            "drivers": self.drivers,
            "judged": self.judged,
            "matrix": self.matrix,
            "guest_matrix": self.guest_matrix,
        }


@dataclass(slots=True)
class Outcome:
    """The result of `apfs migrate`."""

    uuid: str
    ok: bool
    stream: int
    """Bytes of the stream."""
    error: str | None = None
    log: list[str] = field(default_factory=list)
    """What the target's kernel logged."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def _listed(names: Collection[str]) -> str:
    """Return some names as a text, as many as one can look through."""
    first = sorted(names)[:_LISTED]
    more = len(names) - len(first)
    return ", ".join([*first, *([f"{more} more"] if more else [])]) or "none"


class _Host:
    """A mount and one of its mediated devices. `NotPossibleError` if there is no such."""

    def __init__(self, mount: Path, uuid: str) -> None:
        try:
            status = json.loads(monitor.status(str(mount)))
            root = mount.stat()
        except table.MountsError as error:
            raise NotPossibleError(str(error)) from None
        except OSError as error:
            raise NotPossibleError(str(table.gone(str(mount), error))) from None
        mdev = status["mdevs"].get(uuid)
        if mdev is None:
            raise NotPossibleError(
                f"{mount} has no mediated device {uuid} (it has {_listed(status['mdevs'])}): "
                "source and target need one with the same UUID"
            )
        self.uuid = uuid
        self.facts = Facts(
            host=f"{_BOOT.read_text().strip()}:{root.st_dev}:{root.st_ino}",
            driver=status["driver"],
            migratable=mdev["migration_state"] is not None,
            secure_execution=status["secure_execution"],
        )
        self._mount = mount
        self._has_guest = bool(mdev["guest"])
        self.client = mount / "dev/vfio-ap" / uuid
        """Where its client files are."""
        self._forecasts = mount / "ctl/migration" / uuid

    def state(self) -> str:
        """Return the state of the device, such as RUNNING; empty if nobody has it open, or the host is gone."""
        try:
            if _read(self.client / "guest").strip() != b"1":
                return ""
            return _read(self.client / "migration_state").decode().strip()
        except OSError:
            return ""


class Source(_Host):
    """The host that a guest leaves. Its steps raise `StepError`."""

    def need_guest(self) -> None:
        """Make sure that there is a guest. `NotPossibleError` if not."""
        if not self._has_guest:
            raise NotPossibleError(
                f"{self._mount} has no guest running with {self.uuid}: write 1 to dev/vfio-ap/{self.uuid}/guest"
            )

    def stop(self) -> bytes:
        """Stop the guest and return its stream."""
        with _steps():
            _write(self.client / "migration_state", b"STOP")
            _write(self.client / "migration_state", b"STOP_COPY")
            return _read(self.client / "data_stream")

    def resume(self) -> None:
        """Let the guest go on."""
        _write_if_possible(self.client / "migration_state", b"RUNNING")

    def close(self) -> None:
        """End the guest here, because it runs on the target."""
        with _steps():
            _write(self.client / "migration_state", b"STOP")
            _write(self.client / "guest", b"0")

    @property
    def advice(self) -> str:
        """What to do if nobody knows where the guest runs: nothing may start it here, unless somebody knows better."""
        return (
            "the guest may run on the target, and is stopped on the source: if it runs there, "
            f"write 0 to {self.client}/guest, if not, RUNNING to {self.client}/migration_state"
        )

    def preview(self) -> bytes:
        """Return the stream that a migration would begin with now."""
        with _steps():
            return _read(self._forecasts / "stream")


class Receiver(Protocol):
    """The host that a guest goes to, wherever it is."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""

    def prepare(self) -> None:
        """Open the device, unless it is open, and wait for a stream. `StepError` if that is refused."""

    def take(self, stream: bytes) -> None:
        """Give it the stream. `StepError` if it is refused."""

    def run(self) -> None:
        """Let the guest run. `StepError` if that is refused, `UnsureError` if nobody knows."""

    def undo(self) -> list[str]:
        """Take all this back, as far as that is possible, and return what the kernel has logged since the beginning."""

    def forecast(self, stream: bytes) -> dict[str, Any]:
        """Return what the driver would do with a stream, as `ctl/migration/UUID/check` has it. Changes nothing."""


class Target(_Host):
    """A mount that a guest goes to."""

    def __init__(self, mount: Path, uuid: str) -> None:
        super().__init__(mount, uuid)
        self._kmsg = mount / "ctl/kmsg"
        self._logged: int | None = None
        """How many lines the log had before; None if nothing has been done yet."""

    def prepare(self) -> None:
        """Open the device, unless it is open, and wait for a stream."""
        with _steps():
            self._logged = len(self._log())
            if not self._has_guest:
                _write(self.client / "guest", b"1")
            # The first ends a session that somebody left, with what was sent in it.
            _write(self.client / "migration_state", b"STOP")
            _write(self.client / "migration_state", b"RESUMING")

    def take(self, stream: bytes) -> None:
        """Give the stream to the driver."""
        with _steps():
            _write(self.client / "data_stream", stream)

    def run(self) -> None:
        """Let the guest run."""
        with _steps():
            _write(self.client / "migration_state", b"RUNNING")

    def undo(self) -> list[str]:
        """Go back to RUNNING, close a device that `prepare` opened, and return what the kernel has logged."""
        log: list[str] = []
        if self._logged is None:
            return log
        with contextlib.suppress(OSError):
            log = self._log()[self._logged :]
        self.take_back()
        return log

    def _log(self) -> list[str]:
        return _read(self._kmsg).decode().splitlines()

    def take_back(self) -> None:
        """Go back to RUNNING, and close a device that was not open before."""
        _write_if_possible(self.client / "migration_state", b"RUNNING")
        if not self._has_guest:
            _write_if_possible(self.client / "guest", b"0")

    def forecast(self, stream: bytes) -> dict[str, Any]:
        """Return what the driver would do with a stream; for an empty one, whether it would take any.

        `NotPossibleError` if the host does not answer.
        """
        place = self._forecasts / "check"
        try:
            with place.open("r+b", buffering=0) as file:
                for start in range(0, len(stream), _CHUNK):
                    file.write(stream[start : start + _CHUNK])
                answer: dict[str, Any] = json.loads(file.read())
        except OSError as error:
            raise NotPossibleError(f"{place}: {error.strerror}") from None
        return answer


def other_host(one: Facts, other: Facts) -> None:
    """Make sure that these are two hosts. `NotPossibleError` if not."""
    if one.host == other.host:
        raise NotPossibleError("source and target are the same host")


def check(source: Source, target: Receiver) -> Check:
    """Ask a target what it would do with the stream that a source would send, without changing anything."""
    other_host(source.facts, target.facts)
    refused, reasons, stream = None, [], b""
    if not source.facts.migratable:
        refused, reasons = "ENOTTY", [Reason(None, "live migration", "not offered", "-")]
    else:
        if source.facts.secure_execution:
            refused, reasons = "EPERM", [Reason(None, "secure execution host", "yes", "-")]
        try:
            stream = source.preview()
        except StepError as error:
            refused = error.name
            reasons.append(Reason(None, "stream", _strerror(error.name), "-"))
    forecast = target.forecast(stream)
    if refused is None or not target.facts.migratable or target.facts.secure_execution:
        refused = forecast["errno"]  # without a source's refusal, or because the target never asks for a stream
    return Check(
        source.uuid,
        refused,
        reasons + [Reason(**finding) for finding in forecast["findings"]],
        {"source": source.facts.driver, "target": target.facts.driver},
        forecast["judged"],
        forecast["matrix"] if refused is None else None,
        forecast["guest_matrix"] if refused is None else None,
    )


def migrate(source: Source, target: Receiver) -> Outcome:
    """Move a guest from one host to the other; if the target refuses, the guest goes on where it was."""
    source.need_guest()
    other_host(source.facts, target.facts)
    size = 0
    try:
        target.prepare()
        stream = source.stop()
        size = len(stream)
        target.take(stream)
        target.run()
    except UnsureError as error:
        return Outcome(source.uuid, ok=False, stream=size, error=f"{error}; {source.advice}")
    except StepError as error:
        source.resume()
        what = f"{error}; the guest keeps running on the source"
        return Outcome(source.uuid, ok=False, stream=size, error=what, log=target.undo())
    except BaseException:  # Ctrl-C and the like
        source.resume()
        target.undo()
        raise
    # From here on the guest runs on the target, and nothing may start it on the source again.
    try:
        source.close()
    except StepError as error:
        what = f"{error}; the guest runs on the target, but the source still has it open"
        return Outcome(source.uuid, ok=False, stream=size, error=what)
    return Outcome(source.uuid, ok=True, stream=size)


def _strerror(name: str) -> str:
    """Return the text for an errno by its symbolic name, that of EIO for any other word."""
    number = getattr(errno, name, None)
    return os.strerror(number if isinstance(number, int) else errno.EIO)


def recover(source: Source, target: Target) -> None:
    """Put both hosts in order when the process that migrated was killed, wherever that was.

    If the guest runs on the target, it is ended on the source; if not, it goes on there.
    """
    here, there = source.state(), target.state()
    if there == "RUNNING" and here != "RUNNING":
        if here in STOPPED:
            with contextlib.suppress(StepError):  # nobody is left to be told
                source.close()
        return
    if here in STOPPED:
        source.resume()
    if there:
        target.take_back()


@contextlib.contextmanager
def _steps() -> Iterator[None]:
    """Say of a file that refuses which one it was."""
    try:
        yield
    except OSError as error:
        raise StepError.of(errno_name(error.errno or errno.EIO), str(error.filename)) from None


def _write(path: Path, data: bytes) -> None:
    """Write once, without the second try that closing a buffered file makes of a refused write.

    A stream goes in one write, as some drivers need it; the rest of what is more than a file system takes at a time
    follows.
    """
    with _named(path):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)


def _write_if_possible(path: Path, data: bytes) -> None:
    """Write, to undo a step that may not have been taken."""
    with contextlib.suppress(OSError):
        _write(path, data)


def _read(path: Path) -> bytes:
    pieces = []
    with _named(path), path.open("rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            pieces.append(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give the file's name to an error of read(2), write(2) or close(2), which has none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise

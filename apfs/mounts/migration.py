"""What `apfs migrate` does: drive two mounts as a VMM drives two hosts, or say beforehand what would happen.

Works on mounts only through their files, like any other program.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from apfs.errors import errno_name
from apfs.mounts import monitor, table

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 20


class NotPossibleError(Exception):
    """The request makes no sense here: not a mount, no such device, no guest. The message says which."""


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


def _status(mount: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads(monitor.status(str(mount)))
    except table.MountsError as error:
        raise NotPossibleError(str(error)) from None
    return status


def _other_host(source: Path, target: Path) -> None:
    if source.samefile(target):
        raise NotPossibleError("source and target are the same host")


def _mdev(mount: Path, status: dict[str, Any], uuid: str) -> dict[str, Any]:
    mdev: dict[str, Any] | None = status["mdevs"].get(uuid)
    if mdev is None:
        raise NotPossibleError(f"{mount} has no mediated device {uuid}: create it with the same UUID")
    return mdev


def check(source: Path, target: Path, uuid: str) -> Check:
    """Ask a target what it would do with the stream that a source would send, without changing anything."""
    statuses = _status(source), _status(target)
    _other_host(source, target)
    sending, receiving = (_mdev(mount, status, uuid) for mount, status in zip((source, target), statuses, strict=True))
    refused, reasons, stream = None, [], b""
    if sending["migration_state"] is None:
        refused, reasons = "ENOTTY", [Reason(None, "live migration", "not offered", "-")]
    else:
        if statuses[0]["secure_execution"]:
            refused, reasons = "EPERM", [Reason(None, "secure execution host", "yes", "-")]
        try:
            stream = _read(source / "ctl/migration" / uuid / "stream")
        except OSError as error:
            refused, why = errno_name(error.errno or errno.EIO), Reason(None, "stream", str(error.strerror), "-")
            reasons.append(why)
    forecast = _forecast(target, uuid, stream)
    if refused is None or receiving["migration_state"] is None or statuses[1]["secure_execution"]:
        refused = forecast["errno"]  # without a source's refusal, or because the target never asks for a stream
    return Check(
        uuid,
        refused,
        reasons + [Reason(**finding) for finding in forecast["findings"]],
        {side: status["driver"] for side, status in zip(("source", "target"), statuses, strict=True)},
        forecast["judged"],
        forecast["matrix"] if refused is None else None,
        forecast["guest_matrix"] if refused is None else None,
    )


def _forecast(target: Path, uuid: str, stream: bytes) -> dict[str, Any]:
    """Return what a target would do with a stream; for an empty one, whether it would take any."""
    descriptor = os.open(target / "ctl/migration" / uuid / "check", os.O_RDWR)
    try:
        for start in range(0, len(stream), _CHUNK):
            os.write(descriptor, stream[start : start + _CHUNK])
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            answer: dict[str, Any] = json.loads(file.read())
    finally:
        os.close(descriptor)
    return answer


def migrate(source: Path, target: Path, uuid: str) -> Outcome:
    """Move a guest from one host to the other; if the target refuses, the guest goes on where it was."""
    if not _mdev(source, _status(source), uuid)["guest"]:
        raise NotPossibleError(f"{source} has no guest running with {uuid}: write 1 to dev/vfio-ap/{uuid}/guest")
    opened = _mdev(target, _status(target), uuid)["guest"]
    _other_host(source, target)
    ours, theirs = (mount / "dev/vfio-ap" / uuid for mount in (source, target))
    kmsg = target / "ctl/kmsg"
    before = len(kmsg.read_text().splitlines())
    size = 0
    try:
        if not opened:
            _write(theirs / "guest", b"1")
        _write(theirs / "migration_state", b"STOP")  # ends a session that somebody left, with what was sent in it
        _write(theirs / "migration_state", b"RESUMING")
        _write(ours / "migration_state", b"STOP")
        _write(ours / "migration_state", b"STOP_COPY")
        stream = _read(ours / "data_stream")
        size = len(stream)
        _write(theirs / "data_stream", stream)
        _write(theirs / "migration_state", b"RUNNING")
    except OSError as error:
        log = kmsg.read_text().splitlines()[before:]
        _write_if_possible(ours / "migration_state", b"RUNNING")
        _write_if_possible(theirs / "migration_state", b"RUNNING")
        if not opened:
            _write_if_possible(theirs / "guest", b"0")
        what = f"{error.strerror} ({error.filename}); the guest goes on running on the source"
        return Outcome(uuid, ok=False, stream=size, error=what, log=log)
    # From here on the guest runs on the target, and nothing may start it on the source again.
    try:
        _write(ours / "migration_state", b"STOP")
        _write(ours / "guest", b"0")
    except OSError as error:
        what = f"{error.strerror} ({error.filename}); the guest runs on the target, but the source still has it open"
        return Outcome(uuid, ok=False, stream=size, error=what)
    return Outcome(uuid, ok=True, stream=size)


def _write(path: Path, data: bytes) -> None:
    """Write once, without the second try that closing a buffered file makes of a refused write.

    A stream goes in one write, as some drivers need it; the rest of what is more than a file system takes at a time
    follows.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        error.filename = str(path)  # an error of write(2) has no file name
        raise
    finally:
        os.close(descriptor)


def _write_if_possible(path: Path, data: bytes) -> None:
    """Write, to undo a step that may not have been taken."""
    with contextlib.suppress(OSError):
        _write(path, data)


def _read(path: Path) -> bytes:
    pieces = []
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            pieces.append(piece)
    return b"".join(pieces)

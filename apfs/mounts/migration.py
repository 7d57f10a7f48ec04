"""What `apfs migrate` does: drive two mounts as a VMM drives two hosts, or say beforehand what would happen.

Works on mounts only through their files, like any other program.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from apfs.ap.mask import Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import CARD_HWINFO_MASK
from apfs.errors import KernelError
from apfs.mounts import monitor, table
from apfs.vfio_ap.migration import Row, Target, compatible, differences, judge, make_stream, stream_size

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    @property
    def ok(self) -> bool:
        """Whether the target would accept."""
        return self.errno is None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        findings = [asdict(reason) for reason in self.reasons]
        return {"uuid": self.uuid, "compatible": self.ok, "errno": self.errno, "findings": findings}


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


def _rows(status: dict[str, Any], mdev: dict[str, Any]) -> list[Row]:
    """Return the queues of the guest matrix that are there."""
    domains = Mask.from_numbers(mdev["guest_matrix"]["domains"])
    cards = {apid: status["cards"].get(f"{apid:02x}") for apid in mdev["guest_matrix"]["adapters"]}
    return [
        Row(apid, domains & Mask.from_numbers(card["drivers"].get("vfio_ap", ())), int(card["hwinfo"], 16))
        for apid, card in cards.items()
        if card
    ]


def check(source: Path, target: Path, uuid: str) -> Check:
    """Compare the guest matrices of a device on two hosts without touching anything."""
    statuses = _status(source), _status(target)
    _other_host(source, target)
    mdevs = [_mdev(mount, status, uuid) for mount, status in zip((source, target), statuses, strict=True)]
    totals = [len(mdev["guest_matrix"]["adapters"]) * len(mdev["guest_matrix"]["domains"]) for mdev in mdevs]
    ours, theirs = (_rows(status, mdev) for status, mdev in zip(statuses, mdevs, strict=True))
    verdict = judge(make_stream(totals[0], ours), Target(stream_size(totals[1]), totals[1], lambda: theirs))
    answer = Check(uuid, KernelError(verdict.errno, verdict.why).name if verdict.errno else None)
    for status, sides in zip(statuses, (("yes", "-"), ("-", "yes")), strict=True):
        if status["secure_execution"]:
            answer.reasons.append(Reason(None, "secure execution host", *sides))
            answer.errno = "EPERM"  # there will not even be a stream
    if totals[0] != totals[1]:
        answer.reasons.append(Reason(None, "number of queues", str(totals[0]), str(totals[1])))
    answer.reasons += _reasons(_words(ours), _words(theirs))
    return answer


def _words(rows: list[Row]) -> dict[Apqn, int]:
    return {Apqn(row.apid, apqi): row.hwinfo & CARD_HWINFO_MASK for row in rows for apqi in row.domains}


def _reasons(ours: dict[Apqn, int], theirs: dict[Apqn, int]) -> Iterator[Reason]:
    """Yield what keeps queues from a target: of all of them, while the driver stops at the first incompatible one."""
    for apqn in ours:
        if apqn not in theirs:
            yield Reason(str(apqn), "queue", "present", "missing")
    for apqn, word in ours.items():
        if apqn in theirs and not compatible(word, theirs[apqn]):
            for difference in differences(word, theirs[apqn]):
                if difference.source != difference.target:
                    yield Reason(str(apqn), difference.characteristic, difference.source, difference.target)


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

    Boundaries between the pieces of a stream mean nothing to the driver.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for start in range(0, len(data), _CHUNK):
            os.write(descriptor, data[start : start + _CHUNK])
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

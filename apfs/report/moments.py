"""Moments: the state of a host after each request, determined by repeating all requests on another host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from apfs.ctl.status import document
from apfs.journal.records import Refusal, Store, Transfer
from apfs.kernel.uuid import UUID
from apfs.replay.replay import boot
from apfs.replay.requests import Requester
from apfs.report.picture import Picture, picture
from apfs.vfio_ap.attributes import matrix_mdev

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.host import Host
    from apfs.journal.history import History
    from apfs.journal.records import Record
    from apfs.vfio_ap.migration.revision import Finding


class Verdicts(NamedTuple):
    """What the driver of a target thinks of a stream."""

    findings: tuple[Finding, ...]
    """What it objects to, also where it stops at the first."""
    fitting: tuple[str, ...]
    """The queues to which it does not object."""


class Moment(NamedTuple):
    """What a host was like after a record."""

    after: int
    """Number of the record; 0 is before all of them."""
    picture: Picture
    same: bool = True
    """Whether up to here the other host did just what the records say."""
    verdicts: Verdicts | None = None
    """What was to be said of the stream that arrived with that record."""


def moments(history: History) -> Iterator[Moment]:
    """Yield what a host was like at first, and after each request. `ReplayError`, `ScenarioError` at once."""
    return _moments(boot(history), history)


def _moments(host: Host, history: History) -> Iterator[Moment]:
    requester, streams, pictures = Requester(host), _Streams(host), _Pictures(host)
    same = True
    yield Moment(0, pictures.whole())
    for number, record in history.entries:
        if record.outcome:
            verdicts = streams.judge(record)
            requester.make(record)
            same = same and host.journal.last == number and host.journal.since(number - 1)[0][1] == record
            yield Moment(number, pictures.after(record), same, verdicts)


_FILE = re.compile(rf"/(?:sys/devices/vfio_ap/matrix|dev/vfio-ap)/({UUID})/\w+")
_CREATE = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
_BY_UUID = ("mdevs", "guests")


def _device(record: Record) -> str | None:
    """Return the UUID of the mediated device to which a request is confined, None if there is no such."""
    path = getattr(record, "path", "")
    if path == _CREATE and isinstance(record, Store | Refusal):
        return record.data.strip().lower()
    found = _FILE.fullmatch(path)
    return found[1] if found else None


class _Pictures:
    """Pictures of a host after each request.

    Most requests concern one mediated device. Of all others, which can be thousands, the picture is then the same as
    before.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last: Picture = {}
        self._unbound = False
        """Whether there are devices without a driver: they have no pictures, and are told of by the host's."""

    def whole(self) -> Picture:
        """Return the picture of all that there is."""
        found = document(self._host)
        self._unbound = bool(found["unbound_mdevs"])
        self._last = picture(found)
        return self._last

    def after(self, record: Record) -> Picture:
        """Return the picture after a request with this outcome, the next one after the last picture."""
        uuid = _device(record)
        if uuid is None or self._unbound:
            return self.whole()
        found = document(self._host, [uuid])
        self._unbound = bool(found["unbound_mdevs"])
        new = picture(found)
        for name in _BY_UUID:
            others = self._last[name].copy()
            others.pop(uuid, None)
            others.update(new[name])
            new[name] = others
        self._last = new
        return new


class _Streams:
    """The migration streams that come to a host, piece by piece."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pieces: dict[int, bytes] = {}
        """What has come so far, by the number of the open file."""

    def judge(self, record: Record) -> Verdicts | None:
        """Return what the driver is about to think of a stream, if a record is that of its last piece."""
        match record:
            case Transfer(path, file, "write", _, content):
                return self._judge(path, file, content)
            case Refusal("write", path, input={"file": int(file), "content": str(content)}):
                return self._judge(path, file, content)
            case _:
                return None

    def _judge(self, path: str, file: int, content: str) -> Verdicts | None:
        *_, uuid, name = ("", *path.split("/"))
        device = self._host.mdev_bus.mdevs.get(uuid)
        mdev = matrix_mdev(device) if device and name == "data_stream" else None
        if mdev is None or mdev.migration is None:
            return None
        stream = self._pieces.pop(file, b"") + bytes.fromhex(content)
        forecast = mdev.migration.forecast(stream)
        if not forecast.judged:
            self._pieces[file] = stream
            return None
        named = {finding.queue for finding in forecast.findings}
        queues = (forecast.assigned or mdev.shadow).apqns() if None not in named else ()
        return Verdicts(forecast.findings, tuple(name for name in map(str, queues) if name not in named))

"""Moments: the state of a host after each request, determined by repeating all requests on another host."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apfs.ctl.status import document
from apfs.journal.records import Refusal, Transfer
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
    requester, streams = Requester(host), _Streams(host)
    same = True
    yield Moment(0, picture(document(host)))
    for number, record in history.entries:
        if record.outcome:
            verdicts = streams.judge(record)
            requester.make(record)
            same = same and host.journal.last == number and host.journal.since(number - 1)[0][1] == record
            yield Moment(number, picture(document(host)), same, verdicts)


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

"""Observing a mounted host, or one of its guests: its status, and its journal as it grows.

A guest is named by its directory, `MOUNT/guests/UUID`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from apfs.journal.log import CAPACITY
from apfs.journal.text import head_of_line
from apfs.mounts import guests, table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

_CHUNK = 1 << 20


@contextlib.contextmanager
def _reading(mountpoint: str) -> Iterator[None]:
    """Turn the error of reading a file, or of closing it, into what it says about the mount."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise table.MountsError(f"the guest {mountpoint} has ended") from None
        raise table.gone(mountpoint, error) from None


def _open(mountpoint: str, name: str) -> BinaryIO:
    """Open a file of `ctl`, unbuffered. `MountsError` with exit status 2 if there is no host or guest to look at."""
    mount, uuids = guests.split(mountpoint)
    table.check_answers(mount)
    with _reading(mountpoint):
        return (guests.place(mount, *uuids) / "ctl" / name).open("rb", buffering=0)


def status(mountpoint: str) -> str:
    """Return the content of `ctl/status`. `MountsError` if there is no host to look at."""
    with _reading(mountpoint), _open(mountpoint, "status") as file:
        return file.read().decode()


def head(mountpoint: str) -> str:
    """Return the content of `ctl/header`, which makes a journal one that can be replayed. `MountsError` without a host.

    A host of an older version of apfs has none.
    """
    try:
        with _reading(mountpoint), _open(mountpoint, "header") as file:
            return file.read().decode()
    except table.MountsError:
        status(mountpoint)
        return ""


def statuses(mountpoint: str, seconds: float) -> Iterator[str]:
    """Yield the content of `ctl/status` now and every some seconds. `MountsError` when the mount goes away, at once.

    In between no file of the mount is open, which would keep it from being unmounted.
    """
    mount, _ = guests.split(mountpoint)
    table.check_answers(mount)
    with table.MOUNTINFO.open("rb", buffering=0) as changes:
        poller = select.poll()
        poller.register(changes, select.POLLPRI)
        with _reading(mountpoint):
            device = os.stat(mount).st_dev  # noqa: PTH116 -- a text
        while True:
            yield status(mountpoint)
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                if poller.poll(left * 1000) and not table.is_mounted(device):
                    raise table.MountsError(f"{mountpoint} was unmounted")


def journal(mountpoint: str) -> str:
    """Return the content of `ctl/journal`. `MountsError` if there is no host to look at."""
    with _reading(mountpoint), _open(mountpoint, "journal") as file:
        return b"".join(iter(lambda: file.read(_CHUNK), b"")).decode()


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of the journal."""

    line: str
    """As it is in the journal, without the newline."""
    dropped: int
    """How many records before it the host has dropped."""


class Entries:
    """Takes the bytes of a journal, in pieces of any size, and gives its records."""

    def __init__(self, types: Collection[str] = ()) -> None:
        """Give only records of these types; of all types if none is named."""
        self._types = types
        self._rest = b""
        self._last = 0
        self.dropped = 0
        """Records that were dropped since the last one that was given."""

    def of(self, piece: bytes) -> Iterator[Entry]:
        """Yield the records that this piece completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            sequence, kind = head_of_line(line)
            self.dropped += sequence - self._last - 1
            self._last = sequence
            if not self._types or kind in self._types:
                yield Entry(line.decode(), self.dropped)
                self.dropped = 0


class JournalReader:
    """An open journal. `MountsError` if there is no host, or when it is gone."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._file = _open(mountpoint, "journal")
        with _reading(mountpoint):
            self._device = os.fstat(self._file.fileno()).st_dev
        # The kernel reports each change of the mount table to everything that polls this file.
        self._table = table.MOUNTINFO.open("rb", buffering=0)

    def new(self) -> Iterator[bytes]:
        """Yield what was added to the journal since the last call, in pieces."""
        while piece := self._read():
            yield piece

    def _read(self) -> bytes:
        with _reading(self._mountpoint):
            return self._file.read(_CHUNK)

    def wait(self, output: int) -> bool:
        """Sleep until there may be more to read; False if nobody reads what is written to descriptor `output`."""
        poller = select.poll()
        poller.register(self._file, select.POLLIN)
        poller.register(self._table, select.POLLPRI)
        poller.register(output, 0)
        ready = dict(poller.poll())
        if ready.get(self._file.fileno(), 0) == select.POLLHUP:
            raise table.MountsError(f"the guest {self._mountpoint} has ended")
        if self._table.fileno() in ready and not table.is_mounted(self._device):
            raise table.MountsError(f"{self._mountpoint} was unmounted")
        return output not in ready


def print_journal(
    mountpoint: str,
    render: Callable[[str], str],
    *,
    types: Collection[str],
    lines: int | None,
    follow: bool,
    header: bool = False,
) -> None:
    """Print the last `lines` records (None: all), each line of the journal as `render` shows it, and perhaps go on.

    With `header` that line comes first, if all records are to be printed.

    `MountsError` if there is no host, or when it is gone. Ends by SIGPIPE when nobody reads what is printed.
    """
    reader, records = JournalReader(mountpoint), Entries(types)
    if header and lines is None and not types:
        sys.stdout.write(head(mountpoint))

    def new() -> Iterator[Entry]:
        return itertools.chain.from_iterable(map(records.of, reader.new()))

    _print(new() if lines is None else deque(new(), min(lines, sys.maxsize)), render)
    if records.dropped and lines != 0:
        _tell_dropped(records.dropped)
    records.dropped = 0
    while follow:
        if not reader.wait(sys.stdout.fileno()):
            signal.raise_signal(signal.SIGPIPE)
        _print(new(), render)


def _print(entries: Iterable[Entry], render: Callable[[str], str]) -> None:
    for entry in entries:
        if entry.dropped:
            sys.stdout.flush()
            _tell_dropped(entry.dropped)
        sys.stdout.write(render(entry.line))
    sys.stdout.flush()


def _tell_dropped(count: int) -> None:
    sys.stderr.write(f"apfs: the journal has dropped {count:,} records before this: it keeps the newest {CAPACITY:,}\n")

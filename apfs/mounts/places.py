"""Directories that belong to a process: removed when it ends, or when the next one is created.

A place is a new directory in TMPDIR with a mount point in it. The process that created it holds a lock on it
(flock(2)). Three parties remove it: that process, the server when its lifeline ends, and, if both were killed, the next
process that creates a place: if the lock is free, nobody uses the place any more.

`directory` creates one for files, by the same rules.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.mounts import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOUNT_POINT = "host"


def parent() -> str:
    """Return where temporary directories are made: as `tempfile.gettempdir` does, but never in the current directory.

    That function tries whether it can make a file, which stays if it is killed then. `OSError` if there is no place.
    """
    if tempfile.tempdir is None:
        named = filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
        candidates = [str(Path(name).absolute()) for name in (*named, "/tmp", "/var/tmp", "/usr/tmp")]  # noqa: S108
        wanted = os.R_OK | os.W_OK | os.X_OK
        usable = (name for name in candidates if Path(name).is_dir() and os.access(name, wanted, effective_ids=True))
        tempfile.tempdir = next(usable, None)
        if tempfile.tempdir is None:
            raise FileNotFoundError(errno.ENOENT, f"No usable temporary directory found in {candidates}")
    return tempfile.gettempdir()


def make(prefix: str) -> tuple[Path, int]:
    """Return the mount point of a new place and the descriptor of its lock; clear away what others have left.

    `OSError` if there is no room for it.
    """
    directory = parent()
    _sweep(prefix, directory, lambda left: remove(left / _MOUNT_POINT))
    made, lock = _make(prefix, directory)
    try:
        (made / _MOUNT_POINT).mkdir()
    except OSError:
        made.rmdir()
        os.close(lock)
        raise
    return made / _MOUNT_POINT, lock


def remove(mountpoint: Path) -> None:
    """Remove a place, as far as others have not done so. What is mounted there is detached first.

    Nothing is reported: it may be for the next process to do.
    """
    with contextlib.suppress(OSError):
        _detach(mountpoint)
        try:
            mountpoint.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # If a server is killed early, its mount helper can still mount, until just now.
            _detach(mountpoint)
            mountpoint.rmdir()
    with contextlib.suppress(OSError):
        mountpoint.parent.rmdir()


def _detach(mountpoint: Path) -> None:
    with contextlib.suppress(table.MountsError):  # the mount helper may be faster
        if table.is_apfs(str(mountpoint)):
            table.unmount(str(mountpoint), lazy=True)


@contextlib.contextmanager
def directory(prefix: str, parent: str) -> Iterator[Path]:
    """Yield a new directory, which goes with all that is in it; clear away what others have left.

    `OSError` if there is no room for it.
    """
    clear(prefix, parent)
    made, lock = _make(prefix, parent)
    try:
        yield made
    finally:
        _remove_tree(made)
        os.close(lock)


def clear(prefix: str, parent: str) -> None:
    """Clear away what processes that were killed have left of their directories. `OSError` if `parent` is not there."""
    _sweep(prefix, parent, _remove_tree)


def _remove_tree(made: Path) -> None:
    shutil.rmtree(made, ignore_errors=True)


class Place:
    """A new place of this process, and the lifeline of its server: a pipe that is closed when the process ends."""

    def __init__(self, prefix: str) -> None:
        """Make it. `OSError` if there is no room for it."""
        self.mountpoint, self._lock = make(prefix)
        try:
            self._reader, self._lifeline = os.pipe()
        except OSError:
            self.remove()
            raise

    @contextlib.contextmanager
    def serving(self) -> Iterator[int]:
        """Yield the reading end, for the server that is started inside; without a server the place is removed."""
        try:
            yield self._reader
        except BaseException:
            self.release()
            self.remove()
            raise
        finally:
            os.close(self._reader)

    def release(self) -> None:
        """Close the other end: the server unmounts and ends, unless a process forked from this one has that, too."""
        os.close(self._lifeline)

    def remove(self) -> None:
        """Remove the place, which nobody serves any more."""
        remove(self.mountpoint)
        os.close(self._lock)


def _make(prefix: str, parent: str) -> tuple[Path, int]:
    """Return a new directory and the descriptor of its lock."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _lock(made)
        if lock is not None:  # else another process took it for one that was left
            return made, lock


def _lock(place: Path) -> int | None:
    """Return the descriptor of a directory that is now locked, None if it is locked already or is gone."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), place.lstat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _sweep(prefix: str, parent: str, clear: Callable[[Path], None]) -> None:
    """Clear the places of this user that were left by processes that were killed together with their servers."""
    with os.scandir(parent) as entries:
        left = [entry for entry in entries if entry.name.startswith(prefix)]
    for entry in left:
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            lock = _lock(Path(entry.path))
            if lock is not None:
                clear(Path(entry.path))
                os.close(lock)

"""Guard for migrations: if the migrating process is killed, another process restores its hosts.

A host does not notice that `apfs migrate` was killed, because no open file represents it. So another process waits for
the end of the migrating one; if that was killed, it does what the migrating process would have done itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from typing import TYPE_CHECKING, Self

from apfs.mounts.migration import NotPossibleError
from apfs.mounts.server import close_others, end_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

_DONE = b"."


class Unguarded:
    """For programs whose hosts end with them."""

    def __init__(self, recover: Callable[[bytes], None], devices: Sequence[Path], *, waits: bool = True) -> None:
        """Take what `Guard` takes."""

    def tell(self, mark: bytes) -> None:
        """Tell nobody."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Do nothing."""


class Guard(Unguarded):
    """Calls `recover`, in a process of its own, if this one does not come to the end of its `with` block.

    As long as one of the two lives, there are locks (flock(2)) on the client directories of the `devices`, which are
    different ones: nobody migrates again before all is in order. For commands: this process must not have threads.
    """

    def __init__(self, recover: Callable[[bytes], None], devices: Sequence[Path], *, waits: bool = True) -> None:
        """`recover` gets the marks that were told. Unless it `waits`, nobody else may migrate one of the devices."""
        self._recover = recover
        self._devices = devices
        self._mode = fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB

    def tell(self, mark: bytes) -> None:
        """Leave a mark: something is about to be done that the host does not show."""
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self._writer, mark)

    def __enter__(self) -> Self:
        """Start the process. `NotPossibleError` if a device is gone, or somebody else migrates."""
        try:
            return self._start()
        except BlockingIOError:
            raise NotPossibleError("another apfs migrate is using this device") from None
        except OSError as error:
            raise NotPossibleError(f"{error.filename}: {error.strerror}") from None

    def _start(self) -> Self:
        locks: list[int] = []
        with contextlib.ExitStack() as stack:
            for device in sorted(self._devices):  # in one order, so that two do not wait for each other
                locks.append(os.open(device, os.O_RDONLY | os.O_DIRECTORY))
                stack.callback(os.close, locks[-1])
                fcntl.flock(locks[-1], self._mode)
            null = os.open(os.devnull, os.O_RDWR)
            stack.callback(os.close, null)
            reader, self._writer = os.pipe()
            self._child = os.fork()
            if self._child == 0:
                end_with(lambda: self._watch(reader, null, locks))
            os.close(reader)
            self._locked = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Let the process end; after an exception it looks whether all is in order."""
        if kind is None:
            self.tell(_DONE)
        os.close(self._writer)
        os.waitpid(self._child, 0)
        self._locked.close()

    def _watch(self, reader: int, null: int, locks: Sequence[int]) -> None:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for stream in (0, 1):  # they may be the other end's
            os.dup2(null, stream)
        close_others(reader, *locks)
        with open(reader, "rb") as marks:
            told = marks.read()
        if not told.endswith(_DONE):
            self._recover(told)

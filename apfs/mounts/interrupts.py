"""Ctrl-C while a mount or a sandbox is created: noted, and handled where everything can be undone.

Without this, SIGINT would raise an exception between any two instructions, even between creating something and storing
a reference to it.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

STATUS = 128 + signal.SIGINT
"""The exit status of a command that Ctrl-C has ended."""


def handle(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle signals, unless the program that started this one wants them to be ignored, as nohup(1) does."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class _Interrupts:
    """What this process knows of SIGINT: a process has one disposition of it."""

    def __init__(self) -> None:
        self._noted = False
        self._heeding = False

    def note(self) -> None:
        """From now on note SIGINT, unless it is to be ignored."""
        handle([signal.SIGINT], self._interrupted)

    def _interrupted(self, *_signal: object) -> None:
        self._noted = True
        if self._heeding:
            self._heeding = False  # once: what is done at the end is not to be interrupted
            raise SystemExit(STATUS)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Raise `SystemExit` inside a with statement if SIGINT comes, or has come since `note`."""
        self._heeding = True
        try:
            self.check()
            yield
        finally:
            self._heeding = False

    @staticmethod
    def ignore() -> None:
        """From now on ignore SIGINT: what was asked for is done, and that is what the exit status is about.

        Otherwise the interpreter, as it ends, would let it kill this process again.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check(self) -> None:
        """Raise `SystemExit` if SIGINT has come since `note`."""
        if self._noted:
            raise SystemExit(STATUS)


interrupts = _Interrupts()

"""Standard streams of a command: missing ones are replaced, and output errors are reported in one line."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputError(click.ClickException):
    """What a command printed could not be written. The command ends with status 1."""

    def show(self, file: object = None) -> None:
        """Tell the reason as cat(1) and the like do."""
        del file
        click.echo(f"apfs: standard output: {self.message}", err=True)


class _Output(io.FileIO):
    """Standard output. Here, below all buffers, its errors can be told from those of other files.

    A reader who has gone away is no such error: that ends a command silently.
    """

    _lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            # Buffers try again at the end: an error is not to be reported twice.
            self._lost = True
            raise OutputError(error.strerror or str(error)) from None


class _Errors(io.FileIO):
    """Standard error. What cannot be said there is not said, and the command goes on: its status is the same."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare() -> None:
    """Make standard streams that can be relied on; called before anything is opened or printed."""
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            # Else pipes and files would get its number. Being open for reading only, it refuses output as a closed one.
            # It is always at its end, as /dev/null is, which may be missing.
            _, writer = os.pipe()
            os.close(writer)
    if sys.stdin is None:  # as it was closed when Python started
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- a descriptor, for as long as the process
    # A program that uses this module takes care of its own streams.
    if sys.stderr is sys.__stderr__:
        said = sys.stderr
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Errors(2, "w", closefd=False)),
            said.encoding if said else None,
            said.errors if said else "backslashreplace",
            line_buffering=True,
        )
    if sys.stdout is not sys.__stdout__:
        return
    before = sys.stdout
    raw = _Output(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        before.encoding if before else None,
        before.errors if before else None,
        line_buffering=raw.isatty(),
    )


def fail(message: str, status: int = 1, program: str = "apfs") -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"{program}: {message}", err=True)
    raise SystemExit(status)


def end_as_filters_do() -> None:
    """Let Ctrl-C, and a reader who has gone away, end this process silently, as they end cat and tail."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the program that started it ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

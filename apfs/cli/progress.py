"""Progress of a slow command: shown on standard error, only if that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def shown(text: str) -> Iterator[None]:
    """Show what is being done, and for how long, until it is done; then there is no trace of it."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from apfs.cli import terminal

    # Every terminal has the characters of this spinner.
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=terminal.console(sys.stderr), transient=True) as progress:
        progress.add_task(text, total=None)
        yield

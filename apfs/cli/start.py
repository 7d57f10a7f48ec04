"""The entry point of the command `apfs`: from here on, Ctrl-C ends it with status 130 and without output."""

from __future__ import annotations

import signal

from apfs.mounts.interrupts import at_once


def main() -> None:
    """Run the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the program that started it ignores it
        signal.signal(signal.SIGINT, at_once)
    from apfs.cli.main import main as run

    run()

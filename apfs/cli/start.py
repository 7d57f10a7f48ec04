"""The first thing that the command `apfs` runs: from here on Ctrl-C ends it with status 130 and without a word."""

from __future__ import annotations

import os
import signal


def at_once(*_signal: object) -> None:
    """End this process as long as it has made nothing (a handler of SIGINT).

    An exception would have to find its way out of half-done imports, where some are printed and forgotten.
    """
    os._exit(128 + signal.SIGINT)


def main() -> None:
    """Run the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the program that started it ignores it
        signal.signal(signal.SIGINT, at_once)
    from apfs.cli.main import main as run

    run()

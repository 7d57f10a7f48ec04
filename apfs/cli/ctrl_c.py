"""Ctrl-C before a command of apfs has made anything; from then on, it is a matter of `apfs.mounts.interrupts`."""

from __future__ import annotations

import os
import signal


def at_once(*_signal: object) -> None:
    """End this process as long as it has made nothing (a handler of SIGINT).

    An exception would have to find its way out of half-done imports, where some are printed and forgotten.
    """
    os._exit(128 + signal.SIGINT)

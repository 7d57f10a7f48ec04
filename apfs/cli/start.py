"""The entry point of the command `apfs`: from here on, Ctrl-C ends it with status 130 and without output.

Not even `typing` is imported here, as that takes as long as Python takes to start.
"""

from __future__ import annotations

import os
import signal
import sys

from apfs import __version__
from apfs.cli.ctrl_c import at_once

AGENT = "APFS_AGENT"
"""The environment variable that tells of an agent."""
_RELAYED = {"exec", "mount", "umount"}
"""The commands that an agent runs: scripts run them often, and they bear getting SIGINT twice."""


def main() -> None:
    """Run the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the program that started it ignores it
        signal.signal(signal.SIGINT, at_once)
    if sys.argv[1:] == ["--version"] and _print(f"apfs, version {__version__}\n"):
        return
    if "_APFS_GRAMMAR" in os.environ and _values():
        return
    if AGENT in os.environ and sys.argv[1:2] and sys.argv[1] in _RELAYED:
        from apfs.cli import relay

        relay.run(sys.argv[1:], os.environ[AGENT])
    from apfs.cli.main import main as run

    run(prog_name="apfs")


def _values() -> bool:
    """Answer the Tab key; False if only click can."""
    from apfs.cli import values

    lines = values.answer(os.environ)
    return lines is not None and _print(lines)


def _print(text: str) -> bool:
    """Print without click, whose import takes most of the time; False if that fails, which click reports."""
    data = os.fsencode(text)
    try:
        return os.write(1, data) == len(data)
    except OSError:
        return False

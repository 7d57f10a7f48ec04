"""Signals while a sandbox is created and used: none is lost, and the command gets them."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from apfs.mounts.interrupts import STATUS, handle, interrupts

if TYPE_CHECKING:
    from collections.abc import Callable

_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""Signals that keys of a terminal send."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_CHILDRENS_FAULTS = 8
"""Place of cminflt in /proc/PID/stat, behind the name."""


def take() -> set[signal.Signals]:
    """Prepare this process for signals, and return those that bwrap must have blocked.

    The terminal's signals are for the command alone. bwrap only waits for it, and so do the processes that it starts,
    until env(1) lets these signals through: what comes in between is not lost.
    """
    terminal = {number for number in _TERMINAL if signal.getsignal(number) is not signal.SIG_IGN}
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    handle(_ENDING, _end)
    return terminal


def _end(number: int, _frame: object) -> NoReturn:
    for ending in _ENDING:  # once: what is done at the end is not to be interrupted
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)


def let_go(start: Callable[[], None], pid: int | None) -> None:
    """Let the command `start`. `SystemExit` if Ctrl-C came before, or comes before the command can get it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        interrupts.check()
        start()
        handle([signal.SIGINT], partial(_interrupted, pid))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _interrupted(pid: int | None, *_signal: object) -> None:
    """Leave SIGINT to the command, which got it too, if bwrap's child `pid` has started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once, as above
    if pid is not None and not _has_started(pid):
        raise SystemExit(STATUS)


def _has_started(pid: int) -> bool:
    """Whether the command gets or got SIGINT: its process has been made, and env(1) has become the command in it."""
    try:
        now = children(pid)
        if not now:
            return _had_children(pid)
        status = Path(f"/proc/{now[0]}/status").read_text("utf-8", "surrogateescape")
    except OSError:
        return True
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    blocked = int(fields["SigBlk"], 16) >> signal.SIGINT - 1 & 1
    return not (blocked and fields["Name"].strip() in ("bwrap", "env"))


def _had_children(pid: int) -> bool:
    """Whether a process has waited for a child: then the kernel has added that one's page faults (proc(5), cminflt)."""
    _, _, fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "surrogateescape").rpartition(")")
    return fields.split()[_CHILDRENS_FAULTS] != "0"


def children(pid: int) -> list[int]:
    """Return the children of a process. `OSError` if it has ended, or without CONFIG_PROC_CHILDREN."""
    # A handler of signals calls this, in which the codec of a rare encoding might just be imported.
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()))

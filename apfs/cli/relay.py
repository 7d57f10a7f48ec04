"""A command that an agent runs in the place of this process, which has imported nothing and waits for it.

It is in the process group and session of this process, and has its descriptors, environment and so on, so that a
terminal and a shell see no difference. This process passes on the signals that it gets, and ends as the command does.
If it is killed, the agent kills the command.
"""

from __future__ import annotations

import os
import signal

from apfs.mounts import agent, forker

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from apfs.mounts.forker import Fork

_PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
"""Those that do more than end a command of apfs. Another one that ends this process ends the command, too."""
_OWN = 4
"""How many descriptors a fork has before it gets those of the client: standard streams, and a connection."""


def run(words: Sequence[str], told: str) -> None:
    """Run a command and end; returns only if it cannot be run that way, so that this process has to run it.

    `told` is what the agent's variable says.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        fork = _ask(words, told, before)
        if fork:
            _pass_on_signals(fork.pidfd)
    except OSError:  # also without /proc, or in a directory that may not be searched
        fork = None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if fork is None:
        return
    status = fork.wait()
    if status is None:
        os.write(2, b"apfs: the agent was killed, and with it this command\n")
        os._exit(125 if words[0] == "exec" else 1)
    _end_as(status)


def _ask(words: Sequence[str], told: str, blocked: Iterable[int]) -> Fork | None:
    """Have the agent fork a command; None if its fork would differ from one of this process.

    From the moment when it may run, signals for it wait until they can be passed on.
    """
    numbers = _descriptors()
    # With that option, a command ends with the parent of this process, of which the agent knows nothing.
    # Nobody can set a variable without a name, but inherit it.
    if numbers is None or "--die-with-parent" in words or "" in os.environ:
        return None
    found = agent.find(told)
    if found is None:
        return None
    request = {
        "words": list(words),
        "environment": dict(os.environ),
        "numbers": numbers,
        "group": os.getpgrp(),
        "ignored": [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
        "blocked": list(map(int, blocked)),
    }
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        with found:
            return found.fork(forker.STAND_IN, request, [directory, *numbers])
    finally:
        os.close(directory)


def _descriptors() -> list[int] | None:
    """Return the descriptors that this process was started with; None if too many, or without standard streams.

    Before they have their numbers in the command, they need as many others; and a shell may have opened some before it
    has set a limit that forbids their numbers.
    """
    limit = os.sysconf("SC_OPEN_MAX")
    most = min(forker.MOST_DESCRIPTORS, limit // 2 - _OWN)
    found = sorted(filter(_was_inherited, map(int, os.listdir("/proc/self/fd"))))  # noqa: PTH208 -- pathlib is slow
    return found if found[:3] == [0, 1, 2] and len(found) < most and found[-1] < limit else None


def _was_inherited(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)  # Python opens none that is
    except OSError:  # that of the list itself
        return False


def _pass_on_signals(pidfd: int) -> None:
    def pass_on(number: int, _frame: object) -> None:
        try:  # noqa: SIM105 -- contextlib imports much
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:  # it has ended
            pass

    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)


def _end_as(status: int) -> NoReturn:
    """End with an exit status, or by the signal that the number is if it is negative."""
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)

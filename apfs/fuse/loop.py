"""The request loop: pyfuse3 under trio, without the cost of trio for each request.

pyfuse3's loop waits for its device with `trio.lowlevel.wait_readable`, inside a `trio.Lock`: two passes through the
scheduler, two epoll_wait and an epoll_ctl for each request, three quarters of the cost of a request. `FastTrio`
replaces the module `trio` where pyfuse3 looks it up; `pyfuse3.asyncio` uses the same hook. As long as requests keep
coming, it does not wait at all: pyfuse3 reads the device, and the kernel blocks this read until there is a request, as
for a server in C. Other tasks run after some requests. When there are no requests, an alarm soon interrupts the read,
and then trio waits, without an alarm. A handler that has to wait leaves its task, and another task continues reading;
as long as none waits, the other tasks sleep, and one task serves all requests.

Measured: open, read and close on one CPU take 0.35 to 0.45 of the time in pyfuse3's own loop, depending on the machine.
"""

from __future__ import annotations

import select
import signal
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

SPIN_SECONDS = 50e-6
"""How long to look for the next request before going to sleep.

Waking a sleeping CPU costs about as much: a client on a CPU of its own that makes one request after the other is served
in half the time. A client on the server's CPU makes its next request while the answer wakes it, or not before the
server sleeps: there, looking costs a tenth and never finds anything.
"""
_LOOKS = 4
"""After how many fruitless looks it stops looking until the next turn."""
_TURN_REQUESTS = 64
"""After how many requests other tasks, timers and signals have their turn. Twice or half as many make no difference."""
TASKS = 32
"""How many tasks there are at most: handlers that wait, and one that reads."""
_TURN_SECONDS = 4e-3
"""After what time they have it if there is no request. An alarm costs as much as ten requests."""


class _Done:
    """An awaitable that has already finished."""

    # The same iterator each time, which is exhausted: no Python code runs. There are three of these in a request, and
    # making generators would take 3 % of the time of a request whose handler does nothing.
    __await__: Callable[[], Generator[None, None, None]] = (None for _ in ()).__iter__


_DONE = _Done()


class _Lock:
    """Lets one task at a time wait for requests; the others sleep.

    It is held in turns only: in a run no other task can ask for it. Whoever passes wakes the next one, which goes to
    sleep again if there is nothing for it to do. So there always is a task that goes on when a handler waits, or when
    the session has ended, of which nobody tells those who sleep.
    """

    def __init__(self) -> None:
        self._held = False
        self._sleeping = trio.lowlevel.ParkingLot()

    def __aenter__(self) -> Awaitable[None]:
        return self._sleep() if self._held else _DONE

    def __aexit__(self, *_error: object) -> _Done:
        return _DONE

    async def _sleep(self) -> None:
        while self._held:
            await self._sleeping.park()
        self._sleeping.unpark()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._sleeping.unpark()


class _Lowlevel:
    """`trio.lowlevel` with a `wait_readable` that leaves the waiting to the read that follows.

    Runs and turns alternate. In a *run* it claims at once that there is something to read, and the kernel blocks the
    reader until there is. A run ends after some requests or, by an alarm, after some time. Then the other tasks have
    their *turn*: after an alarm until there is a request again, after requests for one step of the scheduler.
    """

    def __init__(self, spin: float, lock: _Lock) -> None:
        self._spin = spin
        self._lock = lock
        self._poll = select.poll()
        self._left = 0
        """How many requests are left of the run."""
        self._idle = True
        """Whether there were no requests when the run ended, or there was no run yet."""
        self.looks = 0
        """How many more fruitless looks before the kernel may block the reader again."""
        self.turns = 0
        """How many turns there were."""
        self._steps = 1
        """Of how many steps of the scheduler the next turn consists, if there are requests."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever trio has
        return getattr(trio.lowlevel, name)

    def wait_readable(self, fd: int) -> Awaitable[None]:
        """Return an awaitable that ends when a descriptor can be read, or at once if reading it may block."""
        if self._left <= 0:
            return self._turn(fd)
        self._left -= 1
        if self.looks:
            self._look()
        return _DONE

    async def _turn(self, fd: int) -> None:
        self.turns += 1
        with self._lock.turn():
            if self._idle:
                signal.setitimer(signal.ITIMER_REAL, 0)
                # At once, without yielding first: pyfuse3 has just checked whether the session has ended.
                await trio.lowlevel.wait_readable(fd)
            else:
                for _ in range(self._steps):
                    await trio.lowlevel.checkpoint()
        self._steps = 1
        self._run(fd)

    def _run(self, fd: int) -> None:
        self._idle = False
        self._left = _TURN_REQUESTS
        self.looks = _LOOKS if self._spin else 0
        self._poll.register(fd, select.POLLIN)
        # Again and again: an alarm is lost if it comes just before the device is read.
        signal.setitimer(signal.ITIMER_REAL, _TURN_SECONDS, _TURN_SECONDS)

    def _look(self) -> None:
        """Look for the next request until there is one, at most for a short time."""
        if not self._poll.poll(0):
            until = time.perf_counter() + self._spin
            while time.perf_counter() < until:
                if self._poll.poll(0):
                    self.looks = _LOOKS
                    return
        self.looks -= 1

    def alarm(self, *_signal: object) -> None:
        """End the run."""
        self._left = 0
        self._idle = True

    def yield_soon(self) -> None:
        """Let all tasks that can go on do so before the next request."""
        self._left = 0
        self._steps = 2  # the order of tasks in a step is random


class FastTrio:
    """What pyfuse3 sees instead of the module `trio`."""

    def __init__(self, spin: float) -> None:
        self._lock = _Lock()
        self.lowlevel = _Lowlevel(spin, self._lock)

    def Lock(self) -> _Lock:  # noqa: N802 -- the name of trio's
        """Return the lock with which pyfuse3's tasks take turns at waiting."""
        return self._lock

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever trio has
        return getattr(trio, name)


@contextmanager
def fast(spin: float = SPIN_SECONDS) -> Iterator[FastTrio | None]:
    """Let `pyfuse3.main` use the fast loop inside a with statement; warn, and change nothing, if it has no hook.

    It needs SIGALRM and the process's ITIMER_REAL for itself, and so must be entered in the main thread. It must be
    left before trio ends, which first closes the socket to which Python writes at each signal and then forgets it:
    Python complains of an alarm in between on standard error, and on a slow machine of many.
    """
    # The name is no part of pyfuse3's interface, so that type checkers do not know it.
    if getattr(pyfuse3, "trio", None) is not trio:
        warnings.warn(
            f"pyfuse3 {pyfuse3.__version__} does not look trio up where it used to: requests will take longer",
            RuntimeWarning,
            stacklevel=3,
        )
        yield None
        return
    stand_in = FastTrio(spin)
    before = signal.signal(signal.SIGALRM, stand_in.lowlevel.alarm)
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    setattr(pyfuse3, "trio", stand_in)  # noqa: B010 -- see above
    try:
        yield stand_in
    finally:
        setattr(pyfuse3, "trio", trio)  # noqa: B010 -- see above
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGALRM, before)


async def serve_requests() -> None:
    """Serve requests until the session ends. There are more tasks than one only if handlers wait."""
    await pyfuse3.main(TASKS, TASKS)

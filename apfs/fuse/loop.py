"""The request loop: pyfuse3 under trio, without trio's price for each request.

pyfuse3's loop waits for its device with `trio.lowlevel.wait_readable`, inside a `trio.Lock`: two trips through the
scheduler, two epoll_wait and an epoll_ctl for every request, three quarters of what a request costs. `FastTrio` stands
in for the module `trio` where pyfuse3 looks that up, which is the hook that `pyfuse3.asyncio` uses too. It asks the
device first; only if nothing is queued does it let trio wait. Handlers never await and there is one task, so a lock has
nothing to do.

Measured against a minimal C server, open+read+close pinned to one CPU: 2.0 times its time instead of 4.6.
"""

from __future__ import annotations

import select
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Iterator

SPIN_SECONDS = 50e-6
"""How long to look for the next request before going to sleep.

Waking a sleeping CPU costs about as much. With it, a client that makes one request after the other on an idle machine
is served in 0.8 times the time without. On one CPU it makes no difference, and no idle server spins: it looks once
after each request.
"""
_TURN = 64
"""Requests after which other tasks, timers and signals have their turn. Each turn costs as much as two requests."""


class _Done:
    """An awaitable that is finished already."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()


class _NoLock:
    """A lock that nobody contends for."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(self, *_error: object) -> _Done:
        return _DONE


class _Lowlevel:
    """`trio.lowlevel` with a `wait_readable` that looks before it waits."""

    def __init__(self, spin: float) -> None:
        self._spin = spin
        self._poll = select.poll()
        self._registered = -1
        self._left = _TURN
        self.looked = 0
        """How often a request was found without waiting."""
        self.waited = 0
        """How often trio was asked to wait."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever trio has
        return getattr(trio.lowlevel, name)

    def wait_readable(self, fd: int) -> Awaitable[None]:
        """Return an awaitable that ends when a descriptor can be read, which may be now."""
        if fd != self._registered:
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        self._left -= 1
        if self._left and (self._poll.poll(0) or self._spun()):
            self.looked += 1
            return _DONE
        self._left = _TURN
        self.waited += 1
        return trio.lowlevel.wait_readable(fd)  # noqa: ASYNC105 -- pyfuse3 awaits it

    def _spun(self) -> bool:
        if not self._spin:
            return False
        until = time.perf_counter() + self._spin
        while time.perf_counter() < until:
            if self._poll.poll(0):
                return True
        return False


class FastTrio:
    """What pyfuse3 sees instead of the module `trio`."""

    Lock = _NoLock

    def __init__(self, spin: float) -> None:
        self.lowlevel = _Lowlevel(spin)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever trio has
        return getattr(trio, name)


@contextmanager
def fast(spin: float = SPIN_SECONDS) -> Iterator[FastTrio | None]:
    """Let `pyfuse3.main` use the fast loop inside a with statement; warn, and change nothing, if it has no hook."""
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
    setattr(pyfuse3, "trio", stand_in)  # noqa: B010 -- see above
    try:
        yield stand_in
    finally:
        setattr(pyfuse3, "trio", trio)  # noqa: B010 -- see above


async def serve_requests() -> None:
    """Serve requests until the session ends, all in this task: more would only take turns."""
    await pyfuse3.main(1, 0)

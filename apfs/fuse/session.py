"""One mount, from start to end: options, signals, the scan timer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from apfs.fuse.loop import fast, serve_requests
from apfs.fuse.machine import ThisMachine
from apfs.fuse.operations import Operations, end_at_once
from apfs.mounts import environment, places, server, table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from apfs.host import Host

# The kernel holds back all but a dozen releases of files, while other requests overtake them: a group would still be
# busy after a process with more files has closed it. An ordinary user may raise the limit to about this.
_MAX_BACKGROUND = "1000"
# How long a request may still take after a signal has asked the server to end.
_GRACE_SECONDS = 2.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class MountError(Exception):
    """The file system could not be mounted."""


class ScanTimer:
    """Lets the host's time pass with the clock, so that the AP bus scans every `config_time` seconds.

    It sleeps until the next scan is due, and does nothing in between.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.ticked: Callable[[], None] = lambda: None
        """Called after time has passed."""
        self._sleep = trio.CancelScope()
        self._armed = self._state()

    def check(self) -> None:
        """Notice a changed period, or a scan on request: both restart the timer."""
        if self._state() != self._armed:
            self._sleep.cancel()

    def _state(self) -> tuple[object, ...]:
        return self._host.timers()

    async def run(self) -> None:
        """Sleep and scan for ever."""
        while True:
            self._armed = self._state()
            due = self._host.until_scan
            with trio.CancelScope() as self._sleep:
                await trio.sleep(due)
                try:
                    self._host.pass_time(due)
                    self.ticked()
                except MemoryError:
                    end_at_once()


def _options(given: Collection[str], *, allow_other: bool) -> set[str]:
    options = set(pyfuse3.default_options) | {*given, "subtype=apfs", "default_permissions"}
    if allow_other:
        options.add("allow_other")
    if shutil.which("fusermount3"):
        options.add("auto_unmount")  # a killed server leaves no dead mount behind; needs the helper
    return options


def _hold_no_releases_back(mountpoint: str) -> None:
    """Raise the limit of requests that nobody waits for, if the file system fusectl is mounted."""
    # Not from stat(2), which the server itself would have to answer.
    place = str(Path(mountpoint).parent.resolve() / Path(mountpoint).name)
    for mount in table.mounted():
        if mount.mountpoint == place:
            with contextlib.suppress(OSError):
                limit = Path(f"/sys/fs/fuse/connections/{os.minor(mount.device)}/max_background")
                limit.write_text(_MAX_BACKGROUND)


def serve(
    host: Host,
    mountpoint: str,
    *,
    allow_other: bool,
    clock: bool,
    ready: Callable[[], None],
    lifeline: int | None = None,
    fast_loop: bool = True,
    fuse_options: Collection[str] = ("fsname=apfs",),
) -> None:
    """Mount a host and serve it until it is unmounted or SIGTERM, SIGINT or SIGHUP arrives.

    These signals wait while it mounts, so that none leaves a mount without a server; `SystemExit` if one came.

    `ready()` is called when the mount can be used. `clock` says whether time passes by itself. `lifeline` is a file
    descriptor that becomes readable when the process that needs the mount has ended; then the place of the mount is
    removed as well (`apfs.mounts.places`). Without `fast_loop`, requests go through trio's scheduler. `fuse_options`
    are those of mount.fuse3(8): the source that /proc/mounts shows, and options for the kernel and libfuse such as `ro`
    and `debug`. With `debug` there is no fast loop, because its alarms would interrupt libfuse's printing.
    `MountError` if the kernel or the mount helper refuses, after the helper has printed the reason on standard error;
    `MountsError` if somebody else is mounting there.
    """
    if clock:
        host.follow_clock()
    host.real_machine = ThisMachine()
    timer = ScanTimer(host)
    operations = Operations(host, timer.check)
    timer.ticked = operations.happened
    blocked = set(_ENDING) - signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with server.claimed(mountpoint):
            pyfuse3.init(operations, mountpoint, _options(fuse_options, allow_other=allow_other))
    except RuntimeError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        facts = environment.look()
        problems = environment.mount_problems(facts)
        problems += environment.allow_other_problems(facts) if allow_other else []
        raise MountError("; ".join([f"the mount was refused ({error})", *map(str, problems)])) from None
    try:
        operations.cache.connect()
        _hold_no_releases_back(mountpoint)
        early = signal.sigpending() & set(_ENDING)
        if early:
            raise SystemExit(128 + min(early))

        async def run() -> None:
            with fast() if fast_loop and "debug" not in fuse_options else contextlib.nullcontext() as stand_in:
                if stand_in:
                    operations.deliveries.yield_soon = stand_in.lowlevel.yield_soon
                await _loop(timer if clock else None, ready, lifeline, blocked)

        trio.run(run)
    finally:
        pyfuse3.close(unmount=True)
        if lifeline is not None:
            places.remove(Path(mountpoint))


async def _loop(
    timer: ScanTimer | None, ready: Callable[[], None], lifeline: int | None, blocked: set[signal.Signals]
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signal, nursery.cancel_scope)  # returns when a signal no longer kills
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        if lifeline is not None:
            nursery.start_soon(_end_with, lifeline, nursery.cancel_scope)
        if timer:
            nursery.start_soon(timer.run)
        ready()
        try:
            await serve_requests()
        except* MemoryError:  # perhaps of a task of pyfuse3's
            end_at_once()
        nursery.cancel_scope.cancel()


async def _end_on_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(*_ENDING) as signals:
        task_status.started()
        async for _ in signals:
            await _end(scope)


async def _end_with(lifeline: int, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(lifeline)
    await _end(scope)


async def _end(scope: trio.CancelScope) -> None:
    pyfuse3.terminate()
    await trio.sleep(_GRACE_SECONDS)
    scope.cancel()

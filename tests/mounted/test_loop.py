"""The fast request loop: who waits for requests, and when others have their turn."""

from __future__ import annotations

import os
import re
import select
import signal
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import pytest
import trio
import trio.testing

from apfs.fuse.loop import FastTrio, fast
from tests.mounted.counted import counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Loop = Callable[..., FastTrio]
    Mounter = Callable[..., Path]

LOOKS = 4
TURN = 64
MINUTE = 60.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
async def loop() -> AsyncIterator[Loop]:
    """Return a function that enters the fast loop with a time to look; it is left before trio ends."""
    with ExitStack() as stack:

        def enter(spin: float = 0) -> FastTrio:
            stand_in = stack.enter_context(fast(spin))
            assert stand_in
            return stand_in

        yield enter


async def first(stand_in: FastTrio, pipe: tuple[int, int]) -> None:
    """Let a request come to an idle server."""
    os.write(pipe[1], b"request")
    await stand_in.lowlevel.wait_readable(pipe[0])


def alarm() -> tuple[float, float]:
    return signal.getitimer(signal.ITIMER_REAL)


def no_alarms() -> None:
    """Go on as if there were requests all the time, however long it takes; `fast` lets them through again."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})


@pytest.mark.trio
async def test_an_idle_server_waits_as_trio_does_and_has_no_alarm(pipe: tuple[int, int], loop: Loop) -> None:
    stand_in = loop()
    for turn in (1, 2):  # at first, and after an alarm
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand_in.lowlevel.wait_readable, pipe[0])
            await trio.testing.wait_all_tasks_blocked()
            assert (stand_in.lowlevel.turns, alarm()) == (turn, (0, 0))
            os.write(pipe[1], b"request")
        left, interval = alarm()
        assert 0 < left <= interval <= 5e-3  # again and again: one may come just before the device is read
        os.read(pipe[0], 100)
        signal.raise_signal(signal.SIGALRM)


@pytest.mark.trio
async def test_a_busy_server_leaves_the_waiting_to_whoever_reads(pipe: tuple[int, int], loop: Loop) -> None:
    stand_in = loop()
    no_alarms()
    await first(stand_in, pipe)
    os.read(pipe[0], 100)
    for _ in range(TURN):
        await stand_in.lowlevel.wait_readable(pipe[0])
    assert stand_in.lowlevel.turns == 1
    os.write(pipe[1], b"request")
    await stand_in.lowlevel.wait_readable(pipe[0])
    assert stand_in.lowlevel.turns == 2


@pytest.mark.trio
async def test_others_have_their_turn_after_some_requests(pipe: tuple[int, int], loop: Loop) -> None:
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            await trio.lowlevel.checkpoint()

    stand_in = loop()
    no_alarms()
    await first(stand_in, pipe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(TURN):
            await stand_in.lowlevel.wait_readable(pipe[0])
        assert ran == 0
        for _ in range(TURN + 2):  # the first of two turns may come to us first
            await stand_in.lowlevel.wait_readable(pipe[0])
        assert stand_in.lowlevel.turns == 3
        assert ran
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_others_have_their_turn_at_each_alarm(pipe: tuple[int, int], loop: Loop) -> None:
    turns = []

    async def other() -> None:
        while True:
            turns.append(stand_in.lowlevel.turns)
            await trio.lowlevel.checkpoint()

    stand_in = loop()
    await first(stand_in, pipe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        signal.setitimer(signal.ITIMER_REAL, 0)  # this test's own alarm will do
        await stand_in.lowlevel.wait_readable(pipe[0])
        assert not turns
        signal.raise_signal(signal.SIGALRM)
        await stand_in.lowlevel.wait_readable(pipe[0])
        nursery.cancel_scope.cancel()
    assert turns[0] == 2


@pytest.mark.trio
@pytest.mark.usefixtures("autojump_clock")
@pytest.mark.parametrize("alarmed", [False, True])
async def test_an_end_that_comes_in_a_turn_is_not_waited_for(
    pipe: tuple[int, int], loop: Loop, *, alarmed: bool
) -> None:
    """What ends a session wakes those who wait for its device, once: nobody may begin to wait afterwards."""
    stand_in = loop()
    no_alarms()
    await first(stand_in, pipe)
    os.read(pipe[0], 100)
    if alarmed:
        stand_in.lowlevel.alarm()
    ended = False

    async def end() -> None:
        nonlocal ended
        trio.lowlevel.notify_closing(pipe[0])
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        with trio.fail_after(1), pytest.raises(trio.ClosedResourceError) if alarmed else nullcontext():
            for _ in range(2 * (TURN + 1)):  # a turn may come to us first
                await stand_in.lowlevel.wait_readable(pipe[0])
        assert ended


@pytest.mark.trio
async def test_it_does_not_look_where_looking_finds_nothing(pipe: tuple[int, int], loop: Loop) -> None:
    stand_in = loop(1e-6)
    await first(stand_in, pipe)
    left = []
    for _ in range(LOOKS + 2):
        left.append(stand_in.lowlevel.looks)
        await stand_in.lowlevel.wait_readable(pipe[0])
    assert left == [*range(LOOKS, -1, -1), 0]  # what is there already would have been read without looking


@pytest.mark.trio
async def test_it_looks_on_where_looking_finds_something(pipe: tuple[int, int], loop: Loop) -> None:
    stand_in = loop(MINUTE)
    no_alarms()
    await first(stand_in, pipe)
    await stand_in.lowlevel.wait_readable(pipe[0])
    assert stand_in.lowlevel.looks == LOOKS - 1
    os.read(pipe[0], 100)
    # A timer of the time that this process spends, so that the request comes while it looks, however busy others are.
    before = signal.signal(signal.SIGVTALRM, lambda *_: os.write(pipe[1], b"request"))
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
        await stand_in.lowlevel.wait_readable(pipe[0])
    finally:
        signal.signal(signal.SIGVTALRM, before)
    assert os.read(pipe[0], 100) == b"request"
    assert stand_in.lowlevel.looks == LOOKS
    assert stand_in.lowlevel.turns == 1


def test_pyfuse3_sees_it_only_inside_the_with_statement() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fast() as stand_in:
            assert getattr(pyfuse3, "trio") is stand_in  # noqa: B009 -- no public name
            assert signal.getsignal(signal.SIGALRM) is not handler
    assert getattr(pyfuse3, "trio") is trio  # noqa: B009 -- no public name
    assert signal.getsignal(signal.SIGALRM) is handler


def test_alarms_are_let_through_even_if_the_caller_blocks_them() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        with fast():
            assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(("how", "alarms"), [("--foreground", True), ("--debug", False)])
def test_no_alarm_interrupts_what_libfuse_prints(tmp_path: Path, how: str, *, alarms: bool) -> None:
    with counted(tmp_path / "z", how=how) as served:
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{served.pid}/status").read_text(), re.MULTILINE)
        assert caught
        assert bool(int(caught[1], 16) >> (signal.SIGALRM - 1) & 1) == alarms


def test_alarms_end_before_trio_does(tmp_path: Path) -> None:
    """It closes what Python writes to at each signal: an alarm after that is complained of on standard error."""
    found = tmp_path / "found"
    look = f"""
import functools, pathlib, signal, trio

class Look(trio.abc.Instrument):
    def after_run(self):
        pathlib.Path({str(found)!r}).write_text(str(signal.getitimer(signal.ITIMER_REAL)))

trio.run = functools.partial(trio.run, instruments=[Look()])
"""
    with counted(tmp_path / "z", look, "--foreground"):
        pass
    assert found.read_text() == "(0.0, 0.0)"


def test_timers_go_on_when_requests_stop(mount: Mounter) -> None:
    """Right after a request the server is blocked where no timer can reach it, but for the alarm."""
    host: Path = mount()
    (host / "sys/bus/ap/config_time").write_text("5")
    with (host / "ctl/uevents").open("rb", buffering=0) as events:
        poller = select.poll()
        poller.register(events, select.POLLIN)
        (host / "ctl/console").write_text("plug 20 CEX8C")
        assert events.read() == b""
        assert poller.poll(MINUTE * 1000) == [(events.fileno(), select.POLLIN)]
        assert b"card14" in events.read()

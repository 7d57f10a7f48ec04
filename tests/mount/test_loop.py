"""The fast request loop: what it waits for, and when it lets others have their turn."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import pyfuse3
import pytest
import trio
import trio.testing

from apfs.fuse.loop import FastTrio, fast

if TYPE_CHECKING:
    from collections.abc import Iterator

TURN = 64


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def waits(stand_in: FastTrio, fd: int) -> bool:
    """Say whether waiting for a descriptor takes a trip through the scheduler."""
    awaited = stand_in.lowlevel.wait_readable(fd).__await__()
    try:
        next(awaited)
    except StopIteration:
        return False
    except RuntimeError:  # there is no scheduler
        return True
    raise AssertionError


def test_what_is_there_already_is_not_waited_for(pipe: tuple[int, int]) -> None:
    stand_in = FastTrio(0)
    os.write(pipe[1], b"request")
    assert [waits(stand_in, pipe[0]) for _ in range(TURN)] == [False] * (TURN - 1) + [True]
    assert (stand_in.lowlevel.looked, stand_in.lowlevel.waited) == (TURN - 1, 1)


@pytest.mark.parametrize("spin", [0, 1e-4])
def test_what_is_not_there_is_waited_for(pipe: tuple[int, int], spin: float) -> None:
    stand_in = FastTrio(spin)
    assert waits(stand_in, pipe[0])
    assert stand_in.lowlevel.looked == 0


@pytest.mark.trio
async def test_it_waits_as_trio_does(pipe: tuple[int, int]) -> None:
    stand_in = FastTrio(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_in.lowlevel.wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked()
        os.write(pipe[1], b"request")
    assert (stand_in.lowlevel.looked, stand_in.lowlevel.waited) == (0, 1)


@pytest.mark.trio
async def test_others_have_their_turn_while_requests_keep_coming(pipe: tuple[int, int]) -> None:
    stand_in = FastTrio(0)
    turns = []

    async def other() -> None:
        turns.append(stand_in.lowlevel.looked)

    os.write(pipe[1], b"request")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(2 * TURN):
            await stand_in.lowlevel.wait_readable(pipe[0])
    assert turns[0] in (TURN - 1, 2 * (TURN - 1))  # trio shuffles those that are ready at the same time


def test_pyfuse3_sees_it_only_inside_the_with_statement() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fast() as stand_in:
            assert getattr(pyfuse3, "trio") is stand_in  # noqa: B009 -- no public name
    assert getattr(pyfuse3, "trio") is trio  # noqa: B009 -- no public name

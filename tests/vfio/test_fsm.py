"""The table of migration states against what it is made from: arcs, and the shortest way along them."""

import errno
from collections import deque
from itertools import pairwise, product

import pytest

from apfs.errors import KernelError
from apfs.vfio.fsm import NEXT, State, next_state

# What a driver that can only stop and copy has to be able to do.
ARCS = frozenset(
    (
        (State.RUNNING, State.STOP),
        (State.STOP, State.RUNNING),
        (State.STOP, State.STOP_COPY),
        (State.STOP_COPY, State.STOP),
        (State.STOP, State.RESUMING),
        (State.RESUMING, State.STOP),
    )
)
SUPPORTED = frozenset(state for arc in ARCS for state in arc)
FILES = frozenset(((State.STOP, State.STOP_COPY), (State.STOP, State.RESUMING)))


def ways(start: State, target: State) -> list[list[State]]:
    """Return all shortest ways, found breadth first."""
    found: list[list[State]] = []
    waiting = deque([[start]])
    while waiting:
        way = waiting.popleft()
        if found and len(way) > len(found[0]):
            break
        if way[-1] == target:
            found.append(way)
        else:
            waiting.extend([*way, after] for before, after in sorted(ARCS) if before == way[-1] and after not in way)
    return found


@pytest.mark.parametrize(("current", "target"), list(product(State, State)))
def test_next_state(current: State, target: State) -> None:
    if current not in SUPPORTED or target not in SUPPORTED:
        assert ways(current, target) in ([], [[current]])
        with pytest.raises(KernelError) as caught:
            next_state(current, target)
        assert caught.value.errno == errno.EINVAL
        return
    (way,) = ways(current, target)  # there is never a choice
    assert next_state(current, target) == (way[1] if len(way) > 1 else current)


@pytest.mark.parametrize(("current", "target"), list(product(sorted(SUPPORTED), sorted(SUPPORTED))))
def test_following_the_table_leads_there(current: State, target: State) -> None:
    walked = [current]
    while walked[-1] != target:
        walked.append(next_state(walked[-1], target))
        assert len(walked) <= len(State)
    assert [walked] == ways(current, target)
    arcs = list(pairwise(walked))
    assert set(arcs) <= ARCS
    # Only the last step makes a file, and there is a file exactly if it leads into a state that has one.
    assert [arc in FILES for arc in arcs[:-1]] == [False] * len(arcs[:-1])
    assert (arcs[-1:] != [] and arcs[-1] in FILES) == (
        current != target and target in (State.STOP_COPY, State.RESUMING)
    )


def test_the_table_has_nothing_else() -> None:
    assert set(NEXT) == SUPPORTED
    assert all(set(row) == SUPPORTED for row in NEXT.values())


def test_numbers_are_those_of_the_interface() -> None:
    names = ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"]
    assert [(state.name, state.value) for state in State] == [(name, number) for number, name in enumerate(names)]

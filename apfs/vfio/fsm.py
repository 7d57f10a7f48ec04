"""The migration state machine of a VFIO device that supports only stop-copy (vfio_mig_get_next_state).

The core follows this table: one driver call per step, from the current state towards the target.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.vfio import uapi

if TYPE_CHECKING:
    from apfs.journal.records import MigrationState


class State(IntEnum):
    """Device states (enum vfio_device_mig_state)."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


class MigrationFlags(IntFlag):
    """What a driver's migration can do (struct vfio_device_feature_migration)."""

    STOP_COPY = uapi.VFIO_MIGRATION_STOP_COPY


NAMES: dict[State, MigrationState] = {
    State.STOP: "STOP",
    State.RUNNING: "RUNNING",
    State.STOP_COPY: "STOP_COPY",
    State.RESUMING: "RESUMING",
}
"""The states that a device can be in, as the journal calls them."""

NEXT: dict[State, dict[State, State]] = {
    State.STOP: {
        State.STOP: State.STOP,
        State.RUNNING: State.RUNNING,
        State.STOP_COPY: State.STOP_COPY,
        State.RESUMING: State.RESUMING,
    },
    State.RUNNING: {
        State.STOP: State.STOP,
        State.RUNNING: State.RUNNING,
        State.STOP_COPY: State.STOP,
        State.RESUMING: State.STOP,
    },
    State.STOP_COPY: {
        State.STOP: State.STOP,
        State.RUNNING: State.STOP,
        State.STOP_COPY: State.STOP_COPY,
        State.RESUMING: State.STOP,
    },
    State.RESUMING: {
        State.STOP: State.STOP,
        State.RUNNING: State.STOP,
        State.STOP_COPY: State.STOP,
        State.RESUMING: State.RESUMING,
    },
}
"""Current state and target to the next state. What is missing is EINVAL: peer-to-peer and pre-copy states belong to
flags that the device does not have, ERROR is no target, and only a reset leaves it."""


def next_state(current: State, target: int) -> State:
    """Return the next step on the way; EINVAL, before anything is done, if there is no way."""
    try:
        return NEXT[current][State(target)]
    except ValueError:
        raise KernelError(errno.EINVAL, f"{target} is not a migration state: there are 0 to {max(State)}") from None
    except KeyError:
        raise KernelError(errno.EINVAL, f"there is no way from {current.name} to {State(target).name}") from None

"""Ioctls of an open device, whichever way it was opened: features, migration states, interrupts, reset."""

from __future__ import annotations

import itertools
import struct

import pytest

from tests.vfio.client import (
    DEVICE_FEATURE,
    DEVICE_GET_IRQ_INFO,
    DEVICE_RESET,
    DEVICE_SET_IRQS,
    GET,
    MATRIX,
    PROBE,
    RESUMING,
    RUNNING,
    SET,
    STOP,
    STOP_COPY,
    Cdev,
    Device,
    U,
    outcome_of,
)
from tests.vfio.program import Program

WAYS = pytest.mark.parametrize("way", [Device, Cdev])
U32 = 2**32


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argsz", [8, 16])
@pytest.mark.parametrize("index", range(16))
def test_features_by_index_and_flags(guest: Program, index: int, argsz: int) -> None:
    """The whole table: feature, GET, SET and PROBE, and whether there is room for the data."""
    offered = {1: 0b01, 2: 0b11, 9: 0b01}  # GET is 1, SET is 2

    def expected(flags: int) -> str:
        method, probe = flags & 3, flags & 4
        if method == 3 and not probe:
            return "EINVAL"
        if index in (6, 7, 8):
            return "ENOTTY"
        if index not in offered:
            return "EINVAL" if index == 12 else "ENOTTY"  # VFIO knows MIG_PRECOPY_INFOv2
        if method & ~offered[index]:
            return "EINVAL"
        return "ok" if probe or (method and argsz >= 16) else "EINVAL"

    device = Device(guest)
    answers = {
        flags: device.outcome(DEVICE_FEATURE, struct.pack("=IIIi", argsz, index | flags << 16, RUNNING, -1))
        for flags in range(8)
    }
    assert answers == {flags: expected(flags) for flags in range(8)}


@pytest.mark.parametrize(
    ("argsz", "flags", "expected"),
    [
        (7, GET | 1, "EINVAL"),
        (8, GET | 1, "EINVAL"),
        (15, GET | 1, "EINVAL"),
        (16, GET | 1, "ok"),
        (64, GET | 1, "ok"),
        (16, GET | 1 | 1 << 19, "EINVAL"),
        (16, GET | SET | 2, "EINVAL"),
        (8, GET | SET | PROBE | 2, "ok"),
        (8, PROBE | 6, "ENOTTY"),
        (8, 7, "ENOTTY"),
        (8, GET | 8, "ENOTTY"),
        (16, GET | 0, "ENOTTY"),
        (16, GET | 99, "ENOTTY"),
        (16, SET | 1, "EINVAL"),
        (8, PROBE | SET | 1, "EINVAL"),
        (8, PROBE | 1, "ok"),
        (16, 1, "EINVAL"),
        (8, PROBE | GET | 9, "ok"),
    ],
)
def test_feature_checks_in_their_order(program: Program, argsz: int, flags: int, expected: str) -> None:
    program.create()
    device = Device(program)
    assert device.outcome(DEVICE_FEATURE, struct.pack("=II8x", argsz, flags)) == expected


# -- migration states --------------------------------------------------------------------------------------------------

STEPS = {
    # From STOP, RUNNING, STOP_COPY, RESUMING: where a target leads, and whether there is a file.
    1: {1: (1, False), 2: (2, False), 3: (3, True), 4: (4, True)},
    2: {1: (1, False), 2: (2, False), 3: (3, True), 4: (4, True)},
    3: {1: (1, False), 2: (2, False), 3: (3, False), 4: (4, True)},
    4: {1: (1, False), 2: (2, False), 3: (3, True), 4: (4, False)},
}
TARGETS = (*range(9), U32 - 1)


@WAYS
@pytest.mark.parametrize(("current", "target"), list(itertools.product(STEPS, TARGETS)))
def test_every_state_from_every_state(guest: Program, way: type[Device], current: int, target: int) -> None:
    device = way(guest)
    for state in (STOP, current):
        device.set_state(state)
    result, after = guest.tried(device.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, SET | 2, target, 77))
    echoed, fd = struct.unpack("=Ii", after[8:])
    state, file = STEPS[current].get(target, (current, False))
    assert result == ("ok" if target in STEPS[current] else "EINVAL")
    assert (echoed, device.state(), fd >= 0) == (target, state, file)


@pytest.mark.parametrize("state", [0, 5, 6, 7, 8, U32 - 1])
def test_states_that_cannot_be_reached_leave_the_struct_and_the_state(program: Program, state: int) -> None:
    program.create()
    device = Device(program)
    result, after = program.tried(device.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, SET | 2, state, 77))
    assert (result, *struct.unpack("=Ii", after[8:]), device.state()) == ("EINVAL", state, -1, RUNNING)


@pytest.mark.parametrize("state", [1, 2, 3, 99])
def test_a_secure_execution_host_refuses_every_state(state: int) -> None:
    program = Program("secure-execution")
    program.create()
    device = Device(program)
    assert device.outcome(DEVICE_FEATURE, struct.pack("=IIIi", 16, SET | 2, state, 0)) == "EPERM"
    assert device.state() == RUNNING


def test_the_size_is_live_and_the_stream_a_snapshot(guest: Program) -> None:
    device = Device(guest)
    assert device.data_size() == 24
    data = device.set_state(STOP_COPY)
    guest.write(f"{MATRIX}/{U}/assign_domain", "4")
    assert (device.data_size(), len(guest.read(data))) == (40, 24)
    device.set_state(STOP)
    assert (device.data_size(), len(guest.read(device.set_state(STOP_COPY)))) == (40, 40)


def test_a_file_outlives_its_session_and_is_dead(guest: Program) -> None:
    device = Device(guest)
    saving = device.set_state(STOP_COPY)
    assert device.set_state(STOP) == -1
    assert outcome_of(lambda: guest.read(saving, 8)) == "ENODEV"
    resuming = device.set_state(RESUMING)
    assert outcome_of(lambda: guest.read(resuming, 8)) == "EBADF"
    assert guest.send(resuming, bytes.fromhex("00000001")) == 4
    assert device.set_state(STOP) == -1
    assert outcome_of(lambda: guest.send(resuming, b"x")) == "EIO"
    saving = device.set_state(STOP_COPY)
    assert device.set_state(STOP_COPY) == -1
    guest.close(device.fd)
    assert outcome_of(lambda: guest.read(saving, 8)) == "ENODEV"


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_that_fails_and_one_that_does_not_leave_the_state_alone(guest: Program) -> None:
    device = Device(guest)
    data = device.set_state(STOP_COPY)
    guest.shell.console("fail-reset 05.0047")
    assert (device.outcome(DEVICE_RESET), device.state()) == ("EIO", STOP_COPY)
    guest.shell.console("clear-faults")
    assert (device.outcome(DEVICE_RESET), device.state(), len(guest.read(data))) == ("ok", STOP_COPY, 24)


# -- interrupts --------------------------------------------------------------------------------------------------------

EVENTFD, TRIGGER = 4, 32
EVENT = object()
"""Stands for the descriptor of an eventfd in the cases below."""

IRQS: list[tuple[str, int, int, int, int, int, tuple[object, ...], str]] = [
    ("argsz", 19, EVENTFD | TRIGGER, 0, 0, 1, (EVENT,), "EINVAL"),
    ("argsz", 20, EVENTFD | TRIGGER, 0, 0, 1, (EVENT,), "EINVAL"),
    ("argsz", 24, EVENTFD | TRIGGER, 0, 0, 1, (EVENT,), "ok"),
    ("argsz", 4096, EVENTFD | TRIGGER, 0, 0, 1, (EVENT,), "ok"),
    ("index", 24, EVENTFD | TRIGGER, 2, 0, 1, (EVENT,), "EINVAL"),
    ("index", 24, EVENTFD | TRIGGER, U32 - 1, 0, 1, (EVENT,), "EINVAL"),
    ("range", 24, EVENTFD | TRIGGER, 0, 1, 1, (EVENT,), "EINVAL"),
    ("range", 24, EVENTFD | TRIGGER, 0, 1, 0, (EVENT,), "EINVAL"),
    ("range", 28, EVENTFD | TRIGGER, 0, 0, 2, (EVENT, EVENT), "EINVAL"),
    ("range", 24, EVENTFD | TRIGGER, 0, 0, U32 - 1, (EVENT,), "EINVAL"),
    *[("types", 24, kind | TRIGGER, 0, 0, 1, (EVENT,), "ok" if kind == EVENTFD else "EINVAL") for kind in range(8)],
    *[
        ("actions", 24, EVENTFD | action, 0, 0, 1, (EVENT,), expected)
        for action, expected in {
            **dict.fromkeys((0, 8, 16), "EINVAL"),
            **dict.fromkeys((32, 40, 48, 56), "ok"),
            64 | 32: "EINVAL",
        }.items()
    ],
    ("none", 24, 1 | TRIGGER, 0, 0, 0, (EVENT,), "EINVAL"),
    ("no vectors", 20, EVENTFD | TRIGGER, 0, 0, 0, (EVENT,), "ok"),
    # No vectors, and no descriptor: memory ends in front of it, or in front of the last byte of the struct.
    ("edge", 20, EVENTFD | TRIGGER, 0, 0, 0, (), "EFAULT"),
    *[
        ("descriptor", 24, EVENTFD | TRIGGER, 0, 0, 1, (fd,), "ok" if fd == -1 else "EINVAL")
        for fd in (-1, -2, -(2**31))
    ],
]


@pytest.mark.parametrize(("what", "argsz", "flags", "index", "start", "count", "data", "expected"), IRQS)
def test_irqs(
    guest: Program,
    what: str,
    argsz: int,
    flags: int,
    index: int,
    start: int,
    count: int,
    data: tuple[object, ...],
    expected: str,
) -> None:
    device, event = Device(guest), guest.eventfd()
    fds = [event if value is EVENT else value for value in data]
    packed = struct.pack(f"=5I{len(fds)}i", argsz, flags, index, start, count, *fds)
    assert device.outcome(DEVICE_SET_IRQS, packed) == expected, what
    # Twice: dropping what is not there any more is no error.
    assert device.outcome(DEVICE_SET_IRQS, packed) == expected, what


def test_a_struct_that_cannot_be_read_whole(guest: Program) -> None:
    packed = struct.pack("=5I", 20, EVENTFD | TRIGGER, 0, 0, 0)
    assert Device(guest).outcome(DEVICE_SET_IRQS, packed[:-1]) == "EFAULT"


def test_information_on_an_irq(guest: Program) -> None:
    device = Device(guest)
    answer = guest.call(device.fd, DEVICE_GET_IRQ_INFO, struct.pack("=4I", 16, 9, 1, 9))
    assert struct.unpack("=4I", answer) == (16, 1, 1, 1)
    assert device.outcome(DEVICE_GET_IRQ_INFO, struct.pack("=4I", 15, 0, 0, 0)) == "EINVAL"


def test_descriptors_that_are_no_eventfds(program: Program) -> None:
    program.create()
    device = Device(program)
    for fd, expected in ((900, "EBADF"), (program.foreign(), "EINVAL"), (device.container, "EINVAL"), (-2, "EINVAL")):
        packed = struct.pack("=5Ii", 24, EVENTFD | TRIGGER, 0, 0, 1, fd)
        assert device.outcome(DEVICE_SET_IRQS, packed) == expected


def test_a_changed_configuration_and_a_request_to_release(guest: Program) -> None:
    device = Device(guest)
    request, changed = device.eventfd(0), device.eventfd(1)
    guest.write(f"{MATRIX}/{U}/assign_control_domain", "3")
    guest.shell.console("add-control-domain 3", "scan")
    guest.write(f"{MATRIX}/{U}/unassign_domain", "0x47")
    assert guest.signals(changed) >= 1
    guest.shell.console("unplug 5", "scan")
    assert guest.signals(changed) > 0
    assert guest.remove() == "EBUSY"
    assert (guest.signals(request), guest.signals(changed) > 0) == (1, True)
    device.close()
    assert guest.remove() == "ok"
    assert not guest.shell.exists(f"/sys/bus/mdev/devices/{U}")


def test_a_replaced_and_a_dropped_eventfd_stay_silent(guest: Program) -> None:
    device = Device(guest)
    old, new, other = device.eventfd(0), device.eventfd(0), device.eventfd(1)
    device.set_irq(1, -1)
    assert guest.remove() == "EBUSY"
    assert [guest.signals(fd) for fd in (old, new, other)] == [0, 1, 0]


def test_an_eventfd_outlives_the_close(guest: Program) -> None:
    """vfio_ap_mdev_close_device leaves req_trigger and cfg_chg_trigger alone."""
    device = Device(guest)
    fd = device.eventfd(0)
    device.close()
    again = Device(guest)
    assert guest.remove() == "EBUSY"
    assert guest.signals(fd) == 1
    assert guest.shell.cat("/ctl/kmsg").splitlines()[-1].endswith("relaying device request to user (#0)")
    new = again.eventfd(0)
    assert guest.remove() == "EBUSY"
    assert [guest.signals(number) for number in (fd, new)] == [0, 1]
    again.close()
    assert guest.remove() == "ok"


def test_hot_plugged_queues_change_the_configuration(guest: Program) -> None:
    device = Device(guest)
    guest.write("/sys/bus/ap/apmask", "-6")
    changed, silent = device.eventfd(1), device.eventfd(0)

    def matrix() -> list[str]:
        return guest.shell.cat(f"{MATRIX}/{U}/guest_matrix").split()

    guest.write(f"{MATRIX}/{U}/assign_adapter", "6")
    assert (guest.signals(changed), matrix()) == (1, ["05.0047", "06.0047"])
    guest.shell.console("unplug 6", "scan")
    assert (guest.signals(changed) > 0, matrix()) == (True, ["05.0047"])
    guest.shell.console("plug 6 CEX8C", "scan")
    assert (guest.signals(changed) > 0, matrix()) == (True, ["05.0047", "06.0047"])
    assert guest.signals(silent) == 0


def test_without_an_eventfd_the_log_says_so(guest: Program) -> None:
    Device(guest)
    assert guest.remove() == "EBUSY"
    notice = guest.shell.cat("/ctl/kmsg").splitlines()[-1]
    assert notice.endswith("no device request registered: blocked until the user releases the device")


def test_a_device_is_closed_with_its_last_file(guest: Program) -> None:
    device = Device(guest)
    second = device.another_fd()
    device.set_state(STOP)
    answer = guest.call(second, DEVICE_FEATURE, struct.pack("=IIIi", 16, GET | 2, 0, 0))
    assert struct.unpack("=IIIi", answer)[2] == STOP
    guest.close(device.fd)
    assert guest.shell.cat(f"/dev/vfio-ap/{U}/guest") == "1\n"
    guest.close(second)
    assert guest.shell.cat(f"/dev/vfio-ap/{U}/guest") == "0\n"
    guest.close(device.group)
    assert Device(guest).state() == RUNNING

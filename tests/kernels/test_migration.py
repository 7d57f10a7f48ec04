"""Migration between hosts of different kernels, of the same hardware: what comes of each pair is known beforehand."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from apfs.kernel.profile import PROFILES, Profile
from apfs.scenario.reader import loads
from tests.hosts import WORKED
from tests.kernels.rows import toml
from tests.vfio.client import MATRIX, RESUMING, STOP, STOP_COPY, Device, U, name_of
from tests.vfio.program import Program

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN, FILTERING = WORKED, WORKED.replace('type = "CEX8C"', 'type = "CEX7C"\ntapq = { slcf = 1 }')


def opened(version: str, machine: str) -> tuple[Program, Device]:
    """Return a program that has a device with one queue open."""
    program = Program(loads(toml(Profile.of(version)) + machine.replace("CEX8C", "CEX7C")))
    program.create()
    program.write(f"{MATRIX}/{U}/assign_adapter", "5")
    program.write(f"{MATRIX}/{U}/assign_domain", "4")
    return program, Device(program)


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return name_of(error)
    return "ok"


@cache
def stream_of(version: str, machine: str) -> bytes | str:
    """Return what a source sends, or the errno with which it refuses."""
    program, device = opened(version, machine)
    try:
        device.set_state(STOP)
        return program.read(device.set_state(STOP_COPY))
    except OSError as error:
        return name_of(error)


def migrate(source: str, target: str, machine: str) -> tuple[str, str]:
    """Return how the source's and the target's part end."""
    return receive(stream_of(source, machine), target, machine)


@cache
def receive(stream: bytes | str, target: str, machine: str) -> tuple[str, str]:
    """Return the same for a stream, which many sources send, or the errno that a source ends with."""
    program, device = opened(target, machine)
    try:
        device.set_state(STOP)
        file = device.set_state(RESUMING)
    except OSError as error:
        return stream if isinstance(stream, str) else "ok", name_of(error)
    if isinstance(stream, str):
        return stream, "ok"
    return "ok", outcome(lambda: program.send(file, stream))


@pytest.mark.parametrize("target", PROFILES)
@pytest.mark.parametrize("source", PROFILES)
def test_same_hardware(source: str, target: str) -> None:
    ends = {version: "ok" if Profile.of(version).feature_ioctl else "ENOTSUP" for version in (source, target)}
    assert migrate(source, target, PLAIN) == (ends[source], ends[target])


@pytest.mark.parametrize("target", PROFILES)
@pytest.mark.parametrize("source", PROFILES)
def test_cards_that_filter_stateless_commands(source: str, target: str) -> None:
    """Kernels from 6.8 to 6.16 hide that bit in what they know of a card, so that the same card seems another one."""
    kernels = [Profile.of(version) for version in (source, target)]
    sent, taken = migrate(source, target, FILTERING)
    assert sent == ("ok" if kernels[0].feature_ioctl else "ENOTSUP")
    if not kernels[1].feature_ioctl:
        assert taken == "ENOTSUP"
    elif kernels[0].feature_ioctl:
        hidden = [kernel.card_functions == "noslcf" for kernel in kernels]
        assert taken == ("ok" if hidden[0] == hidden[1] else "EFAULT")

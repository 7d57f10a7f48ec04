"""Migration between hosts of different kernels and revisions of the driver: what a pair does is known beforehand."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest

from apfs.kernel.profile import PROFILES, Profile
from apfs.scenario.reader import loads
from apfs.vfio_ap.migration import REVISIONS
from tests.hosts import WORKED
from tests.kernels.rows import toml
from tests.vfio.client import MATRIX, RESUMING, STOP, STOP_COPY, Device, U, name_of, outcome_of
from tests.vfio.program import Program
from tests.vfio_ap.streams import forecast

# The same cards everywhere, of a type that all kernels know. Two queues: where revisions disagree, the number matters.
MACHINE = WORKED.replace("CEX8C", "CEX7C")
BOUND = WORKED.replace('type = "CEX8C"', 'type = "CEX7C"\ntapq = { bs = 2 }')
"""The same, as if a secure guest had bound the queues before the host looked at them."""
SENDERS = [name for name in REVISIONS if name != "none"]

# What the target's driver makes of the stream of another revision that comes in one piece (docs/migration.md).
TAKEN = {
    ("v2", "v2"): "ok",
    ("v2", "v4"): "ok",  # eight bytes short of complete: taken and forgotten
    ("v2", "next"): "EINVAL",  # the third word, the first half of a queue's word, is the number of queues
    ("v4", "v2"): "EIO",  # longer than the stream that is expected
    ("v4", "v4"): "ok",
    ("v4", "next"): "ENODEV",  # a header of no queue, whose control domains are the queues
    ("next", "v2"): "EIO",
    ("next", "v4"): "EINVAL",  # the magic number is more than the most queues there can be
    ("next", "next"): "ok",
}


def opened(version: str, revision: str, machine: str = MACHINE) -> tuple[Program, Device]:
    """Return a program that has a device with two queues open."""
    program = Program(loads(f'{toml(Profile.of(version))}driver = "{revision}"\n{machine}'))
    program.create()
    program.write(f"{MATRIX}/{U}/assign_adapter", "5")
    program.write(f"{MATRIX}/{U}/assign_domain", "4")
    program.write(f"{MATRIX}/{U}/assign_domain", "0x47")
    return program, Device(program)


@cache
def stream_of(version: str, revision: str, machine: str = MACHINE) -> bytes:
    program, device = opened(version, revision, machine)
    device.set_state(STOP)
    return program.read(device.set_state(STOP_COPY))


@cache
def receive(stream: bytes, version: str, revision: str, machine: str = MACHINE) -> str:
    """Return how the target's part ends, which it has to foretell. Many sources send the same stream."""
    program, device = opened(version, revision, machine)
    foretold = forecast(program.shell, stream)["errno"] or "ok"

    def resume() -> None:
        device.set_state(STOP)
        program.send(device.set_state(RESUMING), stream)

    ended = outcome_of(resume)
    # What a kernel without VFIO_DEVICE_FEATURE says of it is another errno.
    assert foretold == ("ENOTTY" if ended == "ENOTSUP" else ended)
    return ended


def outcome(version: str, revision: str, expected: str) -> str:
    if not Profile.of(version).feature_ioctl:
        return "ENOTSUP"
    return "ENOTTY" if revision == "none" else expected


@pytest.mark.parametrize(("source", "target"), list(product(PROFILES, PROFILES)))
def test_all_pairs(source: str, target: str) -> None:
    for sender, receiver in product(SENDERS, REVISIONS):
        if Profile.of(source).feature_ioctl:
            got = receive(stream_of(source, sender), target, receiver)
            assert got == outcome(target, receiver, TAKEN.get((sender, receiver), "")), (sender, receiver)


@pytest.mark.parametrize(("source", "target"), list(product(PROFILES, PROFILES)))
def test_all_pairs_with_queues_that_are_bound(source: str, target: str) -> None:
    """v2 sends and compares what the kernel has recorded of a card, which is the bind state only up to 6.7."""
    if not Profile.of(source).feature_ioctl:
        return
    recorded = [Profile.of(version).card_functions == "raw" for version in (source, target)]
    answers = TAKEN | {
        ("v2", "v2"): "ok" if recorded[0] == recorded[1] else "EFAULT",
        ("next", "next"): "EINVAL",  # even if both are in the same state
    }
    for revision in SENDERS:
        got = receive(stream_of(source, revision, BOUND), target, revision, BOUND)
        assert got == outcome(target, revision, answers[revision, revision]), revision


@pytest.mark.parametrize("version", PROFILES)
@pytest.mark.parametrize("revision", REVISIONS)
def test_sources_that_send_nothing(version: str, revision: str) -> None:
    program, device = opened(version, revision)
    try:
        device.set_state(STOP)
        ended = "ok" if program.read(device.set_state(STOP_COPY)) else "empty"
    except OSError as error:
        ended = name_of(error)
    assert ended == outcome(version, revision, "ok")

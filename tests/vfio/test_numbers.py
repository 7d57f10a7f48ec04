"""Each kind of file: which of all requests it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vfio.client import SECOND, STOP_COPY, Cdev, Device

if TYPE_CHECKING:
    from tests.vfio.program import Program

# All numbers of the type byte, with a null pointer as the argument: what a file knows, the rest is one errno.
NUMBERS: dict[str, tuple[str, dict[str, list[int]]]] = {
    "container": ("EINVAL", {"ok": [0x64, 0x65]}),
    "container with an IOMMU": (
        "ENOTTY",
        {"ok": [0x64, 0x65], "EINVAL": [0x66], "EFAULT": [0x70, 0x71, 0x72, 0x75]},
    ),
    "group": ("ENOTTY", {"EFAULT": [0x67, 0x68, 0x6A], "EBUSY": [0x69]}),
    "device of a group": ("ENOTSUP", {"ok": [0x6F], "EINVAL": [0x6C, 0x76], "EFAULT": [0x6B, 0x6D, 0x6E, 0x75]}),
    "node": ("EINVAL", {"EFAULT": [0x76]}),
    "bound node": ("ENOTSUP", {"ok": [0x6F], "EINVAL": [0x6C], "EFAULT": [0x6B, 0x6D, 0x6E, 0x75, 0x76, 0x77, 0x78]}),
    "iommufd": (
        "ENOTTY",
        {"ok": [0x64, 0x65], "EINVAL": [0x66], "EFAULT": [0x70, 0x71, 0x72, *range(0x80, 0x95)]},
    ),
    "migration file": ("ENOTTY", {}),
}


@pytest.fixture
def files(guest: Program) -> dict[str, int]:
    """One descriptor of each kind of file."""
    guest.create(SECOND)
    device, unbound = Device(guest), guest.open(guest.node_of(SECOND))
    bound = Cdev(guest, SECOND)
    return {
        "container": guest.open("/dev/vfio/vfio"),
        "container with an IOMMU": device.container,
        "group": device.group,
        "device of a group": device.fd,
        "node": unbound,
        "bound node": bound.fd,
        "iommufd": bound.iommufd,
        "migration file": device.set_state(STOP_COPY),
    }


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_a_file_knows(guest: Program, files: dict[str, int], name: str) -> None:
    known: dict[str, list[int]] = {}
    for number in range(256):
        known.setdefault(guest.outcome(files[name], 0x3B00 | number), []).append(number)
    rest = max(known, key=lambda result: len(known[result]))
    del known[rest]
    assert (rest, known) == NUMBERS[name]


def test_every_kind_of_file_is_tried(files: dict[str, int]) -> None:
    assert set(files) == set(NUMBERS)

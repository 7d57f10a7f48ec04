"""Every feature of kernels, in every release that is promised and with each of its values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from apfs.kernel.profile import DEFAULT, NEWEST, PROFILES, Profile, rows
from tests.kernels import bus_rows, vfio_rows  # noqa: F401 -- which register their checks
from tests.kernels.rows import CHECKS

if TYPE_CHECKING:
    from apfs.kernel.profile import Value

BESIDE = {"card_change_16bit": "6.5", "dma_logging": "6.8"}
"""The release to look at a feature in, where the newest one has another feature that hides it."""


def test_every_row_has_a_check() -> None:
    assert set(CHECKS) == set(rows())


@pytest.mark.parametrize("version", PROFILES)
@pytest.mark.parametrize("feature", rows())
def test_row_of_a_release(feature: str, version: str) -> None:
    CHECKS[feature](Profile.of(version))


@pytest.mark.parametrize(
    ("feature", "value"), [(name, value) for name, row in rows().items() for value in row.choices], ids=str
)
def test_row_on_its_own(feature: str, value: object) -> None:
    """A distribution's kernel: the newest release with one feature as somewhere else."""
    CHECKS[feature](Profile.of(NEWEST, {feature: value}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistaken(Profile):
    """What a check takes for the kernel of a host that really has another one."""

    real: Profile = DEFAULT

    def changes(self) -> dict[str, Value]:
        return self.real.changes()


@pytest.mark.parametrize(
    ("feature", "value", "other"),
    [(name, *pair) for name, row in rows().items() for pair in permutations(row.choices, 2)],
    ids=str,
)
def test_a_row_that_is_wrong_is_noticed(feature: str, value: object, other: object) -> None:
    """A check is worth something if it fails on a kernel that has the feature with any other value."""
    real = Profile.of(BESIDE.get(feature, NEWEST), {feature: value})
    mistaken = Mistaken(version=real.version, real=real, **{**real.features(), feature: other})  # type: ignore[arg-type]
    with pytest.raises((AssertionError, KernelError, pytest.fail.Exception)):
        CHECKS[feature](mistaken)

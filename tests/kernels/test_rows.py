"""Every feature of kernels, in every release that is promised and with each of its values."""

from __future__ import annotations

import pytest

from apfs.kernel.profile import NEWEST, PROFILES, Profile, rows
from tests.kernels import bus_rows, vfio_rows  # noqa: F401 -- which register their checks
from tests.kernels.rows import CHECKS


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

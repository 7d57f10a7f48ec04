"""Programs on hosts of their own."""

from __future__ import annotations

import pytest

from tests.vfio.program import Program


@pytest.fixture
def program() -> Program:
    """A program on the host `default`."""
    return Program()


@pytest.fixture
def guest() -> Program:
    """A program on a host that has a mediated device with the queue 05.0047."""
    program = Program()
    program.guest()
    return program

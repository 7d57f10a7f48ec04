"""Interrupts reach real eventfds."""

from __future__ import annotations

import shlex

import pytest

from tests.conftest import sh
from tests.sandbox.conftest import EXEC, ROOT, run, words_of
from tests.sandbox.programs import events


def test_a_changed_configuration_and_a_request_to_release() -> None:
    lines = run(events.both).stdout.splitlines()
    assert lines[0].split()[0] == "changed"
    assert int(lines[0].split()[1]) >= 1
    assert lines[1:] == ["unplugged True", "EBUSY 1 True", "False"]


def test_a_replaced_and_a_dropped_eventfd_stay_silent() -> None:
    assert run(events.silent).stdout.splitlines() == ["EBUSY 1", "[]"]


@pytest.mark.parametrize(
    ("before", "devices"),
    [
        # The soft limit is for the command; the supervisor, which keeps its eventfds, needs one of its own for each.
        ("ulimit -Sn 60", 40),
        # What apfs exec inherits, it passes on; its own descriptors have higher numbers than select(2) knows.
        ("ulimit -n 4096; for number in {1..1100}; do exec {fd}</dev/null; done", 1),
    ],
    ids=["low limit", "high numbers"],
)
def test_eventfds_and_limits_of_descriptors(before: str, devices: int) -> None:
    command = shlex.join([*EXEC, "--", *words_of(events.many, str(devices))])
    result = sh(f"{before}\nPYTHONPATH={ROOT} exec {command}")
    asked = min(devices, 2)
    assert result.stdout.split() == [str(2 * devices), *["EBUSY"] * asked, *["1"] * asked]


def test_an_eventfd_goes_on_when_the_process_that_registered_it_is_gone() -> None:
    assert run(events.registered_by_a_child).stdout.splitlines() == ["EBUSY 1"]

"""Hosts for servers: booted when they are needed, or before by a process that forks servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.scenario.reader import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apfs.host import Host

_booted: dict[str, Host] = {}
"""Hosts that nobody has used yet, by their scenarios. Each fork has copies of its own."""


def boot_early(scenario: str) -> None:
    """Boot a host of a scenario of the gallery for each process that is forked from this one, short of any clock."""
    from apfs.host import Host

    _booted[scenario] = Host(load(scenario))


def booting(scenario: str, changes: Mapping[str, str]) -> Callable[[], Host]:
    """Read a scenario, and return what boots a host of it, once. `ScenarioError` for mistakes in it."""
    if scenario in _booted and not changes:
        return lambda: _booted.pop(scenario)
    description = load(scenario, changes)

    def boot() -> Host:
        from apfs.host import Host  # only the process that serves needs it

        return Host(description)

    return boot

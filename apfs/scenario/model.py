"""The description of a host: the values of a scenario."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apfs.ap.hardware import SERIAL
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.qinfo import Qci
from apfs.kernel import profile
from apfs.scenario.limits import MOST_WITH_LINES, shortened
from apfs.scenario.lines import line_of
from apfs.vfio_ap import migration

if TYPE_CHECKING:
    from apfs.ap.hardware import CardHardware, Environment
    from apfs.ap.names import Apqn
    from apfs.scenario.lines import Where

DEFAULT = "default"


class ScenarioError(Exception):
    """A mistake in a scenario: its source and line (0 if there is none), and what is wrong."""

    def __init__(self, reason: str, source: str = "scenario", line: int = 0) -> None:
        super().__init__(reason)
        self.reason = shortened(reason)
        self.source = source
        self.line = line

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Source:
    """The text a scenario was made from, so that errors found later can still name a line."""

    name: str = "scenario"
    text: str = ""

    def error(self, reason: str, where: Where) -> ScenarioError:
        """Return the error to raise for the value at a path of keys and indices."""
        if len(self.text) > MOST_WITH_LINES:
            place = ".".join(map(str, where))
            return ScenarioError(f"{place}: {reason}", self.name)
        return ScenarioError(reason, self.name, line_of(self.text, where) if self.text else 0)


@dataclass(frozen=True, slots=True)
class MdevSpec:
    """A mediated device that exists from the start."""

    uuid: str
    adapters: Mask
    domains: Mask
    control_domains: Mask
    guest: bool = False
    secure_execution: bool = False
    """Whether its guests are in Secure Execution mode."""
    config_events: bool = False
    """Whether its guests are told of configuration changes."""


@dataclass(frozen=True, slots=True)
class BusSettings:
    """What was written to attributes of the AP bus; None is what the bus chooses itself."""

    ap_domain: int | None = None
    config_time: int = 30
    poll_thread: bool = False
    poll_timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host that has not been switched on yet."""

    name: str = "unnamed"
    description: str = ""
    serial: str = SERIAL
    """How the serial numbers of cards begin that have none of their own."""
    kernel: profile.Profile = profile.DEFAULT
    driver: str = migration.DEFAULT
    environment: Environment = "lpar"
    secure_execution: bool = False
    vfio_ap: bool = True
    config_events: bool = False
    """Whether the hypervisor tells of changes of the AP configuration, upon which Linux scans (ap_bus_cfg_chg)."""
    qci: Qci = field(default_factory=Qci)
    cards: dict[int, CardHardware] = field(default_factory=dict)
    offline_cards: Mask = NONE
    """Adapters that are switched off in Linux, with all their queues."""
    offline_queues: frozenset[Apqn] = frozenset()
    overrides: dict[Apqn, str] = field(default_factory=dict)
    """Name of the driver by queue (driver_override)."""
    bus: BusSettings = field(default_factory=BusSettings)
    apmask: Mask = ALL
    aqmask: Mask = ALL
    mdevs: tuple[MdevSpec, ...] = ()
    source: Source = field(default_factory=Source, compare=False, repr=False)

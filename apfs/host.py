"""A host: a system built and booted from a scenario, presented as a tree."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from apfs import layout
from apfs.ap.hardware import BS_USABLE, Machine
from apfs.ap.qinfo import FIELDS
from apfs.ap.zcrypt import switch_card, switch_queue
from apfs.errors import KernelError
from apfs.guest import Guest
from apfs.scenario.model import Scenario
from apfs.scenario.reader import text_of
from apfs.system import System
from apfs.vfio_ap.attributes import matrix_mdev
from apfs.vfio_ap.client import open_guest
from apfs.vfio_ap.matrix import Matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.scenario.model import MdevSpec


class Host(System):
    """A running system. Everything that a file system needs from it is in `tree`."""

    def __init__(self, scenario: Scenario | None = None) -> None:
        """Boot the machine that a scenario describes; `ScenarioError` if its kernel refuses a device or a setting."""
        self.scenario = scenario or Scenario()
        super().__init__(_machine(self.scenario), self.scenario.kernel, self.scenario.name, self.scenario.driver, Guest)
        self.scenario_text = partial(text_of, self.scenario)
        self.config_events = self.scenario.config_events
        layout.build(self)
        self._boot()

    def _boot(self) -> None:
        """Start up, silently, as far as udev and chzdev bring a machine before anybody can look."""
        self.boot()
        if self.scenario.vfio_ap:
            self.modprobe("vfio_ap")
        self.ap_bus.change_apmask(self.scenario.apmask)
        self.ap_bus.change_aqmask(self.scenario.aqmask)
        self._set_up_devices()
        self._associate_queues()
        self._set_up_bus()
        for index, spec in enumerate(self.scenario.mdevs):
            with self._possible("mdev", index):
                self._create(spec)
        self.journal.muted = False

    @contextmanager
    def _possible(self, *where: str | int) -> Iterator[None]:
        """Say at which place of the scenario something is that its kernel refuses. `ScenarioError`."""
        try:
            yield
        except KernelError as error:
            raise self.scenario.source.error(f"{error.why} ({error.name})", where) from None

    def _set_up_devices(self) -> None:
        """Give queues to drivers by override, as driverctl does, and switch cards and queues off."""
        bus = self.ap_bus
        for apqn, driver in self.scenario.overrides.items():
            queue = bus.queue(*apqn)
            if queue:
                bus.reservation.override(apqn, driver)
                if queue.driver:
                    bus.release(queue)
                bus.attach(queue)
        for apid in self.scenario.offline_cards:
            card = bus.cards.get(apid)
            if card and card.zcrypt_card:
                switch_card(card, online=False)
        for apqn in sorted(self.scenario.offline_queues):
            queue = bus.queue(*apqn)
            if queue and queue.apqi in queue.card.zcrypt_bound():
                switch_queue(queue, online=False)

    def _associate_queues(self) -> None:
        """Let the bus know of secrets as if it had associated the queues itself."""
        for apid, hardware in self.machine.cards.items():
            for apqi, secret in hardware.associations.items():
                queue = self.ap_bus.queue(apid, apqi)
                if queue and FIELDS["bs"].get(hardware.word(apqi)) == BS_USABLE:
                    queue.card.states.secrets[apqi] = secret

    def _set_up_bus(self) -> None:
        """Apply the settings of the bus."""
        bus, settings = self.ap_bus, self.scenario.bus
        bus.set_config_time(settings.config_time)
        bus.set_poll_thread(on=settings.poll_thread)
        if settings.ap_domain is not None:  # chosen before the masks were changed, which may not have it now
            bus.default_domain = settings.ap_domain
        if settings.poll_timeout is not None:
            with self._possible("bus", "poll_timeout"):
                bus.set_poll_timeout(settings.poll_timeout)

    def _create(self, spec: MdevSpec) -> None:
        if self.vfio_ap is None:
            raise KernelError(errno.ENODEV, "vfio_ap is not loaded, so there cannot be a mediated device")
        mdev = self.mdev_bus.create(self.vfio_ap.parent, spec.uuid)
        data = matrix_mdev(mdev)
        assert data is not None  # noqa: S101 -- creating it bound it
        data.replace(Matrix(spec.adapters, spec.domains, spec.control_domains))
        self.set_guest_mode(spec.uuid, secure_execution=spec.secure_execution)
        self.set_config_events(spec.uuid, told=spec.config_events)
        if spec.guest:
            open_guest(data)


def _machine(scenario: Scenario) -> Machine:
    """Return the hardware of a scenario; hosts made from the same scenario do not share it."""
    secure, serial = scenario.secure_execution, scenario.serial
    machine = Machine(scenario.qci, scenario.environment, secure_execution=secure, serial=serial)
    machine.cards = {
        apid: replace(card, queues=dict(card.queues), associations=dict(card.associations))
        for apid, card in scenario.cards.items()
    }
    return machine

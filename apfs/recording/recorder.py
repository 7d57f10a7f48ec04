"""Recording a machine: a scenario from its sysfs, with comments on what scenarios or sysfs cannot express.

Only standard attributes are read, and nothing is written. `docs/scenarios.md` lists what cannot be recorded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from apfs.ap.bus import POLL_TIMEOUT_NS, POLL_TIMEOUT_ZVM_NS
from apfs.ap.mask import ALL, NONE, Mask, ap_hex2bitmap
from apfs.ap.names import Apqn, card_name, parse_card_name
from apfs.ap.qinfo import FACILITIES, Qci, nearest_type
from apfs.errors import KernelError
from apfs.host import Host
from apfs.kernel import profile
from apfs.kernel.uuid import is_uuid
from apfs.recording.cards import CardReader
from apfs.recording.kernel import recognise
from apfs.recording.reader import BUS, DEVICES, MATRIX, PAGE, Found, Reader, some
from apfs.scenario.model import BusSettings, MdevSpec, Scenario, ScenarioError
from apfs.scenario.reader import loads
from apfs.scenario.writer import dumps
from apfs.vfio_ap import migration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apfs.recording.tree import Tree

HEAD = "Recorded by apfs record."
_ASSIGNED = re.compile(r"^([0-9a-f]{2})?\.(00[0-9a-f]{2})?$", re.MULTILINE)


class RecordingError(Exception):
    """There is nothing that can be recorded."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A scenario, what there is to know about it, and which files could not be read, by reason."""

    scenario: Scenario
    notes: tuple[str, ...]
    unread: tuple[str, ...]

    def text(self) -> str:
        """Return the scenario as TOML below its notes."""
        return dumps(self.scenario, [HEAD, *self.notes, *self.unread])


def record(tree: Tree, name: str = "recorded") -> Recording:
    """Read a machine. `RecordingError` if it has no AP bus, `ScenarioError` if no scenario can describe it."""
    return _Recorder(tree).record(name)


class _Recorder:
    """One recording. Everything that no scenario can say becomes a note."""

    def __init__(self, tree: Tree) -> None:
        self._files = Reader(tree)
        self._notes: list[str] = []
        self._many: dict[str, list[object]] = defaultdict(list)
        """What a note is about, by the text of the note; the names come before the text."""
        self._kernel = profile.DEFAULT
        self._found = Found()
        self._drivers: dict[Apqn, str] = {}
        self._queues: dict[int, list[int]] = {}

    def record(self, name: str) -> Recording:
        files, found = self._files, self._found
        entries = files.names(BUS)
        if not entries:
            reasons = files.unread()
            raise RecordingError(
                reasons[0]
                if reasons
                else f"there is no AP bus: looked for {BUS}, which Linux has on IBM Z and LinuxONE if AP instructions "
                "are available"
            )
        self._kernel = recognise(files)
        self._read_drivers()
        qci = self._read_devices(self._qci())
        masks = {mask: files.mask(f"{BUS}/{mask}") for mask in ("apmask", "aqmask")}
        apmask, aqmask = (ALL if mask is None else mask for mask in masks.values())
        if found.overrides and (apmask != ALL or aqmask != ALL):
            self._many["overrides are left out: a scenario has either masks or overrides"] += found.overrides
            found.overrides.clear()
        zvm = files.text(f"{BUS}/ap_interrupts") == "0"
        secure_execution = found.se_guest or files.text("/sys/firmware/uv/prot_virt_guest") == "1"
        vfio_ap = bool(files.names(MATRIX))
        features = (files.text(f"{MATRIX}/features") or "").split()
        scenario = Scenario(
            name=name,
            kernel=self._kernel,
            driver=migration.DEFAULT if "migratable" in features or not vfio_ap else "none",
            environment="zvm" if zvm else "kvm" if secure_execution else "lpar",
            secure_execution=secure_execution,
            vfio_ap=vfio_ap,
            qci=qci,
            cards=found.cards,
            offline_cards=Mask.from_numbers(found.offline_cards),
            offline_queues=frozenset(found.offline_queues),
            overrides=found.overrides,
            bus=self._bus_settings(zvm=zvm),
            apmask=apmask,
            aqmask=aqmask,
            mdevs=self._mdevs(),
        )
        self._note_rest(entries)
        if scenario.environment == "lpar":
            self._notes.append('sysfs does not tell an LPAR from a KVM guest: for the latter set environment = "kvm".')
        scenario, host = self._bootable(replace(scenario, description=_description(scenario)))
        scenario = self._compare(scenario, host)
        many = (f"{some(things)}: {text}." for text, things in self._many.items() if things)
        return Recording(scenario, (*self._notes, *many), files.unread())

    # -- the machine -------------------------------------------------------------------------------

    def _qci(self) -> Qci:
        files = self._files
        features = files.text(f"{BUS}/features")
        adapters, domains, control_domains = (
            files.mask(f"{BUS}/ap_{kind}_mask") for kind in ("adapter", "usage_domain", "control_domain")
        )
        if features == "-" or files.text(f"{BUS}/ap_control_domain_mask") == "not supported":
            return Qci(facilities=frozenset(), supported=False)
        if features is None:
            self._notes.append("The kernel has no attribute features: the usual facilities are assumed.")
            facilities = Qci().facilities
        else:
            facilities = frozenset(features.split()) & frozenset(FACILITIES)
        highest = [files.number(f"{BUS}/ap_max_{kind}_id") for kind in ("adapter", "domain")]
        max_adapter, max_domain = (
            255 if number is None or "APXA" not in facilities or not 0 <= number <= 255 else number  # noqa: PLR2004
            for number in highest
        )
        qci = Qci(
            adapters or NONE,
            domains or NONE,
            NONE,
            max_adapter,
            max_domain,
            facilities,
        )
        return replace(qci, control_domains=qci.domains if control_domains is None else control_domains)

    def _read_drivers(self) -> None:
        for driver in self._files.names(f"{BUS}/drivers"):
            for entry in self._files.names(f"{BUS}/drivers/{driver}"):
                apqn = Apqn.parse(entry)
                if apqn:
                    self._drivers[apqn] = driver

    def _read_devices(self, qci: Qci) -> Qci:
        """Read cards and queues, and return the configuration as far as it can be there."""
        for entry in self._files.names(DEVICES):
            apid = parse_card_name(entry)
            if apid is not None:
                queues = (Apqn.parse(name) for name in self._files.names(f"{DEVICES}/{entry}"))
                self._queues[apid] = [apqn.apqi for apqn in queues if apqn]
        seen = Mask.from_numbers({apqi for apqis in self._queues.values() for apqi in apqis})
        last_adapter, last_domain = qci.limits()
        qci = replace(
            qci,
            adapters=(qci.adapters | Mask.from_numbers(self._queues)) & Mask.up_to(last_adapter),
            domains=(qci.domains | seen) & Mask.up_to(last_domain),
            control_domains=(qci.control_domains if qci.supported else seen) & Mask.up_to(last_domain),
        )
        for apid, apqis in self._queues.items():
            if apid in qci.adapters:
                card = CardReader(self._files, self._kernel, apid, apqis, self._drivers, self._many)
                card.read(qci, self._found)
        if not qci.supported:
            qci = replace(qci, adapters=Mask.from_numbers(self._found.cards))
        return qci

    def _bus_settings(self, *, zvm: bool) -> BusSettings:
        files = self._files
        poll_timeout = files.number(f"{BUS}/poll_timeout")
        usual = POLL_TIMEOUT_ZVM_NS if zvm else POLL_TIMEOUT_NS
        return BusSettings(
            config_time=files.number(f"{BUS}/config_time") or BusSettings().config_time,
            poll_thread=files.text(f"{BUS}/poll_thread") == "1",
            poll_timeout=None if poll_timeout == usual else poll_timeout,
        )

    # -- mediated devices --------------------------------------------------------------------------

    def _mdevs(self) -> tuple[MdevSpec, ...]:
        """Read the devices in the order of their VFIO numbers, in which they are made again."""
        uuids = sorted(filter(is_uuid, self._files.names(MATRIX)), key=self._vfio_number)
        specs = [spec for spec in map(self._mdev, uuids) if spec]
        guests = self._guests(specs)
        return tuple(replace(spec, guest=spec.uuid in guests) for spec in specs)

    def _vfio_number(self, uuid: str) -> int:
        """Return N of a device's `vfio-dev/vfioN`; 0 on kernels that have no such directory."""
        numbers = (name.removeprefix("vfio") for name in self._files.names(f"{MATRIX}/{uuid}/vfio-dev"))
        return min((int(number) for number in numbers if number.isdecimal()), default=0)

    def _guests(self, specs: Sequence[MdevSpec]) -> set[str]:
        """Return the devices that guests have: those whose queues tell it, and as many others as the module counts."""
        told = {spec.uuid: self._has_guest(spec) for spec in specs}
        guests = {uuid for uuid, guest in told.items() if guest}
        silent = [uuid for uuid, guest in told.items() if guest is None]
        rest = max((self._files.number("/sys/module/vfio_ap/refcnt") or 0) - len(guests), 0)
        if 0 < rest < len(silent):
            self._many[f"{rest} of these mediated devices are in use, sysfs does not tell which"] += silent
        return guests.union(silent[:rest])

    def _mdev(self, uuid: str) -> MdevSpec | None:
        """Read what is assigned to a device; None if it is gone, or has no driver at the moment."""
        texts = {name: self._files.text(f"{MATRIX}/{uuid}/{name}") for name in ("ap_config", "matrix")}
        if texts["ap_config"] is None and texts["matrix"] is None:
            self._many["left out: what is assigned was not readable"].append(uuid)
            return None
        try:
            adapters, domains, control_domains = map(ap_hex2bitmap, (texts["ap_config"] or "").split(","))
        except (KernelError, ValueError):  # kernels before 6.10 do not have it
            lines = texts["matrix"] or ""
            if len(lines) >= PAGE - len("00.0000\n"):
                self._many["more is assigned than the attribute matrix can show"].append(uuid)
            pairs = _ASSIGNED.findall(lines)
            adapters, domains = (Mask.from_numbers({int(pair[i], 16) for pair in pairs if pair[i]}) for i in (0, 1))
            control = self._files.text(f"{MATRIX}/{uuid}/control_domains") or ""
            control_domains = Mask.from_numbers(int(line, 16) for line in re.findall(r"(?m)^00[0-9a-f]{2}$", control))
        return MdevSpec(uuid, adapters, domains, control_domains)

    def _has_guest(self, spec: MdevSpec) -> bool | None:
        """Whether a guest has the device; None if there is no queue in its guest matrix that could tell."""
        shown = self._files.text(f"{MATRIX}/{spec.uuid}/guest_matrix")
        if shown is None:  # kernels before 6.0, whose guests get what is assigned
            shown = self._files.text(f"{MATRIX}/{spec.uuid}/matrix") or ""
        apqn = next((apqn for apqn in map(Apqn.parse, shown.split()) if apqn), None)
        if apqn is None:
            return None
        status = self._files.text(f"{DEVICES}/{card_name(apqn.apid)}/{apqn}/status")
        return None if status is None else status == "in use"

    # -- what is not recorded ----------------------------------------------------------------------

    def _note_rest(self, entries: Sequence[str]) -> None:
        files, notes = self._files, self._notes
        if self._kernel != profile.DEFAULT:
            notes.append("The kernel is the one that looks most like it: sysfs does not show all that it does.")
        if "drivers_autoprobe" in entries and files.text(f"{BUS}/drivers_autoprobe") == "0":
            notes.append("New devices are not bound to drivers there (drivers_autoprobe is 0); here they are.")
        if files.text("/sys/module/ap/parameters/useirq") == "0":
            notes.append("Interrupts are switched off there (ap.useirq=0); here the environment decides.")
        nodes = [node for node in files.names("/sys/class/zcrypt") if node not in ("create", "destroy")]
        if nodes:
            notes.append(f"Device nodes of zcrypt are not recorded: {some(nodes)}.")

    def _bootable(self, scenario: Scenario) -> tuple[Scenario, Host]:
        """Boot the recording; mediated devices that an emulated host refuses are left out."""
        try:
            return scenario, Host(loads(dumps(scenario)))
        except ScenarioError:
            specs, scenario = scenario.mdevs, replace(scenario, mdevs=())
            host = Host(loads(dumps(scenario)))  # a mistake in the rest has nothing to do with single devices
        for spec in specs:
            attempt = replace(scenario, mdevs=(*scenario.mdevs, spec))
            try:
                host = Host(attempt)
            except ScenarioError as error:
                self._many[f"left out: {error.reason}"].append(spec.uuid)
            else:
                scenario = attempt
        return scenario, host

    def _compare(self, scenario: Scenario, host: Host) -> Scenario:
        """Add what the host does not do by itself, and note where it differs."""
        bus = host.ap_bus
        for apid, apqis in self._queues.items():
            for apqi in apqis:
                queue, driver = bus.queue(apid, apqi), self._drivers.get(Apqn(apid, apqi))
                here = queue.driver.name if queue and queue.driver else None
                if queue and here != driver:
                    note = f"bound to {driver or 'no driver'} there, to {here or 'none'} here"
                    self._many[note].append(queue.apqn)
        ap_domain = self._files.number(f"{BUS}/ap_domain")
        if ap_domain is None or ap_domain == bus.default_domain:
            return scenario
        if not 0 <= ap_domain <= bus.max_domain:
            self._notes.append(f"ap_domain is {ap_domain} there, {bus.default_domain} here.")
            return scenario
        return replace(scenario, bus=replace(scenario.bus, ap_domain=ap_domain))


def _description(scenario: Scenario) -> str:
    """Say in a line what there is."""
    types = Counter(nearest_type(card.hwinfo) for card in scenario.cards.values())
    cards = ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "No cards"
    mdevs = f", mediated devices: {len(scenario.mdevs)}" if scenario.mdevs else ""
    return f"{cards}; domains: {len(scenario.qci.domains)}{mdevs}"

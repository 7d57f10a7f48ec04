"""Recording a machine: its sysfs read into a scenario, with notes about what a scenario cannot say or sysfs not tell.

Only standard attributes are read, and nothing is written. `docs/scenarios.md` has the list of what stays unknown.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from apfs.ap.bus import POLL_TIMEOUT_NS, POLL_TIMEOUT_ZVM_NS
from apfs.ap.machine import OP_MODES, CardHardware, MasterKeys
from apfs.ap.qinfo import CARD_HWINFO_MASK, FAC, FACILITIES, FIELDS, OLDEST, Apqn, Qci, hwinfo_of, mode_of
from apfs.host import Host
from apfs.kernel.bitmap import ALL, NONE, Mask, ap_hex2bitmap
from apfs.kernel.errors import KernelError
from apfs.scenario import BusSettings, MdevSpec, Scenario, ScenarioError, default_serial, loads
from apfs.scenario_writer import dumps, type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

BUS = "/sys/bus/ap"
DEVICES = "/sys/devices/ap"
MATRIX = "/sys/devices/vfio_ap/matrix"
HEAD = "Recorded by apfs record."
LATE_QUEUES = "online there although the card is offline, offline here"

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO)
"""What an attribute answers that a kernel does not have, or whose device was removed."""
_PAGE = 4096
_NAMED = 4
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CARD = re.compile(r"card([0-9a-f]{2})")
_KEY = re.compile(r"(\w+) (NEW|CUR|OLD): (\S+) (\S+)")
_ASSIGNED = re.compile(r"^([0-9a-f]{2})?\.(00[0-9a-f]{2})?$", re.MULTILINE)
_REGISTERS = {"AES": ("aes", 16), "APKA": ("apka", 16), "ASYM": ("asym", 32), "WK": ("wk", 64)}
_FUNCTIONS = 0xFFFFC000
"""Bits of `ap_functions` that a scenario has names for."""
_CARD_FUNCTIONS = CARD_HWINFO_MASK >> FAC.shift

_T = TypeVar("_T")


class Tree(Protocol):
    """What is read of a machine. Paths are those on the machine; errors have an `errno`, as `OSError` has.

    `apfs.testing.Files` is one, so emulated hosts can be recorded with or without a mount.
    """

    def read(self, path: str) -> bytes:
        """Return the content of a file."""

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory."""


class Directory:
    """The tree below a directory that contains `sys`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return (self._root / path.lstrip("/")).read_bytes()

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory."""
        return os.listdir(self._root / path.lstrip("/"))  # noqa: PTH208 -- names are wanted, not paths


class RecordError(Exception):
    """There is nothing to record."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A scenario, what is to be known about it, and which files could not be read, by the reason."""

    scenario: Scenario
    notes: tuple[str, ...]
    unread: tuple[str, ...]

    def text(self) -> str:
        """Return the scenario as TOML below its notes."""
        return dumps(self.scenario, [HEAD, *self.notes, *self.unread])


def record(tree: Tree, name: str = "recorded") -> Recording:
    """Read a machine. `RecordError` if it has no AP bus, `ScenarioError` if no scenario can describe it."""
    return _Recorder(tree).record(name)


class _Reader:
    """A tree whose missing and unreadable parts read as None or nothing; unreadable ones are remembered."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._unread: dict[int, list[str]] = defaultdict(list)

    def text(self, path: str) -> str | None:
        """Return the content of a file without its last newline."""
        content = self._try(self._tree.read, path)
        return None if content is None else content.decode("utf-8", "replace").removesuffix("\n")

    def number(self, path: str, base: int = 10) -> int | None:
        """Return the number in a file; None also if there is something else in it."""
        try:
            return int(self.text(path) or "", base)
        except ValueError:
            return None

    def mask(self, path: str) -> Mask | None:
        """Return the mask in a file; None also if there is something else in it."""
        try:
            return ap_hex2bitmap(self.text(path) or "-")
        except KernelError:
            return None

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, in order."""
        return sorted(self._try(self._tree.ls, path) or ())

    def unread(self) -> tuple[str, ...]:
        """Return a line for each reason why files could not be read."""
        return tuple(
            f"Not read: {_some(paths)}: {os.strerror(number)}." for number, paths in sorted(self._unread.items())
        )

    def _try(self, call: Callable[[str], _T], path: str) -> _T | None:
        try:
            return call(path)
        except (OSError, KernelError) as error:
            number = error.errno or errno.EIO
            if number not in _GONE:
                self._unread[number].append(path)
            return None


def _some(names: Sequence[object]) -> str:
    """Name a few of many."""
    rest = len(names) - _NAMED
    text = ", ".join(map(str, names[:_NAMED]))
    return f"{text} and {rest} more" if rest > 0 else text


def _commonest(values: Iterable[_T], default: _T) -> _T:
    """Return the value that is there most often, of several the first."""
    counts = Counter(values)
    return max(counts, key=lambda value: counts[value]) if counts else default


@dataclass(slots=True)
class _Found:
    """What was read of the machine besides its hardware."""

    cards: dict[int, CardHardware] = field(default_factory=dict)
    offline_cards: set[int] = field(default_factory=set)
    offline_queues: set[Apqn] = field(default_factory=set)
    overrides: dict[Apqn, str] = field(default_factory=dict)
    se_guest: bool = False


class _Recorder:
    """One recording. Everything that no scenario can say goes to `notes`."""

    def __init__(self, tree: Tree) -> None:
        self._files = _Reader(tree)
        self._notes: list[str] = []
        self._many: dict[str, list[object]] = defaultdict(list)
        """Things that a note is about, by the note; it names them first."""
        self._found = _Found()
        self._drivers: dict[Apqn, str] = {}
        self._queues: dict[int, list[int]] = {}

    def record(self, name: str) -> Recording:
        files, found = self._files, self._found
        entries = files.names(BUS)
        if not entries:
            reasons = files.unread()
            raise RecordError(
                reasons[0]
                if reasons
                else f"there is no AP bus: looked for {BUS}, which Linux has on IBM Z and LinuxONE if AP instructions "
                "are available"
            )
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
        scenario = Scenario(
            name=name,
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
        self._note_rest(entries, vfio_ap=vfio_ap)
        if scenario.environment == "lpar":
            self._notes.append('sysfs does not tell an LPAR from a KVM guest: for the latter set environment = "kvm".')
        scenario, host = self._bootable(replace(scenario, description=_description(scenario)))
        scenario = self._compare(scenario, host)
        many = (f"{_some(things)}: {text}." for text, things in self._many.items() if things)
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
            match = _CARD.fullmatch(entry)
            if match:
                apid = int(match[1], 16)
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
                card = _CardReader(self._files, apid, apqis, self._drivers, self._many)
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
        found: list[tuple[tuple[int, str], MdevSpec, bool | None]] = []
        for uuid in self._files.names(MATRIX):
            if _UUID.fullmatch(uuid):
                numbers = (name.removeprefix("vfio") for name in self._files.names(f"{MATRIX}/{uuid}/vfio-dev"))
                number = min((int(number) for number in numbers if number.isdecimal()), default=len(found))
                spec = self._mdev(uuid)
                if spec:
                    found.append(((number, uuid), spec, self._has_guest(spec)))
        found.sort(key=lambda device: device[0])
        # The module counts open devices, also those none of whose queues can tell.
        opened = self._files.number("/sys/module/vfio_ap/refcnt") or 0
        rest = opened - sum(1 for _, _, guest in found if guest)
        silent = [spec.uuid for _, spec, guest in found if guest is None]
        if 0 < rest < len(silent):
            self._many[f"{rest} of these mediated devices are in use, sysfs does not tell which"] += silent
        guests = {spec.uuid for _, spec, guest in found if guest} | set(silent[: max(rest, 0)])
        return tuple(replace(spec, guest=spec.uuid in guests) for _, spec, _ in found)

    def _mdev(self, uuid: str) -> MdevSpec | None:
        """Read what is assigned to a device; None if it is gone, or nobody's device at the moment."""
        texts = {name: self._files.text(f"{MATRIX}/{uuid}/{name}") for name in ("ap_config", "matrix")}
        if texts["ap_config"] is None and texts["matrix"] is None:
            self._many["left out: what is assigned was not readable"].append(uuid)
            return None
        try:
            adapters, domains, control_domains = map(ap_hex2bitmap, (texts["ap_config"] or "").split(","))
        except (KernelError, ValueError):  # kernels before 6.10 do not have it
            lines = texts["matrix"] or ""
            if len(lines) >= _PAGE - len("00.0000\n"):
                self._many["more is assigned than the attribute matrix can show"].append(uuid)
            pairs = _ASSIGNED.findall(lines)
            adapters, domains = (Mask.from_numbers({int(pair[i], 16) for pair in pairs if pair[i]}) for i in (0, 1))
            control = self._files.text(f"{MATRIX}/{uuid}/control_domains") or ""
            control_domains = Mask.from_numbers(int(line, 16) for line in re.findall(r"(?m)^00[0-9a-f]{2}$", control))
        return MdevSpec(uuid, adapters, domains, control_domains, guest=False)

    def _has_guest(self, spec: MdevSpec) -> bool | None:
        """Whether a guest has the device; None if there is no queue in its guest matrix that could tell."""
        shown = self._files.text(f"{MATRIX}/{spec.uuid}/guest_matrix")
        if shown is None:  # kernels before 6.0, whose guests get what is assigned
            shown = self._files.text(f"{MATRIX}/{spec.uuid}/matrix") or ""
        apqn = next((apqn for apqn in map(Apqn.parse, shown.split()) if apqn), None)
        if apqn is None:
            return None
        status = self._files.text(f"{DEVICES}/card{apqn.apid:02x}/{apqn}/status")
        return None if status is None else status == "in use"

    # -- what is not recorded ----------------------------------------------------------------------

    def _note_rest(self, entries: Sequence[str], *, vfio_ap: bool) -> None:
        files, notes = self._files, self._notes
        if "drivers_autoprobe" in entries and files.text(f"{BUS}/drivers_autoprobe") == "0":
            notes.append("New devices are not bound to drivers there (drivers_autoprobe is 0); here they are.")
        if files.text("/sys/module/ap/parameters/useirq") == "0":
            notes.append("Interrupts are switched off there (ap.useirq=0); here the environment decides.")
        nodes = [node for node in files.names("/sys/class/zcrypt") if node not in ("create", "destroy")]
        if nodes:
            notes.append(f"Device nodes of zcrypt are not recorded: {_some(nodes)}.")
        if vfio_ap and "migratable" not in (files.text(f"{MATRIX}/features") or "").split():
            notes.append("Its vfio_ap has no live migration; that of an emulated host has.")

    def _bootable(self, scenario: Scenario) -> tuple[Scenario, Host]:
        """Boot the record; mediated devices that an emulated host refuses are left out."""
        try:
            return scenario, Host(loads(dumps(scenario)))
        except ScenarioError:
            specs, scenario = scenario.mdevs, replace(scenario, mdevs=())
            host = Host(loads(dumps(scenario)))  # what is wrong with the rest is no matter of single devices
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
        """Add what the host does not do by itself, and note what it does otherwise."""
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


class _CardReader:
    """One card with its queues."""

    def __init__(
        self,
        files: _Reader,
        apid: int,
        apqis: list[int],
        drivers: dict[Apqn, str],
        notes: dict[str, list[object]],
    ) -> None:
        self._files = files
        self._apid = apid
        self._name = f"card{apid:02x}"
        self._path = f"{DEVICES}/{self._name}"
        self._apqns = [Apqn(apid, apqi) for apqi in apqis]
        self._drivers = drivers
        self._notes = notes

    def read(self, qci: Qci, found: _Found) -> None:
        """Put the card and its queues to what was found."""
        files, path = self._files, self._path
        word = self._word()
        if word is None:
            return
        configured = files.text(f"{path}/config") != "0"
        checkstopped = files.text(f"{path}/chkstop") == "1"
        words = {apqn.apqi: self._queue_word(apqn, word) for apqn in self._apqns}
        hwinfo = _commonest(words.values(), word)
        card = CardHardware(hwinfo, default_serial(self._apid), configured, checkstopped)
        card.queues = {apqi: own for apqi, own in words.items() if own != hwinfo}
        card.queues |= dict.fromkeys(qci.domains - Mask.from_numbers(words), 0)
        found.cards[self._apid] = card
        mode = mode_of(word)
        if mode in ("cca", "ep11"):
            self._ask(card, mode)
        if "APSB" in qci.facilities and mode in ("accel", "ep11"):
            self._read_secure_execution(card, found)
        if configured and not checkstopped:
            self._read_online(found)
        for apqn in self._apqns:
            override = files.text(f"{path}/{apqn}/driver_override")
            if override and override != "(null)":
                found.overrides[apqn] = override

    def _word(self) -> int | None:
        """Return the card's TAPQ word, None if there is no such card on an emulated host, or no longer here."""
        files, path = self._files, self._path
        at = files.number(f"{path}/raw_hwtype") or files.number(f"{path}/hwtype")
        if at is None or at >> FIELDS["at"].width > 0:
            self._notes["left out: hwtype was not readable"].append(self._name)
            return None
        if at < OLDEST:
            self._notes["left out: cards older than CEX4 are not emulated"].append(self._name)
            return None
        functions = files.number(f"{path}/ap_functions", 16)
        if functions is None:
            kind = files.text(f"{path}/type") or ""
            try:
                usual = hwinfo_of(kind)
            except ValueError:
                usual = hwinfo_of(type_of(FIELDS["at"].set(0, at)))
                self._notes["mode of operation unknown: CCA is assumed"].append(self._name)
            functions = FAC.get(usual)
        word = FIELDS["at"].set((functions & _CARD_FUNCTIONS) << FAC.shift, at & 0xFF)
        usual = hwinfo_of(type_of(word))
        for name in ("nd", "ml", "qd"):
            word = FIELDS[name].set(word, FIELDS[name].get(usual))
        size = files.number(f"{path}/max_msg_size")
        if size and 0 < size // _PAGE < 1 << FIELDS["ml"].width:
            word = FIELDS["ml"].set(word, size // _PAGE)
        depth = files.number(f"{path}/depth")
        if depth is not None:
            # Kernels before 6.19, which also have no such counter, show the field itself.
            newer = files.text(f"{BUS}/bindings_complete_count") is not None
            word = FIELDS["qd"].set(word, max(depth - newer, 0) & 0xF)
        return word

    def _queue_word(self, apqn: Apqn, word: int) -> int:
        functions = self._files.number(f"{self._path}/{apqn}/ap_functions", 16)
        if functions is None:
            return word
        if functions & ~_FUNCTIONS:
            self._notes[f"ap_functions has bits that no scenario has names for: {functions:#010x}"].append(apqn)
        return FAC.set(word, functions & _FUNCTIONS)

    # -- what only zcrypt tells --------------------------------------------------------------------

    def _ask(self, card: CardHardware, mode: str) -> None:
        """Read what the drivers ask the card itself: serial number, firmware, master keys."""
        files, path = self._files, self._path
        serial = (files.text(f"{path}/serialnr") or "").lstrip()
        if not serial:
            self._notes["serial number and master keys cannot be read without an online queue of zcrypt"].append(
                self._name
            )
            return
        length = 8 if mode == "cca" else 16
        if serial != default_serial(self._apid)[:length]:
            card.serial = serial
        if mode == "ep11":
            self._ask_ep11(card)
        keys = {apqn.apqi: self._keys(apqn) for apqn in self._apqns if self._drivers.get(apqn) == "cex4queue"}
        default = MasterKeys()
        card.master_keys = MasterKeys(
            *(
                _commonest((own[name] for own in keys.values() if name in own), getattr(default, name))
                for name in MasterKeys.__dataclass_fields__
            )
        )
        for apqi, own in keys.items():
            domain_keys = replace(card.master_keys, **own)
            if domain_keys != card.master_keys:
                card.domain_keys[apqi] = domain_keys

    def _ask_ep11(self, card: CardHardware) -> None:
        files, path = self._files, self._path
        version = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", files.text(f"{path}/FW_version") or "")
        if version:
            card.firmware = int(version[1]), int(version[2])
        ordinal = files.number(f"{path}/API_ordinalnr")
        if ordinal is not None:
            card.api_ordinal = ordinal
        shown = files.text(f"{path}/op_modes")
        if shown is not None:
            modes = tuple(name for name in OP_MODES if name in shown.split())
            if len(modes) < len(shown.split()):
                self._notes[f"operational modes that are not emulated: {shown}"].append(self._name)
            card.op_modes = modes
        for apqn in self._apqns:
            own = files.text(f"{path}/{apqn}/op_modes")
            if own and own != shown:
                self._notes[f"operational modes differ from those of the card: {own}"].append(apqn)

    def _keys(self, apqn: Apqn) -> dict[str, str]:
        """Return the patterns of the current keys, by the name of the register; those that are shown."""
        keys: dict[str, str] = {}
        for register, which, state, pattern in _KEY.findall(self._files.text(f"{self._path}/{apqn}/mkvps") or ""):
            name, digits = _REGISTERS.get(register, ("", 0))
            if which == "CUR" and name and state == "invalid":
                keys[name] = ""
            elif which == "CUR" and state == "valid" and re.fullmatch(rf"0x[0-9a-f]{{{digits}}}", pattern):
                keys[name] = pattern.removeprefix("0x")
            elif which != "CUR" and state not in ("empty", "invalid", "-"):
                self._notes["new and old master keys are not recorded"].append(apqn)
        return keys

    def _read_online(self, found: _Found) -> None:
        states = {
            apqn: self._files.text(f"{self._path}/{apqn}/online")
            for apqn in self._apqns
            if self._drivers.get(apqn) == "cex4queue"
        }
        if self._files.text(f"{self._path}/online") == "0":
            found.offline_cards.add(self._apid)
            # A queue that was bound later is not switched off with its card.
            self._notes[LATE_QUEUES] += [apqn for apqn, state in states.items() if state == "1"]
        else:
            found.offline_queues.update(apqn for apqn, state in states.items() if state == "0")

    def _read_secure_execution(self, card: CardHardware, found: _Found) -> None:
        for apqn in self._apqns:
            names = self._files.names(f"{self._path}/{apqn}")
            found.se_guest |= "se_bind" in names
            state = re.fullmatch(r"associated (\d{1,5})", self._files.text(f"{self._path}/{apqn}/se_associate") or "")
            if state:
                card.associations[apqn.apqi] = int(state[1])


def _description(scenario: Scenario) -> str:
    """Say in a line what there is."""
    types = Counter(type_of(card.hwinfo) for card in scenario.cards.values())
    cards = ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "No cards"
    mdevs = f", mediated devices: {len(scenario.mdevs)}" if scenario.mdevs else ""
    return f"{cards}; domains: {len(scenario.qci.domains)}{mdevs}"

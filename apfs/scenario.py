"""Scenarios: a host described in TOML, and the gallery of scenarios that come with the package.

The grammar is `_TABLES`; `docs/scenarios.md` explains it. A mistake is reported with its line.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from apfs.ap.bus_attributes import CONFIG_TIME_MAX, CONFIG_TIME_MIN, POLL_TIMEOUT_MAX_NS
from apfs.ap.machine import OP_MODES, CardHardware, Environment, MasterKeys
from apfs.ap.qinfo import FACILITIES, FIELDS, Apqn, Qci, hwinfo_of
from apfs.kernel.bitmap import ALL, NONE, Mask, ap_parse_bitmap_str
from apfs.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

REVISIONS = ("v2",)
DEFAULT = "default"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RANGE = re.compile(r"(?P<first>0x[0-9a-fA-F]+|\d+)(?:-(?P<last>0x[0-9a-fA-F]+|\d+))?", re.ASCII)
_SYNTAX = re.compile(r"(?P<reason>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)")
_LAST = 255
_SECRETS = 65536

Where = tuple[str | int, ...]


class ScenarioError(Exception):
    """A mistake in a scenario: the source and the line (0 if there is none) where it stands, and what is wrong."""

    def __init__(self, reason: str, source: str = "scenario", line: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
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
        return ScenarioError(reason, self.name, _line(self.text, where) if self.text else 0)


@dataclass(frozen=True, slots=True)
class MdevSpec:
    """A mediated device that exists from the start."""

    uuid: str
    adapters: Mask
    domains: Mask
    control_domains: Mask
    guest: bool


@dataclass(frozen=True, slots=True)
class BusSettings:
    """What was written to attributes of the AP bus; None is what the bus chooses itself."""

    ap_domain: int | None = None
    config_time: int = 30
    poll_thread: bool = False
    poll_timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host before it is switched on."""

    name: str = "unnamed"
    description: str = ""
    driver: str = REVISIONS[0]
    environment: Environment = "lpar"
    secure_execution: bool = False
    vfio_ap: bool = True
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


def gallery() -> dict[str, str]:
    """Return the texts of the scenarios that come with the package, by name."""
    files = (file for file in resources.files("apfs.scenarios").iterdir() if file.name.endswith(".toml"))
    return {
        file.name.removesuffix(".toml"): file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)
    }


def load(name_or_file: str) -> Scenario:
    """Return a scenario of the gallery, or one from a file; anything with a `/` or a `.` is a file name."""
    if "/" in name_or_file or "." in name_or_file:
        try:
            return loads(Path(name_or_file).read_text("utf-8"), name_or_file)
        except OSError as error:
            raise ScenarioError(error.strerror or str(error), name_or_file) from None
        except UnicodeDecodeError:
            raise ScenarioError("not a text in UTF-8", name_or_file) from None
    texts = gallery()
    if name_or_file not in texts:
        known = ", ".join(texts)
        raise ScenarioError(
            f"no scenario of that name: there are {known}; a file name has a / or a . in it", name_or_file
        )
    return loads(texts[name_or_file], f"{name_or_file}.toml")


def loads(text: str, source: str = "scenario") -> Scenario:
    """Return the scenario that a text describes; `ScenarioError` for what is not TOML, not known, or not possible."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX.fullmatch(str(error))
        line = int(found["line"]) if found and found["line"] else text.count("\n") + 1
        raise ScenarioError(found["reason"] if found else str(error), source, line) from None
    origin = Source(source, text)
    try:
        return _scenario(document, origin)
    except _MistakeError as mistake:
        raise origin.error(mistake.reason, mistake.where) from None


class _MistakeError(Exception):
    """A wrong value, by the path of keys that leads to it."""

    def __init__(self, reason: str, where: Where) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


class _Table:
    """A table of the document whose keys are taken one after the other; what is left over is unknown."""

    def __init__(self, values: object, where: Where) -> None:
        if not isinstance(values, dict):
            raise _MistakeError(f"{_dotted(where)} must be a table", where)
        self._values: dict[str, Any] = dict(values)
        self._taken: set[str] = set()
        self.where = where

    def has(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, parse: Callable[[Any], Any], default: Any = None) -> Any:  # noqa: ANN401 -- any TOML value
        """Return a value; `parse` turns what TOML has into what the scenario has, or raises `ValueError`."""
        self._taken.add(key)
        if key not in self._values:
            return default
        try:
            return parse(self._values[key])
        except ValueError as error:
            raise _MistakeError(f"{key}: {error}", (*self.where, key)) from None

    def need(self, key: str, parse: Callable[[Any], Any]) -> Any:  # noqa: ANN401 -- any TOML value
        if key not in self._values:
            raise _MistakeError(f"{key} is missing", self.where)
        return self.take(key, parse)

    def tables(self, key: str) -> list[_Table]:
        """Return the tables of an array of tables."""
        self._taken.add(key)
        items = self._values.get(key, [])
        if not isinstance(items, list):
            raise _MistakeError(f"{key} must be an array of tables: write [[{key}]]", (*self.where, key))
        return [_Table(item, (*self.where, key, index)) for index, item in enumerate(items)]

    def table(self, key: str) -> _Table:
        self._taken.add(key)
        return _Table(self._values.get(key, {}), (*self.where, key))

    def done(self) -> None:
        """Refuse what nobody took."""
        for key in self._values:
            if key not in self._taken:
                known = ", ".join(sorted(self._taken))
                raise _MistakeError(f"unknown key {key!r}: known here are {known}", (*self.where, key))


def _dotted(where: Where) -> str:
    return ".".join(map(str, where)) or "the scenario"


# -- values: what TOML has into what the scenario has, or ValueError -------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, not {value!r}")  # noqa: TRY004 -- becomes a _MistakeError
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r}")  # noqa: TRY004 -- becomes a _MistakeError
    return value


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return parse


def _number_in(first: int, last: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not first <= value <= last:
            raise ValueError(f"expected a number in {first}..{last}, not {value!r}")
        return value

    return parse


_number = _number_in(0, _LAST)


def _numbers(value: object) -> Mask:
    """Parse a number, a range such as `"0-255"`, or an array of both."""
    numbers: list[int] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            found = _RANGE.fullmatch(item)
            if not found:
                raise ValueError(f"expected a number or a range such as '0x10-0x1f', not {item!r}")
            first = int(found["first"], 0)
            last = int(found["last"], 0) if found["last"] else first
            if first > last:
                raise ValueError(f"range {item!r} ends before it starts")
            numbers += [_number(first), *range(first + 1, _number(last) + 1)]
        else:
            numbers.append(_number(item))
    return Mask.from_numbers(numbers)


def _mask(value: object) -> Mask:
    try:
        return ap_parse_bitmap_str(_text(value), ALL)
    except KernelError as error:
        raise ValueError(error.why) from None


def _names(*choices: str) -> Callable[[object], tuple[str, ...]]:
    def parse(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected an array of names, not {value!r}")  # noqa: TRY004
        return tuple(map(_one_of(*choices), value))

    return parse


def _firmware(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", _text(value), re.ASCII)
    if not found:
        raise ValueError(f"expected a version such as '5.8', not {value!r}")
    return int(found[1]), int(found[2])


def _digits(count: int) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not re.fullmatch(rf"([0-9a-f]{{{count}}})?", _text(value)):
            raise ValueError(f"expected {count} lower-case hex digits, or '' if no key is set, not {value!r}")
        return str(value)

    return parse


def _apqn(value: object) -> Apqn:
    apqn = Apqn.parse(_text(value))
    if apqn is None:
        raise ValueError(f"expected a queue such as '05.00ab', not {value!r}")
    return apqn


def _driver(value: object) -> str:
    if not re.fullmatch(r"[^\0\n]{1,64}", _text(value)):
        raise ValueError(f"expected the name of a driver, not {value!r}")
    return str(value)


def _uuid(value: object) -> str:
    if not _UUID.fullmatch(_text(value)):
        raise ValueError(f"not a UUID: {value!r}")
    return str(value).lower()


# -- tables ----------------------------------------------------------------------------------------


def _scenario(document: dict[str, Any], source: Source) -> Scenario:
    top = _Table(document, ())
    name = top.take("name", _text, "unnamed")
    description = top.take("description", _text, "")
    revision = top.take("driver", _one_of(*REVISIONS), REVISIONS[0])
    environment = top.take("environment", _one_of(*get_args(Environment)), "lpar")
    secure_execution = top.take("secure_execution", _bool, default=False)
    vfio_ap = top.take("vfio_ap", _bool, default=True)
    qci_table, card_tables, queue_tables = top.table("qci"), top.tables("card"), top.tables("queue")
    bus_table, masks, mdev_tables = top.table("bus"), top.table("masks"), top.tables("mdev")
    top.done()
    qci = _qci(qci_table)
    cards: dict[int, CardHardware] = {}
    offline_cards = NONE
    for table in card_tables:
        apids = _cards(table, qci, cards)
        if not table.take("online", _bool, default=True):
            offline_cards |= apids
        table.done()
    apmask, aqmask = masks.take("apmask", _mask, ALL), masks.take("aqmask", _mask, ALL)
    masks.done()
    offline_queues: set[Apqn] = set()
    overrides: dict[Apqn, str] = {}
    for table in queue_tables:
        apqns = _queues(table, qci, cards)
        if not table.take("online", _bool, default=True):
            offline_queues.update(apqns)
        override = table.take("driver_override", _driver)
        if override and (apmask != ALL or aqmask != ALL):
            reason = "driver_override: queues are given away by mask or by override, not both"
            raise _MistakeError(reason, (*table.where, "driver_override"))
        if override:
            overrides |= dict.fromkeys(apqns, override)
        table.done()
    return Scenario(
        name=name,
        description=description,
        driver=revision,
        environment=environment,
        secure_execution=secure_execution,
        vfio_ap=vfio_ap,
        qci=Qci(
            adapters=Mask.from_numbers(cards) | qci.adapters,
            domains=qci.domains,
            control_domains=qci.control_domains,
            max_adapter=qci.max_adapter,
            max_domain=qci.max_domain,
            facilities=qci.facilities,
            supported=qci.supported,
        ),
        cards=cards,
        offline_cards=offline_cards,
        offline_queues=frozenset(offline_queues),
        overrides=overrides,
        bus=_bus(bus_table, qci),
        apmask=apmask,
        aqmask=aqmask,
        mdevs=_mdevs(mdev_tables),
        source=source,
    )


def _qci(table: _Table) -> Qci:
    supported = table.take("supported", _bool, default=True)
    facilities = table.take("facilities", _names(*FACILITIES), ("APSC", "APXA", "QACT", "RC8A") if supported else ())
    qci = Qci(
        adapters=table.take("adapters", _numbers, NONE),
        domains=table.take("domains", _numbers, Mask()),
        control_domains=table.take("control_domains", _numbers, table.take("domains", _numbers, Mask())),
        max_adapter=table.take("max_adapter", _number, _LAST),
        max_domain=table.take("max_domain", _number, _LAST),
        facilities=frozenset(facilities),
        supported=supported,
    )
    table.done()
    if facilities and not supported:
        raise _MistakeError("facilities: there are none where QCI is not supported", (*table.where, "facilities"))
    last_adapter, last_domain = qci.limits()
    for key, mask, what, last in (
        ("adapters", qci.adapters, "adapter", last_adapter),
        ("domains", qci.domains, "domain", last_domain),
        ("control_domains", qci.control_domains, "domain", last_domain),
    ):
        beyond = mask.after(last)
        if beyond:
            reason = f"{key}: {beyond.lowest()} is above the machine's highest {what}, {last}"
            raise _MistakeError(reason, (*table.where, key if table.has(key) else "domains"))
    return qci


def _bus(table: _Table, qci: Qci) -> BusSettings:
    settings = BusSettings(
        ap_domain=table.take("ap_domain", _number_in(0, qci.limits()[1])),
        config_time=table.take("config_time", _number_in(CONFIG_TIME_MIN, CONFIG_TIME_MAX), 30),
        poll_thread=table.take("poll_thread", _bool, default=False),
        poll_timeout=table.take("poll_timeout", _number_in(0, POLL_TIMEOUT_MAX_NS)),
    )
    table.done()
    return settings


def _tapq(table: _Table) -> dict[str, int]:
    def field_value(name: str) -> Callable[[object], int]:
        def parse(value: object) -> int:
            return FIELDS[name].set(0, _number(value)) >> FIELDS[name].shift

        return parse

    fields = table.table("tapq")
    values = {name: fields.take(name, field_value(name)) for name in FIELDS}
    fields.done()
    return {name: value for name, value in values.items() if value is not None}


def _with_fields(word: int, values: dict[str, int]) -> int:
    for name, value in values.items():
        word = FIELDS[name].set(word, value)
    return word


def _master_keys(table: _Table) -> Callable[[MasterKeys], MasterKeys]:
    """Return what puts the keys that are given in place of others."""
    keys = table.table("master_keys")
    digits = {"aes": 16, "apka": 16, "asym": 32, "wk": 64}
    given = {name: keys.take(name, _digits(count)) for name, count in digits.items() if keys.has(name)}
    for name in digits:
        keys.take(name, _text)
    keys.done()
    return lambda others: replace(others, **given)


def _cards(table: _Table, qci: Qci, cards: dict[int, CardHardware]) -> Mask:
    key = "adapters" if table.has("adapters") else "adapter"
    apids: Mask = table.need(key, _numbers if key == "adapters" else lambda value: Mask.of(_number(value)))
    word = _with_fields(table.need("type", lambda value: hwinfo_of(_text(value))), _tapq(table))
    serial = table.take("serial", _text)
    master_keys = _master_keys(table)(MasterKeys())
    configured, checkstopped = (
        table.take("configured", _bool, default=True),
        table.take("checkstopped", _bool, default=False),
    )
    firmware, api_ordinal = table.take("firmware", _firmware, (5, 8)), table.take("api_ordinal", _number, 6)
    op_modes = table.take("op_modes", _names(*OP_MODES), ("FIPS2009", "FIPS2011"))
    last = qci.limits()[0]
    for apid in apids:
        if apid > last:
            raise _MistakeError(f"{key}: {apid} is above the machine's highest adapter, {last}", (*table.where, key))
        if apid in cards:
            raise _MistakeError(f"{key}: adapter {apid} is described twice", (*table.where, key))
        cards[apid] = CardHardware(
            word, serial or default_serial(apid), configured, checkstopped, firmware, api_ordinal, op_modes, master_keys
        )
    return apids


def default_serial(apid: int) -> str:
    """Return the serial number of a card for which none is given: 16 characters, of which CCA cards show 8."""
    return f"93AA{apid:04X}00000000"


def _queues(table: _Table, qci: Qci, cards: dict[int, CardHardware]) -> list[Apqn]:
    """Apply a table to the hardware of its queues, which are returned."""
    if table.has("adapters") or table.has("domains"):
        key = "adapters"
        adapters, domains = table.need("adapters", _numbers), table.need("domains", _numbers)
        apqns = [Apqn(apid, apqi) for apid in adapters for apqi in domains]
    else:
        key = "apqn"
        apqns = [table.need("apqn", _apqn)]
    fields, keys = _tapq(table), _master_keys(table)
    present, secret = table.take("present", _bool, default=True), table.take("secret", _number_in(0, _SECRETS - 1))
    for apqn in apqns:
        apid, apqi = apqn
        if apid not in cards or apqi not in qci.domains:
            raise _MistakeError(f"{key}: there is no queue {apqn}: no such card or domain", (*table.where, key))
        card = cards[apid]
        # An all-zero word is how the hardware says that there is no such queue.
        word = _with_fields(card.word(apqi), fields) if present else 0
        domain_keys = keys(card.keys(apqi))
        if word != card.word(apqi):
            card.queues[apqi] = word
        if domain_keys != card.keys(apqi):
            card.domain_keys[apqi] = domain_keys
        if secret is not None:
            card.associations[apqi] = secret
    return apqns


def _mdevs(tables: list[_Table]) -> tuple[MdevSpec, ...]:
    mdevs = []
    for table in tables:
        mdevs.append(
            MdevSpec(
                table.need("uuid", _uuid),
                table.take("adapters", _numbers, Mask()),
                table.take("domains", _numbers, Mask()),
                table.take("control_domains", _numbers, Mask()),
                table.take("guest", _bool, default=False),
            )
        )
        table.done()
    return tuple(mdevs)


def _line(text: str, where: Where) -> int:
    """Return the line of the value at a path, or of the nearest thing around it that has one.

    tomlkit keeps the text as it was, so a comment put behind an item shows the line on which the item ends.
    """
    import tomlkit  # noqa: PLC0415 -- only needed when there is a mistake to report
    from tomlkit.items import AoT, Array, Table  # noqa: PLC0415

    mark = "\N{PILCROW SIGN} here"
    for length in range(len(where), 0, -1):
        document = tomlkit.parse(text)
        item: Any = document
        for step in where[:length]:
            container = item.value if isinstance(item, Table) else item
            # item() has what indexing turns into plain values, such as true and false.
            item = container.item(step) if isinstance(step, str) else item[step]
        while isinstance(item, AoT) or (isinstance(item, Table) and item.is_super_table()):
            item = item[0] if isinstance(item, AoT) else next(iter(item.value.values()))
        lines_before_end = item.as_string().count("\n") if isinstance(item, Array) else 0
        item.comment(mark)
        marked = [number for number, line in enumerate(document.as_string().split("\n"), 1) if mark in line]
        if marked:
            return marked[0] - lines_before_end
    return 1

"""Reading scenarios: TOML text to a `Scenario`, with the line of every mistake."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from apfs.ap.hardware import CardHardware, MasterKeys, default_serial
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import Qci, with_fields
from apfs.scenario.gallery import DIRECTORY
from apfs.scenario.keys import BUS, CARD, MASKS, MDEV, QCI, QUEUE, TOP, Key
from apfs.scenario.limits import DEEPEST, MOST, MOST_MDEVS, MOST_QUEUES, too_deep
from apfs.scenario.model import BusSettings, MdevSpec, Scenario, ScenarioError, Source
from apfs.scenario.values import FLAG, Kind, PartError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apfs.scenario.keys import Keys
    from apfs.scenario.lines import Where

T = TypeVar("T")
_SYNTAX = re.compile(r"(?P<reason>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)")


_GALLERY = Path(DIRECTORY)


def gallery() -> dict[str, str]:
    """Return the texts of the scenarios that come with the package, by name."""
    return {file.stem: file.read_text("utf-8") for file in sorted(_GALLERY.glob("*.toml"))}


def load(name_or_file: str, changes: Mapping[str, str] | None = None) -> Scenario:
    """Return a scenario of the gallery, or one from a file; anything with a `/` or a `.` is a file name.

    `changes` are as those of `loads`.
    """
    if "/" in name_or_file or "." in name_or_file:
        try:
            with Path(name_or_file).open(encoding="utf-8-sig", newline="") as file:  # what ends a line is up to TOML
                text = file.read(MOST + 1)
        except OSError as error:
            raise ScenarioError(error.strerror or str(error), name_or_file) from None
        except UnicodeDecodeError:
            raise ScenarioError("not a text in UTF-8", name_or_file) from None
        return loads(text, name_or_file, changes)
    try:
        text = (_GALLERY / f"{name_or_file}.toml").read_text("utf-8")
    except (OSError, ValueError):
        known = ", ".join(gallery())
        raise ScenarioError(
            f"no scenario of that name: there are {known}; a file name has a / or a . in it", name_or_file
        ) from None
    return loads(text, f"{name_or_file}.toml", changes)


def loads(text: str, source: str = "scenario", changes: Mapping[str, str] | None = None) -> Scenario:
    """Return the scenario that a text describes; `ScenarioError` for what is not TOML, not known, or not possible.

    `changes` are other values for keys at its top level: what TOML has between quotes, or `true` or `false`.
    """
    if len(text) > MOST:
        raise ScenarioError(f"longer than {MOST} characters", source)
    line = too_deep(text)
    if line is not None:
        raise ScenarioError(f"more than {DEEPEST} arrays, tables or parts of a key in each other", source, line)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX.fullmatch(str(error))
        line = int(found["line"]) if found and found["line"] else text.count("\n") + 1
        raise ScenarioError(found["reason"] if found else str(error), source, line) from None
    except ValueError:
        raise ScenarioError("a number has thousands of digits", source) from None
    origin, changes = Source(source, text), changes or {}
    flags = {key.name for key in TOP if key.kind is FLAG}
    for name, value in changes.items():
        document[name] = value == "true" if name in flags and value in ("true", "false") else value
    try:
        return _scenario(document, origin)
    except MistakeError as mistake:
        if mistake.where and mistake.where[0] in changes:
            raise ScenarioError(mistake.reason, f"{source}, --set {mistake.where[0]}") from None
        raise origin.error(mistake.reason, mistake.where) from None


def text_of(scenario: Scenario) -> str:
    """Return a text of which `loads` makes the same scenario: the one that it was made from, unless it was changed."""
    text = scenario.source.text
    if loads(text) == scenario:
        return text
    from apfs.scenario.writer import dumps  # noqa: PLC0415 -- needs tomlkit, which hosts do not

    return dumps(scenario)


# -- TOML's tables ----------------------------------------------------------------------------------


class MistakeError(Exception):
    """Something wrong, by the path of keys that leads to it."""

    def __init__(self, reason: str, where: Where) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


class Table:
    """A table of the document. Keys that nobody has read are unknown, and `done` refuses them."""

    def __init__(self, values: object, where: Where) -> None:
        if not isinstance(values, dict):
            raise MistakeError(f"{'.'.join(map(str, where))} must be a table", where)
        self._values: dict[str, Any] = dict(values)
        self._known: set[str] = set()
        self.where = where

    def has(self, name: str) -> bool:
        """Whether the table has a key."""
        return name in self._values

    def read(self, keys: Keys) -> dict[str, Any]:
        """Return the values of all these keys, with the defaults of those that are missing."""
        return {key.name: self._value(key) for key in keys}

    def _value(self, key: Key) -> Any:  # noqa: ANN401 -- whatever a scenario has
        if not isinstance(key.kind, Kind):
            table = self.table(key.name)
            values = table.read(key.kind)
            table.done()
            return {name: value for name, value in values.items() if value is not None}
        self._known.add(key.name)
        if key.name not in self._values:
            return key.default
        try:
            return key.kind.parse(self._values[key.name])
        except PartError as error:
            raise self.mistake(key.name, str(error), error.part) from None
        except ValueError as error:
            raise self.mistake(key.name, str(error)) from None

    def tables(self, name: str) -> list[Table]:
        """Return the tables of an array of tables."""
        self._known.add(name)
        items = self._values.get(name, [])
        if not isinstance(items, list):
            raise MistakeError(f"{name} must be an array of tables: write [[{name}]]", (*self.where, name))
        return [Table(item, (*self.where, name, index)) for index, item in enumerate(items)]

    def table(self, name: str) -> Table:
        """Return the table of that name; an empty one if there is none."""
        self._known.add(name)
        return Table(self._values.get(name, {}), (*self.where, name))

    def done(self) -> None:
        """Refuse keys that were not read."""
        for name in self._values:
            if name not in self._known:
                known = ", ".join(sorted(self._known))
                raise MistakeError(f"unknown key {name!r}: known here are {known}", (*self.where, name))

    def need(self, *names: str) -> None:
        """Refuse a table without these keys."""
        for name in names:
            if name not in self._values:
                raise MistakeError(f"{name} is missing", self.where)

    def mistake(self, name: str, reason: str, *part: str) -> MistakeError:
        """Return the error to raise for the value of a key, or for a part of it."""
        return MistakeError(f"{name}: {reason}", (*self.where, name, *part))


# -- tables of a scenario --------------------------------------------------------------------------


def _scenario(document: dict[str, Any], source: Source) -> Scenario:
    top = Table(document, ())
    values = top.read(TOP)
    qci_table, card_tables, queue_tables = top.table("qci"), top.tables("card"), top.tables("queue")
    bus_table, masks_table, mdev_tables = top.table("bus"), top.table("masks"), top.tables("mdev")
    top.done()
    if len(mdev_tables) > MOST_MDEVS:
        raise top.mistake("mdev", f"there are {len(mdev_tables)} of them, more than {MOST_MDEVS}")
    if values["config_events"] and values["environment"] != "lpar":
        raise top.mistake("config_events", "only an LPAR is told of changes of its configuration")
    qci = _qci(qci_table)
    cards: dict[int, CardHardware] = {}
    offline_cards = NONE
    for table in card_tables:
        offline_cards |= _cards(table, qci, cards, values["serial"])
    masks = _all(masks_table, MASKS)
    offline_queues: set[Apqn] = set()
    overrides: dict[Apqn, str] = {}
    described = 0
    for table in queue_tables:
        queue, apqns = _queues(table, qci, cards, MOST_QUEUES - described)
        described += len(apqns)
        if not queue["online"]:
            offline_queues.update(apqns)
        if queue["driver_override"]:
            if masks != {"apmask": ALL, "aqmask": ALL}:
                raise table.mistake("driver_override", "use either the masks or overrides")
            overrides |= dict.fromkeys(apqns, queue["driver_override"])
    return Scenario(
        **values,
        **masks,
        qci=replace(qci, adapters=Mask.from_numbers(cards) | qci.adapters),
        cards=cards,
        offline_cards=offline_cards,
        offline_queues=frozenset(offline_queues),
        overrides=overrides,
        bus=_bus(bus_table, qci),
        mdevs=tuple(map(_mdev, mdev_tables)),
        source=source,
    )


def _all(table: Table, keys: Keys) -> dict[str, Any]:
    """Return the values of a table that has these keys only."""
    values = table.read(keys)
    table.done()
    return values


def _qci(table: Table) -> Qci:
    values = _all(table, QCI)
    supported = values["supported"]
    if values["control_domains"] is None:
        values["control_domains"] = values["domains"]
    if values["facilities"] is None:
        values["facilities"] = Qci().facilities if supported else frozenset()
    qci = Qci(**values)
    if qci.facilities and not supported:
        raise table.mistake("facilities", "there are none where QCI is not supported")
    last_adapter, last_domain = qci.limits()
    for key, mask, what, last in (
        ("adapters", qci.adapters, "adapter", last_adapter),
        ("domains", qci.domains, "domain", last_domain),
        ("control_domains", qci.control_domains, "domain", last_domain),
    ):
        beyond = mask.after(last)
        if beyond:
            raise table.mistake(key, f"{beyond.lowest()} is above the machine's highest {what}, {last}")
    return qci


def _bus(table: Table, qci: Qci) -> BusSettings:
    settings, last = BusSettings(**_all(table, BUS)), qci.limits()[1]
    if settings.ap_domain is not None and settings.ap_domain > last:
        raise table.mistake("ap_domain", f"{settings.ap_domain} is above the machine's highest domain, {last}")
    return settings


def _one_or_many(table: Table, one: str, *many: str) -> str:
    """Make sure that a table has either one key or the others, and return the name of what it has."""
    if not any(map(table.has, many)):
        table.need(one)
        return one
    if table.has(one):
        raise table.mistake(one, f"not together with {' and '.join(many)}")
    table.need(*many)
    return many[0]


def _cards(table: Table, qci: Qci, cards: dict[int, CardHardware], serial: str) -> Mask:
    """Add the cards that a table describes; return those that are offline."""
    values = _all(table, CARD)  # first: a key that is misspelt is not one that is missing
    key = _one_or_many(table, "adapter", "adapters")
    table.need("type")
    last = qci.limits()[0]
    if not values[key]:
        raise table.mistake(key, "there is no card in this table")
    for apid in values[key]:
        if apid > last:
            raise table.mistake(key, f"{apid} is above the machine's highest adapter, {last}")
        if apid in cards:
            raise table.mistake(key, f"adapter {apid} is described twice")
        cards[apid] = CardHardware(
            hwinfo=with_fields(values["type"], values["tapq"]),
            serial=values["serial"] or default_serial(apid, serial),
            configured=values["configured"],
            checkstopped=values["checkstopped"],
            firmware=values["firmware"],
            api_ordinal=values["api_ordinal"],
            op_modes=values["op_modes"],
            master_keys=MasterKeys(**values["master_keys"]),
        )
    return NONE if values["online"] else values[key]


def _queues(table: Table, qci: Qci, cards: dict[int, CardHardware], room: int) -> tuple[dict[str, Any], list[Apqn]]:
    """Apply a table to the hardware of its queues, of which there may be so many; return its values and the queues."""
    values = _all(table, QUEUE)
    key = _one_or_many(table, "apqn", "adapters", "domains")
    many = (Apqn(apid, apqi) for apid in values["adapters"] or () for apqi in values["domains"] or ())
    apqns = [values["apqn"]] if key == "apqn" else list(many)
    if len(apqns) > room:
        raise MistakeError(
            f"more than {MOST_QUEUES} queues are described, each as often as tables name it", table.where
        )
    if not apqns:
        raise table.mistake("domains" if values["adapters"] else "adapters", "there is no queue in this table")
    for apqn in apqns:
        apid, apqi = apqn
        if apid not in cards or apqi not in qci.domains:
            raise table.mistake(key, f"there is no queue {apqn}: no such card or domain")
        card = cards[apid]
        # An all-zero word is how the hardware says that there is no such queue.
        word = with_fields(card.word(apqi), values["tapq"]) if values["present"] else 0
        domain_keys = replace(card.keys(apqi), **values["master_keys"])
        _set_own(card.queues, apqi, word, card.hwinfo)
        _set_own(card.domain_keys, apqi, domain_keys, card.master_keys)
        if values["secret"] is not None:
            card.associations[apqi] = values["secret"]
    return values, apqns


def _set_own(own: dict[int, T], apqi: int, value: T, usual: T) -> None:
    """Give a queue a value of its own; none if it is the usual one, which an earlier table may have changed."""
    if value == usual:
        own.pop(apqi, None)
    else:
        own[apqi] = value


def _mdev(table: Table) -> MdevSpec:
    values = _all(table, MDEV)
    table.need("uuid")
    return MdevSpec(**values)

"""Writing scenarios: a `Scenario` as TOML text, in the style of a handwritten one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.items import AoT, Integer, Trivia

from apfs.ap.hardware import MasterKeys, default_serial
from apfs.ap.mask import Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import FIELDS, Qci, hwinfo_of, nearest_type
from apfs.scenario.keys import BUS, CARD, MASKS, MDEV, QCI, QUEUE, TOP, spell
from apfs.scenario.values import Hex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.ap.hardware import CardHardware
    from apfs.scenario.keys import Keys
    from apfs.scenario.model import Scenario

_Values = dict[str, Any]
"""Values by the name of their key; None for those that are left out."""


def dumps(scenario: Scenario, comments: Iterable[str] = ()) -> str:
    """Return the text of a scenario below lines of comment; `loads` makes the same scenario of it.

    What has its default is left out; cards that are alike share a table, and so do queues.
    """
    document = tomlkit.document()
    for line in comments:
        # They may quote what a file contained.
        document.add(tomlkit.comment("".join(letter if letter.isprintable() else "?" for letter in line)))
    for name, value in spell(TOP, _fields(scenario)).items():
        document.add(name, _item(value))
    _add_table(document, "qci", QCI, _qci(scenario))
    _add_tables(document, "card", CARD, _cards(scenario))
    _add_tables(document, "queue", QUEUE, _queues(scenario))
    _add_table(document, "bus", BUS, _fields(scenario.bus))
    _add_table(document, "masks", MASKS, _fields(scenario))
    _add_tables(document, "mdev", MDEV, map(_fields, scenario.mdevs))
    # Every table has an empty line before it; one at the very beginning separates nothing.
    return document.as_string().strip("\n") + "\n"


# -- tables of a scenario --------------------------------------------------------------------------


def _qci(scenario: Scenario) -> _Values:
    qci = scenario.qci
    usual = Qci().facilities if qci.supported else frozenset[str]()
    return {
        **_fields(qci),
        "adapters": qci.adapters - Mask.from_numbers(scenario.cards),
        "control_domains": None if qci.control_domains == qci.domains else qci.control_domains,
        "facilities": None if qci.facilities == usual else qci.facilities,
    }


def _cards(scenario: Scenario) -> Iterator[_Values]:
    """Yield the values of a table for the cards that are alike."""
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for apid, card in sorted(scenario.cards.items()):
        own = (card.hwinfo, card.configured, card.checkstopped, card.firmware, card.api_ordinal, card.op_modes)
        alike[own, _serial(apid, card, scenario), card.master_keys, apid in scenario.offline_cards].append(apid)
    for apids in alike.values():
        apid, adapters = apids[0], Mask.from_numbers(apids)
        card = scenario.cards[apid]
        yield {
            **_fields(card),
            "adapter" if len(apids) == 1 else "adapters": adapters,
            "type": card.hwinfo,
            "tapq": _tapq(hwinfo_of(nearest_type(card.hwinfo)), card.hwinfo),
            "serial": _serial(apid, card, scenario),
            "online": apid not in scenario.offline_cards,
            "master_keys": _changed(MasterKeys(), card.master_keys),
        }


def _serial(apid: int, card: CardHardware, scenario: Scenario) -> str | None:
    return None if card.serial == default_serial(apid, scenario.serial) else card.serial


def _queues(scenario: Scenario) -> Iterator[_Values]:
    """Yield the values of a table for each rectangle of queues that differ from their cards in the same way."""
    alike: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    tables: dict[str, _Values] = {}
    for apqn in sorted(_special(scenario)):
        values = _queue(scenario, apqn)
        if spell(QUEUE, values):
            key = str(values)
            alike[key][apqn.apid].append(apqn.apqi)
            tables[key] = values
    for key, rows in alike.items():
        rectangles: dict[Mask, list[int]] = defaultdict(list)
        for apid, apqis in rows.items():
            rectangles[Mask.from_numbers(apqis)].append(apid)
        for domains, apids in rectangles.items():
            if len(apids) == len(domains) == 1:
                yield {"apqn": Apqn(apids[0], domains.lowest()), **tables[key]}
            else:
                yield {"adapters": Mask.from_numbers(apids), "domains": domains, **tables[key]}


def _special(scenario: Scenario) -> set[Apqn]:
    """Return the queues that may have a word, a key or a setting of their own."""
    found = {*scenario.offline_queues, *scenario.overrides}
    for apid, card in scenario.cards.items():
        found.update(Apqn(apid, apqi) for apqi in (*card.queues, *card.domain_keys, *card.associations))
    return found


def _queue(scenario: Scenario, apqn: Apqn) -> _Values:
    card: CardHardware = scenario.cards[apqn.apid]
    word = card.word(apqn.apqi)
    absent = word == 0 != card.hwinfo
    return {
        "present": not absent,
        "tapq": {} if absent else _tapq(card.hwinfo, word),
        "online": apqn not in scenario.offline_queues,
        "driver_override": scenario.overrides.get(apqn),
        "master_keys": _changed(card.master_keys, card.keys(apqn.apqi)),
        "secret": card.associations.get(apqn.apqi),
    }


def _tapq(usual: int, word: int) -> _Values:
    """Return the fields in which a word differs from another one."""
    return {name: field.get(word) for name, field in FIELDS.items() if field.get(word) != field.get(usual)}


def _fields(value: Any) -> _Values:  # noqa: ANN401 -- any dataclass
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _changed(usual: MasterKeys, keys: MasterKeys) -> _Values:
    """Return the keys that are not those of another instance."""
    others = _fields(usual)
    return {name: value for name, value in _fields(keys).items() if value != others[name]}


# -- TOML's tables ---------------------------------------------------------------------------------


def _add_table(document: tomlkit.TOMLDocument, name: str, keys: Keys, values: _Values) -> None:
    table = _table(keys, values)
    if table:
        document.add(name, table)


def _add_tables(document: tomlkit.TOMLDocument, name: str, keys: Keys, tables: Iterable[_Values]) -> None:
    found = [_table(keys, values) for values in tables]
    if found:
        document.add(name, AoT(found))


def _table(keys: Keys, values: _Values) -> tomlkit.items.Table:
    table = tomlkit.table()
    table.trivia.indent = "\n"
    for name, value in spell(keys, values).items():
        table.add(name, _item(value))
    return table


def _item(value: object) -> Any:  # noqa: ANN401 -- what tomlkit makes items of
    """Return an item of tomlkit, or what it makes one of."""
    if isinstance(value, Hex):
        return Integer(value, Trivia(), f"{value:#04x}")
    if isinstance(value, list):
        return [_item(item) for item in value]
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update({name: _item(item) for name, item in value.items()})
        return table
    return value

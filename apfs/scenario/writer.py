"""Scenarios as text: the other way round than `apfs.scenario`, written as one would write them by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.items import AoT, Integer, Trivia

from apfs.ap.hardware import MasterKeys, default_serial
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import FACILITIES, FIELDS, Qci, hwinfo_of, nearest_type
from apfs.scenario.model import BusSettings, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.ap.hardware import CardHardware
    from apfs.scenario.model import MdevSpec

_Values = dict[str, Any]
"""Keys of a table in the order in which they are written, with items of tomlkit or what it makes items of."""
_RANGE_FROM = 3  # two neighbours are shorter as two numbers


def dumps(scenario: Scenario, comments: Iterable[str] = ()) -> str:
    """Return the text of a scenario below lines of comment; `loads` makes the same scenario of it.

    What has its default is left out; cards that are alike share a table, and so do queues.
    """
    document = tomlkit.document()
    for line in comments:
        # They may quote what a file contained.
        document.add(tomlkit.comment("".join(letter if letter.isprintable() else "?" for letter in line)))
    for key, value in _top(scenario).items():
        document.add(key, value)
    bus = _changed(BusSettings(), scenario.bus)
    if "ap_domain" in bus:
        bus["ap_domain"] = _hex(bus["ap_domain"])
    masks = {
        name: _mask_text(mask)
        for name, mask in (("apmask", scenario.apmask), ("aqmask", scenario.aqmask))
        if mask != ALL
    }
    for name, values in (("qci", _qci(scenario)), ("bus", bus), ("masks", masks)):
        if values:
            document.add(name, _table(values))
        if name == "qci":
            _add_tables(document, "card", _cards(scenario))
            _add_tables(document, "queue", _queues(scenario))
    _add_tables(document, "mdev", map(_mdev, scenario.mdevs))
    # Every table has an empty line before it; one at the very beginning separates nothing.
    return document.as_string().strip("\n") + "\n"


# -- tables ----------------------------------------------------------------------------------------


def _table(values: _Values) -> tomlkit.items.Table:
    table = tomlkit.table()
    table.trivia.indent = "\n"
    for key, value in values.items():
        table.add(key, value)
    return table


def _add_tables(document: tomlkit.TOMLDocument, name: str, tables: Iterable[_Values]) -> None:
    found = [_table(values) for values in tables]
    if found:
        document.add(name, AoT(found))


def _changed(default: object, value: Any) -> _Values:  # noqa: ANN401 -- instances of one dataclass
    """Return the fields of a dataclass that are not those of another instance."""
    names = (field.name for field in fields(value))
    return {name: getattr(value, name) for name in names if getattr(value, name) != getattr(default, name)}


def _top(scenario: Scenario) -> _Values:
    values = _changed(Scenario(), scenario)
    plain = ("name", "description", "driver", "environment", "secure_execution", "vfio_ap")
    return {key: values[key] for key in plain if key in values}


def _qci(scenario: Scenario) -> _Values:
    qci = scenario.qci
    values = _changed(Qci(), qci)
    values.pop("facilities", None)
    adapters = values.pop("adapters", NONE) - Mask.from_numbers(scenario.cards)
    if adapters:
        values = {"adapters": adapters} | values
    if qci.control_domains == qci.domains:
        values.pop("control_domains", None)
    else:
        values["control_domains"] = qci.control_domains
    if qci.supported and qci.facilities != Qci().facilities:
        values["facilities"] = [name for name in FACILITIES if name in qci.facilities]
    return {key: _numbers(value) if isinstance(value, Mask) else value for key, value in values.items()}


def _cards(scenario: Scenario) -> Iterator[_Values]:
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for apid, card in sorted(scenario.cards.items()):
        serial = None if card.serial == default_serial(apid) else card.serial
        own = (card.hwinfo, card.configured, card.checkstopped, card.firmware, card.api_ordinal, card.op_modes)
        alike[serial, own, card.master_keys, apid in scenario.offline_cards].append(apid)
    for apids in alike.values():
        yield _card(scenario, apids)


def _card(scenario: Scenario, apids: list[int]) -> _Values:
    card = scenario.cards[apids[0]]
    one = len(apids) == 1
    values: _Values = {
        "adapter" if one else "adapters": _numbers(Mask.from_numbers(apids)),
        "type": nearest_type(card.hwinfo),
    }
    tapq = _tapq(hwinfo_of(values["type"]), card.hwinfo)
    if tapq:
        values["tapq"] = _inline(tapq)
    default = type(card)(card.hwinfo, default_serial(apids[0]))
    changed = _changed(default, card)
    if "firmware" in changed:
        changed["firmware"] = ".".join(map(str, card.firmware))
    if "op_modes" in changed:
        changed["op_modes"] = list(card.op_modes)
    keys = _changed(MasterKeys(), card.master_keys)
    for name in ("configured", "checkstopped", "serial", "firmware", "api_ordinal", "op_modes"):
        if name in changed:
            values[name] = changed[name]
    if apids[0] in scenario.offline_cards:
        values["online"] = False
    if keys:
        values["master_keys"] = _inline(keys)
    return values


def _queues(scenario: Scenario) -> Iterator[_Values]:
    """Return a table for each rectangle of queues that differ from their cards in the same way."""
    alike: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    tables: dict[str, _Values] = {}
    for apqn in sorted(_special(scenario)):
        values = _queue(scenario, apqn)
        if values:
            key = str(values)
            alike[key][apqn.apid].append(apqn.apqi)
            tables[key] = values
    for key, rows in alike.items():
        rectangles: dict[Mask, list[int]] = defaultdict(list)
        for apid, apqis in rows.items():
            rectangles[Mask.from_numbers(apqis)].append(apid)
        for domains, apids in rectangles.items():
            if len(apids) == len(domains) == 1:
                yield {"apqn": str(Apqn(apids[0], domains.lowest())), **tables[key]}
            else:
                yield {"adapters": _numbers(Mask.from_numbers(apids)), "domains": _numbers(domains), **tables[key]}


def _special(scenario: Scenario) -> set[Apqn]:
    """Return the queues that may have a word, a key or a setting of their own."""
    found = {*scenario.offline_queues, *scenario.overrides}
    for apid, card in scenario.cards.items():
        found.update(Apqn(apid, apqi) for apqi in (*card.queues, *card.domain_keys, *card.associations))
    return found


def _queue(scenario: Scenario, apqn: Apqn) -> _Values:
    card: CardHardware = scenario.cards[apqn.apid]
    word = card.word(apqn.apqi)
    values: _Values = {}
    if word == 0 != card.hwinfo:
        values["present"] = False
    elif word != card.hwinfo:
        values["tapq"] = _inline(_tapq(card.hwinfo, word))
    if apqn in scenario.offline_queues:
        values["online"] = False
    if apqn in scenario.overrides:
        values["driver_override"] = scenario.overrides[apqn]
    keys = _changed(card.master_keys, card.keys(apqn.apqi))
    if keys:
        values["master_keys"] = _inline(keys)
    if apqn.apqi in card.associations:
        values["secret"] = card.associations[apqn.apqi]
    return values


def _mdev(spec: MdevSpec) -> _Values:
    values: _Values = {"uuid": spec.uuid}
    for name in ("adapters", "domains", "control_domains"):
        if getattr(spec, name):
            values[name] = _numbers(getattr(spec, name))
    return {**values, "guest": True} if spec.guest else values


# -- values ----------------------------------------------------------------------------------------


def _tapq(usual: int, word: int) -> _Values:
    """Return the fields in which a word differs from another one."""
    values = {name: field.get(word) for name, field in FIELDS.items() if field.get(word) != field.get(usual)}
    return {name: _hex(value) if name == "class" else value for name, value in values.items()}


def _inline(values: _Values) -> tomlkit.items.InlineTable:
    table = tomlkit.inline_table()
    table.update(values)
    return table


def _hex(number: int) -> Integer:
    return Integer(number, Trivia(), f"{number:#04x}")


def _runs(mask: Mask) -> Iterator[tuple[int, int]]:
    """Yield the first and the last number of each run."""
    while mask:
        first = mask.lowest()
        gaps = (~mask).after(first)
        last = gaps.lowest() - 1 if gaps else 255
        yield first, last
        mask = mask.after(last)


def _ranges(mask: Mask) -> Iterator[tuple[int, int]]:
    """Yield runs, with short ones taken apart."""
    for first, last in _runs(mask):
        if last - first + 1 < _RANGE_FROM:
            yield from ((number, number) for number in range(first, last + 1))
        else:
            yield first, last


def _numbers(mask: Mask) -> object:
    """Return a number, a range, or an array of both."""
    items = [_hex(first) if first == last else f"{first:#04x}-{last:#04x}" for first, last in _ranges(mask)]
    return items[0] if len(items) == 1 else items


def _mask_text(mask: Mask) -> str:
    """Return what to write to a mask that is all ones: what to take out, or the whole mask if that is shorter."""
    terms = [f"-{first:#04x}" if first == last else f"-{first:#04x}-{last:#04x}" for first, last in _ranges(~mask)]
    relative, absolute = ",".join(terms), mask.hex256()
    return relative if len(relative) <= len(absolute) else absolute

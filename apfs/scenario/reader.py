"""Reading scenarios: TOML text to a `Scenario`, with the line of every mistake."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from apfs.ap.bus_attributes import CONFIG_TIME_MAX, CONFIG_TIME_MIN, POLL_TIMEOUT_MAX_NS
from apfs.ap.hardware import OP_MODES, CardHardware, Environment, MasterKeys, default_serial
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import FACILITIES, FIELDS, Qci, hwinfo_of, with_fields
from apfs.scenario.keys import (
    LAST,
    SECRETS,
    MistakeError,
    Table,
    parse_apqn,
    parse_bool,
    parse_digits,
    parse_driver,
    parse_firmware,
    parse_mask,
    parse_names,
    parse_number,
    parse_number_in,
    parse_numbers,
    parse_one_of,
    parse_text,
    parse_uuid,
)
from apfs.scenario.model import REVISIONS, BusSettings, MdevSpec, Scenario, ScenarioError, Source

if TYPE_CHECKING:
    from collections.abc import Callable

_SYNTAX = re.compile(r"(?P<reason>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)")


def gallery() -> dict[str, str]:
    """Return the texts of the scenarios that come with the package, by name."""
    files = (file for file in resources.files("apfs.scenario.gallery").iterdir() if file.name.endswith(".toml"))
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
    except MistakeError as mistake:
        raise origin.error(mistake.reason, mistake.where) from None


# -- tables ----------------------------------------------------------------------------------------


def _scenario(document: dict[str, Any], source: Source) -> Scenario:
    top = Table(document, ())
    name = top.take("name", parse_text, "unnamed")
    description = top.take("description", parse_text, "")
    revision = top.take("driver", parse_one_of(*REVISIONS), REVISIONS[0])
    environment = top.take("environment", parse_one_of(*get_args(Environment)), "lpar")
    secure_execution = top.take("secure_execution", parse_bool, default=False)
    vfio_ap = top.take("vfio_ap", parse_bool, default=True)
    qci_table, card_tables, queue_tables = top.table("qci"), top.tables("card"), top.tables("queue")
    bus_table, masks, mdev_tables = top.table("bus"), top.table("masks"), top.tables("mdev")
    top.done()
    qci = _qci(qci_table)
    cards: dict[int, CardHardware] = {}
    offline_cards = NONE
    for table in card_tables:
        apids = _cards(table, qci, cards)
        if not table.take("online", parse_bool, default=True):
            offline_cards |= apids
        table.done()
    apmask, aqmask = masks.take("apmask", parse_mask, ALL), masks.take("aqmask", parse_mask, ALL)
    masks.done()
    offline_queues: set[Apqn] = set()
    overrides: dict[Apqn, str] = {}
    for table in queue_tables:
        apqns = _queues(table, qci, cards)
        if not table.take("online", parse_bool, default=True):
            offline_queues.update(apqns)
        override = table.take("driver_override", parse_driver)
        if override and (apmask != ALL or aqmask != ALL):
            reason = "driver_override: queues are given away by mask or by override, not both"
            raise MistakeError(reason, (*table.where, "driver_override"))
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


def _qci(table: Table) -> Qci:
    supported = table.take("supported", parse_bool, default=True)
    facilities = table.take(
        "facilities", parse_names(*FACILITIES), ("APSC", "APXA", "QACT", "RC8A") if supported else ()
    )
    qci = Qci(
        adapters=table.take("adapters", parse_numbers, NONE),
        domains=table.take("domains", parse_numbers, Mask()),
        control_domains=table.take("control_domains", parse_numbers, table.take("domains", parse_numbers, Mask())),
        max_adapter=table.take("max_adapter", parse_number, LAST),
        max_domain=table.take("max_domain", parse_number, LAST),
        facilities=frozenset(facilities),
        supported=supported,
    )
    table.done()
    if facilities and not supported:
        raise MistakeError("facilities: there are none where QCI is not supported", (*table.where, "facilities"))
    last_adapter, last_domain = qci.limits()
    for key, mask, what, last in (
        ("adapters", qci.adapters, "adapter", last_adapter),
        ("domains", qci.domains, "domain", last_domain),
        ("control_domains", qci.control_domains, "domain", last_domain),
    ):
        beyond = mask.after(last)
        if beyond:
            reason = f"{key}: {beyond.lowest()} is above the machine's highest {what}, {last}"
            raise MistakeError(reason, (*table.where, key if table.has(key) else "domains"))
    return qci


def _bus(table: Table, qci: Qci) -> BusSettings:
    settings = BusSettings(
        ap_domain=table.take("ap_domain", parse_number_in(0, qci.limits()[1])),
        config_time=table.take("config_time", parse_number_in(CONFIG_TIME_MIN, CONFIG_TIME_MAX), 30),
        poll_thread=table.take("poll_thread", parse_bool, default=False),
        poll_timeout=table.take("poll_timeout", parse_number_in(0, POLL_TIMEOUT_MAX_NS)),
    )
    table.done()
    return settings


def _tapq(table: Table) -> dict[str, int]:
    def field_value(name: str) -> Callable[[object], int]:
        def parse(value: object) -> int:
            return FIELDS[name].set(0, parse_number(value)) >> FIELDS[name].shift

        return parse

    fields = table.table("tapq")
    values = {name: fields.take(name, field_value(name)) for name in FIELDS}
    fields.done()
    return {name: value for name, value in values.items() if value is not None}


def _master_keys(table: Table) -> Callable[[MasterKeys], MasterKeys]:
    """Return what puts the keys that are given in place of others."""
    keys = table.table("master_keys")
    digits = {"aes": 16, "apka": 16, "asym": 32, "wk": 64}
    given = {name: keys.take(name, parse_digits(count)) for name, count in digits.items() if keys.has(name)}
    for name in digits:
        keys.take(name, parse_text)
    keys.done()
    return lambda others: replace(others, **given)


def _cards(table: Table, qci: Qci, cards: dict[int, CardHardware]) -> Mask:
    key = "adapters" if table.has("adapters") else "adapter"
    apids: Mask = table.need(key, parse_numbers if key == "adapters" else lambda value: Mask.of(parse_number(value)))
    word = with_fields(table.need("type", lambda value: hwinfo_of(parse_text(value))), _tapq(table))
    serial = table.take("serial", parse_text)
    master_keys = _master_keys(table)(MasterKeys())
    configured, checkstopped = (
        table.take("configured", parse_bool, default=True),
        table.take("checkstopped", parse_bool, default=False),
    )
    firmware, api_ordinal = table.take("firmware", parse_firmware, (5, 8)), table.take("api_ordinal", parse_number, 6)
    op_modes = table.take("op_modes", parse_names(*OP_MODES), ("FIPS2009", "FIPS2011"))
    last = qci.limits()[0]
    for apid in apids:
        if apid > last:
            raise MistakeError(f"{key}: {apid} is above the machine's highest adapter, {last}", (*table.where, key))
        if apid in cards:
            raise MistakeError(f"{key}: adapter {apid} is described twice", (*table.where, key))
        cards[apid] = CardHardware(
            word, serial or default_serial(apid), configured, checkstopped, firmware, api_ordinal, op_modes, master_keys
        )
    return apids


def _queues(table: Table, qci: Qci, cards: dict[int, CardHardware]) -> list[Apqn]:
    """Apply a table to the hardware of its queues, which are returned."""
    if table.has("adapters") or table.has("domains"):
        key = "adapters"
        adapters, domains = table.need("adapters", parse_numbers), table.need("domains", parse_numbers)
        apqns = [Apqn(apid, apqi) for apid in adapters for apqi in domains]
    else:
        key = "apqn"
        apqns = [table.need("apqn", parse_apqn)]
    fields, keys = _tapq(table), _master_keys(table)
    present, secret = (
        table.take("present", parse_bool, default=True),
        table.take("secret", parse_number_in(0, SECRETS - 1)),
    )
    for apqn in apqns:
        apid, apqi = apqn
        if apid not in cards or apqi not in qci.domains:
            raise MistakeError(f"{key}: there is no queue {apqn}: no such card or domain", (*table.where, key))
        card = cards[apid]
        # An all-zero word is how the hardware says that there is no such queue.
        word = with_fields(card.word(apqi), fields) if present else 0
        domain_keys = keys(card.keys(apqi))
        if word != card.word(apqi):
            card.queues[apqi] = word
        if domain_keys != card.keys(apqi):
            card.domain_keys[apqi] = domain_keys
        if secret is not None:
            card.associations[apqi] = secret
    return apqns


def _mdevs(tables: list[Table]) -> tuple[MdevSpec, ...]:
    mdevs = []
    for table in tables:
        mdevs.append(
            MdevSpec(
                table.need("uuid", parse_uuid),
                table.take("adapters", parse_numbers, Mask()),
                table.take("domains", parse_numbers, Mask()),
                table.take("control_domains", parse_numbers, Mask()),
                table.take("guest", parse_bool, default=False),
            )
        )
        table.done()
    return tuple(mdevs)

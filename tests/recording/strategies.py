"""Scenarios of every sort, made by Hypothesis, and what sysfs shows of a scenario, worked out the naive way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from apfs.ap.hardware import OP_MODES, CardHardware, MasterKeys, default_serial
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.names import Apqn
from apfs.ap.qinfo import FACILITIES, FIELDS, GENERATIONS, MODES, Qci, hwinfo_of, mode_of
from apfs.host import Host
from apfs.scenario.model import BusSettings, MdevSpec, Scenario, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.ap.hardware import Environment

TYPES = [f"{generation}{mode}" for generation in GENERATIONS for mode in MODES]
NUMBERS = (0, 1, 2, 3, 5, 14, 15, 16, 63, 64, 0x47, 84, 254, 255)
LETTERS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=18)


def masks(last: int = 255, least: int = 0, most: int = 4) -> st.SearchStrategy[Mask]:
    numbers = [number for number in NUMBERS if number <= last]
    return st.lists(st.sampled_from(numbers), min_size=least, max_size=most).map(Mask.from_numbers)


def parts(mask: Mask, least: int = 0) -> st.SearchStrategy[Mask]:
    if not mask:
        return st.just(NONE)
    return st.lists(st.sampled_from(list(mask)), min_size=least, max_size=3).map(Mask.from_numbers)


def rarely(strategy: st.SearchStrategy[Any], usual: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 -- values of any type
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), strategy)


def digits(count: int) -> st.SearchStrategy[str]:
    return st.sampled_from(("", "0" * count, "0123456789abcdef" * (count // 16), "f" * count))


REGISTERS = {
    "cca": tuple(f"{which}{name}" for which in ("", "new_", "old_") for name in ("aes", "apka", "asym")),
    "ep11": ("wk", "new_wk"),
}
_DIGITS = {"aes": 16, "apka": 16, "asym": 32, "wk": 64}


@st.composite
def master_keys(draw: st.DrawFn) -> MasterKeys:
    """Return master keys; new ones may be incomplete."""
    patterns = {
        register: draw(rarely_set(register) if "_" in register else digits(_DIGITS[register]))
        for registers in REGISTERS.values()
        for register in registers
    }
    new = [name for name in _DIGITS if patterns[f"new_{name}"]]
    incomplete = draw(st.sets(st.sampled_from(new))) if new else set[str]()
    return MasterKeys(**patterns, incomplete=frozenset(incomplete))


def rarely_set(register: str) -> st.SearchStrategy[str]:
    """Return the patterns of a register that usually is empty."""
    return rarely(digits(_DIGITS[register.rpartition("_")[2]]), "")


MASTER_KEYS = master_keys()
SETTINGS = st.builds(
    BusSettings,
    config_time=rarely(st.integers(5, 120), 30),
    poll_thread=st.booleans(),
    poll_timeout=rarely(st.sampled_from((0, 1, 250_000, 1_500_000, 120_000_000_000)), None),
)


@st.composite
def words(draw: st.DrawFn, usual: int) -> int:
    """TAPQ words like another one, but for some fields; now and then none at all."""
    if draw(st.integers(0, 9)) == 0:
        return 0
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=3)):
        field = FIELDS[name]
        wanted = st.integers(9, 16) if name == "at" else st.integers(0, (1 << field.width) - 1)
        usual = field.set(usual, draw(wanted))
    return usual


@st.composite
def cards(draw: st.DrawFn, apid: int, domains: Mask) -> CardHardware:
    usual = hwinfo_of(draw(st.sampled_from(TYPES)))
    card = CardHardware(
        draw(rarely(words(usual), usual)),
        draw(rarely(LETTERS, default_serial(apid))),
        draw(rarely(st.booleans(), usual=True)),
        draw(rarely(st.booleans(), usual=False)),
        draw(rarely(st.tuples(st.integers(0, 999), st.integers(0, 999)), (5, 8))),
        draw(rarely(st.integers(0, 255), 6)),
        draw(rarely(st.lists(st.sampled_from(OP_MODES), unique=True).map(tuple), ("FIPS2009", "FIPS2011"))),
        draw(rarely(MASTER_KEYS, MasterKeys())),
    )
    if domains:
        some = st.sampled_from(list(domains))
        queues = draw(rarely(st.dictionaries(some, words(card.hwinfo), max_size=3), {}))
        keys = draw(rarely(st.dictionaries(some, MASTER_KEYS, max_size=3), {}))
        card.queues = {apqi: word for apqi, word in queues.items() if word != card.hwinfo}
        card.domain_keys = {apqi: own for apqi, own in keys.items() if own != card.master_keys}
        card.associations = draw(rarely(st.dictionaries(some, st.integers(0, 65535), max_size=3), {}))
    return card


@st.composite
def configurations(draw: st.DrawFn) -> Qci:
    supported = draw(rarely(st.booleans(), usual=True))
    usual = frozenset(("APSC", "APXA", "QACT", "RC8A"))
    facilities = rarely(st.frozensets(st.sampled_from(FACILITIES)), usual | draw(st.sampled_from(({"APSB"}, set()))))
    qci = Qci(
        max_adapter=draw(rarely(st.sampled_from((0, 5, 63, 254)), 255)),
        max_domain=draw(rarely(st.sampled_from((0, 15, 84)), 255)),
        facilities=draw(facilities) if supported else frozenset(),
        supported=supported,
    )
    last_adapter, last_domain = qci.limits()
    domains = draw(rarely(masks(last_domain), draw(masks(last_domain, least=1))))
    control_domains = draw(st.one_of(st.just(domains), masks(last_domain)))
    adapters = draw(rarely(masks(last_adapter), NONE))
    return replace(qci, adapters=adapters, domains=domains, control_domains=control_domains)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    qci = draw(configurations())
    apids = list(draw(masks(qci.limits()[0], least=draw(st.sampled_from((0, 1, 2))))))
    hardware = {apid: draw(cards(apid, qci.domains)) for apid in apids}
    queues = [Apqn(apid, apqi) for apid in apids for apqi in qci.domains]
    some = st.frozensets(st.sampled_from(queues), max_size=4) if queues else st.just(frozenset())
    given_by = draw(st.sampled_from(("nothing", "masks", "masks", "masks", "overrides")))
    overridden = draw(some) if given_by == "overrides" else frozenset()
    given = st.just(NONE)
    if given_by == "masks":
        given = st.one_of(parts(Mask.from_numbers(apids)), parts(qci.domains), masks(), st.just(ALL))
    environment: Environment = draw(st.sampled_from(("lpar", "zvm", "kvm")))
    settings = draw(rarely(SETTINGS, BusSettings()))
    ap_domain = draw(rarely(st.integers(0, qci.limits()[1]), None))
    scenario = Scenario(
        draw(LETTERS),
        draw(st.text(st.characters(codec="utf-8"), max_size=20)),
        environment=environment,
        secure_execution=draw(st.booleans()),
        vfio_ap=draw(rarely(st.booleans(), usual=True)),
        config_events=environment == "lpar" and draw(st.booleans()),
        qci=replace(qci, adapters=qci.adapters | Mask.from_numbers(apids)),
        cards=hardware,
        offline_cards=draw(rarely(parts(Mask.from_numbers(apids)), NONE)),
        offline_queues=draw(rarely(some, frozenset())),
        overrides={apqn: draw(st.sampled_from(("vfio_ap", "cex4queue", "other"))) for apqn in sorted(overridden)},
        bus=replace(settings, ap_domain=ap_domain),
        apmask=~draw(given),
        aqmask=~draw(given),
    )
    return draw(with_devices(scenario)) if scenario.vfio_ap else scenario


@st.composite
def with_devices(draw: st.DrawFn, scenario: Scenario) -> Scenario:
    """Add mediated devices, as far as the rules of the driver allow."""
    qci = scenario.qci
    free_adapters, free_domains = ~scenario.apmask, ~scenario.aqmask
    adapters = st.one_of(*map(parts, (free_adapters, free_adapters & qci.adapters, qci.adapters)))
    domains = st.one_of(*map(parts, (free_domains, free_domains & qci.domains, qci.domains)))
    if free_adapters & qci.adapters:
        adapters = parts(free_adapters & qci.adapters, least=1)
        domains = parts(qci.domains)
    elif free_domains & qci.domains:
        domains = parts(free_domains & qci.domains, least=1)
        adapters = parts(qci.adapters)
    elif scenario.overrides:
        adapters, domains = (
            parts(Mask.from_numbers(numbers), least=1) for numbers in zip(*scenario.overrides, strict=True)
        )
    for uuid in draw(st.lists(st.uuids(), max_size=3, unique=True)):
        flags = ("guest", "secure_execution", "config_events")
        given = {name: draw(st.booleans()) for name in flags}
        spec = MdevSpec(str(uuid), draw(adapters), draw(domains), draw(masks()), **given)
        for attempt in (spec, replace(spec, adapters=NONE), MdevSpec(str(uuid), NONE, NONE, NONE, guest=spec.guest)):
            candidate = replace(scenario, mdevs=(*scenario.mdevs, attempt))
            try:
                Host(candidate)
            except ScenarioError:
                continue
            scenario = candidate
            break
    return scenario


# -- what sysfs shows -------------------------------------------------------------------------------------------------


def visible(scenario: Scenario, *, bind_states: bool = True) -> dict[str, Any]:
    """Return what sysfs shows of a host that has just been booted from a scenario.

    Without `bind_states` those of queues are left out: a Secure Execution guest changes them, which is not modelled.
    """
    qci, shown = scenario.qci, {}
    for apid, card in scenario.cards.items():
        there = [apqi for apqi in qci.domains if card.word(apqi)]
        at = FIELDS["at"].get(card.word(there[0])) if there else 0
        if 10 <= at <= 14 or (at > 14 and "QACT" in qci.facilities):
            shown[apid] = there
    se_guest = scenario.secure_execution and "APSB" in qci.facilities
    se_modes = ("accel", "ep11")
    modes = {apid: mode_of(scenario.cards[apid].word(there[0])) for apid, there in shown.items()}
    zvm = scenario.environment == "zvm"
    queues = [Apqn(apid, apqi) for apid, there in shown.items() for apqi in there]
    usual_timeout = 1_500_000 if zvm else 250_000
    return {
        "zvm": zvm,
        "se_guest": se_guest and any(mode in se_modes for mode in modes.values()),
        "vfio_ap": scenario.vfio_ap,
        "qci": (
            (qci.adapters, qci.domains, qci.control_domains, qci.limits(), qci.facilities)
            if qci.facilities
            else Mask.from_numbers({apqn.apqi for apqn in queues})
        ),
        "cards": {
            apid: _visible_card(scenario, apid, there, modes[apid], se_guest=se_guest, bind_states=bind_states)
            for apid, there in shown.items()
        },
        "overrides": {apqn: scenario.overrides[apqn] for apqn in queues if apqn in scenario.overrides},
        "masks": (scenario.apmask, scenario.aqmask),
        "bus": (scenario.bus.config_time, zvm and scenario.bus.poll_thread),
        "poll_timeout": usual_timeout if scenario.bus.poll_timeout is None else scenario.bus.poll_timeout,
        "mdevs": [MdevSpec(spec.uuid, spec.adapters, spec.domains, spec.control_domains) for spec in scenario.mdevs],
        "guests": sum(spec.guest for spec in scenario.mdevs),
    }


def _visible_card(
    scenario: Scenario, apid: int, there: list[int], mode: str | None, *, se_guest: bool, bind_states: bool
) -> dict[str, Any]:
    card = scenario.cards[apid]
    first = card.word(there[0])
    usable = card.configured and not card.checkstopped
    online = usable and apid not in scenario.offline_cards

    def of_zcrypt(apqi: int) -> bool:
        reserved = apid in scenario.apmask and apqi in scenario.aqmask
        override = scenario.overrides.get(Apqn(apid, apqi))
        return mode is not None and (override == "cex4queue" if override else reserved)

    def answers(apqi: int) -> bool:
        """Whether a queue takes requests (ap_queue_usable): of a Secure Execution guest bound ones, and none of CCA."""
        return not se_guest or (mode in ("accel", "ep11") and FIELDS["bs"].get(card.word(apqi)) in (0, 1))

    asked = [
        a for a in there if of_zcrypt(a) and online and answers(a) and Apqn(apid, a) not in scenario.offline_queues
    ]
    registers = REGISTERS.get(mode or "", ())
    length = {"cca": 8, "ep11": 16}.get(mode or "", 0)
    look: dict[str, Callable[[int], Any]] = {
        "functions": lambda apqi: card.word(apqi) >> (46 if bind_states else 48),
        "secret": lambda apqi: (
            card.associations.get(apqi)
            if bind_states and se_guest and mode == "ep11" and not FIELDS["bs"].get(card.word(apqi))
            else None
        ),
        "keys": lambda apqi: _visible_keys(card.keys(apqi), registers) if apqi in asked else None,
    }
    return {
        "at, ml, qd": (FIELDS["at"].get(first), FIELDS["ml"].get(first) or 3, FIELDS["qd"].get(first)),
        "queues": {apqi: {what: see(apqi) for what, see in look.items()} for apqi in there},
        "configured": card.configured,
        "checkstopped": card.configured and card.checkstopped,
        "online": online or mode is None,
        "asked": asked,
        "serial": card.serial[:length] if asked else None,
        "ep11": (card.firmware, card.api_ordinal, set(card.op_modes)) if asked and mode == "ep11" else None,
    }


def _visible_keys(keys: MasterKeys, registers: tuple[str, ...]) -> list[object]:
    new = [name.removeprefix("new_") for name in registers if name.startswith("new_")]
    return [*(getattr(keys, name) for name in registers), [name for name in new if name in keys.incomplete]]

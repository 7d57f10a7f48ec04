"""The keys of a scenario: the keys of each table, their types, and their defaults.

This is the only list of keys; both the reader and the writer use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from apfs.ap.bus import CONFIG_TIME_MAX, CONFIG_TIME_MIN, POLL_TIMEOUT_MAX_NS
from apfs.ap.hardware import KEY_DIGITS, OP_MODES, SECRETS, CardHardware, Environment
from apfs.ap.mask import ALL, NONE
from apfs.ap.qinfo import FACILITIES, FIELDS, Qci
from apfs.scenario.model import BusSettings, Scenario
from apfs.scenario.values import (
    ADAPTER,
    APQN,
    CARD_TYPE,
    DEVICE_NUMBER,
    DRIVER,
    FIRMWARE,
    FLAG,
    KERNEL,
    MASK,
    NUMBER,
    NUMBERS,
    SERIAL_START,
    TEXT,
    UUID,
    Hex,
    Kind,
    digits,
    field_of,
    names,
    number_in,
    one_of,
    set_of,
)
from apfs.vfio_ap.migration import REVISIONS

if TYPE_CHECKING:
    from collections.abc import Mapping


class Key(NamedTuple):
    """A key of a table.

    `default` is what holds without it; None if that depends on something else, or if it has to be there. A kind that
    consists of keys is a table inside the table, any part of which may be missing.
    """

    name: str
    kind: Kind | Keys
    default: Any = None


Keys = tuple[Key, ...]

_HOST, _QCI, _CARD, _BUS = Scenario(), Qci(), CardHardware(0, ""), BusSettings()

TOP: Keys = (
    Key("name", TEXT, _HOST.name),
    Key("description", TEXT, _HOST.description),
    Key("serial", SERIAL_START, _HOST.serial),
    Key("kernel", KERNEL, _HOST.kernel),
    Key("driver", one_of(*REVISIONS), _HOST.driver),
    Key("environment", one_of(*get_args(Environment)), _HOST.environment),
    Key("secure_execution", FLAG, _HOST.secure_execution),
    Key("vfio_ap", FLAG, _HOST.vfio_ap),
    Key("config_events", FLAG, _HOST.config_events),
)
QCI: Keys = (
    Key("adapters", NUMBERS, NONE),  # besides those that have a card
    Key("domains", NUMBERS, _QCI.domains),
    Key("control_domains", NUMBERS),  # as domains
    Key("max_adapter", NUMBER, _QCI.max_adapter),
    Key("max_domain", NUMBER, _QCI.max_domain),
    Key("supported", FLAG, _QCI.supported),
    Key("facilities", set_of(*FACILITIES)),  # the usual ones, or none if QCI is not supported
)
TAPQ: Keys = tuple(
    Key(name, field_of(field, Hex if name == "class" else int)) for name, field in FIELDS.items()
)  # as the type or the card has it
_KEYS = {name: count for counts in KEY_DIGITS.values() for name, count in counts.items()}
MASTER_KEYS: Keys = (
    *(
        Key(f"{which}{name}", digits(count))
        for which in ("", "new_", "old_")
        for name, count in _KEYS.items()
        if (which, name) != ("old_", "wk")
    ),
    Key("incomplete", set_of(*_KEYS)),
)
CARD: Keys = (
    Key("adapter", ADAPTER),  # either this or the next
    Key("adapters", NUMBERS),
    Key("type", CARD_TYPE),
    Key("tapq", TAPQ),
    Key("configured", FLAG, _CARD.configured),
    Key("checkstopped", FLAG, _CARD.checkstopped),
    Key("serial", TEXT),  # made of the number of the adapter
    Key("firmware", FIRMWARE, _CARD.firmware),
    Key("api_ordinal", NUMBER, _CARD.api_ordinal),
    Key("op_modes", names(*OP_MODES), _CARD.op_modes),
    Key("online", FLAG, default=True),
    Key("master_keys", MASTER_KEYS),
)
QUEUE: Keys = (
    Key("apqn", APQN),  # either this or the next two
    Key("adapters", NUMBERS),
    Key("domains", NUMBERS),
    Key("present", FLAG, default=True),
    Key("tapq", TAPQ),
    Key("online", FLAG, default=True),
    Key("driver_override", DRIVER),  # none
    Key("master_keys", MASTER_KEYS),
    Key("secret", number_in(0, SECRETS - 1)),  # none
)
BUS: Keys = (
    Key("ap_domain", DEVICE_NUMBER),  # what the bus chooses
    Key("config_time", number_in(CONFIG_TIME_MIN, CONFIG_TIME_MAX), _BUS.config_time),
    Key("poll_thread", FLAG, _BUS.poll_thread),
    Key("poll_timeout", number_in(0, POLL_TIMEOUT_MAX_NS)),  # depends on the environment
)
MASKS: Keys = (
    Key("apmask", MASK, ALL),
    Key("aqmask", MASK, ALL),
)
MDEV: Keys = (
    Key("uuid", UUID),
    Key("adapters", NUMBERS, NONE),
    Key("domains", NUMBERS, NONE),
    Key("control_domains", NUMBERS, NONE),
    Key("guest", FLAG, default=False),
    Key("secure_execution", FLAG, default=False),
    Key("config_events", FLAG, default=False),
)


def spell(keys: Keys, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what TOML has to say of some values: in the order of the keys, without those that are defaults."""
    found = {}
    for key in keys:
        value = values.get(key.name)
        if value is not None and value != key.default:
            spelled = key.kind.spell(value) if isinstance(key.kind, Kind) else spell(key.kind, value)
            if spelled != {}:
                found[key.name] = spelled
    return found

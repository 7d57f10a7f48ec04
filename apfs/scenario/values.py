"""The types of values in scenarios: how to read them from TOML, and how to write them.

Reading a value raises `ValueError`, which says what is wrong with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from apfs.ap.mask import ALL, Mask, ap_parse_bitmap_str
from apfs.ap.names import Apqn
from apfs.ap.qinfo import hwinfo_of, nearest_type
from apfs.errors import KernelError
from apfs.kernel.profile import FeatureError, Profile
from apfs.kernel.uuid import is_uuid
from apfs.scenario.limits import MOST_ITEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.ap.qinfo import Field

LAST = 255
_RANGE = re.compile(r"(?P<first>0x[0-9a-fA-F]{1,20}|\d{1,20})(?:-(?P<last>0x[0-9a-fA-F]{1,20}|\d{1,20}))?", re.ASCII)
_LONG = 64
"""From how many bits on numbers are shown in hex: Python makes no decimal digits of very long ones."""
_RANGE_FROM = 3  # two neighbours are shorter as two numbers


class Hex(int):
    """A number that is written in hex."""


class PartError(ValueError):
    """Something wrong with one key of a value that is a table."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(why)
        self.part = part


class Kind(NamedTuple):
    """A kind of value.

    `parse` makes of what TOML has what a scenario has. `spell` goes the other way, to strings, truth values, numbers
    and lists, with `Hex` among the numbers.
    """

    parse: Callable[[Any], Any]
    spell: Callable[[Any], object]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, not {value!r}")  # noqa: TRY004 -- what is wrong is told, not raised
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r}")  # noqa: TRY004 -- what is wrong is told, not raised
    return value


TEXT = Kind(_text, str)
FLAG = Kind(_flag, bool)


def one_of(*choices: str) -> Kind:
    """Return the kind that is one of these words."""

    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return Kind(parse, str)


def names(*choices: str) -> Kind:
    """Return the kind that is an array of these words, in any order: a tuple."""
    one = one_of(*choices)

    def parse(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected an array of names, not {value!r}")  # noqa: TRY004
        return tuple(map(one.parse, value))

    return Kind(parse, list)


def set_of(*choices: str) -> Kind:
    """Return the kind that is an array of these words, whose order does not matter: a set."""
    array = names(*choices)
    return Kind(
        lambda value: frozenset(array.parse(value)), lambda value: [choice for choice in choices if choice in value]
    )


# -- numbers ---------------------------------------------------------------------------------------


def number_in(first: int, last: int, spell: Callable[[int], object] = int) -> Kind:
    """Return the kind that is a number in first..last."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not first <= value <= last:
            shown = hex(value) if isinstance(value, int) and value.bit_length() > _LONG else repr(value)
            raise ValueError(f"expected a number in {first}..{last}, not {shown}")
        return value

    return Kind(parse, spell)


NUMBER = number_in(0, LAST)
DEVICE_NUMBER = number_in(0, LAST, Hex)
"""The number of an adapter or a domain."""


def field_of(field: Field, spell: Callable[[int], object]) -> Kind:
    """Return the kind that is the value of a field of the TAPQ word."""

    def parse(value: object) -> int:
        return field.get(field.set(0, NUMBER.parse(value)))

    return Kind(parse, spell)


def _numbers(value: object) -> Mask:
    found: list[int] = []
    if isinstance(value, list) and len(value) > MOST_ITEMS:
        raise ValueError(f"expected at most {MOST_ITEMS} numbers and ranges, not {len(value)}")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            match = _RANGE.fullmatch(item)
            if not match:
                raise ValueError(f"expected a number or a range such as '0x10-0x1f', not {item!r}")
            first = NUMBER.parse(int(match["first"], 0))
            last = NUMBER.parse(int(match["last"], 0)) if match["last"] else first
            if first > last:
                raise ValueError(f"range {item!r} ends before it starts")
            found += range(first, last + 1)
        else:
            found.append(NUMBER.parse(item))
    return Mask.from_numbers(found)


def _runs(mask: Mask) -> Iterator[tuple[int, int]]:
    """Yield first and last numbers of runs, with short runs taken apart."""
    for first, last in mask.runs():
        if last - first + 1 < _RANGE_FROM:
            yield from ((number, number) for number in range(first, last + 1))
        else:
            yield first, last


def _spell_numbers(mask: Mask) -> object:
    items = [Hex(first) if first == last else f"{first:#04x}-{last:#04x}" for first, last in _runs(mask)]
    return items[0] if len(items) == 1 else items


NUMBERS = Kind(_numbers, _spell_numbers)
"""A number, a range such as `"0-255"`, or an array of both: a mask."""


def _mask(value: object) -> Mask:
    try:
        return ap_parse_bitmap_str(_text(value), ALL)
    except KernelError as error:
        raise ValueError(error.why) from None


def _spell_mask(mask: Mask) -> str:
    terms = [f"-{first:#04x}" if first == last else f"-{first:#04x}-{last:#04x}" for first, last in _runs(~mask)]
    relative, absolute = ",".join(terms), mask.hex256()
    return relative if len(relative) <= len(absolute) else absolute


MASK = Kind(_mask, _spell_mask)
"""What is written to `apmask` while it is all ones: what to take out, or the whole mask if that is shorter."""


# -- devices ---------------------------------------------------------------------------------------


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
    if not is_uuid(_text(value)):
        raise ValueError(f"not a UUID: {value!r}")
    return str(value).lower()


def _firmware(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", _text(value), re.ASCII)
    if not found:
        raise ValueError(f"expected a version such as '5.8', not {value!r}")
    return int(found[1]), int(found[2])


def digits(count: int) -> Kind:
    """Return the kind that is exactly that many hex digits, or none at all."""

    def parse(value: object) -> str:
        if not re.fullmatch(rf"([0-9a-f]{{{count}}})?", _text(value)):
            raise ValueError(f"expected {count} lower-case hex digits, or '' if no key is set, not {value!r}")
        return str(value)

    return Kind(parse, str)


def _serial_start(value: object) -> str:
    if not re.fullmatch(r"[0-9A-Z]{4}", _text(value), re.ASCII):
        raise ValueError(f"expected four digits or capital letters such as '0007', not {value!r}")
    return str(value)


def _kernel(value: object) -> Profile:
    if isinstance(value, str):
        return Profile.of(value)
    if not isinstance(value, dict) or not isinstance(value.get("version"), str):
        wanted = "a release such as '6.12', or a table with version and features"
        raise ValueError(f"expected {wanted}, not {value!r}")  # noqa: TRY004 -- what is wrong is told, not raised
    try:
        return Profile.of(value["version"], {name: choice for name, choice in value.items() if name != "version"})
    except FeatureError as error:
        raise PartError(error.feature, str(error)) from None
    except ValueError as error:
        raise PartError("version", str(error)) from None


def _spell_kernel(kernel: Profile) -> object:
    changes = kernel.changes()
    return {"version": kernel.version, **changes} if changes else kernel.version


KERNEL = Kind(_kernel, _spell_kernel)
"""A release of Linux, or a table with its `version` and features of others."""
SERIAL_START = Kind(_serial_start, str)
APQN = Kind(_apqn, str)
DRIVER = Kind(_driver, str)
UUID = Kind(_uuid, str)
FIRMWARE = Kind(_firmware, lambda version: ".".join(map(str, version)))
CARD_TYPE = Kind(lambda value: hwinfo_of(_text(value)), nearest_type)
"""A card type such as `CEX8C`: its usual TAPQ word."""
ADAPTER = Kind(lambda value: Mask.of(NUMBER.parse(value)), lambda mask: Hex(mask.lowest()))
"""The number of an adapter: a mask with one member."""

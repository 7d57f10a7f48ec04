"""The values of a scenario's keys: how each is read, and what is wrong with it if it cannot be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from apfs.ap.mask import ALL, Mask, ap_parse_bitmap_str
from apfs.ap.names import Apqn
from apfs.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.scenario.model import Where

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RANGE = re.compile(r"(?P<first>0x[0-9a-fA-F]+|\d+)(?:-(?P<last>0x[0-9a-fA-F]+|\d+))?", re.ASCII)
LAST = 255
SECRETS = 65536


class MistakeError(Exception):
    """A wrong value, by the path of keys that leads to it."""

    def __init__(self, reason: str, where: Where) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


class Table:
    """A table of the document whose keys are taken one after the other; what is left over is unknown."""

    def __init__(self, values: object, where: Where) -> None:
        if not isinstance(values, dict):
            raise MistakeError(f"{dotted(where)} must be a table", where)
        self._values: dict[str, Any] = dict(values)
        self._taken: set[str] = set()
        self.where = where

    def has(self, key: str) -> bool:
        """Whether the table has a key."""
        return key in self._values

    def take(self, key: str, parse: Callable[[Any], Any], default: Any = None) -> Any:  # noqa: ANN401 -- any TOML value
        """Return a value; `parse` turns what TOML has into what the scenario has, or raises `ValueError`."""
        self._taken.add(key)
        if key not in self._values:
            return default
        try:
            return parse(self._values[key])
        except ValueError as error:
            raise MistakeError(f"{key}: {error}", (*self.where, key)) from None

    def need(self, key: str, parse: Callable[[Any], Any]) -> Any:  # noqa: ANN401 -- any TOML value
        """Return a value as `take` does; without it the scenario is wrong."""
        if key not in self._values:
            raise MistakeError(f"{key} is missing", self.where)
        return self.take(key, parse)

    def tables(self, key: str) -> list[Table]:
        """Return the tables of an array of tables."""
        self._taken.add(key)
        items = self._values.get(key, [])
        if not isinstance(items, list):
            raise MistakeError(f"{key} must be an array of tables: write [[{key}]]", (*self.where, key))
        return [Table(item, (*self.where, key, index)) for index, item in enumerate(items)]

    def table(self, key: str) -> Table:
        """Return the table of that name; an empty one if there is none."""
        self._taken.add(key)
        return Table(self._values.get(key, {}), (*self.where, key))

    def done(self) -> None:
        """Refuse what nobody took."""
        for key in self._values:
            if key not in self._taken:
                known = ", ".join(sorted(self._taken))
                raise MistakeError(f"unknown key {key!r}: known here are {known}", (*self.where, key))


def dotted(where: Where) -> str:
    """Return a path of keys for a message."""
    return ".".join(map(str, where)) or "the scenario"


# -- values: what TOML has into what the scenario has, or ValueError -------------------------------


def parse_text(value: object) -> str:
    """Parse a string."""
    if not isinstance(value, str):
        raise ValueError(f"expected a string, not {value!r}")  # noqa: TRY004 -- becomes a MistakeError
    return value


def parse_bool(value: object) -> bool:
    """Parse a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r}")  # noqa: TRY004 -- becomes a MistakeError
    return value


def parse_one_of(*choices: str) -> Callable[[object], str]:
    """Return the parser of one of these words."""

    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return parse


def parse_number_in(first: int, last: int) -> Callable[[object], int]:
    """Return the parser of a number in first..last."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not first <= value <= last:
            raise ValueError(f"expected a number in {first}..{last}, not {value!r}")
        return value

    return parse


parse_number = parse_number_in(0, LAST)


def parse_numbers(value: object) -> Mask:
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
            numbers += [parse_number(first), *range(first + 1, parse_number(last) + 1)]
        else:
            numbers.append(parse_number(item))
    return Mask.from_numbers(numbers)


def parse_mask(value: object) -> Mask:
    """Parse the text of a mask, as `apmask` takes it."""
    try:
        return ap_parse_bitmap_str(parse_text(value), ALL)
    except KernelError as error:
        raise ValueError(error.why) from None


def parse_names(*choices: str) -> Callable[[object], tuple[str, ...]]:
    """Return the parser of an array of these words."""

    def parse(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected an array of names, not {value!r}")  # noqa: TRY004
        return tuple(map(parse_one_of(*choices), value))

    return parse


def parse_firmware(value: object) -> tuple[int, int]:
    """Parse a version such as `5.8`."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", parse_text(value), re.ASCII)
    if not found:
        raise ValueError(f"expected a version such as '5.8', not {value!r}")
    return int(found[1]), int(found[2])


def parse_digits(count: int) -> Callable[[object], str]:
    """Return the parser of exactly that many hex digits, or none at all."""

    def parse(value: object) -> str:
        if not re.fullmatch(rf"([0-9a-f]{{{count}}})?", parse_text(value)):
            raise ValueError(f"expected {count} lower-case hex digits, or '' if no key is set, not {value!r}")
        return str(value)

    return parse


def parse_apqn(value: object) -> Apqn:
    """Parse the name of a queue."""
    apqn = Apqn.parse(parse_text(value))
    if apqn is None:
        raise ValueError(f"expected a queue such as '05.00ab', not {value!r}")
    return apqn


def parse_driver(value: object) -> str:
    """Parse the name of a driver."""
    if not re.fullmatch(r"[^\0\n]{1,64}", parse_text(value)):
        raise ValueError(f"expected the name of a driver, not {value!r}")
    return str(value)


def parse_uuid(value: object) -> str:
    """Parse a UUID, in either case."""
    if not _UUID.fullmatch(parse_text(value)):
        raise ValueError(f"not a UUID: {value!r}")
    return str(value).lower()

"""Texts of scenarios: made from the tables of keys, in all the notations that TOML has, and with mistakes in them.

What a key takes is found out by asking its kind: of a pool of values those that it parses are meant for it, and all
others are wrong. So keys that are added are fuzzed without a change here.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from apfs.scenario import keys
from apfs.scenario.reader import gallery
from apfs.scenario.values import Kind
from tests.fuzz.hosts import HOSTS
from tests.fuzz.inputs import damaged
from tests.hosts import M1, M2, M3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from apfs.scenario.keys import Key, Keys

TABLES: dict[str, Keys] = {
    "": keys.TOP,
    "qci": keys.QCI,
    "card": keys.CARD,
    "queue": keys.QUEUE,
    "bus": keys.BUS,
    "masks": keys.MASKS,
    "mdev": keys.MDEV,
}
ARRAYS = ("card", "queue", "mdev")
NUMBERS = (4, 5, 6, 9, 14, 15, 0x47, 255)
POOL: tuple[Any, ...] = (
    *("", "n", "a'b", 'say "no" \\', "caf\u00e9", "\u2028\u0085", "\x1b[2J\x07", 'q"', "q''"),
    *("\U0001f600" * 3, "x" * 5000, "\ufeff", "x\n", M1, M2.upper(), M3),
    *("CEX8C", "CEX7P", "CEX5A", "CEX9Q", "v2", "v4", "next", "none", "lpar", "zvm", "kvm", "6.8", "7.2", "5.14"),
    *("0-255", "4-9", "0x4-0x6", "9-8", "0 - 5", "04", "05.0004", "06.0009", "ff.ffff", "5.8", "99.999", "A007"),
    *("-5-6", "-4,-9", "0x0", "0x" + "f" * 64, "0x" + "f" * 65, "+5", "vfio_ap", "cex4queue"),
    *("0123456789abcdef" * times for times in (1, 2, 4)),
    *(*NUMBERS, 0, 1, 2, 3, 7, 12, 63, 64, 256, -1, 250_000, 2**31, 2**63, 2**64, 10**30, 10**300),
    *(True, False, 1.5, -0.0, float("inf"), float("nan"), 1e308),
    *(dt.datetime(1979, 5, 27, tzinfo=dt.UTC), dt.date(1979, 5, 27), dt.time(7, 32)),
    *([], [4], [5, 6], [0x47, "4-9"], ["0-255"], [[4]], [True], [1.5], [{}], [256], ["4-9"] * 300, [[[[[[[[]]]]]]]]),
    *(["APXA", "QACT"], ["APSC", "APXA", "QACT", "RC8A", "APSB"], ["FIPS2009", "BSI2009"], ["aes"], ["wk", "aes"]),
    *({}, {"version": "6.8"}, {"version": "6.1", "irqs": 1}, {"version": "5.14", "colour": True}, {"irqs": 2}),
    *({"a": {"b": {"c": [{"d": 1}]}}}, {"": 1}, {"class": 0x40}, {"aes": "0123456789abcdef"}),
)
"""What may stand behind a key."""
UNKNOWN = ("colour", "adaptors", "", "\u00e9", "\x1b[2J", "a.b", "name", "domains", "type", "x" * 3000, "key")
"""Names of keys that a table may not have."""
_LONG = 100
"""Characters from which on a text is not written with escapes only."""
_ODD = (
    "\0",
    "\x07",
    "\x1b",
    "\x7f",
    "\r",
    "\t",
    "\u2028",
    "\ufeff",
    "\u00a0",
    '"',
    "'",
    '"""',
    "'''",
    "[",
    "]",
    "{",
    "}",
)
_RAW = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\0", b"\xef\xbb\xbf", b"\xfe\xff\0a", b"\x80")


class Text(NamedTuple):
    """A text, and what is known of it."""

    data: bytes
    line: int = 0
    """The line on which its only mistake is, provided that there would be none without it; 0 if that is not known."""
    base: bytes = b""
    """The text without that mistake."""


@dataclass
class Table:
    """A table of a document."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)


@cache
def accepted(key: Key) -> tuple[Any, ...]:
    """Return the values of the pool that a key takes, and its default."""
    if not isinstance(key.kind, Kind):
        return ()
    found = [value for value in POOL if _parses(key.kind, value)]
    return (*found, _plain(key.kind.spell(key.default))) if key.default is not None else tuple(found)


def wrong(key: Key) -> list[Any]:
    """Return the values of the pool that a key does not take."""
    if isinstance(key.kind, Kind):
        return [value for value in POOL if not _parses(key.kind, value)]
    return [value for value in POOL if not isinstance(value, dict)]


def inside(key: Key) -> Keys:
    """Return the keys of a table that is a value."""
    return () if isinstance(key.kind, Kind) else key.kind


def _parses(kind: Kind, value: object) -> bool:
    try:
        kind.parse(value)
    except ValueError:
        return False
    return True


def _plain(value: object) -> object:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


# -- documents that are right, or nearly so ---------------------------------------------------------------------------


def some(table: Keys, random: Random, *without: str) -> dict[str, Any]:
    """Return values for a few keys of a table."""
    found: dict[str, Any] = {}
    for key in random.sample(table, random.choice((0, 0, 1, 1, 2, 4)) if len(table) > 3 else len(table)):
        if key.name in without:
            continue
        if isinstance(key.kind, Kind):
            found[key.name] = random.choice(accepted(key))
        else:
            found[key.name] = some(key.kind, random)
    return found


def document(random: Random) -> list[Table]:
    """Return the tables of a host whose parts go with each other most often."""
    domains = random.sample(NUMBERS, random.randrange(1, 5))
    adapters = random.sample(NUMBERS, random.randrange(4))
    kept = random.sample(adapters, random.randrange(len(adapters) + 1))
    free = [number for number in adapters if number not in kept]
    qci = {"domains": domains, **(some(keys.QCI, random, "domains") if random.random() < 0.2 else {})}
    tables = [Table("", some(keys.TOP, random)), Table("qci", qci)]
    for adapter in adapters:
        rest = some(keys.CARD, random, "adapter", "adapters", "type")
        tables.append(Table("card", {"adapter": adapter, "type": random.choice(("CEX8C", "CEX7P", "CEX5A")), **rest}))
    overrides = random.random() < 0.2
    for _ in range(random.randrange(3) if adapters else 0):
        rest = some(keys.QUEUE, random, "apqn", "adapters", "domains", *(() if overrides else ("driver_override",)))
        place: dict[str, Any] = {
            "adapters": random.choice((adapters, adapters[0])),
            "domains": random.choice((domains, domains[0])),
        }
        if random.random() < 0.5:
            place = {"apqn": f"{random.choice(adapters):02x}.{random.choice(domains):04x}"}
        tables.append(Table("queue", {**place, **rest}))
    if random.random() < 0.3:
        tables.append(Table("bus", some(keys.BUS, random, "ap_domain")))
    if free and not overrides:
        tables.append(Table("masks", {"apmask": ",".join(f"-{number}" for number in free)}))
        for uuid in random.sample((M1, M2, M3), min(len(free), random.randrange(3))):
            rest = some(keys.MDEV, random, "uuid", "adapters", "domains")
            adapter = free.pop() if random.random() < 0.9 else random.choice(NUMBERS)
            tables.append(Table("mdev", {"uuid": uuid, "adapters": [adapter], "domains": domains, **rest}))
    return tables


# -- as TOML ----------------------------------------------------------------------------------------------------------


def notation(value: Any, random: Random, *, flat: bool = False) -> str:  # noqa: ANN401, PLR0911 -- one for each sort
    """Return a value in one of the ways to write it; on one line if it is to be flat."""
    match value:
        case bool():
            return str(value).lower()
        case int() if 0 <= value < 2**64:
            return random.choice(("{}", "{}", "{:#x}", "{:#o}", "{:#b}", "+{}", "0x{:04X}", "{:_}")).format(value)
        case float():
            return random.choice((repr(value), f"{value:+}", f"{value:.3e}"))
        case int():
            return str(value)
        case str():
            return _string(value, random, flat=flat)
        case list():
            line = "" if flat else random.choice(("", "", "\n  ", " # [\n", "\n\n"))
            items = f",{line or ' '}".join(notation(item, random, flat=flat) for item in value)
            return f"[{line}{items}{random.choice(('', ',')) if value else ''}{line}]"
        case dict():
            items = ", ".join(
                f"{bare(name, random)} = {notation(one, random, flat=True)}" for name, one in value.items()
            )
            return f"{{ {items} }}"
        case _:
            return str(value).replace(" ", random.choice("T t"), 1) + random.choice(("", ".123456789"))


def _string(value: str, random: Random, *, flat: bool) -> str:
    # What JSON escapes TOML does, too, but for DEL.
    basic = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    how = random.random()
    if value.isprintable() and how < 0.4:
        quotes = random.choice(("'", "'''"))
        if quotes not in value and (len(quotes) == 3 or "'" not in value):
            return f"{quotes}{value}{quotes}"
    if how < 0.5 and len(value) < _LONG:
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    if how < 0.6 and '"""' not in value and "\\" not in basic.replace('\\"', ""):
        return f'"""{value}"""'
    return f'"""\n{basic[1:-1]}"""' if how < 0.7 and not flat else basic


def bare(name: str, random: Random) -> str:
    """Return the name of a key, with quotes where it needs some, and now and then where it does not."""
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain and random.random() < 0.9 else json.dumps(name, ensure_ascii=False)


class Writer:
    """Makes a text of tables, and remembers on which line each key is."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._lines: list[str] = []
        self.places: dict[tuple[int, str], int] = {}
        """Lines by the number of the table and the key."""

    def write(self, tables: list[Table]) -> str:
        """Return the text. Some tables have no header: they are values, or parts of keys."""
        random = self._random
        above = [
            number
            for number, table in enumerate(tables)
            if not table.name or (table.name not in ARRAYS and random.random() < 0.1)
        ]
        for number in above:
            self._above(number, tables[number])
        rest = [number for number in range(len(tables)) if number not in above]
        if random.random() < 0.3:
            random.shuffle(rest)
        for number in rest:
            self._below(number, tables[number])
        return "\n".join(self._lines) + random.choice(("", "\n", "\n# end"))

    def _add(self, line: str) -> None:
        self._lines += line.split("\n")

    def _place(self, number: int, *names: str) -> None:
        self.places.update(dict.fromkeys(((number, name) for name in names), len(self._lines) + 1))

    def _above(self, number: int, table: Table) -> None:
        if table.name and self._random.random() < 0.5:
            self._place(number, *table.values)
            self._add(f"{bare(table.name, self._random)} = {notation(table.values, self._random)}")
        else:
            self._keys(number, table.values, f"{bare(table.name, self._random)}." if table.name else "")

    def _below(self, number: int, table: Table) -> None:
        random = self._random
        name = bare(table.name, random)
        self._add(random.choice(("", "", "\n", "# [x]\n")) + (f"[[{name}]]" if table.name in ARRAYS else f"[{name}]"))
        last = {key for key, value in table.values.items() if isinstance(value, dict) and random.random() < 0.3}
        self._keys(number, {key: value for key, value in table.values.items() if key not in last})
        for key in last:
            self._place(number, key)
            self._add(f"[{name}.{bare(key, random)}]")
            self._keys(None, table.values[key])

    def _keys(self, number: int | None, values: dict[str, Any], before: str = "") -> None:
        """Write a line for each value, or one for each part of it."""
        random = self._random
        for key, value in values.items():
            if number is not None:
                self._place(number, key)
            name = before + bare(key, random)
            if isinstance(value, dict) and value and random.random() < 0.2:
                self._keys(None, value, f"{name}{random.choice(('.', ' . '))}")
            else:
                end = random.choice(("", "", "  # x", "\t"))
                self._add(f"{random.choice(('', '', '  '))}{name} = {notation(value, random)}{end}")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def _wrong_value(tables: list[Table], random: Random) -> tuple[int, str] | None:
    """Give a key what it does not take; return which."""
    number = random.randrange(len(tables))
    table = tables[number]
    key = random.choice(TABLES.get(table.name, keys.TOP))
    table.values[key.name] = random.choice(wrong(key))
    # Whether there is an adapter or adapters, for instance, is looked at before their values.
    return (number, key.name) if key.name not in ("adapter", "adapters", "domains", "apqn", "uuid", "type") else None


def _unknown_key(tables: list[Table], random: Random) -> tuple[int, str] | None:
    """Give a table a key that it may not have; return which."""
    number, name = random.randrange(len(tables)), random.choice(UNKNOWN)
    table = tables[number]
    table.values[name] = random.choice(POOL)
    return (number, name) if name not in {key.name for key in TABLES.get(table.name, keys.TOP)} else None


def _lost_key(tables: list[Table], random: Random) -> None:
    table = random.choice(tables)
    if table.values:
        del table.values[random.choice(tuple(table.values))]


def _other_table(tables: list[Table], random: Random) -> None:
    random.choice(tables).name = random.choice((*TABLES, "colour", "qci.domains", "card.tapq", "masks.apmask.x"))


def _moved(tables: list[Table], random: Random) -> None:
    """Put a table where another one was, so that some come twice and in any order."""
    tables[random.randrange(len(tables))] = random.choice(tables)


def structured(random: Random) -> Text:
    """Return a document, with a mistake or without one."""
    tables = document(random)
    if random.random() < 0.5:
        return _one_mistake(tables, random)
    for _ in range(random.randrange(1, 4)):
        random.choice((_wrong_value, _unknown_key, _lost_key, _other_table, _moved))(tables, random)
    return Text(Writer(random).write(tables).encode())


def _one_mistake(tables: list[Table], random: Random) -> Text:
    """Return a document with one wrong value whose line is known, or with nothing wrong."""
    base = Writer(random).write(tables).encode()
    where = random.choice((_wrong_value, _wrong_value, _unknown_key))(tables, random) if random.random() < 0.6 else None
    writer = Writer(random)
    text = writer.write(tables).encode()
    return Text(text, writer.places[where], base) if where else Text(text)


def lines(random: Random) -> Text:
    """Return the text of an existing scenario with lines lost, doubled, swapped, or with other values."""
    found = random.choice((*_texts(), *HOSTS)).split("\n")
    for _ in range(random.randrange(1, 4)):
        place, other = random.randrange(len(found)), random.randrange(len(found))
        match random.randrange(5):
            case 0:
                del found[place : place + random.choice((1, 1, 5))]
                found = found or [""]
            case 1:
                found.insert(other, found[place])
            case 2:
                found[place], found[other] = found[other], found[place]
            case 3:
                name, _, _ = found[place].partition("=")
                found[place] = f"{name}= {notation(random.choice(POOL), random)}"
            case _:
                cut = random.randrange(len(found[place]) + 1)
                found[place] = found[place][:cut] + random.choice(_ODD) + found[place][cut:]
    return Text("\n".join(found).encode())


@cache
def _texts() -> tuple[str, ...]:
    return tuple(text for name, text in gallery().items() if name != "largest")


def pieces(random: Random) -> Iterator[bytes]:
    """Yield what texts consist of, in no order."""
    for _ in range(random.randrange(12)):
        match random.randrange(5):
            case 0:
                yield f"[{random.choice((*TABLES, 'x.y'))}]\n".encode()
            case 1:
                yield f"[[{random.choice((*TABLES, 'x.y'))}]]\n".encode()
            case 2:
                key = random.choice(TABLES[random.choice(tuple(TABLES))])
                yield f"{key.name} = {notation(random.choice(POOL), random)}\n".encode()
            case 3:
                yield random.choice(_ODD).encode()
            case _:
                yield random.choice(_RAW)


def text(random: Random) -> Text:
    """Return a text: most often one that has structure, and now and then any bytes at all."""
    how = random.random()
    if how < 0.6:
        return structured(random)
    if how < 0.75:
        return lines(random)
    if how < 0.85:
        return Text(damaged(structured(random).data, random))
    if how < 0.9:
        data = structured(random).data
        return Text(
            data[: random.randrange(len(data) + 1)] + random.choice((b"", *_RAW, *(odd.encode() for odd in _ODD)))
        )
    if how < 0.97:
        return Text(b"".join(pieces(random)))
    return Text(random.randbytes(random.choice((1, 7, 60, 4000))))

"""What is written: texts that a file understands, such texts with mistakes in them, and any bytes at all."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from apfs.ctl.console import VERBS
from tests.hosts import M1, M2, M3, mask_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ADAPTERS = (0, 1, 5, 6, 7, 63, 64, 200, 255)
DOMAINS = (0, 4, 9, 0x47, 0xAB, 200, 255)
UUIDS = (M1, M2, M3)
MASK_FILES = ("apmask", "aqmask", "admask", "ioctlmask")

_EDGES = (0, 1, 4, 5, 6, 7, 8, 63, 64, 120, 121, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**32 + 5)
_HUGE = (2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 5, 10**40)
_BASES = ("{}", "{:#x}", "0{:o}", "+{}", "0X{:X}", "-{}", " {}", "{} ", "0x{:016x}", "{:08d}")
_ODD = (
    *(b"", b"\n", b"\0", b"\0001", b"1\0junk", b" ", b"\t1", b"1\n\n", b"0x", b"-", b"+", b",", b",,", b"off", b"on"),
    *(b"y", b"n", b"\xff", b"\xa05", b"\xb2", "\u0665".encode(), b"%s%n", b"../..", b"/", b".", b"..", b"None", b"nan"),
    *(b"{}", b"[]", b"null", b"1e3", b"1_0", b"0b1", b"0o7", b"\x85", b"\r\n", b"\x1b[2J", b"1" * 4096, b"1" * 4097),
)
_STATES = ("ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P")
_ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")


def number(random: Random) -> str:
    """Return a number in some notation, most often a small one."""
    choice = random.random()
    if choice < 0.6:
        value = random.choice((*ADAPTERS, *DOMAINS))
    elif choice < 0.9:
        value = random.choice(_EDGES)
    else:
        value = random.choice(_HUGE)
    return random.choice(_BASES if random.random() < 0.3 else _BASES[:3]).format(value)


def truth(random: Random) -> str:
    """Return a truth value."""
    return random.choice(("0", "1", "y", "N", "on", "off", "t", "F", "Of", "o"))


def mask(random: Random) -> str:
    """Return a mask, whole or as changes."""
    if random.random() < 0.5:
        return mask_text(set(random.choices(range(256), k=random.randrange(8))))[: random.choice((66, 66, 66, 5, 67))]
    terms = []
    for _ in range(random.randrange(1, 4)):
        term = random.choice("+-") + number(random).strip("+- ")
        terms.append(f"{term}-{number(random).strip('+- ')}" if random.random() < 0.3 else term)
    return ",".join(terms)


def ap_config(random: Random) -> str:
    """Return the three masks of a mediated device."""
    pools = (ADAPTERS[:5], DOMAINS, DOMAINS)
    return ",".join(mask_text(random.sample(pool, random.randrange(len(pool)))) for pool in pools)


def apqn(random: Random) -> str:
    """Return the name of a queue."""
    return f"{random.choice(ADAPTERS):02x}.{random.choice(DOMAINS):04x}"


def device(random: Random) -> str:
    """Return the name of a card, queue, or mediated device."""
    return random.choice((apqn(random), f"card{random.choice(ADAPTERS):02x}", random.choice(UUIDS), "matrix"))


def uuid(random: Random) -> str:
    """Return a UUID, now and then in capitals."""
    text = random.choice(UUIDS)
    return text.upper() if random.random() < 0.1 else text


def uevent(random: Random) -> str:
    """Return what is written to uevent: an action, a UUID, keys."""
    keys = (f"{random.choice(('A', 'B1', 'Z'))}={random.choice('xyz0')}" for _ in range(random.randrange(4)))
    return " ".join((random.choice(_ACTIONS), *([uuid(random), *keys] if random.random() < 0.5 else [])))


def driver_name(random: Random) -> str:
    """Return the name of a driver."""
    return random.choice(("vfio_ap", "cex4queue", "cex4card", "", "none", "x" * random.choice((63, 64, 4095))))


def node_name(random: Random) -> str:
    """Return the name of a node of zcrypt."""
    return random.choice(
        ("node", "a", "a/b", "..", "create", "", "n" * random.choice((31, 32, 100)), "\xe9", "zcrypt_0")
    )


def fields(random: Random) -> str:
    """Return one field with a value: of a TAPQ word, or of requests."""
    name = random.choice(
        ("slcf", "apsc", "bs", "at", "ml", "qd", "nd", "mode", "apxa", "count", "waiting", "load", "x")
    )
    return f"{name}={number(random)}"


_WORDS: dict[str, Callable[[Random], str]] = {
    "ADAPTER": lambda random: random.choice((f"{random.choice(ADAPTERS):#x}", "card05", number(random))),
    "TYPE": lambda random: f"CEX{random.choice('34567889')}{random.choice('ACPX')}",
    "FIELD=VALUE": fields,
    "N": number,
    "on": lambda random: random.choice(("on", "off")),
    "off": lambda random: random.choice(("on", "off")),
    "APQN": apqn,
    "KEY": lambda random: random.choice(("aes", "apka", "asym", "wk", "des")),
    "PATTERN": lambda random: "0123456789abcdef" * random.randrange(5),
    "SECONDS": lambda random: random.choice(("1", "5", "30", "86400", number(random))),
    "CODE": number,
    "PATH": lambda random: random.choice(("/sys/bus/ap/apmask", "/sys/bus/ap/bindings", "x", "/")),
    "ERRNO": lambda random: random.choice(("EIO", "EBUSY", "ENOSPC", "EX", "errorcode", "__name__")),
    "UUID": uuid,
    "MODULE": lambda random: random.choice(("vfio_ap", "vfio-ap", "mdev", "vfio", "vfio_iommu_type1", "zcrypt", "ap")),
}


def verb(random: Random) -> str:
    """Return a verb of the console by the usage that it prints."""
    name = random.choice(tuple(VERBS))
    words = [name]
    for word in VERBS[name].usage.split():
        if word.startswith("[") and random.random() < 0.5:
            continue
        choices = word.strip("[].").split("|")
        wanted = random.choice(choices)
        count = random.randrange(1, 4) if "..." in word else 1
        words += [_WORDS[wanted](random) if wanted in _WORDS else wanted for _ in range(count)]
    return " ".join(words)


def channel(random: Random) -> str:
    """Return a request of a supervisor."""
    request: dict[str, object] = {
        "cmd": random.choice((0x3B00 + random.randrange(0x64, 0xA0), random.choice(_EDGES), True, "x", -1)),
        "arg": random.choice((*_EDGES, *_HUGE)),
        "memory": random.choice((random.randbytes(random.randrange(70)).hex(), "0", "zz", "", 5)),
        "descriptor": random.choice((None, "file", "foreign", 1, 2.5, [])),
    }
    if random.random() < 0.3:
        request["pointed"] = random.choice((random.randbytes(8).hex(), "q", None))
        request["full"] = random.choice((True, False, 1))
    for key in list(request):
        if random.random() < 0.05:
            del request[key]
    text = json.dumps(request)
    return random.choice((text,) * 8 + (json.dumps([text]), "[" * 3000, '{"a":' * 600, "1" * 4000))


_BY_NAME: dict[str, Callable[[Random], str]] = {
    **dict.fromkeys(MASK_FILES, mask),
    **dict.fromkeys(("bind", "unbind", "drivers_probe"), device),
    **dict.fromkeys(("poll_thread", "drivers_autoprobe", "se_bind", "allow_unsafe_interrupts"), truth),
    "ap_config": ap_config,
    "console": verb,
    "destroy": node_name,
    "driver_override": driver_name,
    "ioctl": channel,
    "migration_state": lambda random: random.choice((*_STATES, number(random))),
    "uevent": uevent,
    "guest": lambda random: random.choice(("0", "1", number(random))),
}


def meant_for(path: str, random: Random) -> bytes:
    """Return a text that the file at a path may well take."""
    *_, folder, name = path.split("/")
    if name == "create":
        text = node_name(random) if folder == "zcrypt" else uuid(random)
    else:
        text = _BY_NAME.get(name, number)(random)
    return (text + random.choice(("", "\n"))).encode("latin-1", "replace")


def damaged(data: bytes, random: Random) -> bytes:
    """Return data with a few mistakes: bytes changed, lost, doubled, cut off."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        place = random.randrange(len(changed) + 1)
        how = random.randrange(5)
        if how == 0:
            changed[place : place + 1] = bytes([random.randrange(256)])
        elif how == 1:
            del changed[place : place + random.randrange(1, 4)]
        elif how == 2:
            changed[place:place] = changed[max(0, place - 4) : place] or b"0"
        elif how == 3:
            changed[place:place] = random.choice(_ODD)[:8]
        elif len(changed) > 1:
            del changed[place:]
    return bytes(changed)


def text_for(path: str, random: Random) -> bytes:
    """Return what to write to a file: most often what it understands."""
    how = random.random()
    if how < 0.7:
        return meant_for(path, random)
    if how < 0.85:
        return damaged(meant_for(path, random), random)
    if how < 0.93:
        return random.choice(_ODD)
    return random.randbytes(random.choice((1, 2, 7, 40, 5000)))


def kind_of(path: str) -> str:
    """Return a path with `*` for the names of what comes and goes: all files that have one errno table."""
    path = re.sub(r"^/guests/[^/]+", "", path)
    path = re.sub(r"^/ctl/sandbox/virtual", "/sys/devices/virtual", path)
    path = re.sub(
        r"(?<=/ap)/card[0-9a-f]{2}(/[0-9a-f]{2}\.[0-9a-f]{4})?", lambda found: "/*/*" if found[1] else "/*", path
    )
    path = re.sub(r"/virtual/zcrypt/[^/]+", "/virtual/zcrypt/*", path)
    path = re.sub(r"/(vfio)?\d+(?=/|$)", "/*", path)
    return re.sub(r"/[0-9a-f]{8}-[^/]+", "/*", path)

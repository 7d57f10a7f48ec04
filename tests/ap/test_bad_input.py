"""Every writable file of the bus against a collection of odd texts: the errno of each, and no trace after a refusal."""

from __future__ import annotations

import stat

import pytest

from tests.ap.machines import toml
from tests.hosts import Bench

ROOTS = ("/sys/bus/ap", "/sys/devices/ap", "/sys/class/zcrypt", "/sys/devices/virtual/zcrypt", "/sys/module")

# Everything that can be written to is here: cards of all modes, the files of secure execution guests, and a node.
SCENARIO = toml(
    {0: "CEX8C", 1: "CEX8P", 2: "CEX8A"},
    [0x29],
    top="secure_execution = true",
    qci='facilities = ["APSC", "APXA", "QACT", "RC8A", "APSB"]',
    card="tapq = { bs = 2 }",
)


def machine() -> Bench:
    box = Bench(SCENARIO)
    assert box.store("/sys/class/zcrypt/create", "node") == ""
    box.heard()
    return box


CORPUS = {
    "nothing": b"",
    "newline": b"\n",
    "NUL": b"\0",
    "NUL first": b"\0" + b"1",
    "NUL inside": b"1\0junk",
    "5000 bytes": b"1" * 5000,
    "blanks around": b" 1 ",
    "+5": b"+5",
    "-5": b"-5",
    "0x05": b"0x05",
    "05": b"05",
    "08": b"08",
    "2**64": str(2**64).encode(),
    "2**64-1": str(2**64 - 1).encode(),
    "UTF-8": "\xe9".encode(),
    "superscript": b"\xb2",
    "on": b"on",
    "yes": b"yes",
}
NO_TEXT = ("newline", "NUL", "NUL first")
NO_NUMBER = (*NO_TEXT, "UTF-8", "superscript", "on", "yes")

Refusals = dict[str, str]


def refused(errno: str, *labels: str) -> Refusals:
    return dict.fromkeys(labels, errno)


def all_refused(errno: str) -> Refusals:
    """Refuse everything but the write of no bytes, which nobody is asked about."""
    return refused(errno, *(label for label in CORPUS if label != "nothing"))


# What each grammar refuses and with what; all the rest is taken.
SWITCH = refused("EINVAL", *NO_NUMBER, "5000 bytes", "+5", "-5", "05", "08", "2**64-1", "2**64")
TRUTH = refused("EINVAL", *NO_TEXT, "blanks around", "+5", "-5", "UTF-8", "superscript")
MASK = refused("EINVAL", "5000 bytes", "blanks around", "UTF-8", "superscript", "on", "yes")
UEVENT = all_refused("EINVAL")
DEVICE_NAME = all_refused("ENODEV")
ANYTHING: Refusals = {}

GRAMMARS: dict[str, Refusals] = {
    "uevent": UEVENT,
    "drivers_probe": DEVICE_NAME,
    "bind": DEVICE_NAME,
    "unbind": DEVICE_NAME,
    "drivers_autoprobe": ANYTHING,
    "ap_domain": refused("EINVAL", *NO_NUMBER, "5000 bytes", "+5", "-5", "2**64-1", "2**64"),
    "config_time": refused("EINVAL", *(set(CORPUS) - {"nothing", "05", "08"})),
    "poll_thread": TRUTH,
    "poll_timeout": refused("EINVAL", *NO_NUMBER, "blanks around", "-5", "08", "2**64-1")
    | refused("ERANGE", "5000 bytes", "2**64"),
    "apmask": MASK,
    "aqmask": MASK,
    "ioctlmask": MASK,
    "admask": MASK,
    "scans": ANYTHING,
    "request_count": ANYTHING,
    "reset": ANYTHING,
    "config": SWITCH,
    "online": SWITCH,
    "driver_override": refused("EINVAL", "5000 bytes"),
    "se_bind": TRUTH,
    "allow_unsafe_interrupts": TRUTH,
    "disable_hugepages": TRUTH,
    "dma_entry_limit": refused("EINVAL", *NO_NUMBER, "blanks around", "-5", "08")
    | refused("ERANGE", "5000 bytes", "2**64-1", "2**64"),
    "create": ANYTHING,
    "destroy": all_refused("ENOENT"),
    # EP11: nothing is bound yet, so every number is refused for that. It is an unsigned int.
    "01.0029/se_associate": all_refused("EINVAL") | refused("ERANGE", "5000 bytes", "2**64", "2**64-1"),
    # Accelerator.
    "02.0029/se_associate": all_refused("EINVAL"),
}


def grammar(path: str) -> Refusals:
    """Return what a file refuses, by the last one or two components of its path."""
    *_, directory, name = path.split("/")
    found = GRAMMARS.get(f"{directory}/{name}")
    return GRAMMARS[name] if found is None else found


def files(box: Bench) -> dict[str, int]:
    """Return the modes of all attributes of the bus, by path."""
    found = {}
    for root in ROOTS:
        for path, node in box.find(root):
            if stat.S_ISREG(node.mode):
                found[path] = node.mode
    return found


WRITABLE = sorted(path for path, mode in files(machine()).items() if mode & 0o222)


def test_the_table_names_every_writable_file_and_no_other() -> None:
    names = {path.rsplit("/", 1)[1] for path in WRITABLE}
    assert {name.rsplit("/", 1)[-1] for name in GRAMMARS} == names
    assert len(WRITABLE) > 55


def test_the_table_knows_the_collection() -> None:
    assert {label for refusals in GRAMMARS.values() for label in refusals} <= CORPUS.keys()


def test_every_other_file_refuses_to_be_opened_for_writing() -> None:
    box = machine()
    before = box.dump()
    for path, mode in files(box).items():
        if not mode & 0o222:
            assert box.store(path, "1") == "EACCES", path
        if not mode & 0o444:
            assert box.shown(path) == "EACCES", path
    assert box.dump() == before
    assert box.events() == []


@pytest.mark.parametrize("path", WRITABLE)
def test_odd_texts(path: str) -> None:
    box = machine()
    before = box.dump()
    # The refusals first, all on one machine, which must not have noticed any of them.
    refusals = grammar(path)
    outcomes = {label: box.store(path, CORPUS[label]) for label in refusals}
    assert outcomes == refusals
    assert box.store(path, b"") == ""
    assert box.dump() == before
    assert box.events() == []
    assert box.host.ap_bus.scans == 1


@pytest.mark.parametrize("path", WRITABLE)
def test_odd_texts_that_are_taken(path: str) -> None:
    for label, data in CORPUS.items():
        if label not in grammar(path):
            assert machine().store(path, data) == "", label


@pytest.mark.parametrize(
    ("path", "label", "shown"),
    [
        ("/sys/bus/ap/ap_domain", "NUL inside", "1"),
        ("/sys/bus/ap/ap_domain", "blanks around", "1"),
        ("/sys/bus/ap/ap_domain", "08", "0"),
        ("/sys/bus/ap/config_time", "08", "8"),
        ("/sys/bus/ap/poll_timeout", "05", "5"),
        ("/sys/bus/ap/poll_timeout", "NUL inside", "1"),
        ("/sys/bus/ap/drivers_autoprobe", "08", "0"),
        ("/sys/bus/ap/drivers_autoprobe", "NUL first", "1"),
        ("/sys/bus/ap/apmask", "NUL inside", "0x1" + "0" * 63),
        ("/sys/bus/ap/apmask", "newline", "0x" + "0" * 64),
        ("/sys/bus/ap/apmask", "NUL first", "0x" + "0" * 64),
        ("/sys/bus/ap/aqmask", "2**64", "0x" + str(2**64) + "0" * 44),
        ("/sys/bus/ap/aqmask", "-5", "0xfb" + "f" * 62),
        ("/sys/devices/ap/card00/online", "0x05", "0"),
        ("/sys/devices/ap/card00/00.0029/online", "blanks around", "1"),
        ("/sys/devices/ap/card00/00.0029/driver_override", "NUL inside", "1"),
        ("/sys/devices/ap/card00/00.0029/driver_override", "UTF-8", "\xc3\xa9"),
        ("/sys/devices/ap/card00/00.0029/driver_override", "newline", ""),
        ("/sys/devices/ap/card01/01.0029/se_bind", "5000 bytes", "bound"),
        ("/sys/devices/ap/card01/01.0029/se_bind", "0x05", "unbound"),
    ],
)
def test_what_the_odd_ones_mean(path: str, label: str, shown: str) -> None:
    box = machine()
    assert box.store(path, CORPUS[label]) == ""
    assert box.shown(path) == f"{shown}\n"


@pytest.mark.parametrize("label", [label for label in CORPUS if label != "nothing"])
def test_odd_names_of_nodes_can_be_taken_back(label: str) -> None:
    box = machine()
    before = box.names("/sys/devices/virtual/zcrypt")
    assert box.store("/sys/class/zcrypt/create", CORPUS[label]) == ""
    (name,) = box.names("/sys/devices/virtual/zcrypt") - before
    assert box.store("/sys/class/zcrypt/destroy", name) == ""
    assert box.names("/sys/devices/virtual/zcrypt") == before

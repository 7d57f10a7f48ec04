"""Bad input for every file that can be written, with and without a guest: which errno, and that nothing changed."""

from dataclasses import dataclass
from functools import cache

import pytest

from apfs.errors import KernelError
from apfs.journal.records import Refusal
from tests.hosts import AP_DRIVER, M1, MATRIX, MDEV_DRIVER, ONE_QUEUE, TYPE, Bench

HOST = ONE_QUEUE + "control_domains = [4]\n"

CORPUS: dict[str, bytes] = {
    "empty": b"",
    "newline": b"\n",
    "NUL first": b"\0005",
    "text, NUL, junk": b"5\0junk",
    "5000 bytes": b"5" * 5000,
    "spaces around": b" 5 ",
    "plus": b"+5",
    "minus": b"-5",
    "hex": b"0x05",
    "octal": b"05",
    "bad octal": b"08",
    "2**64": b"18446744073709551616",
    "2**64 - 1": b"18446744073709551615",
    "not ASCII": "\u00b5\u0665".encode(),
    "no-break spaces": b"\xa05\xa0",
    "yes": b"yes",
    "zero": b"0",
    "one": b"1",
    "action": b"change",
    "action, UUID": f"add {M1}".encode(),
    "UUID": M1.encode(),
}
"""What is written, all of it in one write."""

OK = "OK"


@dataclass(frozen=True)
class Rule:
    """What a file does with the corpus: `otherwise`, but for those named; an empty write is always nothing at all."""

    otherwise: str
    exceptions: dict[str, str]

    def expect(self, case: str) -> str:
        if case == "empty":
            return OK
        return self.exceptions.get(case, self.otherwise)


NUMBERS_5 = dict.fromkeys(("text, NUL, junk", "plus", "hex", "octal"), OK)
TOO_BIG = dict.fromkeys(("5000 bytes", "2**64"), "ERANGE")

# A number that is an adapter or a domain.
ASSIGN = Rule("EINVAL", {**NUMBERS_5, **TOO_BIG, "zero": OK, "one": OK, "2**64 - 1": "ENODEV"})
# Any number, of which all but 0 remove the device; the file itself does not tell EINVAL from ERANGE.
REMOVE = Rule("EINVAL", {**NUMBERS_5, "zero": OK, "one": OK, "2**64 - 1": OK})
REMOVE_BUSY = Rule("EINVAL", {**dict.fromkeys((*NUMBERS_5, "one", "2**64 - 1"), "EBUSY"), "zero": OK})
UEVENT = Rule("EINVAL", {"action": OK, "action, UUID": OK})
FILES: dict[str, tuple[Rule, Rule]] = {
    # Path: without and with a guest.
    "/sys/devices/vfio_ap/uevent": (UEVENT, UEVENT),
    f"{MATRIX}/uevent": (UEVENT, UEVENT),
    f"{TYPE}/create": (Rule("EINVAL", {"UUID": "EEXIST"}), Rule("EINVAL", {"UUID": "EEXIST"})),
    f"{MATRIX}/{M1}/uevent": (UEVENT, UEVENT),
    f"{MATRIX}/{M1}/remove": (REMOVE, REMOVE_BUSY),
    **{
        f"{MATRIX}/{M1}/{prefix}assign_{what}": (ASSIGN, ASSIGN)
        for prefix in ("", "un")
        for what in ("adapter", "domain", "control_domain")
    },
    # None of it has three parts.
    f"{MATRIX}/{M1}/ap_config": (Rule("EINVAL", {}), Rule("EINVAL", {})),
    f"{MATRIX}/{M1}/vfio-dev/vfio0/uevent": (UEVENT, UEVENT),
    "/sys/bus/mdev/uevent": (UEVENT, UEVENT),
    "/sys/bus/mdev/drivers_autoprobe": (Rule(OK, {}), Rule(OK, {})),
    "/sys/bus/mdev/drivers_probe": (Rule("ENODEV", {"UUID": OK}), Rule("ENODEV", {"UUID": OK})),
    f"{MDEV_DRIVER}/uevent": (UEVENT, UEVENT),
    f"{MDEV_DRIVER}/bind": (Rule("ENODEV", {}), Rule("ENODEV", {})),
    f"{MDEV_DRIVER}/unbind": (Rule("ENODEV", {"UUID": OK}), Rule("ENODEV", {"UUID": "EBUSY"})),
    "/sys/bus/matrix/uevent": (UEVENT, UEVENT),
    "/sys/bus/matrix/drivers_autoprobe": (Rule(OK, {}), Rule(OK, {})),
    "/sys/bus/matrix/drivers_probe": (Rule("ENODEV", {}), Rule("ENODEV", {})),
    "/sys/bus/matrix/drivers/vfio_ap/uevent": (UEVENT, UEVENT),
    f"/dev/vfio-ap/{M1}/guest": (
        Rule("EINVAL", {**TOO_BIG, "zero": OK, "one": OK}),
        Rule("EINVAL", {**TOO_BIG, "zero": OK, "one": OK}),
    ),
    # Numbers of states: 0 is ERROR, 1 is STOP, 5 is one that the device does not have.
    f"/dev/vfio-ap/{M1}/migration_state": (
        Rule("EINVAL", {**dict.fromkeys((*NUMBERS_5, "zero", "one"), "ENODEV"), **TOO_BIG}),
        Rule("EINVAL", {**TOO_BIG, "one": OK}),
    ),
    # There is no session.
    f"/dev/vfio-ap/{M1}/data_stream": (Rule("ENODEV", {}), Rule("ENODEV", {})),
    f"/dev/vfio-ap/{M1}/reset": (Rule("ENODEV", {}), Rule(OK, {})),
}
REFUSED_AT_OPEN = (f"/dev/vfio-ap/{M1}/data_stream",)
HALVES = ("/sys/devices/vfio_ap", "/sys/bus/mdev", "/sys/bus/matrix", "/dev/vfio-ap")


class World:
    """A host that is replaced by a fresh one whenever something was accepted."""

    def __init__(self, guest: int) -> None:
        self._guest = guest
        self.renew()

    def renew(self) -> None:
        self.bench = Bench(HOST)
        self.bench.run_guest(M1, self._guest)
        self.dump = self.bench.dump()


@cache
def world(guest: int) -> World:
    return World(guest)


def test_the_table_has_every_file_that_can_be_written() -> None:
    bench = world(0).bench
    found = {
        path
        for half in HALVES
        for path, stat in bench.find(half)
        if stat.mode & 0o170000 == 0o100000 and stat.mode & 0o222
    }
    assert found == set(FILES)


@pytest.mark.parametrize("guest", [0, 1], ids=["no guest", "guest"])
@pytest.mark.parametrize("path", FILES)
def test_corpus(path: str, guest: int) -> None:
    place = world(guest)
    for case, data in CORPUS.items():
        expected = FILES[path][guest].expect(case)
        if not data and path in REFUSED_AT_OPEN:
            expected = "ENODEV"
        place.bench.mark()
        try:
            taken = place.bench.write(path, data)
        except KernelError as error:
            outcome = error.name
        else:
            outcome = OK
            assert taken == min(len(data), 4096), (case, path)
        assert outcome == expected, (case, path)
        if outcome == OK:
            place.renew()
        else:
            refusals = place.bench.records(Refusal)
            assert [(record.path, record.errno) for record in refusals] == [(path, outcome)], (case, path)
            assert refusals[0].why
            assert place.bench.dump() == place.dump, (case, path)


def test_an_empty_write_changes_nothing_anywhere() -> None:
    place = world(1)
    for path in FILES:
        if path not in REFUSED_AT_OPEN:
            assert place.bench.write(path, b"") == 0
    assert place.bench.dump() == place.dump


def readable_only() -> list[str]:
    bench = world(0).bench
    return [
        path
        for half in HALVES
        for path, stat in bench.find(half)
        if stat.mode & 0o170000 == 0o100000 and not stat.mode & 0o222
    ]


def test_what_cannot_be_written_cannot_even_be_opened_for_it() -> None:
    place = world(0)
    paths = readable_only()
    assert len(paths) > 8
    for path in paths:
        for data in CORPUS.values():
            with pytest.raises(KernelError) as caught:
                place.bench.write(path, data)
            assert caught.value.name == "EACCES"
    assert place.bench.dump() == place.dump


def test_what_can_only_be_written_cannot_be_opened_for_reading() -> None:
    place = world(1)
    write_only = [path for path in FILES if place.bench.stat(path).mode & 0o777 == 0o200]
    assert len(write_only) > 10
    for path in (*write_only, f"{AP_DRIVER}/bind"):
        with pytest.raises(KernelError) as caught:
            place.bench.cat(path)
        assert caught.value.name == "EACCES", path


def test_directories_cannot_be_written() -> None:
    for path in (MATRIX, f"{MATRIX}/{M1}", f"{TYPE}/devices", f"/dev/vfio-ap/{M1}"):
        with pytest.raises(KernelError) as caught:
            world(0).bench.write(path, "1")
        assert caught.value.name == "EISDIR", path

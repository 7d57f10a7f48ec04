"""The console: every verb with what it does and when, every refusal with its reason, and the texts beside it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apfs import __version__
from apfs.ctl.console import VERBS
from apfs.journal.records import LogLine, QueuesReset, Refusal, Verb
from apfs.sysfs.entries import BOTH
from tests.hosts import (
    CONSOLE,
    M1,
    M2,
    MATRIX,
    MDEV_DRIVER,
    RESERVED,
    WORKED,
    Bench,
    built,
    mask_text,
    product,
    queue,
    refused,
)

SCANS = "/sys/bus/ap/scans"
CARD5 = "/sys/devices/ap/card05"
KEY = re.compile(r"`([^`]+)`")


@pytest.fixture
def bench() -> Bench:
    bench = Bench(WORKED)
    bench.mark()
    return bench


def cards(bench: Bench) -> list[str]:
    return [name for name in bench.ls("/sys/devices/ap") if name.startswith("card")]


def domains(bench: Bench) -> list[str]:
    return [name.partition(".")[2] for name in bench.ls(CARD5) if name.startswith("05.")]


# -- what happens, and when: at the next scan -------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["9", "0x9", "011", "card09"])
def test_plug_and_unplug(bench: Bench, word: str) -> None:
    before = cards(bench)
    bench.console(f"plug {word} CEX7P")
    assert cards(bench) == before
    bench.console("scan")
    assert cards(bench) == sorted([*before, "card09"])
    assert bench.cat("/sys/devices/ap/card09/type") == "CEX7P\n"
    assert bench.ls("/sys/devices/ap/card09").count("09.0004") == 1
    bench.console(f"unplug {word}")
    assert bench.exists("/sys/devices/ap/card09")
    bench.console("scan")
    assert cards(bench) == before


def test_plug_with_fields(bench: Bench) -> None:
    bench.console("plug 9 CEX8C apsc=0 class=0x40 at=13 qd=017", "scan")
    assert bench.cat("/sys/devices/ap/card09/ap_functions") == "0x12400000\n"
    assert bench.cat("/sys/devices/ap/card09/raw_hwtype") == "13\n"
    assert bench.cat("/sys/devices/ap/card09/depth") == "16\n"


def test_domains_come_and_go(bench: Bench) -> None:
    before = domains(bench)
    assert before == ["0004", "0047", "00ab", "00ff"]
    bench.console("add-domain 9 0x10", "remove-domain 4")
    assert domains(bench) == before
    bench.console("scan")
    assert domains(bench) == ["0009", "0010", "0047", "00ab", "00ff"]
    bench.console("add-domain 4 4 4", "remove-domain 9 16 200", "scan")
    assert domains(bench) == before


def test_control_domains_come_and_go(bench: Bench) -> None:
    path = "/sys/bus/ap/ap_control_domain_mask"
    mask = bench.cat(path)
    assert mask == mask_text((4, 0x47, 0xAB, 0xFF)) + "\n"
    bench.console("add-control-domain 9", "remove-control-domain 4 0x47")
    assert bench.cat(path) == mask
    bench.console("scan")
    assert bench.cat(path) == mask_text((9, 0xAB, 0xFF)) + "\n"
    assert domains(bench) == ["0004", "0047", "00ab", "00ff"]


@pytest.mark.parametrize(
    ("verb", "back", "name"), [("configure 5 off", "configure 5 on", "config"), ("checkstop 5 on", "", "chkstop")]
)
def test_configure_and_checkstop(bench: Bench, verb: str, back: str, name: str) -> None:
    paths = [f"{CARD5}/{name}", f"{CARD5}/05.0047/{name}"]
    before = [bench.cat(path) for path in paths]
    bench.console(verb)
    assert [bench.cat(path) for path in paths] == before
    bench.console("scan")
    assert [bench.cat(path) for path in paths] == [{"0\n": "1\n", "1\n": "0\n"}[text] for text in before]
    bench.console(back or "checkstop 5 off", "scan")
    assert [bench.cat(path) for path in paths] == before


def test_tapq_of_a_card_that_becomes_another(bench: Bench) -> None:
    bench.console("tapq card05 at=13 cca=0 ep11=1 apsc=0")
    assert bench.cat(f"{CARD5}/type") == "CEX8C\n"
    assert bench.cat(f"{CARD5}/05.0047/ap_functions") == "0x06800000\n"  # asks the hardware
    bench.console("scan")
    assert bench.cat(f"{CARD5}/type") == "CEX7P\n"


def test_tapq_of_one_queue(bench: Bench) -> None:
    bench.console("tapq 05.0047 class=0x40", "scan")
    assert bench.cat(f"{CARD5}/05.0047/ap_functions") == "0x92400000\n"
    assert bench.cat(f"{CARD5}/05.0004/ap_functions") == "0x92800000\n"
    assert bench.cat(f"{CARD5}/ap_functions") == "0x92800000\n"
    bench.console("tapq 5 slcf=1")  # the queue keeps what it has of its own
    assert bench.cat(f"{CARD5}/05.0047/ap_functions") == "0x93400000\n"


def test_tick(bench: Bench) -> None:
    bench.console("plug 9 CEX8C", "tick 29")
    assert "card09" not in cards(bench)
    bench.console("tick 1")
    assert "card09" in cards(bench)
    scans = bench.host.ap_bus.scans
    bench.console("tick 300", "tick 0")
    assert bench.host.ap_bus.scans == scans + 10
    bench.echo(60, "/sys/bus/ap/config_time")
    bench.console("tick 59")
    assert bench.host.ap_bus.scans == scans + 10


def test_fail_reset_fails_one_reset(bench: Bench) -> None:
    bench.create(M1)
    bench.assign(M1, (5, 6), (4, 0xAB))
    bench.console("fail-reset 05.0004 1", "fail-reset 05.0004 255")
    bench.console("fail-reset 05.0004", "fail-reset 06.00ab 0x55")
    bench.mark()
    bench.put(M1, "ap_config", ",")
    failed = [record.failed for record in bench.records(QueuesReset)]
    assert {apqn: code for part in failed for apqn, code in part.items()} == {"05.0004": 7, "06.00ab": 0x55}
    bench.assign(M1, (5, 6), (4, 0xAB))
    bench.mark()
    bench.put(M1, "remove", 1)
    assert [record.failed for record in bench.records(QueuesReset)] == [{}]


@pytest.mark.parametrize("accesses", ["", " 1", " 3", " 0x2"])
def test_fault(bench: Bench, accesses: str) -> None:
    bench.create(M1)
    path = f"{MATRIX}/{M1}/ap_config"
    before = bench.cat(path)
    bench.console(f"fault {path} EIO{accesses}")
    for number in range(int(accesses or "1", 0)):
        with refused("EIO"):
            if number % 2:
                bench.write(path, ",,")
            else:
                bench.cat(path)
    assert bench.cat(path) == before
    assert bench.matrix(M1) == []


def test_fault_with_any_errno_at_any_path(bench: Bench) -> None:
    for name in ("ENOMEM", "EINTR", "EAGAIN", "EOPNOTSUPP", "ETIMEDOUT"):
        bench.console(f"fault {CARD5}/online {name}")
        with refused(name):
            bench.echo(0, f"{CARD5}/online")
        assert bench.cat(f"{CARD5}/online") == "1\n"
    # The file need not be there yet, and no other one is hit.
    bench.console(f"fault {MATRIX}/{M1}/matrix EIO")
    bench.create(M1)
    assert bench.guest_matrix(M1) == []
    with refused("EIO"):
        bench.matrix(M1)
    assert bench.matrix(M1) == []


@pytest.mark.parametrize(
    "path",
    [
        "/sys/bus/ap/apmask",
        "/sys/bus/ap/drivers/vfio_ap/bind",
        "/sys/devices/ap/cardff/online",
        "/sys/devices/ap/cardff/ff.00ff/driver_override",
        f"/sys/devices/vfio_ap/matrix/{M2}/assign_adapter",
        f"/sys/devices/vfio_ap/matrix/{M2}/vfio-dev/vfio17/dev",
        "/sys/devices/virtual/vfio/3/dev",
        "/sys/devices/virtual/zcrypt/of#mine/apmask",
        "/sys/kernel/iommu_groups/12/type",
    ],
)
def test_a_fault_may_wait_for_an_attribute_that_is_not_there(bench: Bench, path: str) -> None:
    bench.console("rmmod vfio_ap", f"fault {path} EIO")
    assert path in bench.status()["faults"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/sys",
        "/sys/bus/ap",
        "/sys/bus/ap/apmsk",
        "/sys/bus/ap/apmask/",
        "//sys/bus/ap/apmask",
        "/sys/bus/ap/./apmask",
        "/sys/bus/ap/../ap/apmask",
        "/sys/bus/ap/apmask/x",
        f"{CARD5}/subsystem",
        "/sys/bus/ap/devices/card05/online",
        "/sys/devices/ap/card5/online",
        "/sys/devices/ap/card05/06.0004/online",
        "/sys/devices/ap/card05/05.0004/type",
        f"/sys/devices/vfio_ap/matrix/{M2.upper()}/assign_adapter",
        "/sys/devices/vfio_ap/matrix/x/assign_adapter",
        f"/sys/devices/vfio_ap/matrix/{M2}/vfio-dev/vfio017/dev",
        "/sys/kernel/iommu_groups/x/type",
        "/sys/bus/ap/features\xe4",
        f"/guests/{M2}/sys/bus/ap/apmask",
        "/ctl/kmsg",
        "/dev/vfio/vfio",
    ],
)
def test_a_fault_where_no_attribute_can_be_is_refused(bench: Bench, path: str) -> None:
    with refused("ENOENT"):
        bench.console(f"fault {path} EIO")
    assert bench.status()["faults"] == {}


def test_a_new_fault_replaces_the_old(bench: Bench) -> None:
    bench.console(f"fault {CARD5}/type EIO 9", f"fault {CARD5}/type ENOMEM 1")
    with refused("ENOMEM"):
        bench.cat(f"{CARD5}/type")
    assert bench.cat(f"{CARD5}/type") == "CEX8C\n"


def test_clear_faults(bench: Bench) -> None:
    bench.console(f"fault {CARD5}/type EIO 9", "fail-reset 05.0004", "clear-faults")
    assert bench.cat(f"{CARD5}/type") == "CEX8C\n"
    bench.mark()
    bench.unbind("05.0004")
    assert [record.failed for record in bench.records(QueuesReset)] == [{}]


@pytest.mark.parametrize("name", ["vfio_ap", "vfio-ap"])
def test_modprobe_and_rmmod(bench: Bench, name: str) -> None:
    bench.console(f"rmmod {name}")
    assert not bench.exists(MATRIX)
    bench.console(f"modprobe {name}")
    assert bench.exists(MATRIX)
    assert bench.queue_status("05.0004") == "unassigned\n"
    bench.console("rmmod vfio_ap")
    assert not bench.exists(MATRIX)


def test_help_is_in_the_log(bench: Bench) -> None:
    bench.console("help")
    lines = bench.cat("/ctl/kmsg").splitlines()
    assert len(lines) == len(VERBS)
    for name, line in zip(VERBS, lines, strict=True):
        assert re.match(rf"console: {re.escape(name)}( |:)", line), line
        assert VERBS[name].usage in line
        assert VERBS[name].summary in line
    assert all(record.level == "info" for record in bench.records(LogLine))


# -- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, ...]] = {
    "EINVAL": (
        "",
        "\n",
        "   ",
        "nonsense",
        "HELP",
        "help me",
        "plug",
        "plug 9",
        "plug CEX8C 9",
        "plug 9 CEX9C",
        "plug 9 cex8c",
        "plug 256 CEX8C",
        "plug -1 CEX8C",
        "plug cardxx CEX8C",
        "plug 9 CEX8C colour=1",
        "plug 9 CEX8C apsc",
        "plug 9 CEX8C apsc=",
        "plug 9 CEX8C apsc=2",
        "plug 9 CEX8C =1",
        "unplug",
        "unplug 5 6",
        "unplug x",
        "add-domain",
        "add-domain 256",
        "add-domain 9 256",
        "add-domain x",
        "add-domain 9 x",
        "remove-domain",
        "remove-domain 256",
        "add-control-domain",
        "add-control-domain 999",
        "remove-control-domain 4 -4",
        "configure 5",
        "configure 5 1",
        "configure 5 On",
        "configure 5 on off",
        "checkstop 5 yes",
        "tapq 5",
        "tapq 5 at",
        "tapq 5 at=256",
        "tapq 5 colour=1",
        "tapq 05.0047 apsc=2",
        "tapq 5.47 apsc=1",
        "tapq 05.0047x apsc=1",
        "scan now",
        "tick",
        "tick -1",
        "tick x",
        "tick 86401",
        "fail-reset",
        "fail-reset 5",
        "fail-reset 05.0004 0",
        "fail-reset 05.0004 256",
        "fail-reset 05.0004 x",
        "fault",
        "fault /sys/bus/ap/apmask",
        "fault /sys/bus/ap/apmask eio",
        "fault /sys/bus/ap/apmask errorcode",
        "fault /sys/bus/ap/apmask __name__",
        "fault /sys/bus/ap/apmask 5",
        "fault /sys/bus/ap/apmask EIO 0",
        "fault /sys/bus/ap/apmask EIO x",
        "fault sys/bus/ap/apmask EIO",
        "clear-faults all",
        "modprobe",
        "rmmod",
    ),
    "EEXIST": ("plug 5 CEX8C", "plug card05 CEX7P"),
    "ENODEV": (
        "unplug 9",
        "configure 9 on",
        "checkstop 9 on",
        "tapq 9 at=10",
        "tapq 05.0005 apsc=1",
        "tapq 09.0004 apsc=1",
        "fail-reset 09.0004",
    ),
    "ENOENT": ("modprobe nothing", "rmmod nothing"),
    "EAGAIN": ("rmmod mdev", "rmmod zcrypt"),
    "EOPNOTSUPP": ("rmmod zcrypt_cex4",),
    "ERANGE": ("tick 18446744073709551616",),
}


@pytest.mark.parametrize(("expected", "text"), [(name, text) for name, texts in REFUSED.items() for text in texts])
def test_refusals(expected: str, text: str) -> None:
    bench = built()
    bench.console("scan")  # sends what is left of the boot
    before, state = bench.dump(), bench.cat("/ctl/status")
    bench.mark()
    with refused(expected):
        bench.write(CONSOLE, text + "\n")
    (record,) = bench.records(Refusal)
    assert (record.operation, record.path, record.errno) == ("console", CONSOLE, expected)
    assert record.data == text + "\n"
    assert len(record.why) > 5
    assert bench.dump() == before
    bench.console("scan")  # nothing was done to the hardware either
    scanned = before | {SCANS: bench.dump(SCANS)[SCANS]}
    assert bench.dump() == scanned
    assert bench.cat("/ctl/status") == state
    # The journal is where a shell finds the reason, which an errno cannot carry.
    entries = [json.loads(line) for line in bench.cat("/ctl/journal").splitlines()]
    (entry,) = (entry for entry in entries if entry["type"] == "refusal" and entry["operation"] == "console")
    assert (entry["errno"], entry["why"]) == (expected, record.why)


def test_the_console_cannot_be_read(bench: Bench) -> None:
    with refused("EACCES"):
        bench.cat(CONSOLE)
    assert bench.stat(CONSOLE).mode == 0o100200


@pytest.mark.parametrize("text", ["scan", "scan\n", "  scan  \n", "\tscan\r\n"])
def test_blanks_do_not_matter(bench: Bench, text: str) -> None:
    scans = bench.host.ap_bus.scans
    assert bench.write(CONSOLE, text) == len(text)
    assert bench.host.ap_bus.scans == scans + 1
    assert bench.records(Verb) == [Verb("scan")]


# -- the texts beside it ----------------------------------------------------------------------------------------------


def test_status_tells_the_whole_state() -> None:
    bench = built()
    bench.unbind("06.00ab")
    bench.run_guest(M1)
    status: dict[str, Any] = json.loads(bench.cat("/ctl/status"))
    assert status["scenario"] == "worked"
    assert status["driver"] == "v2"
    assert status["secure_execution"] is False
    assert status["apmask"] == "0xf9" + "f" * 62
    assert status["cards"]["06"]["unbound"] == [0xAB]
    assert status["cards"]["06"]["drivers"] == {"vfio_ap": [4, 0x47, 0xFF]}
    assert status["cards"]["05"]["hwinfo"] == "928000000e540307"
    assert status["mdevs"] == {
        M1: {
            "group": 0,
            "device": "vfio0",
            "opener": "guest",
            "guest": True,
            "migration_state": "RUNNING",
            "matrix": {"adapters": [5, 6], "domains": [4, 0xAB], "control_domains": [4, 0xAB]},
            "guest_matrix": {"adapters": [5], "domains": [4, 0xAB], "control_domains": [4, 0xAB]},
        }
    }
    assert bench.guest_matrix(M1) == product((5,), (4, 0xAB))
    assert status["apfs"] == __version__
    assert (status["clock"], status["config_time"], status["kvm"]) == ("manual", 30, "auto")
    assert status["bindings"] == {"bound": 11, "queues": 12, "complete": False}
    assert status["ap_domain"] == 4
    assert (status["adapters"], status["usage_domains"]) == ([5, 6, 7], [4, 0x47, 0xAB, 0xFF])
    assert status["modules"]["vfio_ap"] == {"refcnt": 1}
    assert status["cards"]["05"] == {
        "type": "CEX8C",
        "mode": "cca",
        "driver": "cex4card",
        "hwinfo": "928000000e540307",
        "config": True,
        "online": True,
        "chkstop": False,
        "drivers": {"vfio_ap": [4, 0x47, 0xAB, 0xFF]},
        "unbound": [],
        "assigned": [4, 0xAB],
        "in_use": [4, 0xAB],
        "offline": [],
        "deconfigured": [],
        "checkstopped": [],
    }
    assert status["cards"]["06"]["assigned"] == [4]  # 06.00ab is assigned too, but not bound
    assert status["cards"]["06"]["in_use"] == []


def eventful() -> Bench:
    """Return a host whose status has something everywhere."""
    bench = built()
    bench.create(M2)
    bench.echo(M2, f"{MDEV_DRIVER}/unbind")
    bench.console("fail-reset 05.0004", "fault /sys/bus/ap/apmask EBUSY 3")
    bench.run_guest(M1)
    bench.run_guest(M1, 0)
    bench.console("fail-reset 06.0004 4", "no-answer 07.0004", "configure 6 off", "checkstop 7 on", "scan")
    bench.unbind("06.00ff")
    return bench


def test_status_tells_what_is_out_of_order() -> None:
    status = eventful().status()
    assert status["unbound_mdevs"] == [M2]
    assert list(status["mdevs"]) == [M1]
    assert status["bad_resets"] == {"05.0004": 7}
    assert status["failing_resets"] == {"06.0004": 4}
    assert status["faults"] == {"/sys/bus/ap/apmask": {"errno": "EBUSY", "accesses": 3}}
    five, six, seven = (status["cards"][apid] for apid in ("05", "06", "07"))
    everywhere = [4, 0x47, 0xAB, 0xFF]
    assert (six["config"], six["online"], six["deconfigured"]) == (False, False, everywhere)
    assert (seven["chkstop"], seven["online"], seven["checkstopped"]) == (True, False, everywhere)
    assert (five["offline"], six["offline"], seven["offline"]) == ([], [], everywhere)  # only zcrypt's have `online`


def test_status_tells_who_has_a_device_open() -> None:
    bench = built()

    def opener() -> object:
        return bench.status()["mdevs"][M1]["opener"]

    assert opener() is None
    bench.run_guest(M1)
    assert opener() == "guest"
    bench.run_guest(M1, 0)
    for path in ("/dev/vfio/0", "/dev/vfio/devices/vfio0"):
        file = bench.host.tree.open(bench.host.tree.resolve(path), BOTH)
        assert opener() == "program"
        file.close()
        assert opener() is None


def test_status_tells_which_modules_are_loaded() -> None:
    bench = built()
    bench.run_guest(M1)
    assert bench.status()["guests"][M1]["modules"] == ["zcrypt", "zcrypt_cex4"]
    assert bench.status()["modules"]["vfio_ap"] == {"refcnt": 1}
    bench.run_guest(M1, 0)
    bench.console("rmmod vfio_ap")
    assert "vfio_ap" not in bench.status()["modules"]


def test_status_tells_overrides_and_offline_queues() -> None:
    bench = Bench(RESERVED)
    bench.give("05.0047")
    bench.echo(0, "/sys/devices/ap/card05/05.0004/online")
    status = bench.status()
    assert status["overrides"] == {"05.0047": "vfio_ap"}
    assert status["cards"]["05"]["drivers"] == {"cex4queue": [4, 0xAB, 0xFF], "vfio_ap": [0x47]}
    assert status["cards"]["05"]["offline"] == [4]


def test_status_of_a_machine_without_qci() -> None:
    status = Bench('[qci]\nsupported = false\ndomains = [4]\n[[card]]\nadapter = 5\ntype = "CEX8C"\n').status()
    assert (status["adapters"], status["usage_domains"], status["control_domains"]) == (None, None, None)
    assert list(status["cards"]) == ["05"]


def keys_of(value: object, path: str = "") -> Iterator[str]:
    """Yield the paths of all keys, with placeholders for those that are data."""
    if not isinstance(value, dict) or path.endswith("matrix"):
        yield path
        return
    names = {"cards": "XX", "drivers": "NAME", "modules": "NAME", "faults": "PATH", "mdevs": "UUID", "guests": "UUID"}
    names["changes"] = "NAME"
    names |= dict.fromkeys(("overrides", "bad_resets", "failing_resets", "unanswered"), "XX.YYYY")
    for key, inner in value.items():
        name = names.get(path.rpartition(".")[2]) or key
        yield from keys_of(inner, f"{path}.{name}" if path else name)


def test_every_key_of_the_status_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/console.md").read_text("utf-8").partition("## status\n")[2]
    documented = [
        key for line in text.splitlines() if line.startswith("| `") for key in KEY.findall(line.split("|")[1])
    ]
    overridden = Bench(RESERVED)
    overridden.give("05.0047")
    running = built()
    running.run_guest(M1)
    older = Bench('kernel = { version = "7.1", irqs = 1 }')
    seen = {key for bench in (eventful(), overridden, running, older) for key in keys_of(bench.status())}
    seen -= {key for key in seen if any(other.startswith(f"{key}.") for other in seen)}  # empty in one of them
    assert sorted(documented) == sorted(seen)


def test_the_journal_is_numbered_and_complete(bench: Bench) -> None:
    bench.create(M1)
    with refused("ENODEV"):
        bench.put(M1, "assign_adapter", 64)
    bench.console("scan")
    bench.run_guest(M1)
    bench.put(M1, "assign_domain", 4)
    bench.put(M1, "assign_adapter", 5)
    entries = [json.loads(line) for line in bench.cat("/ctl/journal").splitlines()]
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    kinds = [entry["type"] for entry in entries]
    assert set(kinds) == {"uevent", "log", "store", "refusal", "verb", "guest", "interrupt"}
    refusal = entries[kinds.index("refusal")]
    assert refusal["path"] == f"{MATRIX}/{M1}/assign_adapter"
    assert (refusal["data"], refusal["errno"], refusal["operation"]) == ("64\n", "ENODEV", "write")


def test_kmsg_has_the_lines_of_the_log(bench: Bench) -> None:
    assert bench.cat("/ctl/kmsg") == ""
    bench.create(M1)
    (line,) = bench.cat("/ctl/kmsg").splitlines()
    assert line.startswith(f"vfio_ap_mdev {M1}: ")


def test_faults_do_not_hit_the_control_files(bench: Bench) -> None:
    with refused("ENOENT"):
        bench.console("fault /ctl/kmsg EIO")
    assert bench.cat("/ctl/kmsg") == ""
    assert bench.exists(queue("05.0004"))

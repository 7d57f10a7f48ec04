"""The sample machine of the reference, file by file, and what becomes of it when a domain is given to vfio_ap."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.ap.machines import ALL_ONES, BUS, CARD0, DEVICES, Q0, Q4, SAMPLE, all_but
from tests.hosts import Bench

LISTING = Path(__file__).with_name("sample_machine.txt")

# The sample machine had some traffic; nothing sends requests to an emulated card, so its counters stay at zero.
KNOWN_DIFFERENCES = {
    f"{CARD0}/request_count": ("4\n", "0\n"),
    f"{CARD0}/00.0029/request_count": ("2\n", "0\n"),
    f"{CARD0}/00.002a/request_count": ("2\n", "0\n"),
    f"{DEVICES}/card04/request_count": ("6\n", "0\n"),
    f"{DEVICES}/card04/04.002a/request_count": ("6\n", "0\n"),
}


def listing() -> dict[str, tuple[str, str]]:
    """Return what the listing says: mode (or `link`) and content (or link text) by path."""
    found = {}
    directory = ""
    for line in LISTING.read_text("ascii").splitlines():
        if line.startswith("/"):
            directory = line
        elif line.startswith("  "):
            kind, name, *rest = line[2:].split(" ", 2)
            found[f"{directory}/{name}"] = (kind, (rest or [""])[0].replace("\\n", "\n"))
    return found


def shown(box: Bench) -> dict[str, tuple[str, str]]:
    """Return what the emulated tree has, in the same form, directories left out."""
    found = {}
    for root in (BUS, DEVICES):
        for path, node in box.find(root):
            if stat.S_ISLNK(node.mode):
                found[path] = ("link", box.readlink(path))
            elif stat.S_ISREG(node.mode):
                content = box.cat(path) if node.mode & 0o444 else ""
                found[path] = (f"{stat.S_IMODE(node.mode):04o}", content)
    return found


def aged() -> Bench:
    """Boot the machine and let it scan until it has scanned as often as the sample machine had."""
    box = Bench(SAMPLE)
    for _ in range(11):
        box.host.scan()
    return box


def test_the_listing_is_complete() -> None:
    assert len(listing()) == 141


def test_the_whole_listing() -> None:
    expected = listing()
    for path, (there, here) in KNOWN_DIFFERENCES.items():
        kind, content = expected[path]
        assert content == there
        expected[path] = (kind, here)
    assert shown(aged()) == expected


def test_the_directories_are_those_of_the_listing() -> None:
    box = aged()
    expected = {BUS, DEVICES}
    for path in listing():
        while (path := path.rsplit("/", 1)[0]).startswith((f"{BUS}/", f"{DEVICES}/")):
            expected.add(path)
    found = {path for root in (BUS, DEVICES) for path, node in box.find(root) if stat.S_ISDIR(node.mode)}
    assert found == expected


def test_all_regular_files_have_a_page_and_one_link() -> None:
    box = aged()
    for root in (BUS, DEVICES):
        for path, node in box.find(root):
            if stat.S_ISREG(node.mode):
                assert (node.size, node.nlink) == (4096, 1), path


def test_devices_are_reached_by_the_links_of_the_bus() -> None:
    box = aged()
    assert box.cat(f"{BUS}/devices/card00/00.0029/mkvps") == box.cat(f"{Q0}/mkvps")
    assert box.cat(f"{BUS}/devices/00.0029/mkvps") == box.cat(f"{Q0}/mkvps")
    assert box.cat(f"{BUS}/drivers/cex4card/card00/type") == "CEX8C\n"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/sys/module/ap/parameters/domain", "41\n"),
        ("/sys/module/ap/parameters/poll_thread", "0\n"),
        ("/sys/module/ap/parameters/useirq", "1\n"),
        ("/sys/module/ap/parameters/msgpool_min_items", "8\n"),
        ("/sys/module/ap/parameters/apmask", "(null)\n"),
        ("/sys/module/ap/parameters/aqmask", "(null)\n"),
    ],
)
def test_parameters_of_the_bus(path: str, content: str) -> None:
    box = aged()
    assert box.cat(path) == content
    expected = 0o400 if path.endswith("min_items") else 0o444
    assert stat.S_IMODE(box.stat(path).mode) == expected


def test_paths_beside_the_bus() -> None:
    box = aged()
    assert box.readlink("/sys/module/zcrypt_cex4/drivers/ap:cex4card") == "../../../bus/ap/drivers/cex4card"
    assert box.readlink("/sys/module/zcrypt_cex4/drivers/ap:cex4queue") == "../../../bus/ap/drivers/cex4queue"
    assert box.exists("/sys/module/zcrypt")
    assert box.exists("/sys/class/misc/z90crypt/dev")
    assert not box.exists("/sys/module/vfio_ap")
    assert not box.exists(f"{BUS}/drivers/vfio_ap")


# -- after modprobe vfio_ap; echo -0x29 > aqmask ----------------------------------------------------------------------


@pytest.fixture
def given_away() -> Bench:
    box = aged()
    box.host.modprobe("vfio_ap")
    assert [event.devpath for event in box.heard() if event.devpath.startswith("/devices/ap")] == []
    assert box.cat(f"{BUS}/bindings_complete_count") == "1\n"
    assert box.echo("-0x29", f"{BUS}/aqmask") == 6
    return box


def test_loading_vfio_ap_shows_its_driver(given_away: Bench) -> None:
    assert given_away.readlink(f"{BUS}/drivers/vfio_ap/module") == "../../../../module/vfio_ap"
    assert given_away.readlink("/sys/module/vfio_ap/drivers/ap:vfio_ap") == "../../../bus/ap/drivers/vfio_ap"
    assert given_away.names(f"{BUS}/drivers/vfio_ap") == {"00.0029", "04.0029", "bind", "unbind", "uevent", "module"}
    assert given_away.names(f"{BUS}/drivers/cex4queue") == {"00.002a", "04.002a", "bind", "unbind", "uevent", "module"}
    for device in ("00.0029", "04.0029"):
        target = f"../../../../devices/ap/card{device[:2]}/{device}"
        assert given_away.readlink(f"{BUS}/drivers/vfio_ap/{device}") == target


def test_the_bus_after_giving_a_domain_away(given_away: Bench) -> None:
    assert given_away.cat(f"{BUS}/aqmask") == all_but(0x29)
    assert given_away.cat(f"{BUS}/apmask") == f"{ALL_ONES}\n"
    assert given_away.cat(f"{BUS}/bindings") == "4/4 (complete)\n"
    assert given_away.cat(f"{BUS}/ap_domain") == "41\n"


@pytest.mark.parametrize(("queue", "mode"), [(Q0, "cca"), (Q4, "ep11")])
def test_the_queues_that_were_given_away(given_away: Bench, queue: str, mode: str) -> None:
    assert given_away.readlink(f"{queue}/driver") == "../../../../bus/ap/drivers/vfio_ap"
    assert given_away.cat(f"{queue}/status") == "unassigned\n"
    assert given_away.cat(f"{queue}/request_count") == "-\n"
    assert given_away.cat(f"{queue}/interrupt") == "Interrupts disabled.\n"
    assert given_away.cat(f"{queue}/uevent") == f"DEVTYPE=ap_queue\nDRIVER=vfio_ap\nMODE={mode}\n"
    always = {"uevent", "subsystem", "driver", "request_count", "requestq_count", "pendingq_count", "reset"}
    always |= {"interrupt", "config", "chkstop", "ap_functions", "driver_override"}
    assert given_away.names(queue) == always | {"status"}


def test_the_other_queues_stay_as_they_were(given_away: Bench) -> None:
    for path in (f"{CARD0}/00.002a", f"{DEVICES}/card04/04.002a"):
        expected = {name: entry for name, entry in listing().items() if name.startswith(f"{path}/")}
        found = {name: entry for name, entry in shown(given_away).items() if name.startswith(f"{path}/")}
        for name in KNOWN_DIFFERENCES:
            if name in expected:
                expected[name] = (expected[name][0], KNOWN_DIFFERENCES[name][1])
        assert found == expected


def test_the_events_of_giving_a_domain_away(given_away: Bench) -> None:
    assert given_away.events() == [
        "unbind card00/00.0029 DEVTYPE=ap_queue MODE=cca",
        "bind card00/00.0029 DEVTYPE=ap_queue DRIVER=vfio_ap MODE=cca",
        "unbind card04/04.0029 DEVTYPE=ap_queue MODE=ep11",
        "bind card04/04.0029 DEVTYPE=ap_queue DRIVER=vfio_ap MODE=ep11",
        f"change /devices/ap AQMASK={all_but(0x29)}",
    ]
    assert given_away.cat(f"{BUS}/bindings_complete_count") == "1\n"
    given_away.host.scan()
    assert given_away.events() == ["change /devices/ap BINDINGS=complete COMPLETECOUNT=2"]
    assert given_away.cat(f"{BUS}/bindings_complete_count") == "2\n"
    given_away.host.scan()
    assert given_away.events() == []


def test_overrides_are_refused_once_masks_give_queues_away(given_away: Bench) -> None:
    for queue in (Q0, f"{CARD0}/00.002a"):
        assert given_away.store(f"{queue}/driver_override", "vfio_ap") == "EINVAL"


@pytest.mark.parametrize(("adapters", "expected"), [("4", "EBUSY"), ("0xff", "EBUSY"), ("", "")])
def test_a_domain_in_use_is_not_taken_back(given_away: Bench, adapters: str, expected: str) -> None:
    uuid = "11111111-2222-4333-8444-555555555555"
    kind = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough"
    mdev = f"/sys/devices/vfio_ap/matrix/{uuid}"
    assert given_away.store(f"{kind}/create", uuid) == ""
    # The domain goes first: alone it is never refused, and then an adapter only has to be free in that domain.
    assert given_away.store(f"{mdev}/assign_domain", "0x29") == ""
    if adapters:
        assert given_away.store(f"{mdev}/assign_adapter", adapters) == ""
    before = given_away.dump()
    assert given_away.store(f"{BUS}/aqmask", "+0x29") == expected
    assert (given_away.dump() == before) == bool(expected)

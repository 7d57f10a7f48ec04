"""The gallery: every scenario boots, and is what it says."""

import pytest

from apfs.host import Host
from apfs.journal.records import Uevent
from apfs.scenario.gallery import descriptions
from apfs.scenario.model import DEFAULT
from apfs.scenario.reader import gallery, load
from apfs.testing.files import Shell

# A look at every file of these takes too long, and shows nothing that the others do not.
BIG = {"largest"}
NAMES = list(gallery())
COMPLETE = Uevent("change", "/devices/ap", "ap", (("BINDINGS", "complete"), ("COMPLETECOUNT", "2")))
# Their modes allow reading, but they have nothing to read it with.
UNREADABLE = {"/sys/class/zcrypt/create", "/sys/class/zcrypt/destroy"}


def test_there_is_a_default() -> None:
    assert DEFAULT in NAMES
    assert sorted(NAMES) == NAMES
    assert list(descriptions()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_boots_and_says_what_it_is(name: str) -> None:
    scenario = load(name)
    assert descriptions()[name] == scenario.description
    assert scenario.name == name
    assert len(scenario.description) > 20
    host = Host(scenario)
    assert list(host.journal) == []  # it boots in silence
    shell = Shell(host)
    assert shell.exists("/sys/bus/ap/apmask")
    queues = sum(1 for _ in host.tree.readdir(host.tree.resolve("/sys/bus/ap/devices"))) - len(scenario.cards)
    assert queues == len(scenario.cards) * len(scenario.qci.domains)
    assert shell.ls("/dev/vfio-ap") == [spec.uuid for spec in scenario.mdevs]
    for spec in scenario.mdevs:
        directory = f"/sys/devices/vfio_ap/matrix/{spec.uuid}"
        masks = (spec.adapters, spec.domains, spec.control_domains)
        assert shell.cat(f"{directory}/ap_config") == ",".join(mask.hex256() for mask in masks) + "\n"
        assert shell.cat(f"/dev/vfio-ap/{spec.uuid}/guest") == f"{int(spec.guest)}\n"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BIG])
def test_every_file_can_be_read(name: str) -> None:
    shell = Shell(Host(load(name)))
    for path, stat in shell.find("/sys"):
        if stat.mode & 0o170000 == 0o100000 and stat.mode & 0o444:
            if path not in UNREADABLE:
                shell.cat(path)
        elif stat.mode & 0o170000 == 0o120000:
            assert shell.exists(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_finds_nothing_new(name: str) -> None:
    host = Host(load(name))
    host.scan()
    # What moved queues while the machine booted had re-armed this event, which is sent at the end of a scan only.
    assert [record for _, record in host.journal if record != COMPLETE] == []
    last = host.journal.last
    host.scan()
    assert host.journal.last == last

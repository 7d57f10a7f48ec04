"""Machines that are not like an emulated host: other kernels, missing rights, devices that go while they are read."""

from __future__ import annotations

import errno
import posixpath
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from apfs.ap.mask import NONE, Mask
from apfs.ap.qinfo import FIELDS
from apfs.host import Host
from apfs.recording.reader import PAGE
from apfs.recording.recorder import HEAD, Recording, RecordingError, record
from apfs.recording.tree import Directory
from apfs.scenario.model import Scenario, ScenarioError
from apfs.scenario.reader import load, loads
from apfs.testing.files import Shell
from tests.ap.machines import SAMPLE
from tests.ap.test_sample_machine import listing
from tests.recording.machines import Copy
from tests.recording.strategies import visible

if TYPE_CHECKING:
    from pathlib import Path

BUS = "/sys/bus/ap"
CARD = "/sys/devices/ap/card05"
MATRIX = "/sys/devices/vfio_ap/matrix"
U1 = "11111111-aaaa-4aaa-8aaa-111111111111"
U2 = "22222222-bbbb-4bbb-8bbb-222222222222"
TWO = '[qci]\ndomains = [4, 0x47]\n[[card]]\nadapters = "5-6"\ntype = "CEX8P"\n'
GUEST = TWO + f'[masks]\napmask = "-5"\n[[mdev]]\nuuid = "{U1}"\nadapters = 5\ndomains = 4\nguest = true\n'
USUAL = 'sysfs does not tell an LPAR from a KVM guest: for the latter set environment = "kvm".'


def notes(recording: Recording) -> list[str]:
    return [note for note in recording.notes if note != USUAL]


def test_the_sample_machine() -> None:
    directories: dict[str, list[str]] = {}
    files = {}
    for path, (kind, text) in listing().items():
        if kind != "link":
            files[path] = text
        while path != "/":
            path, name = posixpath.split(path)  # noqa: PLW2901 -- up to the root
            names = directories.setdefault(path, [])
            if name not in names:
                names.append(name)
    recording = record(Copy(files, directories), "sample")
    assert visible(recording.scenario) == visible(loads(SAMPLE))
    assert recording.text() == (
        f"# {HEAD}\n# {USUAL}\n"
        'name = "sample"\ndescription = "1 CEX8C, 1 CEX8P; domains: 2"\nvfio_ap = false\n\n'
        "[qci]\ndomains = [0x29, 0x2a]\nmax_domain = 84\n\n"
        '[[card]]\nadapter = 0x00\ntype = "CEX8C"\nserial = "93AABEET"\n\n'
        '[[card]]\nadapter = 0x04\ntype = "CEX8P"\nserial = "93AABFKP00000000"\n'
    )


# -- older kernels ----------------------------------------------------------------------------------------------------


def test_a_kernel_without_what_came_later() -> None:
    later = (
        "features",
        "driver_override",
        "bindings",
        "bindings_complete_count",
        "chkstop",
        "ap_config",
        "guest_matrix",
    )
    copy = Copy.of(GUEST).without(*later, "ap_max_adapter_id", "scans").put(f"{MATRIX}/features", "guest_matrix\n")
    for card in ("05", "06"):
        copy.put(f"/sys/devices/ap/card{card}/depth", "7\n")  # the field itself
        for domain in ("0004", "0047"):
            del copy.files[f"/sys/devices/ap/card{card}/{card}.{domain}/ap_functions"]
    recording = record(copy)
    assert visible(recording.scenario) == visible(loads(GUEST))
    assert recording.scenario.driver == "none"
    assert notes(recording) == [
        "The kernel has no attribute features: the usual facilities are assumed.",
        "The kernel is the one that looks most like it: sysfs does not show all that it does.",
        "card05: serial number and master keys cannot be read without an online queue of zcrypt.",
    ]


@pytest.mark.parametrize(("driver", "seen"), [("none", "none"), ("v2", "v2"), ("v4", "v2"), ("next", "v2")])
def test_a_driver_with_or_without_migration(driver: str, seen: str) -> None:
    # Which revision of the migration series it has cannot be seen in sysfs.
    copy = Copy.of(f'driver = "{driver}"\n{GUEST}')
    recording = record(copy)
    assert recording.scenario == replace(record(Copy.of(GUEST)).scenario, driver=seen)
    assert Copy.of(recording.text()).files == copy.files
    without = record(Copy.of(f'driver = "{driver}"\nvfio_ap = false\n'))
    assert without.scenario.driver == "v2"  # nothing is seen of it


def test_a_kernel_whose_queues_have_no_status() -> None:
    # Then the count of open devices is all there is.
    both = GUEST + f'[[mdev]]\nuuid = "{U2}"\n'
    recording = record(Copy.of(both).without("status"))
    assert [spec.guest for spec in recording.scenario.mdevs] == [True, False]
    note = f"{U1}, {U2}: 1 of these mediated devices are in use, sysfs does not tell which."
    assert note in recording.notes
    assert not any("in use" in note for note in record(Copy.of(both)).notes)
    assert [spec.guest for spec in record(Copy.of(both)).scenario.mdevs] == [True, False]


def test_assigned_matrix_of_a_kernel_without_ap_config() -> None:
    devices = f'[[mdev]]\nuuid = "{U1}"\nadapters = 5\n[[mdev]]\nuuid = "{U2}"\ndomains = [1, 2]\ncontrol_domains = 9\n'
    recording = record(Copy.of(TWO + devices).without("ap_config"))
    assert recording.scenario.mdevs == loads(TWO + devices).mdevs


def test_a_matrix_that_does_not_fit_its_attribute() -> None:
    big = f'[masks]\napmask = "0x0"\n[[mdev]]\nuuid = "{U1}"\nadapters = "0-9"\ndomains = "0-99"\n'
    copy = Copy.of(TWO + big)
    assert record(copy).scenario.mdevs == loads(TWO + big).mdevs
    recording = record(copy.without("ap_config"))
    assert recording.scenario.mdevs[0].adapters == Mask.up_to(5)
    assert f"{U1}: more is assigned than the attribute matrix can show." in recording.notes


def test_cards_that_are_too_old() -> None:
    copy = Copy.of(TWO)
    for name, text in (("hwtype", "9\n"), ("raw_hwtype", "9\n"), ("type", "CEX3C\n")):
        copy.put(f"{CARD}/{name}", text)
    recording = record(copy)
    assert list(recording.scenario.cards) == [6]
    assert recording.scenario.qci.adapters == Mask.of(5, 6)
    assert notes(recording) == ["card05: left out: cards older than CEX4 are not emulated."]


def test_a_card_that_does_not_tell_its_functions() -> None:
    copy = Copy.of(TWO)
    for path in (CARD, f"{CARD}/05.0004", f"{CARD}/05.0047"):
        del copy.files[f"{path}/ap_functions"]
    assert record(copy).scenario == record(Copy.of(TWO)).scenario
    del copy.files[f"{CARD}/type"]
    recording = record(copy)
    assert recording.text().count('type = "CEX8C"') == 1
    assert "card05: mode of operation unknown: CCA is assumed." in recording.notes


def test_a_machine_without_qci() -> None:
    text = TWO.replace("[4, 0x47]", "[4, 7]\nsupported = false")
    recording = record(Copy.of(text))
    assert recording.scenario.qci == replace(loads(text).qci, control_domains=Mask.of(4, 7))
    assert "supported = false" in recording.text()


# -- what emulated hosts do not have ----------------------------------------------------------------------------------


def test_keys_that_change() -> None:
    zero = "0" * 16
    copy = Copy.of(TWO.replace("CEX8P", "CEX8C"))
    shown = copy.files[f"{CARD}/05.0004/mkvps"]
    copy.put(f"{CARD}/05.0004/mkvps", shown.replace(f"AES NEW: empty 0x{zero}", f"AES NEW: full 0x{'1' * 16}"))
    copy.put(f"{CARD}/05.0047/mkvps", shown.replace(f"APKA OLD: invalid 0x{zero}", f"APKA OLD: valid 0x{'2' * 16}"))
    recording = record(copy)
    assert notes(recording) == []
    usual = loads(TWO).cards[5].master_keys
    keys = [recording.scenario.cards[5].keys(apqi) for apqi in (0x04, 0x47)]
    assert keys == [replace(usual, new_aes="1" * 16), replace(usual, old_apka="2" * 16)]


def test_keys_are_those_that_most_domains_have() -> None:
    text = TWO.replace("[4, 0x47]", '"1-5"').replace("CEX8P", "CEX8C")
    other = '[[queue]]\nadapters = "5-6"\ndomains = "2-5"\nmaster_keys = { aes = "0123456789abcdef", apka = "" }\n'
    recording = record(Copy.of(text + other))
    assert recording.text().partition("[qci]\n")[2] == (
        'domains = "0x01-0x05"\n\n'
        '[[card]]\nadapters = [0x05, 0x06]\ntype = "CEX8C"\n'
        'master_keys = {aes = "0123456789abcdef", apka = ""}\n\n'
        "[[queue]]\nadapters = [0x05, 0x06]\ndomains = 0x01\n"
        'master_keys = {aes = "b072bc5c245aac8a", apka = "1c2f3e4d5a6b7988"}\n'
    )


def test_what_a_scenario_has_no_words_for() -> None:
    copy = Copy.of(TWO)
    copy.put(f"{CARD}/05.0004/ap_functions", "0x06800001\n")
    copy.put(f"{CARD}/op_modes", "FIPS2009 FUTURE2030\n")
    copy.put(f"{BUS}/drivers_autoprobe", "0\n")
    copy.put(f"{BUS}/ap_domain", "-1\n")
    copy.put("/sys/module/ap/parameters/useirq", "0\n")
    copy.put("/sys/class/zcrypt/mine", "")
    copy.directories[f"{BUS}/drivers/cex4queue"].remove("06.0004")
    copy.directories[f"{BUS}/drivers/cex4queue"].remove("06.0047")
    copy.directories[f"{BUS}/drivers/vfio_ap"].append("06.0047")
    copy.put("/sys/devices/ap/card06/06.0047/status", "unassigned\n")
    copy.put("/sys/devices/ap/card06/06.0047/interrupt", "Interrupts disabled.\n")
    recording = record(copy)
    assert notes(recording) == [
        "New devices are not bound to drivers there (drivers_autoprobe is 0); here they are.",
        "Interrupts are switched off there (ap.useirq=0); here the environment decides.",
        "Device nodes of zcrypt are not recorded: mine.",
        "ap_domain is -1 there, 4 here.",
        "05.0004: ap_functions has bits that no scenario has names for: 0x06800001.",
        "card05: operational modes that are not emulated: FIPS2009 FUTURE2030.",
        "05.0004, 05.0047: operational modes differ from those of the card: FIPS2009 FIPS2011.",
        "06.0004: bound to no driver there, to cex4queue here.",
        "06.0047: bound to vfio_ap there, to cex4queue here.",
    ]
    Host(loads(recording.text()))


def test_many_things_are_not_all_named() -> None:
    copy = Copy.of(TWO.replace("[4, 0x47]", '"0-255"'))
    copy.directories[f"{BUS}/drivers/cex4queue"].clear()
    assert "05.0000, 05.0001, 05.0002, 05.0003 and 508 more: bound to no driver there, to cex4queue here." in (
        record(copy).notes
    )


def test_overrides_beside_masks_are_left_out() -> None:
    copy = Copy.of(TWO).put(f"{BUS}/apmask", f"0x{'0' * 64}\n").put(f"{CARD}/05.0004/driver_override", "vfio_ap\n")
    recording = record(copy)
    assert (recording.scenario.overrides, recording.scenario.apmask) == ({}, NONE)
    assert "05.0004: overrides are left out: a scenario has either masks or overrides." in recording.notes


def test_devices_that_an_emulated_host_refuses_are_left_out() -> None:
    copy = Copy.of(GUEST)
    copy.put(f"{BUS}/apmask", f"0x{'f' * 64}\n").put(f"{BUS}/drivers/cex4queue/05.0004", "")
    recording = record(copy)
    assert recording.scenario.mdevs == ()
    assert any(note.startswith(f"{U1}: left out: queue 05.0004 is reserved for the host's") for note in recording.notes)


def test_a_secure_execution_guest_without_bind_states() -> None:
    recording = record(Copy.of(TWO).put("/sys/firmware/uv/prot_virt_guest", "1\n"))
    assert (recording.scenario.secure_execution, recording.scenario.environment) == (True, "kvm")


def test_what_a_card_says_of_itself() -> None:
    copy = Copy.of(TWO).put(f"{CARD}/op_modes", "FIPS2009 FIPS2021\n").put(f"{CARD}/max_msg_size", "8192\n")
    copy.put(f"{CARD}/05.0004/driver_override", "(null)\n")  # a kernel's text for none
    recorded = record(copy).scenario
    assert recorded.cards[5].op_modes == ("FIPS2009", "FIPS2021")
    assert FIELDS["ml"].get(recorded.cards[5].word(4)) == 8192 // PAGE
    assert recorded.overrides == {}


def test_a_device_needs_one_file_of_its_assignments() -> None:
    names = {"matrix", "ap_config"}
    for name in names:
        copy = Copy.of(GUEST)
        del copy.files[f"{MATRIX}/{U1}/{name}"]
        assert record(copy).scenario.mdevs == loads(GUEST).mdevs
    copy = Copy.of(GUEST)
    for name in names:
        del copy.files[f"{MATRIX}/{U1}/{name}"]
    recording = record(copy)
    assert recording.scenario.mdevs == ()
    assert f"{U1}: left out: what is assigned was not readable." in recording.notes


def test_notes_that_quote_a_file_stay_comments() -> None:
    copy = Copy.of(TWO).put(f"{CARD}/op_modes", 'FIPS2009\nname = "x"\n\0')
    assert loads(record(copy).text()).name == "recorded"


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_missing_rights_are_told() -> None:
    keys = [f"/sys/devices/ap/card0{card}/0{card}.{domain}/mkvps" for card in (5, 6) for domain in ("0004", "0047")]
    recording = record(Copy.of(TWO).fail(errno.EACCES, *keys, f"{BUS}/poll_timeout").fail(errno.EIO, f"{CARD}/depth"))
    assert recording.unread == (
        f"Not read: {CARD}/depth: Input/output error.",
        f"Not read: {', '.join(keys[:4])} and 1 more: Permission denied.",
    )
    assert recording.scenario == record(Copy.of(TWO)).scenario
    assert f"# {recording.unread[0]}\n" in recording.text()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_a_card_that_vanishes_while_it_is_read(number: int) -> None:
    copy = Copy.of(TWO)
    copy.fail(number, *(path for path in (*copy.files, *copy.directories) if path.startswith(CARD)))
    recording = record(copy)
    assert list(recording.scenario.cards) == [6]
    assert "card05: left out: hwtype was not readable." in recording.notes
    assert recording.unread == ()


def test_a_queue_that_vanishes_while_it_is_read() -> None:
    copy = Copy.of(TWO)
    copy.fail(errno.ENODEV, *(path for path in (*copy.files, *copy.directories) if path.startswith(f"{CARD}/05.0004")))
    assert record(copy).scenario == record(Copy.of(TWO)).scenario


def test_a_device_that_vanishes_while_it_is_read() -> None:
    copy = Copy.of(GUEST)
    copy.fail(errno.ENODEV, *(path for path in (*copy.files, *copy.directories) if path.startswith(f"{MATRIX}/{U1}")))
    recording = record(copy)
    assert recording.scenario.mdevs == ()
    assert f"{U1}: left out: what is assigned was not readable." in recording.notes


@pytest.mark.parametrize("junk", ["", "\n", "junk\n", "0x\n", "-1\n", "99999999999\n", "\xff\n", "1.2.3\n"])
def test_contents_that_nobody_expects(junk: str) -> None:
    copy = Copy.of(GUEST)
    for path in copy.files:
        if path.startswith((BUS, "/sys/devices/ap", MATRIX)) and not path.endswith("/features"):
            copy.put(path, junk)
    try:
        Host(loads(record(copy).text()))
    except ScenarioError as error:
        assert error.reason  # noqa: PT017 -- it may be impossible, but then it says why


def test_no_ap_bus() -> None:
    with pytest.raises(RecordingError, match="looked for /sys/bus/ap"):
        record(Copy({}, {"/sys": ["bus"], "/sys/bus": []}))
    with pytest.raises(RecordingError, match="/sys/bus/ap: Permission denied"):
        record(Copy.of(TWO).fail(errno.EACCES, BUS))


def test_a_directory_on_disk(tmp_path: Path) -> None:
    copy = Copy.of(GUEST)
    root = copy.on_disk(tmp_path)
    assert record(Directory(root)).text() == record(copy).text()
    assert record(Directory(root)).text() == record(Shell(Host(loads(GUEST)))).text()


# -- hosts that have been in use --------------------------------------------------------------------------------------


def changed(host: Host) -> None:
    """Do what operators do in the course of a day."""
    shell = Shell(host)
    shell.console("plug 7 CEX7A", "plug 9 CEX8C", "add-domain 0x10", "scan", "configure 9 off", "scan")
    shell.echo("-7", f"{BUS}/apmask")
    shell.echo(0, "/sys/devices/ap/card06/06.0047/online")
    shell.echo(0x47, f"{BUS}/ap_domain")
    shell.echo(60, f"{BUS}/config_time")
    for uuid in (U2, U1):
        shell.write(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", uuid)
    shell.echo(7, f"{MATRIX}/{U2}/assign_adapter")
    shell.echo(0x10, f"{MATRIX}/{U2}/assign_domain")
    shell.echo(1, f"/dev/vfio-ap/{U2}/guest")


def test_a_host_in_use() -> None:
    host = Host(loads(TWO))
    changed(host)
    recording = record(Shell(host))
    copy = Host(loads(recording.text()))
    there, here = Copy.of(TWO, changed), Copy.of(recording.text())
    assert there.directories.keys() == here.directories.keys()
    # What a day leaves behind besides its outcome: counters, and whether a queue was ever in use.
    history = {"scans", "bindings_complete_count", "reset", "interrupt"}
    differ = {path for path in there.files if there.files[path] != here.files[path]}
    assert {posixpath.basename(path) for path in differ} == history
    assert [spec.uuid for spec in recording.scenario.mdevs] == [U2, U1]
    assert copy.ap_bus.default_domain == 0x47


def test_the_gallery_needs_no_more_than_the_usual_notes() -> None:
    recording = record(Shell(Host(load("default"))))
    assert (recording.notes, recording.unread) == ((USUAL,), ())
    assert record(Shell(Host(Scenario(environment="zvm")))).notes == ()

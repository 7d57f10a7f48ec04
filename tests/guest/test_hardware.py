"""What a guest has: the matrix of its mediated device, as the host's hardware is at each moment."""

from __future__ import annotations

import select

import pytest

from apfs.journal.records import Uevent
from apfs.sysfs.entries import READ
from tests.hosts import M1, M2, MATRIX, Bench, mask_text, refused

from .guests import HOST, on, queues, rescan, started
from .test_nested import passing

BUS = "/sys/bus/ap"


def test_a_guest_has_the_guest_matrix() -> None:
    host = started()
    guest = on(host)
    assert queues(guest) == host.guest_matrix(M1) == ["05.0004", "05.00ab", "06.0004", "06.00ab"]
    assert guest.cat(f"{BUS}/ap_adapter_mask") == mask_text((5, 6)) + "\n"
    assert guest.cat(f"{BUS}/ap_usage_domain_mask") == mask_text((4, 0xAB)) + "\n"
    assert guest.cat(f"{BUS}/ap_control_domain_mask") == mask_text((4,)) + "\n"


def test_a_guest_is_an_ordinary_linux_with_zcrypt() -> None:
    guest = on(started())
    assert guest.cat("/sys/devices/ap/card05/type") == "CEX8P\n"
    assert guest.cat("/sys/devices/ap/card05/05.0004/online") == "1\n"
    assert guest.readlink("/sys/devices/ap/card05/05.0004/driver").endswith("/cex4queue")
    assert guest.cat(f"{BUS}/bindings") == "4/4 (complete)\n"
    assert not guest.exists("/sys/devices/vfio_ap")
    assert len(guest.journal) == 0


def test_serial_number_and_keys_are_those_of_the_card() -> None:
    host = started()
    host.console("plug 0x0a CEX7P", "scan")
    for name in ("serialnr", "FW_version", "API_ordinalnr", "op_modes", "type"):
        # Adapter 7 has the same keys as 5, and the host's zcrypt can be asked for them.
        shown = on(host).cat(f"/sys/devices/ap/card05/{name}")
        assert shown.strip()
        assert shown == host.cat(f"/sys/devices/ap/card07/{name}").replace("93AA0007", "93AA0005")
    assert on(host).cat("/sys/devices/ap/card05/05.0004/mkvps") == host.cat("/sys/devices/ap/card07/07.0004/mkvps")


def test_there_is_no_guest_before_the_device_is_open_and_after_it_is_closed() -> None:
    host = started()
    on(host)
    host.run_guest(M1, 0)
    with refused("ENODEV"):
        on(host)
    host.run_guest(M1)
    assert queues(on(host)) == host.guest_matrix(M1)


def test_without_a_guest_it_is_told_how_to_start_one() -> None:
    host = started()
    host.create(M2)
    with pytest.raises(Exception, match=f"no guest runs on mediated device {M2}: write 1 to /dev/vfio-ap/{M2}/guest"):
        on(host, M2)
    with pytest.raises(Exception, match="there is no mediated device nonsense"):
        on(host, "nonsense")


def test_hot_plug_arrives_at_the_next_scan_of_the_guest() -> None:
    host = started(adapters=(5,))
    guest = on(host)
    host.assign(M1, (6,))
    assert queues(guest) == ["05.0004", "05.00ab"]
    host.console("tick 30")
    assert queues(guest) == host.guest_matrix(M1) == ["05.0004", "05.00ab", "06.0004", "06.00ab"]
    added = [event.devpath for event in guest.uevents(action="add")]
    assert added == ["/devices/ap/card06", "/devices/ap/card06/06.0004", "/devices/ap/card06/06.00ab"]
    assert not [event for event in host.records(Uevent) if event.action != "change"]


def test_hot_unplug_is_felt_at_once_and_seen_at_the_next_scan() -> None:
    host = started()
    guest = on(host)
    host.put(M1, "unassign_adapter", 6)
    # TAPQ answers that there is no such queue, which the attribute takes for a word without any bits.
    assert guest.cat("/sys/devices/ap/card06/06.0004/ap_functions") == "0x00000000\n"
    rescan(guest)
    assert queues(guest) == host.guest_matrix(M1) == ["05.0004", "05.00ab"]
    assert [event.devpath for event in guest.uevents("*/card06", "remove")] == ["/devices/ap/card06"]


def test_each_system_scans_in_its_own_time() -> None:
    host = started(adapters=(5,))
    guest = on(host)
    guest.echo(7, f"{BUS}/config_time")
    host.assign(M1, (6,))
    scans = host.cat(f"{BUS}/scans")
    host.console("tick 6")
    assert "06.0004" not in queues(guest)
    host.console("tick 1")
    assert "06.0004" in queues(guest)
    assert host.cat(f"{BUS}/scans") == scans


def test_a_deconfigured_card_is_deconfigured_in_the_guest() -> None:
    host = started()
    guest = on(host)
    host.console("configure 5 off")
    rescan(guest)
    assert guest.cat("/sys/devices/ap/card05/config") == guest.cat("/sys/devices/ap/card05/05.0004/config") == "0\n"
    assert guest.cat("/sys/devices/ap/card06/config") == "1\n"
    host.console("configure 5 on")
    rescan(guest)
    assert guest.cat("/sys/devices/ap/card05/05.0004/online") == "1\n"


def test_a_check_stopped_card_is_check_stopped_in_the_guest() -> None:
    host = started()
    guest = on(host)
    host.console("checkstop 6 on")
    rescan(guest)
    assert guest.cat("/sys/devices/ap/card06/chkstop") == guest.cat("/sys/devices/ap/card06/06.00ab/chkstop") == "1\n"
    assert guest.cat("/sys/devices/ap/card06/online") == "0\n"


def test_a_card_taken_out_of_the_host_is_gone_in_the_guest() -> None:
    host = started()
    guest = on(host)
    host.console("unplug 5")
    rescan(guest)  # the host has not noticed yet, the instructions of the guest have
    assert host.guest_matrix(M1)[0] == "05.0004"
    assert queues(guest) == ["06.0004", "06.00ab"]
    rescan(host, guest)
    assert queues(guest) == host.guest_matrix(M1)
    assert guest.cat(f"{BUS}/ap_adapter_mask") == mask_text((6,)) + "\n"


def test_a_guest_cannot_configure_cards() -> None:
    guest = on(started())
    with refused("EOPNOTSUPP"):
        guest.echo(0, "/sys/devices/ap/card05/config")


@pytest.mark.parametrize(
    "verb",
    ["plug 1 CEX8C", "unplug 5", "add-domain 5", "configure 5 off", "checkstop 5 on", "tapq 5 bs=2"],
)
def test_nobody_can_plug_into_a_guest(verb: str) -> None:
    host = started()
    before = host.status()["cards"]
    with refused("EOPNOTSUPP"):
        on(host).console(verb)
    assert host.status()["cards"] == before


def test_a_reset_of_the_guest_can_be_made_to_fail() -> None:
    host = started()
    guest = on(host)
    guest.console("modprobe vfio_ap", "fail-reset 05.0004 7")
    guest.echo("-5", f"{BUS}/apmask")
    guest.echo("+5", f"{BUS}/apmask")
    assert not guest.status()["failing_resets"]
    assert any("05.0004 failed" in line for line in guest.kmsg())
    assert not host.status()["failing_resets"]


def test_masks_of_a_guest_are_its_own() -> None:
    host = started()
    guest = on(host)
    before = host.dump("/sys/bus/ap", MATRIX)
    guest.echo("-5", f"{BUS}/apmask")
    assert guest.cat(f"{BUS}/bindings") == "2/4\n"
    assert host.dump("/sys/bus/ap", MATRIX) == before


def test_two_guests_know_nothing_of_each_other() -> None:
    host = started(adapters=(5,))
    host.create(M2)
    host.assign(M2, (6,), (4,))
    host.run_guest(M2)
    assert queues(on(host)) == ["05.0004", "05.00ab"]
    assert queues(on(host, M2)) == ["06.0004"]
    on(host).echo("-5", f"{BUS}/apmask")
    assert not on(host, M2).uevents()


def test_a_guest_of_a_machine_without_qci_has_none_either() -> None:
    host = Bench(
        "[qci]\nsupported = false\ndomains = [4]\n[[card]]\nadapter = 5\ntype = 'CEX8P'\n[masks]\napmask = '-5'\n"
    )
    host.create(M1)
    host.run_guest(M1)
    assert on(host).cat(f"{BUS}/ap_adapter_mask") == host.cat(f"{BUS}/ap_adapter_mask") == "not supported\n"


def test_a_guest_can_be_there_from_the_start() -> None:
    text = HOST + f'[[mdev]]\nuuid = "{M1}"\nadapters = [5]\ndomains = [4]\nguest = true\n'
    host = Bench(text)
    assert queues(on(host)) == host.guest_matrix(M1) == ["05.0004"]


def test_the_clock_of_a_host_is_that_of_its_guests() -> None:
    host = started()
    inner = on(passing(host), M2)
    host.host.follow_clock()
    assert [shell.status()["clock"] for shell in (host, on(host), inner)] == ["real"] * 3


def test_whoever_polls_the_journal_of_a_guest_hears_of_its_end() -> None:
    host = started()
    tree = host.host.tree
    file = tree.open(tree.resolve(f"/guests/{M1}/ctl/journal"), READ)
    assert file.poll() == 0
    host.run_guest(M1, 0)
    assert file.poll() == select.POLLHUP

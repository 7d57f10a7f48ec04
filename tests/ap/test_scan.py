"""Bus scans: what comes, goes and changes, and when the bus says that all queues have a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from apfs.ap.bus import ApBus
from apfs.ap.hardware import CardHardware, Machine
from apfs.ap.mask import Mask
from apfs.ap.qinfo import Qci, hwinfo_of
from apfs.journal.log import Journal
from apfs.journal.records import Uevent
from apfs.sysfs.entries import READ
from apfs.sysfs.tree import Tree
from tests.ap.machines import BUS, CARD0, CARD4, DEVICES, Q0, Q4, bits, sample, toml
from tests.calls import calls
from tests.hosts import WORKED, Bench

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def box() -> Bench:
    return sample()


def short(box: Bench) -> list[str]:
    """Scan, and return the short events."""
    box.heard()
    box.host.scan()
    return box.short_events()


COMPLETE = "change /devices/ap BINDINGS=complete COMPLETECOUNT="


# -- the first scan ----------------------------------------------------------------------------------------------------


def test_the_first_scan() -> None:
    journal = Journal()
    numbers = Mask.of(0x29, 0x2A)
    machine = Machine(Qci(adapters=Mask.of(0, 4), domains=numbers, control_domains=numbers))
    machine.cards = {0: CardHardware(hwinfo_of("CEX8C"), "0"), 4: CardHardware(hwinfo_of("CEX8P"), "4")}
    bus = ApBus(Tree(journal), machine)
    assert bus.bindings() == (0, 0, False)
    assert bus.default_domain == -1
    bus.scan()
    events = [record for _, record in journal if isinstance(record, Uevent)]
    queues = [[f"{action} {queue}" for action in ("add", "bind")] for queue in ("29", "2a")]
    expected = [
        line.replace(" ", f" /devices/ap/card{apid}{'/' if ' 2' in line else ''}").replace("/2", f"/{apid}.002")
        for apid in ("00", "04")
        for line in ["add ", "bind ", *queues[0], *queues[1]]
    ]
    assert [f"{event.action} {event.devpath}" for event in events[:-2]] == expected
    assert [event.keys for event in events[-2:]] == [
        (("INITSCAN", "done"),),
        (("BINDINGS", "complete"), ("COMPLETECOUNT", "1")),
    ]
    assert {event.devpath for event in events[-2:]} == {"/devices/ap"}
    assert bus.default_domain == 0x29
    bus.scan()
    assert journal.last == len(events)


def test_a_scan_of_a_machine_that_stays_the_same_says_nothing(box: Bench) -> None:
    before = box.dump()
    assert short(box) == []
    changed = {path: text for path, text in box.dump().items() if before[path] != text}
    assert changed == {f"{BUS}/scans": "0644 2\n"}


# -- plugging and pulling ----------------------------------------------------------------------------------------------


def test_a_card_comes(box: Bench) -> None:
    box.host.plug(2, "CEX7A")
    assert not box.exists(f"{DEVICES}/card02")
    assert box.events() == []
    box.host.scan()
    card = "DEV_TYPE=000D MODALIAS=ap:t0D MODE=accel"
    assert box.events() == [
        f"add card02 DEVTYPE=ap_card {card}",
        f"bind card02 DEVTYPE=ap_card DRIVER=cex4card {card}",
        "add card02/02.0029 DEVTYPE=ap_queue MODE=accel",
        "bind card02/02.0029 DEVTYPE=ap_queue DRIVER=cex4queue MODE=accel",
        "add card02/02.002a DEVTYPE=ap_queue MODE=accel",
        "bind card02/02.002a DEVTYPE=ap_queue DRIVER=cex4queue MODE=accel",
        f"{COMPLETE}2",
    ]
    assert box.cat(f"{DEVICES}/card02/type") == "CEX7A\n"
    assert box.cat(f"{BUS}/ap_adapter_mask") == bits(0, 2, 4)


def test_a_card_goes(box: Bench) -> None:
    box.host.unplug(0)
    assert box.exists(CARD0)
    box.host.scan()
    queue = "DEVTYPE=ap_queue MODE=cca"
    assert box.events() == [
        f"unbind card00/00.0029 {queue}",
        f"remove card00/00.0029 {queue}",
        f"unbind card00/00.002a {queue}",
        f"remove card00/00.002a {queue}",
        "unbind card00 DEVTYPE=ap_card DEV_TYPE=000E MODE=cca",
        "remove card00 DEVTYPE=ap_card DEV_TYPE=000E MODALIAS=ap:t0E MODE=cca",
    ]
    assert box.names(f"{BUS}/devices") == {"card04", "04.0029", "04.002a"}
    assert box.names(f"{BUS}/drivers/cex4card") == {"bind", "unbind", "uevent", "module", "card04"}
    assert box.cat(f"{BUS}/bindings") == "2/2 (complete)\n"


def test_what_had_no_driver_is_only_removed(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    box.host.unplug(0)
    assert short(box) == ["remove card00/00.0029", "unbind card00/00.002a", "remove card00/00.002a", "remove card00"]


def test_queues_of_a_card_go_in_the_order_in_which_they_came(box: Bench) -> None:
    box.host.change_domains(add=[5])
    box.host.scan()
    box.host.unplug(0)
    removed = [event for event in short(box) if event.startswith("remove")]
    assert removed == ["remove card00/00.0029", "remove card00/00.002a", "remove card00/00.0005", "remove card00"]


def test_a_card_that_was_replaced_between_two_scans_stays(box: Bench) -> None:
    box.host.unplug(0)
    box.host.plug(0, "CEX8C", serial="NEWCARD0")
    assert short(box) == []
    assert box.cat(f"{CARD0}/serialnr") == "NEWCARD0\n"


@pytest.mark.parametrize(
    ("fields", "again"),
    [
        ({"at": 13}, True),
        ({"cca": 0, "ep11": 1}, True),
        ({"slcf": 1}, True),
        ({"class": 0x40}, True),
        ({"bs": 2}, False),
        ({"nd": 20}, False),
        ({"qd": 3}, False),
        ({"ml": 5}, False),
    ],
)
def test_another_type_or_other_facilities_make_another_card(box: Bench, fields: dict[str, int], again: bool) -> None:  # noqa: FBT001 -- parametrized
    file = box.host.tree.open(box.host.tree.resolve(f"{Q0}/config"), READ)
    box.host.set_tapq(0, fields)
    events = short(box)
    if not again:
        assert events == []
        return
    assert events == [
        "unbind card00/00.0029",
        "remove card00/00.0029",
        "unbind card00/00.002a",
        "remove card00/00.002a",
        "unbind card00",
        "remove card00",
        "add card00",
        "bind card00",
        "add card00/00.0029",
        "bind card00/00.0029",
        "add card00/00.002a",
        "bind card00/00.002a",
        f"{COMPLETE}2",
    ]
    with pytest.raises(Exception, match="ENODEV"):
        file.read(0, 10)


def test_a_new_card_forgets_what_the_old_one_was_told(box: Bench) -> None:
    assert box.store(f"{CARD0}/online", "0") == ""
    box.host.ap_bus.cards[0].requests = 7
    box.host.set_tapq(0, {"at": 13})
    box.host.scan()
    assert box.cat(f"{CARD0}/online") == "1\n"
    assert box.cat(f"{CARD0}/request_count") == "0\n"
    assert box.cat(f"{CARD0}/type") == "CEX7C\n"


# -- domains -----------------------------------------------------------------------------------------------------------


def test_a_domain_comes_and_goes(box: Bench) -> None:
    box.host.change_domains(add=[5])
    assert short(box) == [
        "add card00/00.0005",
        "bind card00/00.0005",
        "add card04/04.0005",
        "bind card04/04.0005",
        f"{COMPLETE}2",
    ]
    assert box.cat(f"{BUS}/ap_usage_domain_mask") == bits(5, 0x29, 0x2A)
    box.host.change_domains(remove=[0x29])
    assert short(box) == [
        "unbind card00/00.0029",
        "remove card00/00.0029",
        "unbind card04/04.0029",
        "remove card04/04.0029",
    ]
    assert box.cat(f"{BUS}/ap_domain") == "41\n"


def test_the_domains_of_a_card_are_gone_through_in_ascending_order(box: Bench) -> None:
    # Both at once, on one card: each domain is looked at once, whatever has become of it.
    box.host.unplug(4)
    box.host.scan()
    box.host.change_domains(add=[5, 0x2B], remove=[0x29])
    assert short(box)[:-1] == [
        "add card00/00.0005",
        "bind card00/00.0005",
        "unbind card00/00.0029",
        "remove card00/00.0029",
        "add card00/00.002b",
        "bind card00/00.002b",
    ]


def test_removing_domains_is_the_more_work_the_more_queues_there_are() -> None:
    """As adding them: a scan of a host with 65,536 queues must not keep others waiting for half a minute."""

    def work(adapters: int) -> int:
        box = Bench(toml(dict.fromkeys(range(adapters), "CEX8C"), range(64)))
        box.host.change_domains(add=[99], remove=range(60))
        return calls(box.host.scan)

    few, many = work(4), work(32)
    assert many == pytest.approx(8 * few, rel=0.2)


def test_control_domains_make_no_queues(box: Bench) -> None:
    box.host.change_domains(add=[5], control=True)
    assert short(box) == []
    assert box.cat(f"{BUS}/ap_control_domain_mask") == bits(5, 0x29, 0x2A)


def test_a_queue_without_information_is_none(box: Bench) -> None:
    box.host.machine.cards[0].queues[0x29] = 0
    assert short(box) == ["unbind card00/00.0029", "remove card00/00.0029"]
    box.host.machine.cards[0].queues[0x2A] = 0
    assert short(box) == ["unbind card00/00.002a", "remove card00/00.002a", "unbind card00", "remove card00"]


def test_an_adapter_that_is_taken_from_the_configuration(box: Bench) -> None:
    box.host.machine.change(adapters=Mask.of(4))
    assert short(box)[-1] == "remove card00"
    box.host.machine.change(adapters=Mask.of(0, 4))
    assert short(box)[0] == "add card00"


def test_what_is_above_the_limits_is_not_seen() -> None:
    box = Bench(toml({1: "CEX8C"}, [4], qci="max_adapter = 20\nmax_domain = 84"))
    box.host.plug(20, "CEX8A")
    box.host.plug(21, "CEX8A")
    box.host.change_domains(add=[84, 85])
    box.host.scan()
    assert set(box.drivers()) == {"01.0004", "01.0054", "14.0004", "14.0054"}


@pytest.mark.parametrize("qci", ["supported = false", "facilities = []"])
def test_a_machine_without_qci_finds_its_cards_all_the_same(qci: str) -> None:
    box = Bench(toml({0: "CEX8C"}, [0, 15], qci=qci))
    box.host.plug(63, "CEX8P")
    box.host.plug(64, "CEX8P")
    box.host.change_domains(add=[3, 16])
    assert short(box) == [
        "add card00/00.0003",
        "bind card00/00.0003",
        "add card3f",
        "bind card3f",
        *(f"{action} card3f/3f.{domain:04x}" for domain in (0, 3, 15) for action in ("add", "bind")),
        f"{COMPLETE}2",
    ]
    box.host.unplug(0)
    assert short(box)[-1] == "remove card00"
    assert box.cat(f"{BUS}/ap_adapter_mask") == "not supported\n"


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facilities", [["APSC", "APXA", "QACT"], ["APSC", "APXA"]])
@pytest.mark.parametrize(
    ("at", "with_qact", "without"),
    [(0, None, None), (9, None, None), (10, 10, 10), (14, 14, 14), (15, 14, None), (20, 14, None)],
)
def test_hardware_types(facilities: list[str], at: int, with_qact: int | None, without: int | None) -> None:
    box = Bench(toml({0: "CEX8C"}, [0x29], qci=f"facilities = {facilities}", card=f"tapq = {{ at = {at} }}"))
    expected = with_qact if "QACT" in facilities else without
    assert box.exists(CARD0) == (expected is not None)
    if expected is not None:
        assert box.cat(f"{CARD0}/hwtype") == f"{expected}\n"
        assert box.cat(f"{CARD0}/raw_hwtype") == f"{at}\n"
        assert box.cat(f"{CARD0}/modalias") == f"ap:t{expected:02X}\n"
        assert f"DEV_TYPE={expected:04X}\n" in box.cat(f"{CARD0}/uevent")
        assert box.cat(f"{CARD0}/type") == f"CEX{expected - 6}C\n"
        assert box.driver(Q0) == "cex4queue"


def test_a_card_that_becomes_too_old_goes(box: Bench) -> None:
    box.host.set_tapq(0, {"at": 9})
    assert short(box)[-1] == "remove card00"
    box.host.set_tapq(0, {"at": 14})
    assert short(box)[0] == "add card00"


# -- states ------------------------------------------------------------------------------------------------------------


def test_check_stops_make_no_events(box: Bench) -> None:
    box.host.checkstop(0, on=True)
    assert box.cat(f"{CARD0}/chkstop") == "0\n"
    assert short(box) == []
    for path in (CARD0, Q0):
        assert box.cat(f"{path}/chkstop") == "1\n"
        assert box.cat(f"{path}/online") == "0\n"
        assert box.cat(f"{path}/config") == "1\n"
    assert box.cat(f"{CARD4}/chkstop") == box.cat(f"{Q4}/chkstop") == "0\n"
    assert box.driver(Q0) == "cex4queue"
    box.host.checkstop(0, on=False)
    assert short(box) == []
    assert box.cat(f"{CARD0}/chkstop") == "0\n"
    assert box.cat(f"{Q0}/online") == "1\n"


@pytest.mark.parametrize("driver", ["cex4queue", "vfio_ap"])
def test_configuring_from_outside(driver: str) -> None:
    box = sample(vfio_ap=True)
    if driver == "vfio_ap":
        assert box.store(f"{BUS}/apmask", "-0") == ""
        box.host.scan()
    for on in (False, True):
        box.heard()
        box.host.configure(0, on=on)
        assert box.events() == []
        box.host.scan()
        keys = f"DEVTYPE=ap_queue DRIVER={driver} MODE=cca"
        assert box.events() == [
            f"change card00 CONFIG={on:d} DEVTYPE=ap_card DRIVER=cex4card DEV_TYPE=000E MODALIAS=ap:t0E MODE=cca",
            f"change card00/00.0029 CONFIG={on:d} {keys}",
            f"change card00/00.002a CONFIG={on:d} {keys}",
        ]
        assert box.cat(f"{CARD0}/config") == box.cat(f"{Q0}/config") == f"{on:d}\n"
        assert box.driver(Q0) == driver
        assert short(box) == []


def test_a_deconfigured_card_can_be_plugged(box: Bench) -> None:
    box.host.plug(9, "CEX8A")
    box.host.configure(9, on=False)
    assert short(box)[0] == "add card09"
    assert box.cat(f"{DEVICES}/card09/config") == "0\n"
    assert box.cat(f"{DEVICES}/card09/09.0029/config") == "0\n"
    assert box.cat(f"{DEVICES}/card09/09.0029/online") == "0\n"
    box.host.configure(9, on=True)
    assert short(box) == [f"change card09{path} CONFIG=1" for path in ("", "/09.0029", "/09.002a")]
    assert box.cat(f"{DEVICES}/card09/09.0029/online") == "1\n"


# -- all queues have a driver ------------------------------------------------------------------------------------------


def unbind_queue(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""


def bind_queue(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""


def rebind_card(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    assert box.store(f"{BUS}/drivers_probe", "card00") == ""


def refused_bind(box: Bench) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == "EBUSY"
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""


def move(box: Bench) -> None:
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""


def move_there_and_back(box: Bench) -> None:
    move(box)
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""


def mask_without_queues(box: Bench) -> None:
    assert box.store(f"{BUS}/aqmask", "-200") == ""


def plug_what_is_not_shown(box: Bench) -> None:
    box.host.plug(9, "CEX8A", {"at": 9})


def new_control_domain(box: Bench) -> None:
    box.host.change_domains(add=[9], control=True)


def pull(box: Bench) -> None:
    box.host.unplug(0)


def take_domain(box: Bench) -> None:
    box.host.change_domains(remove=[0x29])


def new_domain(box: Bench) -> None:
    box.host.change_domains(add=[9])


def deconfigure(box: Bench) -> None:
    assert box.store(f"{CARD0}/config", "0") == ""


def offline(box: Bench) -> None:
    assert box.store(f"{CARD0}/online", "0") == ""


def overridden(box: Bench) -> None:
    assert box.store(f"{Q0}/driver_override", "vfio_ap") == ""


@pytest.mark.parametrize(
    ("steps", "armed"),
    [
        ([], False),
        ([unbind_queue, bind_queue], True),
        ([rebind_card], True),
        ([refused_bind], False),
        ([move], True),
        ([move_there_and_back], True),
        ([mask_without_queues], False),
        ([plug_what_is_not_shown], True),
        ([new_control_domain], False),
        ([pull], False),
        ([take_domain], False),
        ([new_domain], True),
        ([deconfigure, offline, overridden], False),
    ],
)
def test_what_makes_the_bus_tell_again(steps: list[Callable[[Bench], None]], armed: bool) -> None:  # noqa: FBT001 -- parametrized
    box = sample(vfio_ap=True)
    for step in steps:
        step(box)
    # Nothing is told before the next scan, whose number of events goes up by one at most.
    assert box.cat(f"{BUS}/bindings_complete_count") == "1\n"
    assert not any("BINDINGS" in event for event in box.events())
    box.host.scan()
    told = [event for event in box.events() if "BINDINGS" in event]
    assert told == ([f"{COMPLETE}2"] if armed else [])
    assert box.cat(f"{BUS}/bindings_complete_count") == ("2\n" if armed else "1\n")
    assert short(box) == []


def test_nothing_is_told_while_a_queue_has_no_driver() -> None:
    box = sample()
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert short(box) == []
    assert box.cat(f"{BUS}/bindings") == "2/4\n"
    # Having lost queues armed nothing, so getting rid of the rest tells nothing either.
    take_domain(box)
    assert "BINDINGS" not in " ".join(short(box))
    assert box.cat(f"{BUS}/bindings") == "2/2 (complete)\n"


def test_what_was_armed_stays_so_until_all_have_a_driver() -> None:
    box = sample(vfio_ap=True)
    unbind_queue(box)
    rebind_card(box)
    assert short(box) == []
    bind_queue(box)
    assert short(box) == [f"{COMPLETE}2"]


def test_loading_a_driver_tells_if_something_was_armed() -> None:
    box = sample()
    box.host.modprobe("vfio_ap")
    assert not any("BINDINGS" in event for event in box.events())
    box.host.rmmod("vfio_ap")
    unbind_queue(box)
    bind_queue(box)
    box.host.modprobe("vfio_ap")
    assert [event for event in box.events() if "BINDINGS" in event] == [f"{COMPLETE}2"]


# -- the default domain ------------------------------------------------------------------------------------------------


def domain(box: Bench) -> str:
    return box.cat(f"{BUS}/ap_domain").strip()


def test_the_default_domain_is_the_lowest_that_can_be_used() -> None:
    box = Bench(toml({3: "CEX8C"}, [9, 4, 200]))
    assert domain(box) == "4"


def test_no_default_domain_without_a_usable_adapter() -> None:
    box = Bench(toml({3: "CEX8C"}, [4], card="configured = false"))
    assert domain(box) == "-1"
    box.host.scan()
    assert domain(box) == "-1"
    box.host.configure(3, on=True)
    assert domain(box) == "-1"
    box.host.scan()
    assert domain(box) == "4"
    box.host.change_domains(add=[2])
    box.host.scan()
    assert domain(box) == "4"


def test_a_check_stopped_adapter_is_not_usable() -> None:
    assert domain(Bench(toml({3: "CEX8C"}, [4], card="checkstopped = true"))) == "-1"


def test_the_default_domain_is_one_that_the_masks_leave_to_the_host() -> None:
    box = Bench(toml({}, [4, 9]))
    assert domain(box) == "-1"
    assert box.store(f"{BUS}/aqmask", "-4") == ""
    assert box.store(f"{BUS}/apmask", "-3") == ""
    box.host.plug(3, "CEX8C")
    box.host.scan()
    assert domain(box) == "-1"
    box.host.plug(5, "CEX8C")
    box.host.scan()
    assert domain(box) == "9"
    assert box.store(f"{BUS}/aqmask", "-9,+4") == ""
    box.host.scan()
    assert domain(box) == "9"


def test_the_default_domain_stays_when_it_disappears() -> None:
    box = sample()
    box.host.unplug(0)
    box.host.unplug(4)
    box.host.change_domains(remove=[0x29])
    box.host.scan()
    assert domain(box) == "41"
    assert box.store(f"{BUS}/ap_domain", "-1") == "EINVAL"


# -- an LPAR that is told of changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "seen"),
    [
        ("plug 9 CEX8C", lambda box: box.exists("/sys/devices/ap/card09")),
        ("unplug 5", lambda box: not box.exists("/sys/devices/ap/card05")),
        ("add-domain 9", lambda box: box.exists("/sys/bus/ap/devices/05.0009")),
        ("remove-domain 4", lambda box: not box.exists("/sys/bus/ap/devices/05.0004")),
        ("add-control-domain 9", lambda box: box.cat("/sys/bus/ap/ap_control_domain_mask").startswith("0x0840")),
        ("configure 5 off", lambda box: box.cat("/sys/devices/ap/card05/config") == "0\n"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_changes_of_the_configuration(verb: str, seen: Callable[[Bench], bool], *, told: bool) -> None:
    """ap_bus_cfg_chg: a notification of CHSC forces a scan."""
    box = Bench("config_events = true\n" + WORKED if told else WORKED)
    scans = int(box.cat("/sys/bus/ap/scans"))
    box.console(verb)
    assert seen(box) is told
    assert int(box.cat("/sys/bus/ap/scans")) == scans + told
    box.console(verb.replace("plug 9 CEX8C", "checkstop 5 on").replace("unplug 5", "checkstop 6 on"))
    assert int(box.cat("/sys/bus/ap/scans")) == scans + told  # no change, or one that is not of the configuration

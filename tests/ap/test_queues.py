"""Queues: what they show by driver, mode and state, and what `online` and `reset` do."""

from __future__ import annotations

import pytest

from apfs.sysfs.entries import BOTH, READ
from tests.ap.machines import BUS, CARD0, CARD4, DEVICES, Q0, Q4, sample, toml
from tests.hosts import Bench, refused

ALWAYS = {
    "uevent",
    "subsystem",
    "request_count",
    "requestq_count",
    "pendingq_count",
    "reset",
    "interrupt",
    "config",
    "chkstop",
    "ap_functions",
    "driver_override",
}
IN_PROGRESS, NO_TIMER = "Reset in progress.\n", "No Reset Timer set.\n"


def one(kind: str, card: str = "", top: str = "") -> Bench:
    return Bench(toml({0: kind}, [0x29], top=top, card=card))


# -- which files there are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("CEX8A", {"online", "load"}),
        ("CEX8C", {"online", "load", "mkvps"}),
        ("CEX8P", {"online", "load", "mkvps", "op_modes"}),
    ],
)
def test_files_come_and_go_with_the_driver(kind: str, names: set[str]) -> None:
    box = one(kind)
    assert box.names(Q0) == ALWAYS | {"driver"} | names
    assert box.store(f"{BUS}/apmask", "-0") == ""
    assert box.names(Q0) == ALWAYS | {"driver", "status"}
    assert box.store(f"{BUS}/drivers/vfio_ap/unbind", "00.0029") == ""
    assert box.names(Q0) == ALWAYS
    assert box.store(f"{BUS}/apmask", "+0") == ""
    assert box.names(Q0) == ALWAYS
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.names(Q0) == ALWAYS | {"driver"} | names


def test_open_files_do_not_outlive_the_driver() -> None:
    box = sample(vfio_ap=True)
    online = box.host.tree.open(box.host.tree.resolve(f"{Q0}/online"), BOTH)
    config = box.host.tree.open(box.host.tree.resolve(f"{Q0}/config"), READ)
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    status = box.host.tree.open(box.host.tree.resolve(f"{Q0}/status"), READ)
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""
    for file in (online, status):
        with pytest.raises(Exception, match="ENODEV"):
            file.read(0, 10)
    assert bytes(config.read(0, 10)) == b"1\n"


# -- states ------------------------------------------------------------------------------------------------------------


def test_a_queue_is_uninitiated_once_it_was_unbound() -> None:
    box = sample(vfio_ap=True)
    box.host.ap_bus.cards[0].queue_requests[0x29] = 5
    assert box.cat(f"{Q0}/request_count") == "5\n"
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.cat(f"{Q0}/request_count") == "-\n"
    assert box.cat(f"{Q0}/requestq_count") == box.cat(f"{Q0}/pendingq_count") == "0\n"
    assert box.cat(f"{Q0}/interrupt") == "Interrupts disabled.\n"
    box.host.scan()
    assert box.cat(f"{Q0}/request_count") == "-\n"
    assert box.store(f"{BUS}/drivers/vfio_ap/unbind", "00.0029") == ""
    assert box.cat(f"{Q0}/request_count") == "-\n"
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""
    assert box.cat(f"{Q0}/request_count") == "-\n"
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.cat(f"{Q0}/request_count") != "-\n"
    assert box.cat(f"{Q0}/interrupt") == "Interrupts enabled.\n"


@pytest.mark.parametrize("vfio_ap", [True, False])
def test_a_queue_that_never_was_with_zcrypt_shows_a_number(vfio_ap: bool) -> None:  # noqa: FBT001 -- parametrized
    box = sample(vfio_ap=vfio_ap)
    assert box.store(f"{BUS}/apmask", "-9") == ""
    box.host.plug(9, "CEX8A")
    box.host.scan()
    queue = f"{DEVICES}/card09/09.0029"
    assert box.driver(queue) == ("vfio_ap" if vfio_ap else None)
    assert box.cat(f"{queue}/request_count") == "0\n"
    if not vfio_ap:
        assert box.cat(f"{queue}/reset") == IN_PROGRESS


@pytest.mark.parametrize("how", ["configured = false", "checkstopped = true"])
def test_a_queue_that_appears_unusable(how: str) -> None:
    for mask, driver, shown in (("", "cex4queue", "0\n"), ("-0", "vfio_ap", "-\n")):
        box = Bench(toml({}, [0x29]))
        if mask:
            assert box.store(f"{BUS}/apmask", mask) == ""
        box.host.plug(0, "CEX8C")
        if how.startswith("configured"):
            box.host.configure(0, on=False)
        else:
            box.host.checkstop(0, on=True)
        box.host.scan()
        assert box.driver(Q0) == driver
        assert box.cat(f"{Q0}/request_count") == shown
        assert box.cat(f"{Q0}/interrupt") == "Interrupts disabled.\n"
        assert box.cat(f"{Q0}/ap_functions") == "0x92800000\n"


# -- reset -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "0", "\n", "x", "\0"])
def test_a_reset_is_over_at_once_on_a_usable_queue_of_zcrypt(text: str) -> None:
    box = sample()
    assert box.store(f"{Q0}/reset", text) == ""
    assert box.cat(f"{Q0}/reset") == NO_TIMER
    assert box.cat(f"{Q0}/interrupt") == "Interrupts enabled.\n"
    assert box.cat(f"{Q0}/request_count") == "0\n"
    assert box.events() == []


@pytest.mark.parametrize("driver", ["vfio_ap", None])
def test_a_reset_of_an_uninitiated_queue_lasts_until_zcrypt_has_it(driver: str | None) -> None:
    box = sample(vfio_ap=driver is not None)
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.driver(Q0) == driver
    assert box.store(f"{Q0}/reset", "1") == ""
    assert box.cat(f"{Q0}/reset") == IN_PROGRESS
    box.host.scan()
    assert box.cat(f"{Q0}/reset") == IN_PROGRESS
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.cat(f"{Q0}/reset") == NO_TIMER


@pytest.mark.parametrize("how", ["deconfigured", "check-stopped"])
def test_a_reset_of_an_unusable_queue_ends_when_it_is_usable_again(how: str) -> None:
    box = sample()

    def make_usable(usable: bool) -> None:  # noqa: FBT001 -- one argument
        if how == "deconfigured":
            box.host.configure(0, on=usable)
        else:
            box.host.checkstop(0, on=not usable)
        box.host.scan()

    make_usable(False)
    assert box.store(f"{Q0}/reset", "1") == ""
    assert box.cat(f"{Q0}/reset") == IN_PROGRESS
    make_usable(True)
    assert box.cat(f"{Q0}/reset") == NO_TIMER


def test_a_queue_that_becomes_usable_interrupts() -> None:
    box = Bench(toml({}, [0x29]))
    box.host.plug(0, "CEX8C")
    box.host.configure(0, on=False)
    box.host.scan()
    assert box.cat(f"{Q0}/interrupt") == "Interrupts disabled.\n"
    assert box.cat(f"{Q0}/reset") == IN_PROGRESS
    box.host.configure(0, on=True)
    box.host.scan()
    assert box.cat(f"{Q0}/interrupt") == "Interrupts enabled.\n"
    assert box.cat(f"{Q0}/reset") == NO_TIMER


# -- hardware ----------------------------------------------------------------------------------------------------------


def test_ap_functions_are_asked_of_the_hardware_now() -> None:
    box = sample()
    box.host.set_tapq(0, {"slcf": 1, "bs": 2}, 0x29)
    assert box.cat(f"{Q0}/ap_functions") == "0x93808000\n"
    assert box.cat(f"{CARD0}/00.002a/ap_functions") == "0x92800000\n"
    assert box.cat(f"{CARD0}/ap_functions") == "0x92800000\n"


@pytest.mark.parametrize("how", ["deconfigured", "check-stopped"])
def test_unusable_queues_can_still_be_looked_at(how: str) -> None:
    box = sample()
    if how == "deconfigured":
        box.host.configure(0, on=False)
    else:
        box.host.checkstop(0, on=True)
    assert box.cat(f"{Q0}/online") == "1\n"
    box.host.scan()
    down = how == "deconfigured"
    for path in (CARD0, Q0):
        assert box.cat(f"{path}/config") == f"{int(not down)}\n"
        assert box.cat(f"{path}/chkstop") == f"{int(not down)}\n"
        assert box.cat(f"{path}/online") == "0\n"
        assert box.cat(f"{path}/ap_functions") == "0x92800000\n"
    assert box.cat(f"{Q4}/online") == "1\n"


# -- mkvps -------------------------------------------------------------------------------------------------------------

KEYS = f"""
[card.master_keys]
aes = "{"a" * 16}"
apka = "{"b" * 16}"
asym = "{"c" * 32}"
wk = "{"d" * 64}"
"""
NO_CCA_KEYS = "".join(f"{name} {state}: - -\n" for name in ("AES", "APKA", "ASYM") for state in ("NEW", "CUR", "OLD"))
NO_EP11_KEYS = "WK CUR: - -\nWK NEW: - -\n"


def test_cca_keys() -> None:
    zero = "0" * 16
    assert one("CEX8C", KEYS).cat(f"{Q0}/mkvps") == (
        f"AES NEW: empty 0x{zero}\nAES CUR: valid 0x{'a' * 16}\nAES OLD: invalid 0x{zero}\n"
        f"APKA NEW: empty 0x{zero}\nAPKA CUR: valid 0x{'b' * 16}\nAPKA OLD: invalid 0x{zero}\n"
        f"ASYM NEW: empty 0x{zero * 2}\nASYM CUR: valid 0x{'c' * 32}\nASYM OLD: invalid 0x{zero * 2}\n"
    )


def test_keys_that_are_not_set() -> None:
    none = '[card.master_keys]\naes = ""\nwk = ""\n'
    lines = one("CEX8C", none).cat(f"{Q0}/mkvps").splitlines()
    assert lines[1] == f"AES CUR: invalid 0x{'0' * 16}"
    assert lines[4].startswith("APKA CUR: valid ")
    assert one("CEX8P", none).cat(f"{Q0}/mkvps") == "WK CUR: invalid -\nWK NEW: empty -\n"


def test_ep11_keys() -> None:
    assert one("CEX8P", KEYS).cat(f"{Q0}/mkvps") == f"WK CUR: valid 0x{'d' * 64}\nWK NEW: empty -\n"


REGISTERS = f"""
[card.master_keys]
new_aes = "{"1" * 16}"
new_apka = "{"2" * 16}"
old_asym = "{"3" * 32}"
new_wk = "{"4" * 64}"
"""


def test_new_and_old_keys() -> None:
    """cca_mkvps_show, ep11_mkvps_show: each register has its states."""
    lines = one("CEX8C", REGISTERS + 'incomplete = ["apka"]\n').cat(f"{Q0}/mkvps").splitlines()
    assert (lines[0], lines[3]) == (f"AES NEW: full 0x{'1' * 16}", f"APKA NEW: partial 0x{'2' * 16}")
    assert (lines[2], lines[8]) == (f"AES OLD: invalid 0x{'0' * 16}", f"ASYM OLD: valid 0x{'3' * 32}")
    for incomplete, state in (("", "committed"), ('incomplete = ["wk"]\n', "uncommitted")):
        lines = one("CEX8P", REGISTERS + incomplete).cat(f"{Q0}/mkvps").splitlines()
        assert lines[1] == f"WK NEW: {state} 0x{'4' * 64}"


def test_rotation_of_a_key_in_one_domain() -> None:
    box = Bench(toml({0: "CEX8C"}, [0x04, 0x29]))
    new, place, other = "5" * 16, "00.0029", f"{CARD0}/00.0004/mkvps"
    before = box.cat(other)
    current = box.cat(f"{Q0}/mkvps").splitlines()[1].split()[-1]
    with refused("EINVAL"):
        box.console(f"set-key {place} aes")
    box.console(f"load-key {place} aes {new} incomplete")
    assert box.cat(f"{Q0}/mkvps").splitlines()[0] == f"AES NEW: partial 0x{new}"
    with refused("EINVAL"):
        box.console(f"set-key {place} aes")
    box.console(f"load-key {place} aes {new}", f"set-key {place} aes")
    assert box.cat(f"{Q0}/mkvps").splitlines()[:3] == [
        f"AES NEW: empty 0x{'0' * 16}",
        f"AES CUR: valid 0x{new}",
        f"AES OLD: valid {current}",
    ]
    assert box.cat(other) == before


def test_rotation_in_all_domains() -> None:
    box = one("CEX8P")
    new = "6" * 64
    box.console(f"load-key 0 wk {new}", "load-key 0 wk none")
    assert box.cat(f"{Q0}/mkvps").splitlines()[1] == "WK NEW: empty -"
    box.console(f"load-key 0 wk {new}", "set-key 0 wk")
    assert box.cat(f"{Q0}/mkvps") == f"WK CUR: valid 0x{new}\nWK NEW: empty -\n"


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("load-key 0 wk " + "1" * 64, "EINVAL"),  # a CCA card has none
        ("load-key 0 aes 12", "EINVAL"),
        ("load-key 0 aes " + "X" * 16, "EINVAL"),
        ("load-key 0 aes none complete", "EINVAL"),
        ("load-key 77 aes none", "ENODEV"),
        ("load-key 00.0000 aes none", "ENODEV"),
        ("set-key 0 asym", "EINVAL"),
    ],
)
def test_keys_that_cannot_be_loaded_or_set(verb: str, expected: str) -> None:
    box = one("CEX8C")
    before = box.dump()
    with refused(expected):
        box.console(verb)
    assert box.dump() == before


@pytest.mark.parametrize(("card", "queue", "none"), [(CARD0, Q0, NO_CCA_KEYS), (CARD4, Q4, NO_EP11_KEYS)])
@pytest.mark.parametrize("how", ["queue offline", "card offline", "deconfigured", "pulled"])
def test_keys_that_cannot_be_asked_for(card: str, queue: str, none: str, how: str) -> None:
    box = sample()
    if how == "queue offline":
        assert box.store(f"{queue}/online", "0") == ""
    elif how == "card offline":
        assert box.store(f"{card}/online", "0") == ""
    elif how == "deconfigured":
        assert box.store(f"{card}/config", "0") == ""
        box.host.scan()
    else:
        box.host.unplug(int(card[-2:], 16))
    assert box.cat(f"{queue}/mkvps") == none
    if queue == Q4:
        assert box.cat(f"{queue}/op_modes") == "\n"


# -- online ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2", "-1", "+1", "on", "\n", "y", "x1"])
def test_online_takes_0_and_1(text: str) -> None:
    box = sample()
    before = box.dump()
    assert box.store(f"{Q0}/online", text) == "EINVAL"
    assert box.dump() == before
    assert box.events() == []


def test_the_event_is_sent_always() -> None:
    box = sample()
    for text in ("1", "0\n", " 0", "1abc"):
        assert box.store(f"{Q0}/online", text) == ""
        value = text.strip()[0]
        assert box.events() == [f"change card00/00.0029 ONLINE={value} DEVTYPE=ap_queue DRIVER=cex4queue MODE=cca"]
        assert box.cat(f"{Q0}/online") == f"{value}\n"
        assert box.cat(f"{CARD0}/online") == box.cat(f"{CARD0}/00.002a/online") == "1\n"


@pytest.mark.parametrize(
    ("state", "text", "expected"),
    [
        ("", "1", ""),
        ("offline", "1", "EINVAL"),
        ("offline", "0", ""),
        ("deconfigured", "1", "ENODEV"),
        ("deconfigured", "0", ""),
        ("deconfigured", "2", "EINVAL"),
        ("check-stopped", "1", "ENODEV"),
        # The state of the hardware is looked at first.
        ("offline, deconfigured", "1", "ENODEV"),
        # The card knows of it already, the queue not before the next scan.
        ("card deconfigured", "1", "ENODEV"),
        # The card knows of being back already, the queue not before the next scan.
        ("card back", "1", "ENODEV"),
    ],
)
def test_bringing_a_queue_up(state: str, text: str, expected: str) -> None:
    box = sample()
    if "offline" in state:
        assert box.store(f"{CARD0}/online", "0") == ""
    if "deconfigured" in state or "back" in state:
        assert box.store(f"{CARD0}/config", "0") == ""
    if "card" not in state or "back" in state:
        box.host.scan()
    if "check" in state:
        box.host.checkstop(0, on=True)
        box.host.scan()
    if "back" in state:
        assert box.store(f"{CARD0}/config", "1") == ""
    box.heard()
    assert box.store(f"{Q0}/online", text) == expected
    assert bool(box.events()) == (not expected)


def test_a_queue_is_online_whenever_zcrypt_gets_it() -> None:
    box = sample(vfio_ap=True)
    assert box.store(f"{Q0}/online", "0") == ""
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.store(f"{BUS}/aqmask", "+0x29") == ""
    assert box.cat(f"{Q0}/online") == "1\n"
    assert box.store(f"{Q0}/online", "0") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    assert box.cat(f"{Q0}/online") == "1\n"


# -- status ------------------------------------------------------------------------------------------------------------

UUID = "11111111-2222-4333-8444-555555555555"
MDEV = f"/sys/devices/vfio_ap/matrix/{UUID}"


def test_status() -> None:
    box = sample(vfio_ap=True)
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.store("/sys/class/mdev_bus/matrix/mdev_supported_types/vfio_ap-passthrough/create", UUID) == ""
    seen = [box.cat(f"{Q0}/status")]
    for path, text in (
        (f"{MDEV}/assign_domain", "0x29"),
        (f"{MDEV}/assign_adapter", "0"),
        (f"/dev/vfio-ap/{UUID}/guest", "1"),
        (f"/dev/vfio-ap/{UUID}/guest", "0"),
        (f"{MDEV}/unassign_adapter", "0"),
    ):
        assert box.store(path, text) == ""
        seen.append(box.cat(f"{Q0}/status"))
    assert seen == ["unassigned\n", "unassigned\n", "assigned\n", "in use\n", "assigned\n", "unassigned\n"]
    assert box.cat(f"{Q4}/status") == "unassigned\n"

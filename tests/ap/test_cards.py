"""Cards: what they show by type, mode and state, and what `online`, `config` and `request_count` do."""

from __future__ import annotations

import pytest

from tests.ap.machines import BUS, CARD0, CARD4, DEVICES, Q0, Q4, sample, toml
from tests.hosts import Bench

ALWAYS = {
    "uevent",
    "subsystem",
    "hwtype",
    "raw_hwtype",
    "depth",
    "ap_functions",
    "request_count",
    "requestq_count",
    "pendingq_count",
    "modalias",
    "config",
    "chkstop",
    "max_msg_size",
}
QUEUES = {"00.0029"}


def one(kind: str, card: str = "", **names: str) -> Bench:
    """Boot a machine with one card and one domain."""
    return Bench(toml({0: kind}, [0x29], card=card, **names))


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letter", "mode", "functions", "names"),
    [
        ("A", "accel", "0x6A800000", {"type", "online", "load"}),
        ("C", "cca", "0x92800000", {"type", "online", "load", "serialnr"}),
        ("P", "ep11", "0x06800000", {"type", "online", "load", "serialnr", "API_ordinalnr", "FW_version", "op_modes"}),
    ],
)
@pytest.mark.parametrize(("generation", "hwtype"), [(4, 10), (5, 11), (6, 12), (7, 13), (8, 14)])
def test_types(letter: str, mode: str, functions: str, names: set[str], generation: int, hwtype: int) -> None:
    box = one(f"CEX{generation}{letter}")
    assert box.names(CARD0) == ALWAYS | QUEUES | {"driver"} | names
    assert box.cat(f"{CARD0}/type") == f"CEX{generation}{letter}\n"
    assert box.cat(f"{CARD0}/hwtype") == box.cat(f"{CARD0}/raw_hwtype") == f"{hwtype}\n"
    assert box.cat(f"{CARD0}/modalias") == f"ap:t{hwtype:02X}\n"
    assert box.cat(f"{CARD0}/ap_functions") == f"{functions}\n"
    assert box.cat(f"{CARD0}/uevent") == (
        f"DEVTYPE=ap_card\nDRIVER=cex4card\nDEV_TYPE={hwtype:04X}\nMODALIAS=ap:t{hwtype:02X}\nMODE={mode}\n"
    )
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    assert box.names(CARD0) == ALWAYS | QUEUES
    assert box.cat(f"{CARD0}/uevent") == (
        f"DEVTYPE=ap_card\nDEV_TYPE={hwtype:04X}\nMODALIAS=ap:t{hwtype:02X}\nMODE={mode}\n"
    )


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ("accel = 1, cca = 1, ep11 = 1", "accel"),
        ("accel = 0, cca = 1, ep11 = 1", "cca"),
        ("accel = 0, cca = 0, ep11 = 1", "ep11"),
    ],
)
def test_the_first_mode_bit_decides(fields: str, mode: str) -> None:
    box = one("CEX8C", f"tapq = {{ {fields} }}")
    letter = {"accel": "A", "cca": "C", "ep11": "P"}[mode]
    assert box.cat(f"{CARD0}/type") == f"CEX8{letter}\n"
    assert box.cat(f"{Q0}/uevent").endswith(f"MODE={mode}\n")


@pytest.mark.parametrize(
    ("fields", "card_files", "queue_files"),
    [
        ("accel = 1, cca = 1", {"serialnr"}, {"mkvps"}),
        (
            "accel = 1, cca = 0, ep11 = 1",
            {"serialnr", "API_ordinalnr", "FW_version", "op_modes"},
            {"mkvps", "op_modes"},
        ),
        ("accel = 1, cca = 0", set(), set()),
    ],
)
def test_an_accelerator_has_the_files_of_its_other_mode(
    fields: str, card_files: set[str], queue_files: set[str]
) -> None:
    """zcrypt_cex4_card_probe and zcrypt_cex4_queue_probe: type and messages go by accel, groups by cca, then ep11."""
    box = one("CEX8C", f"tapq = {{ {fields} }}")
    assert box.cat(f"{CARD0}/type") == "CEX8A\n"
    assert box.names(CARD0) == ALWAYS | QUEUES | {"driver", "type", "online", "load"} | card_files
    assert box.names(Q0) & {"mkvps", "op_modes"} == queue_files
    assert {box.cat(f"{CARD0}/{name}") for name in card_files} <= {"\n"}
    if queue_files:
        assert {line.partition(":")[2] for line in box.cat(f"{Q0}/mkvps").splitlines()} == {" - -"}


def test_a_card_without_mode_has_no_driver() -> None:
    box = one("CEX8C", "tapq = { cca = 0 }")
    assert box.names(CARD0) == ALWAYS | QUEUES
    assert box.driver(Q0) is None
    assert box.cat(f"{CARD0}/uevent") == "DEVTYPE=ap_card\nDEV_TYPE=000E\nMODALIAS=ap:t0E\n"
    assert box.cat(f"{Q0}/uevent") == "DEVTYPE=ap_queue\n"
    assert box.cat(f"{BUS}/bindings") == "0/1\n"


@pytest.mark.parametrize(("ml", "size"), [(0, 12288), (1, 4096), (3, 12288), (15, 61440)])
def test_max_msg_size(ml: int, size: int) -> None:
    assert one("CEX8C", f"tapq = {{ ml = {ml} }}").cat(f"{CARD0}/max_msg_size") == f"{size}\n"


@pytest.mark.parametrize(("qd", "depth"), [(0, 1), (7, 8), (15, 16)])
def test_depth(qd: int, depth: int) -> None:
    assert one("CEX8C", f"tapq = {{ qd = {qd} }}").cat(f"{CARD0}/depth") == f"{depth}\n"


def test_a_card_has_only_half_of_the_facility_word() -> None:
    box = one("CEX8C", "tapq = { bs = 3, slcf = 1, class = 255 }")
    assert box.cat(f"{CARD0}/ap_functions") == "0x93FF0000\n"
    assert box.cat(f"{Q0}/ap_functions") == "0x93FFC000\n"


def test_the_name_has_two_lower_case_hex_digits() -> None:
    box = Bench(toml({26: "CEX8C", 255: "CEX8A"}, [255]))
    assert {"card1a", "cardff"} <= box.names(DEVICES)
    assert box.names(f"{BUS}/devices") == {"card1a", "cardff", "1a.00ff", "ff.00ff"}


@pytest.mark.parametrize(
    ("kind", "serial", "shown"),
    [
        ("CEX8C", "93AABEET", "93AABEET"),
        ("CEX8C", "93AABEET00000000", "93AABEET"),
        ("CEX8P", "93AABFKP00000000", "93AABFKP00000000"),
        ("CEX8P", "93AABFKP", "        93AABFKP"),
    ],
)
def test_serial_numbers(kind: str, serial: str, shown: str) -> None:
    assert one(kind, f'serial = "{serial}"').cat(f"{CARD0}/serialnr") == f"{shown}\n"


@pytest.mark.parametrize(
    ("modes", "shown"),
    [
        (["FIPS2024", "FIPS2009"], "FIPS2009 FIPS2024"),
        ([], ""),
        (
            ["FIPS2024", "FIPS2021", "BSICC2017", "SIGG", "SIGG-IMPORT", "BSI2011", "FIPS2011", "BSI2009", "FIPS2009"],
            "FIPS2009 BSI2009 FIPS2011 BSI2011 SIGG-IMPORT SIGG BSICC2017 FIPS2021 FIPS2024",
        ),
    ],
)
def test_op_modes(modes: list[str], shown: str) -> None:
    box = one("CEX8P", f"op_modes = {modes}")
    assert box.cat(f"{CARD0}/op_modes") == f"{shown}\n"
    assert box.cat(f"{Q0}/op_modes") == f"{shown}\n"


def test_versions() -> None:
    box = one("CEX8P", 'firmware = "7.23"\napi_ordinal = 4')
    assert box.cat(f"{CARD0}/FW_version") == "7.23\n"
    assert box.cat(f"{CARD0}/API_ordinalnr") == "4\n"


def test_a_card_that_is_offline_is_not_asked_through_a_queue_that_is_online() -> None:
    box = sample()
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{CARD0}/online", "0") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    assert (box.cat(f"{CARD0}/online"), box.cat(f"{Q0}/online")) == ("0\n", "1\n")
    assert box.cat(f"{CARD0}/serialnr") == "\n"
    assert "valid" not in box.cat(f"{Q0}/mkvps")


@pytest.mark.parametrize("how", ["card offline", "queues offline", "deconfigured", "check-stopped", "queues unbound"])
def test_what_has_to_be_fetched_is_an_empty_line_if_it_cannot_be(how: str) -> None:
    box = sample()
    for apid, card in ((0, CARD0), (4, CARD4)):
        if how == "card offline":
            assert box.store(f"{card}/online", "0") == ""
        elif how == "deconfigured":
            assert box.store(f"{card}/config", "0") == ""
        elif how == "check-stopped":
            box.host.checkstop(apid, on=True)
        for domain in ("0029", "002a"):
            queue = f"{apid:02x}.{domain}"
            if how == "queues offline":
                assert box.store(f"{card}/{queue}/online", "0") == ""
            elif how == "queues unbound":
                assert box.store(f"{BUS}/drivers/cex4queue/unbind", queue) == ""
    box.host.scan()
    for path in (f"{CARD0}/serialnr", *(f"{CARD4}/{name}" for name in ("serialnr", "API_ordinalnr", "FW_version"))):
        assert box.cat(path) == "\n", path
    assert box.cat(f"{CARD4}/op_modes") == "\n"
    assert box.cat(f"{CARD0}/type") == "CEX8C\n"


def test_any_online_queue_is_good_enough_to_ask() -> None:
    box = sample()
    assert box.store(f"{Q0}/online", "0") == ""
    assert box.cat(f"{CARD0}/serialnr") == "93AABEET\n"


# -- request_count -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "5", "\n", "x", "\0"])
def test_any_text_resets_the_counters_of_a_card_and_its_bound_queues(text: str) -> None:
    box = sample()
    card = box.host.ap_bus.cards[0]
    card.requests = 12
    card.queue_requests = {0x29: 5, 0x2A: 7}
    box.host.ap_bus.cards[4].requests = 3
    assert box.store(f"{CARD0}/request_count", text) == ""
    assert box.cat(f"{CARD0}/request_count") == "0\n"
    assert box.cat(f"{Q0}/request_count") == "0\n"
    assert box.cat(f"{CARD0}/00.002a/request_count") == "0\n"
    assert box.cat(f"{CARD4}/request_count") == "3\n"


def test_the_counter_of_an_unbound_queue_is_not_reset_with_its_card() -> None:
    box = sample()
    box.host.ap_bus.cards[0].queue_requests = {0x29: 5, 0x2A: 7}
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    assert box.store(f"{CARD0}/request_count", "0") == ""
    assert box.host.ap_bus.cards[0].queue_requests == {0x29: 5}


def test_counters_of_queues() -> None:
    box = sample()
    card = box.host.ap_bus.cards[0]
    card.requests = 12
    card.queue_requests = {0x29: 5, 0x2A: 7}
    assert box.store(f"{Q0}/request_count", "") == ""
    assert box.cat(f"{Q0}/request_count") == "5\n"
    assert box.store(f"{Q0}/request_count", "x") == ""
    assert box.cat(f"{Q0}/request_count") == "0\n"
    assert box.cat(f"{CARD0}/00.002a/request_count") == "7\n"
    assert box.cat(f"{CARD0}/request_count") == "12\n"
    for path in (CARD0, Q0, Q4):
        assert (
            box.cat(f"{path}/requestq_count") == box.cat(f"{path}/pendingq_count") == box.cat(f"{path}/load") == "0\n"
        )


# -- online ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2", "-1", "+1", "on", "y", "\n", "x1", "0x1 "])
def test_online_takes_0_and_1(text: str) -> None:
    box = sample()
    expected = "" if text.startswith("0") else "EINVAL"
    before = box.dump()
    assert box.store(f"{CARD0}/online", text) == expected
    assert (box.dump() == before) == bool(expected)
    assert bool(box.events()) != bool(expected)


def test_switching_a_card_switches_its_queues_and_tells_of_each() -> None:
    box = sample()
    assert box.store(f"{CARD0}/00.002a/online", "0") == ""
    box.heard()
    assert box.store(f"{CARD0}/online", "0\n") == ""
    assert box.short_events() == ["change card00 ONLINE=0", "change card00/00.0029 ONLINE=0"]
    assert box.store(f"{CARD0}/online", "0") == ""
    assert box.short_events() == ["change card00 ONLINE=0"]
    for path in (CARD0, Q0, f"{CARD0}/00.002a"):
        assert box.cat(f"{path}/online") == "0\n"
    assert box.store(f"{CARD0}/online", "1") == ""
    assert box.short_events() == [
        "change card00 ONLINE=1",
        "change card00/00.0029 ONLINE=1",
        "change card00/00.002a ONLINE=1",
    ]
    for path in (CARD0, Q0, f"{CARD0}/00.002a"):
        assert box.cat(f"{path}/online") == "1\n"
    assert box.cat(f"{CARD4}/online") == "1\n"
    assert box.store(f"{CARD0}/online", " 1abc") == ""
    assert box.short_events() == ["change card00 ONLINE=1"]


def test_only_queues_of_zcrypt_are_switched() -> None:
    box = sample(vfio_ap=True)
    assert box.store(f"{BUS}/aqmask", "-0x29") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "04.002a") == ""
    box.heard()
    assert box.store(f"{CARD0}/online", "0") == ""
    assert box.store(f"{CARD4}/online", "0") == ""
    assert box.short_events() == [
        "change card00 ONLINE=0",
        "change card00/00.002a ONLINE=0",
        "change card04 ONLINE=0",
    ]


@pytest.mark.parametrize("how", ["deconfigured", "check-stopped"])
def test_an_unusable_card_can_go_offline_but_not_online(how: str) -> None:
    box = sample()
    if how == "deconfigured":
        box.host.configure(0, on=False)
    else:
        box.host.checkstop(0, on=True)
    box.host.scan()
    box.heard()
    assert box.cat(f"{CARD0}/online") == "0\n"
    assert box.store(f"{CARD0}/online", "2") == "EINVAL"
    assert box.store(f"{CARD0}/online", "1") == "ENODEV"
    assert box.events() == []
    box.host.configure(0, on=True)
    box.host.checkstop(0, on=False)
    box.host.scan()
    # The software state was on all along.
    assert box.cat(f"{CARD0}/online") == "1\n"
    assert box.cat(f"{Q0}/online") == "1\n"


def test_going_offline_while_unusable_is_remembered() -> None:
    box = sample()
    assert box.store(f"{CARD0}/config", "0") == ""
    assert box.store(f"{CARD0}/online", "0") == ""
    assert box.store(f"{CARD0}/config", "1") == ""
    box.host.scan()
    assert box.cat(f"{CARD0}/online") == box.cat(f"{Q0}/online") == "0\n"


# -- config ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2", "-1", "+1", "on", "\n", "x"])
def test_config_takes_0_and_1(text: str) -> None:
    box = sample()
    before = box.dump()
    assert box.store(f"{CARD0}/config", text) == "EINVAL"
    assert box.dump() == before
    assert box.events() == []


def test_deconfiguring_reaches_the_queues_with_the_next_scan() -> None:
    box = sample()
    card_keys = "DEVTYPE=ap_card DRIVER=cex4card DEV_TYPE=000E MODALIAS=ap:t0E MODE=cca"
    assert box.store(f"{CARD0}/config", "0\n") == ""
    assert box.events() == [f"change card00 CONFIG=0 {card_keys}"]
    assert box.cat(f"{CARD0}/config") == "0\n"
    assert box.cat(f"{CARD0}/online") == "0\n"
    assert box.cat(f"{Q0}/config") == "1\n"
    box.host.scan()
    assert box.events() == [
        f"change card00/{name} CONFIG=0 DEVTYPE=ap_queue DRIVER=cex4queue MODE=cca" for name in ("00.0029", "00.002a")
    ]
    assert box.cat(f"{Q0}/config") == box.cat(f"{Q0}/online") == "0\n"
    assert box.driver(CARD0) == "cex4card"
    assert box.driver(Q0) == "cex4queue"
    assert box.cat(f"{BUS}/ap_adapter_mask").startswith("0x88")
    box.host.scan()
    assert box.events() == []
    assert box.store(f"{CARD0}/config", "1") == ""
    box.host.scan()
    assert box.short_events() == [
        "change card00 CONFIG=1",
        "change card00/00.0029 CONFIG=1",
        "change card00/00.002a CONFIG=1",
    ]
    for path in (CARD0, Q0):
        assert box.cat(f"{path}/config") == box.cat(f"{path}/online") == "1\n"
    assert box.cat(f"{Q0}/interrupt") == "Interrupts enabled.\n"


def test_the_event_is_sent_without_a_change_too() -> None:
    box = sample()
    for _ in range(2):
        assert box.store(f"{CARD0}/config", "1") == ""
        assert box.short_events() == ["change card00 CONFIG=1"]


@pytest.mark.parametrize("environment", ["zvm", "kvm"])
def test_configuring_needs_the_sclp_facility(environment: str) -> None:
    box = one("CEX8C", top=f'environment = "{environment}"')
    before = box.dump()
    assert box.store(f"{CARD0}/config", "0") == "EOPNOTSUPP"
    assert box.dump() == before
    assert box.events() == []
    # Nothing has to be asked of SCLP for the state that is there already.
    assert box.store(f"{CARD0}/config", "1") == ""
    assert box.short_events() == ["change card00 CONFIG=1"]
    assert box.store(f"{CARD0}/config", "2") == "EINVAL"


def test_sclp_refuses_for_a_card_that_was_pulled() -> None:
    box = sample()
    box.host.unplug(0)
    assert box.store(f"{CARD0}/config", "0") == "EIO"
    assert box.cat(f"{CARD0}/config") == "1\n"
    assert box.events() == []

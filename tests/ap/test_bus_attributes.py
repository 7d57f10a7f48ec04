"""The attributes of the bus: what they show on different machines, and what they take."""

from __future__ import annotations

import pytest

from tests.ap.machines import BUS, CARD0, DEVICES, Q0, bits, sample, toml
from tests.hosts import Bench

ZVM = toml({0: "CEX8C"}, [0x29], top='vfio_ap = false\nenvironment = "zvm"')
NO_QCI = toml({0: "CEX8C", 63: "CEX8A"}, [0, 15], qci="supported = false")


@pytest.fixture
def box() -> Bench:
    return sample()


# -- what is shown -----------------------------------------------------------------------------------------------------

LIMITS = "max_adapter = {0}\nmax_domain = {1}\nfacilities = {2}"


@pytest.mark.parametrize(
    ("qci", "adapter", "domain"),
    [
        ("", "255\n", "255\n"),
        (LIMITS.format(20, 84, ["APSC", "APXA"]), "20\n", "84\n"),
        (LIMITS.format(20, 84, ["APSC"]), "63\n", "15\n"),
        (LIMITS.format(0, 0, ["APXA"]), "63\n", "15\n"),
        (LIMITS.format(0, 84, ["APXA"]), "63\n", "84\n"),
        ("supported = false", "63\n", "15\n"),
    ],
)
def test_limits(qci: str, adapter: str, domain: str) -> None:
    box = Bench(toml({1: "CEX8C"}, [4], qci=qci))
    assert box.cat(f"{BUS}/ap_max_adapter_id") == adapter
    assert box.cat(f"{BUS}/ap_max_domain_id") == domain


@pytest.mark.parametrize(
    ("facilities", "shown"),
    [
        (["APSC", "APXA", "QACT", "RC8A", "APSB"], "APSC APXA QACT RC8A APSB\n"),
        (["APSB", "RC8A", "QACT", "APXA", "APSC"], "APSC APXA QACT RC8A APSB\n"),
        (["APXA"], "APXA\n"),
        (["APSC", "APSB"], "APSC APSB\n"),
        ([], "-\n"),
    ],
)
def test_features(facilities: list[str], shown: str) -> None:
    box = Bench(toml({1: "CEX8C"}, [4], qci=f"facilities = {facilities}"))
    assert box.cat(f"{BUS}/features") == shown


def test_masks_of_the_configuration() -> None:
    box = Bench(toml({1: "CEX8C", 0x1A: "CEX8A"}, [0, 4, 255], qci="control_domains = [7]"))
    assert box.cat(f"{BUS}/ap_adapter_mask") == bits(1, 0x1A)
    assert box.cat(f"{BUS}/ap_usage_domain_mask") == bits(0, 4, 255)
    assert box.cat(f"{BUS}/ap_control_domain_mask") == bits(7)


def test_masks_of_the_configuration_show_the_last_scan() -> None:
    box = sample()
    before = {name: box.cat(f"{BUS}/{name}") for name in ("ap_adapter_mask", "ap_usage_domain_mask")}
    box.host.plug(9, "CEX8A")
    box.host.change_domains(add=[5])
    box.host.change_domains(add=[6], control=True)
    assert {name: box.cat(f"{BUS}/{name}") for name in before} == before
    box.host.scan()
    assert box.cat(f"{BUS}/ap_adapter_mask") == bits(0, 4, 9)
    assert box.cat(f"{BUS}/ap_usage_domain_mask") == bits(5, 0x29, 0x2A)
    assert box.cat(f"{BUS}/ap_control_domain_mask") == bits(6, 0x29, 0x2A)


@pytest.mark.parametrize("qci", ["supported = false", "facilities = []"])
def test_a_machine_without_qci_or_without_any_facility(qci: str) -> None:
    """ap_get_configuration: flags of 0 are a QCI that is missing."""
    box = Bench(NO_QCI.replace("supported = false", qci))
    for name in ("ap_adapter_mask", "ap_usage_domain_mask", "ap_control_domain_mask"):
        assert box.cat(f"{BUS}/{name}") == "not supported\n"
    assert box.cat(f"{BUS}/features") == "-\n"
    assert set(box.drivers()) == {"00.0000", "00.000f", "3f.0000", "3f.000f"}


@pytest.mark.parametrize(
    ("environment", "interrupts", "timeout"), [("lpar", 1, 250000), ("kvm", 1, 250000), ("zvm", 0, 1500000)]
)
def test_interrupts_and_the_timeout_that_goes_with_them(environment: str, interrupts: int, timeout: int) -> None:
    box = Bench(toml({0: "CEX8C"}, [4], top=f'environment = "{environment}"'))
    assert box.cat(f"{BUS}/ap_interrupts") == f"{interrupts}\n"
    assert box.cat(f"{BUS}/poll_timeout") == f"{timeout}\n"
    state = "enabled" if interrupts else "disabled"
    assert box.cat(f"{CARD0}/00.0004/interrupt") == f"Interrupts {state}.\n"


@pytest.mark.parametrize(
    "name",
    [
        "ap_control_domain_mask",
        "ap_usage_domain_mask",
        "ap_adapter_mask",
        "ap_interrupts",
        "ap_max_domain_id",
        "ap_max_adapter_id",
        "bindings",
        "bindings_complete_count",
        "features",
    ],
)
def test_read_only_attributes(box: Bench, name: str) -> None:
    assert box.store(f"{BUS}/{name}", "1") == "EACCES"


@pytest.mark.parametrize("path", [f"{BUS}/uevent", f"{BUS}/drivers_probe", f"{BUS}/drivers/cex4card/bind"])
def test_write_only_attributes(box: Bench, path: str) -> None:
    assert box.shown(path) == "EACCES"


# -- ap_domain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "0"),
        ("42", "42"),
        ("0x2a\n", "42"),
        ("052", "42"),
        (" 42 and more", "42"),
        ("84", "84"),
        ("0xg", "0"),
        ("85", "EINVAL"),
        ("-1", "EINVAL"),
        ("+1", "EINVAL"),
        ("256", "EINVAL"),
        ("none", "EINVAL"),
        ("\n", "EINVAL"),
        ("7", "EINVAL"),
    ],
)
def test_ap_domain(box: Bench, text: str, expected: str) -> None:
    assert box.store(f"{BUS}/aqmask", "-7") == ""
    box.heard()
    outcome = box.store(f"{BUS}/ap_domain", text)
    shown = box.cat(f"{BUS}/ap_domain")
    assert (outcome, shown) == (("EINVAL", "41\n") if expected == "EINVAL" else ("", f"{expected}\n"))
    assert box.cat("/sys/module/ap/parameters/domain") == shown
    assert box.events() == []


def test_the_default_domain_need_not_be_a_usage_domain(box: Bench) -> None:
    assert box.store(f"{BUS}/ap_domain", "3") == ""
    assert box.cat(f"{BUS}/ap_domain") == "3\n"
    box.host.scan()
    assert box.cat(f"{BUS}/ap_domain") == "3\n"


# -- config_time, poll_thread, poll_timeout ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", "5"),
        ("120\n", "120"),
        ("60abc", "60"),
        (" 60", "60"),
        ("060", "60"),
        ("4", "EINVAL"),
        ("121", "EINVAL"),
        ("-60", "EINVAL"),
        ("+60", "EINVAL"),
        ("0x10", "EINVAL"),
        ("abc", "EINVAL"),
    ],
)
def test_config_time(box: Bench, text: str, expected: str) -> None:
    outcome = box.store(f"{BUS}/config_time", text)
    shown = box.cat(f"{BUS}/config_time")
    assert (outcome, shown) == (("EINVAL", "30\n") if expected == "EINVAL" else ("", f"{expected}\n"))


def test_the_bus_scans_whenever_its_time_is_over(box: Bench) -> None:
    def scans() -> int:
        return int(box.cat(f"{BUS}/scans"))

    box.host.tick(29)
    assert scans() == 1
    box.host.tick(1)
    assert scans() == 2
    box.host.tick(90)
    assert scans() == 5
    box.host.tick(25)
    assert box.store(f"{BUS}/config_time", "10") == ""
    box.host.tick(9)
    assert scans() == 5
    box.host.tick(1)
    assert scans() == 6
    box.host.tick(5)
    assert box.store(f"{BUS}/scans", "1") == ""
    box.host.tick(9)
    assert scans() == 7
    box.host.tick(1)
    assert scans() == 8
    box.host.tick(5)
    assert box.store(f"{BUS}/config_time", "1") == "EINVAL"
    box.host.tick(5)
    assert scans() == 9


@pytest.mark.parametrize(
    ("text", "with_interrupts", "without"),
    [
        ("1", "0", "1"),
        ("y\n", "0", "1"),
        ("on", "0", "1"),
        ("0", "0", "0"),
        ("off", "0", "0"),
        ("n", "0", "0"),
        ("2", "EINVAL", "EINVAL"),
        (" 1", "EINVAL", "EINVAL"),
        ("\n", "EINVAL", "EINVAL"),
        ("o", "EINVAL", "EINVAL"),
    ],
)
def test_poll_thread(text: str, with_interrupts: str, without: str) -> None:
    for scenario, expected in ((None, with_interrupts), (ZVM, without)):
        box = Bench(scenario) if scenario else sample()
        outcome = box.store(f"{BUS}/poll_thread", text)
        assert (outcome or box.cat(f"{BUS}/poll_thread").strip()) == expected
        assert box.cat("/sys/module/ap/parameters/poll_thread") == "0\n"


def test_the_poll_thread_can_be_stopped_again() -> None:
    box = Bench(ZVM)
    for text, shown in (("1", "1\n"), ("x", "1\n"), ("1", "1\n"), ("0", "0\n")):
        box.store(f"{BUS}/poll_thread", text)
        assert box.cat(f"{BUS}/poll_thread") == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "0"),
        ("300000", "300000"),
        ("+300000\n", "300000"),
        ("0x10", "16"),
        ("010", "8"),
        ("120000000000", "120000000000"),
        ("120000000001", "EINVAL"),
        (str(2**64 - 1), "EINVAL"),
        (str(2**64), "ERANGE"),
        ("-1", "EINVAL"),
        ("1 ", "EINVAL"),
        (" 1", "EINVAL"),
        ("\n", "EINVAL"),
    ],
)
def test_poll_timeout(box: Bench, text: str, expected: str) -> None:
    outcome = box.store(f"{BUS}/poll_timeout", text)
    assert (outcome or box.cat(f"{BUS}/poll_timeout").strip()) == expected
    if outcome:
        assert box.cat(f"{BUS}/poll_timeout") == "250000\n"


# -- scans, bindings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "0", "\n", "no", "\0", "x" * 5000])
def test_any_text_makes_the_bus_scan(box: Bench, text: str) -> None:
    box.host.plug(9, "CEX8A")
    assert not box.exists(f"{DEVICES}/card09")
    assert box.store(f"{BUS}/scans", text) == ""
    assert box.exists(f"{DEVICES}/card09")
    assert box.cat(f"{BUS}/scans") == "2\n"


def test_an_empty_write_makes_no_scan(box: Bench) -> None:
    assert box.store(f"{BUS}/scans", "") == ""
    assert box.cat(f"{BUS}/scans") == "1\n"


def test_bindings_are_counted_live(box: Bench) -> None:
    for texts, shown in (
        (("00.0029",), "3/4\n"),
        (("00.002a", "04.0029"), "1/4\n"),
        (("04.002a",), "0/4\n"),
    ):
        for text in texts:
            assert box.store(f"{BUS}/drivers/cex4queue/unbind", text) == ""
        assert box.cat(f"{BUS}/bindings") == shown
    assert box.store(f"{BUS}/drivers/cex4card/unbind", "card00") == ""
    assert box.cat(f"{BUS}/bindings") == "0/4\n"
    assert box.store(f"{BUS}/drivers/cex4card/bind", "card00") == ""
    assert box.store(f"{BUS}/drivers/cex4queue/bind", "00.0029") == ""
    assert box.cat(f"{BUS}/bindings") == "1/4\n"


def test_queues_of_vfio_ap_are_bound_too() -> None:
    box = sample(vfio_ap=True)
    assert box.store(f"{BUS}/apmask", "0x0") == ""
    assert box.driver(Q0) == "vfio_ap"
    assert box.cat(f"{BUS}/bindings") == "4/4 (complete)\n"


def test_no_queues_at_all_are_complete() -> None:
    box = Bench(toml({}, []))
    assert box.cat(f"{BUS}/bindings") == "0/0 (complete)\n"
    assert box.cat(f"{BUS}/ap_domain") == "-1\n"
    assert box.names(f"{BUS}/devices") == set()

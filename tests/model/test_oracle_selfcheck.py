"""The oracle against worked examples, so that it is more than one person's reading of the rules.

Common ground of the examples: adapters 5, 6 and 7, four domains, adapters 5 and 6 released to vfio_ap.
"""

import errno

import pytest

from .oracle import ALL_NUMBERS, DEFAULT_DRIVER, VFIO_DRIVER, NaiveHost

M1 = "11111111-aaaa-4aaa-8aaa-111111111111"
M2 = "22222222-bbbb-4bbb-8bbb-222222222222"
DOMAINS = {0x04, 0x47, 0xAB, 0xFF}

ZERO_MASK = "0x" + "0" * 64
MASK_5 = "0x04" + "0" * 62
MASK_5_6 = "0x06" + "0" * 62
MASK_4 = "0x08" + "0" * 62
MASK_AB = "0x" + "0" * 42 + "1" + "0" * 21
MASK_4_AB = "0x08" + "0" * 40 + "1" + "0" * 21


def fresh_host() -> NaiveHost:
    return NaiveHost({5, 6, 7}, DOMAINS, DOMAINS, max_adapter=63, max_domain=255)


@pytest.fixture
def host() -> NaiveHost:
    """Adapters 5 and 6 are released, nothing else has happened."""
    host = fresh_host()
    assert host.set_apmask(set(ALL_NUMBERS) - {5, 6}) == 0
    return host


@pytest.fixture
def built(host: NaiveHost) -> NaiveHost:
    """One mediated device with two adapters and two domains, and two control domains."""
    assert host.create(M1) == 0
    assert host.assign_adapter(M1, 5) == 0
    assert host.assign_domain(M1, 0x04) == 0
    assert host.assign_domain(M1, 0xAB) == 0
    assert host.assign_adapter(M1, 6) == 0
    assert host.assign_control_domain(M1, 0xAB) == 0
    assert host.assign_control_domain(M1, 0x04) == 0
    return host


def lines(text: str) -> list[str]:
    assert text == "" or text.endswith("\n")
    return text.split()


def test_setup(host: NaiveHost) -> None:
    assert host.apmask_text() == "0xf9" + "f" * 62 + "\n"
    assert host.aqmask_text() == "0x" + "f" * 64 + "\n"
    assert host.bindings() == "12/12 (complete)"
    for domain in DOMAINS:
        assert host.driver(5, domain) == VFIO_DRIVER
        assert host.driver(6, domain) == VFIO_DRIVER
        assert host.driver(7, domain) == DEFAULT_DRIVER


def test_build_a_matrix(host: NaiveHost) -> None:
    assert host.create(M1) == 0
    assert host.matrix(M1) == host.guest_matrix(M1) == host.control_domains(M1) == ""
    assert host.ap_config_text(M1) == f"{ZERO_MASK},{ZERO_MASK},{ZERO_MASK}\n"

    assert host.assign_adapter(M1, 5) == 0
    assert host.matrix(M1) == host.guest_matrix(M1) == "05.\n"
    assert host.ap_config_text(M1) == f"{MASK_5},{ZERO_MASK},{ZERO_MASK}\n"

    assert host.assign_domain(M1, 0x04) == 0
    assert host.matrix(M1) == host.guest_matrix(M1) == "05.0004\n"
    assert host.ap_config_text(M1) == f"{MASK_5},{MASK_4},{ZERO_MASK}\n"

    assert host.assign_domain(M1, 0xAB) == 0
    assert host.matrix(M1) == host.guest_matrix(M1) == "05.0004\n05.00ab\n"
    assert host.ap_config_text(M1) == f"{MASK_5},{MASK_4_AB},{ZERO_MASK}\n"

    assert host.assign_adapter(M1, 6) == 0
    assert host.matrix(M1) == host.guest_matrix(M1) == "05.0004\n05.00ab\n06.0004\n06.00ab\n"
    assert host.ap_config_text(M1) == f"{MASK_5_6},{MASK_4_AB},{ZERO_MASK}\n"

    assert host.assign_control_domain(M1, 0xAB) == 0
    assert host.control_domains(M1) == "00ab\n"
    assert host.ap_config_text(M1) == f"{MASK_5_6},{MASK_4_AB},{MASK_AB}\n"

    assert host.assign_control_domain(M1, 0x04) == 0
    assert host.control_domains(M1) == "0004\n00ab\n"
    assert host.ap_config_text(M1) == f"{MASK_5_6},{MASK_4_AB},{MASK_4_AB}\n"

    for adapter in (5, 6):
        for domain in (0x04, 0xAB):
            assert host.status(adapter, domain) == "assigned"
    assert host.status(5, 0x47) == "unassigned"
    assert host.available_instances() == 65535


def test_filtering(built: NaiveHost) -> None:
    four = ["05.0004", "05.00ab", "06.0004", "06.00ab"]

    assert built.unbind(VFIO_DRIVER, 6, 0xAB) == 0
    assert lines(built.matrix(M1)) == four
    assert lines(built.guest_matrix(M1)) == ["05.0004", "05.00ab"]
    assert built.bindings() == "11/12"

    assert built.unbind(VFIO_DRIVER, 5, 0x04) == 0
    assert lines(built.matrix(M1)) == four
    assert lines(built.guest_matrix(M1)) == [".0004", ".00ab"]

    assert built.bind(VFIO_DRIVER, 5, 0x04) == 0
    assert lines(built.matrix(M1)) == four
    assert lines(built.guest_matrix(M1)) == ["05.0004", "05.00ab"]

    assert built.unassign_domain(M1, 0xAB) == 0
    assert lines(built.matrix(M1)) == ["05.0004", "06.0004"]
    assert lines(built.guest_matrix(M1)) == ["05.0004"]

    assert built.ap_config(M1, {5, 6}, {0x04}, {0x04, 0xAB}) == 0
    assert lines(built.matrix(M1)) == lines(built.guest_matrix(M1)) == ["05.0004", "06.0004"]

    assert built.assign_domain(M1, 0x47) == 0
    both_domains = ["05.0004", "05.0047", "06.0004", "06.0047"]
    assert lines(built.matrix(M1)) == lines(built.guest_matrix(M1)) == both_domains

    assert built.assign_domain(M1, 9) == 0
    three_domains = ["05.0004", "05.0009", "05.0047", "06.0004", "06.0009", "06.0047"]
    assert lines(built.matrix(M1)) == three_domains
    assert lines(built.guest_matrix(M1)) == both_domains

    assert built.unplug(6) == 0
    assert lines(built.guest_matrix(M1)) == both_domains
    assert built.scan() == 0
    assert lines(built.matrix(M1)) == three_domains
    assert lines(built.guest_matrix(M1)) == ["05.0004", "05.0047"]
    assert not built.queue_exists(6, 0x04)

    assert built.plug(6) == 0
    assert lines(built.guest_matrix(M1)) == ["05.0004", "05.0047"]
    assert built.scan() == 0
    assert lines(built.matrix(M1)) == three_domains
    assert lines(built.guest_matrix(M1)) == both_domains
    assert built.driver(6, 0xAB) == VFIO_DRIVER


def test_with_a_guest(built: NaiveHost) -> None:
    before = (built.matrix(M1), built.guest_matrix(M1), built.control_domains(M1), built.ap_config_text(M1))
    assert built.open_guest(M1) == 0
    assert (built.matrix(M1), built.guest_matrix(M1), built.control_domains(M1), built.ap_config_text(M1)) == before
    for adapter in (5, 6):
        for domain in (0x04, 0xAB):
            assert built.status(adapter, domain) == "in use"
    assert built.status(5, 0x47) == "unassigned"

    assert built.assign_domain(M1, 0x47) == 0
    six = ["05.0004", "05.0047", "05.00ab", "06.0004", "06.0047", "06.00ab"]
    assert lines(built.matrix(M1)) == lines(built.guest_matrix(M1)) == six
    assert built.status(5, 0x47) == built.status(6, 0x47) == "in use"

    assert built.unassign_adapter(M1, 6) == 0
    assert lines(built.guest_matrix(M1)) == six[:3]
    for domain in (0x04, 0x47, 0xAB):
        assert built.status(5, domain) == "in use"
        assert built.status(6, domain) == "unassigned"

    # A kernel would wait here until the guest lets go; the emulator says no instead.
    assert built.remove(M1) == errno.EBUSY
    assert lines(built.guest_matrix(M1)) == six[:3]
    assert built.close_guest(M1) == 0
    assert built.status(5, 0x04) == "assigned"
    assert built.remove(M1) == 0
    assert built.status(5, 0x04) == "unassigned"
    assert built.available_instances() == 65536


def test_errors(built: NaiveHost) -> None:
    assert built.create(M2) == 0
    assert built.assign_adapter(M2, 5) == 0
    assert built.matrix(M2) == "05.\n"
    assert built.assign_domain(M2, 0x04) == errno.EADDRINUSE
    assert built.matrix(M2) == "05.\n"
    assert built.assign_domain(M2, 0xFF) == 0
    assert built.matrix(M2) == "05.00ff\n"
    assert built.assign_adapter(M2, 6) == 0
    assert built.assign_adapter(M2, 7) == errno.EADDRNOTAVAIL
    assert built.assign_adapter(M2, 64) == errno.ENODEV
    assert built.assign_domain(M2, 256) == errno.ENODEV
    assert built.unassign_adapter(M2, 200) == errno.ENODEV
    assert built.unassign_adapter(M2, 9) == 0
    assert built.matrix(M2) == "05.00ff\n06.00ff\n"
    assert built.assign_control_domain(M2, 0xAB) == 0

    unchanged = built.ap_config_text(M2)
    assert built.ap_config(M2, {5}, {0x04}, {0x04}) == errno.EADDRINUSE
    assert built.ap_config_text(M2) == unchanged
    assert built.ap_config(M2, {7}, {0x04}, {0x04}) == errno.EADDRNOTAVAIL
    assert built.ap_config(M2, {64}, set(), set()) == errno.ENODEV
    assert built.ap_config_text(M2) == unchanged

    # Adapter 5 with a domain is in both devices, and either one is enough for a veto.
    assert built.set_apmask(set(ALL_NUMBERS) - {6}) == errno.EBUSY
    assert built.ap_config(M2, set(), set(), set()) == 0
    assert built.matrix(M2) == ""
    assert built.set_apmask(set(ALL_NUMBERS) - {6}) == errno.EBUSY
    assert built.apmask_text() == "0xf9" + "f" * 62 + "\n"

    assert built.create(M1.upper()) == errno.EEXIST
    assert built.create(M1[:-1]) == errno.EINVAL
    assert built.create(M1 + "00") == errno.EINVAL


def test_everything_reserved() -> None:
    host = fresh_host()
    assert host.create(M1) == 0
    assert host.assign_adapter(M1, 5) == 0
    assert host.assign_domain(M1, 0x04) == errno.EADDRNOTAVAIL
    assert host.matrix(M1) == "05.\n"

    assert host.create(M2) == 0
    assert host.assign_domain(M2, 0x04) == 0
    assert host.assign_adapter(M2, 5) == errno.EADDRNOTAVAIL
    assert host.matrix(M2) == ".0004\n"
    assert host.remove(M2) == 0

    assert host.driver_override(5, 0x04, VFIO_DRIVER) == 0
    assert host.driver(5, 0x04) == DEFAULT_DRIVER
    assert host.assign_domain(M1, 0x04) == errno.EADDRNOTAVAIL  # the default driver still holds the queue
    assert host.unbind(DEFAULT_DRIVER, 5, 0x04) == 0
    assert host.assign_domain(M1, 0x04) == errno.EADDRNOTAVAIL  # unbound: the override does not count
    assert host.bind(VFIO_DRIVER, 5, 0x04) == 0
    assert host.assign_domain(M1, 0x04) == 0
    assert host.matrix(M1) == host.guest_matrix(M1) == "05.0004\n"
    assert host.assign_domain(M1, 0x47) == errno.EADDRNOTAVAIL

    assert host.driver_override(5, 0x47, VFIO_DRIVER) == 0
    assert host.unbind(DEFAULT_DRIVER, 5, 0x47) == 0
    assert host.drivers_probe(5, 0x47) == 0
    assert host.assign_domain(M1, 0x47) == 0
    assert host.guest_matrix(M1) == "05.0004\n05.0047\n"


def test_masks_and_overrides_exclude_each_other() -> None:
    host = fresh_host()
    assert host.driver_override(5, 0x04, VFIO_DRIVER) == 0
    assert host.set_apmask(set(ALL_NUMBERS)) == errno.EINVAL  # even without a change
    assert host.driver_override(5, 0x04, "") == 0
    assert host.set_aqmask(set(ALL_NUMBERS) - {0x29}) == 0
    assert host.driver_override(5, 0x04, VFIO_DRIVER) == errno.EINVAL
    assert host.set_aqmask(set(ALL_NUMBERS)) == 0
    assert host.driver_override(5, 0x04, VFIO_DRIVER) == 0

    # A queue that leaves with an override locks the masks for good.
    assert host.unplug(5) == host.scan() == host.plug(5) == host.scan() == 0
    assert host.override_text(5, 0x04) == "\n"
    assert host.driver_override(5, 0x04, "") == 0
    assert host.set_apmask(set()) == errno.EINVAL


def test_unbound_queues_and_masks() -> None:
    host = fresh_host()
    assert host.unbind(DEFAULT_DRIVER, 5, 0x04) == 0
    assert host.set_apmask(set(ALL_NUMBERS) - {5}) == 0
    assert host.driver(5, 0x04) == host.driver(5, 0x47) == VFIO_DRIVER  # given away, as if a default driver had it
    assert host.unbind(VFIO_DRIVER, 5, 0x04) == 0
    assert host.unbind(DEFAULT_DRIVER, 6, 0x04) == 0
    assert host.bind(DEFAULT_DRIVER, 5, 0x04) == errno.ENODEV
    assert host.set_apmask(set(ALL_NUMBERS)) == 0
    assert host.driver(5, 0x04) is host.driver(6, 0x04) is None  # reserved again, and left alone
    assert host.driver(5, 0x47) == DEFAULT_DRIVER
    assert host.bindings() == "10/12"

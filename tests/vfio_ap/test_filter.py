"""How much of an assigned matrix a guest gets, and when that is worked out again."""

import pytest

from apfs.journal.records import GuestUpdate, LogLine, QueuesReset, Uevent
from tests.hosts import (
    AP_DRIVER,
    BARE,
    M1,
    M2,
    MATRIX,
    WORKED,
    Bench,
    built,
    config_text,
    mask_text,
    product,
    queue,
    refused,
)

FOUR = product((5, 6), (4, 0xAB))
FIVE = product((5,), (4, 0xAB))
SIX = product((6,), (4, 0xAB))
NO_ADAPTER = [".0004", ".00ab"]

# Adapters 9 and 63, which are not there, are not reserved either.
SPARE = WORKED.replace('"-5-6"', '"-5,-6,-9,-63"')


def rewrite(bench: Bench, uuid: str = M1) -> None:
    """Write `ap_config` back as it is, which filters again."""
    bench.write(f"{MATRIX}/{uuid}/ap_config", bench.show(uuid, "ap_config"))


# -- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unbound", "expected"),
    [
        ((), FOUR),
        (("06.00ab",), FIVE),
        (("06.0004",), FIVE),
        (("06.0004", "06.00ab"), FIVE),
        (("05.00ab",), SIX),
        (("05.0004", "06.00ab"), NO_ADAPTER),
        (("05.0047", "06.00ff"), FOUR),  # not of the matrix
    ],
)
def test_one_unbound_queue_takes_its_whole_adapter_out(unbound: tuple[str, ...], expected: list[str]) -> None:
    before = Bench()
    before.unbind(*unbound)
    before.create(M1)
    before.assign(M1, (5, 6), (4, 0xAB))
    after = built()
    after.unbind(*unbound)
    for bench in (before, after):
        assert bench.matrix(M1) == FOUR
        assert bench.guest_matrix(M1) == expected
        rewrite(bench)
        assert bench.guest_matrix(M1) == expected


@pytest.mark.parametrize(
    ("adapters", "domains", "expected"),
    [
        ((5, 6), (), ["05.", "06."]),
        ((5, 9), (), ["05."]),  # 9 is not in the host configuration
        ((9,), (), []),
        ((), (4, 9), [".0004"]),
        ((5, 9), (4, 9), ["05.0004"]),
        ((9,), (4,), [".0004"]),  # every adapter is out, the domains stay
        ((5, 6), (9,), ["05.", "06."]),  # no domain is left, so no queue can be missing
    ],
)
def test_only_what_the_host_has(adapters: tuple[int, ...], domains: tuple[int, ...], expected: list[str]) -> None:
    bench = Bench(SPARE)
    bench.create(M1)
    bench.assign(M1, adapters, domains)
    assert bench.guest_matrix(M1) == expected


def test_without_domains_the_binding_of_queues_does_not_matter() -> None:
    bench = Bench()
    bench.unbind("05.0004", "05.0047", "05.00ab", "05.00ff")
    bench.create(M1)
    bench.assign(M1, (5,))
    assert bench.guest_matrix(M1) == ["05."]
    bench.assign(M1, (), (4,))
    assert bench.guest_matrix(M1) == [".0004"]


@pytest.mark.parametrize("verb", ["configure 6 off", "checkstop 6 on"])
def test_cards_out_of_order_pass(verb: str) -> None:
    bench = built()
    bench.console(verb, "scan")
    rewrite(bench)
    assert bench.guest_matrix(M1) == FOUR
    bench.unbind("06.0004")
    assert bench.guest_matrix(M1) == FIVE
    bench.bind("06.0004")
    assert bench.guest_matrix(M1) == FOUR


@pytest.mark.parametrize(
    ("response", "passes"),
    [("1", False), ("3", True), ("4", True), ("7", False), ("", False), ("255", False)],
)
def test_a_failed_reset_is_remembered_until_the_next(response: str, passes: bool) -> None:  # noqa: FBT001
    bench = built()
    bench.console(f"fail-reset 06.00ab {response}")
    bench.run_guest(M1)
    bench.run_guest(M1, 0)  # resets all queues and filters nothing
    assert bench.guest_matrix(M1) == FOUR
    code = int(response or "7")
    (reset,) = bench.records(QueuesReset)
    assert (reset.count, reset.failed) == (4, {"06.00ab": code})
    rewrite(bench)
    assert bench.guest_matrix(M1) == (FOUR if passes else FIVE)
    bench.run_guest(M1)
    bench.run_guest(M1, 0)  # this time it goes well
    assert bench.guest_matrix(M1) == (FOUR if passes else FIVE)
    rewrite(bench)
    assert bench.guest_matrix(M1) == FOUR


@pytest.mark.parametrize("response", ["2", "5", "10"])
def test_the_driver_resets_again_where_that_can_help(response: str) -> None:
    bench = built()
    bench.console(f"fail-reset 06.00ab {response}")
    bench.run_guest(M1)
    bench.mark()
    bench.run_guest(M1, 0)
    (reset,) = bench.records(QueuesReset)
    assert (reset.count, reset.failed) == (4, {})
    rewrite(bench)
    assert bench.guest_matrix(M1) == FOUR
    assert bench.records(LogLine) == []


def test_a_freshly_bound_queue_counts_as_good() -> None:
    bench = built()
    bench.console("fail-reset 06.00ab")
    bench.run_guest(M1)
    bench.run_guest(M1, 0)
    rewrite(bench)
    assert bench.guest_matrix(M1) == FIVE
    bench.unbind("06.00ab")
    bench.bind("06.00ab")
    assert bench.guest_matrix(M1) == FOUR


def test_a_bad_reset_is_told_in_the_log_without_a_device() -> None:
    bench = built()
    bench.console("fail-reset 06.00ab 7")
    bench.mark()
    bench.put(M1, "unassign_adapter", "6")
    (line,) = bench.log()
    assert line.startswith("warn ")
    assert "vfio_ap_mdev" not in line
    assert line.index("06.00ab") < line.rindex("7")


def test_clear_faults_takes_a_failing_reset_back() -> None:
    bench = built()
    bench.console("fail-reset 06.00ab", "clear-faults")
    bench.run_guest(M1)
    bench.run_guest(M1, 0)
    rewrite(bench)
    assert bench.guest_matrix(M1) == FOUR


# -- when: writes to the device ---------------------------------------------------------------------------------------


def stale() -> Bench:
    """Return a host where a filtering would add adapter 6, but none ran. The host has lost control domain 4."""
    bench = Bench(SPARE)
    bench.unbind("06.00ab")
    bench.create(M1)
    bench.assign(M1, (5, 6), (4, 0xAB), (4, 0x47))
    bench.put(M1, "unassign_domain", "0xab")
    bench.console("remove-control-domain 4", "scan")
    assert bench.matrix(M1) == ["05.0004", "06.0004"]
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.guest_control_domains(M1) == [0x47]
    bench.run_guest(M1)
    bench.mark()
    return bench


BOTH = ["05.0004", "06.0004"]


@pytest.mark.parametrize(
    ("name", "text", "guest_matrix", "control_domains"),
    [
        pytest.param("assign_adapter", "63", BOTH, [0x47], id="assign_adapter filters the matrix"),
        pytest.param("assign_domain", "9", BOTH, [0x47], id="assign_domain filters the matrix"),
        pytest.param("assign_adapter", "5", ["05.0004"], [0x47], id="assigning again filters nothing"),
        pytest.param("assign_control_domain", "9", ["05.0004"], [0x47], id="what the host lacks changes nothing"),
        pytest.param("assign_control_domain", "4", ["05.0004"], [0x47], id="and not again either"),
        pytest.param("unassign_adapter", "5", [".0004"], [0x47], id="unassign_adapter filters nothing"),
        pytest.param("unassign_adapter", "6", ["05.0004"], [0x47], id="not even what is not in the guest"),
        pytest.param("unassign_domain", "4", ["05."], [0x47], id="unassign_domain filters nothing"),
        pytest.param("unassign_control_domain", "0x47", ["05.0004"], [], id="nor does unassign_control_domain"),
        pytest.param("ap_config", config_text((5, 6), (4,), (4, 0x47)), BOTH, [0x47], id="ap_config filters both"),
        pytest.param("ap_config", config_text((6,), (4,), (4,)), ["06.0004"], [], id="ap_config with a change"),
    ],
)
def test_when_files_filter(name: str, text: str, guest_matrix: list[str], control_domains: list[int]) -> None:
    bench = stale()
    bench.put(M1, name, text.rstrip("\n"))
    assert bench.guest_matrix(M1) == guest_matrix
    assert bench.guest_control_domains(M1) == control_domains
    changed = (guest_matrix, control_domains) != (["05.0004"], [0x47])
    assert bool(bench.pushes()) == changed
    assert len(bench.interrupts()) == len(bench.pushes())


def test_assigning_can_take_away() -> None:
    bench = built()
    bench.unbind("06.0047")
    bench.run_guest(M1)
    assert bench.guest_matrix(M1) == FOUR
    bench.mark()
    bench.put(M1, "assign_domain", "0x47")
    assert bench.guest_matrix(M1) == product((5,), (4, 0x47, 0xAB))
    assert bench.pushes() == [(mask_text((5,)), mask_text((4, 0x47, 0xAB)), mask_text((4, 0xAB)))]
    assert bench.resets() == [2]  # 06.0004 and 06.00ab, which are still linked
    assert bench.queue_status("06.0004") == "assigned\n"


def test_no_recovery_on_unassign() -> None:
    for recover in (
        ("assign_domain", "0x47"),
        ("assign_adapter", "63"),
        ("ap_config", config_text((5, 6), (4,), ()).rstrip()),
    ):
        bench = built(SPARE)
        bench.unbind("06.00ab")
        bench.put(M1, "unassign_domain", "0xab")
        assert bench.guest_matrix(M1) == ["05.0004"]
        bench.put(M1, *recover)
        assert "06.0004" in bench.guest_matrix(M1)


@pytest.mark.parametrize(
    ("config", "pushed"),
    [
        pytest.param(config_text((5, 6), (4, 0xAB), (4, 0xAB)), [], id="nothing new"),
        pytest.param(config_text((5,), (4, 0xAB), (4, 0xAB)), [((5,), (4, 0xAB), (4, 0xAB))], id="adapter out"),
        pytest.param(config_text((5, 6), (4,), (4, 0xAB)), [((5, 6), (4,), (4, 0xAB))], id="domain out"),
        pytest.param(config_text((5, 6), (4, 0xAB), (4,)), [((5, 6), (4, 0xAB), (4,))], id="control domain out"),
        pytest.param(
            config_text((5,), (4, 0x47), (4,)),
            [((5,), (4, 0xAB), (4, 0xAB)), ((5,), (4,), (4, 0xAB)), ((5,), (4, 0x47), (4,))],
            id="adapters, then domains, then the rest",
        ),
    ],
)
def test_a_rewrite_pushes_up_to_three_times(
    config: str, pushed: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
) -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.write(f"{MATRIX}/{M1}/ap_config", config)
    assert bench.pushes() == [tuple(mask_text(numbers) for numbers in masks) for masks in pushed]
    assert bench.interrupts() == [(M1, "config_changed")] * len(pushed)


@pytest.mark.parametrize("guest", [0, 1])
@pytest.mark.parametrize(
    ("unbound", "name", "text", "resets"),
    [
        pytest.param((), "unassign_adapter", "6", [2], id="all of the adapter"),
        pytest.param((), "unassign_domain", "4", [2], id="all of the domain"),
        pytest.param(("06.00ab",), "unassign_adapter", "6", [], id="the guest had none of them"),
        pytest.param(("06.00ab",), "unassign_domain", "4", [1], id="the guest had one of them"),
        pytest.param((), "unassign_control_domain", "4", [], id="control domains have no queues"),
        pytest.param((), "ap_config", ",", [2, 2], id="adapters first, which leaves no queue to the domains"),
    ],
)
def test_what_is_taken_from_the_guest_is_reset(
    unbound: tuple[str, ...], name: str, text: str, resets: list[int], guest: int
) -> None:
    bench = built()
    bench.unbind(*unbound)
    if guest:
        bench.run_guest(M1)
    bench.mark()
    bench.put(M1, name, text)
    total = sum(record.count for record in bench.records(QueuesReset))
    assert total == sum(resets)


# -- when: queues come and go -----------------------------------------------------------------------------------------


def test_binding_a_queue_filters() -> None:
    bench = built()
    bench.unbind("06.00ab")
    bench.run_guest(M1)
    bench.mark()
    bench.bind("06.00ab")
    assert bench.guest_matrix(M1) == FOUR
    assert bench.pushes() == [(mask_text((5, 6)), mask_text((4, 0xAB)), mask_text((4, 0xAB)))]


def test_binding_a_queue_leaves_control_domains_alone() -> None:
    bench = stale()
    bench.unbind("06.0004")
    bench.bind("06.0004")
    assert bench.guest_matrix(M1) == BOTH
    assert bench.guest_control_domains(M1) == [0x47]


def test_binding_a_queue_of_nobody_filters_nothing() -> None:
    bench = stale()
    bench.unbind("06.0047")
    bench.bind("06.0047")
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.pushes() == []


def test_losing_a_queue_takes_the_adapter_and_filters_nothing() -> None:
    bench = stale()
    bench.put(M1, "assign_domain", "0x47")
    bench.unbind("06.0004")
    bench.bind("06.0004")
    bench.unbind("06.00ff")
    assert bench.guest_matrix(M1) == product((5, 6), (4, 0x47))
    bench.mark()
    bench.unbind("05.0047")
    assert bench.guest_matrix(M1) == product((6,), (4, 0x47))
    assert bench.pushes() == [(mask_text((6,)), mask_text((4, 0x47)), mask_text((0x47,)))]
    assert bench.interrupts() == [(M1, "config_changed")]
    assert bench.resets() == [2]  # all linked queues of the adapter on the guest's domains, the lost one included
    bench.mark()
    bench.unbind("05.0004")  # the guest does not have it any more
    assert bench.guest_matrix(M1) == product((6,), (4, 0x47))
    assert bench.pushes() == []
    assert bench.resets() == [1]


def test_a_queue_of_nobody_is_reset_alone() -> None:
    bench = built()
    bench.unbind("06.00ff")
    assert bench.resets() == [1]
    assert bench.guest_matrix(M1) == FOUR


@pytest.mark.parametrize(
    ("mask", "text", "guest_matrix"),
    [
        ("aqmask", "-0x47", FOUR),  # the queues of domain 0047 are with vfio_ap already
        ("apmask", "-7", FOUR),
        ("apmask", "+63", FOUR),
        ("apmask", "0x0", FOUR),
    ],
)
def test_masks_matter_through_binding_only(mask: str, text: str, guest_matrix: list[str]) -> None:
    bench = built(SPARE)
    bench.run_guest(M1)
    bench.mark()
    bench.echo(text, f"/sys/bus/ap/{mask}")
    assert bench.guest_matrix(M1) == guest_matrix
    assert bench.pushes() == []


def test_a_mask_that_gives_queues_to_the_driver_filters() -> None:
    bench = Bench()
    bench.echo("-0x10", "/sys/bus/ap/aqmask")  # gives nothing away, since there is no such domain
    bench.create(M1)
    bench.assign(M1, (7,))
    assert bench.guest_matrix(M1) == ["07."]
    bench.unbind("05.0004")
    bench.echo("-7", "/sys/bus/ap/apmask")
    bench.assign(M1, (), (4,))
    assert bench.guest_matrix(M1) == ["07.0004"]


# -- when: the host configuration changes -----------------------------------------------------------------------------


def test_losing_an_adapter() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.console("unplug 6", "scan")
    assert bench.guest_matrix(M1) == FIVE
    assert bench.matrix(M1) == FOUR
    assert bench.pushes() == [(mask_text((5,)), mask_text((4, 0xAB)), mask_text((4, 0xAB)))]
    assert bench.resets() == []
    # At once: before the devices go.
    story = bench.story(GuestUpdate, Uevent)
    assert isinstance(story[0], GuestUpdate)
    assert len(story) > 1


def test_losing_a_domain() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.console("remove-domain 0xab", "scan")
    assert bench.guest_matrix(M1) == ["05.0004", "06.0004"]
    assert bench.matrix(M1) == FOUR
    assert bench.pushes() == [(mask_text((5, 6)), mask_text((4,)), mask_text((4, 0xAB)))]
    assert bench.resets() == []


def test_losing_what_is_not_assigned_pushes_nothing() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.console("unplug 7", "remove-domain 0xff", "remove-control-domain 0xff", "scan")
    assert bench.guest_matrix(M1) == FOUR
    assert bench.pushes() == []


def test_losing_something_filters_nothing() -> None:
    bench = stale()
    bench.console("remove-domain 0xff", "scan")
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.guest_control_domains(M1) == [0x47]
    assert bench.pushes() == []


def test_a_control_domain_that_the_host_loses_is_lost_by_the_guest() -> None:
    """Since Linux 7.2 (vfio_ap_mdev_hot_unplug_cfg); older releases had a wrong mask operation."""
    bench = built()
    bench.run_guest(M1)
    before = bench.guest_control_domains(M1)
    assert before == [4, 0xAB]
    bench.mark()
    bench.console("remove-control-domain 4", "scan")
    assert bench.guest_control_domains(M1) == [0xAB]
    assert [control for _, _, control in bench.pushes()] == [mask_text((0xAB,))]
    assert bench.interrupts() == [(M1, "config_changed")]
    assert bench.resets() == []
    bench.mark()
    bench.console("remove-control-domain 0x47", "scan")  # which the guest does not have
    assert bench.pushes() == []
    bench.console("add-control-domain 4", "scan")
    assert bench.guest_control_domains(M1) == [4, 0xAB]


def test_gaining_an_adapter_waits_for_the_end_of_the_scan() -> None:
    bench = built()
    bench.console("unplug 6", "scan")
    bench.run_guest(M1)
    bench.mark()
    bench.console("plug 6 CEX8C")
    assert bench.guest_matrix(M1) == FIVE
    bench.console("scan")
    assert bench.guest_matrix(M1) == FOUR
    assert bench.pushes() == [(mask_text((5, 6)), mask_text((4, 0xAB)), mask_text((4, 0xAB)))]
    story = bench.story(GuestUpdate, Uevent)
    queues = [record for record in story if isinstance(record, Uevent) and record.devpath.endswith("06.00ab")]
    push = next(record for record in story if isinstance(record, GuestUpdate))
    assert [record.action for record in queues] == ["add", "bind"]
    assert story.index(push) > story.index(queues[-1])


def test_gaining_a_domain_that_is_assigned() -> None:
    bench = built()
    bench.put(M1, "assign_domain", "9")
    bench.put(M1, "assign_domain", "0x30")
    assert bench.guest_matrix(M1) == FOUR
    bench.run_guest(M1)
    bench.mark()
    bench.console("add-domain 9", "scan")
    assert bench.guest_matrix(M1) == product((5, 6), (4, 9, 0xAB))
    assert len(bench.pushes()) == 1


def test_gaining_adapter_and_domain_in_one_scan() -> None:
    bench = built()
    bench.put(M1, "assign_domain", "9")
    bench.console("unplug 6", "scan")
    bench.run_guest(M1)
    bench.mark()
    bench.console("plug 6 CEX8C", "add-domain 9", "scan")
    assert bench.guest_matrix(M1) == product((5, 6), (4, 9, 0xAB))
    assert len(bench.pushes()) == 1


def test_losing_and_gaining_in_one_scan() -> None:
    bench = built()
    bench.put(M1, "assign_domain", "9")
    bench.run_guest(M1)
    bench.mark()
    bench.console("remove-domain 0xab", "add-domain 9", "unplug 6", "scan")
    assert bench.guest_matrix(M1) == product((5,), (4, 9))
    assert [push[1] for push in bench.pushes()] == [mask_text((4,)), mask_text((4, 9))]


def test_gaining_a_queue_that_stays_unbound_takes_the_adapters() -> None:
    bench = built()
    bench.put(M1, "assign_domain", "9")
    bench.run_guest(M1)
    bench.echo("0", "/sys/bus/ap/drivers_autoprobe")
    bench.console("add-domain 9", "scan")
    assert bench.guest_matrix(M1) == [".0004", ".0009", ".00ab"]
    bench.bind("05.0009")
    assert bench.guest_matrix(M1) == product((5,), (4, 9, 0xAB))


def test_gaining_a_control_domain() -> None:
    bench = built()
    bench.put(M1, "assign_control_domain", "9")
    bench.put(M1, "assign_control_domain", "10")
    bench.run_guest(M1)
    bench.mark()
    bench.console("add-control-domain 11", "scan")
    assert bench.pushes() == []
    bench.console("add-control-domain 10", "scan")
    assert bench.guest_control_domains(M1) == [4, 10, 0xAB]
    assert bench.pushes() == [(mask_text((5, 6)), mask_text((4, 0xAB)), mask_text((4, 10, 0xAB)))]


def test_gaining_control_domains_does_not_filter_the_matrix() -> None:
    bench = stale()
    bench.put(M1, "assign_control_domain", "9")
    bench.console("add-control-domain 9", "scan")
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.guest_control_domains(M1) == [9, 0x47]


def test_gaining_adapters_leaves_control_domains_alone() -> None:
    bench = stale()
    bench.put(M1, "assign_adapter", "9")
    bench.console("plug 9 CEX8C", "scan")
    assert bench.guest_control_domains(M1) == [0x47]


def test_gaining_what_is_not_assigned_filters_nothing() -> None:
    bench = stale()
    bench.console("add-domain 9", "plug 20 CEX8C", "add-control-domain 20", "scan")
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.guest_control_domains(M1) == [0x47]
    assert bench.pushes() == []


@pytest.mark.parametrize("fields", ["at=9", "at=0"])
def test_adapters_older_than_cex4_do_not_reach_the_guest(fields: str) -> None:
    bench = Bench(WORKED.replace('"-5-6"', '"0x0"'))
    bench.create(M1)
    bench.assign(M1, (5, 8), (4,))
    bench.console(f"plug 8 CEX4C {fields}", "add-domain 9", "scan")
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert not bench.exists("/sys/devices/ap/card08")


def test_every_device_follows_the_host() -> None:
    bench = built()
    bench.create(M2)
    bench.assign(M2, (6,), (0x47,))
    bench.run_guest(M1)  # M2 has none, which makes no difference
    bench.console("unplug 6", "scan")
    assert bench.guest_matrix(M1) == FIVE
    assert bench.guest_matrix(M2) == [".0047"]
    bench.console("plug 6 CEX8C", "scan")
    assert bench.guest_matrix(M1) == FOUR
    assert bench.guest_matrix(M2) == ["06.0047"]


def test_without_a_change_of_the_configuration_a_scan_filters_nothing() -> None:
    bench = stale()
    bench.console("scan", "tick 3600")
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.pushes() == []


def test_a_card_of_another_type_is_unbound_and_bound_again() -> None:
    # No configuration change: the guest loses the adapter with its queues and gets it back when they are bound.
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.console("tapq 6 at=13", "scan")
    assert bench.guest_matrix(M1) == FOUR
    assert bench.pushes()[0][0] == mask_text((5,))
    assert bench.pushes()[-1][0] == mask_text((5, 6))


# -- when: guests come and go -----------------------------------------------------------------------------------------


def test_each_queue_that_is_bound_filters() -> None:
    # vfio_ap_mdev_probe_queue: the first one of adapter 5 lets adapter 6 in, which has waited for any filtering.
    bench = built()
    bench.run_guest(M1)
    bench.unbind("06.0047")
    bench.put(M1, "assign_domain", 0x47)
    bench.put(M1, "unassign_domain", 0x47)
    assert bench.guest_matrix(M1) == FIVE
    bench.host.set_tapq(5, {"mex4k": 1})
    bench.mark()
    bench.host.scan()
    assert [adapters for adapters, _, _ in bench.pushes()] == [mask_text(()), mask_text((6,)), mask_text((5, 6))]
    assert bench.guest_matrix(M1) == FOUR


def told(bench: Bench) -> list[str]:
    """Return uevents of cards and queues and the first adapters that guests were given, in their order."""
    lines = []
    for record in bench.story(Uevent, GuestUpdate):
        if isinstance(record, GuestUpdate):
            lines.append(record.adapters[:4])
        elif isinstance(record, Uevent) and record.devpath.startswith("/devices/ap/"):
            lines.append(f"{record.action} {record.devpath.rpartition('/')[2]}")
    return lines


def test_guests_are_programmed_between_the_events_of_queues() -> None:
    # driver_bound and __device_release_driver send their events when probe and remove of the driver have returned.
    bench = Bench()
    bench.create(M1)
    bench.assign(M1, (5,), (0x47, 0xAB))
    bench.run_guest(M1)
    bench.host.set_tapq(5, {"mex4k": 1})
    bench.mark()
    bench.host.scan()
    gone, come = told(bench)[:11], told(bench)[11:]
    assert gone == [
        *("unbind 05.0004", "remove 05.0004", "0x00", "unbind 05.0047", "remove 05.0047"),
        *("unbind 05.00ab", "remove 05.00ab", "unbind 05.00ff", "remove 05.00ff", "unbind card05", "remove card05"),
    ]
    assert come == [
        *("add card05", "bind card05", "add 05.0004", "bind 05.0004", "add 05.0047", "bind 05.0047"),
        *("add 05.00ab", "0x04", "bind 05.00ab", "add 05.00ff", "bind 05.00ff"),
    ]
    bench.unbind("05.0047", "05.00ab")
    bench.mark()
    bench.bind("05.0047", "05.00ab")
    assert told(bench) == ["bind 05.0047", "0x04", "bind 05.00ab"]


def test_masks_program_guests_between_the_events_of_queues() -> None:
    # __ap_revise_reserved offers queues without a driver that are not reserved, whatever was written.
    bench = Bench()
    bench.create(M1)
    bench.assign(M1, (5,), (4, 0xAB))
    bench.run_guest(M1)
    bench.unbind("05.0004", "05.0047", "05.00ab")
    bench.mark()
    assert bench.store("/sys/bus/ap/apmask", "-255") == ""
    assert told(bench) == ["bind 05.0004", "bind 05.0047", "0x04", "bind 05.00ab"]


def test_queues_of_several_devices_go_and_come_in_the_order_of_their_domains() -> None:
    bench = Bench()
    bench.create(M1, M2)
    bench.assign(M1, (5,), (0x47, 0xFF))
    bench.assign(M2, (5,), (4, 0xAB))
    for uuid in (M1, M2):
        bench.run_guest(uuid)
    bench.host.set_tapq(5, {"mex4k": 1})
    bench.mark()
    bench.host.scan()
    pushes = [(record.mdev, record.adapters) for record in bench.records(GuestUpdate)]
    assert pushes == [(M2, mask_text(())), (M1, mask_text(())), (M2, mask_text((5,))), (M1, mask_text((5,)))]


def test_a_guest_gets_what_is_there_and_leaves_it() -> None:
    bench = stale()
    bench.run_guest(M1, 0)
    bench.mark()
    bench.run_guest(M1)
    adapters, domains, control = mask_text((5,)), mask_text((4,)), mask_text((0x47,))
    assert bench.pushes() == [(adapters, domains, control)]
    bench.mark()
    bench.run_guest(M1, 0)
    zero = mask_text(())
    assert bench.pushes() == [(zero, zero, zero)]
    assert bench.resets() == [2]  # all linked queues: also 06.0004, which the guest did not have
    assert bench.guest_matrix(M1) == ["05.0004"]
    assert bench.guest_control_domains(M1) == [0x47]


def test_two_devices_keep_their_queues_apart() -> None:
    bench = built()
    bench.create(M2)
    bench.assign(M2, (5, 6), (0x47,))
    bench.mark()
    bench.unbind("05.0047")
    assert bench.guest_matrix(M1) == FOUR
    assert bench.guest_matrix(M2) == ["06.0047"]
    bench.put(M2, "unassign_domain", "0x47")
    assert bench.guest_matrix(M1) == FOUR
    with refused("ENODEV"):
        bench.echo("05.0047", f"{AP_DRIVER}/unbind")
    assert bench.exists(queue("05.0047"))


def test_the_guest_of_the_newest_device_hears_of_changes_first() -> None:
    bench = Bench(BARE)
    bench.create(M1, M2)
    bench.assign(M1, (9,))
    bench.assign(M2, (10,))
    for uuid in (M1, M2):
        bench.run_guest(uuid)
    for change in ("plug 9 CEX8C", "plug 10 CEX8C"), ("unplug 9", "unplug 10"):
        bench.mark()
        bench.console(*change, "scan")
        assert [uuid for uuid, _ in bench.interrupts()] == [M2, M1]


@pytest.mark.parametrize(("domain", "waits"), [(0x10, False), (0x11, False), (0x47, True)])
def test_every_new_domain_is_asked_for_the_type_of_a_new_adapter(domain: int, *, waits: bool) -> None:
    """An adapter of a type older than CEX4 on one of the new domains does not wait for the end of the scan."""
    bench = Bench(WORKED)
    bench.create(M1)
    bench.assign(M1, (9,))
    bench.console("plug 9 CEX8C", "add-domain 0x10 0x11", f"tapq 09.{domain:04x} at=9")
    assert bench.host.vfio_ap is not None
    driver = bench.host.vfio_ap.driver
    driver.on_config_changed(bench.host.machine.qci(), bench.host.ap_bus.qci)
    (mdev,) = driver.mdevs
    assert list(mdev.pending.adapters) == [9] * waits


@pytest.mark.parametrize(("maximum", "errno"), [(0, "ENODEV"), (1, "")])
def test_a_maximum_of_zero_is_a_limit(maximum: int, errno: str) -> None:
    """The matrix takes what QCI says (vfio_ap_matrix_init); the bus takes 0 for its defaults."""
    bench = Bench(f"[qci]\nmax_adapter = {maximum}\n[masks]\napmask = '0x0'\n")
    bench.create(M1)
    assert bench.cat("/sys/bus/ap/ap_max_adapter_id") == f"{maximum or 63}\n"
    if errno:
        with refused(errno):
            bench.put(M1, "assign_adapter", 1)
    else:
        bench.put(M1, "assign_adapter", 1)
    bench.put(M1, "assign_adapter", 0)


# -- what the driver knows of the host ---------------------------------------------------------------------------------


def test_without_facilities_the_driver_knows_the_host_as_it_was_when_it_was_loaded() -> None:
    """vfio_ap_matrix_init executes QCI if that is installed; ap_get_configuration ends at flags of 0."""
    cards = '[[card]]\nadapter = 5\ntype = "CEX8C"\n[masks]\napmask = "-5-6"\n'
    bench = Bench(f"[qci]\nfacilities = []\ndomains = [4]\n{cards}")
    bench.create(M1)
    bench.assign(M1, (5, 6), (4,))
    assert bench.guest_matrix(M1) == ["05.0004"]
    bench.host.plug(6, "CEX8C")
    bench.host.scan()
    assert bench.drivers() == {"05.0004": "vfio_ap", "06.0004": "vfio_ap"}
    rewrite(bench)
    assert bench.guest_matrix(M1) == ["05.0004"]
    bench.host.rmmod("vfio_ap")
    bench.host.modprobe("vfio_ap")
    bench.create(M1)
    bench.assign(M1, (5, 6), (4,))
    assert bench.guest_matrix(M1) == ["05.0004", "06.0004"]

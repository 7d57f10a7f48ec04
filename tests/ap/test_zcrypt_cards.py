"""What cex4card makes of a card: it is another object with each binding, and queues stay with the one they came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ap.machines import BUS, CARD0, Q0, sample

if TYPE_CHECKING:
    from tests.hosts import Bench

CARDS, QUEUES = f"{BUS}/drivers/cex4card", f"{BUS}/drivers/cex4queue"
Q1 = f"{CARD0}/00.002a"


@pytest.fixture
def box() -> Bench:
    return sample()


def rebind(box: Bench) -> None:
    assert box.store(f"{CARDS}/unbind", "card00") == ""
    assert box.store(f"{CARDS}/bind", "card00") == ""
    box.heard()


def rebind_queue(box: Bench) -> None:
    assert box.store(f"{QUEUES}/unbind", "00.0029") == ""
    assert box.store(f"{QUEUES}/bind", "00.0029") == ""
    box.heard()


def test_a_card_that_is_bound_again_is_online_and_has_no_queues(box: Bench) -> None:
    """zcrypt_cex4_card_probe allocates a zcrypt_card; a queue's zcard is that of zcrypt_queue_register."""
    assert box.store(f"{CARD0}/online", "0") == ""
    rebind(box)
    assert box.cat(f"{CARD0}/online") == "1\n"
    assert box.store(f"{CARD0}/online", "1") == ""
    assert box.short_events() == ["change card00 ONLINE=1"]
    assert box.cat(f"{Q0}/online") == "0\n"
    assert box.cat(f"{CARD0}/serialnr") == "\n"


def test_a_queue_stays_with_the_card_that_it_was_bound_to(box: Bench) -> None:
    """online_store of a queue: zq->zcard->online is that of the old object, which nobody can switch any more."""
    assert box.store(f"{CARD0}/online", "0") == ""
    rebind(box)
    assert box.store(f"{Q0}/online", "1") == "EINVAL"
    rebind_queue(box)
    assert box.cat(f"{Q0}/online") == "1\n"
    assert box.store(f"{CARD0}/online", "0") == ""
    assert box.short_events() == ["change card00 ONLINE=0", "change card00/00.0029 ONLINE=0"]
    assert box.store(f"{Q0}/online", "1") == "EINVAL"


def test_queues_of_an_old_card_can_be_set_online_whatever_the_new_one_is(box: Bench) -> None:
    rebind(box)
    assert box.store(f"{CARD0}/online", "0") == ""
    assert box.short_events() == ["change card00 ONLINE=0"]
    assert box.store(f"{Q1}/online", "0") == ""
    assert box.store(f"{Q1}/online", "1") == ""
    assert box.cat(f"{Q1}/online") == "1\n"


@pytest.mark.parametrize("again", [False, True])
def test_a_queue_in_no_list_of_zcrypt_is_not_asked(box: Bench, again: bool) -> None:  # noqa: FBT001 -- parametrized
    """zcrypt_device_status_ext walks the queues of the cards that are bound."""
    assert "valid" in box.cat(f"{Q0}/mkvps")
    if again:
        rebind(box)
    else:
        assert box.store(f"{CARDS}/unbind", "card00") == ""
    assert "valid" not in box.cat(f"{Q0}/mkvps")
    if again:
        rebind_queue(box)
        assert "valid" in box.cat(f"{Q0}/mkvps")
        assert "valid" not in box.cat(f"{Q1}/mkvps")


def test_queues_need_a_card_that_is_bound(box: Bench) -> None:
    """zcrypt_queue_register uses the zcrypt_card of a card that has none: Linux ends in an oops."""
    assert box.store(f"{QUEUES}/unbind", "00.0029") == ""
    assert box.store(f"{CARDS}/unbind", "card00") == ""
    box.heard()
    assert box.store(f"{QUEUES}/bind", "00.0029") == "ENODEV"
    assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    box.host.change_domains(add=[0x30])
    box.host.scan()
    assert box.drivers()["00.0029"] is box.drivers()["00.0030"] is None
    assert box.drivers()["00.002a"] == "cex4queue"
    assert box.store(f"{CARDS}/bind", "card00") == ""
    assert box.store(f"{QUEUES}/bind", "00.0029") == ""
    assert box.cat(f"{Q0}/online") == "1\n"


def test_a_mask_gives_no_queue_to_a_card_that_is_not_bound() -> None:
    """__ap_revise_reserved releases the queue from vfio_ap first, and offers it afterwards: nobody takes it."""
    box = sample(vfio_ap=True)
    assert box.store(f"{BUS}/apmask", "-0") == ""
    assert box.store(f"{CARDS}/unbind", "card00") == ""
    box.heard()
    assert box.store(f"{BUS}/apmask", "+0") == ""
    assert [event.split()[:2] for event in box.short_events()] == [
        ["unbind", "card00/00.0029"],
        ["unbind", "card00/00.002a"],
        ["change", "/devices/ap"],
    ]
    assert box.drivers()["00.0029"] is box.drivers()["00.002a"] is None


def test_a_card_without_queues_can_be_bound_again_and_again(box: Bench) -> None:
    for name in ("00.0029", "00.002a"):
        assert box.store(f"{QUEUES}/unbind", name) == ""
    for _ in range(3):
        rebind(box)
    assert len(box.host.ap_bus.cards[0].zcrypt_cards) == 1

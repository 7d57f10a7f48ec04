"""What the console says that users send to queues, and requests of the drivers that get no answer."""

from __future__ import annotations

import pytest

from tests.ap.machines import toml
from tests.hosts import Bench, refused

CARD = "/sys/devices/ap/card00"
FIRST, SECOND = f"{CARD}/00.0004", f"{CARD}/00.0029"
COUNTS = ("request_count", "requestq_count", "pendingq_count", "load")


@pytest.fixture
def box() -> Bench:
    return Bench(toml({0: "CEX8P"}, [0x04, 0x29]))


def counts(box: Bench, device: str) -> list[str]:
    return [box.cat(f"{device}/{name}").strip() for name in COUNTS if name in box.ls(device)]


def test_requests_of_queues_add_up_to_those_of_the_card(box: Bench) -> None:
    """ap_queue_message counts for both; requestq_count_show and pendingq_count_show of a card add."""
    box.console("requests 00.0004 count=12 waiting=3 pending=2 load=40", "requests 00.0029 count=5 load=2")
    assert counts(box, FIRST) == ["12", "3", "2", "40"]
    assert counts(box, SECOND) == ["5", "0", "0", "2"]
    assert counts(box, CARD) == ["17", "3", "2", "42"]
    box.console("requests 00.0004 count=1 pending=1")
    assert counts(box, FIRST) == ["13", "0", "1", "0"]
    assert counts(box, CARD) == ["18", "0", "1", "2"]
    box.echo(0, f"{CARD}/request_count")
    assert counts(box, FIRST) == ["0", "0", "1", "0"]


def test_a_queue_that_is_lost_has_nothing_under_way(box: Bench) -> None:
    box.console("requests 00.0004 count=2 waiting=3 pending=2 load=40")
    box.echo("00.0004", "/sys/bus/ap/drivers/cex4queue/unbind")
    assert counts(box, FIRST)[1:] == ["0", "0"]
    assert counts(box, CARD)[1:] == ["0", "0", "0"]


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("requests 00.0004", "EINVAL"),
        ("requests 00.0004 sent=1", "EINVAL"),
        ("requests 0 count=1", "EINVAL"),
        ("requests 00.0005 count=1", "ENODEV"),
        ("no-answer 00.0004 0", "EINVAL"),
        ("no-answer 07.0004", "ENODEV"),
    ],
)
def test_refusals(box: Bench, verb: str, expected: str) -> None:
    before = box.dump()
    with refused(expected):
        box.console(verb)
    assert box.dump() == before


def test_nobody_can_send_to_a_queue_that_cannot_be_used(box: Bench) -> None:
    box.console("checkstop 0 on", "scan")
    with refused("ENODEV"):
        box.console("requests 00.0004 count=1")


def test_a_queue_in_error_state_has_nothing_under_way(box: Bench) -> None:
    """ap_queue_usable: the device state has to be operating; what was under way is flushed when it is not."""
    box.console("requests 00.0004 count=2 waiting=3 pending=2 load=40", "configure 0 off")
    box.echo(1, f"{FIRST}/reset")  # fails, as the hardware is gone, which the bus does not know
    assert box.cat(f"{FIRST}/config") == "1\n"
    assert counts(box, FIRST) == ["2", "0", "0", "0"]
    assert counts(box, CARD) == ["2", "0", "0", "0"]
    with refused("ENODEV"):
        box.console("requests 00.0004 count=1")


def test_a_request_that_gets_no_answer(box: Bench) -> None:
    """ep11_mkvps_show: a request that fails leaves the states as dashes."""
    keys = box.cat(f"{FIRST}/mkvps")
    none = "WK CUR: - -\nWK NEW: - -\n"
    box.console("no-answer 00.0004")
    assert box.status()["unanswered"] == {"00.0004": 1}
    assert box.cat(f"{SECOND}/mkvps") == keys
    assert [box.cat(f"{FIRST}/mkvps") for _ in range(2)] == [none, keys]
    box.console("no-answer 00.0004 2")
    assert [box.cat(f"{FIRST}/{name}") for name in ("op_modes", "mkvps", "mkvps")] == ["\n", none, keys]
    box.console("no-answer 00.0004 9", "clear-faults")
    assert box.cat(f"{FIRST}/mkvps") == keys
    assert box.status()["unanswered"] == {}

"""The file `status` of a queue: there while vfio_ap has the queue, and what it says."""

import pytest

from tests.hosts import M1, M2, MATRIX, ZCRYPT_DRIVER, Bench, built, queue, refused

UNASSIGNED, ASSIGNED, IN_USE = "unassigned\n", "assigned\n", "in use\n"


@pytest.mark.parametrize(
    ("adapters", "domains", "without_guest", "with_guest"),
    [
        ((), (), UNASSIGNED, UNASSIGNED),
        ((5,), (), UNASSIGNED, UNASSIGNED),
        ((), (4,), UNASSIGNED, UNASSIGNED),
        ((5,), (0x47,), UNASSIGNED, UNASSIGNED),
        ((6,), (4,), UNASSIGNED, UNASSIGNED),
        ((5,), (4,), ASSIGNED, IN_USE),
        ((5, 6), (4, 0x47), ASSIGNED, IN_USE),
    ],
)
def test_by_assignment(
    adapters: tuple[int, ...], domains: tuple[int, ...], without_guest: str, with_guest: str
) -> None:
    bench = Bench()
    bench.create(M2, M1)
    bench.assign(M1, adapters, domains)
    assert bench.queue_status("05.0004") == without_guest
    bench.run_guest(M1)
    assert bench.queue_status("05.0004") == with_guest
    bench.run_guest(M1, 0)
    assert bench.queue_status("05.0004") == without_guest
    bench.put(M1, "remove", 1)
    assert bench.queue_status("05.0004") == UNASSIGNED


def test_in_use_are_only_queues_that_the_guest_really_has() -> None:
    bench = built()
    bench.unbind("06.00ab")
    bench.run_guest(M1)
    assert [bench.queue_status(apqn) for apqn in ("05.0004", "05.00ab", "06.0004")] == [IN_USE, IN_USE, ASSIGNED]
    bench.bind("06.00ab")
    assert bench.queue_status("06.0004") == IN_USE


def test_a_guest_of_another_device_does_not_matter() -> None:
    bench = built()
    bench.create(M2)
    bench.assign(M2, (5,), (0x47,))
    bench.run_guest(M2)
    assert bench.queue_status("05.0004") == ASSIGNED
    assert bench.queue_status("05.0047") == IN_USE


def test_it_is_there_only_while_vfio_ap_has_the_queue() -> None:
    bench = Bench()
    status = f"{queue('05.0004')}/status"
    assert bench.stat(status).mode & 0o7777 == 0o444
    assert bench.stat(status).size == 4096
    assert not bench.exists(f"{queue('07.0004')}/status")
    bench.unbind("05.0004")
    assert not bench.exists(status)
    with refused("ENOENT"):
        bench.cat(status)
    bench.bind("05.0004")
    assert bench.cat(status) == UNASSIGNED
    bench.echo("+5", "/sys/bus/ap/apmask")
    assert not bench.exists(status)
    assert "05.0004" in bench.ls(ZCRYPT_DRIVER)
    bench.echo("-5", "/sys/bus/ap/apmask")
    assert bench.cat(status) == UNASSIGNED
    bench.console("rmmod vfio_ap")
    assert not bench.exists(status)
    assert bench.exists(queue("05.0004"))


def test_it_follows_the_matrix() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.put(M1, "unassign_domain", 4)
    assert bench.queue_status("05.0004") == UNASSIGNED
    bench.write(f"{MATRIX}/{M1}/ap_config", "0x04,0x08,0x0")
    assert bench.queue_status("05.0004") == IN_USE
    assert bench.queue_status("06.0004") == UNASSIGNED


@pytest.mark.parametrize("data", ["", "\n", "assigned\n", "in use"])
def test_it_cannot_be_written(data: str) -> None:
    bench = built()
    with refused("EACCES"):
        bench.write(f"{queue('05.0004')}/status", data)

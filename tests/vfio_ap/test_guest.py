"""A guest on a device: interrupts, what it is given, and that nobody takes its device away."""

import pytest

from apfs.journal.records import GuestUpdate, Interrupt
from apfs.vfio_ap.attributes import matrix_mdev
from apfs.vfio_ap.client import Vm
from apfs.vfio_ap.ops import MatrixMdev
from tests.hosts import M1, M2, MATRIX, MDEV_DRIVER, WORKED, Bench, built, config_text, mask_text, product, refused

CONTROL = mask_text((4, 0xAB))
NOTHING = (mask_text(()),) * 3


def device(bench: Bench, uuid: str = M1) -> MatrixMdev:
    mdev = bench.host.mdev_bus.device(uuid)
    assert mdev is not None
    data = matrix_mdev(mdev)
    assert data is not None
    return data


# -- the interrupt of a changed configuration -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "masks"),
    [
        ("assign_domain", "0x47", ((5, 6), (4, 0x47, 0xAB), (4, 0xAB))),
        ("unassign_domain", "4", ((5, 6), (0xAB,), (4, 0xAB))),
        ("unassign_adapter", "6", ((5,), (4, 0xAB), (4, 0xAB))),
        ("assign_control_domain", "0x47", ((5, 6), (4, 0xAB), (4, 0x47, 0xAB))),
        ("unassign_control_domain", "4", ((5, 6), (4, 0xAB), (0xAB,))),
        ("ap_config", config_text((6,), (4, 0xAB), (4, 0xAB)).rstrip(), ((6,), (4, 0xAB), (4, 0xAB))),
    ],
)
def test_a_change_is_given_to_the_guest_and_signalled(
    name: str, text: str, masks: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
) -> None:
    bench = built()
    bench.put(M1, name, text)
    assert bench.story(GuestUpdate, Interrupt) == []  # nobody is there
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.put(M1, name, text)
    assert bench.story(GuestUpdate, Interrupt) == [
        GuestUpdate(M1, *map(mask_text, masks)),
        Interrupt(M1, "config_changed"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("assign_domain", "9"),  # not in the host configuration
        ("assign_control_domain", "9"),
        ("assign_domain", "4"),
        ("unassign_domain", "9"),
        ("unassign_adapter", "40"),
        ("ap_config", config_text((5, 6), (4, 0xAB), (4, 0xAB)).rstrip()),
    ],
)
def test_what_the_guest_would_not_notice_is_not_signalled(name: str, text: str) -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.put(M1, name, text)
    assert bench.story(GuestUpdate, Interrupt) == []


def test_the_other_guest_is_left_alone() -> None:
    bench = built()
    bench.create(M2)
    bench.assign(M2, (5, 6), (0x47,))
    bench.run_guest(M1)
    bench.run_guest(M2)
    bench.mark()
    bench.put(M2, "unassign_adapter", "6")
    assert bench.interrupts() == [(M2, "config_changed")]


# -- coming and going -------------------------------------------------------------------------------------------------


def test_start_and_stop() -> None:
    bench = built()
    path = f"/dev/vfio-ap/{M1}/guest"
    assert bench.cat(path) == "0\n"
    bench.run_guest(M1)
    assert bench.cat(path) == "1\n"
    assert bench.pushes() == [(mask_text((5, 6)), mask_text((4, 0xAB)), CONTROL)]
    bench.mark()
    bench.run_guest(M1)  # is running already
    assert bench.pushes() == []
    bench.run_guest(M1, 0)
    assert bench.cat(path) == "0\n"
    assert bench.pushes() == [NOTHING]
    assert bench.resets() == [4]
    bench.mark()
    bench.run_guest(M1, 0)
    assert bench.pushes() == []
    assert bench.resets() == []


def test_all_linked_queues_are_reset_at_the_end_whether_the_guest_had_them_or_not() -> None:
    bench = built()
    bench.unbind("06.00ab")
    bench.run_guest(M1)
    bench.mark()
    bench.run_guest(M1, 0)
    assert bench.resets() == [3]


def test_a_device_without_anything_can_be_used() -> None:
    bench = Bench()
    bench.create(M1)
    bench.run_guest(M1)
    assert bench.pushes() == [NOTHING]
    bench.assign(M1, (5,), (4,))
    assert bench.queue_status("05.0004") == "in use\n"


def test_a_guest_from_the_start() -> None:
    mdev = f'[[mdev]]\nuuid = "{M1}"\nadapters = [5]\ndomains = [4]\nguest = true\n'
    bench = Bench(WORKED + mdev)
    assert bench.cat(f"/dev/vfio-ap/{M1}/guest") == "1\n"
    assert bench.queue_status("05.0004") == "in use\n"


# -- opening as a VMM does --------------------------------------------------------------------------------------------


def test_opening_needs_a_vm() -> None:
    bench = built()
    with refused("EINVAL"):
        device(bench).vdev.open(None)
    assert bench.cat(f"/dev/vfio-ap/{M1}/guest") == "0\n"
    assert device(bench).vdev.open_count == 0


def test_one_device_per_vm() -> None:
    bench = built()
    bench.create(M2)
    vm = Vm()
    device(bench).vdev.open(vm)
    with refused("EPERM"):
        device(bench, M2).vdev.open(vm)
    device(bench).vdev.close()
    device(bench, M2).vdev.open(vm)
    assert bench.cat(f"/dev/vfio-ap/{M2}/guest") == "1\n"


def test_a_second_open_has_no_further_effect() -> None:
    bench = built()
    vdev = device(bench).vdev
    vdev.open(Vm())
    bench.mark()
    vdev.open(Vm())
    assert bench.pushes() == []
    vdev.close()
    assert bench.pushes() == []
    assert bench.queue_status("05.0004") == "in use\n"
    vdev.close()
    assert bench.pushes() == [NOTHING]
    assert bench.queue_status("05.0004") == "assigned\n"


# -- taking the device away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [(f"{MATRIX}/{M1}/remove", "1"), (f"{MDEV_DRIVER}/unbind", M1)],
    ids=["remove", "unbind"],
)
def test_a_device_in_use_stays(path: str, text: str) -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    before = bench.dump()
    for _ in range(2):
        with refused("EBUSY"):
            bench.echo(text, path)
    assert bench.dump() == before
    assert bench.queue_status("05.0004") == "in use\n"
    assert [irq for _, irq in bench.interrupts()] == ["config_changed", "request"] * 2
    notices = [line for line in bench.log() if line.startswith("notice ")]
    assert len(notices) == 2
    assert all(line.startswith(f"notice vfio_ap_mdev {M1}: ") and "#0" in line for line in notices)
    with refused("EEXIST"):
        bench.create(M1)
    bench.run_guest(M1, 0)
    bench.echo(text, path)
    assert not bench.exists(f"{MATRIX}/{M1}/matrix")
    assert bench.queue_status("05.0004") == "unassigned\n"


def test_a_zero_removes_nothing_and_asks_nobody() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.put(M1, "remove", "0")
    assert bench.interrupts() == []


def test_the_module_stays_as_long_as_a_device_is_in_use() -> None:
    bench = built()
    bench.create(M2)
    assert bench.cat("/sys/module/vfio_ap/refcnt") == "0\n"
    bench.run_guest(M1)
    assert bench.cat("/sys/module/vfio_ap/refcnt") == "1\n"
    bench.run_guest(M2)
    assert bench.cat("/sys/module/vfio_ap/refcnt") == "2\n"
    bench.run_guest(M2, 0)
    before = bench.dump()
    with refused("EAGAIN"):
        bench.console("rmmod vfio_ap")
    assert bench.dump() == before
    bench.run_guest(M1, 0)
    bench.console("rmmod vfio_ap")
    assert not bench.exists(MATRIX)


# -- reset ------------------------------------------------------------------------------------------------------------


def test_reset() -> None:
    bench = built()
    path = f"/dev/vfio-ap/{M1}/reset"
    with refused("ENODEV"):
        bench.echo(1, path)
    bench.unbind("06.00ab")
    bench.run_guest(M1)
    bench.mark()
    bench.echo(1, path)
    assert bench.resets() == [3]  # all linked queues: 06.0004, which the guest does not have, is one
    assert bench.pushes() == []
    assert bench.guest_matrix(M1) == product((5,), (4, 0xAB))


@pytest.mark.parametrize("verb", ["fail-reset 05.00ab 7", "configure 5 off", "checkstop 6 on"])
def test_a_reset_that_does_not_end_well(verb: str) -> None:
    bench = built()
    bench.run_guest(M1)
    bench.console(verb)
    with refused("EIO"):
        bench.echo(1, f"/dev/vfio-ap/{M1}/reset")
    bench.console("configure 5 on", "checkstop 6 off")
    bench.echo(1, f"/dev/vfio-ap/{M1}/reset")

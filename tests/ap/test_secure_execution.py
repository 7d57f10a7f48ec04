"""Binding and association of queues in a secure execution guest."""

from __future__ import annotations

import pytest

from tests.ap.machines import BUS, CARD0, Q0, toml
from tests.hosts import Bench

CARDS = {0: "CEX8P", 1: "CEX8A", 2: "CEX8C"}
TOP = 'secure_execution = true\nenvironment = "kvm"'
FACILITIES = 'facilities = ["APSC", "APXA", "QACT", "RC8A", "APSB"]'
GUEST = toml(CARDS, [0x29], top=TOP, qci=FACILITIES, card="tapq = { bs = 2 }")
EP11, ACCEL, CCA = Q0, "/sys/devices/ap/card01/01.0029", "/sys/devices/ap/card02/02.0029"
BOTH = {"se_bind", "se_associate"}


@pytest.fixture
def box() -> Bench:
    return Bench(GUEST)


def state(box: Bench, queue: str) -> tuple[str, str]:
    return box.shown(f"{queue}/se_bind").strip(), box.shown(f"{queue}/se_associate").strip()


def bind_state(box: Bench, queue: str) -> int:
    """Return the bind state that the hardware reports in the queue's facility word."""
    return int(box.cat(f"{queue}/ap_functions"), 0) >> 14 & 3


def tapq(box: Bench, queue: str, bs: int) -> None:
    name = queue.rsplit("/", 1)[1]
    box.host.set_tapq(int(name[:2], 16), {"bs": bs}, 0x29)


# -- who has the files -------------------------------------------------------------------------------------------------


def test_ep11_and_accelerator_queues_have_the_files(box: Bench) -> None:
    assert box.names(EP11) >= BOTH
    assert box.names(ACCEL) >= BOTH
    assert not BOTH & box.names(CCA)
    assert not BOTH & box.names(CARD0)
    for name in BOTH:
        assert box.stat(f"{EP11}/{name}").mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("top", "qci"),
    [('environment = "kvm"', FACILITIES), (TOP, 'facilities = ["APSC", "APXA"]'), ("", "")],
)
def test_others_do_not_have_them(top: str, qci: str) -> None:
    box = Bench(toml(CARDS, [0x29], top=top, qci=qci))
    for queue in (EP11, ACCEL, CCA):
        assert not BOTH & box.names(queue)


@pytest.mark.parametrize("driver", ["vfio_ap", None])
def test_they_are_there_whatever_the_driver(box: Bench, driver: str | None) -> None:
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    if driver:
        assert box.store(f"{BUS}/apmask", "-0") == ""
        assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.driver(EP11) == driver
    assert box.names(EP11) >= BOTH
    assert state(box, EP11) == ("unbound", "unassociated")


# -- what they show ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bs", "shown"), [(0, "bound"), (1, "bound"), (2, "unbound"), (3, "unbound")])
def test_se_bind_shows_the_bind_state(box: Bench, bs: int, shown: str) -> None:
    for queue in (EP11, ACCEL):
        tapq(box, queue, bs)
        assert box.cat(f"{queue}/se_bind") == f"{shown}\n"
    assert box.cat(f"{ACCEL}/se_associate") == "-\n"
    if bs:
        assert box.cat(f"{EP11}/se_associate") == "unassociated\n"


# -- the way of a queue ------------------------------------------------------------------------------------------------


def test_an_ep11_queue_is_bound_then_associated_then_unbound(box: Bench) -> None:
    assert bind_state(box, EP11) == 2
    assert box.store(f"{EP11}/se_associate", "5") == "EINVAL"
    assert box.store(f"{EP11}/se_bind", "1\n") == ""
    assert state(box, EP11) == ("bound", "unassociated")
    assert bind_state(box, EP11) == 1
    assert box.store(f"{EP11}/se_bind", "1") == "EINVAL"
    assert box.store(f"{EP11}/se_associate", "0x1f\n") == ""
    assert state(box, EP11) == ("bound", "associated 31")
    assert bind_state(box, EP11) == 0
    assert box.store(f"{EP11}/se_associate", "31") == "EINVAL"
    assert box.store(f"{EP11}/se_bind", "y") == "EINVAL"
    assert box.store(f"{EP11}/se_bind", "0") == ""
    assert state(box, EP11) == ("unbound", "unassociated")
    assert bind_state(box, EP11) == 2
    assert box.store(f"{EP11}/se_bind", "on") == ""
    assert state(box, EP11) == ("bound", "unassociated")
    assert box.store(f"{EP11}/se_associate", "65535") == ""
    assert state(box, EP11) == ("bound", "associated 65535")


def test_an_accelerator_queue_is_usable_once_it_is_bound(box: Bench) -> None:
    assert box.store(f"{ACCEL}/se_bind", "1") == ""
    assert state(box, ACCEL) == ("bound", "-")
    assert bind_state(box, ACCEL) == 0
    assert box.store(f"{ACCEL}/se_bind", "off") == ""
    assert state(box, ACCEL) == ("unbound", "-")


def test_binding_and_associating_are_told(box: Bench) -> None:
    """ap_send_se_bind_uevent and ap_send_se_assoc_uevent; nothing is sent when a queue is unbound."""
    name = EP11.removeprefix("/sys/devices/ap/")
    for file, text in (("se_bind", "1"), ("se_associate", "0x1f"), ("se_bind", "0"), ("se_bind", "2")):
        box.store(f"{EP11}/{file}", text)
    assert box.events() == [
        f"change {name} SE_BIND=1 DEVTYPE=ap_queue DRIVER=cex4queue MODE=ep11",
        f"change {name} SE_ASSOC=31 DEVTYPE=ap_queue DRIVER=cex4queue MODE=ep11",
    ]


def test_queues_are_bound_one_by_one(box: Bench) -> None:
    assert box.store(f"{EP11}/se_bind", "1") == ""
    assert state(box, ACCEL) == ("unbound", "-")
    box.host.scan()
    assert state(box, EP11) == ("bound", "unassociated")
    assert box.driver(EP11) == "cex4queue"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bs", [0, 1, 3])
def test_only_what_is_available_can_be_bound(box: Bench, bs: int) -> None:
    for queue in (EP11, ACCEL):
        tapq(box, queue, bs)
        assert box.store(f"{queue}/se_bind", "1") == "EINVAL"
        assert bind_state(box, queue) == bs


@pytest.mark.parametrize("bs", [0, 2, 3])
def test_only_what_is_bound_without_a_secret_can_be_associated(box: Bench, bs: int) -> None:
    tapq(box, EP11, bs)
    assert box.store(f"{EP11}/se_associate", "1") == "EINVAL"
    assert bind_state(box, EP11) == bs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", ""),
        ("65535\n", ""),
        ("+0xffff", ""),
        ("010", ""),
        ("65536", "EINVAL"),
        (str(2**32 - 1), "EINVAL"),
        # The number is an unsigned int, so what does not fit into 32 bits is out of range before it is too large.
        (str(2**32), "ERANGE"),
        (str(2**64 - 1), "ERANGE"),
        (str(2**64), "ERANGE"),
        ("-1", "EINVAL"),
        (" 1", "EINVAL"),
        ("1x", "EINVAL"),
        ("\n", "EINVAL"),
    ],
)
def test_the_index_of_a_secret(box: Bench, text: str, expected: str) -> None:
    assert box.store(f"{EP11}/se_bind", "1") == ""
    assert box.store(f"{EP11}/se_associate", text) == expected
    assert box.cat(f"{EP11}/se_associate").startswith("unassociated" if expected else "associated ")


@pytest.mark.parametrize("text", ["0", "1", "65536", "x", "\n", str(2**64)])
def test_accelerators_have_no_secret_whatever_is_written(box: Bench, text: str) -> None:
    assert box.store(f"{ACCEL}/se_bind", "1") == ""
    assert box.store(f"{ACCEL}/se_associate", text) == "EINVAL"


@pytest.mark.parametrize("text", ["2", "\n", " 1", "bound", "-1", "o"])
def test_se_bind_takes_truth_values(box: Bench, text: str) -> None:
    assert box.store(f"{EP11}/se_bind", text) == "EINVAL"
    assert state(box, EP11) == ("unbound", "unassociated")


@pytest.mark.parametrize("how", ["deconfigured", "check-stopped"])
def test_hardware_that_does_not_answer_normally(box: Bench, how: str) -> None:
    tapq(box, ACCEL, 2)
    assert box.store(f"{EP11}/se_bind", "1") == ""
    for apid in (0, 1):
        if how == "deconfigured":
            box.host.configure(apid, on=False)
        else:
            box.host.checkstop(apid, on=True)
    assert box.store(f"{ACCEL}/se_bind", "1") == "EIO"
    assert box.store(f"{EP11}/se_associate", "1") == "EIO"
    # Looking is still possible, and text is read before the hardware is asked.
    assert state(box, EP11) == ("bound", "unassociated")
    assert state(box, ACCEL) == ("unbound", "-")
    assert box.store(f"{ACCEL}/se_bind", "x") == "EINVAL"
    assert box.store(f"{EP11}/se_associate", "x") == "EINVAL"
    assert box.store(f"{EP11}/se_associate", "65536") == "EINVAL"


@pytest.mark.parametrize("driver", ["vfio_ap", None])
def test_a_queue_that_is_being_reset_is_busy(box: Bench, driver: str | None) -> None:
    # Only zcrypt sees a reset through to its end, so this one lasts.
    assert box.store(f"{BUS}/drivers/cex4queue/unbind", "00.0029") == ""
    if driver:
        assert box.store(f"{BUS}/apmask", "-0") == ""
        assert box.store(f"{BUS}/drivers_probe", "00.0029") == ""
    assert box.store(f"{EP11}/reset", "1") == ""
    assert box.cat(f"{EP11}/reset") == "Reset in progress.\n"
    tapq(box, EP11, 2)
    assert box.store(f"{EP11}/se_bind", "1") == "EBUSY"
    assert bind_state(box, EP11) == 2
    tapq(box, EP11, 1)
    assert box.store(f"{EP11}/se_bind", "1") == "EINVAL"
    assert box.store(f"{EP11}/se_associate", "1") == "EBUSY"
    assert box.store(f"{EP11}/se_associate", "65536") == "EINVAL"


@pytest.mark.parametrize(
    ("queue", "name", "text"),
    [
        (EP11, "se_bind", None),
        (EP11, "se_associate", None),
        (ACCEL, "se_bind", None),
        (ACCEL, "se_associate", None),
        (EP11, "se_bind", "1"),
        (EP11, "se_associate", "1"),
        (EP11, "se_bind", "0"),
        (ACCEL, "se_bind", "0"),
    ],
)
def test_a_card_that_was_pulled_is_no_defect(box: Bench, queue: str, name: str, text: str | None) -> None:
    # Until the next scan the queue is still there, and nothing answers. Reading and unbinding may end either way.
    for apid in (0, 1):
        box.host.unplug(apid)
    outcome = box.shown(f"{queue}/{name}") if text is None else box.store(f"{queue}/{name}", text)
    if text == "1":
        assert outcome == "EIO"
    box.host.scan()
    assert not box.exists(queue)


def test_a_card_that_comes_back_has_no_association(box: Bench) -> None:
    assert box.store(f"{EP11}/se_bind", "1") == ""
    assert box.store(f"{EP11}/se_associate", "7") == ""
    box.host.unplug(0)
    box.host.scan()
    box.host.plug(0, "CEX8P", {"bs": 2})
    box.host.scan()
    assert state(box, EP11) == ("unbound", "unassociated")

"""The uevents of mediated devices and of their parent: which, in which order, with which keys."""

import pytest

from apfs.journal.records import LogLine, Uevent
from tests.vfio_ap.hosts import BARE, M1, M2, MATRIX, MDEV_DRIVER, TYPE, Bench, refused

PARENT = "/devices/vfio_ap/matrix"
MDEV = f"{PARENT}/{M1}"
Keys = tuple[tuple[str, str], ...]


def group_keys(number: int) -> Keys:
    return (("MAJOR", "243"), ("MINOR", str(number)), ("DEVNAME", f"vfio/{number}"))


def device_keys(number: int) -> Keys:
    return (("MAJOR", "242"), ("MINOR", str(number)), ("DEVNAME", f"vfio/devices/vfio{number}"))


DRIVER: Keys = (("DRIVER", "vfio_ap_mdev"),)


def created(number: int = 0, mdev: str = MDEV) -> list[Uevent]:
    return [
        Uevent("add", mdev, "mdev", ()),
        Uevent("add", f"/devices/virtual/vfio/{number}", "vfio", group_keys(number)),
        Uevent("add", f"{mdev}/vfio-dev/vfio{number}", "vfio-dev", device_keys(number)),
        Uevent("bind", mdev, "mdev", DRIVER),
    ]


def unbound(number: int = 0, mdev: str = MDEV) -> list[Uevent]:
    return [
        Uevent("remove", f"{mdev}/vfio-dev/vfio{number}", "vfio-dev", device_keys(number)),
        Uevent("remove", f"/devices/virtual/vfio/{number}", "vfio", group_keys(number)),
        Uevent("unbind", mdev, "mdev", ()),
    ]


def test_create_and_remove() -> None:
    bench = Bench(BARE)
    bench.mark()
    bench.create(M1)
    assert bench.uevents() == created()
    bench.mark()
    bench.put(M1, "remove", 1)
    assert bench.uevents() == [*unbound(), Uevent("remove", MDEV, "mdev", ())]


def test_unbind_and_remove() -> None:
    bench = Bench(BARE)
    bench.create(M2, M1)
    bench.mark()
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")
    assert bench.uevents() == unbound(1)
    bench.mark()
    bench.put(M1, "remove", 1)
    assert bench.uevents() == [Uevent("remove", MDEV, "mdev", ())]


def test_keys_are_those_of_the_uevent_files() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    files = {
        f"{MATRIX}/uevent": "DRIVER=vfio_ap\n",
        f"{MATRIX}/{M1}/uevent": "DRIVER=vfio_ap_mdev\n",
        f"{MATRIX}/{M1}/vfio-dev/vfio0/uevent": "MAJOR=242\nMINOR=0\nDEVNAME=vfio/devices/vfio0\n",
        "/sys/devices/virtual/vfio/0/uevent": "MAJOR=243\nMINOR=0\nDEVNAME=vfio/0\n",
        "/sys/devices/vfio_ap/uevent": "",
    }
    assert {path: bench.cat(path) for path in files} == files
    assert bench.cat(f"{MATRIX}/{M1}/vfio-dev/vfio0/dev") == "242:0\n"
    assert bench.cat("/sys/devices/virtual/vfio/0/dev") == "243:0\n"


def test_refusals_and_assignments_send_nothing() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.mark()
    with refused("EEXIST"):
        bench.create(M1)
    bench.assign(M1, (5,), (4,), (4,))
    bench.guest(M1)
    with refused("EBUSY"):
        bench.put(M1, "remove", 1)
    bench.guest(M1, 0)
    bench.put(M1, "remove", 0)
    assert bench.uevents() == []


# -- the module -------------------------------------------------------------------------------------------------------


def test_unloading_and_loading() -> None:
    bench = Bench(BARE)
    bench.create(M1, M2)
    bench.mark()
    bench.console("rmmod vfio_ap")
    parent = [event for event in bench.uevents() if event.devpath.startswith(PARENT)]
    gone = (("MDEV_STATE", "unregistered"), ("DRIVER", "vfio_ap"))
    change = Uevent("change", PARENT, "matrix", gone)
    assert change in parent
    # It comes last, when all the devices have gone.
    second = f"{PARENT}/{M2}"
    of_devices = [event for event in bench.uevents() if event.subsystem in ("mdev", "vfio", "vfio-dev")]
    assert of_devices == [
        *unbound(0),
        Uevent("remove", MDEV, "mdev", ()),
        *unbound(1, second),
        Uevent("remove", second, "mdev", ()),
    ]
    assert parent.index(change) > parent.index(of_devices[-1])
    bench.mark()
    bench.console("modprobe vfio_ap")
    there = (("MDEV_STATE", "registered"), ("DRIVER", "vfio_ap"))
    assert [event for event in bench.uevents() if event.devpath == PARENT][-1] == Uevent(
        "change", PARENT, "matrix", there
    )


def test_the_parent_s_log() -> None:
    bench = Bench(BARE)
    bench.mark()
    bench.console("rmmod vfio_ap", "modprobe vfio_ap")
    lines = [record.text for record in bench.records(LogLine) if record.level == "info"]
    assert len(lines) == 2
    assert all(line.startswith("vfio_ap matrix: ") and "MDEV:" in line for line in lines)


# -- synthetic events -------------------------------------------------------------------------------------------------

SOURCES = {
    f"{MATRIX}/uevent": (PARENT, "matrix", (("DRIVER", "vfio_ap"),)),
    f"{MATRIX}/{M1}/uevent": (MDEV, "mdev", DRIVER),
    f"{MATRIX}/{M1}/vfio-dev/vfio0/uevent": (f"{MDEV}/vfio-dev/vfio0", "vfio-dev", device_keys(0)),
    "/sys/devices/virtual/vfio/0/uevent": ("/devices/virtual/vfio/0", "vfio", group_keys(0)),
    "/sys/bus/mdev/uevent": ("/bus/mdev", "bus", ()),
    "/sys/bus/matrix/uevent": ("/bus/matrix", "bus", ()),
    f"{MDEV_DRIVER}/uevent": ("/bus/mdev/drivers/vfio_ap_mdev", "drivers", ()),
}


ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")


@pytest.mark.parametrize("path", SOURCES)
@pytest.mark.parametrize(
    ("text", "action", "extra"),
    [
        *((word, word, (("SYNTH_UUID", "0"),)) for word in ACTIONS),
        ("change\n", "change", (("SYNTH_UUID", "0"),)),
        (f"add {M2}\n", "add", (("SYNTH_UUID", M2),)),
        (f"add {M2} A=1 bc=2d", "add", (("SYNTH_UUID", M2), ("SYNTH_ARG_A", "1"), ("SYNTH_ARG_bc", "2d"))),
    ],
)
def test_an_action_word_sends_that_event(path: str, text: str, action: str, extra: Keys) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    before = bench.dump()
    bench.mark()
    assert bench.write(path, text) == len(text)
    devpath, subsystem, keys = SOURCES[path]
    assert bench.uevents() == [Uevent(action, devpath, subsystem, extra + keys)]
    assert bench.dump() == before


@pytest.mark.parametrize(
    "text",
    ["\n", "ADD", "added", "ad", " add", f"add{M1}", f"add {M1[:-1]}", f"add {M1} A", f"add {M1} A=b-c", "add x"],
)
def test_anything_else_is_refused(text: str) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.mark()
    for path in (*SOURCES, "/sys/devices/vfio_ap/uevent"):
        with refused("EINVAL"):
            bench.write(path, text)
    assert bench.uevents() == []


def test_the_root_device_accepts_and_sends_nothing() -> None:
    bench = Bench(BARE)
    bench.mark()
    bench.echo("change", "/sys/devices/vfio_ap/uevent")
    assert bench.uevents() == []


def test_the_environment_on_the_wire() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.echo("change", f"{MATRIX}/{M1}/uevent")
    last = bench.cat("/ctl/uevents").strip().split("\n\n")[-1].split("\n")
    assert last[:-1] == [
        f"change@{MDEV}",
        "ACTION=change",
        f"DEVPATH={MDEV}",
        "SUBSYSTEM=mdev",
        "SYNTH_UUID=0",
        "DRIVER=vfio_ap_mdev",
    ]
    assert last[-1].startswith("SEQNUM=")
    assert bench.exists(TYPE)

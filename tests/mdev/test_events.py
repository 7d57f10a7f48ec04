"""The uevents of mediated devices and of their parent: which, in which order, with which keys."""

import pytest

from apfs.errors import KernelError
from apfs.journal.records import Action, LogLine, Uevent
from tests.hosts import AP_DRIVER, BARE, M1, M2, MATRIX, MDEV_DRIVER, TYPE, WORKED, Bench, product, refused

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
    bench.run_guest(M1)
    with refused("EBUSY"):
        bench.put(M1, "remove", 1)
    bench.run_guest(M1, 0)
    bench.put(M1, "remove", 0)
    assert bench.uevents() == []


# -- the module -------------------------------------------------------------------------------------------------------


def told(bench: Bench) -> list[str]:
    """Return the events since the mark, each as action, DEVPATH and keys on a line."""
    return [
        " ".join([event.action, event.devpath, *(f"{key}={value}" for key, value in event.keys)])
        for event in bench.uevents()
    ]


def test_unloading_and_loading() -> None:
    """The order is that of vfio_ap_exit and vfio_ap_init, and of the driver core (driver_detach, driver_register)."""
    bench = Bench(WORKED)
    queues = [f"/devices/ap/card{queue[:2]}/{queue}" for queue in product((5, 6), (4, 0x47, 0xAB, 0xFF))]
    bench.create(M1, M2)
    bench.unbind("05.0047")
    bench.bind("05.0047")  # now it was bound last
    bench.mark()
    bench.console("rmmod vfio_ap")
    last_bound_first = [queues[1], *(queue for queue in reversed(queues) if queue != queues[1])]
    second = f"{PARENT}/{M2}"
    unbinding = [f"{event.action} {event.devpath}" for event in (*unbound(0), Uevent("remove", MDEV, "mdev", ()))]
    unbinding += [f"{event.action} {event.devpath}" for event in unbound(1, second)] + [f"remove {second}"]
    events = told(bench)
    assert [" ".join(event.split()[:2]) for event in events[: len(unbinding)]] == unbinding
    assert events[len(unbinding) :] == [
        f"change {PARENT} MDEV_STATE=unregistered DRIVER=vfio_ap",
        "remove /bus/mdev/drivers/vfio_ap_mdev",
        *(f"unbind {queue} DEVTYPE=ap_queue MODE=cca" for queue in last_bound_first),
        "remove /bus/ap/drivers/vfio_ap",
        f"unbind {PARENT}",
        "remove /bus/matrix/drivers/vfio_ap",
        f"remove {PARENT}",
        "remove /bus/matrix",
        "remove /module/vfio_ap",
    ]
    bench.mark()
    bench.console("modprobe vfio_ap")
    events = told(bench)
    count = events[-4].rpartition("=")[2]
    assert events == [
        "add /bus/matrix",
        f"add {PARENT}",
        f"bind {PARENT} DRIVER=vfio_ap",
        "add /bus/matrix/drivers/vfio_ap",
        *(f"bind {queue} DEVTYPE=ap_queue DRIVER=vfio_ap MODE=cca" for queue in queues),
        "add /bus/ap/drivers/vfio_ap",
        f"change /devices/ap BINDINGS=complete COMPLETECOUNT={count}",
        "add /bus/mdev/drivers/vfio_ap_mdev",
        f"change {PARENT} MDEV_STATE=registered DRIVER=vfio_ap",
        "add /module/vfio_ap",
    ]


def test_modules_that_it_needs() -> None:
    bench = Bench(BARE)
    bench.console("rmmod vfio_ap")
    bench.mark()
    bench.console("rmmod mdev", "rmmod vfio_iommu_type1", "rmmod vfio")
    assert told(bench) == [
        "remove /bus/mdev",
        "remove /module/mdev",
        "remove /module/vfio_iommu_type1",
        "remove /class/vfio-dev",
        "remove /class/vfio",
        "remove /devices/virtual/misc/vfio MAJOR=10 MINOR=196 DEVNAME=vfio/vfio DEVMODE=0666",
        "remove /module/vfio",
    ]
    bench.mark()
    bench.console("modprobe mdev", "modprobe vfio")
    assert told(bench) == [
        "add /bus/mdev",
        "add /module/mdev",
        "add /devices/virtual/misc/vfio MAJOR=10 MINOR=196 DEVNAME=vfio/vfio DEVMODE=0666",
        "add /class/vfio",
        "add /class/vfio-dev",
        "add /module/vfio",
        "add /module/vfio_iommu_type1",  # MODULE_SOFTDEP in vfio_main.c
    ]
    assert {event.subsystem for event in bench.uevents()} == {"bus", "class", "misc", "module"}


def test_a_removal_is_told_once() -> None:
    """A synthetic `remove` counts for what is no device (state_remove_uevent_sent in __kobject_del)."""
    bench = Bench(BARE)
    bench.write(f"{AP_DRIVER}/uevent", "remove")
    bench.mark()
    bench.console("rmmod vfio_ap")
    assert "remove /bus/ap/drivers/vfio_ap" not in told(bench)
    bench.console("modprobe vfio_ap")
    bench.mark()
    bench.console("rmmod vfio_ap")
    assert "remove /bus/ap/drivers/vfio_ap" in told(bench)


def test_a_removal_is_told_again_after_an_addition() -> None:
    bench = Bench(BARE)
    bench.write("/sys/bus/mdev/uevent", "change")
    bench.console("rmmod vfio_ap")
    for synthetic in ("change", "remove", "change"):
        bench.write("/sys/bus/mdev/uevent", synthetic)
        bench.mark()
        bench.console("rmmod mdev")
        assert ("remove /bus/mdev" in told(bench)) == (synthetic == "change")
        bench.console("modprobe mdev")


def test_the_parent_s_log() -> None:
    bench = Bench(BARE)
    bench.mark()
    bench.console("rmmod vfio_ap", "modprobe vfio_ap")
    lines = [record.text for record in bench.records(LogLine) if record.level == "info"]
    assert len(lines) == 2
    assert all(line.startswith("vfio_ap matrix: ") and "MDEV:" in line for line in lines)


def test_a_key_of_the_driver_core_is_left_out_if_it_does_not_fit() -> None:
    """With a longer value DRIVER has no room any more, but SEQNUM has it again (dev_uevent, add_uevent_var)."""
    bench = Bench(BARE)
    bench.create(M1)
    outcomes: list[str] = []
    for length in range(1850, 1900):
        bench.mark()
        try:
            bench.put(M1, "uevent", f"add {M2} A={'b' * length}")
        except KernelError as error:
            found = error.name
        else:
            found = dict(bench.uevents()[0].keys).get("DRIVER", "none")
        if outcomes[-1:] != [found]:
            outcomes.append(found)
    assert outcomes == ["vfio_ap_mdev", "ENOMEM", "none", "ENOMEM"]
    bench.put(M1, "uevent", f"add {M2}" + " A=b" * 58)
    with refused("ENOMEM"):
        bench.put(M1, "uevent", f"add {M2}" + " A=b" * 59)  # with DRIVER they are 64, and SEQNUM is not one of them


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
def test_an_action_word_sends_that_event(path: str, text: str, action: Action, extra: Keys) -> None:
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

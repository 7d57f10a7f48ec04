"""Creation and removal of mediated devices, and what unbinding their driver leaves."""

import pytest

from apfs.sysfs.entries import READ, WRITE
from tests.hosts import (
    ASSIGN,
    BARE,
    CREATE,
    M1,
    M2,
    M3,
    MATRIX,
    MDEV_DRIVER,
    TYPE,
    UNASSIGN,
    Bench,
    apqns_in,
    built,
    product,
    refused,
)

AVAILABLE = f"{TYPE}/available_instances"
DRIVER_FILES = {*ASSIGN, *UNASSIGN, "ap_config", "control_domains", "matrix", "guest_matrix"}
DEVICE_ENTRIES = {"uevent", "remove", "subsystem", "mdev_type"}
ALL_ENTRIES = {*DRIVER_FILES, *DEVICE_ENTRIES, "driver", "iommu_group", "vfio-dev"}
MIXED = "89aBcDeF-0123-4AbC-dEf0-FEDCBA987654"


def limited(instances: int) -> Bench:
    """Return a host whose matrix device can be divided into so many devices only."""
    bench = Bench(BARE)
    assert bench.host.vfio_ap is not None
    bench.host.vfio_ap.parent.instances = instances
    return bench


# -- create: what is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uuid", [M1, MIXED, MIXED.lower(), MIXED.upper(), "0" * 8 + "-0000" * 3 + "-" + "0" * 12])
@pytest.mark.parametrize("last", [b"", b"\n", b"x", b" ", b"\0", b"-", b"0", b"\xff", b"\r"])
def test_36_characters_and_one_byte_of_any_sort(uuid: str, last: bytes) -> None:
    bench = Bench(BARE)
    data = uuid.encode() + last
    assert bench.write(CREATE, data) == len(data)
    assert bench.ls("/sys/bus/mdev/devices") == [uuid.lower()]
    assert set(bench.ls(f"{MATRIX}/{uuid.lower()}")) == ALL_ENTRIES


@pytest.mark.parametrize(
    "data",
    [
        "\n",
        "x",
        M1[:35],
        M1[:35] + "\n",
        M1 + "\n\n",
        M1 + "\r\n",
        M1 + "\0\0",
        M1 + "\n" + M2 + "\n",
        " " + M1,
        " " + M1[:35],
        "\n" + M1,
        "{" + M1 + "}",
        "urn:uuid:" + M1,
        M1.replace("-", ""),
        M1.replace("-", "") + "    ",
        M1.replace("-", "_"),
        M1.replace("-", "\u2010"),
        "g" + M1[1:],
        "0x" + M1[2:],
        "+" + M1[1:],
        M1[:35] + "g",
        M1[:35] + "\0",
        "\0" + M1[1:],
        M1[:8] + "0" + M1[9:],
        M1[:7] + "-" + M1[7:-1],
        M1[:35] + "\u00b5",
        "1" * 36,
        "-" * 36,
        "1" * 5000,
    ],
)
def test_anything_else(data: str) -> None:
    bench = Bench(BARE)
    before = bench.dump()
    with refused("EINVAL"):
        bench.write(CREATE, data)
    assert bench.dump() == before


def test_an_empty_write_creates_nothing() -> None:
    bench = Bench(BARE)
    before = bench.dump()
    assert bench.write(CREATE, b"") == 0
    assert bench.dump() == before


# -- create: what is there already ------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [MIXED, MIXED.lower(), MIXED.upper(), MIXED.swapcase()])
def test_a_uuid_is_the_same_in_any_case(again: str) -> None:
    bench = Bench(BARE)
    bench.create(MIXED)
    before = bench.dump()
    with refused("EEXIST"):
        bench.create(again)
    assert bench.dump() == before


def test_a_device_without_its_driver_is_there_nevertheless() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")
    with refused("EEXIST"):
        bench.create(M1)


def test_a_removed_uuid_can_be_used_again() -> None:
    bench = Bench(BARE)
    for _ in range(3):
        bench.create(M1)
        bench.assign(M1, (5,), (4,), (4,))
        bench.put(M1, "remove", 1)
        assert not bench.exists(f"{MATRIX}/{M1}")
    bench.create(M1)
    assert bench.matrix(M1) == []


def test_a_new_device_is_empty() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    for name in ("matrix", "guest_matrix", "control_domains"):
        assert bench.show(M1, name) == ""
    assert bench.show(M1, "ap_config") == ",".join(["0x" + "0" * 64] * 3) + "\n"
    assert bench.cat(f"{MATRIX}/{M1}/uevent") == "DRIVER=vfio_ap_mdev\n"
    assert bench.cat(f"/dev/vfio-ap/{M1}/guest") == "0\n"


# -- create: how many -------------------------------------------------------------------------------------------------


def test_65536_and_one_less_per_device() -> None:
    bench = Bench(BARE)
    assert bench.cat(AVAILABLE) == "65536\n"
    bench.create(M1)
    assert bench.cat(AVAILABLE) == "65535\n"
    bench.create(M2, M3)
    assert bench.cat(AVAILABLE) == "65533\n"
    bench.put(M2, "remove", 1)
    assert bench.cat(AVAILABLE) == "65534\n"
    with refused("EEXIST"):
        bench.create(M1)
    with refused("EINVAL"):
        bench.create("nonsense")
    assert bench.cat(AVAILABLE) == "65534\n"
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")  # the device part stays, and counts
    assert bench.cat(AVAILABLE) == "65534\n"
    bench.put(M1, "remove", 1)
    bench.put(M3, "remove", 1)
    assert bench.cat(AVAILABLE) == "65536\n"


def test_none_left() -> None:
    bench = limited(2)
    bench.create(M1, M2)
    assert bench.cat(AVAILABLE) == "0\n"
    before = bench.dump()
    with refused("EUSERS"):
        bench.create(M3)
    with refused("EEXIST"):  # is looked at before
        bench.create(M1)
    with refused("EINVAL"):
        bench.create("nonsense")
    assert bench.dump() == before
    bench.put(M1, "remove", 1)
    assert bench.cat(AVAILABLE) == "1\n"
    bench.create(M3)
    with refused("EUSERS"):
        bench.create(M1)


def test_none_at_all() -> None:
    bench = limited(0)
    with refused("EUSERS"):
        bench.create(M1)


# -- the type ---------------------------------------------------------------------------------------------------------


def test_the_type_s_files() -> None:
    bench = Bench(BARE)
    assert bench.ls(f"{MATRIX}/mdev_supported_types") == ["vfio_ap-passthrough"]
    assert set(bench.ls(TYPE)) == {"available_instances", "create", "device_api", "devices", "name"}
    assert bench.cat(f"{TYPE}/name") == "VFIO AP Passthrough Device\n"
    assert bench.cat(f"{TYPE}/device_api") == "vfio-ap\n"
    assert bench.stat(CREATE).mode & 0o7777 == 0o200
    assert bench.ls(f"{TYPE}/devices") == []
    with refused("EACCES"):
        bench.cat(CREATE)


# -- remove -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "1\n", "2", "0xff", "+1", "01", "18446744073709551615", "1\0junk"])
def test_numbers_remove(text: str) -> None:
    bench = built()
    assert bench.write(f"{MATRIX}/{M1}/remove", text) == len(text)
    assert not bench.exists(f"{MATRIX}/{M1}")


@pytest.mark.parametrize("text", ["0", "0\n", "0x0", "00", "+0", "0x00000"])
def test_zeros_do_not(text: str) -> None:
    bench = built()
    before = bench.dump()
    assert bench.write(f"{MATRIX}/{M1}/remove", text) == len(text)
    assert bench.dump() == before


@pytest.mark.parametrize(
    "text", ["yes", "\n", "-1", " 1", "1 ", "1\n\n", "0x", "08", "1,", "\0", "18446744073709551616", "9" * 400]
)
def test_nonsense_is_refused(text: str) -> None:
    bench = built()
    before = bench.dump()
    with refused("EINVAL"):
        bench.write(f"{MATRIX}/{M1}/remove", text)
    assert bench.dump() == before


def test_nothing_is_left() -> None:
    fresh = Bench()
    before = fresh.dump()
    bench = built()
    assert bench.dump() != before
    bench.put(M1, "remove", 1)
    assert bench.dump() == before
    assert [path for path, _ in bench.find("/") if M1 in path] == []


def test_all_linked_queues_are_reset() -> None:
    bench = built()
    bench.unbind("06.00ab")
    bench.mark()
    bench.put(M1, "remove", 1)
    assert bench.resets() == [3]
    assert bench.queue_status("05.0004") == "unassigned\n"


def test_the_log_of_a_life() -> None:
    bench = Bench(BARE)
    bench.create(M2)
    bench.mark()
    bench.create(M1)
    bench.put(M1, "remove", 1)
    created, removed = bench.log()
    for line in (created, removed):
        assert line.startswith(f"info vfio_ap_mdev {M1}: ")
        assert line.endswith(" 1")  # the group


def test_a_device_leaves_its_group_before_its_queues_are_reset() -> None:
    # vfio_ap_mdev_remove: vfio_unregister_group_dev, then vfio_ap_mdev_reset_queues.
    bench = built()
    bench.console("fail-reset 05.0004")
    bench.mark()
    bench.put(M1, "remove", 1)
    lines = bench.log()
    assert lines[0] == f"info vfio_ap_mdev {M1}: Removing from iommu group 0"
    assert apqns_in(lines[1]) == ["05.0004"]


def test_open_files_of_a_removed_device_are_dead() -> None:
    bench = built()
    tree = bench.host.tree
    names = ("matrix", "ap_config", "uevent")
    files = {name: tree.open(tree.resolve(f"{MATRIX}/{M1}/{name}"), READ) for name in names}
    remove = tree.open(tree.resolve(f"{MATRIX}/{M1}/remove"), WRITE)
    assign = tree.open(tree.resolve(f"{MATRIX}/{M1}/assign_adapter"), WRITE)
    bench.put(M1, "remove", 1)
    bench.create(M1)  # the same name again, but another device
    for file in files.values():
        with refused("ENODEV"):
            file.read(0, 100)
    for written in (remove, assign):
        with refused("ENODEV"):
            written.write(b"1")
    assert bench.exists(f"{MATRIX}/{M1}")
    bench.put(M1, "remove", 1)
    with refused("ENOENT"):
        bench.cat(f"{MATRIX}/{M1}/matrix")


# -- unbind and bind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n"])
def test_unbinding_leaves_the_device_without_its_driver(end: str) -> None:
    bench = built()
    bench.write(f"{MDEV_DRIVER}/unbind", M1 + end)
    assert set(bench.ls(f"{MATRIX}/{M1}")) == DEVICE_ENTRIES
    assert bench.cat(f"{MATRIX}/{M1}/uevent") == ""
    assert bench.ls("/sys/bus/mdev/devices") == [M1]
    assert bench.ls(f"{TYPE}/devices") == [M1]
    assert M1 not in bench.ls(MDEV_DRIVER)
    for path in ("/sys/class/vfio", "/sys/class/vfio-dev", "/sys/kernel/iommu_groups"):
        assert bench.ls(path) == [], path
    assert "vfio" not in bench.ls("/sys/devices/virtual")
    assert not bench.exists(f"/dev/vfio-ap/{M1}")
    assert bench.resets() == [4]
    assert bench.queue_status("05.0004") == "unassigned\n"


def test_files_that_are_open_while_the_driver_is_unbound_are_of_no_use() -> None:
    bench = built()
    tree = bench.host.tree
    matrix = tree.open(tree.resolve(f"{MATRIX}/{M1}/matrix"), READ)
    assign = tree.open(tree.resolve(f"{MATRIX}/{M1}/assign_adapter"), WRITE)
    bench.write(f"{MDEV_DRIVER}/unbind", M1)
    with refused("ENODEV"):
        matrix.read(0, 4096)
    with refused("ENODEV"):
        assign.write(b"7")


def test_unbinding_twice_and_binding_are_refused() -> None:
    bench = built()
    for name in ("bind", "unbind"):
        for uuid in (M2, "", "x", M1 + "\n\n", M1 + " ", MIXED):
            with refused("ENODEV"):
                bench.echo(uuid, f"{MDEV_DRIVER}/{name}")
    with refused("ENODEV"):  # the bus matches nothing, not even what is bound
        bench.echo(M1, f"{MDEV_DRIVER}/bind")
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")
    before = bench.dump()
    for name in ("bind", "unbind"):
        with refused("ENODEV"):
            bench.echo(M1, f"{MDEV_DRIVER}/{name}")
    assert bench.echo(M1, "/sys/bus/mdev/drivers_probe") == 37
    assert bench.dump() == before


def test_names_are_compared_exactly() -> None:
    bench = Bench(BARE)
    bench.create(MIXED)
    with refused("ENODEV"):
        bench.echo(MIXED.upper(), f"{MDEV_DRIVER}/unbind")
    bench.echo(MIXED.lower(), f"{MDEV_DRIVER}/unbind")


def test_an_unbound_device_can_be_removed() -> None:
    bench = built()
    before = Bench().dump()
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")
    bench.put(M1, "remove", 1)
    assert bench.dump() == before


def test_assignments_do_not_survive() -> None:
    bench = built()
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")
    bench.create(M2)
    bench.assign(M2, (5, 6), (4, 0xAB))
    assert bench.guest_matrix(M2) == product((5, 6), (4, 0xAB))

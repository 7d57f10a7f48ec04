"""Numbers of groups and VFIO devices, which are reused, and the texts of all links."""

import pytest

from tests.hosts import BARE, M1, M2, M3, M4, MATRIX, MDEV_DRIVER, TYPE, WORKED, Bench


def numbers(bench: Bench, uuid: str) -> tuple[str, list[str]]:
    """Return group and VFIO device of a mediated device."""
    return bench.readlink(f"{MATRIX}/{uuid}/iommu_group").rpartition("/")[2], bench.ls(f"{MATRIX}/{uuid}/vfio-dev")


def test_the_lowest_free_number() -> None:
    bench = Bench(BARE)
    bench.create(M1, M2, M3)
    assert [numbers(bench, uuid) for uuid in (M1, M2, M3)] == [("0", ["vfio0"]), ("1", ["vfio1"]), ("2", ["vfio2"])]
    bench.put(M2, "remove", 1)
    bench.put(M1, "remove", 1)
    bench.create(M4)
    assert numbers(bench, M4) == ("0", ["vfio0"])
    bench.create(M1)
    assert numbers(bench, M1) == ("1", ["vfio1"])
    bench.create(M2)
    assert numbers(bench, M2) == ("3", ["vfio3"])
    assert sorted(bench.ls("/sys/class/vfio")) == sorted(bench.ls("/sys/kernel/iommu_groups")) == list("0123")
    assert sorted(bench.ls("/dev/vfio/devices")) == [f"vfio{number}" for number in range(4)]
    assert sorted(bench.ls("/dev/vfio")) == ["0", "1", "2", "3", "devices", "vfio"]


def test_unbinding_lets_the_numbers_go() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.echo(M1, f"{MDEV_DRIVER}/unbind")
    bench.create(M2)
    assert numbers(bench, M2) == ("0", ["vfio0"])
    assert bench.readlink("/sys/class/vfio-dev/vfio0") == f"../../devices/vfio_ap/matrix/{M2}/vfio-dev/vfio0"


def test_reused_numbers_lead_to_the_new_device() -> None:
    bench = Bench(BARE)
    bench.create(M1, M2)
    bench.put(M1, "remove", 1)
    bench.create(M3)
    assert bench.ls("/sys/kernel/iommu_groups/0/devices") == [M3]
    assert bench.ls("/sys/kernel/iommu_groups/1/devices") == [M2]


@pytest.mark.parametrize(
    ("name", "content"), [("name", "vfio-noiommu\n"), ("type", "unknown\n"), ("reserved_regions", "")]
)
def test_files_of_a_group(name: str, content: str) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    assert bench.cat(f"/sys/kernel/iommu_groups/0/{name}") == content


def test_directories_of_classes_come_and_go_with_their_devices() -> None:
    """cleanup_glue_dir removes the directory of a class below /sys/devices/virtual, devtmpfs that of its nodes."""
    bench = Bench(BARE)
    vfio = ("/sys/devices/virtual/vfio", "/dev/vfio/devices", "/ctl/sandbox/dev/vfio/devices")
    for _ in range(2):
        assert [bench.exists(path) for path in vfio] == [False] * 3
        bench.create(M1, M2)
        assert [bench.ls(path) for path in vfio] == [["0", "1"], ["vfio0", "vfio1"], ["vfio0", "vfio1"]]
        bench.put(M1, "remove", 1)
        bench.echo(M2, f"{MDEV_DRIVER}/unbind")
        assert bench.ls("/dev/vfio") == ["vfio"]
        bench.put(M2, "remove", 1)
    zcrypt = "/sys/devices/virtual/zcrypt"
    for _ in range(2):
        assert not bench.exists(zcrypt)
        bench.echo("node", "/sys/class/zcrypt/create")
        assert bench.ls(zcrypt) == ["node"]
        bench.echo("node", "/sys/class/zcrypt/destroy")
    assert "zcrypt" not in bench.ls("/sys/devices/virtual")


def test_sandboxes_have_the_directories_always() -> None:
    """What is not there when a sandbox begins could not be bound later; links are those of the real place."""
    bench = Bench(BARE)
    place = "/ctl/sandbox/virtual"
    assert [bench.ls(f"{place}/{name}") for name in ("vfio", "zcrypt")] == [[], []]
    bench.create(M1)
    assert bench.cat(f"{place}/vfio/0/dev") == "243:0\n"
    assert bench.readlink(f"{place}/vfio/0/subsystem") == "../../../../class/vfio"


@pytest.mark.parametrize("text", ["DMA\n", "identity", "auto\n", "unknown\n"])
def test_the_type_of_a_group_cannot_be_changed(text: str) -> None:
    # iommu_group_store_type: without a default domain, the text does not matter.
    bench = Bench(BARE)
    bench.create(M1)
    assert bench.store("/sys/kernel/iommu_groups/0/type", text) == "EINVAL"


# -- links ------------------------------------------------------------------------------------------------------------

# With M1 as group 0 and device 0, M2 as group 1 and device 1.
LINKS = {
    "/sys/devices/vfio_ap/module": "../../module/vfio_ap",
    "/sys/devices/vfio_ap/matrix/driver": "../../../bus/matrix/drivers/vfio_ap",
    "/sys/devices/vfio_ap/matrix/subsystem": "../../../bus/matrix",
    f"{MATRIX}/{M2}/driver": "../../../../bus/mdev/drivers/vfio_ap_mdev",
    f"{MATRIX}/{M2}/subsystem": "../../../../bus/mdev",
    f"{MATRIX}/{M2}/mdev_type": "../mdev_supported_types/vfio_ap-passthrough",
    f"{MATRIX}/{M2}/iommu_group": "../../../../kernel/iommu_groups/1",
    f"{TYPE}/devices/{M2}": f"../../../{M2}",
    f"{MATRIX}/{M2}/vfio-dev/vfio1/subsystem": "../../../../../../class/vfio-dev",
    f"{MATRIX}/{M2}/vfio-dev/vfio1/device": f"../../../{M2}",
    "/sys/bus/matrix/devices/matrix": "../../../devices/vfio_ap/matrix",
    "/sys/bus/matrix/drivers/vfio_ap/matrix": "../../../../devices/vfio_ap/matrix",
    f"/sys/bus/mdev/devices/{M2}": f"../../../devices/vfio_ap/matrix/{M2}",
    f"{MDEV_DRIVER}/{M2}": f"../../../../devices/vfio_ap/matrix/{M2}",
    f"{MDEV_DRIVER}/module": "../../../../module/vfio_ap",
    "/sys/bus/ap/drivers/vfio_ap/module": "../../../../module/vfio_ap",
    "/sys/bus/ap/drivers/vfio_ap/05.0004": "../../../../devices/ap/card05/05.0004",
    "/sys/devices/ap/card05/05.0004/driver": "../../../../bus/ap/drivers/vfio_ap",
    "/sys/class/mdev_bus/matrix": "../../devices/vfio_ap/matrix",
    "/sys/class/vfio/1": "../../devices/virtual/vfio/1",
    "/sys/class/vfio-dev/vfio1": f"../../devices/vfio_ap/matrix/{M2}/vfio-dev/vfio1",
    "/sys/devices/virtual/vfio/1/subsystem": "../../../../class/vfio",
    f"/sys/kernel/iommu_groups/1/devices/{M2}": f"../../../../devices/vfio_ap/matrix/{M2}",
    "/sys/dev/char/243:1": "../../devices/virtual/vfio/1",
    "/sys/dev/char/242:1": f"../../devices/vfio_ap/matrix/{M2}/vfio-dev/vfio1",
    "/sys/module/vfio_ap/drivers/ap:vfio_ap": "../../../bus/ap/drivers/vfio_ap",
    "/sys/module/vfio_ap/drivers/mdev:vfio_ap_mdev": "../../../bus/mdev/drivers/vfio_ap_mdev",
    "/sys/module/mdev/holders/vfio_ap": "../../vfio_ap",
}


def two() -> Bench:
    bench = Bench(WORKED)
    bench.create(M1, M2)
    return bench


@pytest.mark.parametrize("path", LINKS)
def test_links(path: str) -> None:
    bench = two()
    assert bench.readlink(path) == LINKS[path]
    found = bench.stat(path)
    assert found.mode == 0o120777
    assert found.size == 0
    assert bench.exists(path)


def test_all_links_lead_somewhere() -> None:
    bench = two()
    for path, stat in bench.find("/sys"):
        if stat.mode & 0o170000 == 0o120000:
            assert bench.exists(path), path


def test_every_other_link_of_a_device_is_in_the_table() -> None:
    bench = two()
    for root in ("/sys/devices/vfio_ap", "/sys/bus/mdev", "/sys/bus/matrix", "/sys/class/mdev_bus"):
        for path, stat in bench.find(root):
            if stat.mode & 0o170000 == 0o120000 and M1 not in path:
                assert path in LINKS


def test_what_is_not_there() -> None:
    bench = two()
    for path in (
        f"{TYPE}/description",
        f"{MATRIX}/power",
        f"{MATRIX}/{M1}/power",
        f"{MATRIX}/{M1}/modalias",
        "/sys/devices/vfio_ap/driver",
        "/sys/devices/vfio_ap/subsystem",
        "/sys/bus/matrix/drivers/vfio_ap/bind",
        "/sys/bus/matrix/drivers/vfio_ap/unbind",
        "/sys/bus/matrix/drivers/vfio_ap/module",
        "/sys/devices/virtual/vfio/0/device",
        "/sys/module/vfio_ap/parameters",
        "/sys/module/vfio_ap/version",
        "/sys/module/vfio_ap/drivers/matrix:vfio_ap",
    ):
        assert not bench.exists(path), path


def test_listings_of_the_driver_side() -> None:
    bench = two()
    assert set(bench.ls("/sys/bus/matrix")) == {"devices", "drivers", "drivers_autoprobe", "drivers_probe", "uevent"}
    assert set(bench.ls("/sys/bus/mdev")) == {"devices", "drivers", "drivers_autoprobe", "drivers_probe", "uevent"}
    assert set(bench.ls("/sys/bus/matrix/drivers/vfio_ap")) == {"matrix", "uevent"}
    assert set(bench.ls(MDEV_DRIVER)) == {"bind", "unbind", "uevent", "module", M1, M2}
    assert set(bench.ls(MATRIX)) == {
        *("driver", "features", "mdev_supported_types", "subsystem", "uevent"),
        *(M1, M2),
    }
    assert set(bench.ls("/sys/devices/vfio_ap")) == {"matrix", "module", "uevent"}
    assert bench.ls("/sys/class/mdev_bus") == ["matrix"]
    assert set(bench.ls(f"{MATRIX}/{M1}/vfio-dev/vfio0")) == {"dev", "device", "subsystem", "uevent"}


MODES = {
    "/sys/devices/vfio_ap/uevent": 0o644,
    f"{MATRIX}/uevent": 0o644,
    f"{MATRIX}/features": 0o444,
    f"{TYPE}/name": 0o444,
    f"{TYPE}/device_api": 0o444,
    f"{TYPE}/available_instances": 0o444,
    f"{TYPE}/create": 0o200,
    f"{MATRIX}/{M1}/uevent": 0o644,
    f"{MATRIX}/{M1}/remove": 0o200,
    f"{MATRIX}/{M1}/assign_adapter": 0o200,
    f"{MATRIX}/{M1}/unassign_adapter": 0o200,
    f"{MATRIX}/{M1}/assign_domain": 0o200,
    f"{MATRIX}/{M1}/unassign_domain": 0o200,
    f"{MATRIX}/{M1}/assign_control_domain": 0o200,
    f"{MATRIX}/{M1}/unassign_control_domain": 0o200,
    f"{MATRIX}/{M1}/ap_config": 0o644,
    f"{MATRIX}/{M1}/control_domains": 0o444,
    f"{MATRIX}/{M1}/matrix": 0o444,
    f"{MATRIX}/{M1}/guest_matrix": 0o444,
    f"{MATRIX}/{M1}/vfio-dev/vfio0/dev": 0o444,
    f"{MATRIX}/{M1}/vfio-dev/vfio0/uevent": 0o644,
    "/sys/kernel/iommu_groups/0/name": 0o444,
    "/sys/kernel/iommu_groups/0/type": 0o644,
    "/sys/kernel/iommu_groups/0/reserved_regions": 0o444,
    f"{MDEV_DRIVER}/bind": 0o200,
    f"{MDEV_DRIVER}/unbind": 0o200,
    f"{MDEV_DRIVER}/uevent": 0o200,
}


@pytest.mark.parametrize("path", MODES)
def test_modes(path: str) -> None:
    found = two().stat(path)
    assert (found.mode, found.size) == (0o100000 | MODES[path], 4096)


def test_directories_are_open_to_all() -> None:
    bench = two()
    for root in ("/sys/devices/vfio_ap", "/sys/bus/mdev", "/sys/bus/matrix", "/sys/kernel/iommu_groups"):
        for path, stat in bench.find(root):
            if stat.mode & 0o170000 == 0o040000:
                assert stat.mode == 0o040755, path


def test_features() -> None:
    words = two().cat(f"{MATRIX}/features")
    assert words == "guest_matrix hotplug ap_config migratable\n"  # the last is that of the migration series

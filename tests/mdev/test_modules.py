"""Loading and unloading the modules that make mediated devices."""

import stat

import pytest

from apfs.journal.records import Uevent
from apfs.sysfs.entries import READ, WRITE
from tests.hosts import AP_DRIVER, BARE, CREATE, M1, M2, MATRIX, MDEV_DRIVER, Bench, built, queue, refused

NOT_LOADED = "vfio_ap = false\n"
OF_VFIO_AP = (
    "/sys/devices/vfio_ap",
    MATRIX,
    "/sys/bus/matrix",
    AP_DRIVER,
    MDEV_DRIVER,
    "/sys/class/mdev_bus/matrix",
    "/sys/module/vfio_ap",
    "/sys/module/mdev/holders/vfio_ap",
)
OF_MDEV = ("/sys/bus/mdev", "/sys/bus/mdev/devices", "/sys/bus/mdev/drivers", "/sys/class/mdev_bus", "/sys/module/mdev")


def present(bench: Bench, *paths: str) -> list[bool]:
    return [bench.exists(path) for path in paths]


def test_before_anything_is_loaded() -> None:
    bench = Bench(NOT_LOADED + BARE)
    assert not any(present(bench, *OF_VFIO_AP, *OF_MDEV, "/dev/vfio"))
    assert bench.ls("/dev/vfio-ap") == []


def test_loading_and_unloading_again_and_again() -> None:
    bench = Bench(NOT_LOADED + BARE)
    for _ in range(3):
        bench.console("modprobe vfio_ap")
        assert all(present(bench, *OF_VFIO_AP, *OF_MDEV, "/dev/vfio/vfio"))
        bench.create(M1)
        bench.console("rmmod vfio_ap")
        assert not any(present(bench, *OF_VFIO_AP))
        assert all(present(bench, *OF_MDEV))  # stays without a parent
        assert bench.ls("/sys/bus/mdev/devices") == bench.ls("/sys/class/mdev_bus") == []
        assert bench.ls("/sys/bus/mdev/drivers") == []
        with refused("ENOENT"):
            bench.create(M1)
    bench.console("rmmod mdev", "rmmod vfio_iommu_type1", "rmmod vfio")
    assert not any(present(bench, *OF_MDEV))


def test_loading_twice_is_no_error_and_no_second_module() -> None:
    bench = built()
    before = bench.dump()
    bench.console("modprobe vfio_ap", "modprobe vfio-ap", "modprobe mdev")
    assert bench.dump() == before


def test_what_vfio_ap_needs_stays_while_it_is_there() -> None:
    bench = Bench(BARE)
    for name, count in (("mdev", 1), ("vfio", 2)):
        assert bench.cat(f"/sys/module/{name}/refcnt") == f"{count}\n"
        with refused("EAGAIN"):
            bench.console(f"rmmod {name}")
    assert bench.ls("/sys/module/vfio/holders") == ["vfio_ap", "vfio_iommu_type1"]
    bench.console("rmmod vfio_ap")
    for name in ("mdev", "vfio_iommu_type1", "vfio"):
        assert bench.cat(f"/sys/module/{name}/refcnt") == "0\n"
        bench.console(f"rmmod {name}")
        with refused("ENOENT"):
            bench.console(f"rmmod {name}")


def test_files_of_modules() -> None:
    bench = Bench(BARE)
    assert bench.cat("/sys/module/mdev/version") == "0.1\n"
    assert bench.cat("/sys/module/vfio/version") == "0.3\n"
    # setup_modinfo_import_ns: the first of its name spaces; there is no file for modules without any.
    assert bench.cat("/sys/module/vfio/import_ns") == "IOMMUFD\n"
    assert "import_ns" not in bench.ls("/sys/module/mdev")
    assert bench.cat("/sys/module/vfio_ap/initstate") == "live\n"
    assert bench.cat("/sys/module/vfio_ap/refcnt") == "0\n"
    assert {"coresize", "drivers", "holders", "initstate", "refcnt", "taint"} <= set(bench.ls("/sys/module/vfio_ap"))
    assert bench.ls("/sys/module/vfio_ap/holders") == []
    assert bench.ls("/sys/module/vfio_ap/drivers") == ["ap:vfio_ap", "mdev:vfio_ap_mdev"]


def test_everything_of_a_module_as_the_kernel_shows_it() -> None:
    assert Bench(BARE).dump("/sys/module/vfio") == {
        "/sys/module/vfio": "dir 0755 3",
        "/sys/module/vfio/coresize": "0444 69632\n",
        "/sys/module/vfio/holders": "dir 0755 2",
        "/sys/module/vfio/holders/vfio_ap": "link ../../vfio_ap",
        "/sys/module/vfio/holders/vfio_iommu_type1": "link ../../vfio_iommu_type1",
        "/sys/module/vfio/import_ns": "0444 IOMMUFD\n",
        "/sys/module/vfio/initsize": "0444 0\n",
        "/sys/module/vfio/initstate": "0444 live\n",
        "/sys/module/vfio/refcnt": "0444 2\n",
        "/sys/module/vfio/taint": "0444 \n",
        "/sys/module/vfio/uevent": "0200 ",
        "/sys/module/vfio/version": "0444 0.3\n",
    }


def counts(bench: Bench) -> list[int]:
    """Return how often vfio_ap, vfio_iommu_type1 and vfio are in use, the last one without its two holders."""
    names = ("vfio_ap", "vfio_iommu_type1", "vfio")
    numbers = [int(bench.cat(f"/sys/module/{name}/refcnt")) for name in names]
    return [*numbers[:2], numbers[2] - 2]


def test_a_guest_counts_as_a_program_that_has_the_device_open() -> None:
    # vfio: container 1, group 2 (its device number, its operations), device 1; type1: the container's IOMMU type.
    bench = built()
    assert counts(bench) == [0, 0, 0]
    bench.run_guest(M1)
    assert counts(bench) == [1, 1, 4]
    bench.run_guest(M1, 0)
    assert counts(bench) == [0, 0, 0]


def test_an_open_transfer_file_keeps_the_driver() -> None:
    # anon_inode_getfile takes a reference of the module that has the file's operations.
    bench = built()
    bench.run_guest(M1)
    bench.echo("STOP_COPY", f"/dev/vfio-ap/{M1}/migration_state")
    path = f"/dev/vfio-ap/{M1}/data_stream"
    first, second = (bench.host.tree.open(bench.host.tree.resolve(path), READ) for _ in range(2))
    assert counts(bench) == [3, 1, 4]
    bench.run_guest(M1, 0)  # ends the session, not the files
    assert counts(bench) == [2, 0, 0]
    with refused("EAGAIN"):
        bench.console("rmmod vfio_ap")
    first.close()
    assert counts(bench) == [1, 0, 0]
    second.close()
    bench.console("rmmod vfio_ap")


def test_an_open_node_that_is_not_bound_keeps_vfio_but_not_the_driver() -> None:
    # vfio_device_fops_cdev_open takes no reference of vfio_ap; but the device cannot go while the node is open.
    bench = built()
    file = bench.host.tree.open(bench.host.tree.resolve("/dev/vfio/devices/vfio0"), READ)
    assert counts(bench) == [0, 0, 2]
    before = bench.dump()
    with refused("EBUSY"):
        bench.console("rmmod vfio_ap")
    assert bench.dump() == before
    file.close()
    assert counts(bench) == [0, 0, 0]
    bench.console("rmmod vfio_ap")


def test_parameters_of_zcrypt() -> None:
    # zcrypt_api.c: module_param_named(mempool_threshold, ..., 0400).
    bench = Bench(BARE)
    directory = "/sys/module/zcrypt/parameters"
    assert bench.ls(directory) == ["mempool_threshold"]
    assert bench.cat(f"{directory}/mempool_threshold") == "5\n"
    assert stat.S_IMODE(bench.stat(f"{directory}/mempool_threshold").mode) == 0o400
    assert not bench.exists("/sys/module/mdev/parameters")


def test_parameters_of_vfio_iommu_type1() -> None:
    # vfio_iommu_type1.c: two of param_ops_bool, one of param_ops_uint, all 0644.
    bench = Bench(BARE)
    directory = "/sys/module/vfio_iommu_type1/parameters"
    limit, switches = f"{directory}/dma_entry_limit", ("allow_unsafe_interrupts", "disable_hugepages")
    assert bench.ls(directory) == [*switches, "dma_entry_limit"]
    assert bench.cat(limit) == "65535\n"
    assert [bench.store(limit, text) for text in ("0x10\n", "-1", "4294967296")] == ["", "EINVAL", "ERANGE"]
    assert bench.cat(limit) == "16\n"
    for name in switches:
        assert bench.cat(f"{directory}/{name}") == "N\n"
        assert [bench.store(f"{directory}/{name}", text) for text in ("on", "x")] == ["", "EINVAL"]
        assert bench.cat(f"{directory}/{name}") == "Y\n"


def test_what_a_needed_module_asks_for_is_loaded_too_if_it_is_missing() -> None:
    # kmod_module_get_probe_list: all dependencies with their soft ones, then those that are loaded are left out.
    bench = Bench(BARE)
    bench.console("rmmod vfio_ap", "rmmod vfio_iommu_type1")
    bench.mark()
    bench.console("modprobe vfio")  # is loaded: nothing else is looked at
    assert bench.heard() == []
    bench.console("modprobe vfio_ap")
    loaded = [event.devpath for event in bench.heard() if event.subsystem == "module"]
    assert loaded == ["/module/vfio_iommu_type1", "/module/vfio_ap"]


def test_what_is_loaded_again_starts_from_the_beginning() -> None:
    # bus_register: drivers_autoprobe is 1 in what it allocates; parse_args: the memory of the module is a new one.
    bench = Bench(BARE)
    changed = {
        "/sys/bus/mdev/drivers_autoprobe": "0\n",
        "/sys/bus/matrix/drivers_autoprobe": "0\n",
        "/sys/bus/mdev/uevent": None,
        "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "Y\n",
        "/sys/module/vfio_iommu_type1/parameters/disable_hugepages": "Y\n",
        "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit": "7\n",
    }
    before = {path: bench.cat(path) for path, text in changed.items() if text}
    for path, text in changed.items():
        bench.echo((text or "remove").strip(), path)
        assert text is None or bench.cat(path) == text
    bench.console("rmmod vfio_ap", "rmmod vfio_iommu_type1", "rmmod mdev", "modprobe vfio_ap")
    assert {path: bench.cat(path) for path in before} == before
    bench.console("rmmod vfio_ap")
    bench.mark()
    bench.console("rmmod mdev")
    assert bench.heard()[0] == Uevent("remove", "/bus/mdev", "bus", ())


def test_devices_go_with_the_module_without_being_asked() -> None:
    bench = built()
    bench.create(M2)
    bench.echo(M2, f"{MDEV_DRIVER}/unbind")
    bench.mark()
    bench.console("rmmod vfio_ap")
    assert bench.ls("/sys/bus/mdev/devices") == []
    for path in ("/sys/class/vfio", "/sys/class/vfio-dev", "/sys/kernel/iommu_groups"):
        assert bench.ls(path) == []
    assert 4 in bench.resets()
    bench.console("modprobe vfio_ap")
    assert bench.cat(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/available_instances") == "65536\n"
    bench.create(M1)
    assert bench.matrix(M1) == []


def test_queues_stay_unbound_and_are_taken_back_when_it_is_loaded() -> None:
    bench = built()
    bench.console("rmmod vfio_ap")
    assert not bench.exists(f"{queue('05.0004')}/driver")
    assert bench.exists(f"{queue('07.0004')}/driver")
    bench.console("modprobe vfio_ap")
    assert bench.queue_status("05.0004") == "unassigned\n"
    assert "07.0004" not in bench.ls(AP_DRIVER)


def test_while_a_device_is_in_use_nothing_goes() -> None:
    bench = built()
    bench.create(M2)
    bench.run_guest(M1)
    before = bench.dump()
    with refused("EAGAIN"):
        bench.console("rmmod vfio_ap")
    assert bench.dump() == before
    bench.run_guest(M1, 0)
    bench.console("rmmod vfio_ap")
    assert not bench.exists(MATRIX)


def test_open_files_of_an_unloaded_module_are_dead() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    tree = bench.host.tree
    create = tree.open(tree.resolve(CREATE), WRITE)
    features = tree.open(tree.resolve(f"{MATRIX}/features"), READ)
    remove = tree.open(tree.resolve(f"{MATRIX}/{M1}/remove"), WRITE)
    bench.console("rmmod vfio_ap", "modprobe vfio_ap")
    with refused("ENODEV"):
        create.write(M1.encode())
    with refused("ENODEV"):
        features.read(0, 100)
    with refused("ENODEV"):
        remove.write(b"1")
    assert bench.ls("/sys/bus/mdev/devices") == []


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("rmmod zcrypt", "EAGAIN"),
        ("rmmod zcrypt_cex4", "EOPNOTSUPP"),
        ("rmmod nothing", "ENOENT"),
        ("modprobe nothing", "ENOENT"),
        ("modprobe", "EINVAL"),
        ("rmmod vfio_ap mdev", "EINVAL"),
    ],
)
def test_refusals(verb: str, expected: str) -> None:
    bench = Bench(BARE)
    before = bench.dump()
    with refused(expected):
        bench.console(verb)
    assert bench.dump() == before

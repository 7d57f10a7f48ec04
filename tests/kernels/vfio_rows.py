"""Checks of the features of vfio_ap, mediated devices and VFIO."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from apfs.ap.names import Apqn
from apfs.ap.qinfo import Response
from apfs.errors import KernelError
from apfs.journal.records import LogLine
from apfs.scenario.reader import loads
from tests.ap.machines import BUS, DEVICES
from tests.hosts import M1, M2, MATRIX, UNASSIGN, WORKED, Bench
from tests.kernels.rows import boot, row, toml
from tests.vfio.client import (
    CHECK_EXTENSION,
    DEVICE_ATTACH_IOMMUFD_PT,
    DEVICE_FEATURE,
    DEVICE_GET_INFO,
    DEVICE_GET_IRQ_INFO,
    DEVICE_GET_REGION_INFO,
    GET,
    GROUP_GET_DEVICE_FD,
    GROUP_SET_CONTAINER,
    IOMMU_GET_INFO,
    IOMMU_MAP_DMA,
    IOMMU_UNMAP_DMA,
    SET_IOMMU,
    Cdev,
    Device,
    U,
    outcome_of,
)
from tests.vfio.program import Program

if TYPE_CHECKING:
    from apfs.kernel.profile import Profile

TWO_MASKS = WORKED  # cards 5 and 6 for vfio_ap, card 7 for zcrypt, domains 4, 0x47, 0xab, 0xff
Q = f"{DEVICES}/card05/05.0004"


def built(kernel: Profile, *, guest: bool = False) -> Bench:
    """Return a host on which M1 has adapters 5, 6 and domains 4, 0xab."""
    bench = boot(kernel, WORKED)
    bench.create(M1)
    bench.assign(M1, (5, 6), (4, 0xAB), (4, 0xAB))
    if guest:
        bench.run_guest(M1)
    bench.mark()
    return bench


def shadow(bench: Bench, uuid: str = M1) -> tuple[list[int], list[int], list[int]]:
    """Return adapters, domains and control domains that a guest has or would have."""
    masks = bench.status()["mdevs"][uuid]["guest_matrix"]
    return masks["adapters"], masks["domains"], masks["control_domains"]


def answer(bench: Bench, name: str, number: object, uuid: str = M1) -> str:
    return bench.store(f"{MATRIX}/{uuid}/{name}", f"{number}\n")


# -- assignment -------------------------------------------------------------------------------------------------------


@row
def hotplug(kernel: Profile) -> None:
    bench = built(kernel, guest=True)
    new = kernel.hotplug
    # EBUSY comes before what was written is looked at.
    assert answer(bench, "assign_domain", "x") == ("EINVAL" if new else "EBUSY")
    assert answer(bench, "assign_domain", 0x47) == ("" if new else "EBUSY")
    assert answer(bench, "unassign_domain", 0xAB) == ("" if new else "EBUSY")
    assert shadow(bench)[:2] == ([5, 6], [4, 0x47] if new else [4, 0xAB])
    bench.run_guest(M1, 0)
    bench.mark()
    for name in UNASSIGN:
        assert answer(bench, name, 9) == ""  # not assigned
    assert answer(bench, "unassign_adapter", 6) == ""
    assert bench.resets() == ([2] if new else [])
    assert answer(bench, "assign_adapter", 5) == ""  # again
    if not new:
        assert shadow(bench)[:2] == ([5], [4, 0xAB])
        bench.unbind("05.0004")
        assert shadow(bench)[:2] == ([5], [4, 0xAB])  # guests get what is assigned


@row
def overprovisioning(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    bench.create(M1)
    free = "" if kernel.overprovisioning else "EADDRNOTAVAIL"
    assert answer(bench, "assign_adapter", 9) == free  # no such card, but not reserved
    assert answer(bench, "unassign_adapter", 9) == ""
    assert answer(bench, "assign_domain", 0x50) == free
    assert answer(bench, "unassign_domain", 0x50) == ""
    assert answer(bench, "assign_adapter", 5) == ""
    bench.unbind("05.0047")
    assert answer(bench, "assign_domain", 0x47) == free
    assert answer(bench, "unassign_domain", 0x47) == ""
    assert answer(bench, "assign_domain", 4) == ""
    assert answer(bench, "assign_adapter", 7) == "EADDRNOTAVAIL"  # which zcrypt has
    # What has become unbound since does not matter to what is new.
    bench.unbind("05.0004")
    assert answer(bench, "assign_domain", 0xAB) == ""
    assert answer(bench, "assign_adapter", 70) == "ENODEV"


@row
def guest_matrix(kernel: Profile) -> None:
    assert ("guest_matrix" in built(kernel).ls(f"{MATRIX}/{M1}")) == kernel.guest_matrix


@row
def ap_config(kernel: Profile) -> None:
    assert ("ap_config" in built(kernel).ls(f"{MATRIX}/{M1}")) == kernel.ap_config


@row
def matrix_features(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    assert ("features" in bench.ls(MATRIX)) == kernel.matrix_features
    if kernel.matrix_features:
        assert bench.cat(f"{MATRIX}/features").split()[:3] == ["guest_matrix", "hotplug", "ap_config"]


@row
def sharing_logged(kernel: Profile) -> None:
    bench = built(kernel)
    bench.create(M2)
    bench.assign(M2, (), (4,))
    bench.mark()
    assert answer(bench, "assign_adapter", 5, M2) == "EADDRINUSE"
    told = {"never": [], "holder": [M1], "writer": [M2]}[kernel.sharing_logged]
    assert bench.log() == [f"warn vfio_ap_mdev {uuid}: queue 05.0004 is already assigned to {M1}" for uuid in told]
    if kernel.mask_veto:
        bench.mark()
        assert bench.store(f"{BUS}/apmask", "+5") == "EBUSY"
        (first, *_) = bench.log()
        own = kernel.sharing_logged == "writer"
        assert first.endswith("cannot be reserved for the host" if own else f"is already assigned to {M1}")


# -- the guest's matrix -----------------------------------------------------------------------------------------------


@row
def config_changes(kernel: Profile) -> None:
    value = kernel.config_changes
    if not kernel.hotplug:  # what a guest has never changes
        return
    bench = built(kernel, guest=True)
    bench.host.change_domains(remove=[0xAB], control=True)
    bench.host.scan()
    assert shadow(bench)[2] == ([4] if value == "followed" else [4, 0xAB])
    if value == "ignored":
        bench.host.change_domains(remove=[0xAB])
        bench.mark()
        driver = bench.host.vfio_ap.driver  # type: ignore[union-attr]
        driver.on_config_changed(bench.host.machine.qci(), bench.host.ap_bus.qci)
        assert (shadow(bench)[:2], bench.pushes()) == (([5, 6], [4, 0xAB]), [])
        return
    bench.mark()
    bench.host.change_domains(remove=[0xAB])
    bench.host.unplug(6)
    bench.host.scan()
    assert bench.pushes()
    assert shadow(bench)[:2] == ([5], [4])
    bench.mark()
    bench.host.unplug(5)
    bench.host.scan()
    assert shadow(bench)[:2] == ([], [4])
    assert (len(bench.pushes()) > 0) == (value == "followed")  # the last one goes in silence


@row
def added_type_checked(kernel: Profile) -> None:
    bench = boot(kernel, '[qci]\ndomains = [4]\n[masks]\napmask = "0x0"\n')
    bench.create(M1)
    if not kernel.overprovisioning:
        return
    bench.assign(M1, (5,), (4, 6))
    mdev = bench.host.vfio_ap.driver.mdevs[0]  # type: ignore[union-attr]
    bench.host.plug(5, "CEX4C", {"at": 9})
    bench.host.change_domains(add=[6])
    old, new = bench.host.ap_bus.qci, bench.host.machine.qci()
    mdev.driver.on_config_changed(new, old)
    if kernel.config_changes != "ignored":
        assert list(mdev.pending.adapters) == ([] if kernel.added_type_checked else [5])


@row
def filter_whole(kernel: Profile) -> None:
    """An adapter with a queue that is missing comes back if something else is assigned."""
    if not (kernel.hotplug and kernel.overprovisioning):
        return
    bench = boot(kernel, WORKED)
    bench.create(M1)
    bench.unbind("05.0047")
    bench.assign(M1, (5, 6), (4, 0x47))
    assert shadow(bench)[:2] == ([6], [4, 0x47])
    bench.assign(M1, (), (0xAB,))
    assert shadow(bench)[:2] == ([6] if kernel.filter_whole else [5, 6], [4, 0x47, 0xAB])
    # A domain that the host does not have costs adapters where it is looked at.
    bench.assign(M1, (), (0x50,))
    assert shadow(bench)[0] == ([6] if kernel.filter_whole else [])


@row
def reset_filtered(kernel: Profile) -> None:
    if not kernel.hotplug:
        return
    bench = built(kernel, guest=True)
    bench.unbind("05.0004")
    assert shadow(bench)[0] == [6]
    assert bench.resets() == ([2] if kernel.reset_filtered else [1])


@row
def reset_model(kernel: Profile) -> None:
    bench = built(kernel, guest=True)

    def reset(**responses: Response) -> str:
        for name, response in responses.items():
            bench.host.fail_reset(Apqn(5, 4 if name == "first" else 0xAB), response)
        return bench.store(f"/dev/vfio-ap/{M1}/reset", "1")

    model = kernel.reset_model
    gone = "EBUSY" if model == "busy" else "EIO"
    assert reset() == ""
    assert reset(first=Response.RESET_IN_PROGRESS) == ""
    assert reset(first=Response.Q_NOT_AVAIL) == gone
    assert reset(first=Response.CHECKSTOPPED) == gone
    assert reset(first=Response.OTHERWISE_CHANGED) == "EIO"
    forgiven = model == "short" or kernel.passable == "deconfigured"
    assert reset(first=Response.DECONFIGURED) == ("" if forgiven else gone)
    assert reset(first=Response.OTHERWISE_CHANGED, second=Response.Q_NOT_AVAIL) == gone
    assert reset(first=Response.Q_NOT_AVAIL, second=Response.OTHERWISE_CHANGED) == "EIO"


@row
def passable(kernel: Profile) -> None:
    if not kernel.hotplug:
        return
    order = ["clean", "deconfigured", "checkstopped"]
    for response, name in ((Response.DECONFIGURED, "deconfigured"), (Response.CHECKSTOPPED, "checkstopped")):
        bench = built(kernel, guest=True)
        bench.host.fail_reset(Apqn(5, 4), response)
        bench.store(f"/dev/vfio-ap/{M1}/reset", "1")
        bench.host.fail_reset(Apqn(5, 4), response)  # where unbinding resets this queue too
        bench.unbind("05.00ab")
        bench.bind("05.00ab")
        passes = order.index(kernel.passable) >= order.index(name)
        assert shadow(bench)[0] == ([5, 6] if passes else [6]), name


@row
def debug_area(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    assert ("vfio_ap" in bench.ls("/sys/kernel/debug/s390dbf")) == kernel.debug_area
    if kernel.debug_area:
        assert bench.cat("/sys/kernel/debug/s390dbf/vfio_ap/level") == "4\n"


@row
def queue_status(kernel: Profile) -> None:
    assert ("status" in built(kernel).ls(Q)) == kernel.queue_status


@row
def status_in_use_exact(kernel: Profile) -> None:
    bench = built(kernel)
    if not (kernel.queue_status and kernel.hotplug):
        return
    assert bench.queue_status("05.0004") == "assigned\n"
    bench.unbind("05.00ab")
    bench.run_guest(M1)
    assert shadow(bench)[0] == [6]
    assert bench.queue_status("06.0004") == "in use\n"
    assert bench.queue_status("05.0004") == ("assigned\n" if kernel.status_in_use_exact else "in use\n")
    assert bench.queue_status("06.00ff") == "unassigned\n"


# -- the device -------------------------------------------------------------------------------------------------------


def program(kernel: Profile) -> Program:
    """Return a program on a host that has the device U with the queue 05.0004."""
    found = Program(loads(toml(kernel) + WORKED))
    found.create(domains=())
    found.write(f"{MATRIX}/{U}/assign_adapter", "5")
    found.write(f"{MATRIX}/{U}/assign_domain", "4")
    return found


def irq_info(device: Device, index: int) -> str:
    return device.outcome(DEVICE_GET_IRQ_INFO, struct.pack("=4I", 16, 0, index, 0))


@row
def irqs(kernel: Profile) -> None:
    vmm = program(kernel)
    device = Device(vmm)
    info = struct.unpack("=4I", vmm.call(device.fd, DEVICE_GET_INFO, struct.pack("=4I", 16, 0, 0, 0)))
    assert info[3] == kernel.irqs
    beyond = "EINVAL" if kernel.irqs else "ENOTSUP"
    assert [irq_info(device, index) for index in range(3)] == ["ok"] * kernel.irqs + [beyond] * (3 - kernel.irqs)
    if kernel.irqs == 2:
        fd = device.eventfd(1)
        vmm.write(f"{MATRIX}/{U}/assign_domain", "71")
        assert vmm.signals(fd) == 1
    if not kernel.irqs:
        assert vmm.remove() == "EBUSY"
        assert not [line for line in vmm.shell.journal.of_kind(LogLine) if "device request" in line.text]


@row
def request_clears_guest(kernel: Profile) -> None:
    if kernel.irqs < 2:
        return
    vmm = program(kernel)
    device = Device(vmm)
    request, changed = device.eventfd(0), device.eventfd(1)
    assert vmm.remove() == "EBUSY"
    assert (vmm.signals(request), vmm.signals(changed)) == (1, int(kernel.request_clears_guest))


@row
def open_without_kvm(kernel: Profile) -> None:
    vmm = program(kernel)
    vmm.write("/ctl/console", "kvm none")
    opened = outcome_of(lambda: Device(vmm))
    assert opened == ("ok" if kernel.open_without_kvm else "EINVAL")
    status = vmm.shell.status()["mdevs"][U]
    assert (status["guest"], status["opener"]) == (False, "program" if kernel.open_without_kvm else None)


# -- mediated devices -------------------------------------------------------------------------------------------------


@row
def mdev_driver(kernel: Profile) -> None:
    bench = built(kernel)
    name = kernel.mdev_driver
    module = {"vfio_mdev": "mdev", "vfio_ap_mdev": "vfio_ap"}[name]
    assert bench.ls("/sys/bus/mdev/drivers") == [name]
    assert bench.readlink(f"{MATRIX}/{M1}/driver").endswith(f"/{name}")
    assert bench.readlink(f"/sys/bus/mdev/drivers/{name}/module").endswith(f"/module/{module}")
    assert bench.readlink(f"/sys/module/{module}/drivers/mdev:{name}").endswith(f"/mdev/drivers/{name}")
    assert bench.cat(f"{MATRIX}/{M1}/uevent") == f"DRIVER={name}\n"
    assert bench.store(f"/sys/bus/mdev/drivers/{name}/unbind", M1) == ""


@row
def create_limit(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    bench.create(M1)
    parent = bench.host.vfio_ap.parent  # type: ignore[union-attr]
    parent.instances = 1
    bench.mark()
    assert bench.store(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", M2) == kernel.create_limit
    assert bench.ls("/sys/bus/mdev/devices") == [M1]
    probed = kernel.create_limit == "EPERM" and kernel.mdev_driver == "vfio_ap_mdev"
    assert [event.action for event in bench.heard()] == (["add", "remove"] if probed else [])
    assert bench.store(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", M1) == "EEXIST"


@row
def mdev_class_at_load(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    assert "mdev_bus" in bench.ls("/sys/class")
    bench.host.rmmod("vfio_ap")
    assert "mdev_bus" in bench.ls("/sys/class")
    bench.host.rmmod("mdev")
    assert "mdev_bus" not in bench.ls("/sys/class")
    bench.host.modprobe("mdev")
    assert ("mdev_bus" in bench.ls("/sys/class")) == kernel.mdev_class_at_load
    bench.host.modprobe("vfio_ap")
    assert "mdev_bus" in bench.ls("/sys/class")


@row
def iommu_group_name(kernel: Profile) -> None:
    assert ("name" in built(kernel).ls("/sys/kernel/iommu_groups/0")) == kernel.iommu_group_name


# -- VFIO -------------------------------------------------------------------------------------------------------------


@row
def vfio_virqfd_module(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    if kernel.vfio_virqfd_module:
        bench.host.modprobe("vfio_virqfd")
        assert bench.cat("/sys/module/vfio_virqfd/version") == "0.1\n"
    else:
        with pytest.raises(KernelError):
            bench.host.modprobe("vfio_virqfd")


@row
def vfio_dev_class(kernel: Profile) -> None:
    bench = built(kernel)
    assert ("vfio-dev" in bench.ls(f"{MATRIX}/{M1}")) == ("vfio-dev" in bench.ls("/sys/class")) == kernel.vfio_dev_class
    bench.create(M2)
    assert any("vfio-dev" in event.devpath for event in bench.heard()) == kernel.vfio_dev_class
    assert bench.exists("/dev/vfio/0")


@row
def vfio_cdev(kernel: Profile) -> None:
    bench = built(kernel)
    seen = kernel.vfio_cdev and kernel.vfio_dev_class
    assert ("devices" in bench.ls("/dev/vfio")) == ("devices" in bench.ls("/ctl/sandbox/dev/vfio")) == seen
    assert any(name.startswith("242:") for name in bench.ls("/sys/dev/char")) == seen
    if kernel.vfio_dev_class:
        assert ("dev" in bench.ls(f"{MATRIX}/{M1}/vfio-dev/vfio0")) == seen
        bench.create(M2)
        (event,) = (event for event in bench.heard() if event.subsystem == "vfio-dev")
        assert bool(dict(event.keys)) == seen
    if seen and kernel.iommufd:
        assert Cdev(program(kernel)).id == 1


@row
def iommufd(kernel: Profile) -> None:
    bench = boot(kernel, WORKED)
    assert bench.exists("/dev/iommu") == bench.exists("/ctl/sandbox/dev/iommu") == kernel.iommufd
    assert bench.exists("/sys/class/misc/iommu") == kernel.iommufd
    vmm = program(kernel)
    group = vmm.open(vmm.group_of())
    other = vmm.foreign()
    refusal = "EBADFD" if kernel.iommufd else "EINVAL"
    assert vmm.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", other)) == refusal
    if kernel.iommufd:
        fd = vmm.open("/dev/iommu")
        assert vmm.outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", fd)) == "ok"


@row
def iommufd_last(kernel: Profile) -> None:
    if not kernel.iommufd:
        return
    vmm = program(kernel)
    fd = vmm.open("/dev/iommu")
    unknown = [number for number in range(0x80, 0x95) if vmm.outcome(fd, 0x3B00 | number, bytes(96)) == "ENOTTY"]
    assert unknown == list(range(kernel.iommufd_last + 1, 0x95))


IOAS_ALLOC, IOAS_COPY, IOAS_MAP, VFIO_IOAS, IOAS_MAP_FILE = 0x3B81, 0x3B83, 0x3B85, 0x3B88, 0x3B8F


def address_space(kernel: Profile) -> tuple[Program, int]:
    """Return a program with an iommufd, whose address space 1 is also that of groups."""
    vmm = program(kernel)
    fd = vmm.open("/dev/iommu")
    vmm.call(fd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0))
    vmm.call(fd, VFIO_IOAS, struct.pack("=2I2H", 12, 1, 1, 0))
    return vmm, fd


@row
def iommufd_access_needed(kernel: Profile) -> None:
    if not kernel.iommufd:
        return
    vmm, fd = address_space(kernel)
    refusal = "EINVAL" if kernel.iommufd_access_needed else "ok"
    assert vmm.outcome(fd, IOAS_MAP, struct.pack("=4I3Q", 40, 1, 1, 0, 0x10000, 0x1000, 0)) == refusal
    assert vmm.outcome(fd, IOAS_MAP, struct.pack("=4I3Q", 40, 3, 1, 0, 0x10000, 0x1000, 0x1000)) == "ok"
    assert vmm.outcome(fd, IOAS_COPY, struct.pack("=4I3Q", 40, 1, 1, 1, 0x1000, 0x2000, 0x1000)) == refusal


@row
def iommufd_unmap_nothing(kernel: Profile) -> None:
    if not kernel.iommufd:
        return
    vmm, fd = address_space(kernel)

    def unmapped(iova: int, flags: int = 0, size: int = 0x1000) -> str:
        return vmm.outcome(fd, IOMMU_UNMAP_DMA, struct.pack("=IIQQ", 24, flags, iova, size))

    nothing = "ok" if kernel.iommufd_unmap_nothing else "ENOENT"
    assert unmapped(0) == nothing
    assert unmapped(0, 2, 0) == "ok"  # everything
    assert vmm.outcome(fd, IOMMU_MAP_DMA, struct.pack("=IIQQQ", 32, 3, 0x10000, 0x1000, 0x1000)) == "ok"
    assert unmapped(0x1000) == "ok"
    assert unmapped(0x1000) == nothing


@row
def iommufd_length_first(kernel: Profile) -> None:
    if kernel.iommufd and kernel.iommufd_last > IOAS_MAP_FILE & 0xFF:
        vmm, fd = address_space(kernel)
        answers = [
            vmm.outcome(fd, IOAS_MAP_FILE, struct.pack("=3Ii3Q", 40, 3, 1, 999, 0, length, 0)) for length in (0, 1)
        ]
        assert answers == ["EINVAL" if kernel.iommufd_length_first else "EBADF", "EBADF"]


def feature(device: Device, index: int, flags: int = GET) -> str:
    return device.outcome(DEVICE_FEATURE, struct.pack("=IIII", 16, index | flags, 0, 0))


@row
def feature_ioctl(kernel: Profile) -> None:
    device = Device(program(kernel))
    assert feature(device, 1) == feature(device, 2) == ("ok" if kernel.feature_ioctl else "ENOTSUP")


@row
def unknown_feature(kernel: Profile) -> None:
    device = Device(program(kernel))
    assert feature(device, 3) == feature(device, 11) == (kernel.unknown_feature if kernel.feature_ioctl else "ENOTSUP")


@row
def region_info(kernel: Profile) -> None:
    answer = Device(program(kernel)).outcome(DEVICE_GET_REGION_INFO, bytes(32))
    assert answer == {"EOPNOTSUPP": "ENOTSUP", "EINVAL": "EINVAL"}[kernel.region_info]


@row
def dma_logging(kernel: Profile) -> None:
    if kernel.feature_ioctl:
        answers = {feature(Device(program(kernel)), index) for index in (6, 7, 8)}
        assert answers == {"ENOTTY" if kernel.dma_logging else kernel.unknown_feature}


@row
def mig_data_size(kernel: Profile) -> None:
    if kernel.feature_ioctl:
        answer = feature(Device(program(kernel)), 9)
        assert answer == ("ok" if kernel.mig_data_size else kernel.unknown_feature)


@row
def precopy_info_v2(kernel: Profile) -> None:
    if kernel.feature_ioctl:
        answer = feature(Device(program(kernel)), 12)
        assert answer == ("EINVAL" if kernel.precopy_info_v2 else kernel.unknown_feature)


@row
def caps_aligned(kernel: Profile) -> None:
    vmm = program(kernel)
    device = Device(vmm)
    after = vmm.call(device.container, IOMMU_GET_INFO, struct.pack("=IIQII", 24, 0, 0, 0, 0))
    assert struct.unpack("=IIQII", after)[0] == (72 if kernel.caps_aligned else 68)


@row
def update_vaddr(kernel: Profile) -> None:
    vmm = program(kernel)
    device = Device(vmm)
    assert vmm.ioctl(device.container, CHECK_EXTENSION, 10) == int(kernel.update_vaddr)

    def mapped(flags: int) -> str:
        return vmm.outcome(device.container, IOMMU_MAP_DMA, struct.pack("=IIQQQ", 32, flags, 0x10000, 0x1000, 0x1000))

    def unmapped(flags: int) -> str:
        return vmm.outcome(device.container, IOMMU_UNMAP_DMA, struct.pack("=IIQQ", 24, flags, 0x1000, 0x1000))

    assert mapped(3) == "ok"
    assert mapped(4) == "EINVAL"
    assert unmapped(4) == ("ok" if kernel.update_vaddr else "EBUSY")
    if kernel.update_vaddr:
        assert unmapped(4) == "EINVAL"
        assert mapped(3) == "EEXIST"
        assert mapped(4) == "ok"
        assert mapped(4) == "EINVAL"
    assert unmapped(0) == "ok"


@row
def group_name_first(kernel: Profile) -> None:
    vmm = program(kernel)
    group = vmm.open(vmm.group_of())
    wrong = vmm.outcome(group, GROUP_GET_DEVICE_FD, b"wrong\0")
    assert wrong == ("ENODEV" if kernel.group_name_first else "EINVAL")
    container = vmm.open("/dev/vfio/vfio")
    vmm.call(group, GROUP_SET_CONTAINER, struct.pack("=i", container))
    assert vmm.outcome(group, GROUP_GET_DEVICE_FD, b"wrong\0") == wrong
    vmm.ioctl(container, SET_IOMMU, 1)
    assert vmm.outcome(group, GROUP_GET_DEVICE_FD, b"wrong\0") == "ENODEV"


@row
def attach_pasid(kernel: Profile) -> None:
    if not (kernel.vfio_cdev and kernel.iommufd and kernel.vfio_dev_class):
        return
    device = Cdev(program(kernel))
    answer = device.outcome(DEVICE_ATTACH_IOMMUFD_PT, struct.pack("=4I", 16, 1, 2, 0))
    assert answer == ("ENOTSUP" if kernel.attach_pasid else "EINVAL")

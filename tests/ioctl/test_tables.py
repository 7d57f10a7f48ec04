"""Each kind of file, call by call: which requests it knows, and what is refused in which order."""

from __future__ import annotations

import json

import pytest

from tests.ioctl.conftest import client

GUEST = "create(adapters=(5,), domains=(0x47,))\n"
SECOND = "22222222-2222-4222-8222-222222222222"

# All numbers of the type byte, with a null pointer as the argument: what a file knows, the rest is one errno.
NUMBERS: dict[str, tuple[str, dict[str, list[int]]]] = {
    "container": ("EINVAL", {"ok": [0x64, 0x65]}),
    "container with an IOMMU": (
        "ENOTTY",
        {"ok": [0x64, 0x65], "EINVAL": [0x66], "EFAULT": [0x70, 0x71, 0x72, 0x75]},
    ),
    "group": ("ENOTTY", {"EFAULT": [0x67, 0x68, 0x6A], "EBUSY": [0x69]}),
    "device of a group": ("ENOTSUP", {"ok": [0x6F], "EINVAL": [0x76], "EFAULT": [0x6B, 0x6D, 0x6E, 0x75]}),
    "node": ("EINVAL", {"EFAULT": [0x76]}),
    "bound node": ("ENOTSUP", {"ok": [0x6F], "EFAULT": [0x6B, 0x6D, 0x6E, 0x75, 0x76, 0x77, 0x78]}),
    "iommufd": (
        "ENOTTY",
        {
            "ok": [0x64, 0x65],
            "EINVAL": [0x66],
            "EFAULT": [0x70, 0x71, 0x72, *range(0x80, 0x95)],
        },
    ),
    "migration file": ("ENOTTY", {}),
}


def test_numbers_that_a_file_knows() -> None:
    result = client(
        f"""{GUEST}
import json
create("{SECOND}")
d, unbound = Device(), os.open(node_of("{SECOND}"), os.O_RDWR)
bound = Cdev("{SECOND}")
files = {{
    "container": os.open("/dev/vfio/vfio", os.O_RDWR),
    "container with an IOMMU": d.container,
    "group": d.group,
    "device of a group": d.fd,
    "node": unbound,
    "bound node": bound.fd,
    "iommufd": bound.iommufd,
    "migration file": d.set_state(STOP_COPY),
}}
for name, fd in files.items():
    known = {{}}
    for number in range(256):
        known.setdefault(outcome(fd, 0x3B00 | number), []).append(number)
    rest = max(known, key=lambda result: len(known[result]))
    del known[rest]
    print(json.dumps([name, rest, known]))
"""
    )
    answered = {name: (rest, known) for name, rest, known in map(json.loads, result.stdout.splitlines())}
    assert answered == NUMBERS


def test_features_by_index_and_flags() -> None:
    """The whole table: feature, GET, SET and PROBE, and whether there is room for the data."""
    result = client(f"""{GUEST}
d = Device()
for index in range(16):
    for flags in range(8):
        for argsz in (8, 16):
            data = struct.pack("=IIIi", argsz, index | flags << 16, RUNNING, -1)
            print(index, flags, argsz, outcome(d.fd, DEVICE_FEATURE, data))
""")
    offered = {1: 0b01, 2: 0b11, 9: 0b01}  # GET is 1, SET is 2

    def expected(index: int, flags: int, argsz: int) -> str:
        method, probe = flags & 3, flags & 4
        if method == 3 and not probe:
            return "EINVAL"
        if index in (6, 7, 8):
            return "ENOTTY"
        if index not in offered or method & ~offered[index]:
            return "EINVAL"
        return "ok" if probe or (method and argsz >= 16) else "EINVAL"

    combinations = [(index, flags, argsz) for index in range(16) for flags in range(8) for argsz in (8, 16)]
    wanted = [f"{index} {flags} {argsz} {expected(index, flags, argsz)}" for index, flags, argsz in combinations]
    assert result.stdout.splitlines() == wanted


STEPS = {
    # From STOP, RUNNING, STOP_COPY, RESUMING: where a target leads, and whether there is a file.
    1: {1: (1, False), 2: (2, False), 3: (3, True), 4: (4, True)},
    2: {1: (1, False), 2: (2, False), 3: (3, True), 4: (4, True)},
    3: {1: (1, False), 2: (2, False), 3: (3, False), 4: (4, True)},
    4: {1: (1, False), 2: (2, False), 3: (3, True), 4: (4, False)},
}


@pytest.mark.parametrize("way", ["Device", "Cdev"])
def test_every_state_from_every_state(way: str) -> None:
    result = client(f"""{GUEST}
d = {way}()
for current in (1, 2, 3, 4):
    for target in (*range(9), 2**32 - 1):
        for state in (STOP, current):
            d.set_state(state)
        buffer = ctypes.create_string_buffer(struct.pack("=IIIi", 16, SET | 2, target, 77), 16)
        result = outcome(d.fd, DEVICE_FEATURE, ctypes.addressof(buffer))
        echoed, fd = struct.unpack("=Ii", buffer.raw[8:])
        print(current, target, result, echoed == target, d.state(), fd >= 0)
        if fd >= 0:
            os.close(fd)
""")
    lines = []
    for current, steps in STEPS.items():
        for target in (*range(9), 2**32 - 1):
            state, file = steps.get(target, (current, False))
            lines.append(f"{current} {target} {'ok' if target in steps else 'EINVAL'} True {state} {file}")
    assert result.stdout.splitlines() == lines


def test_the_size_is_live_and_the_stream_a_snapshot() -> None:
    result = client(f"""{GUEST}
d = Device()
def size():
    return struct.unpack("=IIQ", call(d.fd, DEVICE_FEATURE, struct.pack("=IIQ", 16, GET | 9, 0)))[2]
print(size())
data = d.set_state(STOP_COPY)
write(f"{{MATRIX}}/{{U}}/assign_domain", "4")
print(size(), len(os.read(data, 4096)))
d.set_state(STOP)
print(size(), len(os.read(d.set_state(STOP_COPY), 4096)))
""")
    assert result.stdout.split() == ["24", "40", "24", "40", "40"]


def test_a_reset_that_fails_and_one_that_does_not_leave_the_state_alone() -> None:
    result = client(f"""{GUEST}
d = Device()
data = d.set_state(STOP_COPY)
write("/dev/apfs/ctl/console", "fail-reset 05.0047")
print(outcome(d.fd, DEVICE_RESET), d.state())
write("/dev/apfs/ctl/console", "clear-faults")
print(outcome(d.fd, DEVICE_RESET), d.state(), len(os.read(data, 4096)))
""")
    assert result.stdout.splitlines() == ["EIO 3", "ok 3 24"]


def test_irqs() -> None:
    result = client(f"""{GUEST}
d = Device()
e = os.eventfd(0)
def irqs(argsz, flags, index, start, count, *data):
    return outcome(d.fd, DEVICE_SET_IRQS, struct.pack(f"=5I{{len(data)}}i", argsz, flags, index, start, count, *data))
EVENTFD, TRIGGER = 4, 32
print("argsz", irqs(19, EVENTFD | TRIGGER, 0, 0, 1, e), irqs(20, EVENTFD | TRIGGER, 0, 0, 1, e),
      irqs(24, EVENTFD | TRIGGER, 0, 0, 1, e), irqs(4096, EVENTFD | TRIGGER, 0, 0, 1, e))
print("index", irqs(24, EVENTFD | TRIGGER, 2, 0, 1, e), irqs(24, EVENTFD | TRIGGER, 2**32 - 1, 0, 1, e))
print("range", irqs(24, EVENTFD | TRIGGER, 0, 1, 1, e), irqs(24, EVENTFD | TRIGGER, 0, 1, 0, e),
      irqs(28, EVENTFD | TRIGGER, 0, 0, 2, e, e), irqs(24, EVENTFD | TRIGGER, 0, 0, 2**32 - 1, e))
print("types", *(irqs(24, types | TRIGGER, 0, 0, 1, e) for types in range(8)))
print("actions", *(irqs(24, EVENTFD | action, 0, 0, 1, e) for action in (0, 8, 16, 32, 40, 48, 56, 64 | 32)))
print("none", irqs(24, 1 | TRIGGER, 0, 0, 0, e), "no vectors", irqs(20, EVENTFD | TRIGGER, 0, 0, 0, e))
hole = Pages(0)
hole.put(hole.edge - 20, struct.pack("=5I", 20, EVENTFD | TRIGGER, 0, 0, 0))
print("edge", outcome(d.fd, DEVICE_SET_IRQS, hole.edge - 20), outcome(d.fd, DEVICE_SET_IRQS, hole.edge - 19))
print("descriptor", *(irqs(24, EVENTFD | TRIGGER, 0, 0, 1, fd) for fd in (-1, -1, -2, -(2**31))))
info = struct.pack("=4I", 16, 9, 1, 9)
print("info", struct.unpack("=4I", call(d.fd, DEVICE_GET_IRQ_INFO, info)),
      outcome(d.fd, DEVICE_GET_IRQ_INFO, struct.pack("=4I", 15, 0, 0, 0)))
""")
    assert result.stdout.splitlines() == [
        "argsz EINVAL EINVAL ok ok",
        "index EINVAL EINVAL",
        "range EINVAL EINVAL EINVAL EINVAL",
        "types EINVAL EINVAL EINVAL EINVAL ok EINVAL EINVAL EINVAL",
        "actions EINVAL EINVAL EINVAL ok ok ok ok EINVAL",
        "none EINVAL no vectors ok",
        "edge EFAULT EFAULT",
        "descriptor ok ok EINVAL EINVAL",
        "info (16, 1, 1, 1) EINVAL",
    ]


def test_a_container_outlives_its_descriptor_and_starts_anew_without_groups() -> None:
    result = client(f"""{GUEST}
create("{SECOND}")
c = os.open("/dev/vfio/vfio", os.O_RDWR)
first, second = os.open(group_of(), os.O_RDWR), os.open(group_of("{SECOND}"), os.O_RDWR)
join = lambda group: outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", c))
extension = lambda number: ioctl(c, CHECK_EXTENSION, number)
print("extensions", [number for number in range(12) if extension(number)], extension(2**32 + 1))
print("types", join(first), *(outcome(c, SET_IOMMU, kind) for kind in (0, 2, 4, 7, 8, 9, 10, 2**32 + 1, 1, 3)))
print("extensions", [number for number in range(12) if extension(number)])
print("one version", outcome(c, IOMMU_DIRTY_PAGES, struct.pack("=II", 8, 1)))
print("second", join(second), "again", join(second))
print("leave", outcome(second, GROUP_UNSET_CONTAINER), outcome(second, GROUP_UNSET_CONTAINER),
      outcome(first, GROUP_UNSET_CONTAINER), outcome(c, IOMMU_GET_INFO))
print("anew", join(first), outcome(c, SET_IOMMU, 3), outcome(c, IOMMU_DIRTY_PAGES, struct.pack("=II", 8, 1)))
os.close(c)
status = struct.unpack("=II", call(first, GROUP_GET_STATUS, struct.pack("=II", 64, 77)))
print("closed", status, outcome(first, GROUP_GET_STATUS, struct.pack("=II", 7, 0)))
name = ctypes.create_string_buffer(U.encode())
fd = ioctl(first, GROUP_GET_DEVICE_FD, ctypes.addressof(name))
os.close(first)
print("kept open", opened(group_of()), outcome(fd, DEVICE_RESET))
os.close(fd)
print("free", isinstance(opened(group_of()), int))
""")
    assert result.stdout.splitlines() == [
        "extensions [1, 3, 9] 0",
        "types ok ENODEV ENODEV ENODEV ENODEV ENODEV EINVAL ENODEV ENODEV ok EINVAL",
        "extensions [1, 3, 4, 9]",
        "one version EACCES",
        "second ok again EINVAL",
        "leave ok EINVAL ok EINVAL",
        "anew ok ok ok",
        "closed (64, 3) EINVAL",
        "kept open EBUSY ok",
        "free True",
    ]


def test_a_group_whose_device_was_removed() -> None:
    result = client(f"""{GUEST}
path, node = group_of(), node_of()
group, c = os.open(path, os.O_RDWR), os.open("/dev/vfio/vfio", os.O_RDWR)
print(refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"))
print(outcome(group, GROUP_GET_STATUS, struct.pack("=II", 8, 0)),
      outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", c)), outcome(group, GROUP_UNSET_CONTAINER),
      outcome(group, GROUP_GET_DEVICE_FD, U.encode() + bytes(1)))
print(opened(path), opened(node))
""")
    assert result.stdout.splitlines() == ["ok", "ENODEV ENODEV EINVAL ENODEV", "ENOENT ENOENT"]


def test_the_mappings_of_a_container() -> None:
    result = client(f"""{GUEST}
d = Device()
def map_dma(iova, size, flags=3, argsz=32, vaddr=0x10000):
    return outcome(d.container, IOMMU_MAP_DMA, struct.pack("=IIQQQ", argsz, flags, vaddr, iova, size))
def unmap(iova, size, flags=0):
    try:
        answer = call(d.container, IOMMU_UNMAP_DMA, struct.pack("=IIQQ", 24, flags, iova, size))
        return struct.unpack("=IIQQ", answer)[3]
    except OSError as error:
        return errno.errorcode[error.errno]
print("map", map_dma(0, 8192), map_dma(4096, 4096), map_dma(8192, 4096, argsz=31), map_dma(8192, 4096, flags=8 | 3),
      map_dma(8192, 4096, flags=0), map_dma(8192, 4096, flags=7), map_dma(8192, 100), map_dma(2**64 - 4096, 8192),
      map_dma(0, 4096, flags=4), map_dma(2**20, 4096, flags=4))
print("unmap", unmap(4096, 4096), unmap(2**30, 4096), unmap(0, 8192, flags=4), unmap(0, 0), unmap(0, 4096, flags=2),
      unmap(0, 0, flags=2), unmap(0, 0, flags=2))
info = call(d.container, IOMMU_GET_INFO, struct.pack("=IIQII", 24, 0, 0, 5, 5))
print("info", struct.unpack("=IIQII", info), outcome(d.container, IOMMU_GET_INFO, struct.pack("=IIQ", 15, 0, 0)))
info = call(d.container, IOMMU_GET_INFO, struct.pack("=I", 72) + bytes(68))
print(struct.unpack("=IIQI4xHHIIIQQHHII", info[:68]))
""")
    assert result.stdout.splitlines() == [
        "map ok EEXIST EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL ENOENT",
        "unmap EINVAL 0 EBUSY EINVAL EINVAL 8192 0",
        f"info (72, 3, {2**64 - 4096}, 0, 0) EINVAL",
        f"(72, 3, {2**64 - 4096}, 24, 2, 1, 56, 0, 0, 4096, {1 << 28}, 3, 1, 0, 65535)",
    ]


def test_binding_a_node() -> None:
    result = client(f"""{GUEST}
create("{SECOND}")
fd, iommufd = os.open(node_of(), os.O_RDWR), os.open("/dev/iommu", os.O_RDWR)
container, (pipe, _) = os.open("/dev/vfio/vfio", os.O_RDWR), os.pipe()
def bind(number, fd=fd, argsz=16, flags=0):
    return outcome(fd, DEVICE_BIND_IOMMUFD, struct.pack("=IIiI", argsz, flags, number, 0))
group = os.open(group_of(), os.O_RDWR)
# EINVAL for the struct, EBUSY for the group, EBADF for the descriptor: each hides what comes after it.
print(bind(900, argsz=15), bind(900, flags=1 << 31), bind(-1), bind(900))
os.close(group)
print(bind(900), bind(pipe), bind(container), bind(fd), bind(iommufd), bind(900), opened(group_of()))
other = os.open(node_of(), os.O_RDWR)
print("elsewhere", bind(900, other), bind(pipe, other), bind(iommufd, other), outcome(other, DEVICE_RESET))
second = os.open(node_of("{SECOND}"), os.O_RDWR)
print("one VM", bind(iommufd, second), "another", bind(os.open("/dev/iommu", os.O_RDWR), second))
def attach(pt_id, argsz=12, flags=0):
    return outcome(fd, DEVICE_ATTACH_IOMMUFD_PT, struct.pack("=4I", argsz, flags, pt_id, 0))
def detach(argsz=8, flags=0):
    return outcome(fd, DEVICE_DETACH_IOMMUFD_PT, struct.pack("=3I", argsz, flags, 0))
def alloc():
    return struct.unpack("=3I", call(iommufd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0)))[2]
def destroy(number):
    return outcome(iommufd, IOMMU_DESTROY, struct.pack("=2I", 8, number))
one, two = alloc(), alloc()
print("attach", attach(one, 11), attach(one, flags=2), attach(one, flags=1), attach(one, 16, 1), attach(99),
      attach(one))
print("replaced", attach(two), destroy(one), destroy(two), destroy(99), destroy(one))
print("detach", detach(7), detach(flags=2), detach(flags=1), detach(12, 1), detach(), detach(), destroy(two))
print("removal", refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"))
os.close(fd)
print("unbound", bind(iommufd, other), outcome(other, DEVICE_RESET))
os.close(other)
print("group", isinstance(opened(group_of()), int))
""")
    assert result.stdout.splitlines() == [
        "EINVAL EINVAL EINVAL EBUSY",
        "EBADF EBADFD EBADFD EBADFD ok EINVAL EBUSY",
        "elsewhere EBADF EBADFD EINVAL EINVAL",
        "one VM EPERM another ok",
        "attach EINVAL EINVAL EINVAL ENOTSUP ENOENT ok",
        "replaced ok ok EBUSY ENOENT ENOENT",
        "detach EINVAL EINVAL EINVAL ENOTSUP ok ok ok",
        "removal EBUSY",
        "unbound ok ok",
        "group True",
    ]


def test_address_spaces() -> None:
    result = client(f"""{GUEST}
iommufd = os.open("/dev/iommu", os.O_RDWR)
ioas = struct.unpack("=3I", call(iommufd, IOAS_ALLOC, struct.pack("=3I", 12, 0, 0)))[2]
alloc = lambda size, flags, rest=b"": outcome(iommufd, IOAS_ALLOC, struct.pack("=3I", size, flags, 0) + rest)
print("alloc", alloc(11, 0), alloc(12, 1), alloc(16, 0, bytes(4)), alloc(16, 0, b"\\1\\0\\0\\0"),
      alloc(1000, 0, bytes(987) + b"\\1"), alloc(1000, 0, bytes(988)))
hole = Pages(0)
hole.put(hole.edge - 12, struct.pack("=3I", 16, 0, 0))
print("edge", outcome(iommufd, IOAS_ALLOC, hole.edge - 12))
hole.put(hole.edge - 12, struct.pack("=3I", 12, 0, 0))
print("edge", outcome(iommufd, IOAS_ALLOC, hole.edge - 12))
def map_(length, iova=0, flags=7, number=ioas, start=0x10000):
    return outcome(iommufd, IOAS_MAP, struct.pack("=4I3Q", 40, flags, number, 0, start, length, iova))
print("map", map_(4096), map_(4096), map_(4096, 4096, number=99), map_(4096, flags=8), map_(0, 8192), map_(100, 12288))
memfd = os.memfd_create("guest")
def map_file(fd, iova):
    return outcome(iommufd, IOAS_MAP_FILE, struct.pack("=3Ii3Q", 40, 7, ioas, fd, 0, 4096, iova))
print("file", map_file(memfd, 8192), map_file(memfd, 8192), map_file(900, 16384))
placed = call(iommufd, IOAS_MAP, struct.pack("=4I3Q", 40, 6, ioas, 0, 0x10000, 4096, 77))
print("placed", struct.unpack("=4I3Q", placed)[6])
def unmap(iova, length):
    try:
        return struct.unpack("=2I2Q", call(iommufd, IOAS_UNMAP, struct.pack("=2I2Q", 24, ioas, iova, length)))[3]
    except OSError as error:
        return errno.errorcode[error.errno]
print("unmap", unmap(2**30, 4096), unmap(0, 4096), unmap(0, 2**64 - 1), unmap(0, 2**64 - 1))
ranges = ctypes.create_string_buffer(16)
def ask(room, number=ioas, reserved=0):
    packed = struct.pack("=4I2Q", 32, number, room, reserved, ctypes.addressof(ranges), 0)
    buffer = ctypes.create_string_buffer(packed, 32)
    return outcome(iommufd, IOAS_IOVA_RANGES, ctypes.addressof(buffer)), struct.unpack("=4I2Q", buffer.raw)[2]
print("ranges", ask(0), ask(1), ask(7), ask(1, 99)[0], ask(1, reserved=1)[0], struct.unpack("=2Q", ranges.raw))
""")
    assert result.stdout.splitlines() == [
        "alloc EINVAL ENOTSUP ok E2BIG E2BIG ok",
        "edge EFAULT",
        "edge ok",
        "map ok EEXIST ENOENT ENOTSUP EINVAL ok",
        "file ok EEXIST EBADF",
        "placed 4096",
        "unmap ENOENT 4096 8292 0",
        f"ranges ('EMSGSIZE', 1) ('ok', 1) ('ok', 1) ENOENT ENOTSUP (0, {2**64 - 1})",
    ]


def test_an_iommufd_plays_the_container() -> None:
    result = client(f"""{GUEST}
d = Device(container=os.open("/dev/iommu", os.O_RDWR))
print(ioctl(d.container, GET_API_VERSION), outcome(d.container, SET_IOMMU, 3), outcome(d.container, SET_IOMMU, 2))
print(outcome(d.container, IOMMU_MAP_DMA, struct.pack("=IIQQQ", 32, 3, 0, 0, 4096)), outcome(d.fd, DEVICE_RESET))
print(outcome(d.group, GROUP_UNSET_CONTAINER), opened(group_of()))
d.close()
print(isinstance(opened(group_of()), int))
""")
    assert result.stdout.splitlines() == ["0 ok EINVAL", "ok ok", "EBUSY EBUSY", "True"]

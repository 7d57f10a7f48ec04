"""Errnos that depend on the caller's memory and descriptors, in the kernel's order of checks."""

from tests.ioctl.conftest import WITHOUT_DESCRIPTORS, client


def test_memory_that_cannot_be_read_or_written() -> None:
    result = client("""
create()
d = Device()
hole, readonly = Pages(0), Pages(mmap.PROT_READ)
print("null", outcome(d.group, GROUP_GET_STATUS, 0), outcome(d.fd, DEVICE_GET_INFO, 0))
# A struct that ends at the edge, and one that lacks its last byte.
for missing in (0, 1):
    address = hole.edge - 8 + missing
    hole.put(address, struct.pack("=II", 8, 0)[:8 - missing])
    print("edge", missing, outcome(d.group, GROUP_GET_STATUS, address))
# Behind the edge is memory that may be read only: the answer cannot be written.
address = readonly.edge - 8
readonly.put(address, struct.pack("=II", 16, 0))
print("readonly", outcome(d.fd, DEVICE_GET_INFO, address))
# EFAULT hides the errno of the transition.
readonly.put(address, struct.pack("=II", 16, SET | 2))
print("feature", outcome(d.fd, DEVICE_FEATURE, address), d.state())
hole.put(hole.edge - 4, b"none")
# A name that never ends, one that ends too late, and one that does not.
print("name", outcome(d.group, GROUP_GET_DEVICE_FD, hole.edge - 4),
      outcome(d.group, GROUP_GET_DEVICE_FD, b"x" * 5000 + bytes(1)),
      outcome(d.group, GROUP_GET_DEVICE_FD, U.upper().encode() + bytes(1)))
""")
    assert result.stdout.splitlines() == [
        "null EFAULT EFAULT",
        "edge 0 ok",
        "edge 1 EFAULT",
        "readonly EFAULT",
        "feature EFAULT 2",
        "name EFAULT EINVAL ENODEV",
    ]


def test_feature_checks_in_their_order() -> None:
    result = client("""
create()
d = Device()
def feature(argsz, flags, data=bytes(8)):
    return outcome(d.fd, DEVICE_FEATURE, struct.pack("=II", argsz, flags) + data)
print(feature(7, GET | 1), feature(8, GET | 1), feature(15, GET | 1), feature(16, GET | 1), feature(64, GET | 1))
print(feature(16, GET | 1 | 1 << 19), feature(16, GET | SET | 2), feature(8, GET | SET | PROBE | 2))
print(feature(8, PROBE | 6), feature(8, 7), feature(8, GET | 8), feature(16, GET | 0), feature(16, GET | 99))
print(feature(16, SET | 1), feature(8, PROBE | SET | 1), feature(8, PROBE | 1), feature(16, 1))
print(feature(8, PROBE | GET | 9))
""")
    assert result.stdout.splitlines() == [
        "EINVAL EINVAL EINVAL ok ok",
        "EINVAL EINVAL ok",
        "ENOTTY ENOTTY ENOTTY EINVAL EINVAL",
        "EINVAL EINVAL ok EINVAL",
        "ok",
    ]


def test_states_that_cannot_be_reached_leave_the_struct_and_the_state() -> None:
    result = client("""
create()
d = Device()
for state in (0, 5, 6, 7, 8, 2**32 - 1):
    buffer = ctypes.create_string_buffer(struct.pack("=IIIi", 16, SET | 2, state, 77), 16)
    result = outcome(d.fd, DEVICE_FEATURE, ctypes.addressof(buffer))
    print(state, result, *struct.unpack("=Ii", buffer.raw[8:]), d.state())
""")
    assert result.stdout.splitlines() == [f"{state} EINVAL {state} -1 2" for state in (0, 5, 6, 7, 8, 2**32 - 1)]


def test_a_secure_execution_host_refuses_every_state() -> None:
    result = client(
        """
d = Device(create() and U)
for state in (1, 2, 3, 99):
    print(outcome(d.fd, DEVICE_FEATURE, struct.pack("=IIIi", 16, SET | 2, state, 0)), d.state())
""",
        scenario="secure-execution",
    )
    assert result.stdout.splitlines() == ["EPERM 2"] * 4


def test_descriptors_in_arguments() -> None:
    result = client(
        """
group = os.open(create(), os.O_RDWR)
pipe, _ = os.pipe()
sysfs = os.open("/sys/bus/ap/apmask", os.O_RDONLY)
closed = 900
for fd in (closed, -1, pipe, sysfs, group):
    print(outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", fd)))
container = os.open("/dev/vfio/vfio", os.O_RDONLY)
for _ in range(2):
    print(outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", container)))
os.close(group); os.close(container)
d = Device()
for fd in (closed, pipe, sysfs, -2):
    print(outcome(d.fd, DEVICE_SET_IRQS, struct.pack("=5Ii", 24, 36, 0, 0, 1, fd)))
""",
        options=("--nodes", "exact"),
    )  # a container that is opened for reading only
    assert result.stdout.split() == [
        *("EBADF", "EBADF", "EBADFD", "EBADFD", "EBADFD"),
        *("ok", "EINVAL"),
        *("EBADF", "EINVAL", "EINVAL", "EINVAL"),
    ]


def test_descriptors_that_are_paths_only_are_not_open() -> None:
    result = client("""
group = os.open(create(), os.O_RDWR)
paths = [os.open(path, os.O_PATH) for path in ("/dev/vfio/vfio", "/dev/null")]
print(*(outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", path)) for path in paths))
print(*(outcome(path, GET_API_VERSION) for path in paths))
os.close(group)
d = Device()
print(*(outcome(d.fd, DEVICE_SET_IRQS, struct.pack("=5Ii", 24, 36, 0, 0, 1, path)) for path in paths))
""")
    assert result.stdout.splitlines() == ["EBADF EBADF"] * 3


def test_a_file_that_cannot_be_told_of_is_withdrawn_but_the_state_stands() -> None:
    """The descriptor is looked for first, so that without one it is EMFILE."""
    result = client(f"""{WITHOUT_DESCRIPTORS}
create(adapters=(5,), domains=(0x47,))
d = Device()
readonly = Pages(mmap.PROT_READ)
readonly.put(readonly.edge - 8, struct.pack("=IIIi", 16, SET | 2, STOP_COPY, 55))
numbers = os.listdir("/proc/self/fd")
print(outcome(d.fd, DEVICE_FEATURE, readonly.edge - 8), d.state(), numbers == os.listdir("/proc/self/fd"))
print(len(os.listdir("/dev/apfs/ctl/fds")), d.set_state(STOP_COPY), d.set_state(STOP))
print(without_descriptors(lambda: outcome(d.fd, DEVICE_FEATURE, readonly.edge - 8)), d.state())
""")
    assert result.stdout.splitlines() == ["EFAULT 3 True", "1 -1 -1", "EMFILE 3"]


def test_a_free_descriptor_is_looked_for_before_the_container_and_the_driver() -> None:
    result = client(f"""{WITHOUT_DESCRIPTORS}
group = os.open(create(), os.O_RDWR)
def device_fd(name=U):
    return outcome(group, GROUP_GET_DEVICE_FD, name.encode() + bytes(1))
print(device_fd(), without_descriptors(device_fd), without_descriptors(lambda: device_fd("other")))
c = os.open("/dev/vfio/vfio", os.O_RDWR)
print(outcome(group, GROUP_SET_CONTAINER, struct.pack("=i", c)), outcome(c, SET_IOMMU, 3))
write("/dev/apfs/ctl/console", "kvm none")
print(without_descriptors(device_fd), device_fd())
""")
    assert result.stdout.splitlines() == ["EINVAL EMFILE ENODEV", "ok ok", "EMFILE EINVAL"]


def test_ioctls_of_other_files_and_other_types_are_the_kernels() -> None:
    result = client("""
import fcntl, termios
pipe, other = os.pipe()
os.write(other, b"12345")
random = os.open("/dev/urandom", os.O_RDONLY)
print(outcome(pipe, GROUP_GET_STATUS, 0), outcome(-1, GROUP_GET_STATUS, 0), outcome(999, GET_API_VERSION, 0))
# Its driver has an errno of its own for what it does not know.
print(outcome(random, GROUP_GET_STATUS, 0), outcome(random, GET_API_VERSION, 0))
print(struct.unpack("=i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))))
mask = os.open("/sys/bus/ap/apmask", os.O_RDONLY)
container = os.open("/dev/vfio/vfio", os.O_RDWR)
print(outcome(mask, GET_API_VERSION, 0), outcome(container, termios.TCGETS, bytes(64)), outcome(container, 0x3BFF, 0))
""")
    assert result.stdout.splitlines() == [
        "ENOTTY EBADF EBADF",
        "EINVAL EINVAL",
        "(5,)",
        "ENOTTY ENOTTY EINVAL",
    ]


def test_which_vm_a_program_has() -> None:
    result = client("""
create(); create("11111111-1111-4111-8111-111111111111")
first = Device()
try:
    Device("11111111-1111-4111-8111-111111111111", container=first.container)
except OSError as error:
    print(errno.errorcode[error.errno])
write("/dev/apfs/ctl/console", "kvm none")
first.close()
try:
    Device()
except OSError as error:
    print(errno.errorcode[error.errno])
write("/dev/apfs/ctl/console", "kvm auto")
Device().close()
""")
    assert result.stdout.split() == ["EPERM", "EINVAL"]

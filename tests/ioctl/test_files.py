"""Device and migration files are ordinary descriptors: duplicated, inherited, passed on, polled, closed."""

import sys

from tests.conftest import sh
from tests.ioctl.conftest import HERE, PYTHON, WITHOUT_DESCRIPTORS, client

GUEST = "create(adapters=(5,), domains=(0x47,))\nd = Device()\n"


def test_a_migration_file_is_a_stream_of_its_own() -> None:
    result = client(f"""{GUEST}
import select, socket
data = d.set_state(STOP_COPY)
for attempt in (lambda: os.pread(data, 4, 0), lambda: os.lseek(data, 0, 0), lambda: os.write(data, b"x")):
    try:
        attempt()
    except OSError as error:
        print(errno.errorcode[error.errno])
poll = select.poll(); poll.register(data, select.POLLIN)
print(bool(poll.poll(0)[0][1] & select.POLLIN), os.get_inheritable(data), outcome(data, 0x3B79, bytes(64)))
copy = os.dup(data)
pieces = [os.read(data, 4), os.read(copy, 4)]
if os.fork() == 0:
    os.write(1, os.read(data, 8).hex().encode() + b"\\n")
    os._exit(0)
os.wait()
ours, theirs = socket.socketpair()
if os.fork() == 0:
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    os.write(1, os.read(fds[0], 100).hex().encode() + b"\\n")
    os._exit(0)
socket.send_fds(ours, [b"x"], [data])
os.wait()
print(b"".join(pieces).hex(), os.read(data, 1))
""")
    assert result.stdout.splitlines() == [
        *("ESPIPE", "ESPIPE", "EBADF"),
        "True False ENOTTY",
        "928000000e540307",
        "0547000000000000",
        "0000000100000000 b''",
    ]


def test_a_file_outlives_its_session_and_is_dead() -> None:
    result = client(f"""{GUEST}
def name(attempt):
    try:
        return attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
saving = d.set_state(STOP_COPY)
print(d.set_state(STOP), name(lambda: os.read(saving, 8)))
resuming = d.set_state(RESUMING)
print(name(lambda: os.read(resuming, 8)), name(lambda: os.write(resuming, bytes.fromhex("00000001"))))
print(d.set_state(STOP), name(lambda: os.write(resuming, b"x")))
saving = d.set_state(STOP_COPY)
print(d.set_state(STOP_COPY))
os.close(d.fd)
print(name(lambda: os.read(saving, 8)))
""")
    assert result.stdout.splitlines() == ["-1 ENODEV", "EBADF 4", "-1 EIO", "-1", "ENODEV"]


def test_a_device_is_closed_with_its_last_descriptor() -> None:
    result = client(f"""{GUEST}
client = f"/dev/vfio-ap/{{U}}/guest"
guest = lambda: open(client).read().strip()
second = d.another_fd()
d.set_state(STOP)
answer = call(second, DEVICE_FEATURE, struct.pack("=IIIi", 16, GET | 2, 0, 0))
print("shared state", struct.unpack("=IIIi", answer)[2])
copy = os.dup(d.fd)
os.close(d.fd)
os.close(second)
print(guest(), outcome(d.group, GROUP_UNSET_CONTAINER, 0))
os.close(copy)
print(guest(), outcome(d.group, GROUP_UNSET_CONTAINER, 0))
os.close(d.group)
print(Device().state(), os.listdir("/dev/apfs/ctl/fds") != [])
""")
    assert result.stdout.splitlines() == ["shared state 1", "1 EBUSY", "0 ok", "2 True"]


def test_too_many_open_files() -> None:
    result = client(f"""{WITHOUT_DESCRIPTORS}{GUEST}
buffer = ctypes.create_string_buffer(struct.pack("=IIIi", 16, SET | 2, STOP_COPY, 55), 16)
print(without_descriptors(lambda: outcome(d.fd, DEVICE_FEATURE, ctypes.addressof(buffer))))
print("unchanged", struct.unpack("=Ii", buffer.raw[8:]), "state", d.state())
print(without_descriptors(lambda: outcome(d.group, GROUP_GET_DEVICE_FD, U.encode() + bytes(1))))
d.close()
print(os.listdir("/dev/apfs/ctl/fds"), open(f"/dev/vfio-ap/{{U}}/guest").read().strip())
write(f"/sys/bus/mdev/devices/{{U}}/remove", "1")
""")
    assert result.stdout.splitlines() == ["EMFILE", "unchanged (3, 55) state 3", "EMFILE", "[] 0"]


def test_closing_many_files_is_done_before_the_next_open() -> None:
    """Where the kernel can be told so: of a dozen files that are closed at once it tells a server later otherwise."""
    script = f"""{GUEST}
path = group_of()
for _ in range(3):
    fds = [d.another_fd() for _ in range(200)]
    os.closerange(min(fds), max(fds) + 1)
    d.close()
    group = opened(path)
    print(isinstance(group, int), flush=True)
    os.close(group)
    d = Device()
"""
    # Most machines have this mounted; containers do not.
    control = "mount -t fusectl none /sys/fs/fuse/connections"
    command = f'{control} && PYTHONPATH={HERE} exec {sys.executable} -m apfs exec -- {PYTHON} -c "$1"'
    result = sh('exec unshare --mount bash -c "$@"', command, "test", f"from client import *\n{script}")
    assert result.stdout.split() == ["True"] * 3


def test_files_made_for_a_process_cannot_be_opened_again() -> None:
    result = client(f"""{GUEST}
for path in (f"/proc/self/fd/{{d.fd}}", *(f"/dev/apfs/ctl/fds/{{name}}" for name in os.listdir("/dev/apfs/ctl/fds"))):
    try:
        os.open(path, os.O_RDWR)
    except OSError as error:
        print(errno.errorcode[error.errno])
""")
    assert set(result.stdout.split()) <= {"ENXIO", "ENOENT"}
    assert "ENXIO" in result.stdout

"""Callers that die, multiply, get signals, or are somewhere else: nothing hangs, nothing leaks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox.seccomp import IOCTL_NUMBERS
from tests.conftest import TIMEOUT, UUID, apfs
from tests.ioctl.conftest import HERE, PYTHON, client
from tests.tools.conftest import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mounter = Callable[..., Path]

GUEST = "create(adapters=(5,), domains=(0x47,))\nd = Device()\n"


def on(mount: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a client on a mounted host and return it at once."""
    text = f"from client import *\nimport sys\n{script}"
    command = [sys.executable, "-m", "apfs", "exec", "--mount", str(mount), "--", PYTHON, "-c", text, *arguments]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_free(mount: Path) -> bool:
    """Whether nothing of a client is left, and the device can be opened and removed."""
    guest = mount / "dev/vfio-ap" / UUID / "guest"
    assert guest.read_text() == "0\n"
    assert list((mount / "ctl/fds").iterdir()) == []
    guest.write_text("1")
    guest.write_text("0")
    (mount / "sys/bus/mdev/devices" / UUID / "remove").write_text("1")
    return True


@pytest.mark.parametrize("state", ["RUNNING", "STOP", "STOP_COPY", "RESUMING"])
def test_a_client_is_killed_in_any_state(mount: Mounter, state: str) -> None:
    host = mount()
    with on(host, f"{GUEST}\nd.set_state({state}); print('there', flush=True); sys.stdin.read()") as box:
        assert box.stdout is not None
        assert box.stdout.readline() == "there\n"
        seen = json.loads((host / "ctl/status").read_text())["mdevs"][UUID]
        assert (seen["migration_state"], seen["opener"], seen["guest"]) == (state, "program", True)
        box.kill()
    # The sandbox and all in it die with apfs exec; the last file is closed when they are gone.
    apfs("exec", "--mount", str(host), "true")
    wait_for(lambda: (host / "dev/vfio-ap" / UUID / "guest").read_text() == "0\n")
    assert json.loads((host / "ctl/status").read_text())["mdevs"][UUID]["opener"] is None
    assert is_free(host)


@pytest.mark.parametrize("way", ["Device", "Cdev"])
def test_a_client_alone_is_killed_in_any_state(way: str) -> None:
    """Its supervisor lives on: what the client had is closed when its parent hears of its death, as on Linux."""
    result = client(f"""
import signal
create(adapters=(5,), domains=(0x47,))
for state in (RUNNING, STOP, STOP_COPY, RESUMING):
    ready, say = os.pipe()
    if (pid := os.fork()) == 0:
        d = {way}()
        data = d.set_state(state)
        if state == STOP_COPY:
            os.read(data, 8)
        if state == RESUMING:
            os.write(data, bytes(3))
        os.write(say, b"x")
        signal.pause()
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(open(f"/dev/vfio-ap/{{U}}/guest").read().strip(), os.listdir("/dev/apfs/ctl/fds"))
    d = {way}()
    print(d.state(), outcome(d.fd, DEVICE_RESET))
    d.close()
print(refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"))
""")
    assert result.stdout.splitlines() == ["0 []", "2 ok"] * 4 + ["ok"]


def test_a_client_is_killed_while_its_ioctl_is_being_served(mount: Mounter) -> None:
    """The server stands still, so that the ioctl is certainly under way; afterwards all goes on."""
    host = mount()
    script = f"""{GUEST}
pid = os.fork()
if pid == 0:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    d.set_state(STOP_COPY)
    d.another_fd()
    os._exit(0)
print("killed by", os.waitpid(pid, 0)[1], flush=True)
print(d.state(), flush=True)
d.set_state(STOP)
d.close()
"""
    server = server_of(host)
    with on(host, script) as box:
        assert box.stdin is not None
        assert box.stdout is not None
        number = int(box.stdout.readline())
        child = seen_from_outside(box.pid, number)
        os.kill(server, signal.SIGSTOP)
        try:
            box.stdin.write("\n")
            box.stdin.flush()
            # Stopped by the filter: the system call that it is in is ioctl(2).
            wait_for(lambda: in_ioctl(child))
            os.kill(child, signal.SIGKILL)
            assert box.stdout.readline() == "killed by 9\n"
        finally:
            os.kill(server, signal.SIGCONT)
        # The host had heard of it and did it: the state is that of the device, not of the caller.
        assert box.stdout.readline() in ("2\n", "3\n")
    assert is_free(host)


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from descendants(int(child))


def seen_from_outside(top: int, number: int) -> int:
    """Return the process that has a number in the sandbox that `top` has made."""
    for pid in descendants(top):
        numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert numbers is not None
        if len(numbers[1].split()) > 1 and int(numbers[1].split()[-1]) == number:
            return pid
    raise AssertionError(f"no process {number} below {top}")


def in_ioctl(pid: int) -> bool:
    """Whether a process waits in ioctl(2)."""
    number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return any(number == str(ioctl) for numbers in IOCTL_NUMBERS.values() for ioctl in numbers)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look until something is so. The run's time limit ends a wait in vain."""
    while not condition():
        os.sched_yield()


def test_clients_are_killed_in_the_middle_of_ioctls(mount: Mounter) -> None:
    host = mount()
    script = """
create()
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        while True:
            d = Device()
            d.set_state(STOP_COPY)
            d.close()
    read, write_end = os.pipe()
    # Long enough for it to be anywhere: as many calls of our own as the turn says.
    for _ in range(_ % 20):
        os.stat(group_of())
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(read); os.close(write_end)
d = Device()
print(d.state())
d.close()
"""
    with on(host, script) as box:
        output, _ = box.communicate(timeout=TIMEOUT)
    assert output == "2\n"
    assert is_free(host)


def test_many_threads_at_once() -> None:
    result = client(f"""{GUEST}
import threading
results = []
def work(number):
    mine = os.open("/dev/vfio/vfio", os.O_RDWR)
    for _ in range(10):
        answer = struct.unpack("=4I", call(d.fd, DEVICE_GET_INFO, struct.pack("=4I", 16 + number, 0, 0, 0)))
        results.append(answer == (16 + number, 0x21, 0, 2))
        results.append(ioctl(mine, CHECK_EXTENSION, number) == (number in (1, 3, 9)))
    another = d.another_fd()
    results.append(os.readlink(f"/proc/self/fd/{{another}}").rpartition("/")[2].startswith("vfio-device"))
    size = call(another, DEVICE_FEATURE, struct.pack("=IIQ", 16, GET | 9, number))
    results.append(struct.unpack("=IIQ", size)[2] == 24)
    os.close(another)
    os.close(mine)
threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results), all(results), len(os.listdir("/dev/apfs/ctl/fds")))
""")
    assert result.stdout == "1408 True 1\n"


def test_children_and_their_children() -> None:
    result = client(f"""{GUEST}
import subprocess
program = '''
from client import *
import sys
print(struct.unpack("=4I", call(int(sys.argv[1]), DEVICE_GET_INFO, struct.pack("=4I", 16, 0, 0, 0)))[1], flush=True)
'''
os.set_inheritable(d.fd, True)
subprocess.run(["sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", program, str(d.fd)], close_fds=False, check=True)
""")
    assert result.stdout == "33\n"


def test_a_thread_with_descriptors_of_its_own() -> None:
    result = client("""
import threading
create()
group = os.open(group_of(), os.O_RDWR)
CLONE_FILES = 0x400
def work():
    ctypes.CDLL(None).unshare(CLONE_FILES)
    # Here the number means another file from now on.
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    os.dup2(container, group)
    print(ioctl(group, CHECK_EXTENSION, 1))
thread = threading.Thread(target=work); thread.start(); thread.join()
print(struct.unpack("=II", call(group, GROUP_GET_STATUS, struct.pack("=II", 8, 0)))[1])
""")
    assert result.stdout.split() == ["1", "1"]


def test_signals_do_not_repeat_calls() -> None:
    """One that comes before the supervisor has heard of an ioctl interrupts it (EINTR); nothing was done then."""
    result = client(f"""{GUEST}
import signal
def another_fd():
    while True:
        try:
            return d.another_fd()
        except InterruptedError:
            assert not restart
caught = 0
def handler(*_):
    global caught
    caught += 1
signal.signal(signal.SIGALRM, handler)
for restart in (True, False):
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    fds = [another_fd() for _ in range(50)]
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(sorted(fds) == list(range(min(fds), min(fds) + 50)))
    for fd in fds: os.close(fd)
print(caught > 0, len(os.listdir("/dev/apfs/ctl/fds")))
""")
    assert result.stdout.split() == ["True", "True", "True", "1"]


def test_opening_and_closing_leaks_nothing(mount: Mounter) -> None:
    """10,000 descriptors of a device, and a hundred times everything that there is to open."""
    host = mount()
    script = """
create()
def everything():
    d = Device()
    os.close(d.eventfd(0))
    os.close(d.set_state(STOP_COPY))
    d.close()
    c = Cdev()
    os.close(c.set_state(RESUMING))
    c.close()
def cycles(whole, devices):
    for _ in range(whole):
        everything()
    d = Device()
    for _ in range(devices):
        os.close(d.another_fd())
    d.close()
cycles(5, 100)
print("ready", flush=True); sys.stdin.readline()
cycles(100, 10_000)
print("done", flush=True); sys.stdin.readline()
"""
    server = server_of(host)
    with on(host, script) as box:
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == "ready\n"
        before = descriptors(box.pid), descriptors(server), resident(box.pid), resident(server)
        box.stdin.write("\n")
        box.stdin.flush()
        assert box.stdout.readline() == "done\n"
        after = descriptors(box.pid), descriptors(server), resident(box.pid), resident(server)
        box.stdin.write("\n")
        box.stdin.flush()
    # The eventfd of the last cycle may be on its way out yet.
    assert after[0] - before[0] <= 1
    assert after[1] == before[1]
    assert after[2] - before[2] < 2 << 20
    # The journal keeps a record of each call, of about 150 bytes; nothing else is left of a cycle.
    records = json.loads((host / "ctl/journal").read_text().splitlines()[-1])["seq"]
    assert after[3] - before[3] < records * 200 + (2 << 20)
    assert is_free(host)


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def server_of(mount: Path) -> int:
    """Return the process that serves a mount."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"mount" in words and os.fsencode(mount) in words:
                return int(entry.name)
    raise AssertionError(f"nobody serves {mount}")


def test_the_server_is_killed_while_a_device_is_open(mount: Mounter) -> None:
    host = mount()
    script = f"""{GUEST}
print("there", flush=True); sys.stdin.readline()
print(outcome(d.fd, DEVICE_RESET), outcome(d.fd, DEVICE_GET_INFO, struct.pack("=4I", 16, 0, 0, 0)))
"""
    with on(host, script) as box:
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == "there\n"
        os.kill(server_of(host), signal.SIGKILL)
        box.stdin.write("\n")
        box.stdin.flush()
        assert set(box.stdout.readline().split()) <= {"ENODEV", "ENOTCONN"}


MIGRATE_OUT = """
d = Device(); d.set_state(STOP)
data = d.set_state(STOP_COPY)
out = int(sys.argv[1])
while piece := os.read(data, 7):
    os.write(out, piece)
os.close(out)
d.set_state(STOP)
"""
MIGRATE_IN = """
d = Cdev()
data = d.set_state(RESUMING)
incoming, result = int(sys.argv[1]), "ok"
while piece := os.read(incoming, 11):
    try:
        os.write(data, piece)
    except OSError as error:
        result = errno.errorcode[error.errno]
        break
if result == "ok":
    d.set_state(RUNNING)
print(result, d.state(), flush=True)
"""


@pytest.mark.parametrize(("target", "expected"), [("CEX8C", "ok 2"), ("CEX7C", "EFAULT 4")])
def test_two_hosts_migrate_through_a_pipe(mount: Mounter, target: str, expected: str) -> None:
    source, destination = mount(), mount()
    if target != "CEX8C":
        for verb in ("unplug 5", "scan", f"plug 5 {target}", "scan"):
            (destination / "ctl/console").write_text(verb)
    for host in (source, destination):
        prepare = "create(adapters=(5,), domains=(4, 0x47))"
        with on(host, prepare) as box:
            assert box.wait(TIMEOUT) == 0
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    os.set_inheritable(writer, True)
    env = {**os.environ, "PYTHONPATH": str(HERE)}

    def start(host: Path, script: str, fd: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "apfs", "exec", "--mount", str(host), "--", PYTHON, "-c"]
        return subprocess.Popen(
            [*command, f"from client import *\nimport sys\n{script}", str(fd)],
            env=env,
            pass_fds=(fd,),
            stdout=subprocess.PIPE,
            text=True,
        )

    with start(source, MIGRATE_OUT, writer) as sender, start(destination, MIGRATE_IN, reader) as receiver:
        os.close(reader)
        os.close(writer)
        output, _ = receiver.communicate(timeout=TIMEOUT)
        sender.communicate(timeout=TIMEOUT)
    assert output.strip() == expected
    if target != "CEX8C":
        assert "05.0004" in (destination / "ctl/kmsg").read_text()


GIVE = """
create(adapters=(5,), domains=(0x47,))
d = Device()
data = d.set_state(STOP_COPY)
import socket
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print("there", flush=True)
for _ in range(2):
    taker, _ = listening.accept()
    socket.send_fds(taker, [b"x"], [d.fd, data])
    taker.recv(1)
"""
TAKE = """
import socket
giver = socket.socket(socket.AF_UNIX)
giver.connect(sys.argv[1])
_, (device, data), _, _ = socket.recv_fds(giver, 1, 2)
print(outcome(device, DEVICE_GET_INFO, struct.pack("=4I", 16, 0, 0, 0)), os.read(data, 12).hex(), flush=True)
giver.send(b"x")
"""


def test_descriptors_are_passed_to_another_sandbox_and_out_of_all(mount: Mounter, tmp_path: Path) -> None:
    """Reading needs nobody's help; ioctls are served where some supervisor is, and the kernel's where none is."""
    host, meeting = mount(), str(tmp_path / "socket")
    with on(host, GIVE, meeting) as giver:
        assert giver.stdout is not None
        assert giver.stdout.readline() == "there\n"
        with on(host, TAKE, meeting) as taker:
            assert taker.communicate(timeout=TIMEOUT)[0] == "ok 000000010000000092800000\n"
        command = [PYTHON, "-c", f"from client import *\nimport sys\n{TAKE}", meeting]
        outside = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(HERE)}, check=True, capture_output=True, text=True
        )
    assert outside.stdout == "ENOTTY 0e5403070547000000000000\n"
    assert is_free(host)


def test_a_sandbox_in_a_sandbox() -> None:
    result = inside(
        f"""
        export PYTHONPATH={HERE}
        apfs="{sys.executable} -m apfs"
        $apfs exec --mount /dev/apfs -- {PYTHON} -c 'from client import *; create(); print(Device().state())'
        $apfs exec --scenario default -- {PYTHON} -c 'from client import *; print(outcome(
            os.open("/dev/vfio/vfio", os.O_RDWR), GET_API_VERSION))' 2>&1
        """,
        scenario="default",
    )
    state, warning, outcome = result.stdout.splitlines()
    assert state == "2"
    assert warning.startswith("apfs: VFIO ioctls are not served: another program, such as an outer apfs exec")
    assert outcome == "ENOTTY"

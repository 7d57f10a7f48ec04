"""Callers that die, multiply, get signals, or are somewhere else: nothing hangs, nothing leaks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox.seccomp import IOCTL_NUMBERS
from tests.conftest import TIMEOUT, UUID, apfs, server_of
from tests.mounted.counted import LINUX
from tests.sandbox.conftest import ENV, EXEC, PYTHON, ROOT, exec_as_nobody, run, words_of
from tests.sandbox.programs import processes
from tests.tools.conftest import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mounter = Callable[..., Path]

STATES = {"RUNNING": 2, "STOP": 1, "STOP_COPY": 3, "RESUMING": 4}


def on(mount: Path, program: Callable[..., None], *arguments: str, keep: int | None = None) -> subprocess.Popen[str]:
    """Start a program on a mounted host and return it at once; `keep` is a descriptor that it inherits."""
    command = [*EXEC, "--mount", str(mount), "--", *words_of(program, *arguments)]
    kept = () if keep is None else (keep,)
    return subprocess.Popen(command, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=kept)


def is_free(mount: Path) -> bool:
    """Whether nothing of a client is left, and the device can be opened and removed."""
    guest = mount / "dev/vfio-ap" / UUID / "guest"
    assert guest.read_text() == "0\n"
    assert list((mount / "ctl/fds").iterdir()) == []
    guest.write_text("1")
    guest.write_text("0")
    (mount / "sys/bus/mdev/devices" / UUID / "remove").write_text("1")
    return True


@pytest.mark.parametrize("state", STATES)
def test_a_client_is_killed_in_any_state(mount: Mounter, state: str) -> None:
    host = mount()
    with on(host, processes.in_a_state, str(STATES[state])) as box:
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
    result = run(processes.killed_in_any_state, way)
    assert result.stdout.splitlines() == ["0 []", "2 ok"] * 4 + ["ok"]


def test_a_client_is_killed_while_its_ioctl_is_being_served(mount: Mounter) -> None:
    """The server is stopped, so that the ioctl is certainly under way; afterwards everything goes on."""
    host = mount()
    server = server_of(host)
    with on(host, processes.child_in_an_ioctl) as box:
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


@pytest.mark.parametrize("shared", [True, False])
def test_the_supervisor_is_killed_while_it_serves_an_ioctl(
    mount: Mounter, tmp_path: Path, *, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in the sandbox end. A host that others use goes on with them; one of its own goes, and leaves nothing."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setitem(ENV, "TMPDIR", str(place))
    words = words_of(processes.child_in_an_ioctl)
    host = mount() if shared else None
    options = ["--mount", str(host)] if host else ["--scenario", "default"]
    with (
        subprocess.Popen(
            [*EXEC, *options, "--", *words], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as box,
        on(host, processes.another_user) if host else contextlib.nullcontext() as other,
    ):
        assert box.stdin is not None
        assert box.stdout is not None
        number = int(box.stdout.readline())
        child = seen_from_outside(box.pid, number)
        if other:
            assert other.stdout is not None
            assert other.stdout.readline() == "0\n"
        server = server_of(host or next(place.iterdir()) / "host")
        ended = [os.pidfd_open(pid) for pid in descendants(box.pid) if pid != server or not host]
        os.kill(server, signal.SIGSTOP)
        try:
            box.stdin.write(b"\n")
            box.stdin.flush()
            wait_for(lambda: in_ioctl(child))
            box.kill()
        finally:
            os.kill(server, signal.SIGCONT)
        assert box.wait(TIMEOUT) == -signal.SIGKILL
        for pidfd in ended:
            assert select.select([pidfd], [], [], TIMEOUT)[0]
            os.close(pidfd)
        if other:
            assert other.communicate("\n", TIMEOUT)[0] == "0 1\n"
    if host:
        wait_for(lambda: (host / "dev/vfio-ap" / UUID / "guest").read_text() == "0\n")
        assert is_free(host)
    assert str(place) not in Path("/proc/self/mounts").read_text()
    assert list(place.iterdir()) == []


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
    """Look until something is true. The run's time limit ends a wait that never would."""
    while not condition():
        os.sched_yield()


def test_clients_are_killed_in_the_middle_of_ioctls(mount: Mounter) -> None:
    host = mount()
    with on(host, processes.killed_anywhere) as box:
        output, _ = box.communicate(timeout=TIMEOUT)
    assert output == "2\n"
    assert is_free(host)


def test_many_threads_at_once() -> None:
    result = run(processes.threads)
    assert result.stdout == "1408 True 1\n"


def test_children_and_their_children() -> None:
    result = run(processes.grandchild)
    assert result.stdout == "33\n"


def test_a_thread_with_descriptors_of_its_own() -> None:
    if LINUX < (6, 9):
        pytest.skip("before Linux 6.9, descriptors can be had of processes only, and not of threads")
    result = run(processes.descriptors_of_its_own)
    assert result.stdout.split() == ["1", "1"]


def test_signals_do_not_repeat_calls() -> None:
    """One that comes before the supervisor knows of an ioctl interrupts it (EINTR); nothing was done then."""
    result = run(processes.signals)
    assert result.stdout.split() == ["True", "True", "True", "1"]


def test_opening_and_closing_leaks_nothing(mount: Mounter) -> None:
    """10,000 descriptors of a device, and a hundred times everything that there is to open."""
    host = mount()
    server = server_of(host)
    with on(host, processes.cycles) as box:
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
    # The journal keeps a record of each call and all its input, of about 370 bytes; nothing else is left of a cycle.
    records = json.loads((host / "ctl/journal").read_text().splitlines()[-1])["seq"]
    assert after[3] - before[3] < records * 420 + (2 << 20)
    assert is_free(host)


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_server_is_killed_while_a_device_is_open(mount: Mounter) -> None:
    host = mount()
    with on(host, processes.without_server) as box:
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == "there\n"
        os.kill(server_of(host), signal.SIGKILL)
        box.stdin.write("\n")
        box.stdin.flush()
        assert set(box.stdout.readline().split()) <= {"ENODEV", "ENOTCONN"}


@pytest.mark.parametrize(("target", "expected"), [("CEX8C", "ok 2"), ("CEX7C", "EFAULT 4")])
def test_two_hosts_migrate_through_a_pipe(mount: Mounter, target: str, expected: str) -> None:
    source, destination = mount(), mount()
    if target != "CEX8C":
        for verb in ("unplug 5", "scan", f"plug 5 {target}", "scan"):
            (destination / "ctl/console").write_text(verb)
    for host in (source, destination):
        with on(host, processes.two_queues) as box:
            assert box.wait(TIMEOUT) == 0
    reader, writer = os.pipe()
    with (
        on(source, processes.migrate_out, str(writer), keep=writer) as sender,
        on(destination, processes.migrate_in, str(reader), keep=reader) as receiver,
    ):
        os.close(reader)
        os.close(writer)
        output, _ = receiver.communicate(timeout=TIMEOUT)
        sender.communicate(timeout=TIMEOUT)
    assert output.strip() == expected
    if target != "CEX8C":
        assert "05.0004" in (destination / "ctl/kmsg").read_text()


def test_descriptors_are_passed_to_another_sandbox_and_out_of_all(mount: Mounter, tmp_path: Path) -> None:
    """Reading needs nobody's help; ioctls are served where some supervisor is, and the kernel's where none is."""
    host, meeting = mount(), str(tmp_path / "socket")
    with on(host, processes.give, meeting) as giver:
        assert giver.stdout is not None
        assert giver.stdout.readline() == "there\n"
        with on(host, processes.take, meeting) as taker:
            assert taker.communicate(timeout=TIMEOUT)[0] == "ok 000000010000000092800000\n"
        command = words_of(processes.take, meeting)
        outside = subprocess.run(command, env=ENV, check=True, capture_output=True, text=True)
    assert outside.stdout == "ENOTTY 0e5403070547000000000000\n"
    assert is_free(host)


def test_a_sandbox_in_a_sandbox() -> None:
    device, container = (shlex.join(words_of(program)) for program in (processes.a_device, processes.a_container))
    apfs_exec = shlex.join(EXEC)
    result = inside(
        f"""
        export PYTHONPATH={ROOT}
        {apfs_exec} --mount /dev/apfs -- {device}
        {apfs_exec} --scenario default -- {container} 2>&1
        """,
        scenario="default",
    )
    state, warning, outcome = result.stdout.splitlines()
    assert state == "2"
    assert warning.startswith("apfs: VFIO ioctls are not served: another program, such as an outer apfs exec")
    assert outcome == "ENOTTY"


def test_a_sandbox_in_a_sandbox_of_an_ordinary_user(tmp_path: Path) -> None:
    """The inner host's files may not even be asked by others what they are."""
    script = """
import errno, fcntl
try:
    print(fcntl.ioctl(open("/sys/bus/ap/apmask"), 0x3b64))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    assert exec_as_nobody(tmp_path, *EXEC, "--scenario", "default", "--", PYTHON, "-c", script) == "ENOTTY\n"

"""Commands that are forked: they get what a new process would get, and end with the program that started them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs import Host, MountedHost, Shell, load
from tests.conftest import TIMEOUT
from tests.testing.conftest import wait_readable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def host() -> Iterator[MountedHost]:
    with MountedHost() as host:
        yield host


def test_a_command_gets_what_a_new_process_would_get(
    host: MountedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEW", "here")
    monkeypatch.delenv("HOME")
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        said = host.sh('echo "$NEW$OTHER ${HOME-none}"; pwd; umask; echo trouble >&2; exit 3')
    finally:
        os.umask(before)
    assert said.stdout == f"here none\n{tmp_path}\n0027\n"
    assert (said.stderr, said.returncode) == ("trouble\n", 3)
    assert host.exec("pwd", cwd="/").stdout == "/\n"
    assert host.exec("sh", "-c", "echo $OTHER", env={"OTHER": "$x \\ \u00e4"}).stdout == "$x \\ \u00e4\n"
    with pytest.raises(FileNotFoundError):
        host.exec("pwd", cwd="/nosuch")


def test_a_command_has_no_descriptors_but_the_standard_streams(host: MountedHost) -> None:
    """Neither those of the program, nor of the server, nor of other commands and hosts that run."""
    program = "import os; print(*sorted(int(name) for name in os.listdir('/proc/self/fd')))"
    with MountedHost():
        assert (
            host.exec("/usr/bin/python3", "-c", program).stdout == "0 1 2 3\n"
        )  # the last one is the directory itself


def test_streams_of_any_length_and_several_at_once(host: MountedHost) -> None:
    text = "0123456789abcde\n" * 20_000
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(host.exec, "tee", "/dev/stderr", stdin=f"{number}\n{text}") for number in range(4)]
    for number, future in enumerate(running):
        said = future.result()
        assert said.stdout == said.stderr == f"{number}\n{text}"


def test_a_program_with_more_files_than_select_knows(host: MountedHost) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    null = os.open(os.devnull, os.O_RDONLY)
    files = [null, *(os.dup(null) for _ in range(1100))]
    try:
        assert host.exec("echo", "done").stdout == "done\n"
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nobody_reads_what_is_said(host: MountedHost) -> None:
    assert host.exec("true", stdin="x" * 1_000_000).returncode == 0


def test_a_command_that_takes_too_long_is_killed(host: MountedHost, tmp_path: Path) -> None:
    """With all that it has started: they hold the pipe open."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(subprocess.TimeoutExpired, match="sleep"):
        host.exec("sh", "-c", f"exec > {fifo}; sleep 1000 & sleep 1000", timeout=3)
    wait_readable(reader)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_hosts_that_were_booted_early_are_all_new() -> None:
    """Nothing of what happens on one reaches another, although they are copies of one that was booted only once."""
    with MountedHost() as changed:
        changed.echo("-0-255", "/sys/bus/ap/apmask")
        changed.console("plug 40 CEX7P", "scan")
        with MountedHost() as host:
            new = Shell(Host(load("default")))
            assert host.status() == new.status() != changed.status()
            assert host.recording() == new.recording()
            for shell in (host, new):
                shell.console("plug 41 CEX8A", "scan")
            assert host.status() == new.status()
            assert host.recording() == new.recording()


def test_a_host_that_is_killed(host: MountedHost) -> None:
    with MountedHost() as other:
        before = other.alive
        pidfd = os.pidfd_open(other.pid)
        os.kill(other.pid, signal.SIGKILL)
        wait_readable(pidfd)
        os.close(pidfd)
        assert (before, other.alive, host.alive) == (True, False, True)


ENDED = "the process that starts hosts and commands has ended"

# Prints process ids: the server that forks, a host; then does what it is told.
PROGRAM = """
import os, subprocess, sys
from apfs import Host, MountedHost, Shell, load
from apfs.mounts import forks

def server():
    return forks._servers[-1]._process.pid

def main():
    with MountedHost() as host:
        print(server(), host.pid, host.path, flush=True)
        exec(sys.argv[1])
main()
"""


def start(program: str) -> tuple[subprocess.Popen[str], list[int], str]:
    """Start a program with a host; return it, a pidfd each of server and host, and the mount."""
    words = [sys.executable, "-c", PROGRAM, program]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    server, host, place = process.stdout.readline().split()
    return process, [os.pidfd_open(int(server)), os.pidfd_open(int(host))], place


def all_ended(pidfds: list[int], place: str) -> None:
    for pidfd in pidfds:
        wait_readable(pidfd)
        os.close(pidfd)
    assert f" {place} " not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("number", [0, signal.SIGKILL, signal.SIGTERM])
def test_everything_ends_with_the_program(number: int) -> None:
    program, pidfds, place = start("input()")
    with program:
        if number:
            program.send_signal(number)
            program.wait(TIMEOUT)
        else:
            program.communicate("\n", TIMEOUT)
        assert program.returncode == -number
    all_ended(pidfds, place)


def test_a_process_forked_from_the_program_has_a_server_of_its_own() -> None:
    """It may end before the program does, and the other way round."""
    said = """
pid = os.fork()
if not pid:
    with MountedHost() as other:
        print(server(), other.sh("cat /sys/bus/ap/bindings").stdout, end="", flush=True)
    forks._end_all()
    os._exit(0)
os.waitpid(pid, 0)
print(server(), host.sh("cat /sys/bus/ap/bindings").stdout, end="", flush=True)
"""
    program, pidfds, place = start(said)
    with program:
        output, _ = program.communicate("", TIMEOUT)
    (other, *first), (own, *second) = (line.split() for line in output.splitlines())
    assert first == second == ["12/12", "(complete)"]
    assert other != own
    all_ended(pidfds, place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
def test_a_program_that_becomes_another_user_has_another_server() -> None:
    program, pidfds, place = start(
        "print(host.sh('echo $EUID').stdout, end=''); os.setresuid(-1, 65534, 0); print(host.sh('true').returncode); "
        "os.setresuid(0, 0, 0); print(host.sh('echo $EUID').stdout, end='')"
    )
    with program:
        output, _ = program.communicate("", TIMEOUT)
    assert output == "0\n125\n0\n"  # root's mount is no place for others
    all_ended(pidfds, place)


def test_a_server_that_is_killed_is_replaced() -> None:
    """Its hosts live on, and end with the program."""
    program, pidfds, place = start(
        "sys.stdin.read(); os.kill(server(), 9); forks._servers[-1]._process.wait(); "
        "print(host.sh('echo again').stdout, host.alive)"
    )
    with program:
        output, _ = program.communicate("", TIMEOUT)
    assert output == "again\n True\n"
    all_ended(pidfds, place)


def test_a_server_is_killed_while_a_command_runs(tmp_path: Path) -> None:
    """The command ends with it, and nobody knows how; that is said. The next one works."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    said = f"""
import threading
def kill():
    open({str(fifo)!r}).read(1)
    os.kill(server(), 9)
killer = threading.Thread(target=kill)
killer.start()
try:
    print(host.sh('echo > "$1"; exec sleep 1000', {str(fifo)!r}))
except Exception as error:
    print(type(error).__name__, error)
killer.join()
print(host.sh('echo again').stdout, host.alive)
"""
    program, pidfds, place = start(said)
    with program:
        output, _ = program.communicate("", TIMEOUT)
    assert output == f"MountsError {ENDED}\nagain\n True\n"
    all_ended(pidfds, place)


def test_a_server_that_cannot_start_is_told_of(tmp_path: Path) -> None:
    program = "import os; os.environ['PYTHONPATH'] = sys.argv[2]; from apfs.mounts import forks; forks.Command(['-h'])"
    (tmp_path / "apfs").mkdir()
    (tmp_path / "apfs/__init__.py").write_text("")
    words = [sys.executable, "-c", f"import sys; {program}", "", str(tmp_path)]
    said = subprocess.run(words, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert said.stderr.endswith(f"MountsError: {ENDED}\n")

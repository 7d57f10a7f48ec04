"""Commands that an agent runs whole: nothing can tell them from those that a shell has started itself."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox.signals import children
from tests.cli.sessions import APFS, Session, run
from tests.conftest import TIMEOUT, apfs
from tests.testing.conftest import wait_readable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHOW = r"""
import json, os, re
fds = "/proc/self/fd"
def read(name):
    with open(f"/proc/self/{name}", errors="surrogateescape") as file:
        return file.read()
unlike = ("Name", "Pid", "PPid", "Tgid", "Ngid", "NS", "SigQ", "Vm", "Hugetlb", "Rss", "voluntary", "nonvol")
def kind(descriptor):
    return re.sub(r"\d+", "N", os.readlink(f"{fds}/{descriptor}"))
print(json.dumps({
    "status": [line for line in read("status").splitlines() if not line.startswith(unlike)],
    "files": {name: read(name) for name in ("limits", "cgroup", "oom_score_adj", "personality", "coredump_filter")},
    "environment": {name: value for name, value in os.environ.items() if name != "APFS_AGENT"},
    "directory": os.getcwd(),
    "descriptors": {name: kind(name) for name in os.listdir(fds) if os.path.lexists(f"{fds}/{name}")},
    "session": [os.getsid(0), os.getpgrp(), read("stat").rpartition(")")[2].split()[4]],
    "priority": [os.nice(0), os.sched_getscheduler(0)],
}))
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.end()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A host for all commands here, with which they start faster."""
    place = str(tmp_path_factory.mktemp("host"))
    apfs("mount", place)
    yield place
    apfs("umount", place)


class Held:
    """A command that waits for a line."""

    def __init__(self, session: Session, host: str, prelude: str = "", told: str | None = None) -> None:
        held = 'echo started; read -r line; echo "got $line"; exit 7'
        words = ["sh", "-c", f'{prelude} exec $RUN "$@"', "sh", *APFS, "exec", "--mount", host, "--", "sh", "-c", held]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "APFS_AGENT": session.told if told is None else told},
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "started\n"

    @property
    def is_relayed(self) -> bool:
        """Whether the process that was started has nothing below it."""
        return not children(self.process.pid)

    def read_to_the_end(self) -> str:
        """Return all that is still said, up to the end of the last process that can say something."""
        assert self.process.stdout
        return self.process.stdout.read()

    def end(self) -> tuple[str, str, int]:
        """Let it end, and return what it said, and its exit status."""
        try:
            said, errors = self.process.communicate("line\n", timeout=TIMEOUT)
        except BrokenPipeError:
            said, errors = self.process.communicate(timeout=TIMEOUT)
        return said, errors, self.process.returncode


def test_the_agent_runs_it(session: Session, host: str) -> None:
    held = Held(session, host)
    assert held.is_relayed
    assert held.end() == ("got line\n", "", 7)
    plain = Held(session, host, told="")
    assert not plain.is_relayed
    assert plain.end() == ("got line\n", "", 7)


@pytest.mark.parametrize(
    "prelude",
    [
        "",
        "umask 027; cd /usr/share;",
        "trap '' HUP TERM USR1;",
        "trap '' INT QUIT;",
        "exec 7</etc/passwd 9>/dev/null;",
        "exec 3</etc/passwd 4<&3 5<&3;",
        "exec </dev/null;",
        "export A='a b\nc' B='' C=$(printf '\\377');",
        "unset HOME USER; export PATH=/usr/bin:/bin;",
        "exec 2>&1;",
    ],
)
def test_it_sees_no_difference(session: Session, host: str, prelude: str) -> None:
    def seen(told: str) -> tuple[str, str, int]:
        command = [*APFS, "exec", "--mount", host, "--", "/usr/bin/python3", "-c", SHOW]
        said = run("sh", "-c", f'{prelude} exec "$@"', "sh", *command, env={**os.environ, "APFS_AGENT": told})
        return said.stdout, said.stderr, said.returncode

    held = Held(session, host, prelude if "exec <" not in prelude else "")
    assert held.is_relayed
    held.end()
    assert seen(session.told) == seen("")


def test_signals_that_are_blocked_stay_so(session: Session, host: str) -> None:
    program = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.execvp(sys.argv[1], sys.argv[1:])
"""
    words = [sys.executable, "-c", program, *APFS, "exec", "--mount", host, "--", "grep", "SigBlk", "/proc/self/status"]
    relayed, plain = (run(*words, env={**os.environ, "APFS_AGENT": told}) for told in (session.told, ""))
    assert relayed.stdout == plain.stdout
    assert int(relayed.stdout.split()[1], 16) >> signal.SIGUSR2 - 1 & 1


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "--mount", "HOST", "--", "sh", "-c", "exit 7"],
        ["exec", "--mount", "HOST", "--", "sh", "-c", "kill -9 $$"],
        ["exec", "--mount", "HOST", "--", "sh", "-c", "kill -TERM $$"],
        ["exec", "--mount", "HOST", "--", "sh", "-c", "echo out; echo error >&2"],
        ["exec", "--mount", "HOST", "--", "no-such-program"],
        ["exec", "--mount", "HOST", "--", "/etc"],
        ["exec", "--mount", "/no/such/place", "--", "true"],
        ["exec", "--mount", "relative", "--", "true"],
        ["exec", "--no-such-option"],
        ["exec", "--help"],
        ["exec"],
        ["mount"],
        ["mount", "--help"],
        ["mount", "/no/such/place"],
        ["mount", "HOST"],
        ["umount"],
        ["umount", "/no/such/place"],
        ["umount", "."],
    ],
)
def test_statuses_and_messages_are_the_same(session: Session, host: str, words: list[str], tmp_path: Path) -> None:
    words = [host if word == "HOST" else word for word in words]
    relayed, plain = (run(*APFS, *words, cwd=tmp_path, env={**os.environ, "APFS_AGENT": told})
                      for told in (session.told, ""))  # fmt: skip
    assert (relayed.stdout, relayed.stderr, relayed.returncode) == (plain.stdout, plain.stderr, plain.returncode)


def test_a_host_is_mounted_used_and_unmounted(session: Session, tmp_path: Path) -> None:
    place = tmp_path / "z"
    place.mkdir()
    assert session.run(*APFS, "mount", place).returncode == 0
    said = session.run(*APFS, "exec", "--mount", place, "--", "cat", "/sys/bus/ap/scans")
    assert (said.stdout, said.stderr, said.returncode) == ("1\n", "", 0)
    said = session.run(*APFS, "umount", place)
    assert (said.stdout, said.stderr, said.returncode) == ("", "", 0)
    assert not (place / "sys").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL, signal.SIGALRM])
def test_a_signal_ends_all(session: Session, host: str, number: signal.Signals) -> None:
    """With the same status as without an agent, and nothing of the command stays."""
    ended = []
    for told in (session.told, ""):
        held = Held(session, host, told=told)
        assert held.is_relayed == bool(told)
        held.process.send_signal(number)
        ended.append((held.read_to_the_end(), *held.end()[1:]))
    assert ended[0] == ended[1]
    assert ended[0][2] in (128 + number, -number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_signals_of_terminals_are_for_the_command(session: Session, host: str, number: signal.Signals) -> None:
    """Whoever sends them to `apfs exec` alone has no effect, as without an agent."""
    for told in (session.told, ""):
        held = Held(session, host, told=told)
        held.process.send_signal(number)
        assert held.end() == ("got line\n", "", 7)


PROMPT = "what now? "


@pytest.mark.parametrize("name", ["HUP", "TERM"])
def test_signals_that_are_ignored_end_nothing(session: Session, host: str, name: str) -> None:
    """As nohup(1) has it."""
    for told in (session.told, ""):
        held = Held(session, host, f"trap '' {name};", told=told)
        held.process.send_signal(signal.Signals[f"SIG{name}"])
        assert held.end() == ("got line\n", "", 7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_for_the_group_reaches_it_twice(session: Session, tmp_path: Path, number: signal.Signals) -> None:
    """From its sender and from its client; nothing stays all the same."""
    for _ in range(4):
        with subprocess.Popen(
            [*APFS, "exec", "--", "sh", "-c", "echo started; exec sleep 1000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            env={**os.environ, "APFS_AGENT": session.told, "TMPDIR": str(tmp_path)},
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "started\n"
            assert not children(process.pid)
            os.killpg(process.pid, number)
            said = process.communicate(timeout=TIMEOUT)
        assert (*said, process.returncode) == ("", "", 128 + number)
        assert list(tmp_path.iterdir()) == []


class Terminal:
    """An interactive bash in a terminal and session of its own, in which there is an agent."""

    def __init__(self) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            words = [*APFS, "agent", "--", "bash", "--norc", "--noprofile", "--noediting", "-i"]
            os.execve(APFS[0], words, {**os.environ, "PS1": PROMPT})  # noqa: S606 -- a shell is what is wanted

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, text: str) -> str:
        seen = ""
        while text not in seen:
            assert select.select([self._master], [], [], TIMEOUT)[0], seen
            seen += os.read(self._master, 1000).decode()
        return seen

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._master)

    def end(self) -> None:
        self.type("exit 0\n")
        _, status = os.waitpid(self.pid, 0)
        os.close(self._master)
        assert status == 0


def test_job_control(host: str, tmp_path: Path) -> None:
    """Ctrl-Z, fg, the end of the input, and Ctrl-C in an interactive shell."""
    script = tmp_path / "run"
    script.write_text(f"#!/bin/sh\nexec {' '.join(APFS)} exec --mount {host} -- sh -c 'echo started; exec cat'\n")
    script.chmod(0o755)
    terminal = Terminal()
    terminal.read_until(PROMPT)
    terminal.type(f"{script}\n")
    terminal.read_until("started\r\n")
    terminal.type("\x1a")
    assert "Stopped" in terminal.read_until(PROMPT)
    terminal.type("cat /proc/$(jobs -p)/task/*/children; echo $((6 * 7)) children\n")
    assert "42 children" in terminal.read_until(PROMPT).splitlines()
    terminal.type("fg\n")
    terminal.read_until(f"{script}\r\n")
    terminal.type("word\n")
    terminal.read_until("word\r\nword\r\n")
    terminal.type("\x04")
    terminal.read_until(PROMPT)
    terminal.type("echo status $?\n")
    assert "status 0" in terminal.read_until(PROMPT).splitlines()
    terminal.type(f"{script}\n")
    terminal.read_until("started\r\n")
    terminal.type("\x03")
    terminal.read_until(PROMPT)
    terminal.type("echo status $?\n")
    assert "status 130" in terminal.read_until(PROMPT).splitlines()
    terminal.end()


def test_the_shell_is_killed_while_a_command_is_stopped(host: str) -> None:
    """Linux ends stopped jobs that nobody could continue any more."""
    terminal = Terminal()
    terminal.read_until(PROMPT)
    terminal.type(f"{' '.join(APFS)} exec --mount {host} -- sh -c 'echo $((6 * 7)) started; exec cat'\n")
    terminal.read_until("42 started\r\n")
    terminal.type("\x1a")
    terminal.read_until(PROMPT)
    terminal.type("echo pid $(jobs -p) .\n")
    (pid,) = re.findall(r"pid (\d+) \.", terminal.read_until(PROMPT))
    assert not children(int(pid))
    command = os.pidfd_open(int(pid))
    terminal.kill()
    wait_readable(command)
    os.close(command)


@pytest.mark.parametrize(
    "prelude",
    [
        "RUN='setsid -w';",
        "export LC_ALL=C.UTF-8 LANGUAGE=de;",
        "export PYTHONDONTWRITEBYTECODE=1$$;",
        "export LD_LIBRARY_PATH=/no/such/place;",
        "exec 2>&-;",
        "ulimit -n 200;",
        "RUN='chrt --batch 0';",
        "RUN='setarch --addr-no-randomize';",
        "RUN='setpriv --no-new-privs';",
        "RUN='nice -n 3';",
    ],
)
def test_who_differs_does_without(session: Session, host: str, prelude: str) -> None:
    if os.geteuid() and "no-new-privs" in prelude:
        pytest.skip("for root: users could not enter a mount then")
    held = Held(session, host, prelude)
    assert not held.is_relayed
    assert held.end() == ("got line\n", "", 7)


def test_with_too_many_descriptors_it_does_without(session: Session, host: str) -> None:
    program = """
import os, sys
for number in range(3, 263):
    os.dup2(0, number)
os.execvp(sys.argv[1], sys.argv[1:])
"""
    words = [
        sys.executable,
        "-c",
        program,
        *APFS,
        "exec",
        "--mount",
        host,
        "--",
        "sh",
        "-c",
        "ls /proc/self/fd | wc -l",
    ]
    relayed, plain = (run(*words, env={**os.environ, "APFS_AGENT": told}) for told in (session.told, ""))
    assert (relayed.stdout, relayed.stderr) == (plain.stdout, plain.stderr)
    assert int(relayed.stdout) > 260


def test_it_may_have_all_numbers_that_there_are(session: Session, host: str) -> None:
    program = """
import os, resource, sys
most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
os.dup2(0, most - 1)
os.dup2(0, 5)
os.execvp(sys.argv[1], sys.argv[1:])
"""
    words = [sys.executable, "-c", program, *APFS, "exec", "--mount", host, "--", "ls", "/proc/self/fd"]
    relayed, plain = (run(*words, env={**os.environ, "APFS_AGENT": told}) for told in (session.told, ""))
    assert (relayed.stdout, relayed.stderr, relayed.returncode) == (plain.stdout, plain.stderr, plain.returncode)
    assert len(plain.stdout.split()) == 6


def test_with_a_number_that_is_over_the_limit_it_does_without(host: str) -> None:
    """It was opened before the limit was set."""
    program = """
import os, resource, sys
os.dup2(0, 100)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.execvp(sys.argv[1], sys.argv[1:])
"""
    session = Session("ulimit -n 64;")
    words = [sys.executable, "-c", program, *APFS, "exec", "--mount", host, "--", "echo", "done"]
    relayed, plain = (run(*words, env={**os.environ, "APFS_AGENT": told}) for told in (session.told, ""))
    assert (relayed.stdout, relayed.stderr, relayed.returncode) == (plain.stdout, plain.stderr, plain.returncode)
    assert plain.stdout == "done\n"
    session.end()


def test_with_a_variable_without_a_name_it_does_without(session: Session, host: str) -> None:
    program = """
import ctypes, os, sys
def array(items):
    return (ctypes.c_char_p * (len(items) + 1))(*items, None)
words = list(map(os.fsencode, sys.argv[1:]))
environment = [b"=value", *(name + b"=" + value for name, value in os.environb.items())]
ctypes.CDLL(None).execve(words[0], array(words), array(environment))
"""
    words = [sys.executable, "-c", program, *APFS, "exec", "--mount", host, "--", "echo", "done"]
    relayed, plain = (run(*words, env={**os.environ, "APFS_AGENT": told}) for told in (session.told, ""))
    assert (relayed.stdout, relayed.stderr, relayed.returncode) == (plain.stdout, plain.stderr, plain.returncode)
    assert plain.stdout == "done\n"


def test_more_commands_than_the_agent_can_run(host: str) -> None:
    """It has no descriptor left. Further ones do without, and nothing happens to the others."""
    limit = "ulimit -n 28;"
    session = Session(limit)
    held = [Held(session, host, limit) for _ in range(8)]
    assert {one.is_relayed for one in held} == {True, False}
    for one in held:
        assert one.end() == ("got line\n", "", 7)
    last = Held(session, host, limit)
    assert last.is_relayed
    assert last.end() == ("got line\n", "", 7)
    session.end()


def test_the_agent_is_killed_while_a_command_runs(host: str) -> None:
    session = Session()
    held = Held(session, host)
    os.kill(session.pid, signal.SIGKILL)
    assert held.read_to_the_end() == ""
    _, errors, status = held.end()
    assert errors == "apfs: the agent was killed, and with it this command\n"
    assert status == 125
    session.end()


def test_the_agent_waits_for_commands_in_the_background(host: str) -> None:
    """The command of `apfs agent` has ended; what it has left behind goes on."""
    script = 'exec 3<&0; "$@" <&3 & read -r line; exit 3'
    held = 'echo started; read -r line; echo "got $line"'
    words = [*APFS, "agent", "--", "sh", "-c", script, "sh", *APFS, "exec", "--mount", host, "--", "sh", "-c", held]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        # Both read from one pipe. As long as the command in the background is stopped, the line is for the other.
        process.stdin.close()
        assert process.wait(TIMEOUT) == 3
        assert process.stdout.read() == "got \n"


def test_many_at_once(session: Session, host: str) -> None:
    def one(number: int) -> tuple[str, int]:
        said = session.run(*APFS, "exec", "--mount", host, "--", "sh", "-c", f"echo {number}; exit {number}")
        return said.stdout + said.stderr, said.returncode

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(24))) == [(f"{number}\n", number) for number in range(24)]

"""`apfs agent`: a host that is forked is that of a new process. Where it could not be, there is a new process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.sessions import APFS, Session, run, stat_of, was_forked
from tests.conftest import TIMEOUT, let_in, server_of
from tests.testing.conftest import wait_readable

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.end()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory in which everything that is mounted is unmounted in the end."""
    yield tmp_path
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{tmp_path}/"):
            run(*APFS, "umount", "--lazy", line.split()[1])


def of_process(pid: int) -> dict[str, object]:
    """Return what a server has that it could have inherited, or that a request brings."""
    directory = Path(f"/proc/{pid}")
    status = (directory / "status").read_text().splitlines()
    wanted = ("Umask", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "Cpus")
    environment = dict(entry.partition("=")[::2] for entry in environ_of(pid).split("\0"))
    return {
        "status": [line for line in status if line.startswith(wanted)],
        "files": {name: (directory / name).read_bytes() for name in ("limits", "cgroup", "oom_score_adj")},
        "namespaces": {entry.name: os.readlink(entry) for entry in (directory / "ns").iterdir()},  # noqa: PTH115
        "descriptors": sorted(
            re.sub(r"\d+", "N", os.readlink(entry))  # noqa: PTH115
            for entry in (directory / "fd").iterdir()
        ),
        "cwd": os.readlink(directory / "cwd"),  # noqa: PTH115
        "leads its session": stat_of(pid)[2] == stat_of(pid)[3] == str(pid),
        "terminal": stat_of(pid)[4],
        "path": environment.get("PATH"),
    }


def environ_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace")


def test_a_forked_server_is_as_a_new_one(session: Session, place: Path) -> None:
    new = place / "new"
    new.mkdir()
    assert run(*APFS, "mount", new).returncode == 0
    forked = session.mounted(place / "forked")
    assert (was_forked(server_of(new)), was_forked(forked)) == (False, True)
    assert of_process(forked) == of_process(server_of(new))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--scenario", "largest", "--set", "name=host 7", "--set", "serial=0007", "--clock", "manual"],
        ["--no-allow-other", "--no-fast-loop"],
        ["--allow-other", "--fuse-option", "fsname=other", "--fuse-option", "ro"],
    ],
)
def test_options_reach_the_host(session: Session, place: Path, options: list[str]) -> None:
    if os.geteuid() and "--allow-other" in options:
        pytest.skip("users may do so only if fuse.conf has user_allow_other")
    new = place / "new"
    new.mkdir()
    assert run(*APFS, "mount", *options, new).returncode == 0
    assert was_forked(session.mounted(place / "forked", *options))

    def shown(mountpoint: Path) -> tuple[list[str], object]:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        (line,) = (line.split() for line in table if line.split()[4] == str(mountpoint))
        status = run(*APFS, "status", "--json", mountpoint).stdout
        return [*line[5:6], *line[8:]], re.sub(r'"uptime[^,]*,', "", status)

    assert shown(place / "forked") == shown(new)


def test_relative_names_are_those_of_the_caller(session: Session, place: Path) -> None:
    (place / "z").mkdir()
    (place / "my.toml").write_text('name = "mine"\n')
    said = session.run(*APFS, "mount", "--scenario", "./my.toml", "z", cwd=place)
    assert said.stderr == ""
    assert was_forked(server_of(place / "z"))
    assert "mine" in (place / "z/ctl/status").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["no/such/place"],
        ["z", "--scenario", "nosuch"],
        ["z", "--scenario", "./nosuch.toml"],
        ["z", "--scenario", "./wrong.toml"],
        ["z", "--set", "adapters=7"],
        ["z", "--set", "adapters"],
        ["file"],
        ["z", "--clock", "wrong"],
    ],
)
def test_errors_are_the_same(session: Session, place: Path, words: list[str]) -> None:
    (place / "z").mkdir()
    (place / "file").write_text("")
    (place / "wrong.toml").write_text("nosuch = 1\nother = 2\n[[adapters]]\nid = 999\n")
    alone, forked = (call(*APFS, "mount", *words, cwd=place) for call in (run, session.run))
    assert (forked.stdout, forked.stderr, forked.returncode) == (alone.stdout, alone.stderr, alone.returncode)
    assert alone.returncode == 2
    assert alone.stderr != ""


def test_a_command_of_exec_sees_nothing_of_the_agent(session: Session, tmp_path: Path) -> None:
    """It has no descriptors of it, and mounts by itself: forks of the agent would mount where it cannot see it."""
    program = "import os; print(*sorted(map(int, os.listdir('/proc/self/fd'))))"
    said = session.run(*APFS, "exec", "--", "/usr/bin/python3", "-c", program)
    assert (said.stdout, said.stderr) == ("0 1 2 3\n", "")
    script = 'place=$1; shift; "$@" mount "$place" && cat "$place/sys/bus/ap/scans"'
    for net in ("private", "host"):
        said = session.run(*APFS, "exec", "--net", net, "--", "sh", "-c", script, "sh", tmp_path, *APFS)
        assert (said.stdout, said.stderr) == ("1\n", "")


def test_the_host_of_exec_is_a_fork_of_the_agent(session: Session, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*APFS, "exec", "--", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "APFS_AGENT": session.told, "TMPDIR": str(tmp_path)},
    ) as box:
        assert box.stdout
        assert box.stdout.readline() == b"\n"
        (made,) = tmp_path.glob("apfs-exec-*/host")
        server = server_of(made)
        assert was_forked(server)
        pidfd = os.pidfd_open(server)
        box.kill()
    wait_readable(pidfd)
    os.close(pidfd)
    assert str(made) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize(
    "change",
    [
        "ulimit -n 200",
        'exec setpriv --no-new-privs "$@"',
        'exec nice -n 5 "$@"',
        'exec unshare --mount --propagation unchanged "$@"',
        'exec setpriv --bounding-set -sys_time "$@"',
        "APFS_AGENT=apfs-agent-nobody:${APFS_AGENT#*:}",
        "APFS_AGENT=${APFS_AGENT%:*}:/elsewhere/apfs",
        "APFS_AGENT=wrong",
        "APFS_AGENT=",
    ],
)
def test_who_differs_does_without(session: Session, place: Path, change: str) -> None:
    if os.geteuid() and any(word in change for word in ("unshare", "bounding", "no-new-privs")):
        pytest.skip("for root: users could not mount then, or not even change this")
    mountpoint = place / "z"
    mountpoint.mkdir()
    said = session.run("sh", "-c", f'{change}; "$@"', "sh", *APFS, "mount", mountpoint)
    assert (said.stderr, said.returncode) == ("", 0)
    server = server_of(mountpoint)
    assert not was_forked(server)
    with open(os.pidfd_open(server), "rb") as ended:  # noqa: PTH123 -- a descriptor
        os.kill(server, signal.SIGTERM)  # another mount namespace is out of reach of the fixture
        wait_readable(ended.fileno())


def test_other_users_do_without(session: Session, place: Path) -> None:
    """Who asks the agent all the same is not heard."""
    if os.geteuid():
        pytest.skip("only root can be another user")
    let_in(place)
    program = """
import socket, sys
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control.connect(chr(0) + sys.argv[1].partition(":")[0])
ours, theirs = socket.socketpair()
try:
    socket.send_fds(control, (b"c",), (theirs.fileno(),))
    print(control.recv(1))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
theirs.close()
print(ours.recv(4))
"""
    others = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    said = run(*others, "/usr/bin/python3", "-c", program, session.told)
    assert (said.stdout, said.stderr) == ("b''\nb''\n", "")
    mountpoint = place / "z"
    mountpoint.mkdir()
    os.chown(mountpoint, NOBODY, NOBODY)
    script = """
        mknod -m 0666 "$1/fuse" c 10 229; mount --bind "$1/fuse" /dev/fuse; cd /
        shift; exec "$@"
    """
    words: list[str | Path] = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        place,
        *others,
        *APFS,
        "exec",
        "--",
        "echo",
        "done",
    ]
    said = session.run(*words)
    assert (said.stdout, said.stderr) == ("done\n", "")


def test_an_agent_of_another_user_is_not_asked(session: Session, place: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can be another user")
    program = """
import socket
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(chr(0) + "apfs-agent-of-another-user")
listener.listen()
print("listens", flush=True)
print(listener.accept()[0].recv(1))
"""
    others = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    with subprocess.Popen([*others, "/usr/bin/python3", "-c", program], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout
        assert agent.stdout.readline() == "listens\n"
        mountpoint = place / "z"
        mountpoint.mkdir()
        told = f"apfs-agent-of-another-user:{session.told.partition(':')[2]}"
        said = run(*APFS, "mount", mountpoint, env={**os.environ, "APFS_AGENT": told})
        assert (said.stderr, said.returncode) == ("", 0)
        assert agent.communicate(timeout=TIMEOUT)[0] == "b''\n"


def test_hosts_outlive_the_agent(place: Path) -> None:
    session = Session()
    server = session.mounted(place / "z")
    session.end()
    assert (place / "z/sys/bus/ap/scans").read_text() == "1\n"
    assert server_of(place / "z") == server
    # Nobody is there any more: commands do without.
    assert not was_forked(session.mounted(place / "y"))


def test_the_agent_is_killed(place: Path) -> None:
    session = Session()
    session.mounted(place / "z")
    os.kill(session.pid, signal.SIGKILL)
    wait_readable(session.agent)
    assert (place / "z/sys/bus/ap/scans").read_text() == "1\n"
    assert not was_forked(session.mounted(place / "y"))
    session.end()


def test_many_at_once(session: Session, place: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        servers = set(threads.map(lambda number: session.mounted(place / f"z{number}"), range(16)))
    assert len(servers) == 16
    assert all(map(was_forked, servers))


def test_ctrl_c_while_the_agent_is_slow(session: Session, place: Path) -> None:
    """A host that it may fork later does not stay."""
    mountpoint = place / "z"
    mountpoint.mkdir()
    os.kill(session.pid, signal.SIGSTOP)
    try:
        with subprocess.Popen(
            [*APFS, "mount", str(mountpoint)],
            env={**os.environ, "APFS_AGENT": session.told},
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            while not waits_for_message(command.pid):
                assert command.poll() is None
                os.sched_yield()
            command.send_signal(signal.SIGINT)
            os.kill(session.pid, signal.SIGCONT)
            assert (command.communicate(timeout=TIMEOUT)[1], command.returncode) == ("", 130)
    finally:
        os.kill(session.pid, signal.SIGCONT)
    assert str(mountpoint) not in Path("/proc/self/mounts").read_text()


def waits_for_message(pid: int) -> bool:
    """Whether a process waits in recvfrom(2), under any of its numbers."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in {"45", "207", "371"}  # x86-64, aarch64, s390x
    return False


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("exit 7", 7, ""),
        ("kill -9 $$", -9, ""),
        ("kill -PIPE $$", -13, ""),
        ("exec /no/such/program", 127, None),
        ("ulimit -n; umask", 0, None),
    ],
)
def test_the_command_is_as_without_an_agent(command: str, status: int, said: str | None) -> None:
    plain = run("sh", "-c", command)
    with_agent = run(*APFS, "agent", "--", "sh", "-c", command)
    assert with_agent.returncode == plain.returncode == status
    assert (with_agent.stdout, with_agent.stderr) == (plain.stdout, plain.stderr)
    assert said is None or with_agent.stderr == said


def test_the_command_inherits_nothing_else() -> None:
    """No children, no descriptors, no signals that are ignored, and no variable but one."""
    program = """
import os, signal
try:
    os.wait()
except ChildProcessError as error:
    print("no children")
print(*sorted(map(int, os.listdir("/proc/self/fd"))))
print(*(line for line in open("/proc/self/status") if line.startswith("SigBlk")), end="")
"""
    script = 'grep -E "^Sig(Ign|Blk)" /proc/self/status; exec /usr/bin/python3 -c "$1"'
    with_agent = run(*APFS, "agent", "--", "sh", "-c", script, "sh", program)
    assert with_agent.stdout == run("sh", "-c", script, "sh", program).stdout
    before = {name: value for name, value in os.environ.items() if name != "APFS_AGENT"}
    shown = run(*APFS, "agent", "--", "env", "-0", env=before).stdout.rstrip("\0").split("\0")
    after = dict(line.partition("=")[::2] for line in shown)
    assert after.pop("APFS_AGENT").endswith(f":{sys.executable}:{Path(__file__).parents[2] / 'apfs'}")
    assert after == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["/no/such/program"], 127, "apfs: /no/such/program: command not found\n"),
        (["no-such-program"], 127, "apfs: no-such-program: command not found\n"),
        (["/etc/passwd"], 126, "apfs: /etc/passwd: Permission denied\n"),
        (["/etc"], 126, "apfs: /etc: Permission denied\n"),
    ],
)
def test_a_command_that_cannot_be_run(words: list[str], status: int, message: str) -> None:
    # Without directories that may not be searched, which would be another reason.
    said = run(*APFS, "agent", "--", *words, env={**os.environ, "PATH": "/usr/bin:/bin"})
    assert (said.stdout, said.stderr, said.returncode) == ("", message, status)


def test_without_a_command() -> None:
    said = run(*APFS, "agent")
    assert said.returncode == 2
    assert "Missing argument 'COMMAND...'" in said.stderr

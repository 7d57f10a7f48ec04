"""A process of apfs is killed, or gets Ctrl-C, at any system call: nothing stays, and what is said makes sense.

The places are counted, not timed. Here some of each kind are tried.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.mounts import places
from tests.conftest import TIMEOUT, apfs, server_of, sh
from tests.faults.points import (
    APFS,
    COMMAND,
    NONE,
    Commands,
    Fault,
    below,
    line_of,
    mounts_in,
    outcome_of,
    spread,
    started,
)

if TYPE_CHECKING:
    from tests.faults.points import Outcome

EXEC = (*APFS, "exec", "--", "true")
AGENT = (*APFS, "agent", "--")
FORKS, FORKED = "1.1", "1.1.2"
"""The agent of `apfs agent`, and the first command that it forks. Before that, an import runs ldconfig."""
FOR_EVER = (*APFS, "exec", "--", "sleep", "1000")
SERVER = "1"
OTHERS = ("2", "3")
A_FEW = 20
"""By more calls than this a command's number does not vary from run to run."""
AT_THE_END = 110
"""More calls than the command makes after the one that it runs has started."""
SINCE_BWRAP, SINCE_THE_START = 36, 23
"""How many calls that change something are left when bwrap has started, and when the command is about to."""
A_FEW_CHANGES = 3
READ, READ_AGAIN = 14, 5
"""How many calls that change something a server that is only mounted and unmounted has left when files are read."""


def sweep() -> None:
    """What the next command does first, and what it does at the end."""
    mountpoint, lock = places.make("apfs-exec-")
    places.remove(mountpoint)
    os.close(lock)


def nothing_stays(commands: Commands) -> None:
    """Neither a mount, nor, after the next command, a directory."""
    assert not mounts_in(commands.tmp)
    sweep()
    assert list(commands.tmp.iterdir()) == []


def check_exec(
    commands: Commands, fault: Fault, words: tuple[str, ...] = EXEC, statuses: tuple[int, ...] = (0, 125)
) -> Outcome:
    outcome = commands.run(fault, *words)
    if fault.child == COMMAND and fault.met(outcome):
        assert outcome.status == 128 + fault.number
    else:
        assert outcome.status in statuses, outcome
        if outcome.status == 125:
            assert outcome.said.splitlines()[-1].startswith("apfs: ")
    return outcome


def test_exec_is_killed(commands: Commands) -> None:
    whole = commands.run(NONE, *EXEC)
    assert whole.status == 0
    for call in spread(whole.first_mkdir, whole.calls, 4):
        check_exec(commands, Fault(call))
    nothing_stays(commands)


def test_a_command_does_not_run_if_exec_is_killed_before_it_starts_it(commands: Commands) -> None:
    """It would do so on a machine without the host, and for ever."""
    whole = commands.run(NONE, *EXEC)
    for call in spread(whole.changes - SINCE_BWRAP, whole.changes - SINCE_THE_START - A_FEW_CHANGES, 3):
        fault = Fault(call, changing=True)
        assert fault.met(check_exec(commands, fault, FOR_EVER))
    nothing_stays(commands)


def test_the_server_of_exec_is_killed(commands: Commands) -> None:
    whole = check_exec(commands, Fault(-1, SERVER))
    for call in spread(whole.calls * 2 // 3, whole.calls, 4):
        check_exec(commands, Fault(call, SERVER))
        assert list(commands.tmp.iterdir()) == []
    nothing_stays(commands)


GONE = """
from apfs.cli.main import main
from apfs.mounts import table
from apfs.sandbox import supervisor
supervise = supervisor.supervise
def gone(channel, mount, nodes):
    table.unmount(str(mount), lazy=True)
    return supervise(channel, mount, nodes)
supervisor.supervise = gone
main()
"""


def test_the_host_is_gone_when_bwrap_has_started(commands: Commands) -> None:
    """There is one reason, not what cannot be done without a host."""
    outcome = commands.run(NONE, *APFS[:2], "-c", GONE, "exec", "true")
    assert outcome.status == 125
    assert outcome.said.startswith(f"apfs: {commands.tmp}/apfs-exec-")
    assert outcome.said.endswith("was unmounted, or its server has ended (Transport endpoint is not connected)\n")
    assert outcome.said.count("\n") == 1
    assert list(commands.tmp.iterdir()) == []


def test_the_server_is_killed_while_a_command_runs(tmp_path: Path) -> None:
    """The command gets errors from then on, and its user is told why."""
    script = "echo; while read -r _ < /sys/bus/ap/scans; do :; done 2> /dev/null; read -r _; exit 5"
    with subprocess.Popen(
        [*APFS, "exec", "bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        line_of(process)
        (place,) = tmp_path.iterdir()
        os.kill(server_of(place / "host"), signal.SIGKILL)
        assert process.stderr
        said = process.stderr.readline()  # a command that ends at once is not waited for to say so
        _, rest = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 5
    assert said + rest == (
        f"apfs: {place}/host was unmounted, or its server has ended (Transport endpoint is not connected)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_other_processes_of_exec_are_killed(commands: Commands) -> None:
    for child in OTHERS:
        whole = check_exec(commands, Fault(-1, child))
        if whole.calls:
            check_exec(commands, Fault(whole.calls * 4 // 5, child))
            assert list(commands.tmp.iterdir()) == []
    nothing_stays(commands)


BWRAP = """#!/bin/bash
while [ "$1" != --json-status-fd ]; do shift; done
{}
kill -KILL $$
"""


@pytest.mark.parametrize(
    "report",
    [
        """eval "printf '{\\"child-pid\\": 12' >&$2" """,
        """(kill -STOP $BASHPID) & eval "printf '{\\"child-pid\\": $!' >&$2" """,
        """(kill -STOP $BASHPID) & eval "printf '{\\"child-pid\\": $!}\\n' >&$2" """,
    ],
    ids=["a half report", "a half report, and a child", "a whole report, and a child"],
)
def test_bwrap_is_killed_while_it_reports(tmp_path: Path, report: str) -> None:
    """It writes in pieces, and its child waits for it in the meantime, with all descriptors open."""
    (tmp_path / "bwrap").write_text(BWRAP.format(report))
    (tmp_path / "bwrap").chmod(0o755)
    said = sh('PATH="$2:$PATH" "$1" -m apfs exec true', sys.executable, str(tmp_path), status=125).stderr
    assert said == "apfs: bwrap was killed by signal 9\n"


def test_interrupted_exec(commands: Commands) -> None:
    """No Ctrl-C is lost: the command would not end by itself."""
    whole = commands.run(NONE, *EXEC)
    for call in spread(started(commands), whole.calls - AT_THE_END, 5):
        outcome = commands.run(Fault(call, number=signal.SIGINT, group=True), *FOR_EVER)
        assert (outcome.status, outcome.said) == (130, "")
        assert list(commands.tmp.iterdir()) == []
    nothing_stays(commands)


def test_mount_is_killed(commands: Commands, tmp_path: Path) -> None:
    """The next one works, wherever it was."""
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()
    whole = commands.mount(NONE, mountpoint)
    assert whole.status == 0
    for call in spread(started(commands), whole.calls - A_FEW, 3):
        assert commands.mount(Fault(call), mountpoint).status == 137
    server = commands.mount(Fault(-1, SERVER), mountpoint)
    for call in spread(server.calls // 3, server.calls * 9 // 10, 3):  # while it starts
        assert commands.mount(Fault(call, SERVER), mountpoint).status in (0, 1)


def test_the_server_is_killed_while_a_command_reads(commands: Commands, tmp_path: Path) -> None:
    """Reading fails, and so does closing the file."""
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()

    def attempt(fault: Fault, *, look: bool = True) -> Outcome:
        with commands.start(fault, *APFS, "mount", str(mountpoint)) as process:
            try:
                printed = line_of(process)
                done = apfs("status", str(mountpoint), status=None) if look else None
            finally:
                apfs("umount", str(mountpoint), status=None)
            rest, said = process.communicate(timeout=TIMEOUT)
        if done and done.returncode:
            assert done.returncode in (1, 2)
            assert done.stderr.startswith("apfs: ")
            assert done.stderr.count("\n") == 1, done
        return outcome_of(printed + rest, said)

    last = attempt(Fault(-1, SERVER, changing=True), look=False).changes
    for call in spread(last - READ, last - READ_AGAIN, 4):
        attempt(Fault(call, SERVER, changing=True))


def test_interrupted_mount(commands: Commands, tmp_path: Path) -> None:
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()
    whole = commands.mount(NONE, mountpoint)
    for call in spread(started(commands), whole.calls, 3):
        outcome = commands.mount(Fault(call, number=signal.SIGINT, group=True), mountpoint)
        assert outcome.status in (0, 130)
        assert outcome.said == ""
    last = commands.mount(Fault(-1, number=signal.SIGINT, changing=True), mountpoint).changes
    late = Fault(last - 1, number=signal.SIGINT, group=True, changing=True)  # it is mounted, and the interpreter ends
    assert commands.mount(late, mountpoint).status == 0


@pytest.mark.parametrize("child", [COMMAND, FORKS, FORKED, f"{FORKED}.{SERVER}"])
def test_an_agent_is_killed(commands: Commands, tmp_path: Path, child: str) -> None:
    """Or `apfs mount`, or the command that the agent forks for it, or the server of that: the next mount works."""
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()
    whole = commands.mount(Fault(-1, child, changing=True), mountpoint, *AGENT)
    assert whole.status == 0
    for call in spread(whole.changes // 2, whole.changes * 7 // 10, 3):
        fault = Fault(call, child, changing=True)
        assert fault.met(commands.mount(fault, mountpoint, *AGENT))


FORKING = """
import sys
from apfs.mounts.table import MountsError
from apfs.mounts import forks
try:
    print(forks.run(["exec", "--die-with-parent", *sys.argv[1:]], stdin="").returncode)
except MountsError as error:
    print(error)
"""
TELLING = 6
"""How many calls that change something the process that forks has left when it is about to tell what it has forked."""


def test_who_forks_is_killed_before_it_tells_of_a_command(commands: Commands) -> None:
    """The command ends, although nobody knows of it."""
    words = (*APFS[:2], "-c", FORKING)
    whole = [commands.run(Fault(-1, "1"), *words, "true") for _ in range(5)]
    assert {outcome.printed for outcome in whole} == {"0\n"}
    # One in ten makes some calls more, at its end, and a call that a command without an end never makes is no fault.
    last = min(outcome.changes for outcome in whole)
    killed = commands.run(Fault(last - TELLING, "1", changing=True), *words, "sleep", "1000")
    assert killed.printed == "the process that starts hosts and commands has ended\n"
    nothing_stays(commands)


def test_all_are_killed_at_once(commands: Commands) -> None:
    """Then nobody is left to clean up but the next command."""
    with subprocess.Popen(
        [*APFS, "exec", "--", "sh", "-c", "echo; exec sleep 1000"],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(commands.tmp), "PATH": os.environ["PATH"]},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        (place,) = commands.tmp.iterdir()
        family = list(dict.fromkeys([*below(process.pid), *_with(str(place))]))
        watched = [os.pidfd_open(pid) for pid in family]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)  # so that none notices what happens to others
        for pid in family:
            with suppress(ProcessLookupError):  # it ends with one that was killed before it
                os.kill(pid, signal.SIGKILL)
        assert process.wait(TIMEOUT) == -signal.SIGKILL
        for pidfd in watched:
            os.close(pidfd)
    assert place.exists()
    sweep()
    assert not mounts_in(commands.tmp)
    assert list(commands.tmp.iterdir()) == []


def _with(word: str) -> list[int]:
    """Processes that have a word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


LATE = """
import subprocess, sys
from apfs.mounts import places
mountpoint, _ = places.make("apfs-exec-")
def mount(event, arguments):
    if event == "os.rmdir" and arguments[0] == str(mountpoint) and not mounted:
        mounted.append(True)
        subprocess.run([sys.executable, "-P", "-m", "apfs", "mount", mountpoint], check=True)
mounted = []
sys.addaudithook(mount)
places.remove(mountpoint)
print(mounted)
"""


def test_a_place_goes_that_is_mounted_when_it_is_removed(commands: Commands) -> None:
    """As the helper of a server does that was killed before it could mount."""
    assert sh('TMPDIR="$2" "$1" -P -c "$3"', sys.executable, str(commands.tmp), LATE).stdout == "[True]\n"
    assert not mounts_in(commands.tmp)
    assert list(commands.tmp.iterdir()) == []


def test_no_file_is_made_to_find_a_place(tmp_path: Path) -> None:
    """It would stay if the process was killed just then."""
    before = tmp_path.stat().st_mtime_ns
    script = 'TMPDIR="$2" "$1" -P -c "from apfs.mounts import places; print(places.parent())"'
    assert sh(script, sys.executable, str(tmp_path)).stdout == f"{tmp_path}\n"
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("mine", [True, False])
def test_places_of_others_stay(commands: Commands, *, mine: bool) -> None:
    """Of those who live, and of other users."""
    if not mine and os.geteuid():
        pytest.skip("only root can give a directory away")
    mountpoint, lock = places.make("apfs-exec-")
    if not mine:
        os.chown(mountpoint.parent, 65534, 65534)
        os.close(lock)
    sweep()
    assert list(commands.tmp.iterdir()) == [mountpoint.parent]
    places.remove(mountpoint)

"""`apfs migrate`, one of its ends, or a server is killed at some system call: afterwards the guest runs on one host."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.mounts import guard
from apfs.mounts.migration import Source, Target, recover
from tests.conftest import TIMEOUT, UUID, apfs
from tests.faults.points import (
    APFS,
    COMMAND,
    NONE,
    Commands,
    Fault,
    Outcome,
    line_of,
    mounts_in,
    outcome_of,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORK, END = 62, 10
"""How many of its last calls `apfs migrate` begins to work at, and at which it has ended, about."""
REMOTE_WORK = 75
SERVERS_WORK = 180
SERVER = RECEIVER = GUARD = "1"
SCENARIOS = ("migration-source", "migration-target")

Hosts = list[Path]
"""Where the guest is, and where it is not."""


def client(host: Path) -> Path:
    return host / "dev/vfio-ap" / UUID


def state(host: Path) -> str:
    """Return the state of the device, empty if nobody has it open."""
    mdev = json.loads((host / "ctl/status").read_text())["mdevs"][UUID]
    return str(mdev["migration_state"]) if mdev["opener"] else ""


@pytest.fixture
def hosts(mount: Callable[..., Path]) -> Hosts:
    source, target = mount("migration-source"), mount("migration-target")
    (client(target) / "guest").write_text("0")
    return [source, target]


def migrate(source: Path, target: Path) -> tuple[str, ...]:
    return (*APFS, "migrate", str(source), str(target), UUID)


def migrate_remotely(source: Path, target: Path) -> tuple[str, ...]:
    receive = (*APFS, "migrate", "--receive", str(target), UUID)
    return (*APFS, "migrate", "--send", str(source), UUID, "--", *receive)


def settle(hosts: Hosts, said: str) -> None:
    """Make sure that the guest runs on one host, or that it is said that nobody can know; put that one first."""
    states = [state(host) for host in hosts]
    if states[0].startswith("STOP"):
        assert "the guest may run on the target, and is stopped on the source" in said
        assert states[1] in ("", "RUNNING")
        name, text = ("guest", "0") if states[1] else ("migration_state", "RUNNING")
        (client(hosts[0]) / name).write_text(text)
        states = [state(host) for host in hosts]
    assert sorted(states) == ["", "RUNNING"], said
    hosts.sort(key=state, reverse=True)


def test_migrate_is_killed(commands: Commands, hosts: Hosts) -> None:
    whole = commands.run(NONE, *migrate(*hosts))
    assert whole.status == 0
    hosts.reverse()
    for call in spread(whole.calls - WORK, whole.calls - END, 7):
        outcome = commands.run(Fault(call), *migrate(*hosts))
        assert (outcome.status, outcome.said) == (137, "")
        settle(hosts, "")
    assert commands.run(NONE, *migrate(*hosts)).status == 0


@pytest.mark.parametrize("end", [COMMAND, RECEIVER])
def test_an_end_is_killed(commands: Commands, hosts: Hosts, end: str) -> None:
    whole = commands.run(Fault(-1, end), *migrate_remotely(*hosts))
    assert whole.status == 0
    hosts.reverse()
    for call in spread(whole.calls - REMOTE_WORK, whole.calls - END, 4):
        outcome = commands.run(Fault(call, end), *migrate_remotely(*hosts))
        assert outcome.status in ((137,) if end == COMMAND else (0, 1, 2))
        settle(hosts, outcome.said + outcome.printed)
    assert commands.run(NONE, *migrate(*hosts)).status == 0


def steps(source: Source, target: Target) -> Iterator[bool]:
    """Make the steps of a migration; between them say whether the guest is to run on the target."""
    yield False
    (target.client / "guest").write_text("1")
    yield False
    target.prepare()
    yield False
    stream = source.stop()
    yield False
    target.take(stream)
    yield False
    target.run()
    yield True
    source.close()
    yield True


def test_hosts_are_put_in_order_after_each_step(hosts: Hosts) -> None:
    """By whoever knows both hosts from before, and nothing of the steps."""
    for last in range(7):
        source, target = Source(hosts[0], UUID), Target(hosts[1], UUID)
        *_, done = itertools.islice(steps(source, target), last + 1)
        recover(source, target)
        assert [state(host) for host in hosts] == (["", "RUNNING"] if done else ["RUNNING", ""]), last
        settle(hosts, "")


def test_killed_with_its_guard(commands: Commands, hosts: Hosts) -> None:
    """Nobody puts the hosts in order then; the next migration does not mind what it finds."""
    source, target = Source(hosts[0], UUID), Target(hosts[1], UUID)
    target.prepare()
    target.take(source.stop()[:-1])
    assert [state(host) for host in hosts] == ["STOP_COPY", "RESUMING"]
    assert commands.run(NONE, *migrate(*hosts)).status == 0
    settle(hosts, "")


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_the_guard_alone_is_killed(commands: Commands, hosts: Hosts) -> None:
    """The migration goes on."""
    whole = commands.run(Fault(-1, GUARD), *migrate(*hosts))
    assert whole.calls > END
    for call in (1, whole.calls // 2, whole.calls):
        hosts.reverse()
        outcome = commands.run(Fault(call, GUARD), *migrate(*hosts))
        assert (outcome.status, outcome.said) == (0, "")
        assert [state(host) for host in hosts] == ["", "RUNNING"]


def test_nobody_migrates_when_the_guard_alone_was_killed(hosts: Hosts) -> None:
    """The one who migrates has the locks as well."""
    places = [client(host) for host in hosts]
    others = children(os.getpid())
    with guard.Guard(lambda _: None, places):
        (guarding,) = set(children(os.getpid())).difference(others)
        os.kill(guarding, signal.SIGKILL)
        while state_of(guarding) != "Z":
            os.sched_yield()
        assert all(map(is_locked, places))
    assert not any(map(is_locked, places))


def is_locked(directory: Path) -> bool:
    """Whether somebody else has a lock (flock(2)) on a directory."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def state_of(pid: int) -> str:
    """Return the state of a process as ps(1) has it: Z if it has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_nobody_migrates_while_hosts_are_put_in_order(commands: Commands, hosts: Hosts) -> None:
    """Another `apfs migrate` waits for that, or, if it is the receiving end of two, says so."""
    place = client(hosts[1])
    with guard.Guard(lambda _: None, [place]):
        refused = commands.run(NONE, *migrate_remotely(*hosts))
        assert refused.status == 1
        assert "apfs: another apfs migrate is using this device\n" in refused.said
        assert [state(host) for host in hosts] == ["RUNNING", ""]
        waiting = commands.start(NONE, *migrate(*hosts))
        while not re.search(rf"-> FLOCK .*:{place.stat().st_ino} ", Path("/proc/locks").read_text()):
            assert waiting.poll() is None
            os.sched_yield()
    waiting.communicate(timeout=TIMEOUT)
    assert [state(host) for host in hosts] == ["", "RUNNING"]


def test_a_server_is_killed(commands: Commands, tmp_path: Path) -> None:
    """The guest is where it was, or with the server that lives; a new mount can take it."""
    places = {name: tmp_path / name for name in SCENARIOS}
    for victim, other in (SCENARIOS, SCENARIOS[::-1]):
        for place in places.values():
            place.mkdir(exist_ok=True)
        whole = attempt(commands, places, victim, other, Fault(-1, SERVER))
        for call in spread(whole.calls - SERVERS_WORK, whole.calls - END, 2):
            assert attempt(commands, places, victim, other, Fault(call, SERVER)).status == 0


def attempt(commands: Commands, places: dict[str, Path], victim: str, other: str, fault: Fault) -> Outcome:
    """Migrate with a fault in a server, look at the other host, and end both. The status is that of the mount."""
    apfs("mount", "--scenario", other, str(places[other]))
    try:
        with commands.start(fault, *APFS, "mount", "--scenario", victim, str(places[victim])) as process:
            try:
                status = line_of(process)
                if status == "0\n":
                    check_migration(places, places[other])
            finally:
                apfs("umount", str(places[victim]), status=None)  # of a killed one the mount helper may be faster
            printed, said = process.communicate(timeout=TIMEOUT)
    finally:
        apfs("umount", str(places[other]))
    assert not mounts_in(places[victim])
    return outcome_of(status + printed, said)


def check_migration(places: dict[str, Path], other: Path) -> None:
    target = places[SCENARIOS[1]]
    with suppress(OSError):  # it may be the one that has been killed
        (client(target) / "guest").write_text("0")
    before = state(other)
    assert before == ("" if other == target else "RUNNING")
    done = apfs("migrate", *map(str, places.values()), UUID, status=None)
    assert done.returncode in (0, 1, 2)
    assert (done.stdout + done.stderr).count("\n") == 1, done
    moved = done.returncode == 0 or "the guest runs on the target" in done.stdout
    expected = ("RUNNING" if other == target else "") if moved else before
    assert state(other) == expected, done

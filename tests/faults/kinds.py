"""The kinds of faults that `tests.faults.run` tries: which process, which signal, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.mounts import places
from apfs.vmm import build
from tests.conftest import apfs
from tests.faults.points import APFS, COMMAND, Commands, Fault, Outcome, mounts_in
from tests.faults.test_kill import (
    AGENT,
    EXEC,
    FOR_EVER,
    FORKED,
    FORKS,
    SERVER,
    SINCE_THE_START,
    check_exec,
    nothing_stays,
)
from tests.faults.test_migration import GUARD, RECEIVER, SCENARIOS, Hosts, client, migrate, migrate_remotely, settle
from tests.faults.test_migration import attempt as migrate_with_a_fault
from tests.faults.test_vmm import COMPILER, program

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

AT_THE_END = 30
"""More calls that change something than `apfs exec` makes after the command has started."""
BWRAP = "3"
AFTER_THE_ANSWER = 6
"""More calls that change something than a process makes after the command has ended that an agent ran for it."""
LOST = "apfs: the agent was killed, and with it this command\n"


@dataclass(frozen=True, slots=True)
class Kind:
    """Faults at the calls of a process that change something, from the first number to the last."""

    fault: Callable[[int], Fault]
    """The fault at the call of a number, or none for a negative one."""
    attempt: Callable[[Fault], Outcome]
    """Does the same every time, with a fault, and checks what must hold then."""
    whole: Outcome
    """What it is without a fault."""
    first: int = 1
    spare: int = 0
    """How many of the last calls are left out."""


def killed(child: str) -> Callable[[int], Fault]:
    return lambda call: Fault(call, child, changing=True)


def interrupted(call: int) -> Fault:
    return Fault(call, number=signal.SIGINT, group=True, changing=True)


def nothing_left(commands: Commands) -> None:
    left = list(commands.tmp.iterdir())
    assert not left, left


def started(commands: Commands, *before: str) -> int:
    """How many of the calls that change something there are before the first line of apfs, and a few more."""
    return commands.run(interrupted(-1), *before, *APFS[:2], "-c", "import apfs.cli.start").changes


def exec_killed(commands: Commands, _stack: ExitStack) -> Kind:
    """Kill -9 of `apfs exec`: before it starts a command that would not end, or while one that ends does so."""
    whole = check_exec(commands, killed(COMMAND)(-1))

    def attempt(fault: Fault) -> Outcome:
        words = FOR_EVER if fault.call < whole.changes - SINCE_THE_START else EXEC
        outcome = check_exec(commands, fault, words)
        nothing_stays(commands)
        return outcome

    return Kind(killed(COMMAND), attempt, whole)


def helper_of_exec_killed(child: str, commands: Commands, _stack: ExitStack) -> Kind:
    """Kill -9 of one of the processes that `apfs exec` starts. That of the command has a status of its own."""
    is_inside = child.startswith(f"{BWRAP}.")
    statuses = (0, 125, 137) if is_inside else (0, 125)

    def attempt(fault: Fault) -> Outcome:
        outcome = check_exec(commands, fault, EXEC, statuses)
        nothing_left(commands)
        nothing_stays(commands)
        return outcome

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def exec_interrupted(commands: Commands, _stack: ExitStack) -> Kind:
    """Ctrl-C until the command of `apfs exec` runs."""

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *FOR_EVER)
        assert (outcome.status, outcome.said) == (130, ""), outcome
        nothing_left(commands)
        return outcome

    whole = commands.run(interrupted(-1), *EXEC)
    return Kind(interrupted, attempt, whole, started(commands), AT_THE_END)


def exec_on_a_mount_killed(commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of an `apfs exec` on a host that others use, too."""
    host = _host(commands, stack, "default")

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *APFS, "exec", "--mount", str(host), "true")
        assert list((host / "ctl/fds").iterdir()) == []
        apfs("exec", "--mount", str(host), "true")
        return outcome

    return Kind(killed(COMMAND), attempt, attempt(killed(COMMAND)(-1)))


def mount_killed(child: str, commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of `apfs mount`, its server, or the helper of that."""
    mountpoint = _directory(commands, stack)

    def attempt(fault: Fault) -> Outcome:
        return commands.mount(fault, mountpoint)

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def mount_interrupted(commands: Commands, stack: ExitStack) -> Kind:
    """Ctrl-C at `apfs mount`."""
    mountpoint = _directory(commands, stack)

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.mount(fault, mountpoint)
        assert outcome.status in (0, 130), outcome
        assert outcome.said == ""
        return outcome

    return Kind(interrupted, attempt, attempt(interrupted(-1)), started(commands))


def mount_with_an_agent_killed(child: str, commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of `apfs agent`, which becomes `apfs mount`, of the agent, of its command, or of the server of that."""
    mountpoint = _directory(commands, stack)

    def attempt(fault: Fault) -> Outcome:
        return commands.mount(fault, mountpoint, *AGENT)

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def agent_interrupted(commands: Commands, _stack: ExitStack) -> Kind:
    """Ctrl-C at `apfs agent` until its command runs."""

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *AGENT, "sleep", "0")
        assert outcome.status in (0, 130), outcome
        assert outcome.said == ""
        return outcome

    return Kind(interrupted, attempt, attempt(interrupted(-1)), started(commands))


def mount_with_an_agent_interrupted(child: str, commands: Commands, stack: ExitStack) -> Kind:
    """Ctrl-C at `apfs mount` in a session that has an agent: at its calls, or at those of the agent's command."""
    mountpoint = _directory(commands, stack)

    def fault(call: int) -> Fault:
        return Fault(call, child, number=signal.SIGINT, group=True, changing=True)

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.mount(fault, mountpoint, *AGENT)
        if not is_lost(outcome, 1):
            assert outcome.status in (0, 130), outcome
            assert outcome.said == ""
        return outcome

    return Kind(fault, attempt, attempt(fault(-1)), started(commands, *AGENT) if child == COMMAND else 1)


def is_lost(outcome: Outcome, status: int) -> bool:
    """Whether the agent has ended with its command: so does Ctrl-C until the command has joined its group."""
    return outcome.said == LOST and outcome.status == status


def exec_with_an_agent_interrupted(child: str, commands: Commands, _stack: ExitStack) -> Kind:
    """Ctrl-C at `apfs exec` in a session that has an agent, as above."""

    def fault(call: int) -> Fault:
        return Fault(call, child, number=signal.SIGINT, group=True, changing=True)

    whole = commands.run(fault(-1), *AGENT, *EXEC)
    last = whole.changes - (AT_THE_END if child == FORKED else AFTER_THE_ANSWER)

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *AGENT, *(FOR_EVER if fault.call < last else EXEC))
        if not is_lost(outcome, 125):
            assert outcome.status == 130 or fault.call >= last, outcome
            assert outcome.status in (0, 130), outcome
            assert outcome.said == ""
        nothing_stays(commands)
        return outcome

    return Kind(fault, attempt, whole, started(commands, *AGENT) if child == COMMAND else 1)


def exec_with_an_agent_killed(child: str, commands: Commands, _stack: ExitStack) -> Kind:
    """Kill -9 of `apfs agent`, which becomes `apfs exec`, of the agent, of its command, or of the server of that."""
    statuses = (0, 125, 137) if child == FORKED else (0, 125)

    def attempt(fault: Fault) -> Outcome:
        outcome = check_exec(commands, fault, (*AGENT, *EXEC), statuses)
        nothing_stays(commands)
        return outcome

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def migration_killed(
    words: Callable[[Path, Path], tuple[str, ...]], child: str, commands: Commands, stack: ExitStack
) -> Kind:
    """Kill -9 of `apfs migrate`, its guard, or one of its ends."""
    hosts: Hosts = [_host(commands, stack, scenario) for scenario in SCENARIOS]
    (client(hosts[1]) / "guest").write_text("0")

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *words(*hosts))
        settle(hosts, outcome.said + outcome.printed)
        return outcome

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def migrating_server_killed(victim: str, commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of a server that starts, migrates, and ends."""
    mounts = {scenario: _directory(commands, stack) for scenario in SCENARIOS}
    (other,) = set(SCENARIOS) - {victim}

    def attempt(fault: Fault) -> Outcome:
        return migrate_with_a_fault(commands, mounts, victim, other, fault)

    return Kind(killed(SERVER), attempt, attempt(killed(SERVER)(-1)))


TEST = """
def test_it(apfs_mount):
    assert apfs_mount.sh("cat /sys/bus/ap/bindings").stdout == "12/12 (complete)\\n"
"""


def plugin_killed(child: str, commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of pytest, of the process that forks for it, of a host, or of a command."""
    file = _directory(commands, stack) / "test_it.py"
    file.write_text(TEST)
    # Without other plugins, which may start processes.
    options = ("-q", "-p", "no:cacheprovider", "-p", "apfs.testing.plugin", str(file))
    # What pytest has printed when it is killed may be half a line, before which no status fits.
    words = ("sh", "-c", f'PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec {sys.executable} -m pytest "$@" >&2', "sh", *options)

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *words)
        expected = (137,) if child == COMMAND and fault.met(outcome) else (0, 1)
        assert outcome.status in expected, outcome
        assert not mounts_in(commands.tmp)
        mountpoint, lock = places.make("apfs-host-")
        places.remove(mountpoint)
        os.close(lock)
        for path in commands.tmp.iterdir():
            # One that Python makes for pytest, to see whether this is a place for temporary files.
            assert path.is_file(), path
            assert path.read_bytes() in (b"", b"blat"), path
            path.unlink()
        return outcome

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def libvirtd_killed(child: str, commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of `apfs libvirtd`, or of its `apfs exec`, with a program in place of libvirtd."""
    words = (*APFS, "libvirtd", "--libvirtd", program(_directory(commands, stack), "exit 1"))

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *words)
        reached = child == COMMAND and fault.met(outcome)
        assert outcome.status == (137 if reached else 1), outcome
        with places.directory("apfs-libvirt-", str(commands.tmp)):
            pass
        nothing_stays(commands)
        return outcome

    return Kind(killed(child), attempt, attempt(killed(child)(-1)))


def compiling_killed(commands: Commands, stack: ExitStack) -> Kind:
    """Kill -9 of `apfs qemu` while it has its plugin compiled, into a cache of its own."""
    cache = _directory(commands, stack)
    script = f'mount --bind {cache} /var/cache; exec env CC="$0" "$@"'
    compiler = program(_directory(commands, stack), COMPILER)
    words = ("unshare", "--mount", "sh", "-c", script, compiler, *APFS, "qemu", "--build")

    def attempt(fault: Fault) -> Outcome:
        outcome = commands.run(fault, *words)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        left = [path.name for path in (cache / "apfs").iterdir()]
        assert left == [build.file_name()], left
        (cache / "apfs" / build.file_name()).unlink()
        return outcome

    return Kind(killed(COMMAND), attempt, attempt(killed(COMMAND)(-1)))


def _directory(commands: Commands, stack: ExitStack) -> Path:
    """Return a directory that is not in the TMPDIR of the commands, where nothing may stay."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=commands.tmp.parent)))


def _host(commands: Commands, stack: ExitStack, scenario: str) -> Path:
    place = _directory(commands, stack)
    apfs("mount", "--scenario", scenario, str(place))
    stack.callback(apfs, "umount", "--lazy", str(place))
    return place


KINDS: dict[str, Callable[[Commands, ExitStack], Kind]] = {
    "exec": exec_killed,
    "exec-server": lambda *rest: helper_of_exec_killed(SERVER, *rest),
    "exec-assembler": lambda *rest: helper_of_exec_killed("2", *rest),
    "exec-bwrap": lambda *rest: helper_of_exec_killed(BWRAP, *rest),
    "exec-bwrap-child": lambda *rest: helper_of_exec_killed(f"{BWRAP}.1", *rest),
    "exec-command": lambda *rest: helper_of_exec_killed(f"{BWRAP}.1.1", *rest),
    "exec-interrupted": exec_interrupted,
    "exec-on-a-mount": exec_on_a_mount_killed,
    "mount": lambda *rest: mount_killed(COMMAND, *rest),
    "mount-server": lambda *rest: mount_killed(SERVER, *rest),
    "mount-helper": lambda *rest: mount_killed("1.1", *rest),
    "mount-interrupted": mount_interrupted,
    "agent-interrupted": agent_interrupted,
    "agent-mount": lambda *rest: mount_with_an_agent_killed(COMMAND, *rest),
    "agent-mount-agent": lambda *rest: mount_with_an_agent_killed(FORKS, *rest),
    "agent-mount-command": lambda *rest: mount_with_an_agent_killed(FORKED, *rest),
    "agent-mount-server": lambda *rest: mount_with_an_agent_killed(f"{FORKED}.{SERVER}", *rest),
    "agent-mount-interrupted": lambda *rest: mount_with_an_agent_interrupted(COMMAND, *rest),
    "agent-mount-command-interrupted": lambda *rest: mount_with_an_agent_interrupted(FORKED, *rest),
    "agent-exec": lambda *rest: exec_with_an_agent_killed(COMMAND, *rest),
    "agent-exec-agent": lambda *rest: exec_with_an_agent_killed(FORKS, *rest),
    "agent-exec-command": lambda *rest: exec_with_an_agent_killed(FORKED, *rest),
    "agent-exec-server": lambda *rest: exec_with_an_agent_killed(f"{FORKED}.{SERVER}", *rest),
    "agent-exec-interrupted": lambda *rest: exec_with_an_agent_interrupted(COMMAND, *rest),
    "agent-exec-command-interrupted": lambda *rest: exec_with_an_agent_interrupted(FORKED, *rest),
    "migrate": lambda *rest: migration_killed(migrate, COMMAND, *rest),
    "migrate-guard": lambda *rest: migration_killed(migrate, GUARD, *rest),
    "migrate-send": lambda *rest: migration_killed(migrate_remotely, COMMAND, *rest),
    "migrate-receive": lambda *rest: migration_killed(migrate_remotely, RECEIVER, *rest),
    **{name: lambda *rest, name=name: migrating_server_killed(name, *rest) for name in SCENARIOS},
    "pytest": lambda *rest: plugin_killed(COMMAND, *rest),
    "pytest-forking": lambda *rest: plugin_killed("1", *rest),
    "pytest-host": lambda *rest: plugin_killed("1.2", *rest),
    "pytest-command": lambda *rest: plugin_killed("1.3", *rest),
    "libvirtd": lambda *rest: libvirtd_killed(COMMAND, *rest),
    "libvirtd-exec": lambda *rest: libvirtd_killed("1", *rest),
    "qemu-build": compiling_killed,
}

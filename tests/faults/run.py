"""The long form of the faults: `python -m tests.faults.run [MINUTES] [--seed N] [KIND...]`.

The tests try some system calls of each kind; this tries all of them, in a random order, as far as the time allows, and
prints a row of the table in docs/reliability.md for each kind.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.conftest import apfs
from tests.faults.points import NONE, Commands, Fault, compile_program, started
from tests.faults.test_kill import AT_THE_END, EXEC, FOR_EVER, OTHERS, SERVER, check_exec, nothing_stays
from tests.faults.test_migration import RECEIVER, SCENARIOS, Hosts, client, migrate, migrate_remotely, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True)
class Sweep:
    """The system calls of a kind, and what is to be tried at each."""

    calls: Iterable[int]
    attempt: Callable[[int], object]


def exec_killed(child: int, commands: Commands, _stack: ExitStack) -> Sweep:
    """Kill -9 of one of the processes of `apfs exec`."""
    whole = check_exec(commands, Fault(-1, child))

    def attempt(call: int) -> None:
        check_exec(commands, Fault(call, child))
        if child:
            assert list(commands.tmp.iterdir()) == []
        nothing_stays(commands)

    return Sweep(range(1, whole.calls + 1), attempt)


def exec_interrupted(commands: Commands, _stack: ExitStack) -> Sweep:
    """Ctrl-C until the command of `apfs exec` runs."""
    whole = commands.run(NONE, *EXEC)

    def attempt(call: int) -> None:
        outcome = commands.run(Fault(call, number=signal.SIGINT, group=True), *FOR_EVER)
        assert (outcome.status, outcome.said) == (130, ""), outcome
        assert list(commands.tmp.iterdir()) == []

    return Sweep(range(started(commands), whole.calls - AT_THE_END), attempt)


def mount_killed(commands: Commands, stack: ExitStack) -> Sweep:
    """Kill -9 of `apfs mount`."""
    mountpoint = _directory(stack)
    whole = commands.mount(NONE, mountpoint)
    return Sweep(range(1, whole.calls), lambda call: commands.mount(Fault(call), mountpoint))


def mount_interrupted(commands: Commands, stack: ExitStack) -> Sweep:
    """Ctrl-C at `apfs mount`."""
    mountpoint = _directory(stack)
    whole = commands.mount(NONE, mountpoint)

    def attempt(call: int) -> None:
        outcome = commands.mount(Fault(call, number=signal.SIGINT, group=True), mountpoint)
        assert outcome.status in (0, 130), outcome
        assert outcome.said == ""

    return Sweep(range(started(commands), whole.calls), attempt)


def server_killed(commands: Commands, stack: ExitStack) -> Sweep:
    """Kill -9 of the server while it starts."""
    mountpoint = _directory(stack)
    whole = commands.mount(Fault(-1, SERVER), mountpoint)
    return Sweep(range(1, whole.calls * 9 // 10), lambda call: commands.mount(Fault(call, SERVER), mountpoint))


def migration_killed(
    words: Callable[[Path, Path], tuple[str, ...]], child: int, commands: Commands, stack: ExitStack
) -> Sweep:
    """Kill -9 of `apfs migrate`, or of one of its ends."""
    hosts: Hosts = []
    for scenario in SCENARIOS:
        place = _directory(stack)
        apfs("mount", "--scenario", scenario, str(place))
        stack.callback(apfs, "umount", "--lazy", str(place))
        hosts.append(place)
    (client(hosts[1]) / "guest").write_text("0")
    whole = commands.run(Fault(-1, child), *words(*hosts))
    hosts.reverse()

    def attempt(call: int) -> None:
        outcome = commands.run(Fault(call, child), *words(*hosts))
        settle(hosts, outcome.said + outcome.printed)

    return Sweep(range(started(commands), whole.calls + 1), attempt)


def _directory(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))


KINDS: dict[str, Callable[[Commands, ExitStack], Sweep]] = {
    "exec": lambda *rest: exec_killed(0, *rest),
    "exec-server": lambda *rest: exec_killed(SERVER, *rest),
    **{f"exec-process-{child}": lambda *rest, child=child: exec_killed(child, *rest) for child in OTHERS},
    "exec-interrupted": exec_interrupted,
    "mount": mount_killed,
    "mount-interrupted": mount_interrupted,
    "mount-server": server_killed,
    "migrate": lambda *rest: migration_killed(migrate, 0, *rest),
    "migrate-send": lambda *rest: migration_killed(migrate_remotely, 0, *rest),
    "migrate-receive": lambda *rest: migration_killed(migrate_remotely, RECEIVER, *rest),
}


def sweep(kind: str, seconds: float, random: Random) -> int:
    """Try calls of a kind for a time; print how many, and return how many failed."""
    tried = failed = 0
    with ExitStack() as stack:
        place = _directory(stack)
        commands = Commands(compile_program(place), place / "tmp")
        commands.tmp.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(commands.tmp)  # where the next command sweeps
        stack.callback(setattr, tempfile, "tempdir", before)
        of = KINDS[kind](commands, stack)
        calls = list(of.calls)
        random.shuffle(calls)
        until = time.monotonic() + seconds
        for call in calls:
            if time.monotonic() > until:
                break
            tried += 1
            try:
                of.attempt(call)
            except Exception:  # noqa: BLE001 -- that is what is looked for
                failed += 1
                print(f"{kind}, call {call}:\n{traceback.format_exc()}", flush=True)
    print(f"| {kind} | {len(calls)} | {tried} | {failed} |", flush=True)
    return failed


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(KINDS)}; all of them if none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = arguments.kinds or list(KINDS)
    random = Random(arguments.seed)  # noqa: S311 -- no secrets
    print("| kind | calls | tried | failed |\n| --- | --- | --- | --- |", flush=True)
    failed = sum(sweep(kind, arguments.minutes * 60 / len(kinds), random) for kind in kinds)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

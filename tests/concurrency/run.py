"""Many processes at once on one mount, for as long as one likes: `python -m tests.concurrency.run --minutes M`.

Each round has a new host and new processes: some run with low priority, some in real time, if that is allowed; one of
them is stopped again and again, in the middle of whatever it is doing; in every other round all of them, and the
server, have one processor only. After it, the order of all requests is proven (`order.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from apfs.journal.history import History
from apfs.testing.mounted import MountedHost
from tests.concurrency import client, order

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIO = f"""
name = "contended"
[qci]
domains = [0x04, 0x47]
max_adapter = 63
[[card]]
adapters = [5, 6, 7]
type = "CEX8C"
[masks]
apmask = "-5-6"
[[mdev]]
uuid = "{client.UUIDS[0]}"
adapters = [5]
domains = [0x04, 0x47]
guest = true
[[mdev]]
uuid = "{client.UUIDS[1]}"
"""
TIMEOUT = 300


@dataclass(frozen=True, slots=True)
class Round:
    """What was done and proven in one round."""

    requests: int
    outcomes: int
    records: int
    stops: int
    seconds: float


def run(processes: int, steps: int, seed: int, *, one_cpu: bool) -> Round:
    """Let processes make so many steps each, and prove the order of their requests. `OrderError` if there is none."""
    began = time.monotonic()
    random = Random(seed)  # noqa: S311 -- no secret
    asked: list[order.Request] = []
    with _one_cpu(wanted=one_cpu), tempfile.TemporaryDirectory(prefix="apfs-") as place, MountedHost(SCENARIO) as host:
        logs = [Path(place, f"client {number}") for number in range(processes)]
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(_started(host, number, seed * 1000 + number, steps, log))
                for number, log in enumerate(logs)
            ]
            _set_priorities(clients)
            for each in clients:
                assert each.stdin is not None
                each.stdin.close()
            stops = _stop_and_go(clients, host, random, asked)
            for each in clients:
                if each.wait(TIMEOUT):
                    raise order.OrderError(f"a process ended with {each.returncode}")
        final, history = host.cat("/ctl/status"), History.parse(host.recording())
        asked += [request for log in logs for request in order.notes(log.name, log.read_text("utf-8"))]
    order.prove(history, asked, final)
    outcomes = sum(record.outcome for record in history)
    return Round(len(asked), outcomes, len(history), stops, time.monotonic() - began)


@contextlib.contextmanager
def _one_cpu(*, wanted: bool) -> Iterator[None]:
    """Leave one processor to this process and to those that it starts."""
    cpus = os.sched_getaffinity(0)
    if wanted:
        os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def _started(host: MountedHost, number: int, seed: int, steps: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, which waits until its standard input ends."""
    command = [sys.executable, "-S", client.__file__, str(host.path), *map(str, (number, seed, steps, log))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _set_priorities(clients: list[subprocess.Popen[bytes]]) -> None:
    """Give the first process the lowest priority, and the second one that of real time, if that is allowed."""
    os.setpriority(os.PRIO_PROCESS, clients[0].pid, 19)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(clients[1].pid, os.SCHED_FIFO, os.sched_param(1))


def _stop_and_go(
    clients: list[subprocess.Popen[bytes]], host: MountedHost, random: Random, asked: list[order.Request]
) -> int:
    """Stop processes, one at a time, while they work, and look at the host meanwhile; return how often."""
    stops, log = 0, io.StringIO()
    looker = client.Client(str(host.path), len(clients), random, log)
    while working := [each for each in clients if each.poll() is None]:
        chosen = random.choice(working)
        chosen.send_signal(signal.SIGSTOP)
        looker.read("/ctl/status")
        chosen.send_signal(signal.SIGCONT)
        looker.read("/sys/bus/ap/bindings")
        stops += 1
    asked += order.notes("looker", log.getvalue())
    return stops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200, help="of each process in a round")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; one more in each")
    options = parser.parse_args()
    rounds: list[Round] = []
    until = time.monotonic() + 60 * options.minutes
    while not rounds or time.monotonic() < until:
        seed = options.seed + len(rounds)
        try:
            rounds.append(run(options.processes, options.steps, seed, one_cpu=bool(seed % 2)))
        except order.OrderError as error:
            sys.exit(f"round with seed {seed}: {error}")
    total = [sum(getattr(each, name) for each in rounds) for name in ("requests", "outcomes", "records", "stops")]
    counts = "requests: {:,}, outcomes: {:,}, records: {:,}, stops: {:,}".format(*total)
    seconds = sum(each.seconds for each in rounds)
    print(f"rounds: {len(rounds)}, processes: {options.processes}, {counts}, seconds: {seconds:.0f}: one order each")


if __name__ == "__main__":
    main()

"""Runs the workers, samples the server, and says whether it stayed the same: `python -m tests.soak.run [MINUTES]`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tests.conftest import server_of
from tests.soak.plot import svg
from tests.soak.workers import JOBS, put

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

_PERIOD = 5.0
"""Seconds between samples."""
_EACH = 12
"""After how many samples the last one is printed."""
_PIECE = 1 << 20
"""Bytes of the journal that are read at a time."""
_SLACK = 0.05
"""By how much the medians of two quarters of a run may differ."""


class Sample(NamedTuple):
    """The server at one moment.

    Seconds, resident MiB, descriptors, operations, sessions, how many records there were, and how many were dropped.
    """

    seconds: float
    memory: float
    descriptors: int
    operations: int
    sessions: int
    records: int
    dropped: int


class Follower:
    """Reads the journal as it grows, as `apfs journal --follow` does, in a process of its own."""

    def __init__(self, host: Path) -> None:
        self._journal = host / "ctl/journal"
        self.last, self.crashes = multiprocessing.Value("q"), multiprocessing.Value("q")
        """The newest record that was read, and how many of them were crash records."""
        self._end = multiprocessing.Event()
        self._process = multiprocessing.Process(target=self._follow, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._process.start()

    def end(self) -> None:
        """Read to the end, and stop."""
        self._end.set()
        self._process.join()
        assert not self._process.exitcode

    def _follow(self) -> None:
        rest, poll = b"", select.poll()
        with self._journal.open("rb", buffering=0) as journal:
            poll.register(journal, select.POLLIN)
            while True:
                ended = self._end.is_set()
                piece = journal.read(_PIECE)
                if not piece and ended:
                    return
                if not piece:
                    poll.poll(1000)
                    continue
                *lines, rest = (rest + piece).split(b"\n")
                crashes = [line for line in lines if b'"type": "crash"' in line]
                print(*(line.decode() for line in crashes), sep="\n", end="\n" if crashes else "", flush=True)
                self.crashes.value += len(crashes)
                if lines:
                    self.last.value = json.loads(lines[-1])["seq"]


def work(job: str, host: Path, seed: int, until: float, counts: tuple[Synchronized[int], Synchronized[int]]) -> None:
    """Do one job until the time is over; count operations and rounds."""
    random, (operations, rounds) = Random(seed), counts  # noqa: S311 -- no secrets

    def did() -> None:
        operations.value += 1  # nobody else writes to it

    while time.monotonic() < until:
        JOBS[job](host, random, did)
        rounds.value += 1


def sample(
    server: int,
    host: Path,
    began: float,
    counts: dict[str, tuple[Synchronized[int], Synchronized[int]]],
    follower: Follower,
) -> Sample:
    """Look at the server."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{server}/status").read_text().splitlines())
    with (host / "ctl/journal").open("rb") as journal:
        first = json.loads(journal.readline() or b'{"seq": 0}')["seq"]
    return Sample(
        time.monotonic() - began,
        int(status["VmRSS"].split()[0]) / 1024,
        len(os.listdir(f"/proc/{server}/fd")),  # noqa: PTH208
        sum(operations.value for operations, _ in counts.values()),
        counts["session"][1].value + counts["exec"][1].value,
        follower.last.value,
        max(0, first - 1),
    )


def median(values: list[float]) -> float:
    """Return the one in the middle."""
    return sorted(values)[len(values) // 2]


def verdict(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """Return memory and descriptors of the server in the third and the last quarter of the run."""
    quarter = len(samples) // 4
    third, last = samples[2 * quarter : 3 * quarter], samples[3 * quarter :]
    return {
        "memory": (median([one.memory for one in third]), median([one.memory for one in last])),
        "descriptors": (median([one.descriptors for one in third]), median([one.descriptors for one in last])),
    }


def soak(host: Path, minutes: float) -> tuple[list[Sample], int]:
    """Let all workers loose on a mounted host; return the samples, and the number of crashes and failures."""
    began = time.monotonic()
    until = began + minutes * 60
    counts = {job: (multiprocessing.Value("q"), multiprocessing.Value("q")) for job in JOBS}
    workers = [
        multiprocessing.Process(target=work, args=(job, host, seed, until, counts[job]), daemon=True)
        for seed, job in enumerate(JOBS)
    ]
    follower = Follower(host)
    follower.start()
    for worker in workers:
        worker.start()
    server, samples = server_of(host), list[Sample]()
    following = began
    while alive := [worker for worker in workers if worker.is_alive()]:
        samples.append(sample(server, host, began, counts, follower))
        following += _PERIOD
        alive[0].join(max(0.0, following - time.monotonic()))
        if not len(samples) % _EACH:
            print(*samples[-1], sep="\t", flush=True)
    failed = [job for job, worker in zip(JOBS, workers, strict=True) if worker.exitcode]
    rounds = {job: (operations.value, done.value) for job, (operations, done) in counts.items()}
    print("operations and rounds by worker:", rounds, "failed:", failed)
    follower.end()
    return samples, follower.crashes.value + len(failed)


def main() -> int:
    """Mount, soak, unmount, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=20)
    parser.add_argument("--plot", type=Path, help="where to put the plot, an SVG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apfs-soak-") as directory:
        host = Path(directory) / "host"
        host.mkdir()
        subprocess.run([sys.executable, "-m", "apfs", "mount", "--scenario", "largest", str(host)], check=True)
        try:
            put(host / "sys/bus/ap/apmask", b"-0-7")  # something for guests
            samples, found = soak(host, options.minutes)
        finally:
            subprocess.run([sys.executable, "-m", "apfs", "umount", "--lazy", str(host)], check=True)
    if options.plot:
        options.plot.write_text(svg([list(one) for one in samples]))
    last, seen = samples[-1], verdict(samples)
    print(f"{last.seconds:.0f} s, {last.operations} operations, {last.sessions} sessions, {found} crashes or failures")
    full = next((one.seconds for one in samples if one.dropped), None)
    since = "not full" if full is None else f"full from {full:.0f} s on, {last.dropped} dropped"
    print(f"journal: {last.records} records, {since}")
    for name, (before, after) in seen.items():
        print(f"{name}: {before:.1f} in the third quarter, {after:.1f} in the last")
    return int(bool(found) or any(after > before * (1 + _SLACK) for before, after in seen.values()))


if __name__ == "__main__":
    sys.exit(main())

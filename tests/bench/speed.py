"""Speed of a mount, side by side with yardsticks, everything from one run on one machine.

usage: python -m tests.bench.speed YARDSTICK [--rounds N] [--json FILE] [--section NAME]...

Absolute times of a shared machine mean little, so that everything is a ratio to a minimal C server of the same tree
(yardstick.c), taken in short bursts in random order: the median of the ratios of the rounds, and their quartiles.
The table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apfs import MountedHost
from tests.bench.minimal import LATE
from tests.bench.servers import (
    ALL_CPUS,
    APFS,
    CLIENT,
    MDEV,
    ONE_CPU,
    QUEUE,
    Peer,
    Server,
    apfs,
    nodes,
    scenario,
    sysfs,
    tmpfs,
    yardstick,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

BURST = 400
MINIMAL = [sys.executable, "-m", "tests.bench.minimal"]


class Result(NamedTuple):
    """One row of the table: `value` is a ratio to `base`, or seconds if there is none."""

    what: str
    who: str
    base: str
    value: float
    low: float
    high: float
    goal: float | None = None
    """What the value should not exceed."""


def seconds(run: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def interleaved(
    what: str, runs: Mapping[str, Callable[[], float]], rounds: int, goals: Mapping[tuple[str, str], float]
) -> Iterator[Result]:
    """Run everything once per round, in random order; yield the ratios to the first, for each goal and for each other.

    `goals` has limits by (name, base).
    """
    names = list(runs)
    for run in runs.values():
        run()  # so that no round is the first
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            times[name].append(runs[name]())
    yield Result(what, names[0], "", *quartiles(times[names[0]]))
    pairs = {(name, names[0]): goals.get((name, names[0])) for name in names[1:]} | dict(goals)
    for (name, base), goal in pairs.items():
        ratios = [own / other for own, other in zip(times[name], times[base], strict=True)]
        yield Result(what, name, base, *quartiles(ratios), goal)


# -- single operations -------------------------------------------------------------------------------


def read(peer: Peer) -> None:
    """Open, read and close."""
    path = peer.attribute
    for _ in range(BURST):
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)


def cat(peer: Peer) -> None:
    """Open, stat, read to the end and close, as cat does."""
    path = peer.attribute
    for _ in range(BURST):
        fd = os.open(path, os.O_RDONLY)
        os.fstat(fd)
        while os.read(fd, 4096):
            pass
        os.close(fd)


def store(peer: Peer) -> None:
    """Open, write and close, two files by turns: a mediated device gets a domain and loses it."""
    for number in range(BURST):
        fd = os.open(peer.stores[number & 1], os.O_WRONLY)
        os.write(fd, peer.number)
        os.close(fd)


def look(peer: Peer) -> None:
    """Stat what is known."""
    path = str(peer.attribute)
    for _ in range(BURST):
        os.stat(path)  # noqa: PTH116 -- Path.stat() adds its own


_READER = """
import os, sys
path = sys.argv[1]
print(flush=True)
sys.stdin.readline()
for _ in range(2000):
    fd = os.open(path, os.O_RDONLY); os.read(fd, 4096); os.close(fd)
"""


def four_clients(peer: Peer) -> float:
    """Return how long four processes take to read at once."""
    command = [sys.executable, "-S", "-c", _READER, str(peer.attribute)]
    clients = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()

    def run() -> None:
        for client in clients:
            assert client.stdin is not None
            client.stdin.close()
        for client in clients:
            client.wait()

    return seconds(run)


class Regime(NamedTuple):
    """Where client and servers run."""

    name: str
    client: set[int]
    servers: set[int]


PINNED, FREE = Regime("one CPU", ONE_CPU, ONE_CPU), Regime("all CPUs", ALL_CPUS, ALL_CPUS)
APART = Regime("a CPU each", ONE_CPU, ALL_CPUS - ONE_CPU)
"""What becomes of FREE if the scheduler moves client and server apart, which it does when it likes."""


@contextmanager
def on(peers: Sequence[Peer]) -> Iterator[Callable[[Regime], None]]:
    """Yield a function that lets client and servers run in a regime; in the end, stop the servers."""

    def pin(regime: Regime) -> None:
        for peer in peers:
            peer.pin(regime.servers)
        os.sched_setaffinity(0, regime.client)

    try:
        yield pin
    finally:
        os.sched_setaffinity(0, ALL_CPUS)
        for peer in peers:
            peer.stop()


OPERATIONS: dict[str, tuple[Callable[[Peer], None], dict[str, dict[tuple[str, str], float]]]] = {
    "open+read+close": (
        read,
        {
            "one CPU": {("apfs", "C"): 1.6, ("apfs", "plain loop"): 0.55},
            "a CPU each": {("apfs", "C"): 0.9},
            "all CPUs": {("apfs", "C"): 0.9},
        },
    ),
    "open+fstat+read+read+close": (cat, {}),
    "open+write+close": (store, {"one CPU": {("apfs", "C"): 2.0}}),
    "stat": (look, {"one CPU": {("apfs", "C"): 1.2}}),
}


def operations(program: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare single operations."""
    text = scenario(8, 16)
    peers: list[Peer] = [
        yardstick(program, directory / "c", text),
        apfs("apfs", directory / "apfs", text),
        apfs("plain loop", directory / "plain", text, "--no-fast-loop"),
        Server("pyfuse3", directory / "minimal", MINIMAL),
        tmpfs(directory / "tmpfs", text),
    ]
    machine = sysfs()
    if machine:
        peers.append(machine)
    with on(peers) as pin:
        for regime in (PINNED, APART, FREE) if APART.servers else (PINNED, FREE):
            pin(regime)
            for what, (run, goals) in OPERATIONS.items():
                runs = {peer.name: partial(seconds, partial(run, peer)) for peer in peers}
                yield from interleaved(f"{what}, {regime.name}", runs, rounds, goals.get(regime.name, {}))
        pin(PINNED)
        c, plain = peers[0], Peer("apfs", peers[1].root)
        plain.stores, plain.number = (plain.root / "sys/bus/ap/config_time",) * 2, b"30"
        runs = {peer.name: partial(seconds, partial(store, peer)) for peer in (c, plain)}
        yield from interleaved("open+write+close, a number is kept and that is all, one CPU", runs, rounds, {})
        pin(FREE)
        runs = {peer.name: partial(four_clients, peer) for peer in peers[:3]}
        limits = {("apfs", "C"): 2.0, ("apfs", "plain loop"): 1 / 1.8}
        yield from interleaved("four clients reading, all CPUs", runs, max(rounds // 2, 3), limits)
    yield _lateness(directory / "ticker", max(rounds // 2, 3))


def _lateness(root: Path, rounds: int) -> Result:
    """Return how late a task of a server is that wants to run every millisecond, while four clients keep it busy."""
    server = Server("ticker", root, [*MINIMAL, "--ticker"])
    late = []
    with on([server]):
        for _ in range(rounds):
            (root / LATE).read_text()
            four_clients(server)
            late.append(float((root / LATE).read_text()))
    return Result("another task is late, 99 of 100 times, four clients", "pyfuse3", "", *quartiles(late), 5e-3)


# -- whole programs ----------------------------------------------------------------------------------


def program(command: Sequence[str], peer: Peer) -> float:
    """Return how long a program takes in a mount."""
    return seconds(lambda: subprocess.run(command, cwd=peer.root, stdout=subprocess.DEVNULL, check=False))


def _programs(
    regime: Regime, peers: Sequence[Peer], rounds: int, tools: Mapping[str, tuple[str, float]]
) -> Iterator[Result]:
    for what, (command, goal) in tools.items():
        runs = {peer.name: partial(program, command.split(), peer) for peer in peers}
        yield from interleaved(f"{what}, {regime.name}", runs, rounds, {("apfs", "C"): goal})


def trees(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare walks through 24 cards x 256 domains, about 100,000 files."""
    text = scenario(24, 256)
    peers = [yardstick(c, directory / "c", text, "/sys/devices/ap"), apfs("apfs", directory / "apfs", text)]
    find, grep = "find sys/devices/ap -type f", "grep -rs nothing sys/devices/ap"
    with on(peers) as pin:
        pin(PINNED)
        yield from _programs(PINNED, peers, rounds, {"find -type f": (find, 2.4), "grep -r": (grep, 1.8)})
        pin(FREE)
        yield from _programs(FREE, peers, max(rounds // 2, 3), {"grep -r": (grep, 0.8)})


def listings(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare listings of the 65,536 links of /sys/bus/ap/devices, and of 1,024 with that."""
    links = "sys/bus/ap/devices"
    text = scenario(256, 256)
    peers = [yardstick(c, directory / "c", text, f"/{links}"), apfs("apfs", directory / "apfs", text)]
    tools = {"ls -f, 65,536 links": (f"ls -f {links}", 2.2), "ls -l, 65,536 links": (f"ls -l {links}", 2.1)}
    with on(peers) as pin:
        pin(PINNED)
        yield from _programs(PINNED, peers, rounds, tools)
        small = apfs("1,024 queues", directory / "small", scenario(16, 64))
        with on([small]) as pin_small:
            pin_small(PINNED)

            def per_entry(peer: Peer, count: int) -> float:
                return seconds(lambda: sum(1 for _ in os.scandir(peer.root / links))) / count

            runs = {small.name: partial(per_entry, small, 1040), "65,536 queues": partial(per_entry, peers[1], 65792)}
            yield from interleaved("listing, per entry", runs, rounds, {("65,536 queues", small.name): 1.2})


# -- growth ------------------------------------------------------------------------------------------


def scale(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare hosts of 16, 1,024 and 65,536 queues: start, single operations, memory, idleness."""
    del c
    sizes = {"16 queues": (8, 2), "1,024 queues": (16, 64), "65,536 queues": (256, 256)}
    starts = {}
    for name, (cards, domains) in {"12 queues": (6, 2), **sizes}.items():
        file = directory / f"{cards}.toml"
        file.write_text(scenario(cards, domains))
        starts[name] = partial(_mount, file, directory / "mnt")
    starts["import trio, pyfuse3"] = partial(_import, "trio, pyfuse3")
    (directory / "mnt").mkdir()
    limits = {("65,536 queues", "12 queues"): 1.3, ("65,536 queues", "import trio, pyfuse3"): 1.5}
    yield from interleaved("apfs mount", starts, rounds, limits)

    peers = [apfs(name, directory / name.replace(" ", "-"), scenario(*size)) for name, size in sizes.items()]
    base, _, largest = (peer.name for peer in peers)
    for peer in peers:
        peer.attribute = peer.root / "sys/devices/ap/card05/05.0001/chkstop"
    with on(peers) as pin:
        pin(PINNED)
        for what, run in {"open+read+close": read, "open+write+close": store, "lookup": miss}.items():
            runs = {peer.name: partial(seconds, partial(run, peer)) for peer in peers}
            yield from interleaved(f"{what}, by size", runs, rounds, {(largest, base): 1.15})
        small, large = peers[0], peers[-1]
        yield _memory("memory after the mount", small, large)
        for peer in (small, large):
            program(["find", "sys", "-type", "f"], peer)
        yield _memory("memory after find", small, large)
        time.sleep(1)  # closing what find opened is answered after its end
        before = large.cpu_seconds()
        time.sleep(3)
        used = large.cpu_seconds() - before
        yield Result("CPU time of an idle server in 3 s", "apfs", "", used, used, used, 0.0)


def miss(peer: Peer) -> None:
    """Look up what is not there: the server is asked each time."""
    path = str(peer.root / QUEUE.rpartition("/")[0] / "05.0001" / "no such")
    for _ in range(BURST):
        os.path.lexists(path)


def _memory(what: str, small: Server, large: Server) -> Result:
    ratio = large.resident() / small.resident()
    return Result(what, large.name, small.name, ratio, ratio, ratio, 1.5)


def _mount(file: Path, mountpoint: Path, env: dict[str, str] | None = None) -> float:
    command = [*APFS, "mount", "--scenario", str(file), str(mountpoint)]
    taken = seconds(lambda: subprocess.run(command, check=True, env=env))
    subprocess.run(["umount", str(mountpoint)], check=True)
    return taken


def _import(what: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", f"import {what}"], check=True))


def everything(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Time stores that concern all queues of a host, at 16,384 and at 65,536 queues."""
    del c
    ones, none = "0x" + "f" * 64, "0x" + "0" * 64
    steps = {
        "apmask takes all queues": ("sys/bus/ap/apmask", ones),
        "apmask gives all queues": ("sys/bus/ap/apmask", none),
        "ap_config of everything": (f"{MDEV}/ap_config", f"{ones},{ones},{none}"),
        "a guest starts": (f"{CLIENT}/guest", "1"),
        "guest_matrix": (f"{MDEV}/guest_matrix", None),
        "a guest ends": (f"{CLIENT}/guest", "0"),
        "ap_config of nothing": (f"{MDEV}/ap_config", f"{none},{none},{none}"),
    }
    for cards in (64, 256):
        server = apfs("apfs", directory / str(cards), scenario(cards, 256))
        (server.root / MDEV / "unassign_adapter").write_text("5")
        times: dict[str, list[float]] = {what: [] for what in steps}
        with on([server]):
            for _ in range(max(rounds // 3, 3)):
                for what, (path, data) in steps.items():
                    file = server.root / path
                    times[what].append(seconds(partial(file.write_text, data) if data else file.read_text))
        for what, values in times.items():
            yield Result(f"{what}, {cards * 256:,} queues", "apfs", "", *quartiles(values), 1.5)


# -- migration ---------------------------------------------------------------------------------------


def streams(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare moving a stream of 1 MiB, and time the migration of 65,536 queues within one host."""
    del c
    client = f"/{CLIENT}"
    everything = ",".join(("0x" + "f" * 64,) * 2 + ("0x" + "0" * 64,))
    server = apfs("apfs", directory / "apfs", scenario(256, 256))
    (server.root / MDEV / "ap_config").write_text(everything)
    own = server.root / client[1:]
    (own / "guest").write_text("1")
    with on([server]) as pin:
        pin(PINNED)
        times: dict[int, list[list[float]]] = {128 * 1024: [], 4096: []}
        for _ in range(rounds):
            for size, column in times.items():
                column.append(_migration(own, size))
        for number, what in enumerate(("made", "read", "written and validated", "resumed", "all of it")):
            for size, goal in ((128 * 1024, 0.3), (4096, 0.45)):
                name = f"stream of 65,536 queues, {what}, {size // 1024} KiB pieces"
                values = [steps[number] for steps in times[size]]
                yield Result(name, "apfs", "", *quartiles(values), goal if number == 4 else None)


def _migration(client: Path, size: int) -> list[float]:
    """Save and resume on the same device, in pieces; return the time of each step, and of all."""
    clock = [time.perf_counter()]
    (client / "migration_state").write_text("STOP_COPY")
    clock.append(time.perf_counter())
    pieces = []
    with (client / "data_stream").open("rb", buffering=0) as stream:
        while piece := stream.read(size):
            pieces.append(piece)
    clock.append(time.perf_counter())
    (client / "migration_state").write_text("RESUMING")
    with (client / "data_stream").open("wb", buffering=0) as stream:
        for piece in pieces:
            stream.write(piece)
    clock.append(time.perf_counter())
    (client / "migration_state").write_text("RUNNING")
    clock.append(time.perf_counter())
    return [after - before for before, after in pairwise(clock)] + [clock[-1] - clock[0]]


# -- the alternative ---------------------------------------------------------------------------------


def umockdev(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare with umockdev-run, which a user would take instead: a shell loop, and starting with 256 queues."""
    text = scenario(8, 16)
    servers = [apfs("apfs", directory / "loop", text), yardstick(c, directory / "c", text)]
    loop = "for i in $(seq 200); do cat {}/" + QUEUE + "/chkstop; done"
    with on(servers):
        runs = {"umockdev-run": partial(_shell_loop, _umockdev_run(directory, text), loop.format(""))}
        runs |= {server.name: partial(_shell_loop, [], loop.format(server.root)) for server in servers}
        yield from interleaved("200 times cat in sh", runs, rounds, {("apfs", "umockdev-run"): 0.7})
    file, mountpoint = directory / "256.toml", directory / "mnt"
    file.write_text(scenario(16, 16))
    mountpoint.mkdir()
    start = [*_umockdev_run(directory, scenario(16, 16)), "true"]
    starts = {
        "umockdev-run": partial(seconds, lambda: subprocess.run(start, check=True)),
        "apfs": partial(_mount, file, mountpoint),
    }
    yield from interleaved("start with 256 queues", starts, max(rounds // 3, 3), {("apfs", "umockdev-run"): 0.2})


def _umockdev_run(directory: Path, text: str) -> list[str]:
    """Describe a host's cards and queues in umockdev's format; return the beginning of a command that shows them."""
    devices: dict[str, list[str]] = {}
    for node in nodes(text, "/sys/devices/ap"):
        parent, _, name = node.path.rpartition("/")
        if node.kind == "D" and node.path.startswith("/sys/devices/ap/"):
            devices[node.path] = [f"P: {node.path.removeprefix('/sys')}\n", "E: SUBSYSTEM=ap\n"]
        elif node.kind == "F" and node.text and name != "uevent" and parent in devices:
            devices[parent].append(f"A: {name}={node.text.rstrip()}\\n\n")
    description = directory / "description.umockdev"
    description.write_text("\n".join(map("".join, devices.values())))
    return ["umockdev-run", "-d", str(description), "--"]


def _shell_loop(run: list[str], script: str) -> float:
    """Return how long a script takes by itself, without what surrounds it."""
    timed = f"date +%s.%N; {{ {script}; }} > /dev/null; date +%s.%N"
    output = subprocess.run([*run, "sh", "-c", timed], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(output[1]) - float(output[0])


# -- apfs exec ---------------------------------------------------------------------------------------

BWRAP = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-pid", "--proc", "/proc"]


IMPORT = "import trio, pyfuse3"
MANY = "pytest, 20 tests with a host and a command each"
INSTALLED = Path(sys.executable).with_name("apfs")
_COMPLETE = '_apfs_completion "$1"; test "${COMPREPLY[*]}" ='
TAB = f'. "$0"; COMP_WORDS=(apfs mou) COMP_CWORD=1; {_COMPLETE} mount'
"""A new bash that reads the script for completion and completes a command. One that runs already takes less time."""
TAB_VALUE = f'. "$0"; COMP_WORDS=(apfs umount "${{2%?}}") COMP_CWORD=2; {_COMPLETE} "$2"'
"""The same for a mount point without its last letter, for which the script runs `apfs`."""


def startup(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare what starts for a command or a test with importing what a host is built upon."""
    del c
    server = apfs("apfs", directory / "host", scenario(8, 16))
    (directory / "mnt").mkdir()
    file = directory / "host.toml"
    file.write_text(scenario(8, 16))
    completion = directory / "completion.bash"
    completion.write_bytes(subprocess.run([*APFS, "completion", "bash"], check=True, stdout=subprocess.PIPE).stdout)
    commands = {
        IMPORT: [sys.executable, "-c", IMPORT],
        "bwrap true": [*BWRAP, "true"],
        "apfs --version": [*APFS, "--version"],
        "the Tab key": ["bash", "-c", TAB, str(completion), str(INSTALLED)],
        "the Tab key, for a value": ["bash", "-c", TAB_VALUE, str(completion), str(INSTALLED), str(server.root)],
        "apfs exec --mount DIR true": [*APFS, "exec", "--mount", str(server.root), "true"],
        "apfs exec true": [*APFS, "exec", "true"],
    }
    goals = {
        "apfs --version": 0.25,
        "the Tab key": 0.25,
        "the Tab key, for a value": 0.25,
        "apfs mount": 1.1,
        "apfs mount, with an agent": 1.1,
        "apfs exec --mount DIR true": 0.5,
        "apfs exec --mount DIR true, with an agent": 0.5,
        "apfs exec true": 1.2,
        "apfs exec true, with an agent": 1.2,
        "apfs_mount": 0.2,
        'apfs_mount.sh("true")': 0.3,
        MANY: 10.0,
    }
    with on([server]), MountedHost() as host, _agent() as agent:
        runs = {name: partial(seconds, partial(_quietly, command)) for name, command in commands.items()}
        for name in ("apfs exec --mount DIR true", "apfs exec true"):
            runs[f"{name}, with an agent"] = partial(seconds, partial(_quietly, commands[name], agent))
        runs["apfs mount"] = partial(_mount, file, directory / "mnt")
        runs["apfs mount, with an agent"] = partial(_mount, file, directory / "mnt", agent)
        runs["apfs_mount"] = partial(seconds, _host)
        runs['apfs_mount.sh("true")'] = partial(seconds, partial(host.sh, "true"))
        runs[MANY] = partial(_suite, directory, 20)
        yield from interleaved("start", runs, rounds, {(name, IMPORT): goal for name, goal in goals.items()})


def _host() -> None:
    """What the fixture apfs_mount does."""
    with MountedHost():
        pass


def _suite(directory: Path, count: int) -> float:
    """Run pytest on tests that mount a host and run a command on it."""
    text = "def test_{}(apfs_mount): assert apfs_mount.sh('cat /sys/bus/ap/scans').stdout == '1\\n'\n"
    tests = directory / "test_many.py"
    tests.write_text("".join(map(text.format, range(count))))
    # Not the directory: other hosts are mounted in it, and pytest would look for tests in them.
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(directory), str(tests)]
    return seconds(partial(_quietly, command))


def _quietly(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)


@contextmanager
def _agent() -> Iterator[dict[str, str]]:
    """Yield the environment of a command of `apfs agent`."""
    command = [*APFS, "agent", "--", "sh", "-c", 'echo "$APFS_AGENT"; exec cat']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        yield {**os.environ, "APFS_AGENT": session.stdout.readline().strip()}


# Programs that print seconds per call, measured inside, so that starting up does not count.
_CALLS = """
import fcntl, os, time
{prepare}
start = time.perf_counter()
for _ in range({count}):
    {call}
print((time.perf_counter() - start) / {count})
"""
_ORDINARY = {
    "read of a byte": _CALLS.format(
        prepare="fd = os.open('/dev/zero', os.O_RDONLY)", count=200_000, call="os.read(fd, 1)"
    ),
    "ioctl of another type": _CALLS.format(
        prepare="fd, _ = os.pipe()", count=200_000, call="fcntl.ioctl(fd, 0x541B, b'    ')"
    ),
}
_VFIO = _CALLS.format(prepare="fd = os.open('/dev/vfio/vfio', os.O_RDWR)", count=2_000, call="fcntl.ioctl(fd, 0x3B64)")


def overhead(c: Path, directory: Path, rounds: int) -> Iterator[Result]:
    """Compare calls inside `apfs exec` that are not VFIO's with those in a sandbox without it, and time one that is."""
    del c
    server = apfs("apfs", directory / "host", scenario(8, 16))
    launchers = {"bwrap": BWRAP, "apfs exec": [*APFS, "exec", "--mount", str(server.root), "--"]}
    with on([server]):
        for what, program in _ORDINARY.items():
            runs = {name: partial(_per_call, launcher, program) for name, launcher in launchers.items()}
            yield from interleaved(what, runs, rounds, {})
        vfio = {"apfs exec": partial(_per_call, launchers["apfs exec"], _VFIO)}
        yield from interleaved("VFIO_GET_API_VERSION", vfio, rounds, {})


def _per_call(launcher: Sequence[str], program: str) -> float:
    command = [*launcher, sys.executable, "-c", program]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# -- the table ---------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Path, Path, int], Iterator[Result]]] = {
    section.__name__: section
    for section in (operations, trees, listings, scale, everything, streams, umockdev, startup, overhead)
}


def row(result: Result) -> str:
    """Return a line of the table."""
    shown = "{:.2f}".format if result.base else _with_unit
    value, low, high = map(shown, (result.value, result.low, result.high))
    verdict = ""
    if result.goal is not None:
        verdict = shown(result.goal) + ("" if result.value <= result.goal else " **missed**")
    return f"| {result.what} | {result.who} | {result.base} | {value} | {low} .. {high} | {verdict} |"


def _with_unit(duration: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms")):
        if duration < limit:
            return f"{duration * factor:.3g} {unit}" if duration else "0"
    return f"{duration:.3g} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("yardstick", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="default: all; repeatable")
    options = parser.parse_args()
    results = []
    print("| what | who | in times of | median | quartiles | goal |\n|---|---|---|---|---|---|")
    for name in options.section or SECTIONS:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:  # a tmpfs: one of the yardsticks
            for result in SECTIONS[name](options.yardstick, Path(place), options.rounds):
                results.append(result)
                print(row(result), flush=True)
    if options.json:
        options.json.write_text(json.dumps([result._asdict() for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The long form of the fuzzers: `python -m tests.fuzz.run [MINUTES] [--seed N] [--guided] [TARGET...]`.

Without `--guided`, random numbers make the input. With it, atheris does, which looks for input that reaches new code;
it is installed by hand (`pip install atheris`). It goes on with what an earlier run found in `--corpus DIR`. What fails
is printed with the story that led to it, to be made a small test, or put into `corpus`, as short as it can be.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

TARGETS = {
    "stores": "some_steps",
    "machines": "some_recording",
    "scenarios": "some_text",
    "streams": "some_story",
}
"""What is fuzzed: modules, and their functions, which take choices from a source and return the number of operations.

They are imported when they are needed: for a guided run with instruments.
"""
HANGS = 120
"""Seconds after which one input hangs."""
MOST = 2048
"""MiB of memory that one process may have."""
_LONGEST = 4096
"""Bytes of an input of a guided run."""
_SEEDS = 30
"""How many inputs by chance a guided run begins with."""


def target(name: str) -> Callable[[Random], int]:
    """Return the function of a target."""
    found: Callable[[Random], int] = getattr(importlib.import_module(f"tests.fuzz.{name}"), TARGETS[name])
    return found


class Bytes(Random):
    """A source of choices that takes them from bytes, zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._number, self._left = int.from_bytes(data, "little"), len(data) * 8

    def getrandbits(self, k: int, /) -> int:
        """Return the next bits."""
        bits = self._number & ((1 << k) - 1)
        self._number >>= k
        return bits

    def random(self) -> float:
        """Return a fraction made of the next bits."""
        return self.getrandbits(16) / 65536


def by_chance(names: list[str], minutes: float, seed: int) -> int:
    """Run targets in turn until the time is over; return how many stories failed."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST << 20, MOST << 20))
    signal.signal(signal.SIGALRM, _hung)
    until, failed = time.monotonic() + minutes * 60, 0
    operations = dict.fromkeys(names, 0)
    first = seed
    while time.monotonic() < until:
        for name in names:
            signal.alarm(HANGS)
            try:
                operations[name] += target(name)(Random(seed))  # noqa: S311 -- no secrets
            except Exception:  # noqa: BLE001 -- that is what is looked for
                failed += 1
                print(f"{name}, seed {seed}:\n{traceback.format_exc()}", flush=True)
        seed += 1
    signal.alarm(0)
    print(f"fuzz: {operations}, seeds {first} to {seed - 1}, {failed} failed")
    return failed


def _hung(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {HANGS} s")


def guided(names: list[str], minutes: float, corpus: Path) -> int:
    """Give each target its share of the time, in a process of its own; return how many found something."""
    failed = 0
    for name in names:
        place = corpus / name
        place.mkdir(parents=True, exist_ok=True)
        for seed in range(_SEEDS):  # from nothing atheris would take long to come to inputs of some length
            (place / f"seed-{seed}").write_bytes(Random(seed).randbytes(_LONGEST // 2))  # noqa: S311 -- no secrets
        command = [sys.executable, "-m", "tests.fuzz.run", str(minutes / len(names)), name]
        done = subprocess.run([*command, "--guided", "--corpus", str(corpus), "--here"], check=False)
        kept = sum(1 for _ in place.iterdir())
        print(f"guided: {name}: {kept} inputs reach code of their own, status {done.returncode}", flush=True)
        failed += bool(done.returncode)
    return failed


def guide(name: str, minutes: float, corpus: Path) -> None:
    """Let atheris look for input of one target that reaches new code. Ends this process, with 0 if nothing failed."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415 -- optional

    with atheris.instrument_imports(include=["apfs", "tests.fuzz", "tomllib"]):
        function = target(name)
    options = {
        "max_total_time": round(minutes * 60),
        "max_len": _LONGEST,
        "len_control": 0,
        "timeout": HANGS,
        "rss_limit_mb": MOST,
        "artifact_prefix": f"{corpus}/{name}-",
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus / name)], lambda data: function(Bytes(data)) and None)
    atheris.Fuzz()


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"any of {', '.join(TARGETS)}; all of them if none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--corpus", type=Path, help="where a guided run keeps its inputs")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if not options.guided:
        return int(bool(by_chance(names, options.minutes, options.seed)))
    if options.here:
        guide(names[0], options.minutes, options.corpus)
    with tempfile.TemporaryDirectory(prefix="apfs-fuzz-") as directory:
        return int(bool(guided(names, options.minutes, options.corpus or Path(directory))))


if __name__ == "__main__":
    sys.exit(main())

"""The long form of the fuzzers: `python -m tests.fuzz.run [MINUTES] [--seed N] [--guided] [TARGET...]`.

Without `--guided`, random numbers make the input. With it, atheris does, which looks for input that reaches new code;
it is installed by hand (`pip install atheris`). What fails is printed with the story that led to it, to be put into
`corpus` when it is as short as it can be.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from random import Random
from typing import TYPE_CHECKING

from tests.fuzz import machines, scenarios, stores

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS: dict[str, Callable[[Random], int]] = {
    "stores": lambda random: len(stores.some_story(random).steps),
    "machines": machines.some_recording,
    "scenarios": scenarios.some_text,
}
"""What is fuzzed: functions that take their choices from a source, and return how many operations that were."""


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
    until, failed = time.monotonic() + minutes * 60, 0
    operations = dict.fromkeys(names, 0)
    first = seed
    while time.monotonic() < until:
        for name in names:
            try:
                operations[name] += TARGETS[name](Random(seed))  # noqa: S311 -- no secrets
            except Exception:  # noqa: BLE001 -- that is what is looked for
                failed += 1
                print(f"{name}, seed {seed}:\n{traceback.format_exc()}", flush=True)
        seed += 1
    print(f"fuzz: {operations}, seeds {first} to {seed - 1}, {failed} failed")
    return failed


def guided(name: str, minutes: float) -> None:
    """Let atheris look for input of one target that reaches new code. Does not return."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415 -- optional

    atheris.instrument_all()
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={minutes * 60:.0f}", "-len_control=0"], lambda data: TARGETS[name](Bytes(data))
    )
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
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if options.guided:
        guided(names[0], options.minutes)
    return int(bool(by_chance(names, options.minutes, options.seed)))


if __name__ == "__main__":
    sys.exit(main())

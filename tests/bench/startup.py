"""Start-up of `apfs exec`, against what it is built upon: interleaved runs, medians, and ratios run by run.

usage: startup.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

APFS = [sys.executable, "-m", "apfs"]
SANDBOX = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-pid", "--proc", "/proc"]


def seconds(command: list[str]) -> float:
    """Return how long a command takes, from outside."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as mountpoint:
        subprocess.run([*APFS, "mount", mountpoint], check=True)
        try:
            commands = {
                "python -c 'import trio, pyfuse3'": [sys.executable, "-c", "import trio, pyfuse3"],
                "bwrap true": [*SANDBOX, "true"],
                "apfs --version": [*APFS, "--version"],
                "apfs exec --mount DIR true": [*APFS, "exec", "--mount", mountpoint, "true"],
                "apfs exec true": [*APFS, "exec", "true"],
            }
            times: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(rounds):
                for name, command in commands.items():
                    times[name].append(seconds(command))
        finally:
            subprocess.run([*APFS, "umount", mountpoint], check=True)
    base = next(iter(commands))
    print(f"{'command':<34} {'median s':>9} {'ratio to the first':>19} {'spread of the ratio':>20}")
    for name, measured in times.items():
        ratios = sorted(own / first for own, first in zip(measured, times[base], strict=True))
        median, low, high = statistics.median(ratios), ratios[0], ratios[-1]
        print(f"{name:<34} {statistics.median(measured):9.3f} {median:19.2f} {f'{low:.2f} .. {high:.2f}':>20}")


if __name__ == "__main__":
    main()

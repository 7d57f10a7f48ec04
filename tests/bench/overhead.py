"""What `apfs exec` costs a program that does no VFIO, and what a VFIO ioctl costs: interleaved runs, medians.

usage: overhead.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile

APFS = [sys.executable, "-m", "apfs"]
BWRAP = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-pid", "--proc", "/proc"]

# Each prints seconds per call, measured inside, so that starting up does not count.
PROGRAMS = {
    "read of 1 byte": """
import os, time
fd = os.open("/dev/zero", os.O_RDONLY)
n = 200_000
start = time.perf_counter()
for _ in range(n):
    os.read(fd, 1)
print((time.perf_counter() - start) / n)
""",
    "ioctl of another type": """
import fcntl, os, time
fd, _ = os.pipe()
n = 200_000
start = time.perf_counter()
for _ in range(n):
    fcntl.ioctl(fd, 0x541B, b"    ")
print((time.perf_counter() - start) / n)
""",
}
VFIO = """
import fcntl, os, time
fd = os.open("/dev/vfio/vfio", os.O_RDWR)
n = 2_000
start = time.perf_counter()
for _ in range(n):
    fcntl.ioctl(fd, 0x3B64)
print((time.perf_counter() - start) / n)
"""


def seconds(launcher: list[str], program: str) -> float:
    """Return what a program prints."""
    command = [*launcher, sys.executable, "-c", program]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    with tempfile.TemporaryDirectory() as mountpoint:
        subprocess.run([*APFS, "mount", mountpoint], check=True)
        try:
            launchers = {"bwrap": BWRAP, "apfs exec": [*APFS, "exec", "--mount", mountpoint, "--"]}
            print(f"{'program':<24} {'bwrap':>10} {'apfs exec':>10} {'ratio':>6} {'spread':>14}   us per call")
            for name, program in PROGRAMS.items():
                times: dict[str, list[float]] = {launcher: [] for launcher in launchers}
                for _ in range(rounds):
                    for launcher, command in launchers.items():
                        times[launcher].append(seconds(command, program))
                ratios = sorted(own / base for own, base in zip(times["apfs exec"], times["bwrap"], strict=True))
                us = {launcher: statistics.median(values) * 1e6 for launcher, values in times.items()}
                spread = f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"
                ratio = statistics.median(ratios)
                print(f"{name:<24} {us['bwrap']:10.3f} {us['apfs exec']:10.3f} {ratio:6.2f} {spread:>14}")
            vfio = statistics.median(seconds(launchers["apfs exec"], VFIO) for _ in range(rounds)) * 1e6
            print(f"{'VFIO_GET_API_VERSION':<24} {'-':>10} {vfio:10.3f}")
        finally:
            subprocess.run([*APFS, "umount", mountpoint], check=True)


if __name__ == "__main__":
    main()

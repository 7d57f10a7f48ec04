"""DPDK's environment layer, as its drivers use it: a whole client of containers."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes.util import find_library
from pathlib import Path

from tests.sandbox.programs.libc import say, vmm
from tests.vfio.client import DEVICE_RESET, U


def open_and_release() -> None:
    """Set a device up, ask for its information, and let it go; then print the journal."""
    library = find_library("rte_eal")
    assert library, "DPDK is not installed: run tests/run.sh, which installs what is missing"
    eal = ctypes.CDLL(library)
    vmm.guest()
    words = (b"test", b"--no-huge", b"--no-pci", b"--no-telemetry", b"--no-shconf", b"--iova-mode=va", b"-m", b"64")
    assert eal.rte_eal_init(len(words), (ctypes.c_char_p * len(words))(*words)) >= 0
    fd, info = ctypes.c_int(-1), (ctypes.c_uint32 * 6)(24)
    directory, name = b"/sys/bus/mdev/devices/", U.encode()
    say("enabled", eal.rte_vfio_is_enabled(b"vfio"))
    say("set up", eal.rte_vfio_setup_device(directory, name, ctypes.byref(fd), info), vmm.is_open())
    say("info", [hex(number) for number in info[1:4]])
    say("reset", vmm.outcome(fd.value, DEVICE_RESET))
    say("released", eal.rte_vfio_release_device(directory, name, fd), vmm.is_open())
    sys.stdout.flush()
    os.write(1, Path("/dev/apfs/ctl/journal").read_bytes())
    eal.rte_eal_cleanup()

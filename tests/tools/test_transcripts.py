"""Real tools on an emulated host: the scripts of mount-examples/tools, compared with all that they should print.

The expected texts were compared with what the tools print on the kernel's own sysfs where such listings are published.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.tools.conftest import EXAMPLES, TIMEOUT, need

EXPECTED = Path(__file__).with_name("expected")
"""What Debian 12's tools print. Those of Debian 13 print the same, but for what is in debian-13."""
TOOLS = {
    "mdevctl": ("mdevctl",),
    "driverctl": ("driverctl", "udevadm", "kmod"),
    "lszcrypt": ("qemu-s390x-static",),
    "chzcrypt": ("qemu-s390x-static",),
    "guests": ("qemu-s390x-static",),
    "udev": ("udevadm",),
    "pyudev": ("python3",),
    "libvirt": ("libvirtd", "virsh", "mdevctl"),
}


def expected(tool: str, debian: str) -> str:
    """Return what a tool of a version of Debian prints."""
    other = EXPECTED / f"debian-{debian}/{tool}.txt"
    return (other if other.exists() else EXPECTED / f"{tool}.txt").read_text()


@pytest.mark.usefixtures("s390x_binaries")
@pytest.mark.parametrize("tool", TOOLS)
def test_transcript(tool: str, debian: str) -> None:
    need(*TOOLS[tool])
    env = {name: value for name, value in os.environ.items() if name != "RUST_BACKTRACE"}  # mdevctl prints more with it
    script = EXAMPLES / f"{tool}.sh"
    result = subprocess.run([script], check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    assert result.returncode == 0, result
    assert result.stdout.splitlines() == expected(tool, debian).splitlines()
    assert result.stderr == ""


def test_every_tool_has_a_script_and_a_transcript() -> None:
    helpers = {"prelude", "fetch-s390x"}
    assert {path.stem for path in EXAMPLES.glob("*.sh")} - helpers == set(TOOLS)
    assert {path.stem for path in EXPECTED.glob("*.txt")} == set(TOOLS)
    assert {path.stem for path in EXPECTED.glob("debian-13/*")} < set(TOOLS)


def test_the_real_machine_is_left_alone() -> None:
    """What the tools keep in /etc went into directories of the sandbox."""
    for directory in ("/etc/mdevctl.d/matrix", "/etc/driverctl.d/ap-05.0004"):
        assert not Path(directory).exists()

"""What all tests share: how much Hypothesis tries, and fixtures for real mounts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from apfs.mounts import forks
from tests import examples
from tests.parallel import ByFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xdist.remote import Producer

UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
# The option --hypothesis-profile comes later, and so counts more.
settings.load_profile(os.environ.get(examples.VARIABLE, examples.DEFAULT))


# A shell that starts the run in the background lets it ignore these signals, and so all that it starts.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Return what spreads the tests over processes: pytest-xdist asks for it, if it is in use."""
    return ByFile(config, log)


# How many times as slow as others the machine is: that of tests/vm/run.sh has an emulated processor.
SLOWER = int(os.environ.get("APFS_SLOWER", "1"))
# Far beyond anything that works; only keeps a hanging test from hanging the run.
TIMEOUT = 60 * SLOWER


def apfs(*arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line tool as a user would; `status` is the expected exit status, None for any."""
    command = [sys.executable, "-m", "apfs", *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert status is None or result.returncode == status, (arguments, result)
    return result


def sh(script: str, *arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a bash script with positional parameters."""
    command = ["bash", "-c", script, "test", *arguments]
    env = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    assert status is None or result.returncode == status, (script, result)
    return result


def let_in(directory: Path) -> None:
    """Let other users into a directory that pytest made for a test: pytest's own above it are private."""
    for place in (directory, *(above for above in directory.parents if above.name.startswith(("pytest-", "popen-")))):
        place.chmod(place.stat().st_mode | 0o055)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a scenario on a new directory; everything is unmounted afterwards."""
    made: list[Path] = []

    def make(scenario: str = "default", *options: str) -> Path:
        mountpoint = tmp_path / f"host{len(made)}"
        mountpoint.mkdir()
        made.append(mountpoint)
        result = forks.run(["mount", "--scenario", scenario, *options, str(mountpoint)], stdin="", timeout=TIMEOUT)
        assert result.returncode == 0, result
        return mountpoint

    yield make
    for mountpoint in made:
        if f" {mountpoint} " in Path("/proc/self/mounts").read_text():
            forks.run(["umount", "--lazy", str(mountpoint)], stdin="", timeout=TIMEOUT)


def server_of(mountpoint: Path) -> int:
    """Return the process that serves a mount: the mount point ends its command line, or that of its mount helper."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[-2:] == [os.fsencode(mountpoint), b""]:
                if b"apfs" in words:
                    return int(entry.name)
                if words[0] == b"fusermount3":
                    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    raise AssertionError(f"nobody serves {mountpoint}")


def create_mdev(host: Path, uuid: str = UUID) -> Path:
    """Create a mediated device and return its directory."""
    matrix = host / "sys/devices/vfio_ap/matrix"
    (matrix / "mdev_supported_types/vfio_ap-passthrough/create").write_text(uuid)
    return matrix / uuid

"""Runs real, unmodified tools inside `apfs exec`. A tool that is missing is an error: tests/run.sh installs them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from apfs.mounts import forks
from tests.conftest import SLOWER

EXAMPLES = Path(__file__).parents[2] / "mount-examples/tools"
EXAMPLE = EXAMPLES / "example.toml"
M = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
U1 = "11111111-2222-4333-8444-555555555555"
U2 = "22222222-2222-4333-8444-555555555555"
# Far beyond anything that works; only keeps a hanging tool from hanging the run.
TIMEOUT = 120 * SLOWER


def need(*tools: str) -> None:
    """Fail unless the tools are installed."""
    missing = [tool for tool in tools if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]
    assert not missing, f"{', '.join(missing)} not installed: run tests/run.sh, which installs what is missing"


@pytest.fixture(scope="session")
def debian() -> str:
    """The version of Debian. Skip on other systems, whose versions of the tools print other things."""
    release = platform.freedesktop_os_release()
    version = release.get("VERSION_ID", "")
    if release["ID"] != "debian" or version not in ("12", "13"):
        pytest.skip(f"the transcripts are those of Debian 12 and 13, and this is {release['PRETTY_NAME']}")
    return version


@pytest.fixture(scope="session")
def s390x_binaries(debian: str) -> Path:
    """Fetch the s390x binaries once, and return their root; an archive that cannot be reached is an error."""
    del debian
    place = EXAMPLES.parents[1] / ".cache/s390x"
    place.parent.mkdir(exist_ok=True)
    # Another process of the run may be about to do the same.
    fetch = ("flock", place.with_suffix(".lock"), EXAMPLES / "fetch-s390x.sh", place)
    subprocess.run(fetch, check=True, timeout=600)
    return place / "root"


def inside(
    script: str,
    *arguments: str,
    options: tuple[str, ...] = (),
    scenario: str | Path | None = EXAMPLE,
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a bash script with positional parameters inside `apfs exec`; `scenario` None if `options` name a mount."""
    host = [] if scenario is None else ["--scenario", str(scenario)]
    command = ["exec", *host, *options, "--", "bash", "-c", script, "test", *arguments]
    env = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    result = forks.run(command, stdin="", timeout=TIMEOUT, env=env)
    assert status is None or result.returncode == status, (script, result.returncode, result.stdout, result.stderr)
    return result
